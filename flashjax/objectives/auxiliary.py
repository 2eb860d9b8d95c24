"""Losses that a model sows on its way, whatever its objective."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

AUXILIARY = "losses"
"""What a module sows there is added to what is minimised; it carries its own weight."""

Variables = Mapping[str, Any]


def init(model: nn.Module, rngs: Mapping[str, PRNGKeyArray], *inputs: Any) -> dict[str, Any]:
    """All variables of `model(*inputs, train=False)` but the losses sown on the way."""
    variables = model.init(dict(rngs), *inputs, train=False)
    return {name: tree for name, tree in variables.items() if name != AUXILIARY}


def apply(
    model: nn.Module, variables: Variables, *inputs: Any, train: bool, rngs: Mapping[str, PRNGKeyArray]
) -> tuple[Any, Float[Array, ""] | None, dict[str, Any]]:
    """`model(*inputs, train=train)`: (output, sum of the losses sown or None, collections that it changed).

    Collections as batch_stats change in training alone.
    """
    mutable = [AUXILIARY, *(name for name in variables if train and name != "params")]
    output, changed = model.apply(variables, *inputs, train=train, rngs=dict(rngs), mutable=mutable)
    changed = dict(changed)
    sown = jax.tree.leaves(changed.pop(AUXILIARY, {}))
    if not sown:
        return output, None, changed
    return output, jnp.stack([jnp.sum(value, dtype=jnp.float32) for value in sown]).sum(), changed
