"""Precision against recall: all curves of an evaluation, computed when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from flashjax.evaluation.detection.accumulate import Precision, Ranking, precision_of

Array = np.ndarray


@dataclass(frozen=True)
class Curve:
    """Precision against recall of one class, a point for each detection that counts, by falling score.

    Attributes:
        recall, precision, scores: float64 [P].
        envelope: float64 [P], the best precision at this recall or more.
        true: bool [P], whether the detection is right.
        detections: int64 [P], their rows.
        positives: Ground truths that count.
        average_precision: As the protocol reads it; -1 without ground truth.
    """

    recall: Array
    precision: Array
    scores: Array
    envelope: Array
    true: Array
    detections: Array
    positives: int
    average_precision: float


@dataclass(frozen=True)
class Curves:
    """All curves of an evaluation.

    Attributes:
        iou_thresholds: float64 [T].
        recall_thresholds: float64 [R], where precision is read; None where the area is taken.
        categories: names [K]; one name, "all", where classes are joined.
        areas: labels [A].
        max_detections: limits [M], None for no limit.
        recall: float64 [T, K, A, M], the last; -1 without ground truth.
        precision: float64 [T, R, K, A, M], the envelope at the recall thresholds; -1 without ground truth. None where
            the area is taken.
        scores: float64 [T, R, K, A, M], the score at which that recall is reached.
        average: float64 [T, K, A, M], average precision.
    """

    iou_thresholds: Array
    recall_thresholds: Array | None
    categories: tuple[str, ...]
    areas: tuple[str, ...]
    max_detections: tuple[int | None, ...]
    recall: Array
    _ranking: Ranking = field(repr=False)
    _eps: float = 0.0
    _known: dict[int, Precision] = field(default_factory=dict, repr=False)

    def at(self, m: int) -> Precision:
        """Precision at limit number ``m``, computed when it is first asked for."""
        if m not in self._known:
            recalls = None if self.recall_thresholds is None else self.recall_thresholds.tolist()
            limit = self.max_detections[m]
            self._known[m] = precision_of(self._ranking, len(self.iou_thresholds), recalls, limit, self._eps)
        return self._known[m]

    @cached_property
    def precision(self) -> Array | None:
        return self._all("precision")

    @cached_property
    def scores(self) -> Array | None:
        return self._all("scores")

    @cached_property
    def average(self) -> Array:
        average = self._all("average")
        assert average is not None
        return average

    def _all(self, what: str) -> Array | None:
        parts = [getattr(self.at(m), what) for m in range(len(self.max_detections))]
        return None if parts[0] is None else np.stack(parts, -1)

    def of(
        self, category: int | str, iou: float | None = None, area: str | None = None, limit: int | None = None
    ) -> Curve:
        """The whole curve of one class.

        Args:
            category: Its place among `categories`, or its name.
            iou: One of the thresholds; None: the first.
            area: One of the labels; None: the first.
            limit: One of the limits; None: the last.
        """
        k = place_of(category, self.categories, "category")
        t = threshold_of(iou, self.iou_thresholds)
        a = 0 if area is None else place_of(area, self.areas, "area")
        m = len(self.max_detections) - 1 if limit is None else place_of(limit, self.max_detections, "limit")
        ranking = self._ranking
        span = slice(int(ranking.starts[k]), int(ranking.starts[k + 1]))
        true, false, _ = (v[span] for v in ranking.states(a, t))
        counts = true | false
        most = self.max_detections[m]
        if most is not None:
            counts &= ranking.rank[span] < most
        true = true[counts]
        positives = int(ranking.positives[a, k])
        hits = np.cumsum(true)
        precision = hits / (np.arange(1, len(hits) + 1) + self._eps)
        return Curve(
            hits / max(positives, 1),
            precision,
            ranking.scores[span][counts],
            np.maximum.accumulate(precision[::-1])[::-1],
            true,
            ranking.rows[span][counts],
            positives,
            float(self.at(m).average[t, k, a]),
        )


def place_of(value: Any, among: Sequence[Any], what: str) -> int:
    if value in among:
        return list(among).index(value)
    if isinstance(value, int | np.integer) and what == "category" and 0 <= value < len(among):
        return int(value)
    raise ValueError(f"{what} {value!r} is none of {', '.join(map(str, among))}")


def threshold_of(iou: float | None, thresholds: Array) -> int:
    if iou is None:
        return 0
    near = np.flatnonzero(np.abs(thresholds - iou) < 1e-9)
    if not len(near):
        raise ValueError(f"IoU {iou} is none of the thresholds {', '.join(f'{t:g}' for t in thresholds)}")
    return int(near[0])
