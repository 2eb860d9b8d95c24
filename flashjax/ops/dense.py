"""Products of many tokens with one kernel or one scale."""

from typing import Any

from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from flashjax.ops.platform import on_one_cpu


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, *arguments: Any, **options: Any) -> Array:
    """`lax.dot_general` of x [..., C] and kernel [C, V], for `nn.Dense(dot_general=...)`: tokens are one dim.

    Over two dims of tokens the kernel's gradient is a sum over two, for which XLA for CPUs first transposes what comes
    back into memory of its own. On a mesh of several devices dims stay apart, as they are split.
    """
    if not on_one_cpu() or x.ndim < 3 or dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())):
        return lax.dot_general(x, kernel, dimension_numbers, *arguments, **options)
    flat = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), *arguments, **options)
    return flat.reshape(*x.shape[:-1], kernel.shape[1])


def scaled(x: Array, scale: ArrayLike) -> Array:
    """x [..., C] times scale [C].

    Of a batch of one row on one CPU tokens are one dim: the gradient of `scale` would be a sum over the second of three
    dims, which YNNPACK, with the product taken along, does in 36 ms and not 0.6 (8,192 tokens of 256).
    """
    if not on_one_cpu() or x.ndim < 3 or x.shape[0] > 1:
        return x * scale
    return (x.reshape(-1, x.shape[-1]) * scale).reshape(x.shape)
