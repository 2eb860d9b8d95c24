"""COCO's and LVIS's JSON, read: data sets and lists of results."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from flashjax.evaluation.detection import polygons
from flashjax.evaluation.detection.fields import (
    AreaFrom,
    Records,
    area_of,
    boxes_of,
    by_name,
    check_area,
    column,
    flags,
    ids_of,
    keypoints_of,
    known_sizes,
    numbers,
    rectangle,
    segmentations,
    whole_numbers,
)
from flashjax.evaluation.detection.tables import (
    Catalogue,
    Detections,
    GroundTruth,
    check_scores,
    check_unique,
    index_of,
)

_BASIC = ("source", "images", "sizes", "files", "categories", "names")


def ground_truth(data: Any, source: str, iou_type: str, area: AreaFrom, lvis: bool) -> GroundTruth:
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, Mapping) or not isinstance(data.get(key), Sequence):
            raise ValueError(f"{source} is no COCO ground truth: it has no list '{key}'")
    catalogue = _coco_catalogue(data, source, lvis)
    records: Records = data["annotations"]
    ids = ids_of(column(records, "id", source, "annotation"), source, "annotation")
    check_unique(ids, source, "annotation")
    image = index_of(
        ids_of(column(records, "image_id", source, "annotation"), source, "annotation"),
        *(catalogue.images, source, "annotation", "image_id", source),
    )
    category = index_of(
        ids_of(column(records, "category_id", source, "annotation"), source, "annotation"),
        *(catalogue.categories, source, "annotation", "category_id", "its categories"),
    )
    boxes = None
    if iou_type != "segm" or (records and all("bbox" in r for r in records)):
        boxes = boxes_of(records, source, "annotation")
    masks = None
    if iou_type == "segm" or area == "mask":
        masks = segmentations(
            column(records, "segmentation", source, "annotation"), catalogue.sizes[image], source, "annotation"
        )
    keypoints = counts = None
    if iou_type == "keypoints":
        keypoints = keypoints_of(column(records, "keypoints", source, "annotation"), source, "annotation")
        visible = (keypoints[:, :, 2] > 0).sum(1)
        given = [r.get("num_keypoints") for r in records]
        given = [v if g is None else g for g, v in zip(given, visible.tolist(), strict=True)]
        counts = whole_numbers(given, source, "annotation", "num_keypoints")
    if area == "given":
        hint = "; give area='box' or 'mask' to compute it"
        areas = numbers(column(records, "area", source, "annotation", hint), source, "annotation", "area")
    else:
        areas = area_of(area, boxes, masks, source)
    check_area(areas, source)
    crowd = flags([r.get("iscrowd", 0) for r in records], source, "annotation", "iscrowd")
    ignore = flags([r.get("ignore", 0) for r in records], source, "annotation", "ignore")
    return GroundTruth(catalogue, image, category, ids, areas, crowd, ignore, boxes, None, masks, keypoints, counts)


def _coco_catalogue(data: Mapping[str, Any], source: str, lvis: bool) -> Catalogue:
    images: Records = data["images"]
    categories: Records = data["categories"]
    if not images:
        raise ValueError(f"{source} holds no images")
    if not categories:
        raise ValueError(f"{source} holds no categories")
    image_ids = ids_of(column(images, "id", source, "image"), source, "image")
    category_ids = ids_of(column(categories, "id", source, "category"), source, "category")
    check_unique(image_ids, source, "image")
    check_unique(category_ids, source, "category")
    if category_ids.dtype.kind != "i":
        raise ValueError(f"{source}: category 0: id {category_ids[0].item()!r} is no integer")
    by_image, by_category = np.argsort(image_ids, kind="stable"), np.argsort(category_ids, kind="stable")
    image_ids, category_ids = image_ids[by_image], category_ids[by_category]
    sides = ("height", "width")
    sizes = [whole_numbers([i.get(side) or 0 for i in images], source, "image", side) for side in sides]
    sizes = np.stack(sizes, 1)
    catalogue = Catalogue(
        source,
        image_ids,
        sizes[by_image],
        tuple(str(images[i].get("file_name", "")) for i in by_image.tolist()),
        category_ids,
        tuple(str(categories[k].get("name", category_ids[n])) for n, k in enumerate(by_category.tolist())),
    )
    if not lvis:
        return catalogue
    pairs = []
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        lists = column(images, key, source, "image", "; protocol lvis needs it")
        owner = np.repeat(np.argsort(by_image), list(map(len, lists)))
        flat = np.array(list(chain.from_iterable(lists)), np.int64)
        known = np.searchsorted(category_ids, flat)
        known = np.where(known < len(category_ids), known, 0)
        kept = category_ids[known] == flat  # a file of fewer categories may name others
        pairs.append(np.unique(owner[kept] * len(category_ids) + known[kept]))
    frequency = tuple(_frequency(categories[k], k, source) for k in by_category.tolist())
    return Catalogue(*(getattr(catalogue, f) for f in _BASIC), frequency, *pairs)  # type: ignore[call-arg]


def _frequency(category: Mapping[str, Any], row: int, source: str) -> str:
    """Rare: in up to 10 training images; common: up to 100; frequent: more."""
    given = category.get("frequency")
    if given in ("r", "c", "f"):
        return given
    if given is None and "image_count" in category:
        count = category["image_count"]
        return "r" if count <= 10 else "c" if count <= 100 else "f"
    raise ValueError(
        f"{source}: category {row}: frequency {given!r} is not 'r', 'c' or 'f', and it has no image_count; protocol "
        "lvis needs one of them"
    )


def detections(records: Records, catalogue: Catalogue, iou_type: str, source: str, own: bool = False):
    """A results list; or, where ``own``, the annotations of a dataset with scores, whose ids and areas stand."""
    count, what = len(records), "detection"
    scores = numbers(column(records, "score", source, what), source, what, "score")
    check_scores(scores, source)
    image = index_of(
        ids_of(column(records, "image_id", source, what), source, what),
        *(catalogue.images, source, what, "image_id", catalogue.source),
    )
    category = index_of(
        by_name(ids_of(column(records, "category_id", source, what), source, what), catalogue, source, what),
        *(catalogue.categories, source, what, "category_id", catalogue.source),
    )
    # As in COCO's program, the first result says what all of them are.
    first = records[0] if count else {}
    boxed = bool("bbox" in first and first["bbox"] != [])
    boxes = boxes_of(records, source, what) if boxed or (not count and iou_type == "bbox") else None
    area = masks = keypoints = None
    if boxes is not None:
        area = boxes[:, 2] * boxes[:, 3]
    if iou_type == "segm" or (count and iou_type == "bbox" and boxes is None):
        sizes = catalogue.sizes[image]
        if boxes is not None and not any("segmentation" in r for r in records):
            masks = polygons.from_boxes(boxes, known_sizes(sizes, source, what))
        elif boxes is not None and not all("segmentation" in r for r in records):
            given = [r.get("segmentation") for r in records]
            given = [rectangle(b) if s is None else s for s, b in zip(given, boxes.tolist(), strict=True)]
            masks = segmentations(given, sizes, source, what)
        else:
            hint = "" if iou_type == "segm" else ", and the first result has no 'bbox'"
            masks = segmentations(column(records, "segmentation", source, what, hint), sizes, source, what)
        if iou_type == "bbox":
            boxes = masks.boxes()
            area = masks.areas().astype(np.float64)
    if iou_type == "keypoints":
        keypoints = keypoints_of(column(records, "keypoints", source, what), source, what)
        if boxes is None:
            x, y = keypoints[:, :, 0], keypoints[:, :, 1]
            left, top = x.min(1, initial=np.inf), y.min(1, initial=np.inf)
            boxes = np.stack([left, top, x.max(1, initial=-np.inf) - left, y.max(1, initial=-np.inf) - top], 1)
            area = boxes[:, 2] * boxes[:, 3]
    ids = np.arange(1, count + 1)
    if own:
        ids = ids_of(column(records, "id", source, what), source, what)
        check_unique(ids, source, what)
        area = numbers(column(records, "area", source, what), source, what, "area")
    if iou_type == "bbox":
        masks = None
    return Detections(source, image, category, ids, scores, area, boxes, None, masks, keypoints)
