"""From settings to the optimizer: clipping, then the algorithm with its decay and rates by parameter."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from flashjax.training.optimizers.algorithms import ALGORITHMS, Parts
from flashjax.training.optimizers.config import OptimizerConfig
from flashjax.training.optimizers.groups import Scale, optimizer_rows
from flashjax.training.optimizers.schedules import make_schedule, schedule_multiplier
from flashjax.training.optimizers.transforms import add_decay, clip_by_global_norm, scale_leaves

PyTree = Any


def make_optimizer(
    config: OptimizerConfig, total_steps: int, params: PyTree, scales: Mapping[str, Scale] | None = None
) -> optax.GradientTransformation:
    """Clipping, then the algorithm under the schedule.

    Args:
        params: tells paths and shapes; abstract will do.
        scales: further factors of learning rate and decay by '/'-joined path, such as a parametrization's.

    Raises ValueError as `optimizer_rows` does.
    """
    rows = optimizer_rows(config, params, scales)
    leaves, structure = jax.tree.flatten(params)
    rates = [_broadcast(row.learning_rate, leaf) for row, leaf in zip(rows.values(), leaves, strict=True)]
    decays = jax.tree.unflatten(structure, [row.decay for row in rows.values()])
    rate = optax.scale_by_learning_rate(make_schedule(config, total_steps))
    if any(not isinstance(factor, float) or factor != 1 for factor in rates):
        rate = optax.chain(scale_leaves(jax.tree.unflatten(structure, rates)), rate)

    def falling(count):
        return -config.decay * schedule_multiplier(config, total_steps)(count)

    parts = Parts(
        decay=add_decay(config.decay, decays),
        rate=rate,
        scheduled_decay=add_decay(
            lambda count: -config.decay * schedule_multiplier(config, total_steps)(count), decays
        ),
    )
    algorithm = ALGORITHMS[config.name].build(parts, **config.arguments)
    return algorithm if config.clip_norm is None else optax.chain(clip_by_global_norm(config.clip_norm), algorithm)


def _broadcast(factor: float | tuple[float, ...], leaf: Any) -> float | np.ndarray:
    """Factors of scanned layers along the first dim of their stack."""
    return np.reshape(factor, (-1,) + (1,) * (leaf.ndim - 1)) if isinstance(factor, tuple) else float(factor)
