"""What a grid of learning rate x weight decay says of an optimizer: best cells, and whether one depends on the other.

A line of the log has algorithm, learning_rate, weight_decay and seed, and the figures of `MappedTraining`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flashjax.drawing import power
from flashjax.evaluation.statistics import Mean, Trend, mean, trend
from flashjax.studies.cells import Line

WORDS = {"adam_l2": "Adam with L2", "adamw": "AdamW, decay x rate", "adamw_paper": "AdamW, the paper's"}
"""Names of algorithms for readers; another one keeps its own."""


@dataclass(frozen=True)
class Surface:
    """All cells of one algorithm."""

    algorithm: str
    rates: tuple[float, ...]
    decays: tuple[float, ...]
    lines: Sequence[Line]

    @property
    def words(self) -> str:
        return WORDS.get(self.algorithm, self.algorithm)

    def at(self, rate: float, decay: float) -> list[Line]:
        """The seeds of a cell."""
        return [x for x in self.lines if (x["learning_rate"], x["weight_decay"]) == (rate, decay)]

    def means(self, what: str) -> list[list[float | None]]:
        """[rates][decays], over the seeds; None where a cell is missing or a seed has no number."""

        def cell(rate: float, decay: float) -> float | None:
            values = [line[what] for line in self.at(rate, decay)]
            return mean(values).value if values and None not in values else None

        return [[cell(rate, decay) for decay in self.decays] for rate in self.rates]

    @property
    def best(self) -> tuple[float, float]:
        """(rate, decay) of the least mean error."""
        errors = self.means("eval_error")
        places = [(i, j) for i, row in enumerate(errors) for j, value in enumerate(row) if value is not None]
        i, j = min(places, key=lambda place: errors[place[0]][place[1]] or 0.0)
        return self.rates[i], self.decays[j]

    def best_error(self) -> Mean:
        return mean([line["eval_error"] for line in self.at(*self.best)])

    def valley(self) -> list[tuple[float, float]]:
        """(log2 rate, log2 of the best decay) for each rate and seed; of decays that tie, the middle of their logs."""
        points = []
        for seed in sorted({line["seed"] for line in self.lines}):
            for rate in self.rates:
                row = [x for x in self.lines if x["seed"] == seed and x["learning_rate"] == rate]
                least = min((x["eval_error"] for x in row), default=None)
                ties = [math.log2(x["weight_decay"]) for x in row if x["eval_error"] == least]
                if ties:
                    points.append((math.log2(rate), sum(ties) / len(ties)))
        return points

    def trend(self) -> Trend | None:
        """How the log of the best decay goes with the log of the rate; None for too few cells."""
        points = self.valley()
        if len(points) < 4 or len(self.rates) < 2:
            return None
        return trend([rate for rate, _ in points], [decay for _, decay in points])

    def at_the_edge(self) -> int:
        """For how many rates the least mean error is at the least or the greatest decay."""
        rows = [[math.inf if value is None else value for value in row] for row in self.means("eval_error")]
        return sum(min(row) in (row[0], row[-1]) for row in rows)


def surfaces(lines: Sequence[Line]) -> list[Surface]:
    """The algorithms of a log, in the order of their first lines."""
    found = []
    for name in dict.fromkeys(line["algorithm"] for line in lines):
        own = [line for line in lines if line["algorithm"] == name]
        rates, decays = (tuple(sorted({line[axis] for line in own})) for axis in ("learning_rate", "weight_decay"))
        found.append(Surface(name, rates, decays, own))
    return found


def difference(one: Surface, other: Surface) -> Mean | None:
    """Error of ``one`` minus that of ``other``, each in its best cell, by seed; None where they share no seed."""
    errors = [{line["seed"]: line["eval_error"] for line in surface.at(*surface.best)} for surface in (one, other)]
    shared = errors[0].keys() & errors[1].keys()
    return mean([errors[0][seed] - errors[1][seed] for seed in sorted(shared)]) if shared else None


def table(found: Sequence[Surface]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): the best cell of each, and how its decay goes with the rate."""
    heads = ["algorithm", "best error", "at rate", "at decay", "train loss", "log of best decay over log of rate"]
    heads.append("best at an edge")
    rows = []
    for surface in found:
        (rate, decay), error, line = surface.best, surface.best_error(), surface.trend()
        losses = [x["train_loss"] for x in surface.at(rate, decay)]
        percent = Mean(100 * error.value, None if error.half is None else 100 * error.half, error.n)
        rows.append(
            [
                surface.words,
                f"{percent.words('.2f')} %",
                power(rate),
                power(decay),
                "n/a" if None in losses else f"{mean(losses).value:.2g}",
                "n/a" if line is None else line.words(),
                f"{surface.at_the_edge()} of {len(surface.rates)} rates",
            ]
        )
    return heads, rows


def verdicts(found: Sequence[Surface]) -> list[str]:
    """What the paper claims, and whether these figures show it, as sentences."""
    said = []
    for surface in found:
        line = surface.trend()
        if line is not None:
            slope, low, high = line.slope
            way = "does not move with the rate" if low <= 0 <= high else "falls" if slope < 0 else "rises"
            with_rate = "" if low <= 0 <= high else f" by a factor of {2 ** abs(slope):.2f} where the rate doubles"
            said.append(f"{surface.words}: the best decay {way}{with_rate} (slope {low:+.2f} to {high:+.2f}).")
    coupled = next((surface for surface in found if surface.algorithm == "adam_l2"), None)
    for surface in found:
        if coupled is not None and surface.algorithm in ("adamw", "adamw_paper"):
            said += [*_separability(surface, coupled), *_gain(surface, coupled)]
    return said


def _separability(apart: Surface, coupled: Surface) -> list[str]:
    line, other = apart.trend(), coupled.trend()
    if line is None or other is None:
        return []
    moves, tilted = (not x.slope[1] <= 0 <= x.slope[2] for x in (line, other))
    seen = "is seen" if tilted and not moves else "is not seen"
    return [
        f"Separability (one decay that is best at every rate for AdamW, none such for L2) {seen} here for "
        f"{apart.words}: slope {line.slope[0]:+.2f} against {other.slope[0]:+.2f} of {coupled.words}."
    ]


def _gain(apart: Surface, coupled: Surface) -> list[str]:
    gap = difference(apart, coupled)
    if gap is None:
        return []
    reach = "" if gap.half is None else f" ± {100 * gap.half:.2f}"
    doubt = "" if gap.half is not None and abs(gap.value) > gap.half else ", which these seeds do not tell from 0"
    return [
        f"Best cells: the error of {apart.words} is {100 * abs(gap.value):.2f}{reach} points "
        f"({abs(gap.value) / coupled.best_error().value:.0%} of it) {'below' if gap.value < 0 else 'above'} that of "
        f"{coupled.words}{doubt}."
    ]
