"""The two-layer perceptron of a transformer block."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Mlp(nn.Module):
    """Dense, exact (erf) GELU, Dense, with dropout after each. `hidden` is the inner width."""

    hidden: int
    drop_rate: float = 0.0
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "... C"], train: bool = False) -> Float[Array, "... C"]:
        width = x.shape[-1]
        drop = nn.Dropout(self.drop_rate, deterministic=not train)
        x = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=self.kernel_init, name="fc1")(x)
        x = drop(jax.nn.gelu(x, approximate=False))
        x = nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init, name="fc2")(x)
        return drop(x)
