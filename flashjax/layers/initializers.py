"""Initializers under the field's names: distributions of a given deviation, and deviations from fan-in and fan-out.

Every one is a function (key, shape, dtype) -> array, as Flax's. Fan-in and fan-out are those of a kernel
[..., inputs, outputs]: of a convolution [k, k, inputs, outputs] both count its k k taps (torch's and JAX's convention).
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

Initializer = Callable[..., Array]
Distribution = Literal["normal", "truncated_normal", "uniform", "orthogonal"]
Scheme = Literal["lecun", "he", "xavier", "torch"]

# Often written as `trunc_normal_(std=.02)` in PyTorch, which cuts at an absolute +-2, a hundred deviations out:
# a plain normal. Flax's `truncated_normal` cuts at two deviations and would not be the same distribution.
NORMAL = nn.initializers.normal(0.02)

KERNELS: dict[str, Initializer] = {
    "normal": NORMAL,
    # For widths that are far from the paper's: 0.02 keeps variance only near 1/0.02**2 = 2500 inputs.
    "fan_in": nn.initializers.lecun_normal(),
}

TRUNCATED_STD = 0.8796256610342398
"""Deviation of N(0, 1) cut at +-2."""


def normal(std: float) -> Initializer:
    """N(0, std^2)."""
    return nn.initializers.normal(std)


def truncated_normal(std: float) -> Initializer:
    """A normal cut at two of its deviations, wide enough that what is left deviates by `std`.

    What `variance_scaling(..., "truncated_normal")` of JAX, Keras and T5X draws from.
    """
    return nn.initializers.truncated_normal(std / TRUNCATED_STD)


def truncated_normal_uncorrected(sigma: float) -> Initializer:
    """N(0, sigma^2) cut at two sigma: its deviation is 0.8796 sigma.

    BERT's, and what TensorFlow and JAX call `truncated_normal`.
    """
    return nn.initializers.truncated_normal(sigma)


def uniform(std: float) -> Initializer:
    """U(-sqrt(3) std, sqrt(3) std), whose deviation is `std`."""
    bound = math.sqrt(3) * std

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_uniform(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default for the kernel and the bias of a linear layer or convolution.

    Its variance is 1 / (3 fan_in). (Of torch's embeddings the default is `normal(1)`.)
    """
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def orthogonal(std: float) -> Initializer:
    """A matrix [inputs, outputs] with orthogonal rows or columns (the fewer of them), entries of deviation `std`.

    The longer side n gives the rows or columns a length of std sqrt(n): 1 / sqrt(n) makes them orthonormal. Further
    leading dims count as inputs. Source: Saxe et al. 2014.
    """

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        gain = std * math.sqrt(max(rows, columns))
        return nn.initializers.orthogonal(gain)(key, (rows, columns), dtype).reshape(shape)

    return init


DISTRIBUTIONS: dict[Distribution, Callable[[float], Initializer]] = {
    "normal": normal,
    "truncated_normal": truncated_normal,
    "uniform": uniform,
    "orthogonal": orthogonal,
}
"""By name; each takes the deviation of what is drawn."""


def fans(shape: tuple[int, ...], inputs: int | None = None) -> tuple[int, int]:
    """(fan-in, fan-out) of a kernel: [taps ..., inputs, outputs], or with `inputs` leading dims summed over.

    Those of a projection to heads [C, H, D] are `fans(shape, 1)`, of one from heads [H, D, C] `fans(shape, 2)`.

    Raises ValueError for fewer than two dims, or where `inputs` leaves none on a side.
    """
    if len(shape) < 2:
        raise ValueError(f"shape {shape} has no fan-in and fan-out: a kernel has at least two dims")
    if inputs is not None:
        if not 0 < inputs < len(shape):
            raise ValueError(f"inputs is {inputs}: of shape {shape} it must be 1 to {len(shape) - 1}")
        return math.prod(shape[:inputs]), math.prod(shape[inputs:])
    taps = math.prod(shape[:-2])
    return taps * shape[-2], taps * shape[-1]


def fan_std(scheme: Scheme, fan_in: int, fan_out: int) -> float:
    """The deviation that a scheme gives to a kernel.

    lecun: variance 1 / fan_in keeps second moments (LeCun et al. 1998); he: 2 / fan_in, through a ReLU (He et al.
    2015); xavier: 2 / (fan_in + fan_out), forward and backward (Glorot and Bengio 2010); torch: 1 / (3 fan_in).
    """
    match scheme:
        case "lecun":
            return fan_in**-0.5
        case "he":
            return (2 / fan_in) ** 0.5
        case "xavier":
            return (2 / (fan_in + fan_out)) ** 0.5
        case "torch":
            return (3 * fan_in) ** -0.5
    raise ValueError(f"unknown scheme {scheme!r}; choose from lecun, he, xavier, torch")


def by_fan(scheme: Scheme, distribution: Distribution = "normal", gain: float = 1.0) -> Initializer:
    """`distribution` with `gain` times the deviation that `scheme` gives to a kernel [..., inputs, outputs].

    `by_fan("he", "uniform")` is He's uniform, `by_fan("lecun", "truncated_normal")` Flax's default.
    """

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return DISTRIBUTIONS[distribution](gain * fan_std(scheme, *fans(shape)))(key, shape, dtype)

    return init
