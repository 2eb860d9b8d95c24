"""The page of a study of optimizers: two paths over a loss, tables of their steps, heat maps of a grid."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from flashjax.drawing import STYLE, heat_map, label, table, ticks
from flashjax.pages import write_page
from flashjax.recipes import optimizer_grid, optimizer_walk
from flashjax.recipes.optimizer_grid import Surface, power
from flashjax.recipes.optimizer_walk import ALGORITHMS, Step, Walk
from flashjax.studies.cells import Line

SIDE, MARGIN, EVERY = 420, 36, 20  # units of the drawing of the walk; steps between its points


@dataclass(frozen=True)
class Plane:
    """Where a point (x₁, x₂) is in a drawing of SIDE x SIDE whose axes have these ticks."""

    ticks: Sequence[float]

    @property
    def unit(self) -> float:
        return (SIDE - MARGIN) / (self.ticks[-1] - self.ticks[0])

    def at(self, x: Sequence[float] | np.ndarray) -> tuple[float, float]:
        across, up = (np.asarray(x) - self.ticks[0]) * self.unit
        return MARGIN + across, SIDE - MARGIN - up

    def names(self) -> str:
        """The numbers along both axes."""
        words = ((tick, label(tick, self.ticks)) for tick in self.ticks[1:-1])
        return "".join(
            f'<text x="{self.at((tick, 0))[0]:.1f}" y="{SIDE - 16}" text-anchor="middle">{name}</text>'
            f'<text x="{MARGIN - 6}" y="{self.at((0, tick))[1] + 4:.1f}" text-anchor="end">{name}</text>'
            for tick, name in words
        )

    def level(self, problem: Walk, loss: float) -> str:
        """The line of points with this loss."""
        (x, y), radii = self.at(problem.minimum), self.unit * np.sqrt(2 * loss / np.array(problem.curvatures))
        return (
            f'<ellipse class="level" cx="{x:.1f}" cy="{y:.1f}" rx="{radii[0]:.1f}" ry="{radii[1]:.1f}">'
            f"<title>loss {loss:.3g}</title></ellipse>"
        )

    def path(self, points: np.ndarray, words: str, color: str) -> str:
        """A way, with a point every EVERY steps."""
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.at, points))
        drawn = [f'<polyline class="{color}" points="{line}"/>']
        for t in range(0, len(points), EVERY):
            (x, y), (x1, x2) = self.at(points[t]), points[t]
            drawn.append(
                f'<circle class="{color}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">'
                f"<title>{words}, after {t} steps: ({x1:.3f}, {x2:.3f})</title></circle>"
            )
        return "".join(drawn)

    def mark(self, place: Sequence[float] | np.ndarray, words: str, above: int) -> str:
        """A cross with words over it, or under it."""
        x, y = self.at(place)
        return (
            f'<path class="cross" d="M{x - 4:.1f} {y:.1f}h8M{x:.1f} {y - 4:.1f}v8"/>'
            f'<g class="names"><text class="on" x="{x:.1f}" y="{y - above:.1f}" text-anchor="middle">{words}</text></g>'
        )


def paths(problem: Walk, walks: Mapping[str, Sequence[Step]]) -> str:
    """A figure of the ways of both over lines of equal loss, with the least of the loss and of the loss plus L2."""
    c, o = np.array(problem.curvatures), np.array(problem.minimum)
    coupled = c * o / (c + problem.weight_decay)
    points = {name: np.array([steps[0].x, *(step.after for step in steps)]) for name, steps in walks.items()}
    everything = np.concatenate([*points.values(), [o, coupled, (0, 0)]])
    low, high = float(everything.min()), float(everything.max())
    plane = Plane(ticks(low - 0.05 * (high - low), high + 0.05 * (high - low), 6))
    start = float((c * (np.array(problem.start) - o) ** 2).sum() / 2)
    drawn = [plane.level(problem, share * start) for share in (1, 0.5, 0.2, 0.06, 0.012)]
    drawn += [plane.path(way, ALGORITHMS[name], f"c{n}") for n, (name, way) in enumerate(points.items(), start=1)]
    drawn += [plane.mark(o, "least loss", 8), plane.mark(coupled, "least loss + L2", -24), plane.mark((0, 0), "0", 8)]
    legend = "".join(f'<span class="c{n}">{ALGORITHMS[name]}</span>' for n, name in enumerate(points, start=1))
    note = f"Lines of equal loss; a point every {EVERY} of {problem.steps} steps, from ({problem.start[0]:g}, "
    note += f"{problem.start[1]:g}). Across x₁, upwards x₂."
    clip = f'<clipPath id="plot"><rect x="{MARGIN}" y="0" width="{SIDE - MARGIN}" height="{SIDE - MARGIN}"/></clipPath>'
    return (
        f'<figure class="paths"><figcaption><h2>Two ways</h2><p class="legend">{legend}</p></figcaption>'
        f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="paths of both algorithms">{clip}'
        f'<g clip-path="url(#plot)">{"".join(drawn)}</g>{plane.names()}</svg><p class="note">{note}</p></figure>'
    )


def maps(found: Sequence[Surface], what: str, title: str) -> str:
    """Heat maps side by side on one scale: ``eval_error`` in percent, ``train_loss`` as the power of ten."""
    error = what == "eval_error"

    def shown(value: float | None) -> float | None:
        return None if value is None else 100 * value if error else math.log10(max(value, 1e-12))

    drawings = {surface.algorithm: [[shown(v) for v in row] for row in surface.means(what)] for surface in found}
    values = [v for rows in drawings.values() for row in rows for v in row if v is not None]
    least = min(values)
    most = min(max(values), 1.6 * least) if error else max(values)
    parts = []
    for surface in found:
        rows = drawings[surface.algorithm]
        best = set()
        for i, row in enumerate(rows):
            numbers = [v for v in row if v is not None]
            best |= {(i, j) for j, v in enumerate(row) if v is not None and v == min(numbers)}
        parts.append(
            heat_map(
                surface.words,
                [power(rate) for rate in surface.rates],
                [power(decay) for decay in surface.decays],
                rows,
                value_range=(most, least),
                form=".1f",
                marked=best if error else (),
            )
        )
    scale = f"full colour {least:.1f}, none from {most:.1f} on" if error else f"from {most:.1f} to {least:.1f}"
    note = "Rows: learning rate; columns: weight decay; means over the seeds; one scale for all: " + scale
    note += ". A rim: the best decay of a rate." if error else ". A decade a unit; an empty cell diverged."
    return f'<h2>{escape(title)}</h2><p class="note">{note}</p><section class="maps">{"".join(parts)}</section>'


def walk_parts(problem: Walk, walks: Mapping[str, Sequence[Step]]) -> list[str]:
    """The walk-through: picture, verdict and tables."""
    parts = [
        "<h2>Where the decay enters</h2>",
        f'<p class="note">{escape(optimizer_walk.verdict(problem, walks))}</p>',
        paths(problem, walks),
    ]
    for name, steps in walks.items():
        parts += [f"<h2>{ALGORITHMS[name]}, step by step</h2>", table(*optimizer_walk.cells(steps[: problem.shown]))]
    note = (
        "x₁, x₂: the parameters. “of it decay”: the part of the whole update that comes of the decay. In Adam with L2 "
        "it passes through m and is divided by √v^ with the gradient; in AdamW it is lr wd x."
    )
    return [*parts, f'<p class="note">{note}</p>']


def grid_parts(lines: Sequence[Line], facts: str) -> list[str]:
    """The grid: figures, verdicts and heat maps."""
    found = optimizer_grid.surfaces(lines)
    return [
        "<h2>Learning rate and weight decay</h2>",
        f'<p class="note">{escape(facts)}</p>',
        table(*optimizer_grid.table(found), words=(0, 5)),
        *(f'<p class="note">{escape(words)}</p>' for words in optimizer_grid.verdicts(found)),
        maps(found, "eval_error", "Error on held-out images, %"),
        maps(found, "train_loss", "Training loss, log10"),
    ]


def write(path: Path, parts: Sequence[str]) -> Path:
    """Writes the page."""
    return write_page(path, "Adam and AdamW", STYLE + _STYLE, ["<h1>Adam and AdamW</h1>", *parts])


_STYLE = """
figure.paths { max-width: 560px; margin: 0 0 24px; }
ellipse.level { fill: none; stroke: var(--muted); stroke-opacity: .45; }
path.cross { stroke: var(--ink); stroke-width: 1.5; }
.maps { grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr)); }
"""
