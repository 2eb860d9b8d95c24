"""Which detections meet which ground truths: pairs of one image and class, and how far they overlap.

All works through blocks of images whose detections stay in the processor's cache, and only pairs that reach the lowest
threshold are kept: the time grows with the detections, and the memory with the matches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flashjax.evaluation.detection.mask_overlap import intersections
from flashjax.evaluation.detection.masks import AnyMasks, Encoded, Masks, Opened
from flashjax.evaluation.detection.ragged import pieces, ragged
from flashjax.evaluation.detection.tables import Detections, GroundTruth

Array = np.ndarray
BLOCK = 1 << 14
"""Detections that are worked on at a time."""


class Measure(Protocol):
    """How far detections and ground truths overlap."""

    def prepare(self, rows: Array) -> None:
        """Makes the detections of a block ready; those alone may be asked for until the next call."""

    def __call__(self, rows: Array, truths: Array, least: float) -> tuple[Array, Array]:
        """(which of the pairs overlap by at least ``least``, how far those do).

        Args:
            rows: Rows of the detections, int64 [P].
            truths: Rows of the ground truths, int64 [P].
        """
        ...


@dataclass(frozen=True)
class Pairs:
    """Pairs that overlap enough: ``detection`` is a place in the order of detections, ``truth`` a row."""

    detection: Array
    truth: Array
    overlap: Array

    @staticmethod
    def join(parts: "list[Pairs]") -> "Pairs":
        """All pairs of ``parts`` in their order."""
        if not parts:
            return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))


_FIELDS = ("detection", "truth", "overlap")


def blocks(found: Detections, counts: Array) -> Iterator[slice]:
    """Slices of images of about BLOCK detections each; detections with long run lengths weigh more.

    Args:
        counts: int64 [I], detections of each image.
    """
    if isinstance(found.masks, Encoded):
        characters = np.bincount(found.image, weights=np.diff(found.masks.starts), minlength=len(counts))
        counts = counts + (characters / 128).astype(np.int64)
    return pieces(counts, BLOCK)


def find_pairs(rows: Array, group: Array, truth_group: Array, measure: Measure, least: float, base: int) -> Pairs:
    """All pairs of equal groups that overlap by at least ``least``, by detection.

    Args:
        rows: int64 [D], rows of the detections of a block.
        group: int64 [D], what each may find.
        truth_group: int64 [N], rising: the group of each ground truth.
        base: Place of the block's first detection.
    """
    first, last = (np.searchsorted(truth_group, group, side=side) for side in ("left", "right"))
    partners = last - first
    some = np.flatnonzero(partners > 0)
    first, partners = first[some], partners[some]
    parts = []
    for piece in pieces(partners, BLOCK):
        truths, _ = ragged(first[piece], first[piece] + partners[piece])
        detection = np.repeat(some[piece], partners[piece])
        kept, overlap = measure(rows.take(detection), truths, least)
        parts.append(Pairs(base + detection[kept], truths[kept], overlap))
    return Pairs.join(parts)


class BoxMeasure:
    """Intersection over union of boxes x, y, width, height; over the detection's area alone for a crowd.

    The sums and products are those of COCO's program, in its order.
    """

    def __init__(self, boxes: Array, truth: GroundTruth):
        assert truth.boxes is not None
        self.boxes, self.others = boxes, truth.boxes
        self.crowd = truth.crowd if truth.crowd.any() else None

    def prepare(self, rows: Array) -> None:
        pass

    def __call__(self, rows: Array, truths: Array, least: float) -> tuple[Array, Array]:
        mine, other, some = self.boxes.take(rows, axis=0), self.others.take(truths, axis=0), None
        width = _common(mine, other, 0)
        if least > 0:
            some = np.flatnonzero(width > 0)
            mine, other, width = mine.take(some, axis=0), other.take(some, axis=0), width.take(some)
            truths = truths.take(some)
        height = _common(mine, other, 1)
        shared = np.where((width > 0) & (height > 0), width * height, 0.0)
        area = mine[:, 2] * mine[:, 3]
        union = area + other[:, 2] * other[:, 3] - shared
        if self.crowd is not None:
            union = np.where(self.crowd[truths], area, union)
        overlap = np.divide(shared, union, out=np.zeros(len(shared)), where=shared > 0)
        good = np.flatnonzero(overlap >= least)
        return (good if some is None else some[good]), overlap[good]


def _common(mine: Array, other: Array, dim: int) -> Array:
    """How much boxes x, y, width, height [P, 4] share along a dim; negative where they are apart."""
    low, other_low = mine[:, dim], other[:, dim]
    common = np.minimum(low + mine[:, 2 + dim], other_low + other[:, 2 + dim])
    common -= np.maximum(low, other_low)
    return common


class CornerMeasure:
    """Intersection over union of boxes x0, y0, x1, y1 whose sides are x1 - x0 + pixel (VOC)."""

    def __init__(self, corners: Array, others: Array, pixel: float):
        self.corners, self.others, self.pixel = corners, others, pixel

    def prepare(self, rows: Array) -> None:
        pass

    def __call__(self, rows: Array, truths: Array, least: float) -> tuple[Array, Array]:
        overlap = self.overlaps(rows, truths)
        good = np.flatnonzero(overlap >= least)
        return good, overlap[good]

    def overlaps(self, rows: Array, truths: Array) -> Array:
        """Of every pair, float64 [P]."""
        a, b, pixel = self.corners[rows], self.others[truths], self.pixel
        width = np.maximum(np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]) + pixel, 0.0)
        height = np.maximum(np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]) + pixel, 0.0)
        common = width * height
        area = (a[:, 2] - a[:, 0] + pixel) * (a[:, 3] - a[:, 1] + pixel)
        other = (b[:, 2] - b[:, 0] + pixel) * (b[:, 3] - b[:, 1] + pixel)
        return np.divide(common, area + other - common, out=np.zeros(len(rows)), where=common > 0)


class MaskMeasure:
    """Intersection over union of masks; over the detection's area alone for a crowd.

    Most pairs fall out before a pixel is compared: by their areas, by their columns, then by their boxes; masks of
    detections are decoded only when columns let them pass.

    Attributes:
        areas: int64, pixels of each detection's mask; of encoded ones, known for the blocks that were prepared.
    """

    def __init__(self, found: AnyMasks, truth: GroundTruth):
        assert truth.masks is not None
        self.found, self.opened = found, None
        self.others = truth.masks if isinstance(truth.masks, Masks) else truth.masks.take(np.arange(len(truth)))
        self.other_area, self.other_boxes, self.crowd = self.others.areas(), self.others.boxes(), truth.crowd
        self.areas = found.areas() if isinstance(found, Masks) else np.zeros(len(found), np.int64)
        self.place = np.zeros(len(found) if isinstance(found, Encoded) else 0, np.int32)

    def prepare(self, rows: Array) -> None:
        if isinstance(self.found, Encoded):
            self.opened: Opened | None = self.found.open(rows)
            self.areas[rows] = self.opened.areas
            self.place[rows] = np.arange(len(rows))

    def __call__(self, rows: Array, truths: Array, least: float) -> tuple[Array, Array]:
        mine, other = self.areas[rows].astype(np.float64), self.other_area[truths].astype(np.float64)
        crowd, whole_box = self.crowd[truths], self.other_boxes[truths]
        reach = np.arange(len(rows))

        def narrow(bound: Array) -> Array:
            """Of ``reach``, those that can overlap enough if they share at most ``bound`` pixels."""
            m, o = mine[reach], other[reach]
            bound = np.minimum(bound, np.minimum(m, o))
            union = np.where(crowd[reach], m, m + o - bound)  # with room for the last bit of the quotient:
            return reach[np.flatnonzero((bound > 0) & (bound >= union * (least * (1 - 1e-12))))]

        reach = narrow(np.full(len(rows), np.inf))
        if self.opened is not None:
            box = whole_box[reach]
            columns = self.opened.columns[self.place[rows[reach]]]
            width = np.minimum(columns[:, 1] + 1, box[:, 0] + box[:, 2]) - np.maximum(columns[:, 0], box[:, 0])
            reach = narrow(np.maximum(width, 0) * box[:, 3])
        different, place = np.unique(rows[reach], return_inverse=True)
        decoded = self.found.take(different) if self.opened is None else self.opened.take(self.place[different])
        slot = np.zeros(len(rows), np.int64)
        slot[reach] = place
        box, whole_box = decoded.boxes()[place], whole_box[reach]
        size = np.minimum(box[:, :2] + box[:, 2:], whole_box[:, :2] + whole_box[:, 2:])
        size -= np.maximum(box[:, :2], whole_box[:, :2])
        reach = narrow(np.where((size > 0).all(1), size[:, 0] * size[:, 1], 0))
        common = intersections(decoded, self.others, slot[reach], truths[reach]).astype(np.float64)
        union = np.where(crowd[reach], mine[reach], mine[reach] + other[reach] - common)
        overlap = np.zeros(len(rows))
        overlap[reach] = np.divide(common, union, out=np.zeros(len(reach)), where=common > 0)
        good = np.flatnonzero(overlap >= least)
        return good, overlap[good]


class KeypointMeasure:
    """Object keypoint similarity: the mean over visible keypoints of exp(-distance^2 / (2 area (2 sigma)^2)).

    Of a ground truth without visible keypoints, distances are those to its doubled box, over all keypoints.
    """

    def __init__(self, points: Array, truth: GroundTruth, sigmas: Array):
        assert truth.keypoints is not None
        for what, array in (("ground truth", truth.keypoints), ("detections", points)):
            if len(array) and array.shape[1] != len(sigmas):
                raise ValueError(
                    f"{what}: {array.shape[1]} keypoints, but there are {len(sigmas)} sigmas; give theirs as sigmas"
                )
        self.points, self.others, self.area = points, truth.keypoints, truth.area
        self.variances = (sigmas * 2) ** 2
        visible = truth.keypoints[:, :, 2] > 0
        self.seen = visible.sum(1)
        self.order = np.argsort(~visible, axis=1, kind="stable")  # the visible ones first, in their order
        boxes = truth.boxes if truth.boxes is not None else np.zeros((len(truth), 4))
        self.low = boxes[:, :2] - boxes[:, 2:]
        self.high = boxes[:, :2] + boxes[:, 2:] * 2

    def prepare(self, rows: Array) -> None:
        pass

    def __call__(self, rows: Array, truths: Array, least: float) -> tuple[Array, Array]:
        overlap, count = np.zeros(len(rows)), len(self.variances)
        for number in np.unique(self.seen[truths]).tolist():
            chosen = np.flatnonzero(self.seen[truths] == number)
            mine, other = self.points[rows[chosen], :, :2], truths[chosen]
            if number:
                offset = mine - self.others[other, :, :2]
            else:
                low, high = self.low[other][:, None], self.high[other][:, None]
                offset = np.maximum(0, low - mine) + np.maximum(0, mine - high)
            squares = offset[:, :, 0] ** 2 + offset[:, :, 1] ** 2
            error = squares / self.variances / (self.area[other] + np.spacing(1))[:, None] / 2
            if 0 < number < count:
                error = np.take_along_axis(error, self.order[other, :number], 1)
            overlap[chosen] = np.exp(-error).sum(1) / error.shape[1]
        good = np.flatnonzero(overlap >= least)
        return good, overlap[good]


def stable_order(keys: Array, bound: int) -> Array:
    """Stable argsort of integers 0 .. bound - 1: digits of 16 bits, which NumPy sorts by counting."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")  # the lowest 16 bits
    shift = 16
    while (bound - 1) >> shift > 0:
        digit = (keys >> shift).astype(np.uint16)
        order = order.take(np.argsort(digit.take(order), kind="stable"))
        shift += 16
    return order


def found_boxes(found: Detections, truth: GroundTruth) -> Array:
    """Boxes of the detections, from their masks if they came without."""
    if found.boxes is not None:
        return found.boxes
    return found.masks.boxes() if found.masks is not None else np.zeros((len(found), 4))
