"""Gates keep what enters them, and their gradients are those of their definition."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.ops.gate import product_of, silu
from flashjax.ops.platform import as_elsewhere

NUMBERS = (((1,), (0,)), ((), ()))


@pytest.mark.parametrize("where", [contextlib.nullcontext, as_elsewhere])
def test_gradients_and_what_is_kept(where):
    rng = np.random.default_rng(0)
    gate, x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 2)).astype(np.float32)

    def plain(gate: jax.Array, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return ((jnp.tanh(gate) * x) @ kernel).sum() + (jnp.cos(x) @ kernel).sum() + (gate / (1 + jnp.exp(-gate))).sum()

    def ours(gate: jax.Array, x: jax.Array, kernel: jax.Array) -> jax.Array:
        gated = product_of(jnp.tanh, gate)(x, kernel, NUMBERS).sum()
        return gated + product_of(jnp.cos)(x, kernel, NUMBERS).sum() + silu(gate).sum()

    given = gate, x, kernel
    with where():
        found = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(*given)
        kept = jax.tree.leaves(jax.eval_shape(lambda *given: jax.vjp(ours, *given)[1], *given))
    expected = jax.value_and_grad(plain, (0, 1, 2))(*given)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-6), found, expected)
    maps = sum(leaf.size for leaf in kept if leaf.shape == gate.shape) / gate.size
    # The gate twice and x twice; elsewhere also both products' operands and what the cosine's derivative is made of.
    assert maps <= (4 if where is contextlib.nullcontext else 7)
