"""Mean average precision of a set like COCO val2017: flashjax against pycocotools, faster-coco-eval and hotcoco.

    python -m benchmarks.detection_map [--json FILE] [--scales 1 10] [--kinds bbox segm] [--rounds 3]
        (extra: parity; and pip install faster-coco-eval hotcoco)

The set is generated: 5,000 images, 36,781 objects of 80 classes as unevenly shared out and as large as COCO's, 48
images without any, 1.2 % crowds, and 100 detections an image: several about each object, some of a wrong class, the
rest anywhere. `--scales 10` has ten times the images. Every contender reads the same two JSON files in a process of its
own, on one core with one thread, and ends with the twelve numbers, which must agree to 1e-9.

Two times: *whole*, from the files to the numbers; *evaluate*, from what the contender has loaded (its own objects) to
the numbers. What loading includes differs (flashjax checks every row and draws polygons, pycocotools draws them when it
evaluates), so *whole* is what compares like with like. Times are those of the processor, user and system, which other
programs on the machine disturb less: every contender has one thread, and the files are in memory. The JSON holds wall
times too. Memory is the peak of the process less what it held before it opened the files. Contenders take turns, round
by round; a ratio is the median over rounds of the contender's by flashjax's: above 1, flashjax is ahead. Contenders
that need minutes run once (`--once`); one that would need more than `--memory` GB fails and says so.
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

from benchmarks.detection_set import IMAGES, write_set

CONTENDERS = ("flashjax", "pycocotools", "faster-coco-eval", "hotcoco")


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
    clocks = [(time.process_time(), time.perf_counter())]
    loaded = load(truth, found)
    clocks.append((time.process_time(), time.perf_counter()))
    stats = evaluate(loaded)
    clocks.append((time.process_time(), time.perf_counter()))
    peak = _peak() - before
    (start, wall_start), (between, wall_between), (end, wall_end) = clocks
    return {
        "stats": np.asarray(stats).tolist(),
        "whole": end - start,
        "evaluate": end - between,
        "wall_whole": wall_end - wall_start,
        "wall_evaluate": wall_end - wall_between,
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
        for what in ("whole", "evaluate", "wall_whole", "wall_evaluate", "memory"):
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
