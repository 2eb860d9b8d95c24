"""Random evaluations in which everything that can be odd is odd: ties, crowds, ids 0, areas on the border, ..."""

from typing import Any

import numpy as np

from flashjax.evaluation.detection import masks
from flashjax.evaluation.detection.polygons import from_polygons

SIZE = (96, 112)


def scenario(seed: int, kind: str = "bbox") -> dict[str, Any]:
    """{"truth": COCO dataset, "found": results, "own": whether results keep their ids, "options": evaluation's}."""
    rng = np.random.default_rng([seed, len(kind)])
    images = _ids(rng, int(rng.integers(1, 6)), rng.random() < 0.3)
    categories = _ids(
        rng, 1 if kind == "keypoints" and rng.random() < 0.7 else int(rng.integers(1, 5)), rng.random() < 0.3
    )
    grid = int(rng.choice([1, 4, 8]))  # a coarse grid makes overlaps equal
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    digits = int(rng.choice([1, 2, 6]))
    for image in images:
        if rng.random() < 0.15:
            continue
        boxes = []
        for _ in range(int(rng.integers(0, 7))):
            box = boxes[-1] if boxes and rng.random() < 0.15 else _box(rng, grid)
            boxes.append(box)
            crowd = int(rng.random() < 0.15)
            one = {
                "image_id": image,
                "category_id": int(rng.choice(categories)),
                "bbox": box,
                "area": float(rng.choice([1024, 9216, box[2] * box[3], 0.6 * box[2] * box[3], rng.uniform(0, 2e4)])),
                "iscrowd": crowd,
            }
            if rng.random() < 0.2:
                one["ignore"] = int(rng.random() < 0.5)
            if kind == "segm":
                one["segmentation"] = _segmentation(rng, box, crowd)
            if kind == "keypoints":
                one["keypoints"] = _keypoints(rng, box, rng.random() < 0.2)
                visible = sum(v > 0 for v in one["keypoints"][2::3])
                one["num_keypoints"] = 0 if rng.random() < 0.1 else visible
            truth.append(one)
        for _ in range(int(rng.integers(0, 9))):
            near = boxes and rng.random() < 0.75
            box = boxes[int(rng.integers(len(boxes)))] if near else _box(rng, grid)
            if near and rng.random() < 0.8:
                shift = rng.integers(-1, 2, 4) * grid * rng.integers(0, 3)
                box = [float(max(v, 0)) for v in np.array(box) + shift]
            one = {
                "image_id": image,
                "category_id": int(rng.choice(categories)),
                "score": float(np.round(rng.normal(0.5, 0.3), digits)),
            }
            if kind == "bbox" or (kind == "segm" and seed % 3 == 0) or (kind == "keypoints" and seed % 2):
                one["bbox"] = box
            if kind == "segm" and seed % 9:
                one["segmentation"] = _coded(rng, box)
            if kind == "keypoints":
                one["keypoints"] = _keypoints(rng, box, False)
            found.append(one)
    rng.shuffle(truth)
    rng.shuffle(found)
    start = int(rng.choice([0, 1, 100]))
    order = rng.permutation(len(truth)) + start
    for number, one in zip(order.tolist(), truth, strict=True):
        one["id"] = number
    own = kind == "bbox" and rng.random() < 0.25
    if own:
        for number, one in zip((rng.permutation(len(found)) + int(rng.choice([0, 1]))).tolist(), found, strict=True):
            one |= {"id": number, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0}
    dataset = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i}.jpg"} for i in images],
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
        "annotations": truth,
    }
    return {"truth": dataset, "found": found, "own": own, "options": _options(rng, kind, images, categories)}


def _options(rng: np.random.Generator, kind: str, images: list[int], categories: list[int]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if rng.random() < 0.25:
        options["iou_thresholds"] = sorted(rng.choice([0.1, 0.3, 0.5, 0.55, 0.75, 1.0], 3, replace=False).tolist())
    if rng.random() < 0.2:
        options["recall_thresholds"] = np.linspace(0, 1, int(rng.choice([2, 11, 41]))).tolist()
    if rng.random() < 0.3:
        limits = [3] if kind == "keypoints" else [[1, 2, 4], [2, 5, 100], [1, 100, 200]][int(rng.integers(3))]
        options["max_detections"] = limits
    if rng.random() < 0.15:
        options["areas"] = {"all": (0, 1e10), "small": (0, 512), "large": (512, 1e5)}
    if rng.random() < 0.15 and kind != "keypoints":
        options["use_categories"] = False
    if rng.random() < 0.15:
        options["image_ids"] = rng.choice(images, max(1, len(images) - 1), replace=False).tolist()
    if rng.random() < 0.15:
        options["category_ids"] = rng.choice(categories, max(1, len(categories) - 1), replace=False).tolist()
    return options


def lvis_scenario(seed: int, kind: str = "bbox") -> dict[str, Any]:
    """A scenario whose images say which classes were searched, with a limit of detections an image."""
    rng = np.random.default_rng([seed, 77])
    made = scenario(seed, kind)
    dataset, found = made["truth"], made["found"]
    categories = [c["id"] for c in dataset["categories"]]
    for one in dataset["categories"]:
        one["frequency"] = str(rng.choice(["r", "c", "f"]))
    for one in dataset["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            one[key] = [c for c in categories if rng.random() < 0.4]
    for one in dataset["annotations"]:
        if rng.random() < 0.1:
            one["area"] = 0.0
    for one in found:
        one.pop("id", None)
        if "bbox" in one and rng.random() < 0.1:
            one["bbox"] = [*one["bbox"][:3], 0.0]
    return {"truth": dataset, "found": found, "limit": int(rng.choice([3, 300]))}


def _ids(rng: np.random.Generator, count: int, from_zero: bool) -> list[int]:
    ids = np.arange(count) if from_zero else rng.choice(1000, count, replace=False)
    return rng.permutation(ids).tolist()


def _box(rng: np.random.Generator, grid: int) -> list[float]:
    height, width = SIZE
    if grid == 1 and rng.random() < 0.3:
        x, y = rng.uniform(0, width - 9), rng.uniform(0, height - 9)
        return [float(np.round(v, 2)) for v in (x, y, rng.uniform(0, width - x), rng.uniform(0, height - y))]
    x, y = rng.integers(0, (width - 8) // grid) * grid, rng.integers(0, (height - 8) // grid) * grid
    w, h = rng.integers(1, max(2, 48 // grid)) * grid, rng.integers(1, max(2, 48 // grid)) * grid
    return [float(v) for v in (x, y, min(w, width - x), min(h, height - y))]


def _outline(rng: np.random.Generator, box: list[float]) -> list[float]:
    x, y, w, h = box
    count = int(rng.integers(3, 9))
    points = rng.uniform(-0.1, 1.1, (count, 2)) * [w, h] + [x, y]
    if rng.random() < 0.7:
        points = np.array([(x, y), (x, y + h), (x + w, y + h), (x + w, y)])
    return points.round(int(rng.choice([0, 1, 2]))).reshape(-1).tolist()


def _drawn(rng: np.random.Generator, box: list[float]) -> masks.Masks:
    return from_polygons([[_outline(rng, box) for _ in range(int(rng.choice([1, 1, 2])))]], np.array([SIZE]))


def _coded(rng: np.random.Generator, box: list[float]) -> dict[str, Any]:
    return {"size": list(SIZE), "counts": _drawn(rng, box).strings()[0]}


def _segmentation(rng: np.random.Generator, box: list[float], crowd: int) -> Any:
    if not crowd and rng.random() < 0.7:
        return [_outline(rng, box) for _ in range(int(rng.choice([1, 1, 2, 3])))]
    if rng.random() < 0.5:
        return _coded(rng, box)
    bounds = _drawn(rng, box).bounds
    return {"size": list(SIZE), "counts": np.diff(bounds, prepend=0, append=SIZE[0] * SIZE[1]).tolist()}


def _keypoints(rng: np.random.Generator, box: list[float], hidden: bool) -> list[float]:
    x, y, w, h = box
    points = np.empty((17, 3))
    points[:, :2] = np.round(rng.normal(0.5, 0.02, (17, 2)) * [w, h] + [x, y], 1)
    points[:, 2] = 0 if hidden else rng.choice([0, 1, 2], 17)
    return points.reshape(-1).tolist()
