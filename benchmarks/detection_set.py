"""The generated set of `detection_map`: ground truth and results like COCO val2017's, in files as COCO's."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from flashjax.evaluation.detection.polygons import from_polygons

IMAGES, OBJECTS, EMPTY, DETECTIONS, CLASSES = 5_000, 36_781, 48, 100, 80
SIZES = np.array([(480, 640), (640, 480), (427, 640), (640, 427), (375, 500), (612, 612)])


def write_set(scale: int, kind: str, truth: Path, found: Path, seed: int = 0) -> None:
    """Writes a ground truth and results as COCO's files hold them, the results in parts."""
    rng = np.random.default_rng(seed)
    images, count = IMAGES * scale, OBJECTS * scale
    size = SIZES[rng.choice(len(SIZES), images, p=[0.35, 0.15, 0.2, 0.1, 0.15, 0.05])]
    categories = np.sort(rng.choice(np.arange(1, 91), CLASSES, replace=False))
    share = 1 / (np.arange(CLASSES) + 3.0)  # a long tail; the first class (people) has 30 %
    share = np.concatenate([[0.3], 0.7 * share[1:] / share[1:].sum()])
    busy = rng.permutation(images)[: images - EMPTY * scale]
    image = np.sort(np.concatenate([busy, rng.choice(busy, count - len(busy), p=_weights(rng, len(busy)))]))
    # Objects of an image are of few classes: most repeat the class of the one before.
    label = rng.choice(CLASSES, count, p=share)
    for i in np.flatnonzero((rng.random(count) < 0.6) & (np.diff(image, prepend=-1) == 0)).tolist():
        label[i] = label[i - 1]
    boxes, crowd = _boxes(rng, size[image]).round(2), rng.random(count) < 0.012
    area = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.5, 0.8, count)
    columns = (image, categories[label].tolist(), boxes.tolist(), area.tolist(), crowd.astype(int).tolist())
    annotations = [
        {"id": i, "image_id": 7 * int(im) + 1, "category_id": c, "bbox": b, "area": a, "iscrowd": k}
        for i, (im, c, b, a, k) in enumerate(zip(*columns, strict=True), start=1)
    ]
    if kind == "segm":
        _add_polygons(rng, annotations, size[image], boxes, crowd)
    dataset = {
        "images": [{"id": 7 * i + 1, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(size)],
        "categories": [{"id": int(c), "name": f"class {c}"} for c in categories],
        "annotations": annotations,
    }
    truth.write_text(json.dumps(dataset))
    del dataset, annotations

    first = np.searchsorted(image, np.arange(images + 1))
    with open(found, "w") as file:
        for start in range(0, images, 500):
            stop = min(start + 500, images)
            rows = slice(first[start], first[stop])
            here, d_label, d_boxes, d_score = _detections(
                rng, image[rows] - start, label[rows], boxes[rows], size[start:stop], share
            )
            records = _records(rng, kind, here + start, categories[d_label], d_boxes, d_score, size)
            file.write(("[" if start == 0 else ", ") + json.dumps(records)[1:-1])
        file.write("]")


def _detections(
    rng: np.random.Generator,
    image: np.ndarray,
    label: np.ndarray,
    boxes: np.ndarray,
    size: np.ndarray,
    share: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """(image, class, box, score): about 4 near each object, the rest anywhere, 100 an image in the end."""
    count, images = len(image), len(size)
    near = np.repeat(np.arange(count), rng.poisson(4, count))
    shift = rng.normal(size=(len(near), 4)) * rng.exponential(0.12, (len(near), 1))
    found = boxes[near].copy()
    found[:, :2] += shift[:, :2] * found[:, 2:]
    found[:, 2:] *= np.exp(shift[:, 2:])
    quality = np.exp(-4 * np.abs(shift).mean(1))
    right = rng.random(len(near)) < 0.85
    d_label = np.where(right, label[near], rng.choice(CLASSES, len(near), p=share))
    d_score = rng.beta(1 + 5 * quality * right, 4)
    missing = np.maximum(DETECTIONS - np.bincount(image[near], minlength=images), 0)
    far = np.repeat(np.arange(images), missing)
    of_image = np.minimum(np.searchsorted(image, far), count - 1)  # the noise prefers the classes that are there
    far_label = np.where(rng.random(len(far)) < 0.5, label[of_image], rng.choice(CLASSES, len(far), p=share))
    d_image = np.concatenate([image[near], far])
    d_boxes = _inside(np.concatenate([found, _boxes(rng, size[far])]), size[d_image])
    d_label, d_score = np.concatenate([d_label, far_label]), np.concatenate([d_score, rng.beta(1, 12, len(far))])
    order = np.lexsort([-d_score, d_image])
    rank = np.arange(len(order)) - np.searchsorted(d_image[order], d_image[order])
    order = order[rank < DETECTIONS]
    return d_image[order], d_label[order], d_boxes[order].round(3), d_score[order].round(5)


def _records(
    rng: np.random.Generator,
    kind: str,
    image: np.ndarray,
    category: np.ndarray,
    boxes: np.ndarray,
    score: np.ndarray,
    size: np.ndarray,
) -> list[dict[str, Any]]:
    columns = ((7 * image + 1).tolist(), category.tolist(), score.tolist())
    if kind == "bbox":
        return [
            {"image_id": i, "category_id": c, "bbox": b, "score": s}
            for i, c, s, b in zip(*columns, boxes.tolist(), strict=True)
        ]
    outlines = _outline(rng, boxes, 24).reshape(len(boxes), 1, -1)
    strings = from_polygons(outlines, size[image]).strings()
    return [
        {"image_id": i, "category_id": c, "segmentation": {"size": hw, "counts": text}, "score": s}
        for i, c, s, hw, text in zip(*columns, size[image].tolist(), strings, strict=True)
    ]


def _weights(rng: np.random.Generator, count: int) -> np.ndarray:
    weights = rng.gamma(0.9, size=count)
    return weights / weights.sum()


def _boxes(rng: np.random.Generator, size: np.ndarray) -> np.ndarray:
    """COCO's mixture: 41 % below 32 squared, 34 % up to 96 squared, 25 % above."""
    height, width = size.T
    kind = rng.choice(3, len(size), p=[0.41, 0.34, 0.25])
    low, high = np.array([[8, 32], [32, 96], [96, 330]])[kind].T
    side = np.exp(rng.uniform(np.log(low), np.log(high)) + 0.2)
    aspect = np.exp(rng.normal(0, 0.4, len(size)))
    w, h = np.minimum(side * aspect, width - 1), np.minimum(side / aspect, height - 1)
    return np.stack([rng.uniform(0, width - w), rng.uniform(0, height - h), w, h], 1)


def _inside(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    x0, y0 = np.maximum(boxes[:, 0], 0), np.maximum(boxes[:, 1], 0)
    x1 = np.minimum(boxes[:, 0] + boxes[:, 2], size[:, 1])
    y1 = np.minimum(boxes[:, 1] + boxes[:, 3], size[:, 0])
    x0, y0 = np.minimum(x0, size[:, 1] - 2), np.minimum(y0, size[:, 0] - 2)
    return np.stack([x0, y0, np.maximum(x1 - x0, 1), np.maximum(y1 - y0, 1)], 1)


def _outline(rng: np.random.Generator, boxes: np.ndarray, points: int) -> np.ndarray:
    """Star-shaped outlines of ``points`` corners in boxes, [N, points, 2]."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = 0.5 * rng.uniform(0.7, 1.0, (len(boxes), points))
    x = boxes[:, :1] + boxes[:, 2:3] * (0.5 + radius * np.cos(angle))
    y = boxes[:, 1:2] + boxes[:, 3:] * (0.5 + radius * np.sin(angle))
    return np.stack([x, y], 2).round(2)


def _add_polygons(
    rng: np.random.Generator, annotations: list[dict[str, Any]], size: np.ndarray, boxes: np.ndarray, crowd: np.ndarray
) -> None:
    """Polygons for the objects, runs for the crowds."""
    outlines = _outline(rng, boxes, 24).reshape(len(boxes), -1).tolist()
    for i, (annotation, outline) in enumerate(zip(annotations, outlines, strict=True)):
        annotation["segmentation"] = [outline]
        if crowd[i]:
            bounds = from_polygons([[outline]], size[i : i + 1]).bounds
            runs = np.diff(bounds, prepend=0, append=int(size[i].prod()))
            annotation["segmentation"] = {"size": size[i].tolist(), "counts": runs.tolist()}
