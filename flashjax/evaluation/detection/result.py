"""What came out: the official numbers, and everything behind them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from flashjax.evaluation.detection.compare import Comparison
from flashjax.evaluation.detection.curves import Curves, place_of, threshold_of
from flashjax.evaluation.detection.protocols import Protocol
from flashjax.evaluation.detection.summary import mean_of

Array = np.ndarray


@dataclass(frozen=True)
class Matches:
    """Every detection and every ground truth at one threshold and range of areas, so that each error can be seen.

    Rows of detections are the places 0 .. D - 1 that count at all (the highest scores of each image and class), by
    class and falling score; rows of ground truths are all of them, by image and class.

    Attributes:
        iou, area: Threshold and label.
        image_ids, category_ids: Of the detections.
        detection_ids: Position in the file from 1 on, or the id they came with.
        detection_rows: Position in the file from 0 on.
        scores: float64 [D].
        true_positive, false_positive: bool [D]; neither: ignored.
        ground_truth_ids: int64 [D], what a detection found; -1 for nothing (see `found`).
        found: int64 [D], row of the ground truth it found, -1 for nothing.
        overlaps: float64 [D], with what it found; NaN for nothing.
        missed: bool [N], ground truths that count and were not found.
        truth_ids, truth_image_ids, truth_category_ids: Of the ground truths.
        truth_ignored: bool [N].
    """

    iou: float
    area: str
    image_ids: Array
    category_ids: Array
    detection_ids: Array
    detection_rows: Array
    scores: Array
    true_positive: Array
    false_positive: Array
    ground_truth_ids: Array
    found: Array
    overlaps: Array
    missed: Array
    truth_ids: Array
    truth_image_ids: Array
    truth_category_ids: Array
    truth_ignored: Array

    def counts(self) -> dict[str, int]:
        """How many true positives, false positives, false negatives, and ignored detections."""
        right, wrong = int(self.true_positive.sum()), int(self.false_positive.sum())
        return {"tp": right, "fp": wrong, "fn": int(self.missed.sum()), "ignored": len(self.scores) - right - wrong}

    def errors(self) -> Iterator[dict[str, Any]]:
        """Every false positive and false negative with its ids, by image."""
        wrong, missed = np.flatnonzero(self.false_positive), np.flatnonzero(self.missed)
        for i in wrong[np.argsort(self.image_ids[wrong], kind="stable")].tolist():
            yield {
                "kind": "fp",
                "image_id": self.image_ids[i].item(),
                "category_id": self.category_ids[i].item(),
                "detection_id": int(self.detection_ids[i]),
                "score": float(self.scores[i]),
            }
        for i in missed[np.argsort(self.truth_image_ids[missed], kind="stable")].tolist():
            yield {
                "kind": "fn",
                "image_id": self.truth_image_ids[i].item(),
                "category_id": self.truth_category_ids[i].item(),
                "ground_truth_id": int(self.truth_ids[i]),
            }


@dataclass(frozen=True)
class ClassResult:
    """One class.

    Attributes:
        id, name: Of the category.
        ap: Mean over thresholds, all areas, the last limit; -1 without ground truth.
        ap_by_iou: By threshold.
        ap_by_area: By label.
        ar: Recall, mean over thresholds.
        ground_truths: Those that count.
        detections: Those that may count.
        tp, fp, fn: At the first threshold.
    """

    id: int
    name: str
    ap: float
    ap_by_iou: Mapping[float, float]
    ap_by_area: Mapping[str, float]
    ar: float
    ground_truths: int
    detections: int
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True)
class Result:
    """The outcome of `evaluate`.

    Attributes:
        protocol: What was measured, with all changes.
        iou_type: "bbox", "segm" or "keypoints".
        stats: float64 [S], the numbers of the protocol in its order; -1 where there is no ground truth.
        stat_names: Their names.
        curves: Precision and recall behind them.
    """

    protocol: Protocol
    iou_type: str
    stats: Array
    stat_names: tuple[str, ...]
    curves: Curves
    comparison: Comparison = field(repr=False)

    def __getitem__(self, name: str) -> float:
        """A number by its name, ``result["AP50"]``."""
        if name not in self.stat_names:
            raise KeyError(f"{name!r}; there are {', '.join(self.stat_names)}")
        return float(self.stats[self.stat_names.index(name)])

    @cached_property
    def per_class(self) -> tuple[ClassResult, ...]:
        """All classes in the order of their ids."""
        curves, ranking, truth = self.curves, self.comparison.ranking, self.comparison.truth
        average = curves.at(len(curves.max_detections) - 1).average
        classes = len(curves.categories)
        true, false, _ = ranking.states(0, 0)
        starts = ranking.starts
        hits, errors = (np.diff(np.concatenate([[0], np.cumsum(v)])[starts]) for v in (true, false))
        ids = truth.catalogue.categories if self.protocol.use_categories else np.array([-1])
        results = []
        for k in range(classes):
            positives = int(ranking.positives[0, k])
            results.append(
                ClassResult(
                    int(ids[k]),
                    curves.categories[k],
                    mean_of(average[:, k, 0]),
                    dict(zip(curves.iou_thresholds.tolist(), average[:, k, 0].tolist(), strict=True)),
                    {label: mean_of(average[:, k, a]) for a, label in enumerate(curves.areas)},
                    mean_of(curves.recall[:, k, 0, -1]),
                    positives,
                    int(starts[k + 1] - starts[k]),
                    int(hits[k]),
                    int(errors[k]),
                    positives - int(hits[k]),
                )
            )
        return tuple(results)

    @cached_property
    def matches(self) -> Matches:
        """Who found whom at the first threshold, all areas; `matches_at` for another."""
        return self.matches_at()

    def matches_at(self, iou: float | None = None, area: str | None = None) -> Matches:
        """Who found whom.

        Args:
            iou: One of the thresholds; None: the first.
            area: One of the labels; None: the first.
        """
        curves, c = self.curves, self.comparison
        t = threshold_of(iou, curves.iou_thresholds)
        a = 0 if area is None else place_of(area, curves.areas, "area")
        ranking, truth, catalogue = c.ranking, c.truth, c.truth.catalogue
        true, false, taken = ranking.states(a, t)
        found = np.where(taken >= 0, np.append(ranking.takes[a].truth, -1)[taken], -1)
        overlaps = np.where(taken >= 0, np.append(ranking.takes[a].overlap, np.nan)[taken], np.nan)
        ignored = c.off.copy()
        if self.protocol.matching == "coco":
            _, low, high = self.protocol.areas[a]
            ignored |= (truth.area < low) | (truth.area > high)
        missed = ~ignored
        missed[found[true]] = False
        return Matches(
            float(curves.iou_thresholds[t]),
            curves.areas[a],
            catalogue.images[c.found.image[ranking.rows]],
            catalogue.categories[c.found.category[ranking.rows]],
            c.found.ids[ranking.rows],
            ranking.rows,
            ranking.scores,
            true,
            false,
            np.where(found >= 0, np.append(truth.ids, -1)[found], -1),
            found,
            overlaps,
            missed,
            truth.ids,
            catalogue.images[truth.image],
            catalogue.categories[truth.category],
            ignored,
        )

    def errors(self, iou: float = 0.5, background: float = 0.1):
        """The false positives and false negatives by type; see `error_types`."""
        from flashjax.evaluation.detection.errors import error_types

        return error_types(self, iou, background)

    def confusion(self, iou: float = 0.5, min_score: float = 0.0):
        """Which class is taken for which; see `confusion_table`."""
        from flashjax.evaluation.detection.errors import confusion_table

        return confusion_table(self, iou, min_score)

    def table(self) -> str:
        """The numbers as text: the protocol's own, then a line for each class."""
        from flashjax.evaluation.detection.words import table

        return table(self)
