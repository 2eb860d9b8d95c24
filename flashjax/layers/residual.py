"""How a residual branch joins the stream."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flashjax.layers.gains import deepnorm, layerscale
from flashjax.ops.dense import scaled

ResidualKind = Literal["plain", "deepnorm", "rezero", "layerscale"]
RESIDUALS: tuple[ResidualKind, ...] = ("plain", "deepnorm", "rezero", "layerscale")


class Residual(nn.Module):
    """Stream x and what a branch made of it, f(x), to the stream after it; in x's dtype.

    plain: x + f(x). deepnorm: alpha x + f(x), to be normalised (Wang et al. 2022). rezero: x + a f(x) with one learned
    number a, from 0 (Bachlechner et al. 2021; SkipInit, De and Smith 2020). layerscale: x + g f(x) with a learned
    number g for each channel, from 0.1, 1e-5 or 1e-6 by depth (Touvron et al. 2021).
    """

    kind: ResidualKind
    layers: int
    """Of the stack, which alpha and g depend on."""

    @nn.compact
    def __call__(self, x: Float[Array, "... C"], branch: Float[Array, "... C"]) -> Float[Array, "... C"]:
        match self.kind:
            case "plain":
                return x + branch
            case "deepnorm":
                return jnp.asarray(deepnorm(self.layers).alpha, x.dtype) * x + branch
            case "rezero":
                return x + self._scale(nn.initializers.zeros, (), x.dtype) * branch
            case "layerscale":
                initial = nn.initializers.constant(layerscale(self.layers))
                return x + scaled(branch, self._scale(initial, (x.shape[-1],), x.dtype))
        raise ValueError(f"unknown residual {self.kind!r}; choose from {', '.join(RESIDUALS)}")

    def _scale(self, initial: Any, shape: tuple[int, ...], dtype: Any) -> Array:
        return jnp.asarray(self.param("scale", initial, shape), dtype)
