"""Which detections meet which ground truths: pairs of one image and class, and how far they overlap.

Pairs are made and measured in pieces that stay in the processor's cache; only those that reach the lowest threshold
are kept, so the memory is that of the matches, not of all pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flashjax.evaluation.detection.masks import AnyMasks, Encoded, Masks, intersections, offsets, pieces, ragged
from flashjax.evaluation.detection.tables import Detections, GroundTruth

Array = np.ndarray
Measure = Callable[[Array, Array, float], tuple[Array, Array, Array]]
"""(detections, ground truths, least overlap) -> (detections, ground truths, overlap) of the pairs that reach it."""


@dataclass(frozen=True)
class Pairs:
    """Pairs that overlap enough: ``detection`` is a place in the order of detections, ``truth`` a row."""

    detection: Array
    truth: Array
    overlap: Array


def find_pairs(group_of: Array, truth_rows: Array, truth_starts: Array, measure: Measure, least: float) -> Pairs:
    """All pairs within a group whose overlap is at least ``least``, by detection.

    Args:
        group_of: int64 [D], group of each detection.
        truth_rows, truth_starts: ground truths of group g are truth_rows[truth_starts[g]:truth_starts[g + 1]].
    """
    partners = truth_starts[group_of + 1] - truth_starts[group_of]
    some = np.flatnonzero(partners > 0)
    partners, first = partners[some], truth_starts[group_of[some]]
    kept: tuple[list[Array], list[Array], list[Array]] = ([], [], [])
    for piece in pieces(partners, 1 << 14):
        index, _ = ragged(first[piece], first[piece] + partners[piece])
        for values, more in zip(
            measure(np.repeat(some[piece], partners[piece]), truth_rows[index], least), kept, strict=True
        ):
            more.append(values)
    if not kept[0]:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*map(np.concatenate, kept))


def box_measure(boxes: Array, rows: Array, truth: GroundTruth) -> Measure:
    """Intersection over union of boxes x, y, width, height; over the detection's area alone for a crowd.

    The sums and products are those of COCO's program, in its order.

    Args:
        rows: Row in ``boxes`` of each place in the order of detections.
    """
    assert truth.boxes is not None
    others, crowd, any_crowd = truth.boxes, truth.crowd, bool(truth.crowd.any())

    def measure(d: Array, g: Array, least: float) -> tuple[Array, Array, Array]:
        mine, other = boxes.take(rows.take(d), axis=0), others.take(g, axis=0)
        end, other_end = mine[:, :2] + mine[:, 2:], other[:, :2] + other[:, 2:]
        common = np.minimum(end, other_end)
        common -= np.maximum(mine[:, :2], other[:, :2])
        if least > 0:
            some = np.flatnonzero((common[:, 0] > 0) & (common[:, 1] > 0))
            d, g, mine, other, common = d[some], g[some], mine[some], other[some], common[some]
        width, height = common[:, 0], common[:, 1]
        shared = np.where((width > 0) & (height > 0), width * height, 0.0)
        area = mine[:, 2] * mine[:, 3]
        union = area + other[:, 2] * other[:, 3] - shared
        if any_crowd:
            union = np.where(crowd[g], area, union)
        overlap = np.divide(shared, union, out=np.zeros(len(d)), where=shared > 0)
        good = np.flatnonzero(overlap >= least)
        return d[good], g[good], overlap[good]

    return measure


def corner_measure(corners: Array, others: Array, pixel: float) -> Callable[[Array, Array], Array]:
    """Intersection over union of boxes x0, y0, x1, y1 whose sides are x1 - x0 + pixel (VOC)."""

    def measure(d: Array, g: Array) -> Array:
        a, b = corners[d], others[g]
        width = np.maximum(np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]) + pixel, 0.0)
        height = np.maximum(np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]) + pixel, 0.0)
        common = width * height
        area = (a[:, 2] - a[:, 0] + pixel) * (a[:, 3] - a[:, 1] + pixel)
        other = (b[:, 2] - b[:, 0] + pixel) * (b[:, 3] - b[:, 1] + pixel)
        return np.divide(common, area + other - common, out=np.zeros(len(d)), where=common > 0)

    return measure


def mask_measure(found: AnyMasks, areas: Array, rows: Array, truth: GroundTruth) -> Measure:
    """Intersection over union of masks; over the detection's area alone for a crowd.

    Most pairs fall out before a pixel is compared: by their areas, then by their boxes.

    Args:
        areas: Pixels of the masks of ``found``.
        rows: Row in ``found`` of each place in the order of detections.
    """
    assert truth.masks is not None
    others = truth.masks.take(np.arange(len(truth))) if isinstance(truth.masks, Encoded) else truth.masks
    other_area, other_boxes, crowd = others.areas(), others.boxes(), truth.crowd

    def measure(d: Array, g: Array, least: float) -> tuple[Array, Array, Array]:
        row = rows[d]
        mine, other = areas[row].astype(np.float64), other_area[g].astype(np.float64)
        if least > 0:  # in whole numbers of pixels, with room for the last bit of the quotient
            bound = np.minimum(mine, other)
            whole = np.where(crowd[g], mine, np.maximum(mine, other))
            some = np.flatnonzero(bound >= whole * (least * (1 - 1e-12)))
            some = some[(bound > 0)[some]]
            d, g, row, mine, other = d[some], g[some], row[some], mine[some], other[some]
        different, place = np.unique(row, return_inverse=True)
        decoded: Masks = found.take(different)
        box, whole_box = decoded.boxes()[place], other_boxes[g]
        width = np.minimum(box[:, 0] + box[:, 2], whole_box[:, 0] + whole_box[:, 2])
        width -= np.maximum(box[:, 0], whole_box[:, 0])
        height = np.minimum(box[:, 1] + box[:, 3], whole_box[:, 1] + whole_box[:, 3])
        height -= np.maximum(box[:, 1], whole_box[:, 1])
        bound = np.where((width > 0) & (height > 0), width * height, 0)
        bound = np.minimum(bound, np.minimum(mine, other))
        union = np.where(crowd[g], mine, mine + other - bound)
        reach = np.flatnonzero((bound > 0) & (bound >= union * (least * (1 - 1e-12))))
        common = intersections(decoded, others, place[reach], g[reach]).astype(np.float64)
        overlap = np.zeros(len(d))
        union = np.where(crowd[g[reach]], mine[reach], mine[reach] + other[reach] - common)
        overlap[reach] = np.divide(common, union, out=np.zeros(len(reach)), where=common > 0)
        good = np.flatnonzero(overlap >= least)
        return d[good], g[good], overlap[good]

    return measure


def keypoint_measure(points: Array, truth: GroundTruth, sigmas: Array) -> Measure:
    """Object keypoint similarity: the mean over visible keypoints of exp(-distance^2 / (2 area (2 sigma)^2)).

    Of a ground truth without visible keypoints, distances are those to its doubled box, over all keypoints.
    """
    assert truth.keypoints is not None
    count = truth.keypoints.shape[1] if len(truth) else len(sigmas)
    for what, array in (("ground truth", truth.keypoints), ("detections", points)):
        if len(array) and array.shape[1] != len(sigmas):
            raise ValueError(
                f"{what}: {array.shape[1]} keypoints, but there are {len(sigmas)} sigmas; name theirs with sigmas=..."
            )
    variances = (sigmas * 2) ** 2
    visible = truth.keypoints[:, :, 2] > 0
    seen = visible.sum(1)
    order = np.argsort(~visible, axis=1, kind="stable")  # the visible ones first, in their order
    boxes = truth.boxes if truth.boxes is not None else np.zeros((len(truth), 4))
    low = boxes[:, :2] - boxes[:, 2:]
    high = boxes[:, :2] + boxes[:, 2:] * 2

    def measure(d: Array, g: Array, least: float) -> tuple[Array, Array, Array]:
        overlap = np.zeros(len(d))
        for number in np.unique(seen[g]).tolist():
            chosen = np.flatnonzero(seen[g] == number)
            mine, other = points[d[chosen], :, :2], g[chosen]
            if number:
                offset = mine - truth.keypoints[other, :, :2]  # type: ignore[index]
            else:
                offset = np.maximum(0, low[other][:, None] - mine) + np.maximum(0, mine - high[other][:, None])
            squares = offset[:, :, 0] ** 2 + offset[:, :, 1] ** 2
            error = squares / variances / (truth.area[other] + np.spacing(1))[:, None] / 2
            if 0 < number < count:
                error = np.take_along_axis(error, order[other, :number], 1)
            overlap[chosen] = np.exp(-error).sum(1) / error.shape[1]
        good = np.flatnonzero(overlap >= least)
        return d[good], g[good], overlap[good]

    return measure


def groups_of(rows_group: Array, count: int) -> tuple[Array, Array]:
    """(rows by group, in their order; where each of ``count`` groups begins)."""
    order = stable_order(rows_group, count)
    return order, offsets(np.bincount(rows_group, minlength=count))


def stable_order(keys: Array, bound: int) -> Array:
    """Stable argsort of integers 0 .. bound - 1: digits of 16 bits, which NumPy sorts by counting."""
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    shift = 16
    while (bound - 1) >> shift > 0:
        digit = ((keys >> shift) & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
        shift += 16
    return order


def found_boxes(found: Detections, truth: GroundTruth) -> Array:
    """Boxes of the detections, from their masks if they came without."""
    if found.boxes is not None:
        return found.boxes
    return found.masks.boxes() if found.masks is not None else np.zeros((len(found), 4))
