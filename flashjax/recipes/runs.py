"""Finished and unfinished runs as rows of one table: grouped by the settings that differ, seeds together."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flashjax.evaluation.statistics import Mean, mean
from flashjax.training.rundir import flat, is_free
from flashjax.training.writers import read_json_lines
from flashjax.words import nearest

LOWER = ("loss", "error", "perplexity", "bits_per_byte", "seconds", "time", "fid", "norm")
HIGHER = ("accuracy", "top1", "top5", "ap", "ap50", "ap75", "map", "iou", "psnr", "ssim", "per_second", "mfu")
"""How the names of metrics end whose direction is known."""


@dataclass(frozen=True)
class Run:
    """One run directory."""

    path: str
    settings: Mapping[str, Any]
    """By dotted name, without the seed and what does not change the figures (`FREE_FIELDS`); 'launcher' among them."""
    seed: Any
    metrics: Sequence[Mapping[str, Any]]
    """The lines of metrics.jsonl."""

    def points(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of the lines that have the metric, the last line of a step counting."""
        found = {
            line["step"]: float(line[metric]) for line in self.metrics if isinstance(line.get(metric), int | float)
        }
        return sorted(found.items())


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    settings: Mapping[str, Any]
    """Of those that differ between groups."""
    runs: Sequence[Run]

    def words(self, names: Mapping[str, str]) -> str:
        """Its settings in short, as a legend has them."""
        return ", ".join(f"{short} {shown(self.settings[name])}" for name, short in names.items()) or "all runs"


def find(directories: Sequence[str | Path]) -> list[Path]:
    """The run directories at and below these, sorted, each once.

    Raises:
        ValueError: naming a directory in which there is none.
    """
    found: dict[Path, None] = {}
    for directory in directories:
        below = sorted(path.parent for path in Path(directory).rglob("config.json") if _is_run(path.parent))
        if not below:
            raise ValueError(f"no run in {directory}: no config.json with a metrics.jsonl beside it, there or below")
        found |= dict.fromkeys(below)
    return list(found)


def _is_run(path: Path) -> bool:
    return (path / "metrics.jsonl").is_file()


def read(path: Path) -> Run:
    """A run; the last line of its metrics may be half written.

    Raises:
        ValueError: if config.json is none of a run, or a line is none of metrics.
    """
    try:
        facts = json.loads((path / "config.json").read_text())
        settings = {"launcher": facts["name"], **flat(facts["config"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / 'config.json'} is no config of a run: {error or type(error).__name__}") from None
    seed = settings.pop("seed", None)
    kept = {name: value for name, value in settings.items() if not is_free(name)}
    return Run(str(path), kept, seed, read_json_lines(path / "metrics.jsonl"))


def direction(metric: str, given: Literal["min", "max"] | None = None) -> Literal["min", "max"]:
    """Whether little or much is good.

    Raises:
        ValueError: for a name that says neither, unless it is given.
    """
    if given is not None:
        return given

    def ends_in(names: Sequence[str]) -> bool:
        return any(metric == name or metric.endswith(f"_{name}") for name in names)

    if ends_in(LOWER):
        return "min"
    if ends_in(HIGHER):
        return "max"
    raise ValueError(f"whether a low or a high {metric!r} is good is not known: say --direction min or --direction max")


def with_metric(runs: Sequence[Run], metric: str) -> tuple[list[Run], list[str]]:
    """(runs that have the metric, sentences about the others).

    Raises:
        ValueError: if none has it, with the names that there are.
    """
    have = [run for run in runs if run.points(metric)]
    if not have:
        names = sorted({name for run in runs for line in run.metrics for name in line} - {"step"})
        near = nearest(metric, names, count=1, cutoff=0.6)
        hint = f"; nearest: {near}" if near else ""
        raise ValueError(
            f"no run has the metric {metric!r}{hint}. There are: {', '.join(names) or 'no metrics at all'}"
        )
    others = [run for run in runs if not run.points(metric)]
    return have, [f"{run.path} is left out: no {metric} in its {len(run.metrics)} lines of metrics" for run in others]


def without_twins(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """(runs, sentences about those that repeat the settings and the seed of an earlier one): the same draw twice."""
    kept: dict[str, Run] = {}
    notes = []
    for run in runs:
        first = kept.setdefault(json.dumps([run.settings, run.seed], sort_keys=True), run)
        if first is not run:
            notes.append(f"{run.path} is left out: it has the settings and the seed of {first.path}")
    return list(kept.values()), notes


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs by their settings, in the order of the first of each."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if len({json.dumps(run.settings.get(name)) for run in runs}) > 1]
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps([run.settings.get(name) for name in differing]), []).append(run)
    return [Group({name: same[0].settings.get(name) for name in differing}, same) for same in found.values()]


def short_names(groups: Sequence[Group]) -> dict[str, str]:
    """The names of the settings that differ, each without the part that nothing needs to tell it from others."""
    names, short = list(groups[0].settings), {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[i:]) for i in reversed(range(len(parts)))]
        alone = [end for end in ends if sum(f".{other}".endswith(f".{end}") for other in names) == 1]
        short[name] = (alone or [name])[0]
    return short


def shown(value: Any) -> str:
    """A setting for a table."""
    if isinstance(value, list):
        return " ".join(map(shown, value)) or "none"
    return "none" if value is None or value == "" else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Row:
    """A group with its figures."""

    group: Group
    values: Sequence[float]
    """Of the metric, one a run."""
    steps: Sequence[int]
    """At which they were measured."""

    @property
    def mean(self) -> Mean:
        return mean(self.values)


def ranked(groups: Sequence[Group], metric: str, way: Literal["min", "max"], at: Literal["last", "best"]) -> list[Row]:
    """The groups with the metric's value of each run at its end or at its best, best mean first, NaN last."""
    better: Callable[..., Any] = min if way == "min" else max
    rows = []
    for group in groups:
        ends = []
        for run in group.runs:
            points = run.points(metric)
            finite = [point for point in points if not math.isnan(point[1])]
            ends.append(better(finite, key=lambda point: point[1]) if at == "best" and finite else points[-1])
        rows.append(Row(group, [value for _, value in ends], [step for step, _ in ends]))
    sign = 1 if way == "min" else -1
    return sorted(rows, key=lambda row: (math.isnan(row.mean.value), sign * row.mean.value))


def curve(group: Group, metric: str) -> list[tuple[int, Mean]]:
    """The mean of the runs at each step at which all of them have a finite value."""
    values = [{step: value for step, value in run.points(metric) if math.isfinite(value)} for run in group.runs]
    steps = sorted(set.intersection(*map(set, values)))
    return [(step, mean([found[step] for found in values])) for step in steps]
