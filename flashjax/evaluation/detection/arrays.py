"""Plain columns in: arrays of ids, boxes, scores, masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flashjax.evaluation.detection import masks as m
from flashjax.evaluation.detection import polygons
from flashjax.evaluation.detection.fields import (
    AreaFrom,
    BoxFormat,
    area_of,
    by_name,
    check_area,
    flags,
    ids_of,
    keypoints_of,
    known_sizes,
    numbers,
    segmentations,
)
from flashjax.evaluation.detection.tables import (
    Catalogue,
    Detections,
    GroundTruth,
    check_boxes,
    check_scores,
    check_unique,
    first_bad,
    index_of,
)

Array = np.ndarray


def ground_truth(given: Mapping[str, Any], iou_type: str, area: AreaFrom, box_format: BoxFormat) -> GroundTruth:
    source = "ground truth"
    known = {*("image_id", "category_id", "bbox", "segmentation", "keypoints", "area", "iscrowd", "ignore", "id")}
    known |= {*("num_keypoints", "images", "categories", "sizes")}
    _known_keys(given, known, source)
    image_ids = ids_of(_array(given, "image_id", source), source, "annotation")
    category_ids = ids_of(_array(given, "category_id", source), source, "annotation")
    count = len(image_ids)
    images = np.unique(ids_of(given["images"], source, "image") if given.get("images") is not None else image_ids)
    categories, names = _categories(given.get("categories"), category_ids, source)
    sizes = np.zeros((len(images), 2), np.int64)
    if given.get("sizes") is not None:
        sizes = np.asarray(given["sizes"], np.int64)
        if given.get("images") is None or sizes.shape != (len(given["images"]), 2):
            raise ValueError(f"{source}: sizes must be [height, width] of each of 'images'; they are {sizes.shape}")
        sizes = sizes[np.argsort(ids_of(given["images"], source, "image"), kind="stable")]
    catalogue = Catalogue(source, images, sizes, (), categories, names)
    if not len(images):
        raise ValueError(f"{source} names no images: give 'images', or at least one annotation")
    boxes, corners = _array_boxes(given, count, box_format, source, "annotation", iou_type != "segm")
    image = index_of(image_ids, images, source, "annotation", "image_id", "images")
    masks = keypoints = counts = None
    if iou_type == "segm" or area == "mask":
        masks = _array_masks(given, count, catalogue.sizes[image], source, "annotation")
    if iou_type == "keypoints":
        keypoints = _array_keypoints(given, count, source, "annotation")
        counts = _optional(given, "num_keypoints", count, (keypoints[:, :, 2] > 0).sum(1), source).astype(np.int64)
    if given.get("area") is not None and area == "given":
        areas = numbers(_sized(given["area"], "area", count, source), source, "annotation", "area")
    else:
        areas = area_of("mask" if masks is not None else "box", boxes, masks, source)
    check_area(areas, source)
    ids = ids_of(_optional(given, "id", count, np.arange(1, count + 1), source), source, "annotation")
    check_unique(ids, source, "annotation")
    return GroundTruth(
        catalogue,
        image,
        index_of(
            by_name(category_ids, catalogue, source, "annotation"),
            categories,
            source,
            "annotation",
            "category_id",
            "categories",
        ),
        ids,
        areas,
        flags(_optional(given, "iscrowd", count, np.zeros(count), source), source, "annotation", "iscrowd"),
        flags(_optional(given, "ignore", count, np.zeros(count), source), source, "annotation", "ignore"),
        *(boxes, corners, masks, keypoints, counts),
    )


def _categories(given: Any, used: Array, source: str) -> tuple[Array, tuple[str, ...]]:
    """(rising ids, names) of {id: name}, a list of names (ids from 0) or of ids, or of those that are used."""
    if given is None and used.dtype.kind == "U":
        given = np.unique(used).tolist()
    if given is None:
        ids = np.unique(used)
        return ids, tuple(map(str, ids.tolist()))
    if isinstance(given, Mapping):
        ids = sorted(given)
        return ids_of(ids, source, "category").astype(np.int64), tuple(str(given[i]) for i in ids)
    given = list(given)
    if given and all(isinstance(name, str) for name in given):
        if len(set(given)) < len(given):
            raise ValueError(f"{source}: a category name is there twice: {sorted(given)}")
        return np.arange(len(given)), tuple(given)
    ids = np.unique(ids_of(given, source, "category"))
    return ids, tuple(map(str, ids.tolist()))


def detections(
    given: Mapping[str, Any], catalogue: Catalogue, iou_type: str, box_format: BoxFormat, source: str
) -> Detections:
    what = "detection"
    known = {*("image_id", "category_id", "bbox", "segmentation", "keypoints", "score", "area", "id")}
    _known_keys(given, known, source)
    image_ids = ids_of(_array(given, "image_id", source), source, what)
    count = len(image_ids)
    category_ids = ids_of(_sized(_array(given, "category_id", source), "category_id", count, source), source, what)
    scores = numbers(_sized(_array(given, "score", source), "score", count, source), source, what, "score")
    check_scores(scores, source)
    image = index_of(image_ids, catalogue.images, source, what, "image_id", catalogue.source)
    category = index_of(
        by_name(category_ids, catalogue, source, what),
        catalogue.categories,
        source,
        what,
        "category_id",
        catalogue.source,
    )
    boxes, corners = _array_boxes(given, count, box_format, source, what, iou_type == "bbox")
    masks = keypoints = None
    area = None if boxes is None else boxes[:, 2] * boxes[:, 3]
    if iou_type == "segm":
        if given.get("segmentation") is None and boxes is not None:
            masks = polygons.from_boxes(boxes, known_sizes(catalogue.sizes[image], source, what))
        else:
            masks = _array_masks(given, count, catalogue.sizes[image], source, what)
    if iou_type == "keypoints":
        keypoints = _array_keypoints(given, count, source, what)
        if area is None:
            extent = np.ptp(keypoints[:, :, :2], axis=1) if count else np.zeros((0, 2))
            boxes = np.concatenate([keypoints[:, :, :2].min(1), extent], 1) if count else np.zeros((0, 4))
            area = extent[:, 0] * extent[:, 1]
    if given.get("area") is not None:
        area = numbers(_sized(given["area"], "area", count, source), source, what, "area")
    ids = np.arange(1, count + 1)
    if given.get("id") is not None:
        ids = ids_of(_sized(given["id"], "id", count, source), source, what)
        check_unique(ids, source, what)
    return Detections(source, image, category, ids, scores, area, boxes, corners, masks, keypoints)


def _known_keys(given: Mapping[str, Any], known: set[str], source: str) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ValueError(f"{source}: unknown column '{unknown[0]}'; columns are {', '.join(sorted(known))}")


def _array(given: Mapping[str, Any], key: str, source: str) -> Any:
    if given.get(key) is None:
        raise ValueError(f"{source} has no column '{key}'; it has {', '.join(given) or 'none'}")
    return given[key]


def _sized(values: Any, key: str, count: int, source: str) -> Any:
    if len(values) != count:
        raise ValueError(f"{source}: column '{key}' has {len(values)} rows, image_id has {count}")
    return values


def _optional(given: Mapping[str, Any], key: str, count: int, default: Array, source: str) -> Array:
    return np.asarray(_sized(given[key], key, count, source)) if given.get(key) is not None else default


def _array_boxes(
    given: Mapping[str, Any], count: int, box_format: BoxFormat, source: str, what: str, needed: bool
) -> tuple[Array | None, Array | None]:
    """(x, y, width, height; corners where they were given)."""
    if box_format not in ("xywh", "xyxy"):
        raise ValueError(f"box_format must be 'xywh' or 'xyxy'; it is {box_format!r}")
    if given.get("bbox") is None and not needed:
        return None, None
    boxes = np.ascontiguousarray(_array(given, "bbox", source), np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{source}: bbox must be [N, 4]; it is {list(boxes.shape)}")
    _sized(boxes, "bbox", count, source)
    corners = None
    if box_format == "xyxy":
        corners = boxes
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    check_boxes(boxes, source, what)
    return boxes, corners


def _array_masks(given: Mapping[str, Any], count: int, sizes: Array, source: str, what: str) -> m.AnyMasks:
    """bool [N, H, W], or a list of polygons or run lengths."""
    masks = _sized(_array(given, "segmentation", source), "segmentation", count, source)
    if isinstance(masks, np.ndarray) and masks.ndim == 3:
        masks = m.encode(masks.astype(bool))
    if isinstance(masks, m.Masks | m.Encoded):
        row = first_bad((masks.sizes == sizes) | (sizes == 0))
        if row is not None:
            raise ValueError(
                f"{source}: {what} {row}: its mask is of size {masks.sizes[row].tolist()}, its image of "
                f"{sizes[row].tolist()} (height, width)"
            )
        return masks
    return segmentations(masks, sizes, source, what)


def _array_keypoints(given: Mapping[str, Any], count: int, source: str, what: str) -> Array:
    points = _sized(_array(given, "keypoints", source), "keypoints", count, source)
    if isinstance(points, np.ndarray) and points.ndim == 3:
        points = points.reshape(count, -1)
    return keypoints_of(points, source, what)
