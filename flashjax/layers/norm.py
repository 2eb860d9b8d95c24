"""Normalisation layers."""

from typing import Any

import jax
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


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) times a learned scale, in float32; the result has `dtype`.

    `use_scale` False leaves the scale out. Source: Zhang and Sennrich 2019.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        if self.use_scale:
            x = x * self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return x.astype(self.dtype)


class ScaleNorm(nn.Module):
    """g x / max(||x|| / sqrt(C), epsilon) with one learned number g, from 1; float32, the result has `dtype`.

    The length is taken over sqrt(C), so that entries begin near 1 as with the other norms. Source: Nguyen and Salazar
    2019, who begin with g = sqrt(C) over ||x||: the same function.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        g = self.param("scale", nn.initializers.ones, ())
        x = x.astype(jnp.float32)
        # Bounded under the root, so that a zero vector has a finite gradient.
        x = x * jax.lax.rsqrt(jnp.maximum((x * x).mean(-1, keepdims=True), self.epsilon**2))
        return (g * x).astype(self.dtype)


NORMS: dict[str, type[nn.Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm, "scalenorm": ScaleNorm}
"""By name; all take `epsilon` and `dtype`."""
