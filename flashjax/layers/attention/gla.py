"""Gated linear attention: a decay for each dim of the keys, from the input (Yang et al. 2023, arXiv 2312.06635).

S_t = diag(a_t) S_{t-1} + k_t v_t^T,    o_t = q_t S_t / sqrt(D),    a_t = sigmoid(x_t W_1 W_2 + b)^(1/16)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flashjax.layers.attention.decayed import Decayed, Terms


class Gate(nn.Module):
    """log a_t = log sigmoid(x W_1 W_2 + b) / temperature, float32 [B, N, H, D]; W_1 has `rank` columns."""

    heads: int
    head_dim: int
    rank: int
    temperature: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> dict[str, Array]:
        low = nn.Dense(self.rank, use_bias=False, dtype=self.dtype, name="down")(x)
        gate = nn.Dense(self.heads * self.head_dim, dtype=self.dtype, name="up")(low).astype(jnp.float32)
        gate = gate.reshape(*x.shape[:2], self.heads, self.head_dim)
        return {"log_decay": jax.nn.log_sigmoid(gate) / self.temperature}


@dataclass(frozen=True)
class GLA(Decayed):
    """The input `log_decay` is log a_t, float32 [B, N, H, D]."""

    name: ClassVar[str] = "gla"

    rank: int = 16
    """Columns of W_1."""
    temperature: float = 16.0
    """The sigmoid is raised to one over this power."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.temperature <= 0:
            raise ValueError(f"gla: rank={self.rank} must be at least 1, temperature={self.temperature} positive")

    def inputs(self, heads: int, head_dim: int, length: int, dtype: Any) -> nn.Module:
        return Gate(heads, head_dim, self.rank, self.temperature, dtype)

    def terms(self, q: Array, k: Array, *, log_decay: Array) -> Terms:
        return Terms(q * q.shape[-1] ** -0.5, k, log_decay)
