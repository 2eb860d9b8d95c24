"""Gradient transformations that Optax lacks, or has in another form."""

from typing import Any, NamedTuple

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


class NadamState(NamedTuple):
    """Moments of `scale_by_nadam`."""

    count: jax.typing.ArrayLike
    momenta: jax.Array
    """Product of the momenta so far."""
    mu: PyTree
    nu: PyTree


def scale_by_nadam(b1: Any, b2: Any, eps: Any, momentum_decay: float = 0.004, mu_dtype: Any = None):
    """NAdam (Dozat 2016) with its schedule of the momentum, as PyTorch: b1 (1 - 0.96^(t momentum_decay) / 2) at t.

    Optax's keeps the momentum at b1.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params, dtype=mu_dtype)
        return NadamState(jnp.zeros([], jnp.int32), jnp.ones([], float), zeros, optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        now, following = (b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (count, count + 1))
        momenta = state.momenta * now
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        of_gradient, of_mean = (1 - now) / (1 - momenta), following / (1 - momenta * following)

        def direction(g, m, v):
            return ((of_gradient * g + of_mean * m) / (jnp.sqrt(v / (1 - b2**count)) + eps)).astype(g.dtype)

        directions = jax.tree.map(direction, updates, mu, nu)
        return directions, NadamState(count, momenta, optax.tree.cast(mu, mu_dtype), nu)

    return optax.GradientTransformation(init, update)


class AdanState(NamedTuple):
    """Moments of `scale_by_adan`."""

    count: jax.typing.ArrayLike
    before: PyTree
    """The gradient of the update before."""
    mu: PyTree
    change: PyTree
    """Mean of the gradient's changes."""
    nu: PyTree


def scale_by_adan(b1: Any, b2: Any, b3: Any, eps: Any) -> optax.GradientTransformation:
    """Adan (Xie et al. 2022): the gradient's change d = g_t - g_{t-1}, times b2, joins direction and second moment.

    In the paper's letters b2 is 1 - beta_2. Optax's weighs d by 1 - b2, which is beta_2.
    """

    def init(params):
        return AdanState(jnp.zeros([], jnp.int32), *(optax.tree.zeros_like(params) for _ in range(4)))

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        changes = jax.tree.map(lambda g, g0: jnp.where(count == 1, 0, g - g0), updates, state.before)
        ahead = optax.tree.add_scale(updates, b2, changes)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        change = optax.tree.update_moment(changes, state.change, b2, 1)
        nu = optax.tree.update_moment_per_elem_norm(ahead, state.nu, b3, 2)

        def direction(g, m, d, n):
            step = m / (1 - b1**count) + b2 * d / (1 - b2**count)
            return (step / (jnp.sqrt(n / (1 - b3**count)) + eps)).astype(g.dtype)

        directions = jax.tree.map(direction, updates, mu, change, nu)
        return directions, AdanState(count, updates, mu, change, nu)

    return optax.GradientTransformation(init, update)


class GradientNormState(NamedTuple):
    """Mean squared norms of `scale_by_gradient_norm`."""

    count: jax.typing.ArrayLike
    nu: PyTree


def scale_by_gradient_norm(b2: Any, eps: Any) -> optax.GradientTransformation:
    """NovoGrad's normalisation: each tensor over the root of the mean of its squared norm, which begins at the first.

    Optax's `scale_by_novograd` has it together with one weight decay for all parameters.
    """

    def init(params):
        return GradientNormState(jnp.zeros([], jnp.int32), jax.tree.map(lambda p: jnp.zeros([], p.dtype), params))

    def update(updates, state, params=None):
        del params
        squares = jax.tree.map(lambda g: jnp.sum(g * g), updates)
        nu = jax.tree.map(lambda s, n: jnp.where(state.count == 0, s, b2 * n + (1 - b2) * s), squares, state.nu)
        directions = jax.tree.map(lambda g, n: g / (jnp.sqrt(n) + eps), updates, nu)
        return directions, GradientNormState(optax.safe_increment(state.count), nu)

    return optax.GradientTransformation(init, update)


def by_layer(inner: optax.GradientTransformation, depths: PyTree) -> optax.GradientTransformation:
    """`inner` for each layer of a stack apart, where it looks at whole tensors.

    Args:
        depths: for each parameter the size of the leading dim that stacks layers, 0 where there is none. Parameters of
            equal depth form one stack.
    """

    def init(params):
        return jax.vmap(inner.init)(params) if jax.tree.leaves(params) else inner.init(params)

    def update(updates, state, params=None):
        step = jax.vmap(inner.update) if jax.tree.leaves(updates) else inner.update
        return step(updates, state, params)

    kinds = set(jax.tree.leaves(depths))
    if kinds <= {0}:
        return inner
    stacked = optax.GradientTransformation(init, update)
    return optax.partition({depth: stacked if depth else inner for depth in kinds}, depths)
