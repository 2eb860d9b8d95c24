"""Stochastic depth."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class DropPath(nn.Module):
    """Drops the whole residual branch of a sample with probability `rate` and scales the others by 1 / (1 - rate).

    Draws from the stream "drop_path" when `train` is set and `rate` is positive; otherwise it is the identity. Source:
    Huang et al. 2016, "Deep Networks with Stochastic Depth", as written in timm.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "B ..."], train: bool = False) -> Float[Array, "B ..."]:
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = jax.random.bernoulli(self.make_rng("drop_path"), keep, (x.shape[0],) + (1,) * (x.ndim - 1))
        return x * (kept.astype(x.dtype) / jnp.asarray(keep, x.dtype))
