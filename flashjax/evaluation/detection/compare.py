"""One comparison: detections against ground truths under a protocol, from tables to a ranking of matches."""

from dataclasses import dataclass, replace

import numpy as np

from flashjax.evaluation.detection import overlaps
from flashjax.evaluation.detection.accumulate import Ranking
from flashjax.evaluation.detection.matching import MOST_THRESHOLDS, match_greedily, match_voc
from flashjax.evaluation.detection.overlaps import (
    BoxMeasure,
    CornerMeasure,
    KeypointMeasure,
    MaskMeasure,
    Measure,
    stable_order,
)
from flashjax.evaluation.detection.protocols import Protocol
from flashjax.evaluation.detection.ragged import offsets
from flashjax.evaluation.detection.ranks import Grouped, rank_by_class
from flashjax.evaluation.detection.tables import Detections, GroundTruth, take_rows

Array = np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    truth: The ground truths by image and category; `Ranking`'s indices of ground truths are its rows.
    truth_rows: int64 [N], the row of each in its file.
    found: The detections, in the order of their file.
    off: bool [N], ground truths that never count: crowds, and what is marked ignore or difficult.
    places: int64 [P], the places of the ranking by image, class and falling score.
    ranking: Who finds whom.
    """

    truth: GroundTruth
    truth_rows: Array
    found: Detections
    off: Array
    places: Array
    ranking: Ranking


def compare(truth: GroundTruth, found: Detections, protocol: Protocol, iou_type: str) -> Comparison:
    """Matches all detections under ``protocol``."""
    if len(protocol.iou_thresholds) > MOST_THRESHOLDS:
        raise ValueError(f"at most {MOST_THRESHOLDS} IoU thresholds at once; there are {len(protocol.iou_thresholds)}")
    images, classes = len(truth.catalogue.images), len(truth.catalogue.categories)
    voc, joined = protocol.matching == "voc", not protocol.use_categories
    count = 1 if joined else classes

    truth_rows = stable_order(truth.category, classes)
    truth_rows = truth_rows[stable_order(truth.image[truth_rows], images)]
    truth, off = take_rows(truth, truth_rows), _off(truth, protocol, iou_type)[truth_rows]
    truth_class = np.zeros(len(truth), np.int64) if joined else truth.category

    measure = make_measure(truth, found, protocol, iou_type)
    least = min(min(protocol.iou_thresholds), 1 - 1e-10)
    grouped, pairs = _group(truth, found, protocol, measure, least)
    starts, places, scores, (rows, rank, outside) = rank_by_class(
        grouped.label, grouped.scores, count, grouped.rows, grouped.rank, grouped.outside
    )
    ignored = off[None]
    if not voc:
        ignored = np.stack([off | (truth.area < low) | (truth.area > high) for _, low, high in protocol.areas])
    positives = np.stack([np.bincount(truth_class[~i], minlength=count) for i in ignored])
    unnamed = (truth.ids == 0) if protocol.official and not voc else np.zeros(len(truth), bool)
    if voc:
        takes = [match_voc(pairs, off, protocol, places)]
    else:
        crowd = np.zeros(len(truth), bool) if protocol.federated else truth.crowd
        nameless = (found.ids == 0).take(grouped.rows) if protocol.official else np.zeros(len(places), bool)
        takes = match_greedily(pairs, grouped.group, ignored, crowd, nameless, protocol.iou_thresholds, places)
    ranking = Ranking(rows, starts, scores, rank, outside, takes, positives, unnamed)
    return Comparison(truth, truth_rows, found, off, places, ranking)


def _group(
    truth: GroundTruth, found: Detections, protocol: Protocol, measure: Measure, least: float
) -> tuple[Grouped, overlaps.Pairs]:
    """The detections that may count, and the pairs that overlap enough."""
    images, classes = len(truth.catalogue.images), len(truth.catalogue.categories)
    joined = not protocol.use_categories
    count = 1 if joined else classes
    truth_group = truth.image if joined else truth.image * classes + truth.category
    truth_starts = offsets(np.bincount(truth.image, minlength=images))
    searched = None
    if protocol.federated:  # where the class is present or known to be absent
        searched = np.unique(np.concatenate([truth.catalogue.negative, truth.image * classes + truth.category]))
    counts = np.bincount(found.image, minlength=images)
    starts = offsets(counts)
    by_image = None if (found.image[1:] >= found.image[:-1]).all() else stable_order(found.image, images)
    most = protocol.max_detections[-1]

    kept = Grouped.empty(len(found), 1 if protocol.matching == "voc" else len(protocol.areas))
    pairs, done, groups = [], 0, 0
    for block in overlaps.blocks(found, counts):
        span = slice(int(starts[block.start]), int(starts[block.stop]))
        rows = np.arange(span.start, span.stop) if by_image is None else by_image[span]
        measure.prepare(rows)
        if searched is not None:
            rows = rows[_among(found.image[rows] * classes + found.category[rows], searched)]
        if joined:
            rows = rows[stable_order(found.category[rows], classes)]
        rows = rows[np.argsort(-found.scores[rows], kind="stable")]
        label = np.zeros(len(rows), np.int64) if joined else found.category[rows]
        code = (found.image[rows] - block.start) * count + label
        order = stable_order(code, (block.stop - block.start) * count)
        rows, label, code = rows[order], label[order], code[order]
        first = np.flatnonzero(np.diff(code, prepend=-1) != 0)
        sizes = np.diff(np.append(first, len(code)))
        rank = np.arange(len(code)) - np.repeat(first, sizes)
        number = groups + np.repeat(np.arange(len(first)), sizes)
        groups += len(first)
        if most is not None and len(sizes) and sizes.max() > most:
            few = np.flatnonzero(rank < most)
            rows, label, code, rank, number = rows[few], label[few], code[few], rank[few], number[few]
        there = slice(int(truth_starts[block.start]), int(truth_starts[block.stop]))
        part = overlaps.find_pairs(
            rows, code + block.start * count, truth_group[there], _Shifted(measure, there.start), least, done
        )
        pairs.append(overlaps.Pairs(part.detection, part.truth + there.start, part.overlap))
        outside = _outside(truth, found, protocol, measure, rows)
        kept.put(done, Grouped(rows, label, rank, number, found.scores[rows], outside))
        done += len(rows)
    return kept.first(done), overlaps.Pairs.join(pairs)


@dataclass(frozen=True)
class _Shifted:
    """A measure whose ground truths are counted from ``first`` on."""

    measure: Measure
    first: int

    def prepare(self, rows: Array) -> None:
        self.measure.prepare(rows)

    def __call__(self, rows: Array, truths: Array, least: float) -> tuple[Array, Array]:
        return self.measure(rows, truths + self.first, least)


def _outside(truth: GroundTruth, found: Detections, protocol: Protocol, measure: Measure, rows: Array) -> Array:
    """bool [A, D]: of each range of areas, which of these detections do not count if they find nothing."""
    if protocol.matching == "voc":
        return np.zeros((1, len(rows)), bool)
    areas = found.area if found.area is not None else measure.areas  # type: ignore[attr-defined]  # of masks
    areas = areas[rows]
    outside = np.stack([(areas < low) | (areas > high) for _, low, high in protocol.areas])
    if protocol.federated:
        pair = found.image[rows] * len(truth.catalogue.categories) + found.category[rows]
        outside |= _among(pair, truth.catalogue.inexhaustive)
    return outside


def _among(values: Array, known: Array) -> Array:
    """Which values are among the rising ``known`` ones."""
    if not len(known):
        return np.zeros(len(values), bool)
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


def make_measure(truth: GroundTruth, found: Detections, protocol: Protocol, iou_type: str) -> Measure:
    """How far the detections and ground truths overlap."""
    if protocol.matching == "voc":
        corners = found.corners if found.corners is not None else _corners(found.boxes)
        others = truth.corners if truth.corners is not None else _corners(truth.boxes)
        return CornerMeasure(corners, others, protocol.pixel)
    if protocol.federated:
        truth = replace(truth, crowd=np.zeros(len(truth), bool))
    if iou_type == "segm":
        assert found.masks is not None
        return MaskMeasure(found.masks, truth)
    if iou_type == "keypoints":
        assert found.keypoints is not None
        return KeypointMeasure(found.keypoints, truth, np.asarray(protocol.sigmas, np.float64))
    assert found.boxes is not None
    return BoxMeasure(found.boxes, truth)


def _corners(boxes: Array | None) -> Array:
    assert boxes is not None
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _off(truth: GroundTruth, protocol: Protocol, iou_type: str) -> Array:
    """Ground truths that never count."""
    if protocol.matching == "voc":
        return truth.ignore | truth.crowd
    if protocol.federated:
        return truth.ignore
    off = truth.crowd if protocol.official else truth.crowd | truth.ignore
    if iou_type == "keypoints":
        assert truth.num_keypoints is not None
        off = off | (truth.num_keypoints == 0)
    return off
