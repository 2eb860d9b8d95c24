"""The order of detections: by class and falling score."""

from dataclasses import dataclass, fields

import numpy as np

from flashjax.evaluation.detection.accumulate import class_offsets
from flashjax.evaluation.detection.overlaps import stable_order
from flashjax.evaluation.detection.ragged import pieces

Array = np.ndarray
RANKED = 1 << 18
"""Detections of small classes that are ordered at a time, in the processor's cache."""


@dataclass(frozen=True)
class Grouped:
    """Detections that may count, by image, class and falling score, equal ones as in the file.

    Attributes:
        rows: int64 [P], row of each in the table of detections.
        label: int32 [P], its class.
        rank: int32 [P], its place among the detections of its image and class, from 0.
        group: int32 [P], number of its image and class, rising.
        scores, areas: float64 [P].
    """

    rows: Array
    label: Array
    rank: Array
    group: Array
    scores: Array
    areas: Array

    @staticmethod
    def empty(count: int) -> "Grouped":
        """Room for ``count`` detections."""
        whole, half, real = np.int64, np.int32, np.float64
        return Grouped(*(np.empty(count, kind) for kind in (whole, half, half, half, real, real)))

    def put(self, start: int, part: "Grouped") -> None:
        """Writes ``part`` from ``start`` on."""
        for column in fields(self):
            values = getattr(part, column.name)
            getattr(self, column.name)[start : start + len(values)] = values

    def first(self, count: int) -> "Grouped":
        """The first ``count`` detections."""
        return Grouped(*(getattr(self, column.name)[:count] for column in fields(self)))

    def take(self, rows: Array) -> "Grouped":
        """Those of these rows."""
        return Grouped(*(getattr(self, column.name).take(rows) for column in fields(self)))


def rank_by_class(grouped: Grouped, classes: int) -> tuple[Array, Array, Grouped]:
    """Detections by class and falling score, equal scores in their order.

    A few classes at a time: what is read and written then lies close together, and time grows with the detections.

    Returns:
        (where each class begins, int64 [K + 1]; place of each detection, int64 [P]; the detections by place).
    """
    by_class, starts = stable_order(grouped.label, classes), class_offsets(grouped.label, classes)
    places, ranked = np.empty(len(by_class), np.int64), Grouped.empty(len(by_class))
    for some in pieces(np.diff(starts), RANKED):
        first, last = int(starts[some.start]), int(starts[some.stop])
        rows = by_class[first:last]
        part = grouped.take(rows)
        order = falling_order(part.scores)
        number = some.stop - some.start
        if number > 1:
            order = order[stable_order(part.label[order] - some.start, number)]
        places[rows[order]] = np.arange(first, last)
        ranked.put(first, part.take(order))
    return starts, places, ranked


def falling_order(scores: Array) -> Array:
    """Stable argsort of -scores. Networks speak float32: its bits and the place in one integer are sorted without an
    argsort; where scores are finer than that, a comparing sort."""
    bits = (scores + 0.0).astype(np.float32).view(np.uint32)  # + 0.0: one zero
    falling = np.where(bits >> 31, bits, ~(bits | np.uint32(1 << 31)))
    key = falling.astype(np.uint64) << np.uint64(32) | np.arange(len(scores), dtype=np.uint64)
    key.sort()
    order = (key & np.uint64(0xFFFFFFFF)).astype(np.int64)
    ordered = scores[order]
    if (ordered[1:] <= ordered[:-1]).all():
        return order
    return np.argsort(-scores, kind="stable")
