"""What the backward pass makes again, once it needs it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from flashjax.ops.platform import on_one_cpu


def again(function: Callable[..., Any], elsewhere: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """`function` of arrays, of which on one CPU the backward pass keeps what it is given alone; on other devices
    `elsewhere`, None: as it is.

    `jax.checkpoint` does not do on a CPU: XLA drops its barriers there and makes again what it can as soon as it can,
    in the forward pass (of FLASH's step at 8,192 tokens 1,593 MiB whatever is made again). Here the first argument
    waits for the gradient: to it a zero is added that is made of it. So that should be the one which all else is
    combined with elementwise, as the sum is then no pass of its own. A step's memory is new to it each time, and to
    come by 4 kB takes a CPU 2 microseconds; so to keep less is faster as well.

    What is differentiated or mapped has to be among the arguments, not closed over. On one CPU what uses it has no
    derivative in forward mode (`jax.jvp`) except inside of `flashjax.ops.platform.as_elsewhere`; its gradient has one
    where nothing of this kind is within `function`, as FLASH's products are.
    """

    @functools.wraps(function)
    def called(*given: Any) -> Any:
        return _waiting(function, *given) if on_one_cpu() else (elsewhere or function)(*given)

    return called


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _waiting(function: Callable[..., Any], *given: Any) -> Any:
    return function(*given)


def _forward(function: Callable[..., Any], *given: Any) -> tuple[Any, tuple[Any, ...]]:
    return function(*given), given


def _backward(function: Callable[..., Any], given: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
    first, *others = given
    ready = after(first, jax.tree.leaves(gradient)[0])
    made = jax.checkpoint(function, prevent_cse=False)  # so that it counts as made again
    return jax.vjp(made, ready, *others)[1](gradient)


_waiting.defvjp(_forward, _backward)


def after(x: Array, other: Array) -> Array:
    """x, which on a CPU is not there before `other` is."""
    if not other.size:
        return x
    bits = lax.bitcast_convert_type(other.ravel()[0].astype(jnp.float32), jnp.uint32)
    # A shift by 32 in two parts, which XLA does not see through, and no number is an exception of: 0 x would be of NaN.
    zero = lax.shift_right_logical(lax.shift_right_logical(bits, jnp.uint32(31)), jnp.uint32(1))
    return x + zero.astype(x.dtype)
