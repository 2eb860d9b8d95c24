"""What came out: the official numbers, and everything behind them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from flashjax.evaluation.detection.accumulate import Precision, Ranking, precision_of
from flashjax.evaluation.detection.compare import Comparison
from flashjax.evaluation.detection.protocols import Protocol

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
        k = _place(category, self.categories, "category")
        t = _threshold(iou, self.iou_thresholds)
        a = 0 if area is None else _place(area, self.areas, "area")
        m = len(self.max_detections) - 1 if limit is None else _place(limit, self.max_detections, "limit")
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
                    _mean(average[:, k, 0]),
                    dict(zip(curves.iou_thresholds.tolist(), average[:, k, 0].tolist(), strict=True)),
                    {label: _mean(average[:, k, a]) for a, label in enumerate(curves.areas)},
                    _mean(curves.recall[:, k, 0, -1]),
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
        t = _threshold(iou, curves.iou_thresholds)
        a = 0 if area is None else _place(area, curves.areas, "area")
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


def summarise(
    protocol: Protocol, iou_type: str, curves: Curves, frequency: Sequence[str]
) -> tuple[tuple[str, ...], Array]:
    """(names, numbers) of a protocol in its official order."""
    limits = protocol.max_detections
    last = len(limits) - 1
    if protocol.matching == "voc":
        average = curves.at(last).average
        names, values = ["mAP"], [_mean(average[:, :, 0])]
        if len(protocol.iou_thresholds) > 1:
            names += [f"mAP@{t:g}" for t in protocol.iou_thresholds]
            values += [_mean(one[:, 0]) for one in average]
        return tuple(names), np.array(values)
    labels = [label for label, _, _ in protocol.areas]

    def read(kind: str, iou: float | None = None, area: int | None = 0, m: int | None = last) -> float:
        """The mean over precisions [T, R, K, A] or recalls [T, K, A] at one limit."""
        if area is None or m is None:
            return -1.0
        values = curves.at(m).precision if kind == "AP" else curves.recall[..., m]
        assert values is not None
        if iou is not None:
            values = values[[t for t, threshold in enumerate(protocol.iou_thresholds) if threshold == iou]]
        return _mean(values[..., area])

    if protocol.official:
        has = {label: labels.index(label) if label in labels else None for label in ("all", *_SIZES)}
        whole = has["all"]
    else:
        has = {label: n + 1 for n, label in enumerate(labels[1:])}
        whole = 0
    sizes = tuple(_SIZES) if protocol.official else tuple(labels[1:])
    if protocol.official and iou_type == "keypoints":
        sizes = sizes[1:]
    short = {label: _SIZES.get(label, f"_{label}") for label in sizes}
    fixed = [t for t in (0.5, 0.75) if protocol.official or t in protocol.iou_thresholds]
    rows: list[tuple[str, float]] = []

    if iou_type == "keypoints":
        m = last
        if protocol.official:  # reads at 20, whatever was asked for
            m = limits.index(20) if 20 in limits else None
        for kind in ("AP", "AR"):
            rows.append((kind, read(kind, area=whole, m=m)))
            rows += [(f"{kind}{100 * t:.0f}", read(kind, t, whole, m)) for t in fixed]
            rows += [(f"{kind}{short[label]}", read(kind, area=has[label], m=m)) for label in sizes]
    else:
        third = 2 if protocol.official and not protocol.federated else last
        hundred: int | None = third
        if protocol.official and not protocol.federated:
            hundred = limits.index(100) if 100 in limits else None
        rows.append(("AP", read("AP", area=whole, m=hundred)))
        rows += [(f"AP{100 * t:.0f}", read("AP", t, whole, third)) for t in fixed]
        rows += [(f"AP{short[label]}", read("AP", area=has[label], m=third)) for label in sizes]
        if protocol.groups:
            precision = curves.at(last).precision
            assert whole is not None and precision is not None
            for letter in "rcf":
                chosen = [k for k, f in enumerate(frequency) if f == letter]
                rows.append((f"AP{letter}", _mean(precision[:, :, chosen, whole])))
        three = range(3) if protocol.official and not protocol.federated else range(len(limits))
        for n in three:
            name = protocol.per_image if limits[n] is None else limits[n]
            rows.append((f"AR{name or ''}", read("AR", area=whole, m=n)))
        rows += [(f"AR{short[label]}", read("AR", area=has[label], m=third)) for label in sizes]
    return tuple(name for name, _ in rows), np.array([value for _, value in rows])


_SIZES = {"small": "s", "medium": "m", "large": "l"}


def _mean(values: Array) -> float:
    """Over what is defined; -1 if nothing is."""
    values = values[values > -1]
    return float(np.mean(values)) if len(values) else -1.0


def _place(value: Any, among: Sequence[Any], what: str) -> int:
    if value in among:
        return list(among).index(value)
    if isinstance(value, int | np.integer) and what == "category" and 0 <= value < len(among):
        return int(value)
    raise ValueError(f"{what} {value!r} is none of {', '.join(map(str, among))}")


def _threshold(iou: float | None, thresholds: Array) -> int:
    if iou is None:
        return 0
    near = np.flatnonzero(np.abs(thresholds - iou) < 1e-9)
    if not len(near):
        raise ValueError(f"IoU {iou} is none of the thresholds {', '.join(f'{t:g}' for t in thresholds)}")
    return int(near[0])
