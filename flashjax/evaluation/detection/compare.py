"""One comparison: detections against ground truths under a protocol, from tables to a ranking of matches."""

from dataclasses import dataclass, replace

import numpy as np

from flashjax.evaluation.detection import overlaps
from flashjax.evaluation.detection.accumulate import Ranking, class_offsets
from flashjax.evaluation.detection.masks import offsets
from flashjax.evaluation.detection.matching import MOST_THRESHOLDS, match_greedily, match_voc
from flashjax.evaluation.detection.overlaps import Measure, stable_order
from flashjax.evaluation.detection.protocols import Protocol
from flashjax.evaluation.detection.tables import Detections, GroundTruth, take_rows

Array = np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    truth: The ground truths by class and image; `Ranking`'s indices of ground truths are its rows.
    truth_rows: int64 [N], the row of each in its file.
    found: The detections, in the order of their file.
    off: bool [N], ground truths that never count: crowds, and what is marked ignore or difficult.
    pixels: int64, foreground of the detections' masks; None without masks.
    ranking: Who finds whom.
    """

    truth: GroundTruth
    truth_rows: Array
    found: Detections
    off: Array
    pixels: Array | None
    ranking: Ranking


def compare(truth: GroundTruth, found: Detections, protocol: Protocol, iou_type: str) -> Comparison:
    """Matches all detections under ``protocol``."""
    if len(protocol.iou_thresholds) > MOST_THRESHOLDS:
        raise ValueError(f"at most {MOST_THRESHOLDS} IoU thresholds at once; there are {len(protocol.iou_thresholds)}")
    images, classes = len(truth.catalogue.images), len(truth.catalogue.categories)
    voc = protocol.matching == "voc"
    joined = not protocol.use_categories
    off = _off(truth, protocol, iou_type)
    pixels = found.masks.areas() if iou_type == "segm" and found.masks is not None else None

    # Ground truths by class, image, category and place in the file.
    by_category = stable_order(truth.category, classes) if joined else np.arange(len(truth))
    by_image = by_category[stable_order(truth.image[by_category], images)]
    truth_rows = by_image if joined else by_image[stable_order(truth.category[by_image], classes)]
    truth, off = take_rows(truth, truth_rows), off[truth_rows]
    truth_class = np.zeros(len(truth), np.int64) if joined else truth.category
    count = 1 if joined else classes
    truth_starts = offsets(np.bincount(truth_class * images + truth.image, minlength=count * images))

    # Detections: by class and falling score (ranked), and by class, image and falling score (grouped).
    found_class = np.zeros(len(found), np.int64) if joined else found.category
    pair = found.image * classes + found.category
    order = _by_score(found, images, classes, joined)
    if protocol.federated:  # where the class is present or known to be absent
        searched = np.unique(np.concatenate([truth.catalogue.negative, truth.image * classes + truth.category]))
        order = order[np.isin(pair[order], searched)]
    grouped = order[stable_order(found.image[order], images)]
    grouped = grouped[stable_order(found_class[grouped], count)]
    group = found_class[grouped] * images + found.image[grouped]
    starts = np.flatnonzero(np.diff(group, prepend=-1) != 0)
    rank = np.arange(len(grouped)) - np.repeat(starts, np.diff(np.append(starts, len(grouped))))
    most = protocol.max_detections[-1]
    if most is not None and len(rank) and rank.max() >= most:
        kept = rank < most
        grouped, group, rank = grouped[kept], group[kept], rank[kept]
        counts = np.zeros(len(found), bool)
        counts[grouped] = True
        order = order[counts[order]]
    ranked = order[stable_order(found_class[order], count)]
    place = np.empty(len(found), np.int64)
    place[ranked] = np.arange(len(ranked))
    place = place[grouped]
    rank_of = np.empty(len(ranked), np.int64)
    rank_of[place] = rank

    # Areas.
    if voc:
        ignored, outside = off[None], np.zeros((1, len(ranked)), bool)
    else:
        areas = found.area if found.area is not None else pixels
        assert areas is not None
        areas = areas[ranked].astype(np.float64)
        ignored = np.stack([off | (truth.area < low) | (truth.area > high) for _, low, high in protocol.areas])
        outside = np.stack([(areas < low) | (areas > high) for _, low, high in protocol.areas])
        if protocol.federated:
            outside |= np.isin(pair[ranked], truth.catalogue.inexhaustive)
    positives = np.stack([np.bincount(truth_class[~i], minlength=count) for i in ignored])

    least = min(min(protocol.iou_thresholds), 1 - 1e-10)
    measure = make_measure(truth, found, grouped, protocol, iou_type, pixels)
    pairs = overlaps.find_pairs(group, np.arange(len(truth)), truth_starts, measure, least)
    unnamed = (truth.ids == 0) if protocol.official and not voc else np.zeros(len(truth), bool)
    if voc:
        takes = [match_voc(pairs, off, protocol, place)]
    else:
        crowd = np.zeros(len(truth), bool) if protocol.federated else truth.crowd
        nameless = (found.ids[grouped] == 0) if protocol.official else np.zeros(len(grouped), bool)
        takes = match_greedily(pairs, group, ignored, crowd, nameless, protocol.iou_thresholds, place)
    ranking = Ranking(
        ranked,
        class_offsets(found_class[ranked], count),
        found.scores[ranked],
        rank_of,
        outside,
        takes,
        positives,
        unnamed,
    )
    return Comparison(truth, truth_rows, found, off, pixels, ranking)


def make_measure(
    truth: GroundTruth, found: Detections, rows: Array, protocol: Protocol, iou_type: str, pixels: Array | None
) -> Measure:
    """How far the detections ``found[rows]`` and ground truths overlap."""
    if protocol.matching == "voc":
        corners = found.corners if found.corners is not None else _corners(found.boxes)
        others = truth.corners if truth.corners is not None else _corners(truth.boxes)
        corner = overlaps.corner_measure(corners[rows], others, protocol.pixel)

        def measure(d: Array, g: Array, least: float) -> tuple[Array, Array, Array]:
            overlap = corner(d, g)
            good = np.flatnonzero(overlap >= least)
            return d[good], g[good], overlap[good]

        return measure
    if protocol.federated:
        truth = replace(truth, crowd=np.zeros(len(truth), bool))
    if iou_type == "segm":
        assert found.masks is not None and pixels is not None
        return overlaps.mask_measure(found.masks, pixels, rows, truth)
    if iou_type == "keypoints":
        assert found.keypoints is not None
        return overlaps.keypoint_measure(found.keypoints[rows], truth, np.asarray(protocol.sigmas, np.float64))
    assert found.boxes is not None
    return overlaps.box_measure(found.boxes, rows, truth)


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


def _by_score(found: Detections, images: int, classes: int, joined: bool) -> Array:
    """Rows by falling score; equal ones by image, (category) and place in the file."""
    order = stable_order(found.category, classes) if joined else np.arange(len(found))
    image = found.image[order]
    if (np.diff(image) < 0).any():
        order = order[stable_order(image, images)]
    return order[falling_order(found.scores[order])]


def falling_order(scores: Array) -> Array:
    """Stable argsort of -scores. Networks speak float32, whose bits sort by counting; where scores are finer than
    that, a comparing sort."""
    single = (scores + 0.0).astype(np.float32)  # + 0.0: one zero
    bits = single.view(np.uint32)
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    order = stable_order(~rising, 1 << 32)
    sorted_scores = scores[order]
    if (sorted_scores[1:] <= sorted_scores[:-1]).all():
        return order
    return np.argsort(-scores, kind="stable")
