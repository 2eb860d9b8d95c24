"""From settings to the optimizer: clipping, then the algorithm with its decay and rates by parameter."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from flashjax.training.optimizers.algorithms import ALGORITHMS, Parts
from flashjax.training.optimizers.config import OptimizerConfig
from flashjax.training.optimizers.groups import Scale, leaves_by_path, optimizer_rows
from flashjax.training.optimizers.layers import is_matrix, stack_depth
from flashjax.training.optimizers.schedules import make_schedule, schedule_multiplier
from flashjax.training.optimizers.transforms import add_decay, by_layer, clip_by_global_norm, scale_leaves

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
    algorithm = ALGORITHMS[config.name]
    rows, leaves = optimizer_rows(config, params, scales), leaves_by_path(params)
    rates = {path: _broadcast(row.learning_rate, leaves[path]) for path, row in rows.items()}

    def tree(values: Iterable[Any]) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(params), values)

    schedule = make_schedule(config, total_steps)
    rate = optax.scale_by_learning_rate(schedule)
    if scaled := [path for path, row in rows.items() if row.learning_rate != 1]:
        if not algorithm.scales:
            raise ValueError(f"{config.name} sets its own rate and takes no factors of it, found one for {scaled[0]}")
        rate = optax.chain(scale_leaves(tree(rates.values())), rate)

    def scheduled(count: jax.Array) -> jax.Array:
        return -config.decay * schedule_multiplier(config, total_steps)(count)

    decays = tree(row.decay for row in rows.values())
    depths = tree(stack_depth(path, leaf) for path, leaf in leaves.items())
    parts = Parts(
        decay=add_decay(config.decay, decays),
        rate=rate,
        scheduled_decay=add_decay(scheduled, decays),
        schedule=schedule,
        matrices=tree("matrix" if is_matrix(path, leaf) else "other" for path, leaf in leaves.items()),
        by_layer=lambda inner: by_layer(inner, depths),
    )
    made = algorithm.build(parts, **config.arguments)
    return made if config.clip_norm is None else optax.chain(clip_by_global_norm(config.clip_norm), made)


def _broadcast(factor: float | tuple[float, ...], leaf: Any) -> float | np.ndarray:
    """Factors of scanned layers along the first dim of their stack."""
    return np.reshape(factor, (-1,) + (1,) * (leaf.ndim - 1)) if isinstance(factor, tuple) else float(factor)
