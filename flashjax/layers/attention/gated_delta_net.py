"""Gated DeltaNet: the delta rule with decay (Yang et al. 2024, "Gated Delta Networks"), as in Qwen3-Next.

S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^T k_t)^T,    o_t = q_t S_t / sqrt(D),    |k_t| = |q_t| = 1
log a_t = -exp(A) softplus(x_t W_a + c),    b_t = sigmoid(x_t W_b)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flashjax.layers.attention.delta_net import DeltaNet
from flashjax.layers.attention.mamba2 import log_uniform, step_sizes


class Gates(nn.Module):
    """log a_t and b_t, float32 [B, N, H]. At the start exp(A) is in (.01, 16), evenly, and softplus in (.001, .1)."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> dict[str, Array]:
        raw = nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name="beta")(x)
        rate = jnp.exp(self.param("A_log", log_uniform(0.01, 16.0), (self.heads,)))
        return {
            "beta": jax.nn.sigmoid(raw.astype(jnp.float32)),
            "log_decay": -rate * step_sizes(self, x, self.heads, self.dtype),
        }


@dataclass(frozen=True)
class GatedDeltaNet(DeltaNet):
    """The inputs are `beta`, b_t, and `log_decay`, log a_t, float32 [B, N, H]."""

    name: ClassVar[str] = "gated_delta_net"
    output_gate: ClassVar[bool] = True

    def inputs(self, heads: int, head_dim: int, length: int, dtype: Any) -> nn.Module:
        return Gates(heads, dtype)
