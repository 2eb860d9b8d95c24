"""Mixed chunk attention of packed rows against its definition in float64, with gradients by differences of that."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers.positions import positions_of
from flashjax.ops import gated_attention as ops

B, N, S, E, C = 3, 37, 3, 2, 5
WEIGH = functools.partial(ops.squared_relu, scaling="paper", s=S)


def test_toeplitz():
    for rows, columns in ((1, 4), (4, 1), (3, 5)):
        b = np.arange(rows + columns - 1, dtype=np.float32)
        expected = [[b[j - i + rows - 1] for j in range(columns)] for i in range(rows)]
        np.testing.assert_array_equal(jax.jit(ops.toeplitz, static_argnums=1)(b, columns), expected)


def test_rotated_dots():
    """<a, R_m c> by turning c, in float64, also one distance alone and distances far away."""
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(2, 6)).astype(np.float32)
    theta = 10000.0 ** -(np.arange(3) / 3)
    for first, last in ((-36, 36), (0, 0), (-5, -2), (20000, 20010)):
        m = np.arange(first, last + 1)[:, None] * theta
        x, y = np.float64(c[:3]), np.float64(c[3:])
        expected = (x * np.cos(m) - y * np.sin(m)) @ np.float64(a[:3]) + (x * np.sin(m) + y * np.cos(m)) @ a[3:]
        found = jax.jit(ops.rotated_dots, static_argnums=(2, 3))(a, c, first, last)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_squared_relu():
    qk, b, n = np.array([3.0, -1.0, 0.5]), np.array([0.1, 0.2, -0.5]), 4.0
    for scaling, expected in (
        ("paper", [0.85**2, 0.0, 0.0]),
        ("sum", [0.775**2, 0.0, 0.0]),
        ("mean", [(3 / 3**0.5 + 0.1) ** 2 / 4, 0.0, 0.0]),
    ):
        found = ops.squared_relu(jnp.asarray(qk), jnp.asarray(b), n, scaling, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("G", [1, 2, 7, 19])
def test_sums_of_the_chunks_before_in_runs(G):
    """Runs of 3, of 9 and of 27 chunks; gradients are the sums of those behind."""
    x, ct = np.random.default_rng(G).normal(size=(2, 2, G, S, E)).astype(np.float32)
    found, pull = jax.vjp(jax.jit(functools.partial(ops.sums_before, run=3)), x)
    np.testing.assert_allclose(found, np.cumsum(x, 1) - x, atol=1e-5)
    behind = np.cumsum(ct[:, ::-1], 1)[:, ::-1] - ct
    np.testing.assert_allclose(pull(ct)[0], behind, atol=1e-5)


@pytest.mark.parametrize("K", [8, 6])
def test_a_weighted_sum_by_parts_and_whole(K):
    rng = np.random.default_rng(K)
    a, v = rng.normal(size=(B, K)).astype(np.float32), rng.normal(size=(B, K, E)).astype(np.float32)
    found = ops.weighted_sum(jnp.asarray(a), jnp.asarray(v), part=4)
    np.testing.assert_allclose(found, np.einsum("bj,bje->be", a, v), atol=1e-5)


def segments(seed: int) -> np.ndarray:
    """Rows cut at random, some segments longer than several chunks, some of one token; padding behind."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((B, N), np.int32)
    for row in range(B):
        cuts = np.sort(rng.choice(np.arange(1, N), rng.integers(1, 6), replace=False))
        ids[row] = 1 + np.searchsorted(cuts, np.arange(N), side="right")
        ids[row, N - rng.integers(0, 4) :] = 0
    return ids


def operands(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(B, N, w)) for w in (S, S, S, S, E)] + [rng.normal(0.2, 1, 2 * C - 1)]


def definition(x: list[np.ndarray], ids: np.ndarray, causal: bool) -> np.ndarray:
    """V_quad + V_lin, token by token; rows of padding are zero."""
    q, k, ql, kl, v, b = x
    out = np.zeros(v.shape)
    for row in range(B):
        for number in range(1, ids[row].max() + 1):
            at = np.flatnonzero(ids[row] == number)
            for i in range(len(at)):
                for j in range(len(at)):
                    to, of = (row, at[i]), (row, at[j])
                    if i // C == j // C and (j <= i or not causal):
                        out[to] += max(q[to] @ k[of] / C + b[j - i + C - 1], 0) ** 2 * v[of]
                    if j // C < i // C or not causal:
                        out[to] += ql[to] @ kl[of] / (C if causal else len(at)) * v[of]
    return out


@functools.cache
def packed(causal: bool):
    def run(x, ids, weight):
        positions = positions_of(ids)
        n = (ids[:, :, None] == ids[:, None, :]).sum(-1).astype(jnp.float32)
        out = ops.mixed_chunk_packed(*x, n, WEIGH, chunk=C, causal=causal, segment_ids=ids, positions=positions)
        return (jnp.where(ids[..., None] > 0, out, 0) * weight).sum(), out

    return jax.jit(jax.value_and_grad(run, has_aux=True))


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_segments_anywhere(causal):
    for seed in range(4):
        ids, x = segments(seed), operands(seed)
        weight = np.random.default_rng(seed).normal(size=(B, N, E))
        arguments = [jnp.asarray(y, jnp.float32) for y in x]
        (_, found), grads = packed(causal)(arguments, jnp.asarray(ids), jnp.asarray(weight, jnp.float32))
        expected = definition(x, ids, causal)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(np.where(ids[..., None] > 0, found, 0), expected, atol=1e-5 * scale)
        if seed:
            continue
        for i, grad in enumerate(grads):  # along one direction of each operand
            step = np.random.default_rng(i).normal(size=x[i].shape) * 1e-6
            moved = [
                (definition([*x[:i], x[i] + sign * step, *x[i + 1 :]], ids, causal) * weight).sum() for sign in (1, -1)
            ]
            np.testing.assert_allclose((grad * step).sum(), (moved[0] - moved[1]) / 2, rtol=2e-4)
