"""A table of runs for the terminal, as CSV and as a page with learning curves."""

import csv
from collections.abc import Sequence
from html import escape
from pathlib import Path

from flashjax.drawing import COLORS, STYLE, line_chart, table
from flashjax.evaluation.statistics import Mean
from flashjax.pages import write_page
from flashjax.recipes.runs import Row, curve, short_names, shown


def cells(rows: Sequence[Row], metric: str) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): the settings that differ, runs, mean and interval of the metric, its range, the step."""
    names = short_names([row.group for row in rows])
    heads = [*(names.values() or ["runs"]), "seeds", metric, "95 % interval", "least", "most", "at step"]
    body = []
    for row in rows:
        found = row.mean
        steps = sorted(set(row.steps))
        interval = "n/a" if found.half is None else f"{found.value - found.half:.5g} to {found.value + found.half:.5g}"
        body.append(
            [
                *([shown(row.group.settings[name]) for name in names] or ["all"]),
                str(found.n),
                f"{found.value:.5g}",
                interval,
                f"{min(row.values):.5g}",
                f"{max(row.values):.5g}",
                f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}",
            ]
        )
    return heads, body


def best(rows: Sequence[Row], metric: str, way: str) -> str:
    """The first row as a sentence, with what cannot be said."""
    first, names = rows[0], short_names([row.group for row in rows])
    words = f"Best mean {metric} ({'least' if way == 'min' else 'most'}): {first.mean.words('.5g')}, "
    words += f"{first.group.words(names)} (n = {first.mean.n})."
    if len(rows) > 1 and _overlap(first.mean, rows[1].mean):
        words += " Its interval meets that of the next one: which of the two is better is not told by these seeds."
    if any(row.mean.half is None for row in rows):
        words += " Where n is 1, or a value is not finite, there is no interval."
    return words


def _overlap(one: Mean, other: Mean) -> bool:
    if one.half is None or other.half is None:
        return False
    return abs(one.value - other.value) <= one.half + other.half


def charts(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """A learning curve of each of these metrics: means with their intervals as bands, the best groups."""
    names, drawn = short_names([row.group for row in rows]), []
    for metric in metrics:
        curves, bands = {}, {}
        for row in rows[:COLORS]:
            found = curve(row.group, metric)
            if found:
                words = row.group.words(names)
                curves[words] = [(float(step), m.value) for step, m in found]
                bands[words] = [(s, m.value - m.half, m.value + m.half) for s, m in found if m.half is not None]
        if curves:
            note = f"the {COLORS} best of {len(rows)} groups" if len(rows) > COLORS else ""
            drawn.append(line_chart(metric, curves, "step", bands=bands, note=note))
    return f'<section class="charts">{"".join(drawn)}</section>' if drawn else ""


def write(path: Path, rows: Sequence[Row], metric: str, way: str, notes: Sequence[str]) -> Path:
    """Writes the page: what is best, the table, curves of the metric and of the training loss."""
    metrics = dict.fromkeys([metric, "loss"])
    parts = ["<h1>Runs</h1>", f'<p class="note">{escape(best(rows, metric, way))}</p>']
    settings = range(max(len(rows[0].group.settings), 1))
    parts += [table(*cells(rows, metric), words=tuple(settings)), charts(rows, list(metrics))]
    parts.append(
        '<p class="note">Intervals and bands: 95 %, Student\'s t over the n seeds of a group, which supposes that they '
        "are independent and about normal; of two or three seeds it is wide.</p>"
    )
    return write_page(path, "Runs", STYLE, [*parts, *(f'<p class="note">{escape(note)}</p>' for note in notes)])


def write_csv(path: Path, rows: Sequence[Row], metric: str) -> Path:
    """A row a run, best group first: settings that differ, seed, value, step, mean and half interval of its group."""
    names = list(rows[0].group.settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "seed", metric, "step", "group_mean", "group_half_interval", "group_n", "run"])
        for row in rows:
            for run, value, step in zip(row.group.runs, row.values, row.steps, strict=True):
                own = [shown(row.group.settings[name]) for name in names]
                half = "" if row.mean.half is None else row.mean.half
                writer.writerow([*own, run.seed, value, step, row.mean.value, half, row.mean.n, run.path])
    return path
