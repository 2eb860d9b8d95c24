"""Detection mAP: the fixtures, VOC against its rule written out, what must hold for any data, the odd corners."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashjax.evaluation.detection import PROTOCOLS, Protocol, evaluate
from tests.evaluation.detection.scenarios import scenario
from tests.evaluation.detection.voc_reference import average_precision

# Four images of COCO val2014 (ids 42, 73, 74, 987): corners of ground truths, corners and scores of detections.
FIXTURE_TRUTH = {
    42: [(4, (214.15, 41.29, 562.41, 285.07))],
    73: [(2, (13.0, 22.75, 548.98, 632.42)), (2, (1.66, 3.32, 270.26, 275.23))],
    74: [
        (4, (61.87, 276.25, 358.29, 379.43)),
        (1, (2.75, 3.66, 162.15, 316.06)),
        (0, (295.55, 93.96, 313.97, 152.79)),
        (0, (326.94, 97.05, 340.49, 122.98)),
        (0, (356.62, 95.47, 372.33, 147.55)),
        (0, (462.08, 105.09, 493.74, 146.99)),
        (0, (277.11, 103.84, 292.44, 150.72)),
    ],
    987: [
        (49, (72.92, 45.96, 91.23, 80.57)),
        (49, (50.17, 45.34, 71.28, 79.83)),
        (49, (81.28, 47.04, 98.66, 78.50)),
        (49, (63.96, 46.17, 84.35, 80.48)),
        (49, (75.29, 23.01, 91.85, 50.85)),
        (49, (56.39, 21.65, 75.66, 45.54)),
        (49, (73.14, 1.10, 98.96, 28.33)),
        (49, (62.34, 55.23, 78.14, 79.57)),
        (49, (44.17, 45.78, 63.99, 78.48)),
        (49, (58.18, 44.80, 66.42, 56.25)),
    ],
}
FIXTURE_FOUND = {
    42: [(4, 0.236, (258.15, 41.29, 606.41, 285.07))],
    73: [(3, 0.318, (61.00, 22.75, 565.00, 632.42)), (2, 0.726, (12.66, 3.32, 281.26, 275.23))],
    74: [
        (4, 0.546, (87.87, 276.25, 384.29, 379.43)),
        (1, 0.3, (0.00, 3.66, 142.15, 316.06)),
        (0, 0.407, (296.55, 93.96, 314.97, 152.79)),
        (0, 0.611, (328.94, 97.05, 342.49, 122.98)),
        (0, 0.335, (356.62, 95.47, 372.33, 147.55)),
        (0, 0.805, (464.08, 105.09, 495.74, 146.99)),
        (0, 0.953, (276.11, 103.84, 291.44, 150.72)),
    ],
    987: [
        (49, 0.532, (72.92, 45.96, 91.23, 80.57)),
        (49, 0.204, (45.17, 45.34, 66.28, 79.83)),
        (49, 0.782, (82.28, 47.04, 99.66, 78.50)),
        (49, 0.202, (59.96, 46.17, 80.35, 80.48)),
        (49, 0.883, (75.29, 23.01, 91.85, 50.85)),
        (49, 0.271, (71.14, 1.10, 96.96, 28.33)),
        (49, 0.561, (61.34, 55.23, 77.14, 79.57)),
        (49, 0.204 + 1e-8, (41.17, 45.78, 60.99, 78.48)),
        (49, 0.349, (56.18, 44.80, 64.42, 56.25)),
    ],
}
FIXTURE_STATS = (0.643106, 0.881188, 0.758086, 0.637105, 0.8, 0.634983, 0.432, 0.658, 0.658, 0.688333, 0.8, 0.633333)


def fixture_columns():
    truth = [(i, c, b) for i, rows in FIXTURE_TRUTH.items() for c, b in rows]
    found = [(i, c, s, b) for i, rows in FIXTURE_FOUND.items() for c, s, b in rows]
    return (
        {"image_id": [i for i, *_ in truth], "category_id": [c for _, c, _ in truth], "bbox": [b for *_, b in truth]}
        | {"categories": [0, 1, 2, 3, 4, 49]},
        {"image_id": [i for i, *_ in found], "category_id": [c for _, c, *_ in found]}
        | {"score": [s for *_, s, _ in found], "bbox": [b for *_, b in found]},
    )


def test_real_coco_images():
    truth, found = fixture_columns()
    result = evaluate(truth, found, box_format="xyxy")
    np.testing.assert_allclose(result.stats, FIXTURE_STATS, atol=6e-7)
    assert result["AP50"] == result.stats[1] and result.stat_names[6:9] == ("AR1", "AR10", "AR100")
    assert {c.id: c.ground_truths for c in result.per_class} == {0: 5, 1: 1, 2: 2, 3: 0, 4: 2, 49: 10}
    assert result.per_class[3].ap == -1
    assert np.mean([c.ap for c in result.per_class if c.ap >= 0]) == pytest.approx(result["AP"])


def test_counts_and_ids_of_the_real_images():
    truth, found = fixture_columns()
    result = evaluate(truth, found, box_format="xyxy")
    matches = result.matches
    counts = matches.counts()
    assert counts["tp"] + counts["fp"] == 19 and counts["tp"] + counts["fn"] == 20 and counts["ignored"] == 0
    assert (counts["tp"], counts["fp"]) == (18, 1)
    lost = [one for one in matches.errors() if one["kind"] == "fn" and one["image_id"] == 73]
    assert [one["ground_truth_id"] for one in lost] == [2]  # the larger box of class 2: its detection says 3
    wrong = [one for one in matches.errors() if one["kind"] == "fp" and one["image_id"] == 73]
    assert [(one["category_id"], one["score"], one["detection_id"]) for one in wrong] == [(3, 0.318, 2)]
    right = np.flatnonzero(matches.true_positive)
    assert (matches.overlaps[right] >= 0.5).all() and np.isnan(matches.overlaps[matches.false_positive]).all()
    assert set(matches.ground_truth_ids[right]) | set(matches.truth_ids[matches.missed]) == set(range(1, 21))
    assert sum(c.tp for c in result.per_class) == counts["tp"]
    at_75 = result.matches_at(0.75)
    assert at_75.counts()["tp"] < counts["tp"] and at_75.iou == 0.75


def voc_rows(seed):
    """Integer corners on a coarse grid, so that overlaps meet the threshold and each other."""
    rng = np.random.default_rng(seed)

    def box():
        x, y = rng.integers(0, 12, 2) * 4
        w, h = rng.integers(0, 5, 2) * 4 + 3
        return [int(x), int(y), int(x + w), int(y + h)]

    truth = [
        (int(rng.integers(4)), int(rng.integers(3)), box(), bool(rng.random() < 0.2))
        for _ in range(int(rng.integers(1, 25)))
    ]
    found = []
    for i in range(int(rng.integers(0, 40))):
        image, label, corners, _ = truth[int(rng.integers(len(truth)))]
        corners = [int(v) for v in np.array(corners) + rng.integers(-1, 2, 4) * 2] if rng.random() < 0.7 else box()
        corners[2:] = [max(a, b) for a, b in zip(corners[:2], corners[2:], strict=True)]
        found.append((image, label, float(rng.random()) + i * 1e-9, corners))
    return truth, found


VOC = {name: p for name, p in PROTOCOLS.items() if p.matching == "voc"}


def test_voc_equals_the_rule_written_out():
    asked = {"pyfrcnn": np.arange(0.0, 1.1, 0.1), "rafael": np.linspace(0, 1, 11), "": [t / 10 for t in range(11)]}
    met = set()
    for seed in range(40):
        truth, found = voc_rows(seed)
        columns = (
            {"image_id": [r[0] for r in truth], "category_id": [r[1] for r in truth], "bbox": [r[2] for r in truth]}
            | {"ignore": [r[3] for r in truth], "images": range(4), "categories": range(3)},
            {"image_id": np.array([r[0] for r in found], int), "category_id": np.array([r[1] for r in found], int)}
            | {"score": [r[2] for r in found], "bbox": np.array([r[3] for r in found], float).reshape(-1, 4)},
        )
        for name, protocol in VOC.items():
            recalls = "area"
            if protocol.recall_thresholds is not None:
                recalls = next(v for k, v in asked.items() if k in name)
            expected = [average_precision(truth, found, k, 0.5, "pyfrcnn" in name, 1.0, recalls) for k in range(3)]
            result = evaluate(*columns, name, box_format="xyxy")
            ours = [one.ap for one in result.per_class]
            np.testing.assert_allclose(ours, [-1 if e is None else e for e in expected], atol=1e-12, err_msg=name)
            known = [e for e in expected if e is not None]
            assert result["mAP"] == pytest.approx(np.mean(known) if known else -1)
            met.add((name, round(result["mAP"], 6)))
    assert len(met) > 20 * len(VOC)
    for a, b in (("voc2010", "voc2010_pyfrcnn"), ("voc2007", "voc2007_pyfrcnn"), ("voc2007", "rafaelpadilla_11")):
        assert {v for n, v in met if n == a} != {v for n, v in met if n == b}, (a, b)


def test_eleven_recalls_that_are_a_hair_high():
    """3 of 10 found: .3 is reached, .30000000000000004 is not."""
    truth = {"image_id": np.arange(10), "category_id": [1] * 10, "bbox": [[0, 0, 9, 9]] * 10}
    found = {"image_id": [0, 1, 2], "category_id": [1] * 3, "bbox": [[0, 0, 9, 9]] * 3, "score": [0.9, 0.8, 0.7]}
    assert evaluate(truth, found, "voc2007")["mAP"] == pytest.approx(4 / 11)
    assert evaluate(truth, found, "voc2007_pyfrcnn")["mAP"] == pytest.approx(3 / 11)
    assert evaluate(truth, found, "rafaelpadilla_11")["mAP"] == pytest.approx(3 / 11)


def test_voc_second_best_is_no_comfort():
    """The better object is taken: COCO gives the second detection the other one, VOC calls it an error."""
    truth = {"image_id": [1, 1], "category_id": [1, 1], "bbox": [[0, 0, 10, 10], [0, 2, 10, 10]]}
    found = {"image_id": [1, 1], "category_id": [1, 1], "bbox": [[0, 0, 10, 10]] * 2, "score": [0.9, 0.8]}
    assert evaluate(truth, found, "voc2010").matches.counts() == {"tp": 1, "fp": 1, "fn": 1, "ignored": 0}
    assert evaluate(truth, found, "coco").matches.counts() == {"tp": 2, "fp": 0, "fn": 0, "ignored": 0}


def test_threshold_met_exactly():
    """Overlap exactly one half."""
    truth = {"image_id": [1], "category_id": [1], "bbox": [[0, 0, 10, 10]]}
    found = {"image_id": [1], "category_id": [1], "bbox": [[0, 0, 10, 5]], "score": [0.9]}
    assert evaluate(truth, found, "coco")["AP50"] == ONE
    truth["bbox"], found["bbox"] = [[0, 0, 9, 9]], [[0, 0, 9, 4]]  # with + 1
    assert evaluate(truth, found, "voc2010")["mAP"] == 1
    assert evaluate(truth, found, "voc2010_pyfrcnn")["mAP"] == 0


# What must hold for any data.

SEEDS = st.integers(0, 10_000)
QUIET = settings(max_examples=25, deadline=None, database=None)


def plain(seed):
    made = scenario(seed, "bbox")
    for one in made["found"]:
        one.pop("id", None)
    return made["truth"], made["found"]


@QUIET
@given(SEEDS, st.sampled_from(["coco", "coco_fixed", "voc2007", "voc2010"]))
def test_a_false_positive_below_all_scores_never_helps(seed, protocol):
    truth, found = plain(seed)
    before = evaluate(truth, found, protocol)
    low = min((one["score"] for one in found), default=1.0) - 1
    image, category = truth["images"][0]["id"], truth["categories"][0]["id"]
    far = {"image_id": image, "category_id": category, "bbox": [5000.0, 5000.0, 3.0, 3.0], "score": low}
    after = evaluate(truth, [*found, far], protocol)
    if protocol.startswith("coco"):
        known = before.curves.precision > -1
        assert (after.curves.precision[known] == before.curves.precision[known]).all()
    assert (after.curves.average <= before.curves.average + 1e-15).all()


@QUIET
@given(SEEDS, st.sampled_from(["coco", "coco_fixed", "voc2010"]), st.randoms(use_true_random=False))
def test_order_of_images_changes_nothing(seed, protocol, random):
    truth, found = plain(seed)
    before = evaluate(truth, found, protocol).stats
    for key in ("images", "categories"):
        random.shuffle(truth[key])
    ids = [image["id"] for image in truth["images"]]
    place = {image: n for n, image in enumerate(ids)}
    found.sort(key=lambda one: place[one["image_id"]])
    truth["annotations"].sort(key=lambda one: place[one["image_id"]])
    np.testing.assert_array_equal(evaluate(truth, found, protocol).stats, before)


@QUIET
@given(SEEDS, st.floats(0.1, 10), st.floats(-5, 5))
def test_rising_transforms_of_the_score_change_nothing(seed, scale, shift):
    truth, found = plain(seed)
    before = evaluate(truth, found).stats
    for one in found:
        one["score"] = one["score"] * scale + shift
    np.testing.assert_allclose(evaluate(truth, found).stats, before, atol=1e-12)


@QUIET
@given(SEEDS)
def test_stricter_overlap_finds_less(seed):
    truth, found = plain(seed)
    recall = evaluate(truth, found, "coco_fixed").curves.recall
    assert (np.diff(recall, axis=0) <= 1e-15).all()
    assert (np.diff(recall, axis=3) >= -1e-15).all()  # more detections find more


@QUIET
@given(SEEDS)
def test_the_truth_itself_is_perfect(seed):
    truth, _ = plain(seed)
    truth["annotations"] = [one for one in truth["annotations"] if one["bbox"][2] * one["bbox"][3] > 0]
    found = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": 0.5}
        for one in truth["annotations"]
        if not one["iscrowd"]
    ]
    for one in truth["annotations"]:
        one["ignore"] = 0
    result = evaluate(truth, found, "coco_fixed", max_detections=[100])
    assert result["AP"] == (ONE if found else -1)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, database=None)
@given(SEEDS)
def test_counts_add_up(seed):
    """At every threshold and area: found and missed are all that count; every detection is one of three things."""
    truth, found = plain(seed)
    result = evaluate(truth, found, "coco")
    for t in (0.5, 0.75, 0.95):
        for a, area in enumerate(result.curves.areas):
            matches = result.matches_at(t, area)
            counts = matches.counts()
            assert counts["tp"] + counts["fn"] == result.comparison.ranking.positives[a].sum()
            assert not (matches.true_positive & matches.false_positive).any()
            taken = matches.found[matches.true_positive]
            assert len(np.unique(taken)) == len(taken)
            for k in range(len(result.curves.categories)):
                curve = result.curves.of(k, t, area)
                place = round(t * 20 - 10)
                expected = result.curves.recall[place, k, a, -1]
                assert (curve.recall[-1] if len(curve.recall) else 0) == (expected if curve.positives else 0)


# The odd corners.


def one_image(**more):
    return {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100} | more],
    }


ONE = pytest.approx(1, abs=1e-12)  # COCO adds 2e-16 to the number of detections
HIT = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5}]


def test_id_0_is_found_in_vain():
    assert evaluate(one_image(id=0), HIT, "coco")["AP"] == 0
    assert evaluate(one_image(id=0), HIT, "coco_fixed")["AP"] == ONE


def test_ignore_is_overwritten():
    assert evaluate(one_image(ignore=1), HIT, "coco")["AP"] == ONE
    assert evaluate(one_image(ignore=1), HIT, "coco_fixed")["AP"] == -1


def test_average_precision_is_read_at_100_detections():
    options = {"max_detections": [1, 10, 300]}
    official, fixed = (evaluate(one_image(), HIT, name, **options) for name in ("coco", "coco_fixed"))
    assert official["AP"] == -1 and official["AP50"] == ONE and fixed["AP"] == ONE
    assert official.stat_names[8] == fixed.stat_names[8] == "AR300"
    with pytest.raises(ValueError, match="three limits"):
        evaluate(one_image(), HIT, "coco", max_detections=[100])
    assert evaluate(one_image(), HIT, "coco_fixed", max_detections=[7])["AR7"] == 1


def test_nothing_found_and_nothing_there():
    empty = one_image() | {"annotations": []}
    for protocol in ("coco", "coco_fixed", "voc2007", "voc2010"):
        none = evaluate(one_image(), [], protocol)
        assert none.stats[0] == 0, protocol
        assert none.matches.counts() == {"tp": 0, "fp": 0, "fn": 1, "ignored": 0}
        assert (evaluate(empty, [], protocol).stats == -1).all()
        assert (evaluate(empty, HIT, protocol).stats == -1).all()
        assert "class" in none.table() and none.errors().counts["missed"] == 1
    for kind in ("segm", "keypoints"):
        more = {"segmentation": [[0, 0, 0, 9, 9, 9, 9, 0]], "keypoints": [1.0, 1.0, 2] * 17}
        assert evaluate(one_image(**more), [], "coco", kind).stats[0] == 0
        assert (evaluate(empty, [], "coco", kind).stats == -1).all()


def test_a_crowd_is_found_often():
    truth = one_image(bbox=[0, 0, 50, 50], iscrowd=1)
    truth["annotations"].append({"id": 2, "image_id": 1, "category_id": 1, "bbox": [60, 60, 10, 10], "area": 100})
    found = [HIT[0] | {"bbox": [x, 0, 10, 10], "score": 0.9 - x / 100} for x in (0, 10, 20)]
    found.append(HIT[0] | {"bbox": [60, 60, 10, 10], "score": 0.1})
    result = evaluate(truth, found)
    assert result.matches.counts() == {"tp": 1, "fp": 0, "fn": 0, "ignored": 3} and result["AP"] == ONE


def test_area_on_the_border_is_of_both_sizes():
    result = evaluate(one_image(bbox=[0, 0, 32, 32], area=1024), [HIT[0] | {"bbox": [0, 0, 32, 32]}])
    assert result["APs"] == result["APm"] == ONE and result["APl"] == -1


def test_areas_thresholds_and_classes_of_ones_own():
    truth, found = plain(11)
    result = evaluate(truth, found, "coco_fixed", areas={"any": (0, 1e9), "tiny": (0, 50)}, iou_thresholds=[0.3, 0.6])
    assert result.stat_names == ("AP", "AP_tiny", "AR1", "AR10", "AR100", "AR_tiny")
    assert result.curves.areas == ("any", "tiny")
    joined = evaluate(truth, found, use_categories=False)
    assert joined.curves.categories == ("all",) and len(joined.per_class) == 1
    some = evaluate(truth, found, image_ids=[truth["images"][0]["id"]], category_ids=[truth["categories"][0]["id"]])
    assert len(some.comparison.truth.catalogue.images) == len(some.curves.categories) == 1


def test_sixty_four_thresholds_are_too_many():
    assert len(evaluate(one_image(), HIT, iou_thresholds=np.linspace(0.1, 0.9, 63)).curves.recall) == 63
    with pytest.raises(ValueError, match="at most 63"):
        evaluate(one_image(), HIT, iou_thresholds=np.linspace(0.1, 0.9, 64))


def test_protocols_say_what_they_cannot():
    with pytest.raises(ValueError, match="unknown protocol 'cocco'; nearest: coco"):
        evaluate(one_image(), HIT, "cocco")
    with pytest.raises(ValueError, match="unknown iou_type 'box'"):
        evaluate(one_image(), HIT, "coco", "box")
    with pytest.raises(ValueError, match="compares boxes"):
        evaluate(one_image(), HIT, "voc2007", "segm")
    with pytest.raises(ValueError, match="use coco_fixed"):
        evaluate(one_image(), HIT, "coco", "keypoints", use_categories=False)
    with pytest.raises(ValueError, match="must rise"):
        evaluate(one_image(), HIT, recall_thresholds=[0.5, 0.1])
    with pytest.raises(ValueError, match="17 keypoints"):
        points = {"keypoints": [1.0, 1.0, 2] * 17}
        evaluate(one_image(**points), [HIT[0] | points], "crowdpose", "keypoints")
    with pytest.raises(ValueError, match=r"IoU 0\.42 is none of the thresholds"):
        evaluate(one_image(), HIT).matches_at(0.42)
    with pytest.raises(ValueError, match="category 'zebra' is none of a"):
        evaluate(one_image(), HIT).curves.of("zebra")
    assert isinstance(PROTOCOLS["coco"], Protocol)


def test_input_is_left_alone():
    made = scenario(3, "segm")
    before = copy.deepcopy(made)
    evaluate(made["truth"], made["found"], "coco", "segm")
    assert made == before


def test_table_names_the_numbers():
    truth, found = fixture_columns()
    text = evaluate(truth, found, box_format="xyxy").table()
    assert "AP50" in text and "0.8812" in text and "average recall, IoU 0.5 to 0.95, 10 detections" in text
    assert "true positives 18, false positives 1, missed 2, ignored 0" in text and "1 class has no ground truth" in text
