"""Additive biases of attention logits as functions of positions, so that no one has to hold them whole.

Each is a pytree, differentiable in its arrays, called as `bias(q_positions [Q], k_positions [K]) -> [H, Q, K]` float32.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flashjax.layers.positions import t5_bucket


class AlibiBias(flax.struct.PyTreeNode):
    """-m_h |i - j| (Press et al. 2022)."""

    slopes: Any
    """m_h [H] float32, see `flashjax.layers.positions.alibi_slopes`. (JAX puts stand-ins here: no shape is checked.)"""

    def __call__(self, queries: Int[Array, "Q"], keys: Int[Array, "K"]) -> Float[Array, "H Q K"]:
        distance = jnp.abs(queries[:, None] - keys).astype(jnp.float32)
        return -self.slopes[:, None, None] * distance


class BucketBias(flax.struct.PyTreeNode):
    """A learned number for each head and bucket of key position - query position (Raffel et al. 2020)."""

    table: Any
    """[buckets, H] float32."""
    bidirectional: bool = flax.struct.field(pytree_node=False)
    max_distance: int = flax.struct.field(pytree_node=False)

    def __call__(self, queries: Int[Array, "Q"], keys: Int[Array, "K"]) -> Float[Array, "H Q K"]:
        bucket = t5_bucket(keys - queries[:, None], self.bidirectional, self.table.shape[0], self.max_distance)
        return jnp.moveaxis(self.table[bucket], -1, 0).astype(jnp.float32)
