"""Files and arrays in: which form a ground truth or a list of detections has, and who reads it.

Everything is checked there, once, and every error names the file, the row and the value.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashjax.evaluation.detection import arrays, coco, voc
from flashjax.evaluation.detection import masks as m
from flashjax.evaluation.detection.fields import AreaFrom, BoxFormat
from flashjax.evaluation.detection.reading import read_json, read_results
from flashjax.evaluation.detection.tables import Catalogue, Detections, GroundTruth, first_bad

Array = np.ndarray


def load_ground_truth(
    given: Any,
    iou_type: str = "bbox",
    *,
    area: AreaFrom = "given",
    box_format: BoxFormat = "xywh",
    lvis: bool = False,
) -> GroundTruth:
    """The ground truth in any of the forms that `evaluate` names.

    Raises:
        ValueError: what is wrong with it, where, and the value.
    """
    if isinstance(given, GroundTruth):
        return given
    if area not in ("given", "box", "mask"):
        raise ValueError(f"area must be 'given', 'box' or 'mask'; it is {area!r}")
    if isinstance(given, str | Path):
        path = Path(given)
        if path.is_dir():
            return voc.ground_truth(path)
        return coco.ground_truth(read_json(path), str(path), iou_type, area, lvis)
    if isinstance(given, Mapping):
        if "annotations" in given:
            return coco.ground_truth(given, "ground truth", iou_type, area, lvis)
        return arrays.ground_truth(given, iou_type, area, box_format)
    raise ValueError(
        f"a ground truth is a path, a COCO dataset or a mapping of columns; this is {type(given).__name__}"
    )


def load_detections(
    given: Any, catalogue: Catalogue, iou_type: str = "bbox", *, box_format: BoxFormat = "xywh"
) -> Detections:
    """The detections in any of the forms that `evaluate` names; none at all is a form as well.

    Raises:
        ValueError: what is wrong with them, where, and the value.
    """
    if isinstance(given, Detections):
        return given
    source = "detections"
    if isinstance(given, str | Path):
        path, source = Path(given), str(given)
        if path.is_dir():
            return voc.detections(path, catalogue)
        columns = read_results(path, iou_type == "segm") if iou_type != "keypoints" else None
        if columns is not None:
            columns = dict(columns)
            if iou_type == "segm":
                sizes, starts, text = (columns.pop(key) for key in ("size", "starts", "counts"))
                columns["segmentation"] = m.Encoded(sizes, starts, text, f"{source}: detection")
            return arrays.detections(columns, catalogue, iou_type, "xywh", source)
        given = read_json(path)
    if isinstance(given, np.ndarray):
        if given.ndim != 2 or given.shape[1] != 7:
            raise ValueError(
                f"{source}: an array of detections is [N, 7] of image id, x, y, width, height, score, category id; "
                f"it is {given.shape}"
            )
        whole = given[:, [0, 6]]
        row = first_bad(whole == np.trunc(whole))
        if row is not None:
            raise ValueError(f"{source}: detection {row}: ids {whole[row].tolist()} are no integers")
        given = {
            "image_id": given[:, 0].astype(np.int64),
            "bbox": given[:, 1:5],
            "score": given[:, 5],
            "category_id": given[:, 6].astype(np.int64),
        }
        return arrays.detections(given, catalogue, iou_type, "xywh", source)
    if isinstance(given, Mapping) and "annotations" in given:
        return coco.detections(given["annotations"], catalogue, iou_type, source, own=True)
    if isinstance(given, Mapping):
        return arrays.detections(given, catalogue, iou_type, box_format, source)
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        return coco.detections(given, catalogue, iou_type, source)
    raise ValueError(f"{source}: a list of results is wanted; this is {type(given).__name__}")


def limit_per_image(found: Detections, limit: int) -> Array:
    """Rows of the ``limit`` highest scores of each image, as LVIS's program keeps and orders them: images by their
    first detection; of an image with too many, falling scores, of another, the order of the file."""
    count = len(found)
    order = np.argsort(found.image, kind="stable")
    group = found.image[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(np.append(starts, count))
    by_score = order[np.lexsort([-found.scores[order], group])]
    owner = np.repeat(np.arange(len(starts)), sizes)
    chosen = np.where((sizes > limit)[owner], by_score, order)
    kept = np.arange(count) - starts[owner] < limit if count else np.zeros(0, bool)
    first_row = order[starts] if count else np.zeros(0, np.int64)
    place = np.argsort(np.argsort(first_row))
    rows, owner = chosen[kept], owner[kept]
    return rows[np.argsort(place[owner], kind="stable")]
