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
Contenders that need minutes run once (`--once`); one that would need more than `--memory` GB fails and says so.
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
    from flashjax.evaluation.detection.polygons import from_polygons

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
    from flashjax.evaluation.detection.polygons import from_polygons

    outlines = _outline(rng, boxes, 24).reshape(len(boxes), -1).tolist()
    for i, (annotation, outline) in enumerate(zip(annotations, outlines, strict=True)):
        annotation["segmentation"] = [outline]
        if crowd[i]:
            bounds = from_polygons([[outline]], size[i : i + 1]).bounds
            runs = np.diff(bounds, prepend=0, append=int(size[i].prod()))
            annotation["segmentation"] = {"size": size[i].tolist(), "counts": runs.tolist()}


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


def measure(name: str, kind: str, truth: str, found: str, memory: str) -> dict[str, Any]:
    """Runs in a process of its own."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    limit = int(float(memory) * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    load, evaluate = contender(name, kind)
    before = _peak()
    started = time.perf_counter()
    loaded = load(truth, found)
    between = time.perf_counter()
    stats = evaluate(loaded)
    ended = time.perf_counter()
    peak = _peak() - before
    return {
        "stats": np.asarray(stats).tolist(),
        "whole": ended - started,
        "evaluate": ended - between,
        "memory": peak / 1024,
    }


def _peak() -> int:
    """Most memory that this process held, in KiB: VmHWM, since ru_maxrss begins with that of the parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def run_apart(name: str, kind: str, truth: Path, found: Path, memory: float) -> dict[str, Any]:
    """`measure` in a fresh process; {"error": words} where it fails (out of memory, most likely)."""
    environment = os.environ | {v: "1" for v in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    arguments = [sys.executable, "-m", "benchmarks.detection_map", "--measure", name, kind, str(truth), str(found)]
    arguments.append(str(memory))
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"error": reason[0]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(
    kind: str, scale: int, rounds: int, names: list[str], directory: Path, once: list[str], memory: float
) -> dict[str, Any]:
    truth, found = directory / f"truth-{kind}-{scale}.json", directory / f"found-{kind}-{scale}.json"
    if not found.exists():
        write_set(scale, kind, truth, found)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names:
            if turn == 0 or name not in once:
                runs[name].append(run_apart(name, kind, truth, found, memory))
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
                    theirs[what] / ours[what] for theirs, ours in zip(runs[name], own, strict=False)
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
    parser.add_argument(
        "--once", nargs="*", default=["pycocotools"], help="contenders that run in the first round only"
    )
    parser.add_argument("--memory", type=float, default=16, help="GB that a contender may hold (default 16)")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
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
                result[f"{kind} x{scale}"] = compare(
                    kind, scale, args.rounds, args.contenders, directory, args.once, args.memory
                )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
