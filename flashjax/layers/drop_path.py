"""Stochastic depth."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


def drop_path(key: PRNGKeyArray, rates: Sequence[float], rows: int, dtype: Any) -> Float[Array, "branches B"]:
    """What residual branches are multiplied by when training: for each of `rows` samples 0 with probability `rates[i]`,
    otherwise 1 / (1 - rates[i]).

    All are drawn at once, from one key: a key for each branch is a hundred operations on single numbers, which a TPU's
    compiler compiles and runs one by one. Source: Huang et al. 2016, "Deep Networks with Stochastic Depth", as written
    in timm.
    """
    keep = 1.0 - np.asarray(rates, np.float32)[:, None]
    kept = jax.random.bernoulli(key, keep, (len(rates), rows))
    return kept.astype(dtype) / jnp.asarray(keep, dtype)
