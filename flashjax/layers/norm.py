"""Normalisation layers."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """Layer normalisation over the last dim with float32 statistics; the result has `dtype`.

    The variance is the mean of squared deviations, as in torch: Flax's default (mean of squares less the squared mean)
    loses digits where the mean is large. Source: Ba et al. 2016.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        scale = self.param("scale", self.scale_init, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        variance = (x * x).mean(-1, keepdims=True)
        return (x / jnp.sqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)
