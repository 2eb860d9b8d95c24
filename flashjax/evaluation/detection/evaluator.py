"""The entry: `evaluate` for what is there, `Evaluator` for what comes batch by batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flashjax.evaluation.detection import formats, protocols
from flashjax.evaluation.detection.accumulate import recalls_of
from flashjax.evaluation.detection.compare import compare
from flashjax.evaluation.detection.curves import Curves
from flashjax.evaluation.detection.fields import AreaFrom, BoxFormat
from flashjax.evaluation.detection.protocols import Protocol
from flashjax.evaluation.detection.result import Result
from flashjax.evaluation.detection.summary import summarise
from flashjax.evaluation.detection.tables import Detections, GroundTruth, select, take_rows


def load(
    ground_truth: Any,
    detections: Any,
    protocol: str | Protocol = "coco",
    iou_type: str = "bbox",
    *,
    area: AreaFrom = "given",
    box_format: BoxFormat = "xywh",
) -> tuple[GroundTruth, Detections]:
    """Both, read and checked: what `evaluate` does first, and accepts in place of files."""
    asked = protocols.get(protocol, iou_type)
    truth = formats.load_ground_truth(ground_truth, iou_type, area=area, box_format=box_format, lvis=asked.federated)
    return truth, formats.load_detections(detections, truth.catalogue, iou_type, box_format=box_format)


def evaluate(
    ground_truth: Any,
    detections: Any,
    protocol: str | Protocol = "coco",
    iou_type: str = "bbox",
    *,
    iou_thresholds: Sequence[float] | None = None,
    recall_thresholds: Sequence[float] | None = None,
    max_detections: Sequence[int] | None = None,
    areas: Mapping[str, tuple[float, float]] | None = None,
    use_categories: bool | None = None,
    sigmas: Sequence[float] | None = None,
    image_ids: Sequence[Any] | None = None,
    category_ids: Sequence[int] | None = None,
    area: AreaFrom = "given",
    box_format: BoxFormat = "xywh",
) -> Result:
    """Average precision and recall of ``detections``, with everything behind them.

    Args:
        ground_truth: One of
            the path of a COCO or LVIS JSON file;
            the path of a folder of PASCAL VOC's XML files, or of the folder that holds it as Annotations;
            a COCO dataset, {"images": [...], "annotations": [...], "categories": [...]};
            columns {"image_id" [N], "category_id" [N], "bbox" [N, 4]}, and where there are any "area", "iscrowd",
            "ignore", "id" [N], "segmentation" (N times polygons or run lengths, or bool [N, H, W]), "keypoints"
            [N, J, 3], "num_keypoints"; "images": the ids of all images, also of those without objects, and their
            "sizes" [I, 2] (height, width); "categories": {id: name}, ids, or names.
        detections: One of
            the path of a COCO results file;
            the path of a folder of VOC's text files, <anything>_<class>.txt;
            a list of COCO results {"image_id", "category_id", "score", and "bbox", "segmentation" or "keypoints"};
            a COCO dataset whose annotations have a score: their ids and areas stand;
            columns as above, with "score" [N];
            an array [N, 7] of image id, x, y, width, height, score, category id.
        protocol: A name in PROTOCOLS, or a `Protocol`.
        iou_type: "bbox", "segm" or "keypoints".
        iou_thresholds, recall_thresholds, max_detections, areas, use_categories, sigmas: In place of the protocol's;
            areas are {label: (least, most)}.
        image_ids, category_ids: Only these.
        area: Where the area of a ground truth comes from: "given", its "box", or its "mask".
        box_format: "xywh" or "xyxy", of columns. Under VOC, corners are taken as given; x, y, width, height become the
            corners x, y, x + width, y + height. Under COCO and LVIS, width is x1 - x0.

    Raises:
        ValueError: for bad input, with the file, the row and the value; for options that the protocol cannot take.
    """
    asked = protocols.get(
        protocol,
        iou_type,
        **options_of(
            iou_thresholds=iou_thresholds,
            recall_thresholds=recall_thresholds,
            max_detections=max_detections,
            areas=areas,
            use_categories=use_categories,
            sigmas=sigmas,
        ),
    )
    truth, found = load(ground_truth, detections, asked, iou_type, area=area, box_format=box_format)
    return measure(truth, found, asked, iou_type, image_ids, category_ids)


def options_of(
    *,
    iou_thresholds: Sequence[float] | None = None,
    recall_thresholds: Sequence[float] | None = None,
    max_detections: Sequence[int] | None = None,
    areas: Mapping[str, tuple[float, float]] | None = None,
    use_categories: bool | None = None,
    sigmas: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The changes to a protocol as its fields; what is None stays."""
    return {
        "iou_thresholds": None if iou_thresholds is None else tuple(float(t) for t in iou_thresholds),
        "recall_thresholds": None if recall_thresholds is None else tuple(float(r) for r in recall_thresholds),
        "max_detections": None if max_detections is None else tuple(max_detections),
        "areas": None if areas is None else tuple((label, *map(float, span)) for label, span in areas.items()),
        "use_categories": use_categories,
        "sigmas": None if sigmas is None else tuple(float(s) for s in sigmas),
    }


def measure(
    truth: GroundTruth,
    found: Detections,
    protocol: Protocol,
    iou_type: str,
    image_ids: Sequence[Any] | None = None,
    category_ids: Sequence[int] | None = None,
) -> Result:
    """The result for tables that are read and checked."""
    if protocol.per_image is not None:
        found = take_rows(found, formats.limit_per_image(found, protocol.per_image))
        if protocol.official:  # its program numbers what is left, and leaves out what has no area
            ids = np.arange(1, len(found) + 1)
            found = take_rows(Detections(**{**vars(found), "ids": ids}), np.flatnonzero(_area(found) > 0))
            truth = take_rows(truth, np.flatnonzero(truth.area > 0))
    truth, found = select(truth, found, image_ids, category_ids)
    comparison = compare(truth, found, protocol, iou_type)
    voc = protocol.matching == "voc"
    eps = 0.0 if voc else float(np.spacing(1))
    catalogue = truth.catalogue
    curves = Curves(
        np.array(protocol.iou_thresholds),
        None if protocol.recall_thresholds is None else np.array(protocol.recall_thresholds),
        catalogue.names if protocol.use_categories else ("all",),
        tuple(label for label, _, _ in protocol.areas),
        protocol.max_detections,
        recalls_of(comparison.ranking, len(protocol.iou_thresholds), protocol.max_detections),
        comparison.ranking,
        eps,
    )
    names, stats = summarise(protocol, iou_type, curves, catalogue.frequency)
    return Result(protocol, iou_type, stats, names, curves, comparison)


def _area(found: Detections) -> np.ndarray:
    if found.area is not None:
        return found.area
    assert found.masks is not None
    return found.masks.areas()
