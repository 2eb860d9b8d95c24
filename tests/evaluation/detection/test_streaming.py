"""Batch by batch, in any order, merged, sent as bytes, or sharded over a mesh: the result of one pass."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flashjax.evaluation.detection import Evaluator, evaluate
from flashjax.evaluation.detection.polygons import from_boxes
from tests.evaluation.detection.scenarios import SIZE, scenario

SLOTS = 9


def padded(made, kind, slots=SLOTS):
    """(batch of all images, evaluation's columns of the same): rows of an image in front, the rest invalid."""
    truth, found = made["truth"], made["found"]
    images = [image["id"] for image in truth["images"]]
    batch = {"image_id": np.array(images)}
    for prefix, rows in (("", found), ("gt_", truth["annotations"])):
        valid = np.zeros((len(images), slots), bool)
        columns = {"bbox": np.full((*valid.shape, 4), np.nan), "category_id": np.full(valid.shape, -5)}
        columns["score" if not prefix else "area"] = np.full(valid.shape, np.nan)
        columns["id"] = np.zeros(valid.shape, int)
        if prefix:
            columns["iscrowd"] = np.full(valid.shape, 7)
        if kind == "segm":
            columns["segmentation"] = np.zeros((*valid.shape, *SIZE), bool)
        if kind == "keypoints":
            columns["keypoints"] = np.zeros((*valid.shape, 17, 3))
        for i, image in enumerate(images):
            mine = [one for one in rows if one["image_id"] == image]
            assert len(mine) <= slots
            for j, one in enumerate(mine):
                valid[i, j] = True
                for key, array in columns.items():
                    if key == "segmentation":
                        array[i, j] = _dense(one)
                    elif key in one:
                        array[i, j] = np.reshape(one[key], array.shape[2:])
        batch |= {f"{prefix}valid": valid} | {prefix + key: array for key, array in columns.items()}
    return batch


def _dense(one):
    from flashjax.evaluation.detection import fields

    made = fields.segmentations([one["segmentation"]], np.array([SIZE]), "test", "object")
    return made.take(np.array([0])).dense(0)


def prepared(seed, kind):
    made = scenario(seed, kind) | {"options": {}, "own": False}
    for number, one in enumerate(made["found"], start=1):
        one["id"] = number
        if kind == "segm":
            one["segmentation"] = one.get("segmentation") or {"size": list(SIZE), "counts": _square(one["bbox"])}
            one.pop("bbox", None)
        if kind == "keypoints":
            one.pop("bbox", None)
    return made


def _square(box):
    return from_boxes([box], [SIZE]).strings()[0]


def evaluator(made, kind):
    return Evaluator("coco", kind, categories=[c["id"] for c in made["truth"]["categories"]])


def trim(batch, kind):
    return {k: v for k, v in batch.items() if kind == "bbox" or k != "bbox"} | (
        {"gt_num_keypoints": (batch["gt_keypoints"][..., 2] > 0).sum(-1)} if kind == "keypoints" else {}
    )


def rows_of(batch, rows):
    return {key: value[rows] for key, value in batch.items()}


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_batches_in_any_order_are_one_pass(kind):
    for seed in range(8):
        made = prepared(seed, kind)
        if kind == "keypoints":
            for one in made["truth"]["annotations"]:
                one["num_keypoints"] = sum(v > 0 for v in one["keypoints"][2::3])
        batch = trim(padded(made, kind), kind)
        found = [{k: v for k, v in one.items() if k != "id"} for one in made["found"]]
        one_pass = evaluate(made["truth"], found, "coco", kind)
        count = len(batch["image_id"])
        rng = np.random.default_rng(seed)
        order = rng.permutation(count)
        whole, left, right = (evaluator(made, kind) for _ in range(3))
        whole.update(batch)
        for part in np.array_split(order, min(3, count)):
            side = left if rng.random() < 0.5 else right
            # The last batch is padded with images that were there before.
            more = np.concatenate([part, order[:1]])
            side.update(rows_of(batch, more) | {"mask": np.array([1.0] * len(part) + [0.0])})
        merged = right.merge(left)
        for result in (whole.result(), merged.result()):
            np.testing.assert_array_equal(result.stats, one_pass.stats)
            np.testing.assert_array_equal(result.curves.precision, one_pass.curves.precision)
            assert result.matches.counts() == one_pass.matches.counts()
            ours = zip(result.matches.detection_ids, result.matches.ground_truth_ids, strict=True)
            theirs = zip(one_pass.matches.detection_ids, one_pass.matches.ground_truth_ids, strict=True)
            assert set(ours) == set(theirs)


def test_bytes_carry_everything():
    for kind in ("bbox", "segm"):
        made = prepared(6, kind)
        batch = trim(padded(made, kind), kind)
        one, two = evaluator(made, kind), evaluator(made, kind)
        one.update(batch)
        two.add_bytes(one.to_bytes())
        np.testing.assert_array_equal(two.result().stats, one.result().stats)
        with pytest.raises(ValueError, match="came twice"):
            two.add_bytes(one.to_bytes())
    assert evaluator(made, "bbox").merge(evaluator(made, "bbox"))._columns()["images"].size == 0


def test_known_ground_truth():
    made = prepared(9, "bbox")
    found = [{k: v for k, v in one.items() if k != "id"} for one in made["found"]]
    batch = {k: v for k, v in padded(made, "bbox").items() if not k.startswith("gt_")}
    first = rows_of(batch, [0])
    for only_seen in (False, True):
        streamed = Evaluator(ground_truth=made["truth"], only_seen=only_seen)
        streamed.update(first)
        image = first["image_id"].tolist()
        mine = [one for one in found if one["image_id"] in image]
        expected = evaluate(made["truth"], mine, image_ids=image if only_seen else None)
        np.testing.assert_array_equal(streamed.result().stats, expected.stats)
    nothing = Evaluator(ground_truth=made["truth"]).result()
    np.testing.assert_array_equal(nothing.stats, evaluate(made["truth"], []).stats)


def test_batches_of_a_sharded_mesh():
    made = prepared(4, "bbox")
    batch = padded(made, "bbox", 12)
    count = len(batch["image_id"])
    rows = np.arange(8) % count
    mesh = jax.make_mesh((4, 2), ("data", "tensor"))
    by_image = NamedSharding(mesh, PartitionSpec("data"))
    full = rows_of(batch, rows) | {"mask": (np.arange(8) < count).astype(np.float32)}
    spread = {key: jax.device_put(value, by_image) for key, value in full.items()}
    streamed = evaluator(made, "bbox")
    streamed.update(spread)
    plain = evaluator(made, "bbox")
    plain.update(batch)
    # Devices hold float32: boxes and scores of one decimal stay what they are to 1e-6.
    np.testing.assert_allclose(streamed.gather().result().stats, plain.result().stats, atol=1e-5)


WORKER = """
import sys
import jax, numpy as np
process, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from flashjax.evaluation.detection import Evaluator
from tests.evaluation.detection.test_streaming import evaluator, padded, prepared, rows_of
made = prepared(4, "bbox")
batch = padded(made, "bbox", 12)
batch["id"], batch["gt_id"] = batch["id"].astype(np.int32), batch["gt_id"].astype(np.int32)
count = len(batch["image_id"])
rows = np.arange(4) % count
full = rows_of(batch, rows) | {"mask": (np.arange(4) < count).astype(np.float32)}
mesh = Mesh(np.array(jax.devices()), ("data",))
sharding = NamedSharding(mesh, PartitionSpec("data"))
half = slice(2 * process, 2 * process + 2)
spread = {k: jax.make_array_from_process_local_data(sharding, v[half]) for k, v in full.items()}
one = evaluator(made, "bbox")
one.update(spread)
if count > 4 and process == 1:
    one.update(rows_of(batch, np.arange(4, count)))
print("stats", one.gather().result().stats.tolist())
"""


@pytest.mark.slow
def test_two_processes_gather_the_whole():
    from flashjax.launch.local import _free_port

    made = prepared(4, "bbox")
    plain = evaluator(made, "bbox")
    plain.update(padded(made, "bbox", 12))
    expected = plain.result().stats
    port = str(_free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(process), port],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
        )
        for process in range(2)
    ]
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err[-2000:]
        stats = [float(v) for v in out.split("stats [")[1].split("]")[0].split(",")]
        np.testing.assert_allclose(stats, expected, atol=1e-5)


GOOD = {
    "image_id": np.array([1]),
    "bbox": np.zeros((1, 2, 4)),
    "score": np.zeros((1, 2)),
    "category_id": np.zeros((1, 2), int),
    "gt_bbox": np.zeros((1, 1, 4)),
    "gt_category_id": np.zeros((1, 1), int),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boxes": np.zeros((1, 2, 4))}, "unknown key 'boxes'"),
        ({"image_id": None}, "there is no image_id"),
        ({"score": None}, "there is no score"),
        ({"gt_category_id": None}, "there is no gt_category_id"),
        ({"score": np.zeros((2, 2))}, "score has 2 rows, image_id has 1"),
        ({"bbox": np.zeros((1, 3, 4))}, r"bbox is \(1, 3, 4\), category_id is \(1, 2\)"),
        ({"valid": np.ones((1, 3))}, r"valid is \(1, 3\)"),
        ({"category_id": np.zeros(1, int)}, r"category_id must be \[images, objects\]"),
    ],
)
def test_batches_that_do_not_fit(change, words):
    with pytest.raises(ValueError, match=words):
        Evaluator(categories=2).update(GOOD | change)


def test_what_cannot_be_evaluated():
    with pytest.raises(ValueError, match="give either ground_truth, or the categories"):
        Evaluator()
    with pytest.raises(ValueError, match="nothing to evaluate"):
        Evaluator(categories=2).result()
    with pytest.raises(ValueError, match="give ground_truth"):
        Evaluator("lvis", categories=2)
    one = Evaluator(categories=2)
    one.update(GOOD)
    with pytest.raises(ValueError, match="image 1 came twice; where images pad a batch, give mask"):
        one.update(GOOD)
    with pytest.raises(ValueError, match="differ in protocol"):
        one.merge(Evaluator("coco_fixed", categories=2))
    with pytest.raises(ValueError, match="category_id 5 is not among the 2"):
        two = Evaluator(categories=2)
        two.update(GOOD | {"category_id": np.full((1, 2), 5)})
        two.result()
    with pytest.raises(ValueError, match="some batches have 'area' and others have not"):
        one.update(GOOD | {"image_id": np.array([2]), "area": np.zeros((1, 2))})
        one.result()
