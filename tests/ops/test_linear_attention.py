"""Chunked linear attention and the delta rule against plain loops in float64, and what they may cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.ops import delta_rule, platform
from flashjax.ops import linear_attention as linear

B, N, H, D, E = 2, 21, 3, 5, 4
SEGMENTS = np.array([[1] * 5 + [2] * 9 + [3] + [4] * 3 + [0] * 3, [1] * 19 + [2] * 2], np.int32)
CHUNKS = (1, 7, 16, 64)  # alone, no divisor of N, a power of two, more than N


def draw(decay=None, seed=0):
    """q, k, v, log decays, an initial state (S, z), float64; keys of length 1."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, N, H, d)) for d in (D, D, E))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    shape = {"head": (H,), "token": (B, N, H), "dim": (B, N, H, D), "strong": (B, N, H, D)}.get(decay)
    g = None if shape is None else -np.abs(rng.normal(size=shape)) * (20 if decay == "strong" else 1)
    return q, k, v, g, (rng.normal(size=(B, H, D, E)), rng.normal(size=(B, H, D)))


def loop(q, k, v, g, ids, start, beta=None):
    """(o, normaliser, S, z) by S_t = a_t S_{t-1} + b_t k_t (v_t - [delta rule: a_t S_{t-1}^T k_t])^T, one by one."""
    a = np.ones((B, N, H, D))
    if g is not None:
        a = a * np.exp(np.maximum(g if g.ndim == 4 else g[..., None], -40))
    S, z = (x.copy() for x in start)
    o, n = np.zeros((B, N, H, E)), np.zeros((B, N, H))
    for t in range(N):
        if ids is not None and t:
            new = ids[:, t] != ids[:, t - 1]
            S[new], z[new] = 0, 0
        S, z = a[:, t][..., None] * S, a[:, t] * z + k[:, t]
        u = v[:, t] if beta is None else beta[:, t][..., None] * (v[:, t] - np.einsum("bhd,bhde->bhe", k[:, t], S))
        S = S + k[:, t][..., None] * u[:, :, None]
        o[:, t], n[:, t] = np.einsum("bhd,bhde->bhe", q[:, t], S), (q[:, t] * z).sum(-1)
    return o, n, S, z


def flat(mixed):
    return mixed.o, mixed.normaliser, mixed.state.S, mixed.state.z


DECAYS = (None, "head", "token", "dim", "strong")
QUICK = [(None, 1), (None, 64), ("head", 7), ("token", 7), ("dim", 16), ("strong", 16)]
ALL = [pytest.param(d, c, marks=pytest.mark.slow) for d in DECAYS for c in CHUNKS if (d, c) not in QUICK]


@pytest.mark.parametrize(("decay", "chunk"), QUICK + ALL)
def test_chunks_are_the_loop(decay, chunk):
    q, k, v, g, start = draw(decay)
    ids = SEGMENTS if chunk != 64 else None  # once without segments
    want = loop(q, k, v, g, ids, start)

    @jax.jit
    def run(q, k, v, g, start):
        return flat(
            linear.causal(
                q,
                k,
                v,
                g,
                None if ids is None else jnp.asarray(ids),
                linear.State(*start),
                chunk=chunk,
                normaliser=True,
            )
        )

    with jax.enable_x64(True):
        for got, exact in zip(run(q, k, v, g, start), want, strict=True):
            np.testing.assert_allclose(got, exact, atol=1e-12)
    if chunk == 7:
        single = jax.tree.map(lambda x: x.astype(np.float32), (q, k, v, g, start))
        for got, exact in zip(run(*single), want, strict=True):
            np.testing.assert_allclose(got, exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("decay", ["dim", "strong"])
def test_vector_decays_are_the_same_by_tables(decay, monkeypatch):
    q, k, v, g, _ = draw(decay)

    def run(platform):
        monkeypatch.setattr(linear, "traced_for", lambda: platform)
        return jax.vjp(lambda *x: linear.causal(*x, jnp.asarray(SEGMENTS), chunk=32).o, q, k, v, g)

    with jax.enable_x64(True):
        (o, pull), (by_tables, pull_by_tables) = run("cpu"), run("tpu")
        np.testing.assert_allclose(by_tables, o, atol=1e-12)
        for found, wanted in zip(pull_by_tables(o), pull(o), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-12 * np.abs(wanted).max())
    single = [np.asarray(x, np.float32) for x in (q, k, v, g)]
    exact = np.asarray(o)
    o, pull = jax.vjp(lambda *x: linear.causal(*x, jnp.asarray(SEGMENTS), chunk=32).o, *single)
    np.testing.assert_allclose(o, exact, atol=1e-5 * np.abs(exact).max())
    assert all(np.isfinite(x).all() for x in pull(o))


QUICK_DELTA = [(False, 64), (True, 7)]
ALL_DELTA = [pytest.param(g, c, marks=pytest.mark.slow) for g in (0, 1) for c in CHUNKS if (g, c) not in QUICK_DELTA]


@pytest.mark.parametrize(("gated", "chunk"), QUICK_DELTA + ALL_DELTA)
def test_the_delta_rule_is_its_loop(gated, chunk):
    q, k, v, g, (start, none) = draw("token" if gated else None)
    k[:, :9] = k[:, :1]  # keys that are alike, for which powers of the triangle would grow
    beta = np.random.default_rng(1).uniform(size=(B, N, H))
    ids = SEGMENTS if chunk != 64 else None
    o, _, S, _ = loop(q, k, v, g, ids, (start, none), beta)
    run = jax.jit(lambda *a: delta_rule.causal(*a, chunk=chunk))
    with jax.enable_x64(True):
        got = run(q, k, v, beta, g, ids, start)
    np.testing.assert_allclose(got[0], o, atol=1e-12)
    np.testing.assert_allclose(got[1], S, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 7, *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in (1, 16, 64))])
def test_bidirectional_sums_are_all_pairs(chunk):
    q, k, v, _, _ = draw()
    ids = None if chunk is None else SEGMENTS
    same = np.ones((B, N, N)) if ids is None else ids[:, :, None] == ids[:, None]
    w = np.einsum("bihd,bjhd->bhij", q, k) * same[:, None]
    run = jax.jit(lambda q, k, v, ids: linear.bidirectional(q, k, v, ids, chunk=chunk or 1, normaliser=True))
    with jax.enable_x64(True):
        o, n = run(q, k, v, ids)
    np.testing.assert_allclose(o, np.einsum("bhij,bjhe->bihe", w, v), atol=1e-12)
    np.testing.assert_allclose(n, w.sum(-1).swapaxes(1, 2), atol=1e-12)


@pytest.mark.parametrize("decay", ["token", "dim"])
def test_no_decay_is_too_strong(decay):
    """A decay of 0 forgets all, of 1 nothing, and neither spoils a gradient."""
    q, k, v, _, _ = (x if x is None else jax.tree.map(lambda y: y.astype(np.float32), x) for x in draw())
    shape = (B, N, H) if decay == "token" else (B, N, H, D)
    g = np.where(np.random.default_rng(2).random(shape) < 0.5, -np.inf, 0).astype(np.float32)

    def total(q, k, v, g):
        o = linear.causal(q, k, v, g, chunk=16).o
        return (o * o).sum(), o

    gradients, o = jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))(q, k, v, g)
    np.testing.assert_allclose(o, loop(q, k, v, g, None, (np.zeros((B, H, D, E)), np.zeros((B, H, D))))[0], atol=1e-4)
    assert all(np.isfinite(x).all() for x in gradients)


def test_the_inverse_and_its_gradient():
    rng = np.random.default_rng(0)
    A = np.tril(rng.normal(size=(2, 16, 16)), -1)
    w = rng.normal(size=A.shape)
    with jax.enable_x64(True):

        def total(A):
            T = delta_rule.unit_lower_inverse(A)
            return (T * w).sum(), T

        dA, T = jax.jit(jax.grad(total, has_aux=True))(A)
    np.testing.assert_allclose(T, np.linalg.inv(np.eye(16) + A), rtol=1e-8, atol=1e-8)
    i, j, small = 11, 4, 1e-6
    change = np.zeros_like(A)
    change[0, i, j] = small
    inverse = np.linalg.inv
    slope = ((inverse(np.eye(16) + A + change) - inverse(np.eye(16) + A - change)) * w).sum() / (2 * small)
    np.testing.assert_allclose(dA[0, i, j], slope, rtol=1e-4)
    assert not np.triu(dA).any()


def test_a_chunk_is_as_wide_as_what_computes_it(monkeypatch):
    assert [linear.chunk_length(chunk, 1000) for chunk in (None, 16)] == [64, 16]
    monkeypatch.setattr(linear, "traced_for", lambda: "tpu")
    with platform.choices() as made:
        assert [linear.chunk_length(None, length) for length in (1000, 100)] == [128, 100]
    assert made == {"chunk": {"128"}}


def test_a_chunk_has_a_token_and_a_continued_sum_its_keys():
    q, k, v, S = (jnp.asarray(x, jnp.float32) for x in (*draw()[:3], draw()[4][0]))
    with pytest.raises(ValueError, match="at least one token"):
        linear.causal(q, k, v, chunk=0)
    with pytest.raises(ValueError, match="state that has z"):
        linear.causal(q, k, v, state=linear.State(S), normaliser=True)
    with pytest.raises(ValueError, match="power of two"):
        delta_rule.unit_lower_inverse(jnp.zeros((3, 3)))


FORMS = {
    "plain": lambda q, k, v, g: linear.causal(q, k, v, normaliser=True)[:2],
    "token": lambda q, k, v, g: linear.causal(q, k, v, g[..., 0]).o,
    "dim": lambda q, k, v, g: linear.causal(q, k, v, g).o,
    "delta": lambda q, k, v, g: delta_rule.causal(q, k, v, jnp.exp(g[..., 1]), g[..., 0])[0],
    "segments": lambda q, k, v, g: linear.bidirectional(q, k, v, jnp.zeros(q.shape[:2], jnp.int32))[0],
}


@pytest.mark.parametrize("form", FORMS)
def test_memory_of_the_gradient_grows_with_the_length(form):
    """No array has a state for each token, or all pairs, forward or backward."""
    width = 32

    def largest(length):
        args = [jax.ShapeDtypeStruct((1, length, 2, width), jnp.float32)] * 4

        def total(*args):
            return sum(x.sum() for x in jax.tree.leaves(FORMS[form](*args)))

        return max(size for size in sizes(jax.make_jaxpr(jax.grad(total, (0, 1, 2, 3)))(*args).jaxpr))

    assert largest(4096) <= 4 * largest(1024) <= 4 * 2 * 1024 * 2 * 64  # twice the pairs of a chunk


def sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (x.aval.size for x in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner, "jaxpr"):
                    yield from sizes(inner.jaxpr)
                elif hasattr(inner, "eqns"):
                    yield from sizes(inner)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_compiled_memory_is_linear(form):
    def bytes_of(length):
        args = [jax.ShapeDtypeStruct((1, length, 2, 32), jnp.float32)] * 4
        total = jax.jit(jax.grad(lambda *a: sum(x.sum() for x in jax.tree.leaves(FORMS[form](*a))), (0, 1, 2, 3)))
        return total.lower(*args).compile().memory_analysis().temp_size_in_bytes

    small, large = bytes_of(1024), bytes_of(8192)
    assert large <= 8.4 * small and large < 40 * 8192 * 2 * 32 * 4  # forty times a query
