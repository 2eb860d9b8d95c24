"""Linear mixers against their equations in plain float64 NumPy, each document alone; and what no mixer may do.

A further mixer is a row in `TABLE`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers import attention

B, N, H, D, E = 2, 17, 3, 4, 6
DOCUMENTS = (slice(0, 8), slice(8, 9), slice(9, 14))  # and three tokens of padding
IDS = np.stack([np.repeat([1, 2, 3, 0], [8, 1, 5, 3])] * 2).astype(np.int32)
REAL = (IDS > 0)[..., None, None]


@dataclasses.dataclass(frozen=True)
class Row:
    """A mixer: its equation for one document, (q, k, v, **inputs) -> o in NumPy; its inputs; its options."""

    equation: Callable
    inputs: Callable = lambda rng: {}
    options: dict = dataclasses.field(default_factory=dict)
    mean: bool = True
    """What leaves is a mean of values."""


def mean(weigh):
    """o_i = sum_j w_ij v_j / sum_j w_ij over j <= i, by w(q [B, N, 1, H, D], k [B, 1, N, H, D], ...) [B, N, N, H]."""

    def equation(q, k, v, **inputs):
        n = np.arange(q.shape[1])
        w = weigh(q[:, :, None], k[:, None], n[:, None, None], n[None, :, None], **inputs)
        w = w * (n[:, None] >= n)[..., None]
        return np.einsum("bijh,bjhe->bihe", w, v) / np.maximum(w.sum(2), 1e-6)[..., None]

    return equation


def recurrence(terms):
    """S_t = a_t S_{t-1} + b_t k_t (v_t - [delta: a_t S_{t-1}^T k_t])^T, o_t = q_t S_t, by q, k, a and b of all t."""

    def equation(q, k, v, **inputs):
        q, k, a, b = terms(q, k, **inputs)
        S, o = np.zeros((*q.shape[:1], *q.shape[2:], v.shape[-1])), np.zeros_like(v)
        a = np.broadcast_to(a, q.shape)
        for t in range(q.shape[1]):
            S = a[:, t][..., None] * S
            u = v[:, t] if b is None else b[:, t, :, None] * (v[:, t] - np.einsum("bhd,bhde->bhe", k[:, t], S))
            S = S + k[:, t][..., None] * u[:, :, None]
            o[:, t] = np.einsum("bhd,bhde->bhe", q[:, t], S)
        return o

    return equation


def dot(x, y):
    return (x * y).sum(-1)


def elu1(x):
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1) + 1


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def relu(x):
    return np.maximum(x, 0)


def favor(x, w):
    """exp(w.x - |x|^2/2) for x D^-1/4."""
    x = x * D**-0.25
    return np.exp(x @ w.T - dot(x, x)[..., None] / 2)


def draw_token(rng, *shape):
    return rng.uniform(size=(B, N, H, *shape))


PROJECTION = dict(inputs=lambda rng: {"projection": rng.normal(size=(6, D))})
GAMMA = 1 - 2.0 ** (-5 - np.arange(H))
half = D**-0.5
TABLE = {
    "katharopoulos": Row(mean(lambda q, k, i, j: dot(elu1(q), elu1(k)))),
    "efficient": Row(mean(lambda q, k, i, j: dot(softmax(q), np.exp(k)))),
    "taylor": Row(mean(lambda q, k, i, j: 1 + dot(unit(q), unit(k)))),
    "cosformer": Row(
        mean(lambda q, k, i, j, horizon: dot(relu(q), relu(k)) * np.cos(np.pi / 2 * (i - j) / horizon)),
        lambda rng: {"horizon": np.float64(40)},
    ),
    "performer": Row(
        mean(lambda q, k, i, j, projection: dot(favor(q, projection), favor(k, projection))),
        options=dict(features=6, eps=0.0),
        **PROJECTION,
    ),
    "performer relu": Row(
        mean(lambda q, k, i, j, projection: dot(*(relu(x * D**-0.25 @ projection.T) + 1e-3 for x in (q, k)))),
        options=dict(features=6, kernel="relu"),
        **PROJECTION,
    ),
    "retnet": Row(recurrence(lambda q, k: (q * half, k, GAMMA[:, None], None)), mean=False),
    "gla": Row(
        recurrence(lambda q, k, log_decay: (q * half, k, np.exp(log_decay), None)),
        lambda rng: {"log_decay": -3 * draw_token(rng, D)},
        mean=False,
    ),
    "mamba2": Row(
        lambda q, k, v, dt, A, D: (
            recurrence(lambda q, k: (q, dt[..., None] * k, np.exp(dt * A)[..., None], None))(q, k, v) + D[:, None] * v
        ),
        lambda rng: {"dt": draw_token(rng), "A": -rng.uniform(size=H), "D": rng.normal(size=H)},
        mean=False,
    ),
    "delta_net": Row(
        recurrence(lambda q, k, beta: (q * half, k, 1.0, beta)), lambda rng: {"beta": draw_token(rng)}, mean=False
    ),
    "gated_delta_net": Row(
        recurrence(lambda q, k, beta, log_decay: (q * half, k, np.exp(log_decay)[..., None], beta)),
        lambda rng: {"beta": draw_token(rng), "log_decay": -draw_token(rng)},
        mean=False,
    ),
}
BOTH = [name for name in TABLE if attention.get(name.split()[0]).bidirectional]
# One of each kind, and the others with the slow ones.
KINDS = ("katharopoulos", "performer", "gla", "gated_delta_net")
EACH_KIND = [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in TABLE]


def make(name):
    return attention.get(name.split()[0], **{"chunk": 8, **TABLE[name].options})


@functools.cache
def drawn(name):
    """(q, k, v, inputs), float64; queries and keys of length 1 where the block makes them so."""
    rng = np.random.default_rng(len(name))
    q, k, v = (rng.normal(size=(B, N, H, d)) for d in (D, D, E))
    if make(name).unit_queries:
        q, k = unit(q), unit(k)
    return q, k, v, TABLE[name].inputs(rng)


def part(name, tokens, inputs):
    """The inputs of some tokens."""
    return {n: x if n in make(name).shared_inputs else x[:, tokens] for n, x in inputs.items()}


def by_documents(name, q, k, v, inputs):
    o = np.zeros_like(v)
    for tokens in DOCUMENTS:
        o[:, tokens] = TABLE[name].equation(q[:, tokens], k[:, tokens], v[:, tokens], **part(name, tokens, inputs))
    return o


def single(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


@functools.cache
def parallel(name):
    """(q, k, v, inputs, ids) -> o, compiled once."""
    mixer = make(name)
    return jax.jit(lambda q, k, v, inputs, ids: mixer.parallel(q, k, v, segment_ids=ids, **inputs))


@functools.cache
def with_gradient(name, causal):
    """(q, k, v, inputs, ids, w) -> (gradients of sum(o w), o)."""
    mixer = make(name)

    def total(q, k, v, inputs, ids, w):
        o = mixer.parallel(q, k, v, causal=causal, segment_ids=ids, **inputs)
        return (o * w).sum(), o

    return jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))


@pytest.mark.parametrize("name", EACH_KIND)
def test_packed_documents_follow_the_equation(name):
    q, k, v, inputs = drawn(name)
    want = by_documents(name, q, k, v, inputs)
    o = parallel(name)(*single((q, k, v, inputs)), IDS)
    assert o.dtype == jnp.float32 and np.isfinite(o).all()
    # Taylor's sum of weights may be so small that eps, which is no part of the equation above, shows.
    bound = 1e-4 if name == "taylor" else 1e-5
    np.testing.assert_allclose(np.where(REAL, o, 0), want, atol=bound * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_three_forms_are_one_function(name):
    """To the last digits of float64."""
    q, k, v, inputs = drawn(name)
    mixer = make(name)
    want = by_documents(name, q, k, v, inputs)
    with jax.enable_x64(True):
        forms = [mixer.reference, mixer.parallel, mixer.recurrent]
        run = jax.jit(lambda q, k, v, inputs: [form(q, k, v, segment_ids=jnp.asarray(IDS), **inputs) for form in forms])
        outputs = run(q, k, v, inputs)
    atol = 1e-4 if mixer.name in ("katharopoulos", "taylor") else 1e-11  # eps 1e-6 is no part of the equation above
    np.testing.assert_allclose(np.where(REAL, outputs[0], 0), want, atol=atol)
    for o in outputs[1:]:
        np.testing.assert_allclose(np.where(REAL, o, 0), np.where(REAL, outputs[0], 0), atol=1e-11)


def check_slope(run, q, k, v, inputs):
    """The gradient against central differences in float64, along a random direction of everything."""
    rng, small = np.random.default_rng(3), 1e-6
    w = rng.normal(size=v.shape) * REAL
    fixed = {n: x for n, x in inputs.items() if n in ("horizon", "projection")}
    at = (q, k, v, {n: x for n, x in inputs.items() if n not in fixed})
    along = jax.tree.map(lambda x: rng.normal(size=np.shape(x)), at)

    def total(step):
        *tokens, rest = jax.tree.map(lambda x, d: x + step * d, at, along)
        return (np.asarray(run(*tokens, rest | fixed, IDS, w)[1]) * w).sum()

    *parts, rest = run(q, k, v, inputs, IDS, w)[0]
    gradients = (*parts, {n: rest[n] for n in at[3]})
    exact = sum(jax.tree.leaves(jax.tree.map(lambda x, d: float((np.asarray(x) * d).sum()), gradients, along)))
    np.testing.assert_allclose(exact, (total(small) - total(-small)) / (2 * small), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_gradients_are_slopes_and_finite(name):
    q, k, v, inputs = drawn(name)
    with jax.enable_x64(True):
        run = with_gradient(name, True)
        check_slope(run, q, k, v, inputs)
        for scale, ids in ((1, 0 * IDS), (0, IDS)):  # nothing but padding; nothing but zeros
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(run(scale * q, scale * k, v, inputs, ids, 1.0)))


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_both_directions(name):
    """The forms are equal, documents are apart, and the order of keys is of no matter but to positions."""
    q, k, v, inputs = drawn(name)
    mixer = make(name)
    with jax.enable_x64(True):
        gradient = with_gradient(name, False)
        check_slope(gradient, q, k, v, inputs)

        def run(q, k, v, ids=IDS):
            with jax.enable_x64(True):
                return np.asarray(gradient(q, k, v, inputs, ids, 1.0)[1])

        o = run(q, k, v)

        @jax.jit
        def others(q, k, v, inputs):
            reference = mixer.reference(q, k, v, causal=False, segment_ids=jnp.asarray(IDS), **inputs)
            return reference, mixer.parallel(q, k, v, causal=False, **inputs)

        reference, one_segment = others(q, k, v, inputs)
    np.testing.assert_allclose(np.where(REAL, o, 0), np.where(REAL, reference, 0), atol=1e-11)
    np.testing.assert_allclose(run(q, k, v, np.ones_like(IDS)), one_segment, atol=1e-11)
    order = np.r_[np.random.default_rng(0).permutation(8), 8:N]
    same = np.abs(run(q, k[:, order], v[:, order]) - o) < 1e-11
    assert same[REAL[..., 0, 0]].all() == (name != "cosformer")
    np.testing.assert_allclose(run(q, k, np.where(IDS[..., None, None] == 1, v, 9 * v))[:, :8], o[:, :8], atol=1e-12)


@pytest.mark.parametrize("name", EACH_KIND)
def test_no_token_sees_a_later_one_or_another_document(name):
    """What comes later or elsewhere is replaced by numbers of another size, and there is no trace of it."""
    q, k, v, inputs = single(drawn(name))
    run = parallel(name)
    before = np.asarray(run(q, k, v, inputs, IDS))

    def changed(x, factor, shift=0.0):
        there = np.zeros((B, N) + (1,) * (x.ndim - 2), bool)
        there[:, 3:8] = True  # the rest of the first document
        return np.where(there, factor * x + shift, x)

    tokens = {n: changed(x, 0.1) if np.shape(x)[:2] == (B, N) else x for n, x in inputs.items()}
    larger = -1 if make(name).unit_queries else 9
    after = np.asarray(run(changed(q, -1), changed(k, larger), changed(v, 5, 1), tokens, IDS))
    atol = 1e-6 if name == "gla" else 0  # decays of a block are referred to its middle, which rounds
    np.testing.assert_allclose(after[:, :3], before[:, :3], rtol=0, atol=atol)
    np.testing.assert_array_equal(after[:, 8:14], before[:, 8:14])
    assert (after[:, 3:8] != before[:, 3:8]).any(-1).all()


@pytest.mark.parametrize("name", EACH_KIND)
def test_a_prompt_and_steps_go_on_as_the_whole_does(name):
    q, k, v, inputs = single(drawn(name))
    mixer, lengths = make(name), np.array([2, 11])
    valid = jnp.arange(N) < lengths[:, None]

    @jax.jit
    def decode(q, k, v, inputs):
        state, prompt = mixer.prefill(q, k, v, valid, mixer.initial_state(B, H, D, E, N), **inputs)

        def one(state, t):
            at = (jnp.arange(B), lengths + t)
            given = {n: x if n in mixer.shared_inputs else x[at] for n, x in inputs.items()}
            return mixer.step(state, q[at], k[at], v[at], **given)

        return *jax.lax.scan(one, state, jnp.arange(6)), prompt

    state, steps, prompt = decode(q, k, v, inputs)
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(state))
    whole = np.asarray(parallel(name)(q, k, v, inputs, np.ones_like(IDS)))
    bound = 1e-5 * np.abs(whole).max()
    np.testing.assert_allclose(prompt[valid], whole[valid], atol=bound)
    for t in range(6):
        np.testing.assert_allclose(steps[t], whole[np.arange(B), lengths + t], atol=bound)


@pytest.mark.parametrize("name", EACH_KIND)
def test_padding_alone_and_one_token_are_finite(name):
    q, k, v, inputs = single(drawn(name))
    ids = np.zeros_like(IDS)
    ids[1, 0] = 1  # one row of padding alone, one of a single token
    o = np.asarray(parallel(name)(q, k, v, inputs, ids))
    assert np.isfinite(o).all() and np.isfinite(parallel(name)(0 * q, 0 * k, v, inputs, IDS)).all()
    one = TABLE[name].equation(*drawn(name)[0:3], **drawn(name)[3])[1, 0]  # its first token sees itself alone, too
    np.testing.assert_allclose(o[1, 0], one, atol=2e-5 * np.abs(v).max())


@pytest.mark.parametrize("name", [case for case in EACH_KIND if TABLE[getattr(case, "values", [case])[0]].mean])
def test_the_mean_of_equal_values_is_that_value(name):
    q, k, v, inputs = single(drawn(name))
    equal = np.broadcast_to(v[:, :1], v.shape)
    o = np.asarray(parallel(name)(q, k, equal, inputs, IDS))
    real = np.broadcast_to(REAL, v.shape)
    if name == "cosformer":  # a query of which no dim is positive sees nothing
        real = real & (o != 0)
        assert not real[REAL[..., 0, 0]].all()
    np.testing.assert_allclose(np.where(real, o, equal), equal, atol=2e-4)


def test_a_recurrence_has_no_other_direction():
    q, k, v, _ = (jnp.asarray(x, jnp.float32) if isinstance(x, np.ndarray) else x for x in drawn("retnet"))
    with pytest.raises(ValueError, match="no bidirectional form"):
        attention.get("retnet").parallel(q, k, v, causal=False)
    with pytest.raises(ValueError, match="sees the past alone"):
        attention.get("taylor").recurrent(q, k, v, causal=False)
    with pytest.raises(ValueError, match="no rotary positions"):
        attention.get("cosformer").check(causal=True, position="rope")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gla", "mamba2", "delta_net", "gated_delta_net", "cosformer"])
def test_inputs_start_where_their_papers_do(name):
    module = attention.get(name).inputs(64, 4, 16, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 9, 8))
    made, variables = module.init_with_output(jax.random.key(1), x)
    sizes = {"gla": 8 * 16 + 16 * 256 + 256, "mamba2": 8 * 64 + 3 * 64, "delta_net": 8 * 64, "cosformer": 0}
    sizes["gated_delta_net"] = 2 * 8 * 64 + 2 * 64
    assert sum(p.size for p in jax.tree.leaves(variables)) == sizes[name]
    assert all(y.dtype == jnp.float32 for y in made.values())
    match name:
        case "gla":
            assert made["log_decay"].shape == (2, 9, 64, 4) and (made["log_decay"] < 0).all()
            assert -0.06 < float(made["log_decay"].mean()) < -0.03  # log(1/2) / 16 is -.043
        case "mamba2":
            assert made["dt"].shape == (2, 9, 64) and made["A"].min() >= -16 and made["A"].max() <= -1
            still = module.apply(variables, 0 * x)["dt"]
            assert 0.001 <= still.min() < 0.003 and 0.03 < still.max() <= 0.1001 and (made["D"] == 1).all()
        case "delta_net":
            assert made["beta"].shape == (2, 9, 64) and made["beta"].min() > 0 and made["beta"].max() < 1
        case "gated_delta_net":
            still = module.apply(variables, 0 * x)["log_decay"]
            assert still.min() >= -1.6001 and still.max() < 0 and (made["beta"] > 0).all()
        case "cosformer":
            assert made["horizon"] == 16
            with pytest.raises(ValueError, match="raise max_length"):
                module.apply({}, jnp.zeros((1, 17, 8)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gla", "chunk", "'chunk' is not NAME=VALUE"),
        ("gla", "chunk=x", "chunk='x' must be of type int"),  # though its default is None
        ("gla", "chunk=1.5", "chunk=1.5 must be of type int"),
        ("performer", "features=abc", "features='abc' must be of type int"),  # before the mixer itself looks at it
        ("performer", "feature=3", "no option 'feature'; nearest: features"),
    ],
)
def test_an_option_that_cannot_be_is_named(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        attention.parse(name, options)
    assert attention.parse("gla", "chunk=32, temperature=8") == attention.get("gla", chunk=32, temperature=8.0)
