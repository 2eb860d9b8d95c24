"""Products of many tokens with one kernel or one scale, and sums over them, as CPUs want them."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
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


def product(dims: str, a: Array, b: Array, precision: str | None = None, dtype: DTypeLike | None = None) -> Array:
    """`jnp.einsum` of two, with a result of `dtype` where one is given; batch dims come first, in one order, and each
    operand has a dim that is not in both the other and the result.

    On one CPU products of the gradient make what they are asked for as it lies. Those that JAX writes begin with the
    gradient, and what is made is turned round after: 21 ms and not 14 for the gradient of 32 x 256 x 512 values.
    """
    if not on_one_cpu():
        return jnp.einsum(dims, a, b, precision=precision, preferred_element_type=dtype)
    return _product(dims, precision, dtype, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(dims: str, precision: str | None, dtype: DTypeLike | None, a: Array, b: Array) -> Array:
    return jnp.einsum(dims, a, b, precision=precision, preferred_element_type=dtype)


def _product_forward(dims: str, precision: str | None, dtype: DTypeLike | None, a: Array, b: Array) -> Any:
    return jnp.einsum(dims, a, b, precision=precision, preferred_element_type=dtype), (a, b)


def _product_backward(
    dims: str, precision: str | None, _: DTypeLike | None, given: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    (a, b), (left, right, out) = given, re.split(",|->", dims)

    def of(own: str, other: str, x: Array, dtype: DTypeLike) -> Array:
        operands = [(out, gradient), (other, x)]
        if next(dim for dim in own if (dim in out) != (dim in other)) in other:
            operands.reverse()
        (first, y), (second, z) = operands
        wide = jnp.result_type(gradient, x)
        made = jnp.einsum(f"{first},{second}->{own}", y, z, precision=precision, preferred_element_type=wide)
        return made.astype(dtype)

    return of(left, right, b, a.dtype), of(right, left, a, b.dtype)


_product.defvjp(_product_forward, _product_backward)


def by_token(function: Callable[[Array], Array], x: Array) -> Array:
    """`function` of x [..., C], which computes each token by itself and gives it as many channels.

    Of a batch of one row on one CPU tokens are one dim. Otherwise what sums over them or over channels has a first dim
    of 1, with which YNNPACK, where it takes a product along, needs 25 to 70 ms and not 0.6 (8,192 tokens of 256).
    """
    if not on_one_cpu() or x.ndim < 3 or x.shape[0] > 1:
        return function(x)
    return jnp.reshape(function(x.reshape(-1, x.shape[-1])), x.shape)


def scaled(x: Array, scale: ArrayLike) -> Array:
    """x [..., C] times scale [C]."""
    return by_token(lambda x: x * scale, x)


def copies(x: Array, *dims: int) -> Array:
    """x [...] as [*dims, ...].

    On one CPU its gradient is a product with ones: as a sum of 32 x 65,536 numbers YNNPACK takes 11 ms, and not 0.3.
    """
    if not on_one_cpu():
        return jnp.broadcast_to(x, (*dims, *x.shape))
    return jnp.reshape(_copies(x, math.prod(dims)), (*dims, *x.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _copies(x: Array, count: int) -> Array:
    return jnp.broadcast_to(x, (count, *x.shape))


def _copies_backward(count: int, _: None, gradient: Array) -> tuple[Array]:
    return (jnp.einsum("g,g...->...", jnp.ones(count, gradient.dtype), gradient, precision="highest"),)


_copies.defvjp(lambda x, count: (jnp.broadcast_to(x, (count, *x.shape)), None), _copies_backward)


def sums_of_rows(x: Array) -> Array:
    """Over the last dim [..., C] of float32, for one CPU: written so that YNNPACK, which a step hands its sums to, does
    not know it. Of one that it knows it takes what is summed along, a product or a softmax, slower or from more memory
    (the Transformer's step at 512 tokens: 2.3 s and not 2).
    """
    return lax.reduce(x, np.float32(0), lambda a, b: lax.sub(a, lax.neg(b)), (x.ndim - 1,))


def softmax(x: Array) -> Array:
    """Over the last dim, float32; on one CPU the backward pass keeps the result alone."""
    return _softmax(x) if on_one_cpu() and x.dtype == jnp.float32 else jax.nn.softmax(x, axis=-1)


@jax.custom_vjp
def _softmax(x: Array) -> Array:
    return jax.nn.softmax(x, axis=-1)


def _softmax_forward(x: Array) -> tuple[Array, Array]:
    weights = jax.nn.softmax(x, axis=-1)
    return weights, weights


def _softmax_backward(weights: Array, gradient: Array) -> tuple[Array]:
    return (weights * (gradient - sums_of_rows(weights * gradient)[..., None]),)


_softmax.defvjp(_softmax_forward, _softmax_backward)
