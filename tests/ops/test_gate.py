"""Gates keep what enters them, and their gradients are those of their definition."""

import jax
import jax.numpy as jnp
import numpy as np

from flashjax.ops.gate import gated, silu


def test_gradients_and_what_is_kept():
    gate, x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)

    def plain(gate: jax.Array, x: jax.Array) -> jax.Array:
        return (jnp.tanh(gate) * x + gate / (1 + jnp.exp(-gate))).sum()

    def ours(gate: jax.Array, x: jax.Array) -> jax.Array:
        return (gated(jnp.tanh, gate, x) + silu(gate)).sum()

    for found, expected in zip(*(jax.jit(jax.value_and_grad(f, (0, 1)))(gate, x) for f in (ours, plain)), strict=True):
        jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-6), found, expected)
    kept = jax.tree.leaves(jax.eval_shape(lambda *given: jax.vjp(ours, *given)[1], gate, x))
    assert sum(leaf.size for leaf in kept if leaf.shape == gate.shape) <= 3 * gate.size  # gate twice, x once
