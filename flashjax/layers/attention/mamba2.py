"""Mamba-2's state space duality: a decay for each head, from the input (Dao and Gu 2024, "Transformers are SSMs").

    S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T,    y_t = C_t S_t + D x_t,    dt_t = softplus(u_t W + b),  A < 0

in attention's words q = C, k = B, v = x; u is the block's input. The convolution before, and the norm and gate after it
are the block's.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flashjax.layers.attention.decayed import Decayed, Terms
from flashjax.layers.initializers import Initializer


class Steps(nn.Module):
    """dt float32 [B, N, H], A [H], D [H]. At the start -A is even in (1, 16), dt in (.001, .1) by its log, D is 1."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> dict[str, Array]:
        return {
            "dt": step_sizes(self, x, self.heads, self.dtype),
            "A": -jnp.exp(self.param("A_log", log_uniform(1.0, 16.0), (self.heads,))),
            "D": self.param("D", nn.initializers.ones, (self.heads,)),
        }


@dataclass(frozen=True)
class Mamba2(Decayed):
    """The inputs `dt` [B, N, H], `A` [H] and `D` [H]; heads have states (B and C) of their own."""

    name: ClassVar[str] = "mamba2"
    short_conv: ClassVar[int] = 4
    shared_inputs: ClassVar[tuple[str, ...]] = ("A", "D")

    def inputs(self, heads: int, head_dim: int, length: int, dtype: Any) -> nn.Module:
        return Steps(heads, dtype)

    def terms(self, q: Array, k: Array, *, dt: Array, A: Array, D: Array) -> Terms:
        return Terms(q, dt[..., None] * k, dt * A, D)


def step_sizes(module: nn.Module, x: Float[Array, "B N C"], heads: int, dtype: Any) -> Float[Array, "B N H"]:
    """softplus(x W + b), float32; the parameters are `module`'s, b such that it lies in (.001, .1) at the start."""
    raw = nn.Dense(heads, use_bias=False, dtype=dtype, name="dt", parent=module)(x).astype(jnp.float32)
    return jax.nn.softplus(raw + module.param("dt_bias", _softplus_inverse_of_log_uniform, (heads,)))


def log_uniform(low: float, high: float) -> Initializer:
    """log U(low, high)."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jnp.log(jax.random.uniform(key, shape, dtype, low, high))

    return init


def _softplus_inverse_of_log_uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(1e-1)))
    return dt + jnp.log(-jnp.expm1(-dt))
