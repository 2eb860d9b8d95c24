"""The sharded trainer: ``fit(Experiment)``."""

from flashjax.training.experiment import (
    CheckpointConfig,
    Experiment,
    Objective,
    Pipeline,
    RunConfig,
    TrainConfig,
    scale_recipe,
)
from flashjax.training.loop import Result, fit
from flashjax.training.mesh import MeshConfig
from flashjax.training.modes import dry_run, finish, run, session
from flashjax.training.optimizers import OptimizerConfig, ScheduleConfig
from flashjax.training.program import Program, evaluate

__all__ = [
    "CheckpointConfig",
    "Experiment",
    "MeshConfig",
    "Objective",
    "OptimizerConfig",
    "Pipeline",
    "Program",
    "Result",
    "RunConfig",
    "ScheduleConfig",
    "TrainConfig",
    "dry_run",
    "evaluate",
    "finish",
    "fit",
    "run",
    "scale_recipe",
    "session",
]
