"""Attention by the first terms of the exponential's series (Su 2020, "May attention do without its softmax?").

    w_ij = 1 + q_i.k_j / (|q_i| |k_j|)

which is never negative. Source: kexue.fm/archives/7546.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flashjax.layers.attention.kernel import Kernel


@dataclass(frozen=True)
class Taylor(Kernel):
    """Features (1, x / |x|)."""

    name: ClassVar[str] = "taylor"

    def query_features(self, q: Array, positions: Array, **inputs: Any) -> Array:
        return _with_one(q)

    def key_features(self, k: Array, positions: Array, level: Array | None, **inputs: Any) -> Array:
        return _with_one(k)

    def width(self, head_dim: int) -> int:
        return head_dim + 1


def _with_one(x: Array) -> Array:
    """(1, x / |x|); a zero vector has no direction and a zero gradient."""
    squares = jnp.sum(x * x, -1, keepdims=True)
    return jnp.concatenate([jnp.ones_like(squares), x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))], -1)
