"""Detection mAP against pycocotools and lvis, number by number: the twelve, and every precision, recall and score.

pycocotools: 540 random scenarios (scenarios.py says what is in them), and the codec of masks on its own.
lvis: 60, with limits, searched and half-searched classes.
"""

import collections
import contextlib
import copy
import io
import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

from flashjax.evaluation.detection import PROTOCOLS, Evaluator, evaluate, masks
from flashjax.evaluation.detection.mask_overlap import intersections
from flashjax.evaluation.detection.polygons import from_boxes, from_polygons
from tests.evaluation.detection.scenarios import SIZE, lvis_scenario, scenario

REASON = "parity needs the extra: pip install 'flashjax[parity]'"
coco = pytest.importorskip("pycocotools.coco", reason=REASON)
cocoeval = pytest.importorskip("pycocotools.cocoeval", reason=REASON)
codec = pytest.importorskip("pycocotools.mask", reason=REASON)


def coco_of(dataset):
    made = coco.COCO()
    made.dataset = copy.deepcopy(dataset)
    made.createIndex()
    return made


def official(made, kind):
    """pycocotools' evaluation of a scenario."""
    dataset, found = made["truth"], copy.deepcopy(made["found"])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_of(dataset)
        own = made["own"] or not found
        results = coco_of(dataset | {"annotations": found}) if own else truth.loadRes(found)
        run = cocoeval.COCOeval(truth, results, kind)
        options = made["options"]
        if "iou_thresholds" in options:
            run.params.iouThrs = np.array(options["iou_thresholds"])
        if "recall_thresholds" in options:
            run.params.recThrs = np.array(options["recall_thresholds"])
        if "max_detections" in options:
            run.params.maxDets = options["max_detections"]
        if "areas" in options:
            run.params.areaRngLbl = list(options["areas"])
            run.params.areaRng = [list(span) for span in options["areas"].values()]
        if "use_categories" in options:
            run.params.useCats = 0
        run.params.imgIds = options.get("image_ids", run.params.imgIds)
        run.params.catIds = options.get("category_ids", run.params.catIds)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def given(made):
    """The detections as `evaluate` takes them: with ids of their own they are a dataset."""
    found = copy.deepcopy(made["found"])
    return {"annotations": found} if made["own"] else found


def assert_same(made, kind):
    run = official(made, kind)
    ours = evaluate(made["truth"], given(made), "coco", kind, **made["options"])
    np.testing.assert_allclose(ours.stats, run.stats, rtol=0, atol=1e-12)
    # Not only the means: every number behind them, and exactly.
    np.testing.assert_array_equal(ours.curves.precision, run.eval["precision"])
    np.testing.assert_array_equal(ours.curves.recall, run.eval["recall"])
    np.testing.assert_array_equal(ours.curves.scores, run.eval["scores"])


QUICK = {"bbox": range(60), "segm": range(30), "keypoints": range(30)}
LONG = {"bbox": range(60, 220), "segm": range(30, 160), "keypoints": range(30, 160)}


@pytest.mark.parametrize("kind", QUICK)
def test_scenarios_equal_pycocotools(kind):
    for seed in QUICK[kind]:
        assert_same(scenario(seed, kind), kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONG)
def test_more_scenarios_equal_pycocotools(kind):
    for seed in LONG[kind]:
        assert_same(scenario(seed, kind), kind)


def test_scenarios_are_no_formality():
    """Most of them have an average precision that is neither 0, nor 1, nor undefined."""
    for kind in QUICK:
        values = np.array(
            [evaluate((m := scenario(s, kind))["truth"], given(m), "coco", kind).stats for s in range(20)]
        )
        assert ((values[:, 1] > 0.02) & (values[:, 1] < 0.98)).mean() > 0.5, kind


def oddities(made):
    """What is odd about a scenario."""
    truth, found, options = made["truth"]["annotations"], made["found"], made["options"]
    of_truth, of_found = ({one["image_id"] for one in rows} for rows in (truth, found))
    images = {image["id"] for image in made["truth"]["images"]}
    met = {f"custom {key}" for key in options}
    scores = [one["score"] for one in found]
    segmentations = [one.get("segmentation") for one in truth]
    for name, there in (
        ("ties", len(set(scores)) < len(scores)),
        ("crowds", any(one["iscrowd"] for one in truth)),
        ("ignored", any(one.get("ignore") for one in truth)),
        ("images without truth", images - of_truth),
        ("images without detections", images - of_found),
        ("no truth at all", not truth),
        ("no detections at all", not found),
        ("ids 0", any(one["id"] == 0 for one in truth)),
        ("detection ids 0", any(one.get("id") == 0 for one in found)),
        ("areas on the border", any(one["area"] in (1024, 9216) for one in truth)),
        ("equal boxes", len({tuple(one["bbox"]) for one in truth}) < len(truth)),
        ("polygons", any(isinstance(one, list) for one in segmentations)),
        ("run lengths", any(isinstance(one, dict) and isinstance(one["counts"], list) for one in segmentations)),
        ("strings", any(isinstance(one, dict) and isinstance(one["counts"], str) for one in segmentations)),
        ("no visible keypoint", any(one.get("num_keypoints") == 0 for one in truth)),
    ):
        if there:
            met.add(name)
    return met


def test_scenarios_hold_everything_odd():
    """Each oddity is there in several of the quick ones already."""
    count = collections.Counter(
        name for kind in QUICK for seed in QUICK[kind] for name in oddities(scenario(seed, kind))
    )
    assert len(count) == 22 and min(count.values()) >= 2, count
    assert sum(len(seeds) for table in (QUICK, LONG) for seeds in table.values()) >= 500


def test_batches_equal_pycocotools():
    """Streaming in two halves, the ground truth known: the same twelve numbers."""
    made = scenario(5, "bbox") | {"own": False, "options": {}}
    ids = [image["id"] for image in made["truth"]["images"]]
    evaluator = Evaluator(ground_truth=made["truth"])
    for image in ids[::-1]:
        mine = [one for one in made["found"] if one["image_id"] == image]
        batch = {"image_id": np.array([image]), "bbox": np.zeros((1, len(mine), 4))}
        batch["bbox"][0] = np.array([one["bbox"] for one in mine]).reshape(-1, 4)
        batch |= {key: np.array([[one[key] for one in mine]]) for key in ("score", "category_id")}
        batch["category_id"] = batch["category_id"].astype(np.int64)
        evaluator.update(batch)
    np.testing.assert_allclose(evaluator.result().stats, official(made, "bbox").stats, rtol=0, atol=1e-12)


def test_codec_equals_pycocotools():
    """Polygons of all sorts, boxes, strings, areas, tight boxes and intersections."""
    rng = np.random.default_rng(3)
    polygons, sizes = [], []
    for number in range(150):
        size = (int(rng.integers(1, 90)), int(rng.integers(1, 90))) if number % 3 else SIZE
        parts = []
        for _ in range(int(rng.integers(1, 4))):
            points = rng.uniform(-0.3, 1.3, (int(rng.integers(3, 12)), 2)) * size[::-1]
            points = points.round(int(rng.integers(0, 3))) if number % 2 else np.round(points * 5) / 5
            parts.append(points.reshape(-1).tolist())
        polygons.append(parts)
        sizes.append(size)
    ours = from_polygons(polygons, np.array(sizes))
    theirs = [codec.merge(codec.frPyObjects(p, *size)) for p, size in zip(polygons, sizes, strict=True)]
    assert ours.strings() == [rle["counts"].decode() for rle in theirs]
    read = masks.from_strings([rle["counts"] for rle in theirs], np.array(sizes))
    areas = np.array([codec.area(rle) for rle in theirs])
    np.testing.assert_array_equal(read.areas(), areas)
    np.testing.assert_array_equal(ours.areas(), areas)
    drawn = areas > 0  # of an empty mask, pycocotools' box is what its integers wrap to
    np.testing.assert_array_equal(ours.boxes()[drawn], np.array([codec.toBbox(rle) for rle in theirs])[drawn])
    same = np.arange(0, 150, 3)
    a, b = rng.choice(same, 200), rng.choice(same, 200)
    shared = [codec.area(codec.merge([theirs[i], theirs[j]], True)) for i, j in zip(a, b, strict=True)]
    np.testing.assert_array_equal(intersections(ours, ours, a, b), shared)
    boxes = np.concatenate([rng.uniform(-20, 100, (60, 2)), rng.uniform(0, 60, (60, 2))], 1)
    drawn = from_boxes(boxes, np.tile(SIZE, (60, 1)))
    assert drawn.strings() == [rle["counts"].decode() for rle in codec.frPyObjects(boxes, *SIZE)]


@pytest.fixture(scope="module")
def lvis():
    """The lvis package: its drawings import OpenCV, which is not needed; it spells float as NumPy no longer does."""
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    patch.setattr(np, "float", float, raising=False)
    yield pytest.importorskip("lvis", reason=REASON)
    patch.undo()


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_scenarios_equal_lvis(lvis, kind, tmp_path):
    for seed in range(30):
        made = lvis_scenario(seed, kind)
        if not made["found"]:  # its program fails on none
            continue
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(made["truth"]))
        truth = lvis.LVIS(str(path))
        results = lvis.LVISResults(truth, copy.deepcopy(made["found"]), max_dets=made["limit"])
        run = lvis.LVISEval(truth, results, kind)
        run.run()
        protocol = replace(PROTOCOLS["lvis"], per_image=made["limit"])
        ours = evaluate(made["truth"], made["found"], protocol, kind)
        assert [name.split("@")[0] for name in run.results] == [name.removesuffix("300") for name in _named(ours)]
        np.testing.assert_allclose(ours.stats, list(run.results.values()), rtol=0, atol=1e-12, err_msg=str(seed))
        np.testing.assert_array_equal(ours.curves.precision[..., 0], run.eval["precision"])
        np.testing.assert_array_equal(ours.curves.recall[..., 0], run.eval["recall"])


def _named(ours):
    limit = str(ours.protocol.per_image)
    return [name.removesuffix(limit) for name in ours.stat_names]
