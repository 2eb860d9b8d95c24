"""What `python -m experiments.detection_map` measures.

``example``: nothing is named, and it walks through seven images step by step: eleven points 26.84 %, every point
24.57 %. With ``--ground_truth`` and ``--detections`` it measures those.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DetectionMap:
    """Which files are compared, how, and what is written."""

    preset: str = "example"
    """Named preset; there is one."""
    ground_truth: str | None = None
    """COCO or LVIS JSON file, or folder of PASCAL VOC's XML files."""
    detections: str | None = None
    """COCO results file, or folder of VOC's text files <anything>_<class>.txt."""
    protocol: str = "coco"
    """coco, lvis, voc2007, voc2010, or a variant: a wrong name prints all."""
    iou_type: Literal["bbox", "segm", "keypoints"] = "bbox"
    """What is compared: boxes, masks or keypoints."""
    area: Literal["given", "box", "mask"] = "given"
    """Where the area of a ground truth comes from."""
    iou_thresholds: tuple[float, ...] = ()
    """Overlaps in place of the protocol's."""
    max_detections: tuple[int, ...] = ()
    """Limits of detections in place of the protocol's."""
    class_agnostic: bool = False
    """All classes are one."""
    report: str | None = None
    """Directory of an HTML page with curves, errors and the worst images; the example's is runs/detection_map."""
    images: str | None = None
    """Folder of the image files, for the page; without it boxes are drawn on empty canvases."""
    worst: int = 12
    """How many images the page shows."""
    json: str | None = None
    """File for all numbers as JSON: the protocol's, those of each class, and the types of error."""
    list_errors: str | None = None
    """File for every false positive and every miss, one JSON object a line, with the ids."""


PRESETS = {"example": DetectionMap()}
