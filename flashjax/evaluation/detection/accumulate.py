"""From matches to precision and recall: all classes at once, and only where something is found.

Precision rises nowhere but at a true positive, so the curve is kept at those alone: the number of detections that
count down to there gives precision, and the envelope is a running maximum over the thresholds of recall. The values are
those that the official programs compute, to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashjax.evaluation.detection.matching import Takes
from flashjax.evaluation.detection.ragged import offsets

Array = np.ndarray


@dataclass(frozen=True)
class Ranking:
    """The detections that may count, by class and then by falling score; P places in all.

    Attributes:
        rows: int64 [P], row of each in the table of detections.
        starts: int64 [K + 1], where each class begins.
        scores: float64 [P].
        rank: int32 [P], place among the detections of its image and class, from 0.
        outside: bool [A, P], whether it does not count if it finds nothing: its area is out of range.
        takes: For each range of areas what they find, by place.
        positives: int64 [A, K], ground truths that count.
        unnamed: bool [N], ground truths with id 0, found in vain in the official program.
    """

    rows: Array
    starts: Array
    scores: Array
    rank: Array
    outside: Array
    takes: Sequence[Takes]
    positives: Array
    unnamed: Array

    def states(self, area: int, threshold: int) -> tuple[Array, Array, Array]:
        """(true positive, false positive, place in takes or -1) of each place, at one threshold."""
        takes = self.takes[area]
        at = (takes.bits >> threshold & 1).astype(bool)
        found = np.full(len(self.rows), -1)
        found[takes.detection[at]] = np.flatnonzero(at)
        named = at & ~self.unnamed[takes.truth]
        true, off = np.zeros(len(self.rows), bool), self.outside[area].copy()
        off[takes.detection[named]] = False
        off[takes.detection[at & takes.ignored]] = True
        true[takes.detection[named & ~takes.ignored]] = True
        return true, ~true & ~off, found


@dataclass(frozen=True)
class Precision:
    """Attributes:
    average: float64 [T, K, A]: the mean over recall thresholds, or the area; -1 without ground truth.
    precision, scores: float64 [T, R, K, A], at the recall thresholds; None where the area is taken.
    """

    average: Array
    precision: Array | None
    scores: Array | None


def recalls_of(ranking: Ranking, thresholds: int, limits: Sequence[int | None]) -> Array:
    """The last recall of each threshold, class, range of areas and limit, float64 [T, K, A, M]; -1 without ground
    truth."""
    areas, classes = ranking.positives.shape
    recall = np.full((areas, len(limits), thresholds, classes), -1.0)
    for a, takes in enumerate(ranking.takes):
        positives = ranking.positives[a]
        hit = ~takes.ignored & ~ranking.unnamed[takes.truth]
        owner = _class_of(ranking, takes.detection)
        rank = ranking.rank[takes.detection]
        for m, limit in enumerate(limits):
            counts = hit if limit is None else hit & (rank < limit)
            bits, of = takes.bits[counts], owner[counts]
            for t in range(thresholds):
                hits = np.bincount(of[np.flatnonzero(bits & (1 << t) != 0)], minlength=classes)
                recall[a, m, t] = np.where(positives > 0, hits / np.maximum(positives, 1), -1.0)
    return recall.transpose(2, 3, 0, 1)


def precision_of(
    ranking: Ranking, thresholds: int, recalls: Sequence[float] | None, limit: int | None, eps: float
) -> Precision:
    """Precision of each threshold, class and range of areas, at one limit.

    Args:
        recalls: Where precision is read; None: the area below its envelope instead.
        eps: Added to the number of detections: COCO's 2.2e-16, VOC's 0.
    """
    areas, classes = ranking.positives.shape
    average = np.full((areas, thresholds, classes), -1.0)
    precision = scores = None
    if recalls is not None:
        precision = np.full((areas, thresholds, classes, len(recalls)), -1.0)
        scores = np.full((areas, thresholds, classes, len(recalls)), -1.0)
    starts = ranking.starts[:-1]
    top = np.append(ranking.scores, 0.0)[starts]
    top = np.where(np.diff(ranking.starts) > 0, top, 0.0)
    within = None if limit is None else ranking.rank < limit
    running = np.zeros(len(ranking.rows) + 1, np.int32)  # before each place, how many count if they find nothing
    for a, takes in enumerate(ranking.takes):
        positives = ranking.positives[a]
        some = positives > 0
        needed = None if recalls is None else _needed(positives, np.asarray(recalls))
        counted = ~ranking.outside[a]
        kept = slice(None)
        if within is not None:
            counted &= within
            kept = np.flatnonzero(within[takes.detection])
        np.cumsum(counted, dtype=running.dtype, out=running[1:])
        place, bits, ignored, truth = (v[kept] for v in (takes.detection, takes.bits, takes.ignored, takes.truth))
        named = ~ranking.unnamed[truth]
        # What a find changes in that number: a hit counts, whatever its area; a hit on what is ignored does not.
        base = counted[place].astype(np.int64)
        change = np.where(ignored, -base, np.where(named, 1 - base, 0))
        hits = named & ~ignored
        changes = bool(change.any())
        owner = _class_of(ranking, place)
        after = (running[place + 1] - running[starts][owner]).astype(np.int64)
        for t in range(thresholds):
            on = np.flatnonzero(bits & (1 << t) != 0)
            chosen = np.flatnonzero(hits[on])
            hit = on[chosen]
            of = owner[hit]
            first = np.searchsorted(of, np.arange(classes + 1))
            total = after[hit]
            if changes:
                changed = np.zeros(len(on) + 1, np.int64)
                np.cumsum(change[on], out=changed[1:])
                total = total + changed[1 + chosen] - changed[np.searchsorted(place[on], starts)][of]
            true = np.arange(1, len(hit) + 1) - first[of]
            curve = true / (total + eps)
            if precision is None or scores is None or needed is None:
                average[a, t] = np.where(some, _area(curve, first, positives), -1.0)
                continue
            read, valid, index = _read(curve, first, needed)
            precision[a, t] = np.where(some[:, None], read, -1.0)
            found = np.where(valid, np.append(ranking.scores[place[hit]], 0.0)[index], 0.0)
            found = np.where(needed == 0, top[:, None], found)
            scores[a, t] = np.where(some[:, None], found, -1.0)
    if precision is not None and scores is not None:
        average = np.where((ranking.positives > 0)[:, None], precision.mean(-1), -1.0)
        precision, scores = precision.transpose(1, 3, 2, 0), scores.transpose(1, 3, 2, 0)
    return Precision(average.transpose(1, 2, 0), precision, scores)


def _class_of(ranking: Ranking, place: Array) -> Array:
    return np.searchsorted(ranking.starts, place, side="right") - 1


def _needed(positives: Array, recalls: Array) -> Array:
    """True positives with which each recall is reached: the least n with n / positives >= recall, int64 [K, R]."""
    total = np.maximum(positives, 1)[:, None]
    guess = np.ceil(recalls * total)
    guess = np.where((guess - 1) / total >= recalls, guess - 1, guess)
    return np.where(guess / total < recalls, guess + 1, guess).clip(0).astype(np.int64)


def _read(curve: Array, first: Array, needed: Array) -> tuple[Array, Array, Array]:
    """(envelope at the recalls [K, R], which of them are reached, index of the true positive that reaches each)."""
    begin, end = first[:-1, None], first[1:, None]
    index = begin + np.maximum(needed, 1) - 1
    valid = index < end
    index = np.where(valid, index, end)
    # Maxima of the stretches from one recall to the next, a last one standing for what follows the class.
    stretch = np.maximum.reduceat(np.append(curve, 0.0), np.append(index, end, axis=1).reshape(-1))
    best = np.where(valid, stretch.reshape(len(index), -1)[:, :-1], 0.0)
    return np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1], valid, index


def _area(curve: Array, first: Array, positives: Array) -> Array:
    """Area below the envelope of each class: the sum over true positives of the best precision from there on, times
    what recall gains."""
    areas = np.zeros(len(positives))
    for k in np.flatnonzero(np.diff(first) > 0).tolist():
        best = np.maximum.accumulate(curve[first[k] : first[k + 1]][::-1])[::-1]
        recall = np.arange(len(best) + 1) / positives[k]
        areas[k] = np.sum((recall[1:] - recall[:-1]) * best)
    return areas


def class_offsets(category: Array, classes: int) -> Array:
    """Where each class begins among rows in the order of classes."""
    return offsets(np.bincount(category, minlength=classes))
