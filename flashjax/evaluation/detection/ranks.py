"""The order of detections: by class and falling score."""

from typing import NamedTuple

import numpy as np

from flashjax.evaluation.detection.accumulate import class_offsets
from flashjax.evaluation.detection.overlaps import stable_order
from flashjax.evaluation.detection.ragged import pieces

Array = np.ndarray
RANKED = 1 << 17
"""Detections of small classes that are ordered at a time, in the processor's cache."""


class Grouped(NamedTuple):
    """Detections that may count, by image, class and falling score, equal ones as in the file.

    Attributes:
        rows: int64 [P], row of each in the table of detections.
        label: int32 [P], its class.
        rank: int32 [P], its place among the detections of its image and class, from 0.
        group: int32 [P], number of its image and class, rising.
        scores: float64 [P].
        outside: bool [A, P], whether it does not count if it finds nothing, for each range of areas.
    """

    rows: Array
    label: Array
    rank: Array
    group: Array
    scores: Array
    outside: Array

    @staticmethod
    def empty(count: int, areas: int) -> "Grouped":
        """Room for ``count`` detections."""
        label, rank, group = (np.empty(count, np.int32) for _ in range(3))
        return Grouped(np.empty(count, np.int64), label, rank, group, np.empty(count), np.empty((areas, count), bool))

    def put(self, start: int, part: "Grouped") -> None:
        """Writes ``part`` from ``start`` on."""
        for mine, values in zip(self, part, strict=True):
            mine[..., start : start + len(part.rows)] = values

    def first(self, count: int) -> "Grouped":
        """The first ``count`` detections."""
        return Grouped(*(column[..., :count] for column in self))


def rank_by_class(
    label: Array, scores: Array, classes: int, *columns: Array
) -> tuple[Array, Array, Array, list[Array]]:
    """Detections by class and falling score, equal scores in their order.

    A few classes at a time: what is read and written then lies close together, and time grows with the detections.

    Returns:
        (where each class begins, int64 [K + 1]; place of each detection, int64 [P]; scores by place; columns by place,
        of which P is the last dim).
    """
    by_class, starts = stable_order(label, classes), class_offsets(label, classes)
    places, ranked = np.empty(len(by_class), np.int64), [np.empty_like(column) for column in (scores, *columns)]
    for some in pieces(np.diff(starts), RANKED):
        first, last = int(starts[some.start]), int(starts[some.stop])
        rows = by_class[first:last]
        order = falling_order(scores.take(rows))
        if some.stop - some.start > 1:
            of = label.take(rows.take(order)) - some.start
            order = order.take(stable_order(of, some.stop - some.start))
        places[rows.take(order)] = np.arange(first, last)
        for column, out in zip((scores, *columns), ranked, strict=True):
            out[..., first:last] = column.take(rows, -1).take(order, -1)
    return starts, places, ranked[0], ranked[1:]


def falling_order(scores: Array) -> Array:
    """Stable argsort of -scores. Networks speak float32: its bits and the place in one integer are sorted without an
    argsort; where scores are finer than that, a comparing sort."""
    bits = (scores + 0.0).astype(np.float32).view(np.uint32)  # + 0.0: one zero
    falling = np.where(bits >> 31, bits, ~(bits | np.uint32(1 << 31)))
    key = falling.astype(np.uint64) << np.uint64(32) | np.arange(len(scores), dtype=np.uint64)
    key.sort()
    order = (key & np.uint64(0xFFFFFFFF)).astype(np.int64)
    ordered = scores.take(order)
    if (ordered[1:] <= ordered[:-1]).all():
        return order
    return np.argsort(-scores, kind="stable")
