"""Stochastic depth."""

from typing import Any

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

    def __call__(self, x: Float[Array, "B ..."], train: bool = False) -> Float[Array, "B ..."]:
        if not train or self.rate == 0.0:
            return x
        return x * self.factor(x.shape[0], x.ndim, x.dtype)

    def factor(self, rows: int, dims: int, dtype: Any) -> Float[Array, "B ..."]:
        """What the branches of so many samples are multiplied by when training: [rows, 1, ...] of `dims` dims."""
        if self.rate == 0.0:
            return jnp.ones((rows,) + (1,) * (dims - 1), dtype)
        keep = 1.0 - self.rate
        kept = jax.random.bernoulli(self.make_rng("drop_path"), keep, (rows,) + (1,) * (dims - 1))
        return kept.astype(dtype) / jnp.asarray(keep, dtype)
