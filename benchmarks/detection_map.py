"""Mean average precision of a set like COCO val2017: flashjax against pycocotools, faster-coco-eval and hotcoco.

    python -m benchmarks.detection_map [--json FILE] [--scales 1 10] [--kinds bbox segm] [--rounds 3]
        (extra: parity; and pip install faster-coco-eval hotcoco)

The set is generated: 5,000 images, 36,781 objects of 80 classes as unevenly shared out and as large as COCO's, 48
images without any, 1.2 % crowds, and 100 detections an image: several about each object, some of a wrong class, the
rest anywhere. `--scales 10` has ten times the images. Every contender reads the same two JSON files in a process of its
own, on one core with one thread, and ends with the twelve numbers, which must agree to 1e-9.

Two times: *whole*, from the files to the numbers; *evaluate*, from what the contender has loaded (its own objects) to
the numbers. Memory is the peak of the process less what it held before it opened the files. Contenders take turns,
round by round; a ratio is the median over rounds of the contender's by flashjax's: above 1, flashjax is ahead.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

IMAGES, OBJECTS, EMPTY, DETECTIONS, CLASSES = 5_000, 36_781, 48, 100, 80
SIZES = np.array([(480, 640), (640, 480), (427, 640), (640, 427), (375, 500), (612, 612)])
CONTENDERS = ("flashjax", "pycocotools", "faster-coco-eval", "hotcoco")


# The set.


def generate(scale: int, masks: bool, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(ground truth as a COCO file holds it, detections as a results file holds them)."""
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
    repeat = np.flatnonzero((rng.random(count) < 0.6) & (np.diff(image, prepend=-1) == 0))
    for i in repeat:
        label[i] = label[i - 1]
    boxes = _boxes(rng, size[image])
    crowd = rng.random(count) < 0.012

    # Detections: about 4 near each object, the rest anywhere, 100 an image in the end.
    near = np.repeat(np.arange(count), rng.poisson(4, count))
    shift = rng.normal(size=(len(near), 4)) * rng.exponential(0.12, (len(near), 1))
    found = boxes[near].copy()
    found[:, :2] += shift[:, :2] * found[:, 2:]
    found[:, 2:] *= np.exp(shift[:, 2:])
    quality = np.exp(-4 * np.abs(shift).mean(1))
    right = rng.random(len(near)) < 0.85
    d_label = np.where(right, label[near], rng.choice(CLASSES, len(near), p=share))
    d_score = rng.beta(1 + 5 * quality * right, 4)
    d_image = image[near]
    missing = np.maximum(DETECTIONS - np.bincount(d_image, minlength=images), 0)
    far = np.repeat(np.arange(images), missing)
    of_image = np.searchsorted(image, far)  # the noise prefers the classes that are there
    far_label = np.where(
        rng.random(len(far)) < 0.5, label[np.minimum(of_image, count - 1)], rng.choice(CLASSES, len(far), p=share)
    )
    d_image = np.concatenate([d_image, far])
    d_label = np.concatenate([d_label, far_label])
    d_boxes = np.concatenate([found, _boxes(rng, size[far])])
    d_score = np.concatenate([d_score, rng.beta(1, 12, len(far))])
    d_boxes = _inside(d_boxes, size[d_image])
    order = np.lexsort([-d_score, d_image])
    rank = np.arange(len(order)) - np.searchsorted(d_image[order], d_image[order])
    order = order[rank < DETECTIONS]
    d_image, d_label, d_boxes, d_score = d_image[order], d_label[order], d_boxes[order], d_score[order]

    boxes, d_boxes, d_score = boxes.round(2), d_boxes.round(3), d_score.round(5)
    area = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.5, 0.8, count)
    dataset = {
        "images": [{"id": 7 * i + 1, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(size)],
        "categories": [{"id": int(c), "name": f"class {c}"} for c in categories],
        "annotations": [
            {"id": i + 1, "image_id": 7 * int(im) + 1, "category_id": c, "bbox": b, "area": a, "iscrowd": k}
            for i, (im, c, b, a, k) in enumerate(
                zip(
                    image,
                    categories[label].tolist(),
                    boxes.tolist(),
                    area.tolist(),
                    crowd.astype(int).tolist(),
                    strict=True,
                )
            )
        ],
    }
    ids = (7 * d_image + 1).tolist()
    detections = [
        {"image_id": im, "category_id": c, "bbox": b, "score": s}
        for im, c, b, s in zip(ids, categories[d_label].tolist(), d_boxes.tolist(), d_score.tolist(), strict=True)
    ]
    if masks:
        _add_masks(rng, dataset["annotations"], detections, size[image], size[d_image], boxes, d_boxes, crowd)
    return dataset, detections


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


def _add_masks(
    rng: Any, annotations: Any, detections: Any, size: Any, d_size: Any, boxes: Any, d_boxes: Any, crowd: Any
):
    """Polygons for the objects, runs for crowds; compressed runs, and no box, for the detections."""
    from flashjax.evaluation.detection import masks

    outlines = _outline(rng, boxes, 24).reshape(len(boxes), -1).tolist()
    for i, (annotation, outline) in enumerate(zip(annotations, outlines, strict=True)):
        annotation["segmentation"] = [outline]
        if crowd[i]:
            drawn = masks.from_polygons([[outline]], size[i : i + 1])
            runs = np.diff(drawn.bounds, prepend=0, append=int(size[i].prod()))
            annotation["segmentation"] = {"size": size[i].tolist(), "counts": runs.tolist()}
    step = 20_000
    for first in range(0, len(detections), step):
        part = slice(first, first + step)
        outlines = _outline(rng, d_boxes[part], 24).reshape(len(d_boxes[part]), 1, -1)
        strings = masks.from_polygons(outlines, d_size[part]).strings()
        for detection, text, hw in zip(detections[part], strings, d_size[part].tolist(), strict=True):
            del detection["bbox"]
            detection["segmentation"] = {"size": hw, "counts": text}


# The contenders: each returns the function that loads and the function that evaluates.


def contender(name: str, kind: str) -> tuple[Callable[[str, str], Any], Callable[[Any], np.ndarray]]:
    if name == "flashjax":
        from flashjax.evaluation import detection

        return (
            lambda truth, found: detection.load(truth, found, iou_type=kind),
            lambda loaded: detection.evaluate(*loaded, iou_type=kind).stats,
        )
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Eval
    elif name == "faster-coco-eval":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Eval
    else:
        from hotcoco import COCO
        from hotcoco import COCOeval as Eval

    def load(truth: str, found: str) -> Any:
        dataset = COCO(truth)
        return dataset, dataset.loadRes(found)

    def evaluate(loaded: Any) -> np.ndarray:
        run = Eval(*loaded, kind)
        run.evaluate(), run.accumulate(), run.summarize()
        return np.asarray(run.stats[:12], np.float64)

    return load, evaluate


def measure(name: str, kind: str, truth: str, found: str) -> dict[str, Any]:
    """Runs in a process of its own."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    load, evaluate = contender(name, kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loaded = load(truth, found)
    between = time.perf_counter()
    stats = evaluate(loaded)
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "stats": np.asarray(stats).tolist(),
        "whole": ended - started,
        "evaluate": ended - between,
        "memory": peak / 1024,
    }


def run_apart(name: str, kind: str, truth: Path, found: Path) -> dict[str, Any]:
    """`measure` in a fresh process; {"error": words} where it fails (out of memory, most likely)."""
    environment = os.environ | {v: "1" for v in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    arguments = [sys.executable, "-m", "benchmarks.detection_map", "--measure", name, kind, str(truth), str(found)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"error": reason[0]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(kind: str, scale: int, rounds: int, names: list[str], directory: Path) -> dict[str, Any]:
    truth, found = directory / f"truth-{kind}-{scale}.json", directory / f"found-{kind}-{scale}.json"
    if not found.exists():
        dataset, detections = generate(scale, kind == "segm")
        truth.write_text(json.dumps(dataset))
        found.write_text(json.dumps(detections))
        del dataset, detections
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            runs[name].append(run_apart(name, kind, truth, found))
    result: dict[str, Any] = {}
    own = runs["flashjax"]
    print(f"\n{kind}, {IMAGES * scale:,} images, {os.path.getsize(found) / 1e6:.0f} MB of detections")
    print(f"{'':18}{'whole s':>10}{'ratio':>8}{'evaluate s':>12}{'ratio':>8}{'peak MB':>10}{'ratio':>8}{'AP':>10}")
    for name in names:
        errors = [run["error"] for run in runs[name] if "error" in run]
        if errors:
            result[name] = {"error": errors[0]}
            print(f"{name:18}{errors[0]}")
            continue
        row: dict[str, Any] = {"stats": runs[name][0]["stats"]}
        for what in ("whole", "evaluate", "memory"):
            row[what] = statistics.median(run[what] for run in runs[name])
            if all("error" not in run for run in own):
                row[f"{what}_ratio"] = statistics.median(
                    theirs[what] / ours[what] for theirs, ours in zip(runs[name], own, strict=True)
                )
        result[name] = row
        cells = [f"{row['whole']:10.2f}{row.get('whole_ratio', 0):8.2f}{row['evaluate']:12.2f}"]
        cells.append(f"{row.get('evaluate_ratio', 0):8.2f}{row['memory']:10.0f}{row.get('memory_ratio', 0):8.2f}")
        print(f"{name:18}{''.join(cells)}{row['stats'][0]:10.6f}")
        reference = result.get("pycocotools", row).get("stats", row["stats"])
        if not np.allclose(row["stats"], reference, rtol=0, atol=1e-9):
            print(
                f"{'':18}its numbers differ from pycocotools' by {np.abs(np.subtract(row['stats'], reference)).max():g}"
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--kinds", nargs="+", default=["bbox", "segm"], choices=["bbox", "segm"])
    parser.add_argument("--scales", nargs="+", type=int, default=[1, 10], help="times COCO val2017 (default 1 10)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default 3)")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--directory", type=Path, help="where the sets are kept (default: a temporary directory)")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    result: dict[str, Any] = {"rounds": args.rounds, "machine": platform.machine(), "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as temporary:
        directory = args.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        for kind in args.kinds:
            for scale in args.scales:
                result[f"{kind} x{scale}"] = compare(kind, scale, args.rounds, args.contenders, directory)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
