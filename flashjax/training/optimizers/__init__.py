"""Optimizers by name: clipping, algorithm, decay and rates by the path of a parameter, per-update schedules."""

from flashjax.training.optimizers.algorithms import ALGORITHMS
from flashjax.training.optimizers.averaging import Average, make_average
from flashjax.training.optimizers.config import Group, OptimizerConfig, ScheduleConfig, with_arrays
from flashjax.training.optimizers.groups import Scale, decay_mask, optimizer_rows, rate_columns
from flashjax.training.optimizers.make import make_optimizer
from flashjax.training.optimizers.schedules import learning_rate_at, make_schedule, schedule_multiplier
from flashjax.training.optimizers.transforms import clip_by_global_norm

__all__ = [
    "ALGORITHMS",
    "Average",
    "Group",
    "OptimizerConfig",
    "Scale",
    "ScheduleConfig",
    "clip_by_global_norm",
    "decay_mask",
    "learning_rate_at",
    "make_average",
    "make_optimizer",
    "make_schedule",
    "optimizer_rows",
    "rate_columns",
    "schedule_multiplier",
    "with_arrays",
]
