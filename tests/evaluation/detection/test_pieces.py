"""All is worked on in pieces that stay in the cache: they change no result, and the work grows with the boxes alone."""

import numpy as np
import pytest

from flashjax.evaluation.detection import evaluate, matching, overlaps, ranks, tables
from tests.evaluation.detection.scenarios import scenario


def whole(seed, kind, protocol="coco"):
    made = scenario(seed, kind)
    result = evaluate(made["truth"], made["found"], protocol, kind, **made["options"])
    matches, curves = result.matches, result.curves
    arrays = [result.stats, curves.precision, curves.scores, curves.recall]
    return [*arrays, matches.found, matches.detection_rows, matches.true_positive, matches.false_positive]


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_pieces_change_nothing(monkeypatch, kind):
    before = [whole(seed, kind) for seed in range(5)]
    for module, name in ((overlaps, "BLOCK"), (matching, "MATCHED"), (ranks, "RANKED"), (tables, "CHUNK")):
        assert getattr(module, name) >= 1 << 14
        monkeypatch.setattr(module, name, 3)
    for seed, arrays in enumerate(before):
        for ours, theirs in zip(whole(seed, kind), arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def copies(count):
    """The images of a few scenarios' worth of columns, ``count`` times."""
    rng = np.random.default_rng(0)
    image, box = np.repeat(np.arange(20), 30), rng.integers(0, 60, (600, 4)).astype(float)
    box[:, 2:] += 20
    one = {"image_id": image, "category_id": rng.integers(0, 3, 600), "bbox": box}
    tiled = {key: np.concatenate([value] * count) for key, value in one.items()}
    tiled["image_id"] = tiled["image_id"] + np.repeat(np.arange(count) * 20, 600)
    kept = np.arange(600 * count) % 600 % 6 == 0
    truth = {key: value[kept] for key, value in tiled.items()} | {"images": np.arange(20 * count)}
    return truth, tiled | {"score": np.tile(rng.random(600).round(2), count)}


def test_work_grows_with_the_boxes_alone(monkeypatch):
    """Of many images each meets but itself: pairs that are measured, matched, and the steps of matching in a piece."""
    counted = {"measured": 0, "matched": 0, "steps": 0}
    measure, match, spans = overlaps.BoxMeasure.__call__, matching._match, matching._spans

    def counting_measure(self, rows, truths, least):
        counted["measured"] += len(rows)
        return measure(self, rows, truths, least)

    def counting_match(detection, *more):
        counted["matched"] += len(detection)
        return match(detection, *more)

    def counting_spans(turn):
        made = spans(turn)
        counted["steps"] += len(made)
        return made

    monkeypatch.setattr(overlaps.BoxMeasure, "__call__", counting_measure)
    monkeypatch.setattr(matching, "_match", counting_match)
    monkeypatch.setattr(matching, "_spans", counting_spans)
    work = {}
    for count in (1, 4):
        counted.update(dict.fromkeys(counted, 0))
        evaluate(*copies(count))
        work[count] = dict(counted)
    assert work[1]["measured"] > work[1]["matched"] > 100 and work[1]["steps"] > 3
    assert work[4] == {
        "measured": 4 * work[1]["measured"],
        "matched": 4 * work[1]["matched"],
        "steps": work[1]["steps"],
    }
