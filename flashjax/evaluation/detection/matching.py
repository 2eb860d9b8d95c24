"""Who finds whom: COCO's greedy matching and VOC's, for all images, classes, areas and thresholds together.

A detection meets few ground truths that it overlaps by half, so matching runs over those pairs alone. The thresholds
are bits of one integer: a pair's bits say where it overlaps enough, a ground truth's where it is taken, a detection's
where it still looks; one step of the greedy rule is two or three bit operations for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashjax.evaluation.detection.overlaps import Pairs, stable_order
from flashjax.evaluation.detection.protocols import Protocol
from flashjax.evaluation.detection.ragged import offsets, pieces

Array = np.ndarray
MOST_THRESHOLDS = 63
MATCHED = 1 << 15
"""Pairs that are matched at a time, in the processor's cache."""


@dataclass(frozen=True)
class Takes:
    """Matches within one range of areas, by detection.

    Attributes:
        detection: int64 [P], place in the order of detections.
        truth: int64 [P], row of the ground truth it takes.
        overlap: float64 [P].
        bits: int64 [P], thresholds at which it does.
        ignored: bool [P], whether that ground truth does not count in this range.
    """

    detection: Array
    truth: Array
    overlap: Array
    bits: Array
    ignored: Array


def threshold_bits(overlap: Array, thresholds: Sequence[float], strict: bool = False) -> Array:
    """Bit t: ``overlap`` reaches (exceeds) threshold t."""
    bits = np.zeros(len(overlap), np.int64)
    for t, threshold in enumerate(thresholds):
        bits |= (overlap > threshold if strict else overlap >= threshold).astype(np.int64) << t
    return bits


def match_greedily(
    pairs: Pairs,
    group_of: Array,
    ignored: Array,
    crowd: Array,
    nameless: Array,
    thresholds: Sequence[float],
    place: Array,
) -> list[Takes]:
    """COCO's rule: each detection, by falling score, takes the free ground truth that it overlaps most.

    One that counts comes before any that is ignored in this range of areas; of equal overlaps the later wins; crowds
    are taken as often as they are met.

    Args:
        pairs: By detection. Detections are in the order of their groups, and within one of falling scores.
        group_of: int64 [D], group of each detection, rising: an image and class.
        ignored: bool [A, N], the ground truths that do not count, for each range of areas.
        crowd: bool [N].
        nameless: bool [D], detections with id 0, which the official program takes for none: what they find stays free.
        thresholds: At most 63.
        place: int64 [D], what the results call each detection; they are in its order.
    """
    detection, group = pairs.detection, group_of[pairs.detection]
    limits = [min(t, 1 - 1e-10) for t in thresholds]
    order, take = np.arange(len(detection)), np.zeros((len(ignored), len(detection)), np.int64)
    starts = np.append(np.flatnonzero(np.diff(group, prepend=-1) != 0), len(group))
    for some in pieces(np.diff(starts), MATCHED):
        part = slice(int(starts[some.start]), int(starts[some.stop]))
        truth = pairs.truth[part]
        low, high = int(truth.min()), int(truth.max()) + 1
        mine, take[:, part] = _match(
            detection[part],
            truth - low,
            threshold_bits(pairs.overlap[part], limits),
            pairs.overlap[part],
            group[part],
            ignored[:, low:high],
            crowd[low:high],
            nameless[detection[part]],
        )
        order[part] = part.start + mine
    called = place[detection]
    by_place = stable_order(called, len(place))
    truth, overlap = pairs.truth[order], pairs.overlap[order]
    return [_takes(called, truth, overlap, mine, off[truth], by_place) for off, mine in zip(ignored, take, strict=True)]


def _match(
    detection: Array,
    truth: Array,
    bits: Array,
    overlap: Array,
    group: Array,
    ignored: Array,
    crowd: Array,
    nameless: Array,
) -> tuple[Array, Array]:
    """(order in which each detection looks at its ground truths, int64 [P]; bits of the thresholds at which it takes
    those, for each range of areas, int64 [A, P]) of the pairs of some groups.

    Args:
        truth: int64 [P], counted within ``ignored`` [A, N] and ``crowd`` [N].
        group: int32 [P], rising.
        nameless: bool [P], of the detection.
    """
    count = len(crowd)
    searcher = np.cumsum(np.diff(detection, prepend=-1) != 0) - 1  # the detections that meet any, numbered
    searchers = int(searcher[-1]) + 1
    meets = np.bincount(searcher)[searcher]
    order = np.arange(len(detection))
    several = np.flatnonzero(meets > 1)
    if len(several):  # of each detection its best first: larger overlap, then later ground truth
        by_overlap = several[np.lexsort([-truth[several], -overlap[several], searcher[several]])]
        order[several] = by_overlap
        truth, bits = truth[order], bits[order]
    orders, turns = [], []
    # A pair alone in both its detection and its ground truth asks nobody; the others wait for their turn in the group.
    lonely = (meets == 1) & (np.bincount(truth, minlength=count)[truth] == 1)
    shared = np.flatnonzero(~lonely)
    for off in ignored:
        key = searcher[shared] << 1 | off[truth[shared]]
        mine = shared[stable_order(key, 2 * searchers)]
        starts = np.flatnonzero(np.diff(group[mine], prepend=-1) != 0)
        turn = np.arange(len(mine)) - np.repeat(starts, np.diff(np.append(starts, len(mine))))
        orders.append(mine)
        turns.append(turn)
    taken = np.zeros(len(ignored) * count, np.int64)
    looking = np.full(len(ignored) * searchers, -1, np.int64)
    take = np.zeros(len(ignored) * len(detection), np.int64)
    if len(shared):
        turn = np.concatenate(turns)
        by_turn = stable_order(turn, int(turn.max()) + 1)
        area = np.repeat(np.arange(len(ignored)), len(shared))[by_turn]
        pair = np.concatenate(orders)[by_turn]
        slot = area * len(detection) + pair
        d, g, able = area * searchers + searcher[pair], area * count + truth[pair], bits[pair]
        keeps = np.where(crowd[truth[pair]] | nameless[pair], 0, -1)
        for first, last in _spans(turn[by_turn]):
            part = slice(first, last)
            dp, gp = d[part], g[part]
            now = able[part] & looking[dp] & ~taken[gp]
            taken[gp] |= now & keeps[part]
            looking[dp] &= ~now
            take[slot[part]] = now
    take = take.reshape(len(ignored), len(detection))
    alone = np.flatnonzero(lonely)
    take[:, alone] = bits[alone]
    return order, take


def _takes(detection: Array, truth: Array, overlap: Array, bits: Array, ignored: Array, order: Array) -> Takes:
    """Those that take something, in this order."""
    some = order[np.flatnonzero(bits[order] != 0)]
    return Takes(detection[some], truth[some], overlap[some], bits[some], ignored[some])


def _spans(turn: Array) -> list[tuple[int, int]]:
    """Slices of equal, rising turns."""
    ends = offsets(np.bincount(turn))
    return list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))


def match_voc(pairs: Pairs, difficult: Array, protocol: Protocol, place: Array) -> Takes:
    """VOC's rule: each detection, by falling score, wants the ground truth that it overlaps most, and no other.

    If that one is difficult the detection does not count; if it is taken, the detection is an error.

    Args:
        pairs: By detection, of equal overlaps the earlier ground truth first; detections of falling scores.
        place: As in `match_greedily`.
    """
    best = np.lexsort([pairs.truth, -pairs.overlap, pairs.detection])
    best = best[np.flatnonzero(np.diff(pairs.detection[best], prepend=-1) != 0)]
    detection, truth, overlap = pairs.detection[best], pairs.truth[best], pairs.overlap[best]
    bits = threshold_bits(overlap, protocol.iou_thresholds, protocol.strict)
    off = difficult[truth]
    take = np.where(off, bits, 0)
    by_truth = np.argsort(truth, kind="stable")
    for t in range(len(protocol.iou_thresholds)):
        wanting = by_truth[(bits[by_truth] >> t & 1 == 1) & ~off[by_truth]]
        first = wanting[np.flatnonzero(np.diff(truth[wanting], prepend=-1) != 0)]
        take[first] |= 1 << t
    called = place[detection]
    return _takes(called, truth, overlap, take, off, stable_order(called, len(place)))
