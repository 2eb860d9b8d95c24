"""Gradient transformations that Optax lacks, or has in another form."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient by min(1, max_norm / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_` does.

    The norm is over all leaves, in float32 whatever their dtype. Optax's own has no 1e-6.
    """

    def update(updates, state, params=None):
        del params
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), updates))
        scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def add_decay(weight_decay: Any, factors: PyTree) -> optax.GradientTransformation:
    """Adds weight_decay * factor * parameter, by a tree of factors instead of Optax's mask.

    Args:
        weight_decay: a float, a scalar array, or a schedule of updates.
        factors: a float for each parameter, or an array that broadcasts against it. 0 leaves the update as it is, bit
            for bit.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)) if callable(weight_decay) else optax.EmptyState()

    def update(updates, state, params=None):
        strength: Any = weight_decay
        if callable(weight_decay):
            strength, state = weight_decay(state.count), optax.ScaleByScheduleState(optax.safe_increment(state.count))

        def one(update, param, factor):
            nothing = (isinstance(factor, float) and factor == 0) or (
                isinstance(strength, (int, float)) and strength == 0
            )
            return update if nothing else update + (strength * factor * param).astype(update.dtype)

        return jax.tree.map(one, updates, params, factors), state

    return optax.GradientTransformation(init, update)


def scale_leaves(factors: PyTree) -> optax.GradientTransformation:
    """Multiplies each leaf by its factor: a float, or an array that broadcasts against the leaf."""

    def update(updates, state, params=None):
        del params
        return jax.tree.map(
            lambda u, f: u if isinstance(f, float) and f == 1 else (u * f).astype(u.dtype), updates, factors
        ), state

    return optax.GradientTransformation(optax.init_empty_state, update)
