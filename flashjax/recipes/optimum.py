"""The best learning rate of a curve of losses, between the points of its grid."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Optimum:
    """Where a curve is least."""

    rate: float
    """log2 of the learning rate."""
    loss: float
    edge: bool
    """The best point is the first or last of the grid: the optimum may lie beyond it."""


def optimum(points: Sequence[tuple[float, float]]) -> Optimum:
    """The vertex of the parabola through the best of `points` (log2 rate, loss) and its neighbours, which are evenly
    spaced; at an edge the best point itself.

    Raises ValueError where there are no points.
    """
    if not points:
        raise ValueError("no training of this curve has a loss: every one diverged")
    ordered = sorted(points)
    best = min(range(len(ordered)), key=lambda i: ordered[i][1])
    x, y = ordered[best]
    if best in (0, len(ordered) - 1):
        return Optimum(x, y, True)
    (before, left), (after, right) = ordered[best - 1], ordered[best + 1]
    step, bend = (after - before) / 2, left - 2 * y + right
    if bend <= 0:
        return Optimum(x, y, False)
    shift = (left - right) / (2 * bend)
    return Optimum(x + shift * step, y - (left - right) ** 2 / (8 * bend), False)
