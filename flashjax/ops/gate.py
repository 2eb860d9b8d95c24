"""Gates that the backward pass makes again: of sigmoids and activations nothing is kept but what they are made of."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

silu = jax.checkpoint(jax.nn.silu)
"""x sigmoid(x); the backward pass keeps x alone."""


def gated(
    activate: Callable[[Array], Array], gate: Float[Array, "*b C"], x: Float[Array, "*b C"]
) -> Float[Array, "*b C"]:
    """activate(gate) * x; the backward pass keeps gate and x alone."""
    return jax.checkpoint(lambda gate, x: activate(gate) * x)(gate, x)
