"""Softmax attention against NumPy in float64: every mask, bias and way of computing it, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers.bias import AlibiBias, BucketBias
from flashjax.ops import blocked_attention
from flashjax.ops.attention import dot_product_attention

B, N, H, HK, D, E = 2, 37, 4, 2, 8, 6
SEGMENTS = np.repeat([[1, 2, 2, 3, 0], [1, 1, 1, 1, 1]], [9, 4, 7, 10, 7], axis=1)
CASES = {
    "causal": {"causal": True},
    "all": {},
    "packed": {"causal": True, "segments": True},
    "window": {"causal": True, "window": 11},
    "packed, window": {"causal": True, "window": 5, "segments": True},
    "packed, window on both sides": {"window": 7, "segments": True},
    "alibi": {"causal": True, "bias": "alibi"},
    "t5, packed": {"bias": "t5", "segments": True},
    "array": {"causal": True, "bias": "array"},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for block in ("BLOCK", "LARGE_BLOCK"):
        monkeypatch.setattr(blocked_attention, block, 8)  # several blocks, and a last one that is not full
    monkeypatch.setattr(blocked_attention, "PART", 3)
    monkeypatch.setattr(blocked_attention.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(blocked_attention, "CACHE", 8 * 16 * 4)  # heads go one by one


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def bias_of(kind):
    if kind == "alibi":
        return AlibiBias(jnp.asarray([0.5, 0.25, 0.1, 0.05]))
    if kind == "t5":
        return BucketBias(draw(8, H, seed=5), bidirectional=True, max_distance=20)
    return draw(B, H, N, N, seed=6) if kind else None


def by_hand(q, k, v, bias=None, causal=False, window=None, segments=None):
    """softmax over the visible keys, all float64; 0 where there is none."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, H // HK, 2) for x in (k, v))
    logits = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(D)
    at = np.arange(N)
    if bias is not None:
        logits = logits + np.asarray(bias(jnp.asarray(at), jnp.asarray(at)) if callable(bias) else bias, np.float64)
    seen = np.ones((B, N, N), bool)
    if causal:
        seen &= at[:, None] >= at
    if window:
        seen &= abs(at[:, None] - at) < window
    if segments is not None:
        seen &= (segments[:, :, None] == segments[:, None]) & (segments[:, None] > 0)
    weights = np.where(seen[:, None], np.exp(logits - logits.max()), 0)
    total = weights.sum(-1, keepdims=True)
    return np.einsum("bhij,bjhe->bihe", weights / np.where(total > 0, total, 1), v)


QUICK = ("causal", "packed", "alibi")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_all_forms_equal_the_equation_and_each_other_in_gradients(name, monkeypatch):
    case = dict(CASES[name])
    bias = bias_of(case.pop("bias", None))
    segments = SEGMENTS if case.pop("segments", False) else None
    ids = {} if segments is None else {"q_segment_ids": jnp.asarray(segments), "k_segment_ids": jnp.asarray(segments)}
    q, k, v, w = draw(B, N, H, D), draw(B, N, HK, D, seed=1), draw(B, N, HK, E, seed=2), draw(B, N, H, E, seed=3)
    found = {}
    for way in ("xla", "blocked", "unrolled", "tpu"):
        monkeypatch.setattr(blocked_attention, "UNROLLED", N if way == "unrolled" else 0)
        monkeypatch.setattr(blocked_attention, "on_one_cpu", lambda way=way: way != "tpu")
        monkeypatch.setattr(blocked_attention, "traced_for", lambda way=way: "tpu" if way == "tpu" else "cpu")

        def value(q, k, v, bias, implementation="xla" if way == "xla" else "blocked"):
            o = dot_product_attention(q, k, v, bias=bias, implementation=implementation, **ids, **case)
            return jnp.sum(o * w), o

        found[way] = jax.jit(jax.grad(value, (0, 1, 2, 3), has_aux=True))(q, k, v, bias)
    expected = by_hand(q, k, v, bias, segments=segments, **case)
    for gradients, o in found.values():
        np.testing.assert_allclose(o, expected, atol=2e-6)
        assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
    for way in ("blocked", "unrolled", "tpu"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found["xla"][0], found[way][0]
        )
        assert segments is None or not found[way][1][0, SEGMENTS[0] == 0].any()


PLAIN = {  # queries, keys; what hides pairs is positions alone
    "causal": (40, 40, {"causal": True}),
    "window of one": (40, 40, {"causal": True, "window": 1}),
    "window below a block": (40, 40, {"causal": True, "window": 5}),
    "window of a block": (40, 40, {"causal": True, "window": 8}),
    "window of some blocks": (40, 40, {"causal": True, "window": 20}),
    "window on both sides": (40, 40, {"window": 7}),
    "alibi and window": (40, 40, {"causal": True, "window": 11, "bias": "alibi"}),
    "more queries": (40, 24, {"causal": True}),
    "more keys": (24, 40, {"causal": True, "window": 11}),
    "one row, array": (24, 24, {"causal": True, "bias": "array"}),
}


@pytest.mark.parametrize("name", [n if n == "causal" else pytest.param(n, marks=pytest.mark.slow) for n in PLAIN])
def test_full_blocks_and_parts_of_them_equal_all_logits_at_once(name, monkeypatch):
    queries, keys, case = PLAIN[name]
    case = dict(case)
    kind = case.pop("bias", None)
    rows = 1 if kind == "array" else B
    bias = draw(1, H, queries, keys, seed=6) if kind == "array" else bias_of(kind)
    q, k, v = draw(rows, queries, H, D), draw(rows, keys, HK, D, seed=1), draw(rows, keys, HK, E, seed=2)
    w = draw(rows, queries, H, E, seed=3)

    def found(implementation):
        def value(q, k, v, bias):
            o = dot_product_attention(q, k, v, bias=bias, implementation=implementation, **case)
            return jnp.sum(o * w), o

        return jax.jit(jax.grad(value, (0, 1, 2, 3), has_aux=True))(q, k, v, bias)

    expected = found("xla")
    for unrolled, heads in ((0, 1), (8, 2)):
        monkeypatch.setattr(blocked_attention, "UNROLLED", unrolled)
        monkeypatch.setattr(blocked_attention, "CACHE", 8 * 16 * 4 * heads)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found("blocked"), expected)


def test_blocks_are_loops_where_there_are_many():
    """Whatever hides pairs: a long row's program is that of a short one."""

    def products(length, **case):
        q, ids = jnp.ones((1, length, H, D)), jnp.ones((1, length), jnp.int32)
        ids = {"q_segment_ids": ids, "k_segment_ids": ids} if case.pop("segments", False) else {}

        def attend(q):
            return dot_product_attention(q, q, q, implementation="blocked", **ids, **case).sum()

        return str(jax.make_jaxpr(jax.grad(attend))(q)).count("dot_general")

    for case in ({"causal": True}, {}, {"segments": True}, {"causal": True, "segments": True}, {"window": 9}):
        assert products(64, **case) == products(512, **case), case
        few = products(32, **case) != products(64, **case)
        assert few == case.get("causal", False), case  # four blocks of a causal row have no loop


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    q, k, v, w = draw(B, N, H, D), draw(B, N, HK, D, seed=1), draw(B, N, HK, E, seed=2), draw(B, N, H, E, seed=3)
    given = [np.asarray(x, np.float64) for x in (q, k, v)]
    gradient = jax.jit(
        jax.grad(lambda x: jnp.sum(w * dot_product_attention(*x, causal=True, implementation="blocked")))
    )([q, k, v])
    for which, slope in enumerate(gradient):
        step = [np.zeros_like(x) for x in given]
        step[which] = np.asarray(draw(*slope.shape, seed=4), np.float64)
        ahead, behind = (
            by_hand(*(x + sign * 1e-5 * s for x, s in zip(given, step, strict=True)), causal=True) for sign in (1, -1)
        )
        change = np.sum(np.asarray(w, np.float64) * (ahead - behind)) / 2e-5
        np.testing.assert_allclose(np.sum(slope * step[which]), change, rtol=1e-4)


@pytest.mark.parametrize("way", [pytest.param("xla", marks=pytest.mark.slow), "blocked"])
def test_positions_decide_what_a_query_sees(way):
    """A cache: one query a row at its own position, slots in any order, those that are not filled in segment 0."""
    q, k, v = draw(B, 1, H, D), draw(B, N, HK, D, seed=1), draw(B, N, HK, E, seed=2)
    position, order = np.array([20, 5]), np.random.default_rng(3).permutation(N)
    filled = jnp.asarray(np.tile(order != 4, (B, 1)), jnp.int32)

    @jax.jit
    def attend(q, k, v):
        return dot_product_attention(
            q,
            k,
            v,
            causal=True,
            window=9,
            q_positions=jnp.asarray(position)[:, None],
            k_positions=jnp.asarray(order)[None],
            q_segment_ids=jnp.ones((B, 1), jnp.int32),
            k_segment_ids=filled,
            implementation=way,
        )

    o = attend(q, k[:, order], v[:, order])
    for row, at in enumerate(position):
        seen = [j for j in range(max(0, at - 8), at + 1) if j != 4]
        logits = np.einsum("hd,jhd->hj", q[row, 0], np.repeat(k[row, seen], H // HK, 1)) / np.sqrt(D)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        alone = np.einsum("hj,jhe->he", weights, np.repeat(v[row, seen], H // HK, 1))
        np.testing.assert_allclose(o[row, 0], alone, atol=2e-6)


@pytest.mark.slow
def test_bfloat16_adds_up_in_float32():
    q, k, v = (draw(B, N, h, 8, seed=h).astype(jnp.bfloat16) for h in (H, HK, HK))
    v = v + 100  # 37 of them are summed: bfloat16 has 8 bits
    for way in ("xla", "blocked"):
        o = dot_product_attention(q, k, v, causal=True, implementation=way)
        assert o.dtype == jnp.bfloat16
        exact = by_hand(*(np.asarray(x, np.float32) for x in (q, k, v)), causal=True)
        np.testing.assert_allclose(np.asarray(o, np.float32), exact, rtol=2**-7)


def test_errors_name_the_value():
    q = jnp.zeros((1, 4, 3, 8))
    with pytest.raises(ValueError, match="3 query heads do not divide into 2"):
        dot_product_attention(q, q[:, :, :2], q[:, :, :2])
    with pytest.raises(ValueError, match="window is 0"):
        dot_product_attention(q, q, q, window=0)
    with pytest.raises(ValueError, match="q_segment_ids and k_segment_ids"):
        dot_product_attention(q, q, q, q_segment_ids=jnp.ones((1, 4), jnp.int32))
    with pytest.raises(ValueError, match="unknown implementation 'flash'"):
        dot_product_attention(q, q, q, implementation="flash")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        dot_product_attention(q, q, q, implementation="cudnn")


@pytest.mark.slow
def test_memory_of_the_blocked_form_is_linear():
    """Twice as many tokens take about twice the memory, forward and backward; all logits would take four times it."""

    def bytes_of(length, way):
        x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        f = jax.grad(lambda q, k, v: dot_product_attention(q, k, v, causal=True, implementation=way).sum(), (0, 1, 2))
        return jax.jit(f).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(1024, "blocked") < 2.5 * bytes_of(512, "blocked") < bytes_of(512, "xla")
