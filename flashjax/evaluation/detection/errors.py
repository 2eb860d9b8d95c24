"""Why detections are wrong: types of error and what each costs, and which class is taken for which.

The types and their order of precedence are those of Bolya, Foley, Hays, Hoffman, "TIDE: A General Toolbox for
Identifying Object Detection Errors" (2020), section 2, on the protocol's own matching.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flashjax.evaluation.detection import compare, overlaps
from flashjax.evaluation.detection.matching import match_greedily
from flashjax.evaluation.detection.ragged import offsets
from flashjax.evaluation.detection.result import Matches, Result

Array = np.ndarray

TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")
WORDS = {
    "classification": "right place, wrong class",
    "localisation": "right class, place not good enough",
    "both": "wrong class, and place not good enough",
    "duplicate": "right, but a higher score was there first",
    "background": "nothing is there",
    "missed": "a ground truth that no detection means",
}


@dataclass(frozen=True)
class Errors:
    """The errors at one threshold, all areas.

    Attributes:
        matches: Who found whom; rows below are its rows.
        kind: int8 [D], index into TYPES of each false positive, -1 for other detections.
        meant: int64 [D], row of the ground truth that an error of classification or localisation, or a duplicate, is
            about; -1 for others.
        missed: bool [N], the ground truths of type "missed"; of the others that were not found, some detection was
            nearly right.
        counts: Number of each type.
        ap: Average precision as it is, mean over classes with ground truth.
        gains: By how much it would rise if all errors of one type were repaired (and none of another): what is
            misplaced or misnamed is put right if its ground truth is free, the highest score alone; what else is
            false is dropped; what is missed no longer counts. "false_positives" and "false_negatives": if there were
            none.
    """

    matches: Matches
    kind: Array
    meant: Array
    missed: Array
    counts: Mapping[str, int]
    ap: float
    gains: Mapping[str, float]


def error_types(result: Result, iou: float = 0.5, background: float = 0.1) -> Errors:
    """The false positives and false negatives of ``result`` by type.

    Of a false positive, the first that fits: localisation, if it overlaps a ground truth of its class by
    ``background`` to ``iou``; classification, if it overlaps one of another class by ``iou``; duplicate, if by ``iou``
    one of its class that is taken; background, if it overlaps none by more than ``background``; both.

    Raises:
        ValueError: if ``iou`` is none of the thresholds, or ``background`` is not below it.
    """
    if not 0 < background < iou:
        raise ValueError(f"background must be between 0 and iou ({iou:g}); it is {background:g}")
    matches = result.matches_at(iou)
    pairs = _image_pairs(result, background)
    c = result.comparison
    ranking, truth = c.ranking, c.truth
    count, truths = len(matches.scores), len(truth)
    wrong = matches.false_positive
    d, g, overlap = pairs.detection, pairs.truth, pairs.overlap
    kept = wrong[d] & ~matches.truth_ignored[g]
    d, g, overlap = d[kept], g[kept], overlap[kept]
    same = _classes_found(result)[d] == _classes_true(result)[g]
    taken = np.zeros(truths, bool)
    taken[matches.found[matches.true_positive]] = True

    own, own_truth = _best(d, g, np.where(same, overlap, 0.0), count)
    other, other_truth = _best(d, g, np.where(same, 0.0, overlap), count)
    used, used_truth = _best(d, g, np.where(same & taken[g], overlap, 0.0), count)
    nearest, _ = _best(d, g, overlap, count)
    kind, meant = np.full(count, -1, np.int8), np.full(count, -1)
    rules = (
        ("localisation", (own >= background) & (own <= iou), own_truth),
        ("classification", other >= iou, other_truth),
        ("duplicate", used >= iou, used_truth),
        ("background", nearest <= background, None),
        ("both", np.ones(count, bool), None),
    )
    for name, fits, about in rules:
        now = wrong & (kind < 0) & fits
        kind[now] = TYPES.index(name)
        if about is not None:
            meant[now] = about[now]

    nearly = (kind == TYPES.index("localisation")) | (kind == TYPES.index("classification"))
    nearly &= meant >= 0
    nearly[nearly] = ~taken[meant[nearly]]
    hoped = np.zeros(truths, bool)
    hoped[meant[nearly]] = True
    missed = matches.missed & ~hoped
    # Of those that are nearly right about one ground truth, the highest score would be right (of equal ones the first).
    candidates = np.flatnonzero(nearly)
    candidates = candidates[np.lexsort([candidates, -matches.scores[candidates], meant[candidates]])]
    first = candidates[np.flatnonzero(np.diff(meant[candidates], prepend=-1) != 0)]
    repaired = np.zeros(count, bool)
    repaired[first] = True

    classes = len(result.curves.categories)
    positives = ranking.positives[0]
    label = _classes_found(result)
    true = matches.true_positive
    valid = true | wrong
    read = _Reader(matches.scores, positives, classes)
    ap = read(label, true, valid)

    def gain(*repaired: Array) -> float:
        return max(read(*repaired) - ap, 0.0)  # a mean over fewer classes may be lower

    gains = {}
    for number, name in enumerate(TYPES[:-1]):
        mine = kind == number
        fixed = mine & repaired
        labels = label.copy()
        if name == "classification":
            labels[fixed] = _classes_true(result)[meant[fixed]]
        gains[name] = gain(labels, true | fixed, valid & ~(mine & ~fixed))
    lost = np.bincount(_classes_true(result)[missed], minlength=classes)
    gains["missed"] = gain(label, true, valid, positives - lost)
    gains["false_positives"] = gain(label, true, true)
    unfound = np.bincount(_classes_true(result)[matches.missed], minlength=classes)
    gains["false_negatives"] = gain(label, true, valid, positives - unfound)
    counts = {name: int((kind == number).sum()) for number, name in enumerate(TYPES[:-1])}
    counts["missed"] = int(missed.sum())
    return Errors(matches, kind, meant, missed, counts, ap, gains)


@dataclass(frozen=True)
class Confusion:
    """Attributes:
    names: Of the classes, then "nothing".
    table: int64 [K + 1, K + 1]: row of the true class, column of the detected one. The last row holds detections of
        nothing, the last column ground truths that were not detected.
    iou, min_score: From where on they were compared.
    """

    names: tuple[str, ...]
    table: Array
    iou: float
    min_score: float


def confusion_table(result: Result, iou: float = 0.5, min_score: float = 0.0) -> Confusion:
    """Which class is taken for which: detections of ``min_score`` or more find ground truths of any class, by falling
    score and largest overlap; what lies in a crowd or on what is ignored does not count."""
    c = result.comparison
    classes = len(result.curves.categories)
    matches = result.matches_at(None)
    pairs = _image_pairs(result, min(iou, 1 - 1e-10))
    ranking = c.ranking
    kept = ranking.scores >= min_score
    image = c.found.image[ranking.rows]
    order = np.flatnonzero(kept)
    order = order[np.lexsort([order, -ranking.scores[order], image[order]])]
    place = np.full(len(kept), -1)
    place[order] = np.arange(len(order))
    chosen = np.flatnonzero(kept[pairs.detection])
    chosen = chosen[np.argsort(place[pairs.detection[chosen]], kind="stable")]
    these = overlaps.Pairs(place[pairs.detection[chosen]], pairs.truth[chosen], pairs.overlap[chosen])
    ignored = matches.truth_ignored
    take = match_greedily(
        these,
        image[order],
        ignored[None],
        np.zeros(len(c.truth), bool) if result.protocol.federated else c.truth.crowd,
        np.zeros(len(order), bool),
        (iou,),
        np.arange(len(order)),
    )[0]
    found = _classes_found(result)[order]
    true = _classes_true(result)
    table = np.zeros((classes + 1, classes + 1), np.int64)
    right = ~take.ignored
    np.add.at(table, (true[take.truth[right]], found[take.detection[right]]), 1)
    alone = np.ones(len(order), bool)
    alone[take.detection] = False
    np.add.at(table[classes], found[alone], 1)
    free = ~ignored
    free[take.truth[right]] = False
    np.add.at(table[:, classes], true[free], 1)
    return Confusion((*result.curves.categories, "nothing"), table, iou, min_score)


def _image_pairs(result: Result, least: float) -> overlaps.Pairs:
    """All pairs of an image, of whatever classes, that overlap by ``least``; detections are places of the ranking."""
    c = result.comparison
    images = len(c.truth.catalogue.images)
    rows = c.ranking.rows[c.places]
    image = c.found.image[rows]
    starts = offsets(np.bincount(image, minlength=images))
    measure = compare.make_measure(c.truth, c.found, result.protocol, result.iou_type)
    parts = []
    for block in overlaps.blocks(c.found, np.diff(starts)):
        span = slice(int(starts[block.start]), int(starts[block.stop]))
        measure.prepare(rows[span])
        parts.append(overlaps.find_pairs(rows[span], image[span], c.truth.image, measure, least, span.start))
    pairs = overlaps.Pairs.join(parts)
    return overlaps.Pairs(c.places[pairs.detection], pairs.truth, pairs.overlap)


def _classes_found(result: Result) -> Array:
    c = result.comparison
    return np.repeat(np.arange(len(result.curves.categories)), np.diff(c.ranking.starts))


def _classes_true(result: Result) -> Array:
    truth = result.comparison.truth
    return truth.category if result.protocol.use_categories else np.zeros(len(truth), np.int64)


def _best(d: Array, g: Array, overlap: Array, count: int) -> tuple[Array, Array]:
    """(largest overlap of each detection, 0 for none; the ground truth it is with, of equal ones the first)."""
    best, truth = np.zeros(count), np.full(count, -1)
    some = overlap > 0
    d, g, overlap = d[some], g[some], overlap[some]
    order = np.lexsort([g, -overlap, d])
    first = order[np.flatnonzero(np.diff(d[order], prepend=-1) != 0)]
    best[d[first]], truth[d[first]] = overlap[first], g[first]
    return best, truth


class _Reader:
    """Mean average precision at 101 recalls of labelled, ranked detections."""

    def __init__(self, scores: Array, positives: Array, classes: int):
        self.scores, self.positives, self.classes = scores, positives, classes
        self.recalls = np.linspace(0, 1, 101)

    def __call__(self, label: Array, true: Array, valid: Array, positives: Array | None = None) -> float:
        positives = self.positives if positives is None else positives
        rows = np.flatnonzero(valid)
        rows = rows[np.lexsort([rows, -self.scores[rows], label[rows]])]
        starts = offsets(np.bincount(label[rows], minlength=self.classes))
        values = []
        for k in range(self.classes):
            hits = np.cumsum(true[rows[starts[k] : starts[k + 1]]])
            if self.positives[k] == 0 or (positives[k] == 0 and not len(hits)):
                continue
            if positives[k] == 0:  # all of its detections are errors, and no ground truth is left
                values.append(0.0)
                continue
            precision = hits / np.arange(1, len(hits) + 1)
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            values.append(envelope[np.searchsorted(hits / positives[k], self.recalls)].mean())
        return float(np.mean(values)) if values else -1.0
