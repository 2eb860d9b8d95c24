"""The parameters that evaluation uses, where they are not those that are trained."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ScheduleFreeState, schedule_free_eval_params

from flashjax.training.optimizers.algorithms import ALGORITHMS
from flashjax.training.optimizers.config import OptimizerConfig

PyTree = Any
Average = Callable[[PyTree, PyTree, optax.OptState, jax.Array], PyTree]
"""(average so far, parameters and optimizer state after the update, updates before it) to the new average."""


def make_average(config: OptimizerConfig, ema_decay: float | None, ema_warmup: bool = False) -> Average | None:
    """What evaluation uses instead of the parameters after each update; None: the parameters.

    With `ema_decay` d it is an exponential moving average, a_t = d_t a_{t-1} + (1 - d_t) w_t, that begins at the drawn
    parameters: d_t = d, or under `ema_warmup` d_t = min(d, (1 + t) / (10 + t)) for the update t from 0. Schedule-free
    optimizers have an average of their own instead.

    Raises ValueError where both are asked for, or a warm-up without an average.
    """
    if ALGORITHMS[config.name].averages:
        if ema_decay is not None:
            raise ValueError(f"{config.name} averages the parameters itself: leave out train.ema_decay ({ema_decay})")
        return lambda average, params, opt_state, step: schedule_free_eval_params(_schedule_free(opt_state), params)
    if ema_decay is None:
        if ema_warmup:
            raise ValueError("train.ema_warmup needs train.ema_decay")
        return None

    def moving(average: PyTree, params: PyTree, opt_state: optax.OptState, step: jax.Array) -> PyTree:
        decay = jnp.minimum(ema_decay, (1 + step) / (10 + step)) if ema_warmup else ema_decay
        return optax.incremental_update(params, average, 1.0 - decay)

    return moving


def _schedule_free(opt_state: optax.OptState) -> Any:
    states = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, ScheduleFreeState))
    return next(state for state in states if isinstance(state, ScheduleFreeState))
