"""Studies of Random Erasing: the cells of a table or a sweep, and what is drawn of their log."""

import dataclasses
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax

from flashjax import drawing, models, pages
from flashjax.data import DataConfig
from flashjax.data.augment.erasing import RandomErasing
from flashjax.models.resnet import ResNetConfig
from flashjax.studies import study
from flashjax.studies.cells import Line
from flashjax.training import Experiment, Result
from flashjax.training.rundir import flat, is_free
from flashjax.training.writers import read_json_lines

RANGE = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of a sweep."""
NAMES = {"probability": "probability", "area": "largest erased share", "aspect": "least aspect"}
AXES = ("seed", "seeds", "models", "sweep", "values", "redraw", "dataset")
"""Fields of a study that its cells say themselves."""


def network(name: str, width: float, data: DataConfig) -> ResNetConfig:
    """The named residual network with `width` times its channels (rounded), for images as `data` has them.

    Raises ValueError for another kind of model, and for an unknown name.
    """
    classes = 100 if data.dataset.startswith("cifar100") else 10
    made = models.config(name)
    if not isinstance(made, ResNetConfig):
        raise ValueError(
            f"{name} is no residual network; known: wrn_28_10, {', '.join(models.names('*resne*_cifar*'))}"
        )
    return dataclasses.replace(
        made,
        num_classes=classes,
        in_chans=data.channels,
        widths=tuple(max(1, round(channels * width)) for channels in made.widths),
        stem_width=max(1, round(made.stem_width * width)),
    )


def cells(config: Any) -> list[study.Cell]:
    """(settings, model, sweep, value, seed) of every run; of a table the value is the probability, 0 or not."""
    values = config.values or RANGE
    if config.sweep == "table":
        values = (0.0, config.erasing.prob)
    kept = {name: v for name, v in flat(dataclasses.asdict(config)).items() if not is_free(name) and name not in AXES}
    settings = [study.digest(kept)]
    return study.grid(settings=settings, model=config.models, sweep=[config.sweep], value=values, seed=config.seeds)


def erasing(base: RandomErasing, cell: study.Cell, channels: int) -> RandomErasing:
    """What is erased in a cell; a value of three channels becomes its first for images of one."""
    value = cell["value"]
    match cell["sweep"]:
        case "area":
            changed: dict[str, Any] = {"area": (min(base.area[0], value), value)}
        case "aspect":
            changed = {"aspect": (value, 1 / value)}
        case _:
            changed = {"prob": value}
    if isinstance(base.value, tuple) and len(base.value) > channels:
        changed["value"] = base.value[:channels]
    return dataclasses.replace(base, **changed)


def figures(built: Experiment, result: Result, seconds: float) -> dict[str, Any]:
    """What the log holds of a finished run: errors in per cent, and [epoch, error] of each evaluation.

    None is called "error": to a log of cells that is a cell which failed.
    """
    log = read_json_lines(result.workdir / "metrics.jsonl")
    # A run that was killed may have measured a step twice: the last counts.
    errors = {line["step"]: 100 * (1 - line["eval_top1"]) for line in log if "eval_top1" in line}
    epoch = built.train_data.steps_per_epoch
    return {
        "test_error": errors[result.step],
        "best_error": min(errors.values()),
        "seconds": seconds,
        "parameters": sum(x.size for x in jax.tree.leaves(result.state.params)),
        "dataset": built.facts["dataset"],
        "epochs": result.step / epoch,
        "curve": [[step / epoch, error] for step, error in errors.items()],
    }


def told(line: Line) -> str:
    """A cell in words."""
    return (
        f"{line['model']:28} {line['sweep']} {line['value']:g}  seed {line['seed']}  "
        f"error {line['test_error']:.2f} % (best {line['best_error']:.2f})  {line['seconds']:.0f} s"
    )


def mean_and_deviation(lines: Sequence[Line], figure: str = "test_error") -> str:
    """'7.21 ± 0.17 (5)': mean, standard deviation of a run (n - 1), runs."""
    values = [line[figure] for line in lines]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread} ({len(values)})"


def rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """(heads, a row for each model): the paper's table; of a sweep, a column for each value."""
    values = sorted({line["value"] for line in lines})
    table = lines[0]["sweep"] == "table"
    heads = ["model", *(_named(lines[0]["sweep"], value) for value in values)]
    made = []
    for model in dict.fromkeys(line["model"] for line in lines):
        found = [[line for line in lines if (line["model"], line["value"]) == (model, v)] for v in values]
        means = [statistics.mean(line["test_error"] for line in group) if group else None for group in found]
        row = [model, *(mean_and_deviation(group) if group else "not run" for group in found)]
        if table and len(means) == 2:
            without, erased = means
            row.append("" if without is None or erased is None else f"{erased - without:+.2f}")
        made.append(row)
    return [*heads, *(["difference"] if table and len(values) == 2 else [])], made


def write(where: Path, lines: Sequence[Line]) -> tuple[str, list[Path]]:
    """(the table as text, [cells.csv, page.html]): a line for each cell; table and curves."""
    heads, body = rows(lines)
    sweep = lines[0]["sweep"]
    title = "Random Erasing" + ("" if sweep == "table" else f" by {NAMES[sweep]}")
    sheet = study.write_csv(where / "cells.csv", lines, without=("curve",))
    what = f"{lines[0]['dataset']}, {lines[0]['epochs']:g} epochs"
    intro = f"{what}. Top-1 error in per cent on the test set after the last: mean ± standard deviation (runs)."
    figure = f'<div class="charts">{"".join(charts(lines))}</div>'
    parts = [f"<h1>{title}</h1>", f"<p>{escape(intro)}</p>", drawing.table(heads, body), figure]
    page = pages.write_page(where / "page.html", title, drawing.STYLE, parts)
    return "\n".join([intro, "", drawing.text_table(heads, body)]), [sheet, page]


def charts(lines: Sequence[Line]) -> list[str]:
    """Error by epoch, mean over seeds, for each model; of a sweep also by value."""
    made, sweep = [], lines[0]["sweep"]
    names = list(dict.fromkeys(line["model"] for line in lines))
    values = sorted({line["value"] for line in lines})
    if sweep != "table":
        curves = {}
        for model in names:
            groups = {v: [x["test_error"] for x in lines if (x["model"], x["value"]) == (model, v)] for v in values}
            curves[model] = [(v, statistics.mean(errors)) for v, errors in groups.items() if errors]
        made.append(drawing.line_chart(f"Error by {NAMES[sweep]}", curves, NAMES[sweep]))
    for model in names:
        curves = {}
        for value in values:
            found = [line["curve"] for line in lines if (line["model"], line["value"]) == (model, value)]
            curves[_named(sweep, value)] = _mean_curve(found)
        curves = {words: points for words, points in curves.items() if points}
        made.append(drawing.line_chart(f"{model}: test error, %", curves, "epoch"))
    return made


def _named(sweep: str, value: float) -> str:
    """A value of a sweep, or a side of the table, in words."""
    return f"{value:g}" if sweep != "table" else "with erasing" if value else "baseline"


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[drawing.Point]:
    """The mean of [x, y] curves where all of them have a point."""
    found: dict[float, list[float]] = {}
    for x, y in (point for curve in curves for point in curve):
        found.setdefault(x, []).append(y)
    return [(x, statistics.mean(ys)) for x, ys in found.items() if len(ys) == len(curves)]
