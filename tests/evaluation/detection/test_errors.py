"""Types of error against the rule written out, and the confusion table against a plain greedy loop."""

import numpy as np
import pytest

from flashjax.evaluation.detection import evaluate
from flashjax.evaluation.detection.errors import TYPES
from tests.evaluation.detection.scenarios import scenario


def iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared) if shared else 0.0


def kinds_written_out(truth, found, result):
    """{detection id: type} and the ids of what is missed, one error at a time."""
    matches = result.matches
    right = dict(
        zip(
            matches.detection_ids[matches.true_positive].tolist(),
            matches.ground_truth_ids[matches.true_positive].tolist(),
            strict=True,
        )
    )
    wrong = set(matches.detection_ids[matches.false_positive].tolist())
    taken = set(right.values())
    kinds, nearly = {}, set()
    for number, one in enumerate(found, start=1):
        if number not in wrong:
            continue
        there = [t for t in truth["annotations"] if t["image_id"] == one["image_id"] and not t["iscrowd"]]
        own = [(iou(one["bbox"], t["bbox"]), t["id"]) for t in there if t["category_id"] == one["category_id"]]
        other = [(iou(one["bbox"], t["bbox"]), t["id"]) for t in there if t["category_id"] != one["category_id"]]
        best_own = max(own, default=(0, None), key=lambda pair: pair[0])
        best_other = max(other, default=(0, None), key=lambda pair: pair[0])
        if 0.1 <= best_own[0] <= 0.5:
            kinds[number] = "localisation"
            nearly.add(best_own[1])
        elif best_other[0] >= 0.5:
            kinds[number] = "classification"
            nearly.add(best_other[1])
        elif any(value >= 0.5 and t in taken for value, t in own):
            kinds[number] = "duplicate"
        elif max(best_own[0], best_other[0]) <= 0.1:
            kinds[number] = "background"
        else:
            kinds[number] = "both"
    counted = {t["id"] for t in truth["annotations"] if not t["iscrowd"]}
    return kinds, counted - taken - nearly


def plain(seed):
    made = scenario(seed, "bbox")
    for one in made["found"]:
        one.pop("id", None)
    made["truth"]["annotations"].sort(key=lambda one: one["id"])
    for number, one in enumerate(made["truth"]["annotations"], start=1):
        one |= {"id": number, "ignore": 0}
    return made["truth"], made["found"]


def test_types_are_those_written_out():
    met = set()
    for seed in range(60):
        truth, found = plain(seed)
        result = evaluate(truth, found, "coco_fixed", max_detections=[100])
        errors = result.errors()
        kinds, missed = kinds_written_out(truth, found, result)
        ours = {
            int(number): TYPES[kind]
            for number, kind in zip(errors.matches.detection_ids, errors.kind, strict=True)
            if kind >= 0
        }
        assert ours == kinds, seed
        assert set(errors.matches.truth_ids[errors.missed].tolist()) == missed
        assert sum(errors.counts.values()) == len(kinds) + len(missed)
        met |= set(kinds.values()) | ({"missed"} if missed else set())
        assert all(0 <= gain <= 1 for gain in errors.gains.values())
        if errors.ap >= 0:
            assert errors.ap == pytest.approx(result["AP50"], abs=1e-9)
    assert met == set(TYPES)


def single(boxes, found):
    truth = {"image_id": [1] * len(boxes), "category_id": [c for c, _ in boxes], "bbox": [b for _, b in boxes]}
    columns = {"image_id": [1] * len(found), "category_id": [c for c, *_ in found]}
    columns |= {"score": [s for _, s, _ in found], "bbox": [b for *_, b in found]}
    return evaluate(truth | {"categories": {1: "a", 2: "b"}}, columns)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("localisation", [(1, 0.9, [0, 0, 10, 3])]),
        ("classification", [(2, 0.9, [0, 0, 10, 10])]),
        ("both", [(2, 0.9, [0, 0, 10, 3])]),
        ("background", [(1, 0.9, [50, 50, 10, 10])]),
        ("duplicate", [(1, 0.9, [0, 0, 10, 10]), (1, 0.8, [0, 0, 10, 9])]),
    ],
)
def test_each_type_and_what_it_costs(kind, found):
    result = single([(1, [0, 0, 10, 10]), (2, [0, 80, 10, 10])], [*found, (2, 0.5, [0, 80, 10, 10])])
    errors = result.errors()
    false = {name: n for name, n in errors.counts.items() if n and name != "missed"}
    assert false == {kind: 1}
    if kind in ("localisation", "classification"):
        assert errors.counts["missed"] == 0
        assert errors.ap + errors.gains[kind] == pytest.approx(1)  # put right, everything is found
    elif kind in ("both", "background"):
        assert errors.counts["missed"] == 1
    else:  # below the right one of its class, it costs nothing
        assert errors.gains["duplicate"] == 0 and errors.ap == pytest.approx(1)


def test_confusion_written_out():
    for seed in range(30):
        truth, found = plain(seed)
        names = {c["id"]: n for n, c in enumerate(sorted(truth["categories"], key=lambda c: c["id"]))}
        expected = np.zeros((len(names) + 1,) * 2, int)
        for image in truth["images"]:
            there = [t for t in truth["annotations"] if t["image_id"] == image["id"]]
            # The rows of a class, then the next class: the order in which equal overlaps and scores are settled.
            there.sort(key=lambda t: (names[t["category_id"]], t["id"]))
            mine = [one for one in found if one["image_id"] == image["id"] and one["score"] >= 0.2]
            mine.sort(key=lambda one: (-one["score"], names[one["category_id"]]))
            free = [not t["iscrowd"] for t in there]
            for one in mine:
                best, chosen = 0.5, None
                for place, t in enumerate(there):
                    if not t["iscrowd"] and free[place] and iou(one["bbox"], t["bbox"]) >= best:
                        best, chosen = iou(one["bbox"], t["bbox"]), place
                column = names[one["category_id"]]
                if chosen is not None:
                    free[chosen] = False
                    expected[names[there[chosen]["category_id"]], column] += 1
                else:
                    x, y, w, h = one["bbox"]
                    crowds = [t["bbox"] for t in there if t["iscrowd"]]
                    inside = [
                        max(min(x + w, b[0] + b[2]) - max(x, b[0]), 0) * max(min(y + h, b[1] + b[3]) - max(y, b[1]), 0)
                        for b in crowds
                    ]
                    if not any(v and v / (w * h) >= 0.5 for v in inside):
                        expected[-1, column] += 1
            for place, t in enumerate(there):
                if free[place]:
                    expected[names[t["category_id"]], -1] += 1
        result = evaluate(truth, found, "coco_fixed", max_detections=[100])
        confusion = result.confusion(0.5, 0.2)
        np.testing.assert_array_equal(confusion.table, expected, err_msg=str(seed))
        assert confusion.names[-1] == "nothing" and confusion.table.dtype == np.int64


def test_masks_and_voc_have_types_too():
    made = scenario(4, "segm")
    result = evaluate(made["truth"], made["found"], "coco", "segm")
    errors = result.errors()
    counts = result.matches.counts()
    assert sum(errors.counts.values()) - errors.counts["missed"] == counts["fp"] > 0
    assert errors.counts["missed"] <= counts["fn"]
    truth, found = plain(7)
    voc = evaluate(truth, found, "voc2010")
    assert sum(voc.errors().counts.values()) >= voc.matches.counts()["fp"]
    with pytest.raises(ValueError, match="background must be between 0 and iou"):
        voc.errors(background=0.7)
