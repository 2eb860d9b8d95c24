"""Mean average precision of detections: COCO, LVIS, PASCAL VOC.

python -m experiments.detection_map                                              a worked example, step by step
python -m experiments.detection_map --ground_truth instances.json --detections results.json --protocol coco
python -m experiments.detection_map --ground_truth VOC2007/Annotations --detections results/ --protocol voc2007
python -m experiments.detection_map --ground_truth G --detections D --report runs/page --images val2017/
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from configs.detection_map import PRESETS, DetectionMap
from flashjax import cli
from flashjax.evaluation import detection
from flashjax.evaluation.detection import example, words
from flashjax.evaluation.detection.report import write_report

PROGRAM = "experiments.detection_map"


def walk_through(config: DetectionMap) -> None:
    """The worked example: text here, pictures on a page."""
    shown = example.walk()
    print(example.words(shown))
    print(f"\n  pictures  {example.write_walk(config.report or 'runs/detection_map', shown)}")


def measure(config: DetectionMap) -> None:
    """Compares two files and writes what is asked for."""
    result = detection.evaluate(
        config.ground_truth,
        config.detections,
        config.protocol,
        config.iou_type,
        iou_thresholds=config.iou_thresholds or None,
        max_detections=config.max_detections or None,
        use_categories=False if config.class_agnostic else None,
        area=config.area,
    )
    print(result.table())
    iou = float(result.curves.iou_thresholds[0])
    errors = result.errors(iou, min(0.1, iou / 2))
    print("\n" + words.error_table(errors))
    if config.json:
        path = Path(config.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(numbers(result, errors), indent=2) + "\n")
        print(f"\n  numbers  {path}")
    if config.list_errors:
        path = Path(config.list_errors)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in result.matches.errors()))
        print(f"\n  errors   {path}")
    if config.report:
        page = write_report(
            config.report, result, images=config.images, worst=config.worst, command=cli.command(PROGRAM)
        )
        print(f"\n  page     {page}")


def numbers(result: detection.Result, errors: Any) -> dict[str, Any]:
    """Everything that the table shows, for programs."""
    return {
        "protocol": result.protocol.name,
        "iou_type": result.iou_type,
        "stats": dict(zip(result.stat_names, result.stats.tolist(), strict=True)),
        "counts": result.matches.counts(),
        "per_class": [dataclasses.asdict(one) for one in result.per_class],
        "errors": {"counts": dict(errors.counts), "gains": dict(errors.gains)},
    }


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    with cli.friendly_errors():
        if config.ground_truth is None and config.detections is None:
            walk_through(config)
        elif config.ground_truth is None or config.detections is None:
            missing = "--ground_truth" if config.ground_truth is None else "--detections"
            raise ValueError(f"{missing} is missing: both are compared; with neither, an example is worked")
        else:
            measure(config)


if __name__ == "__main__":
    main()
