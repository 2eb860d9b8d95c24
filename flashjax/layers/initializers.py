"""Initializers that two or more models share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

Initializer = Callable[..., Array]

# Often written as `trunc_normal_(std=.02)` in PyTorch, which cuts at an absolute +-2, a hundred deviations out:
# a plain normal. Flax's `truncated_normal` cuts at two deviations and would not be the same distribution.
NORMAL = nn.initializers.normal(0.02)

KERNELS: dict[str, Initializer] = {
    "normal": NORMAL,
    # For widths that are far from the paper's: 0.02 keeps variance only near 1/0.02**2 = 2500 inputs.
    "fan_in": nn.initializers.lecun_normal(),
}


def torch_uniform(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what torch gives the kernel and the bias of a convolution left alone."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
