"""Every rule of distances against a loop over pairs in float64, and what must not change within the training length."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers.extended_attention import attend
from flashjax.layers.extension import Extension, distances
from flashjax.layers.positions import RopeParameters

ROPE = RopeParameters()
B, N, H, HK, D = 2, 19, 2, 1, 8
RULES = {
    "none": Extension(),
    "window": Extension("window", window=5),
    "sinks": Extension("sinks", window=5, sinks=2),
    "lambda": Extension("lambda", window=5, sinks=2),
    "rerope": Extension("rerope", window=5),
    "leaky_rerope": Extension("leaky_rerope", window=5, factor=2.5),
    "self_extend": Extension("self_extend", window=5, group=3),
    "dual_chunk": Extension("dual_chunk", chunk=6, length=10),
    "dual_chunk_narrow": Extension("dual_chunk", chunk=6, length=10, window=2),
    "rerope_log_n": Extension("rerope", window=5, log_n="clipped", length=7),
    "sinks_log_n": Extension("sinks", window=5, sinks=2, log_n="plain", length=7),
}


def distance(e: Extension, i: int, j: int) -> float | None:
    """The rule of a method for one pair, as its source words it; None: not seen."""
    d = i - j
    if d < 0:
        return None
    near = e.window is not None and d < e.window
    if e.kind == "none" or (near and e.kind != "dual_chunk"):
        return d
    match e.kind:
        case "window":
            return None
        case "sinks":  # positions are places in a cache of sinks + window keys
            return min(i + 1, e.sinks + e.window) - 1 - j if j < e.sinks else None
        case "lambda":
            return e.window if j < e.sinks else None
        case "rerope":
            return e.window
        case "leaky_rerope":
            return e.window + (d - e.window) / e.factor
        case "self_extend":
            return math.floor(i / e.group) + e.window - math.floor(e.window / e.group) - math.floor(j / e.group)
    s, c, w = e.chunk, e.length, e.window or e.length - e.chunk
    if i // s == j // s:
        return d
    if i // s - j // s == 1:
        return (list(range(s, s + w)) + [c - 1] * s)[i % s] - j % s
    return c - 1 - j % s


def reference(q, k, v, e: Extension, positions=None, segments=None) -> np.ndarray:
    """One pair after the other; pair i of dims (m, m + D/2) turns by d theta_m."""
    theta = 10000.0 ** (-np.arange(0, D, 2) / D)
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b, i, h in np.ndindex(*q.shape[:3]):
        logits, values = [], []
        for j in range(k.shape[1]):
            if segments is not None and (segments[b, i] != segments[b, j] or segments[b, i] == 0):
                continue
            pi, pj = (i, j) if positions is None else (positions[b, i], positions[b, j])
            d = distance(e, pi, pj)
            if d is None:
                continue
            q_c = q[b, i, h, : D // 2] + 1j * q[b, i, h, D // 2 :]
            k_c = k[b, j, h * HK // H, : D // 2] + 1j * k[b, j, h * HK // H, D // 2 :]
            logits.append((q_c * k_c.conj() * np.exp(1j * d * theta)).sum().real / math.sqrt(D))
            values.append(v[b, j, h * HK // H])
        if not logits:
            continue
        if e.log_n != "none":
            ratio = math.log(len(logits)) / math.log(e.length)
            logits = np.array(logits) * (max(1, ratio) if e.log_n == "clipped" else ratio)
        weights = np.exp(logits - np.max(logits))
        out[b, i, h] = weights @ np.array(values) / weights.sum()
    return out


@functools.cache
def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0).normal
    return draw(size=(B, N, H, D)) * 2, draw(size=(B, N, HK, D)) * 2, draw(size=(B, N, HK, D + 1))


def runner(e: Extension, block: int = 256, rope: RopeParameters | None = ROPE, causal: bool = True):
    """Not compiled as a whole: the rules have their operations in common."""

    def run(*arrays):
        q, k, v, i, j, valid, *ids = map(jnp.asarray, arrays)
        ids = dict(zip(("q_segment_ids", "k_segment_ids"), ids, strict=bool(ids)))
        return attend(q, k, v, i, j, valid, rope, e, causal, block=block, **ids)

    return run


@functools.cache
def forward(e: Extension, **options) -> np.ndarray:
    """Of `arrays`."""
    at = np.broadcast_to(np.arange(N, dtype=np.int32), (B, N))
    return np.asarray(runner(e, **options)(*(x.astype(np.float32) for x in arrays()), at, at, at >= 0))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_its_loop_over_pairs(name):
    e = RULES[name]
    want = reference(*arrays(), e)
    np.testing.assert_allclose(forward(e), want, atol=2e-5)
    table = distances(e, N)
    pairs = [distance(e, i, j) for i in range(N) for j in range(N)]
    np.testing.assert_allclose(table.ravel(), [np.nan if d is None else d for d in pairs], atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_a_query_is_told_by_the_keys_up_to_it(name):
    """Whatever the slots of a cache hold that are not filled yet."""
    e, (q, k, v) = RULES[name], (x.astype(np.float32) for x in arrays())
    full, at = forward(e), np.broadcast_to(np.arange(N, dtype=np.int32), (B, N))
    for t in (0, 5, 11, N - 1):
        valid = np.asarray(at) <= t
        cache = [np.where(valid[:, :, None, None], x, np.float32(99)) for x in (k, v)]
        np.testing.assert_allclose(runner(e)(q, *cache, at, at, valid)[:, t], full[:, t], atol=1e-5)


def test_within_the_training_length_the_rules_that_promise_it_change_nothing():
    plain = forward(Extension())
    for name in ("window", "sinks", "lambda", "rerope", "leaky_rerope", "self_extend", "dual_chunk", "rerope_log_n"):
        changed = np.abs(forward(RULES[name]) - plain).max((0, 2, 3))
        assert changed[:5].max() < 1e-6 and changed[10:].min() > 1e-3, name
    assert np.abs(forward(RULES["sinks_log_n"]) - plain)[:, :5].max() > 1e-2


def test_no_distance_beyond_those_of_training():
    for name, most in {
        "rerope": 5,
        "lambda": 5,
        "sinks": 6,
        "window": 4,
        "dual_chunk": 9,
        "dual_chunk_narrow": 9,
    }.items():
        assert np.nanmax(distances(RULES[name], N)) == most, name
    np.testing.assert_allclose(np.nanmax(distances(RULES["leaky_rerope"], N)), 5 + (18 - 5) / 2.5, rtol=1e-6)
    assert np.nanmax(distances(RULES["self_extend"], N)) == 18 // 3 + 5 - 5 // 3


def test_packed_documents_are_as_if_alone():
    e, (q, k, v) = RULES["rerope_log_n"], arrays()
    ids = np.repeat([[1, 2, 3, 0]], B, 0).repeat([9, 4, 3, 3], axis=1)
    at = np.concatenate([np.arange(n) for n in (9, 4, 3, 3)])[None].repeat(B, 0)
    given = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    where, segments = jnp.asarray(at), jnp.asarray(ids)
    got = runner(e)(*given, where, where, jnp.ones((B, N), bool), segments, segments)
    np.testing.assert_allclose(got, reference(q, k, v, e, at, ids), atol=2e-5)
    assert not np.asarray(got[:, 16:]).any()


@pytest.mark.parametrize("name", ["rerope", "leaky_rerope", "self_extend", "window"])
def test_looking_both_ways_is_the_rule_mirrored(name):
    table = distances(RULES[name], N, causal=False)
    np.testing.assert_allclose(np.tril(table), np.tril(distances(RULES[name], N)))
    np.testing.assert_allclose(table, -table.T)


def test_looking_both_ways_sees_both_ways():
    """Time reversed and angles conjugated is the same."""
    q, k, v = (x.astype(np.float32) for x in arrays())
    at = np.broadcast_to(np.arange(N, dtype=np.int32), (B, N))
    run = runner(RULES["rerope"], causal=False)
    mirror = run(*(x[:, ::-1] for x in (q * HALVES, k * HALVES, v)), at, at, at >= 0)[:, ::-1]
    ahead = run(q, k, v, at, at, at >= 0)
    np.testing.assert_allclose(ahead, mirror, atol=1e-5)
    assert np.abs(ahead - forward(RULES["rerope"])).max((0, 2, 3))[:-1].min() > 1e-2


HALVES = np.where(np.arange(D) < D // 2, 1, -1).astype(np.float32)


def test_blocks_of_queries_are_the_whole():
    """Three of them, the last one padded; outputs and gradients."""
    q, k, v = (x.astype(np.float32) for x in arrays())
    at = np.broadcast_to(np.arange(N, dtype=np.int32), (B, N))

    def gradients(block):
        run = runner(RULES["rerope_log_n"], block=block)
        loss = lambda *x: (run(*x, at, at, at >= 0) ** 2).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)

    whole, cut = gradients(256), gradients(8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), whole, cut)


def test_without_positions_only_the_mask_remains():
    q, k, v = arrays()
    zero = forward(RULES["sinks"], rope=None)
    logits = np.einsum("bihd,bjhd->bhij", q, k.repeat(2, 2)) / math.sqrt(D)
    hidden = np.isnan(distances(RULES["sinks"], N))
    weights = np.exp(np.where(hidden, -np.inf, logits - logits.max(-1, keepdims=True)))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(zero, np.einsum("bhij,bjhe->bihe", weights, v.repeat(2, 2)), atol=2e-5)


@pytest.mark.slow
def test_bfloat16_keeps_its_softmax_in_float32():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in arrays())
    at = jnp.broadcast_to(jnp.arange(N), (B, N))
    got = runner(RULES["rerope"])(q, k, v, at, at, at >= 0)
    assert got.dtype == jnp.bfloat16
    want = reference(*(np.asarray(x, np.float64) for x in (q, k, v)), RULES["rerope"])
    assert np.abs(np.asarray(got, np.float64) - want).max() < 0.15


def test_dynamic_angles_are_those_of_the_length_that_is_named():
    rope = RopeParameters("dynamic", factor=4.0, original_max_position_embeddings=8)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in arrays())
    at = jnp.broadcast_to(jnp.arange(N), (B, N))
    run = jax.jit(lambda valid, n: attend(q, k, v, at, at, valid, rope, Extension(), length=n))
    full = run(at >= 0, jnp.int32(N))
    np.testing.assert_allclose(forward(Extension(), rope=rope), full, atol=1e-5)  # a forward pass names its own
    np.testing.assert_allclose(run(at <= 9, jnp.int32(N))[:, 9], full[:, 9], atol=1e-5)  # a cache of N slots
    np.testing.assert_allclose(run(at >= 0, jnp.int32(8)), forward(Extension()), atol=1e-5)
    assert np.abs(full - forward(Extension())).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "rerope"}, "needs window"),
        ({"kind": "sinks", "window": 4}, "needs sinks"),
        ({"kind": "rerope", "window": 4, "group": 2}, "does not use group; self_extend do"),
        ({"kind": "rerope", "window": 0}, "window .* positive, found 0"),
        ({"kind": "dual_chunk", "chunk": 8, "length": 8}, "chunk .8. must be below length .8."),
        ({"kind": "dual_chunk", "chunk": 6, "length": 8, "window": 3}, "window .3. of dual_chunk"),
        ({"log_n": "clipped"}, "log_n='clipped' needs length"),
    ],
)
def test_a_wrong_rule_is_an_error_that_names_it(options, message):
    with pytest.raises(ValueError, match=message):
        Extension(**options)


def test_an_unknown_rule_is_an_error_that_names_the_known_ones():
    with pytest.raises((ValueError, TypeError), match="leaky_rerope"):  # TypeError: where types are checked
        Extension("rerop")  # type: ignore[arg-type]


def test_rules_that_look_back_say_so():
    with pytest.raises(ValueError, match=r"sinks.*causal"):
        distances(RULES["sinks"], 4, causal=False)
