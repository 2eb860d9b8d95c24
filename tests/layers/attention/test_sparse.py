"""Sparse and low-rank mixers: which pairs they let through, packed documents, decoding, growth, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers import attention
from flashjax.ops import partial_attention as over

N = 23  # no multiple of any block below
DOCUMENTS = (9, 1, 10)  # and three tokens of padding
PATTERNS = {
    "sliding_window": dict(window=5),
    "dilated": dict(window=3, dilation=4),
    "strided": dict(stride=4),
    "fixed": dict(block=5, summary=2),
    "longformer": dict(window=4, global_tokens=2),
    "bigbird": dict(block=3, random=1, seed=3),
}
LOW_RANK = {
    "linformer": dict(rank=5, documents=3),
    "nystromformer": dict(landmarks=4, conv=3, documents=3),
}
OPTIONS = PATTERNS | LOW_RANK
CAUSAL = [name for name in PATTERNS if name != "bigbird"]


def segments():
    """Three documents and padding; a row of padding alone."""
    ids = np.repeat([1, 2, 3, 0], [*DOCUMENTS, N - sum(DOCUMENTS)])
    return jnp.asarray(np.stack([ids, 0 * ids]), jnp.int32)


def draw(name, heads=3, length=N, dim=4, value_dim=6):
    """Queries, keys, values [2, length, heads, _] and the mixer's inputs, float32."""
    rng = np.random.default_rng(len(name))
    q, k, v = (normal(rng, 2, length, heads, width) for width in (dim, dim, value_dim))
    sizes = {
        "longformer": dict(global_query=q.shape, global_key=k.shape, global_value=v.shape),
        "linformer": dict(key_projection=(1, length + 4, 5), value_projection=(1, length + 4, 5)),
        "nystromformer": dict(taps=(3, heads)),
    }
    return q, k, v, {n: normal(rng, *s) for n, s in sizes.get(name, {}).items()}


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def seen(name, i, j, causal, length):
    """The rule of each pattern for positions of one document, as its paper writes it, in plain numbers. Heads: 3."""
    if causal and j > i:
        return [False] * 3
    match name:
        case "sliding_window":
            near = i - j < 5 if causal else abs(i - j) <= 2
            return [near] * 3
        case "dilated":  # dilations 1, 2, 4; window 3: two steps back, or one to each side
            steps = range(0, 3) if causal else range(-1, 2)
            return [j in [i - d * m for m in steps] for d in (1, 2, 4)]
        case "strided":
            return [abs(i - j) <= 4 or (i - j) % 4 == 0] * 3
        case "fixed":
            return [i // 5 == j // 5 or j % 5 in (3, 4)] * 3
        case "longformer":
            near = i - j < 4 if causal else abs(i - j) <= 2
            return [near or j < 2 or i < 2] * 3
        case "bigbird":
            a, b, last = i // 3, j // 3, (length - 1) // 3
            drawn = attention.get(name, **OPTIONS[name]).random_blocks(3, last + 1)
            middle = 0 < a < last
            return [abs(a - b) <= 1 or {a, b} & {0, last} or (middle and b in drawn[h, a - 1]) for h in range(3)]
    raise KeyError(name)


@functools.cache
def computed(name):
    """What the quick tests look at, from one function of each mixer, since compiling is what takes time."""
    mixer = attention.get(name, **OPTIONS[name])
    q, k, v, inputs = draw(name)
    ids, causal = segments(), name in CAUSAL
    eye = jnp.broadcast_to(jnp.eye(N)[:, None], (2, N, 3, N))
    eye_inputs = {n: eye if n == "global_value" else x for n, x in inputs.items()}

    def part(a, b):
        """Tokens a to b as a document of its own."""
        shared = {n: x if n in mixer.shared_inputs else x[:, a:b] for n, x in inputs.items()}
        return mixer.parallel(q[:, a:b], k[:, a:b], v[:, a:b], causal=causal, **shared)

    def packed(form):
        return form(q, k, v, causal=causal, segment_ids=ids, **inputs)

    @jax.jit
    def run():
        return {
            "packed": [packed(f) for f in (mixer.reference, mixer.parallel, mixer.recurrent)[: 2 + causal]],
            "whole": [form(q, k, v, causal=False, **inputs) for form in (mixer.reference, mixer.parallel)],
            "third": part(10, 20),
            "one": part(0, 1),
            "weights": {c: mixer.parallel(q, k, eye, causal=c, **eye_inputs) for c in {causal, False}}
            if name in PATTERNS
            else {},
        }

    return jax.tree.map(np.asarray, run())


@pytest.mark.parametrize("name", PATTERNS)
def test_the_blocks_let_through_what_the_rule_says(name):
    """With unit vectors as values the output is the matrix of weights."""
    for causal, weights in computed(name)["weights"].items():
        rule = [[seen(name, i, j, causal, N) for j in range(N)] for i in range(N)]
        np.testing.assert_array_equal(weights[0].transpose(0, 2, 1) > 0, np.asarray(rule, bool))
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_forms_are_equal(name):
    found, real = computed(name), np.asarray(segments() > 0)[..., None, None]
    want, *others = found["packed"]
    assert len(others) == (2 if name in CAUSAL else 1)
    for o in others:
        assert np.isfinite(o).all()
        np.testing.assert_allclose(np.where(real, o, 0), np.where(real, want, 0), atol=2e-5)
    np.testing.assert_allclose(*found["whole"], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_equal(name):
    mixer = attention.get(name, **OPTIONS[name])
    q, k, v, inputs = draw(name)
    w = normal(np.random.default_rng(1), *v.shape)

    def gradients(form):
        def total(q, k, v, inputs):
            return (form(q, k, v, causal=name in CAUSAL, segment_ids=segments(), **inputs) * w).sum()

        return jax.grad(total, (0, 1, 2, 3))(q, k, v, inputs)

    want, got = jax.jit(lambda: (gradients(mixer.reference), gradients(mixer.parallel)))()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), got, want)
    assert max(np.abs(g).max() for g in jax.tree.leaves(want)) > 0.1


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "bigbird"])
def test_a_packed_document_is_that_document_alone(name):
    found = computed(name)
    np.testing.assert_allclose(found["packed"][1][0, 10:20], found["third"][0], atol=2e-5)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_lone_token_sees_itself(name):
    own = draw(name)[3]["global_value"] if name == "longformer" else draw(name)[2]
    np.testing.assert_allclose(computed(name)["one"], own[:, :1], atol=1e-6)


@pytest.mark.parametrize("name", ["sliding_window", "longformer"])
def test_a_prompt_and_steps_go_on_as_the_whole_does(name):
    mixer = attention.get(name, **OPTIONS[name])
    q, k, v, inputs = draw(name)
    whole = np.asarray(jax.jit(mixer.parallel)(q, k, v, **inputs))
    lengths = np.array([4, 15])
    valid = jnp.asarray(np.arange(N) < lengths[:, None])
    state, o = jax.jit(mixer.prefill)(q, k, v, valid, mixer.initial_state(2, 3, 4, 6, N), **inputs)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(state))
    np.testing.assert_allclose(
        np.where(valid[..., None, None], o, 0), np.where(valid[..., None, None], whole, 0), atol=1e-5
    )
    step = jax.jit(mixer.step)
    for t in range(8):
        at = (np.arange(2), lengths + t)
        state, o = step(state, q[at], k[at], v[at], **{n: x[at] for n, x in inputs.items()})
        np.testing.assert_allclose(o, whole[at], atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_no_array_grows_with_the_square_of_the_length(name):
    options = {"strided": {}, "fixed": {}}.get(name, OPTIONS[name])

    def largest(length):
        if name in ("strided", "fixed"):  # blocks near the root of the length are best
            options.update({"stride" if name == "strided" else "block": round(length**0.5)})
        mixer = attention.get(name, **options)
        q, k, v, inputs = draw(name, heads=1, length=length)

        def total(q, k, v, inputs):
            return mixer.parallel(q, k, v, causal=name in CAUSAL, **inputs).sum()

        jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(q, k, v, inputs)
        return max(x.aval.size for x in every_variable(jaxpr.jaxpr))

    growth = largest(4096) / largest(1024)
    assert growth <= (8.5 if name in ("strided", "fixed") else 4.1)  # four times the length


def every_variable(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner, "jaxpr"):
                    yield from every_variable(inner.jaxpr)
                elif hasattr(inner, "eqns"):
                    yield from every_variable(inner)


def test_parts_that_share_no_key_are_one_softmax():
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 2, 5, n, 4) for n in (3, 9, 9))
    mask = rng.random((3, 9)) < 0.7
    mask[0] = False
    mask[1, :4] = False

    def attend(*parts):
        return over.combine(*(over.partial(q, k[:, :, part], v[:, :, part], mask[:, part]) for part in parts))

    whole, cut = jax.jit(lambda: (attend(slice(0, 9)), attend(slice(0, 4), slice(4, 9))))()
    np.testing.assert_allclose(cut, whole, atol=1e-6)
    weights = np.where(mask, np.exp(np.asarray(q) @ np.asarray(k).swapaxes(-1, -2) / 2), 0)
    want = (weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9)) @ np.asarray(v)
    np.testing.assert_allclose(whole, want, atol=1e-5)
    assert not np.asarray(whole)[:, :, 0].any()


def test_logits_of_any_size_are_finite():
    q = np.full((1, 1, 2, 1), 1e3, np.float32)
    k, v = (np.array(x, np.float32).reshape(1, 1, 2, 1) for x in ([1e3, -1e3], [1, 2]))
    mask = np.array([[True, True], [False, True]])

    @jax.jit
    def run(q, k, v):
        parts = [over.partial(q, k[:, :, i : i + 1], v[:, :, i : i + 1], mask[:, i : i + 1]) for i in range(2)]
        return over.combine(*parts)

    np.testing.assert_array_equal(np.asarray(run(q, k, v))[0, 0, :, 0], [1.0, 2.0])


def test_bigbird_draws_blocks_that_are_not_seen_already():
    mixer = attention.get("bigbird", block=4, random=3, seed=7)
    drawn = mixer.random_blocks(5, 12)
    assert drawn.shape == (5, 10, 3) and drawn.min() > 0
    for _, rows in enumerate(drawn):
        for i, chosen in enumerate(rows, start=1):
            assert len(set(chosen)) == 3 and not set(chosen) & {0, 11, i - 1, i, i + 1}
    assert (drawn[0] != drawn[1]).any()
    np.testing.assert_array_equal(drawn, attention.get("bigbird", block=4, random=3, seed=7).random_blocks(5, 12))
    assert (drawn != attention.get("bigbird", block=4, random=3, seed=8).random_blocks(5, 12)).any()
    few = mixer.random_blocks(1, 6)  # the second block misses two, one in the middle a single one
    assert few.shape == (1, 4, 2) and (few >= 0).sum(-1).tolist() == [[2, 1, 1, 2]]
    assert attention.get("bigbird", block=4).block_mask(2, 3).all()


def jitted(mixer):
    return jax.jit(functools.partial(mixer.parallel, causal=False))


def test_landmarks_are_means_and_enough_of_them_make_it_softmax_attention():
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(1, 12, 1, 4)) for _ in range(2))
    v = rng.normal(size=(1, 12, 1, 3))

    def softmax(x):
        x = np.exp(x - x.max(-1, keepdims=True))
        return x / x.sum(-1, keepdims=True)

    Q, K = q[0, :, 0] / 4**0.25, k[0, :, 0] / 4**0.25
    for landmarks, starts in ((4, [0, 3, 6, 9]), (5, [0, 3, 5, 8, 10])):  # of 12 tokens: floor(5 p / 12)
        near_q, near_k = (np.add.reduceat(x, starts) / np.diff([*starts, 12])[:, None] for x in (Q, K))
        want = softmax(Q @ near_k.T) @ np.linalg.pinv(softmax(near_q @ near_k.T)) @ softmax(near_q @ K.T) @ v[0, :, 0]
        mixer = attention.get("nystromformer", landmarks=landmarks, conv=0, iterations=20)
        o = jitted(mixer)(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
        np.testing.assert_allclose(o[0, :, 0], want, atol=2e-3)
    enough = attention.get("nystromformer", landmarks=64, conv=0, iterations=24)
    o = jitted(enough)(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(o[0, :, 0], softmax(Q @ K.T) @ v[0, :, 0], atol=0.02)


def test_the_pseudoinverse_starts_by_the_batch_or_by_the_matrix():
    q, k, v, _ = draw("nystromformer")
    exact, original = (
        jitted(attention.get("nystromformer", landmarks=4, conv=0, iterations=1, init=init))
        for init in ("exact", "original")
    )
    k = k.at[1].multiply(9)  # another row of the batch has a larger norm
    alone = exact(q[:1], k[:1], v[:1])
    np.testing.assert_allclose(exact(q, k, v)[:1], alone, atol=1e-5)
    assert np.abs(original(q, k, v)[:1] - alone).max() > 1e-3


@pytest.mark.parametrize("name", ["linformer", "nystromformer"])
def test_documents_that_find_no_slot_are_told(name):
    options = {**OPTIONS[name], "documents": 2}
    mixer = attention.get(name, **options)
    q, k, v, inputs = draw(name)
    with pytest.raises(ValueError, match=f"{name}: a row holds 3 documents, but its option documents is 2"):
        mixer.parallel(q, k, v, causal=False, segment_ids=segments(), **inputs)
    traced = jax.jit(lambda ids: mixer.parallel(q, k, v, causal=False, segment_ids=ids, **inputs))(segments())
    np.testing.assert_array_equal(np.isnan(traced[0]).all((1, 2)), np.asarray(segments()[0] == 3))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sliding_window", dict(window=0), "window=0 must be at least 1"),
        ("dilated", dict(dilation=3), "dilation=3 must be a power of two"),
        ("dilated", dict(window=0), "window=0"),
        ("strided", dict(stride=0), "stride=0"),
        ("fixed", dict(block=4, summary=5), "summary=5 must be 1 to block=4"),
        ("longformer", dict(global_tokens=0), "without any, use sliding_window"),
        ("longformer", dict(window=0), "window=0"),
        ("bigbird", dict(block=0), "block=0"),
        ("linformer", dict(share="layers"), "layers share none"),
        ("linformer", dict(rank=0), "rank=0"),
        ("nystromformer", dict(conv=4), "conv=4 must be odd"),
        ("nystromformer", dict(landmarks=0), "landmarks=0"),
        ("nystromformer", dict(init="other"), "init='other' must be exact or original"),
    ],
)
def test_options_that_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message):
        attention.get(name, **options)


@pytest.mark.parametrize("name", ["linformer", "nystromformer", "bigbird"])
def test_what_has_no_causal_form_says_so(name):
    q, k, v, inputs = draw(name)
    for form in ("reference", "parallel", "recurrent"):
        with pytest.raises(ValueError, match=f"{name} has no causal form"):
            getattr(attention.get(name, **OPTIONS[name]), form)(q, k, v, causal=True, **inputs)


def test_linformer_is_made_for_a_length():
    q, k, v, inputs = draw("linformer")
    short = {n: x[:, : N - 1] for n, x in inputs.items()}
    with pytest.raises(ValueError, match=f"{N} tokens, but its projections are made for at most {N - 1}"):
        attention.get("linformer", rank=5).parallel(q, k, v, causal=False, **short)


def test_the_inputs_are_what_the_options_say():
    x = jnp.zeros((2, N, 8))

    def shapes(name, **options):
        module = attention.get(name, **options).inputs(3, 4, 40, jnp.float32)
        made, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        return {n: y.shape for n, y in made.items()}, set(variables["params"])

    assert shapes("linformer", rank=5)[0] == {"key_projection": (1, 40, 5), "value_projection": (1, 40, 5)}
    assert shapes("linformer", rank=5, share="none")[0]["key_projection"] == (3, 40, 5)
    assert shapes("linformer", rank=64, share="key_value")[1] == {"key_projection"}
    assert shapes("nystromformer", conv=9)[0] == {"taps": (9, 3)}
    assert attention.get("nystromformer", conv=0).inputs(3, 4, 40, jnp.float32) is None
    globals_ = ("global_query", "global_key", "global_value")
    assert shapes("longformer") == (dict.fromkeys(globals_, (2, N, 3, 4)), set(globals_))
