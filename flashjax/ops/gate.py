"""Gates and activations that the backward pass makes again: of them nothing is kept but what they are made of."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from flashjax.ops.again import again
from flashjax.ops.dense import dot_general

silu = again(jax.nn.silu, jax.checkpoint(jax.nn.silu))
"""x sigmoid(x); the backward pass keeps x alone."""


def product_of(
    activate: Callable[[Array], Array],
    gate: Float[Array, "*b C"] | None = None,
    constrain: Callable[[Array], Array] = lambda x: x,
) -> Callable[..., Float[Array, "*b V"]]:
    """For `nn.Dense(dot_general=...)` of x [*b, C]: activate(x) W, or with a `gate` (activate(gate) * x) W.

    `constrain` is called on what is multiplied. The backward pass keeps x, the gate and W; on one CPU nothing else.
    """

    def dot(x: Array, kernel: Array, *arguments: Any, **options: Any) -> Array:
        def product(x: Array, kernel: Array) -> Array:
            return dot_general(constrain(x), kernel, *arguments, **options)

        if gate is None:
            return again(lambda x, kernel: product(activate(x), kernel))(x, kernel)

        def gated(gate: Array, x: Array) -> Array:
            return activate(gate) * x

        return again(
            lambda gate, x, kernel: product(gated(gate, x), kernel),
            elsewhere=lambda gate, x, kernel: product(jax.checkpoint(gated)(gate, x), kernel),
        )(gate, x, kernel)

    return dot
