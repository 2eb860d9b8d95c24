"""What `python -m experiments.report DIR...` puts into one table."""

from dataclasses import dataclass
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Report:
    """Which runs, by which metric."""

    directories: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run directories, or directories with runs at any depth."""
    preset: str = "report"
    """Named preset; there is one."""
    metric: str = "eval_loss"
    """Of metrics.jsonl, by which runs are ranked."""
    direction: Literal["min", "max"] | None = None
    """Whether little or much is good; known of losses, errors, accuracies and their like."""
    at: Literal["last", "best"] = "last"
    """The value at a run's end, or the best it ever had (which flatters noisy runs)."""
    output: str = "runs/report"
    """Directory of runs.csv and figure.html."""


PRESETS = {"report": Report()}
