"""Files and arrays in: COCO's JSON, LVIS's JSON, PASCAL VOC's XML and text folders, plain columns.

Everything is checked here, once, and every error names the file, the row and the value.
"""

import json
import operator
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flashjax.evaluation.detection import masks as m
from flashjax.evaluation.detection.regular import read_results
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
Records = Sequence[Mapping[str, Any]]
AreaFrom = Literal["given", "box", "mask"]
BoxFormat = Literal["xywh", "xyxy"]


def load(
    ground_truth: Any,
    detections: Any,
    iou_type: str = "bbox",
    *,
    area: AreaFrom = "given",
    box_format: BoxFormat = "xywh",
    lvis: bool = False,
    per_image: int | None = None,
    drop_without_area: bool = False,
) -> tuple[GroundTruth, Detections]:
    """Both, read and checked; what `evaluate` does first. Forms of either are listed there.

    Args:
        area: Where the area of a ground truth comes from: its ``area``, its box, or its mask.
        box_format: What the boxes of columns and arrays are (files say it themselves).
        lvis: Read the images' lists of categories, and the categories' frequency.
        per_image: Keep so many detections of an image, the highest scores first (LVIS).
        drop_without_area: Leave out what has area 0, as LVIS's program does.
    """
    truth = load_ground_truth(ground_truth, iou_type, area=area, box_format=box_format, lvis=lvis)
    found = load_detections(detections, truth.catalogue, iou_type, box_format=box_format)
    return truth, found


# Ground truth.


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
            return _voc_ground_truth(path)
        return _coco_ground_truth(_read_json(path), str(path), iou_type, area, lvis)
    if isinstance(given, Mapping):
        if "annotations" in given:
            return _coco_ground_truth(given, "ground truth", iou_type, area, lvis)
        return _columns_ground_truth(given, iou_type, area, box_format)
    raise ValueError(
        f"a ground truth is a path, a COCO dataset or a mapping of columns; this is {type(given).__name__}"
    )


def _coco_ground_truth(data: Any, source: str, iou_type: str, area: AreaFrom, lvis: bool) -> GroundTruth:
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, Mapping) or not isinstance(data.get(key), Sequence):
            raise ValueError(f"{source} is no COCO ground truth: it has no list '{key}'")
    catalogue = _coco_catalogue(data, source, lvis)
    records: Records = data["annotations"]
    ids = _ids(_column(records, "id", source, "annotation"), source, "annotation")
    check_unique(ids, source, "annotation")
    image = index_of(
        _ids(_column(records, "image_id", source, "annotation"), source, "annotation"),
        *(catalogue.images, source, "annotation", "image_id", source),
    )
    category = index_of(
        _ids(_column(records, "category_id", source, "annotation"), source, "annotation"),
        *(catalogue.categories, source, "annotation", "category_id", "its categories"),
    )
    boxes = None
    if iou_type != "segm" or (records and all("bbox" in r for r in records)):
        boxes = _boxes(records, source, "annotation")
    masks = None
    if iou_type == "segm" or area == "mask":
        masks = _segmentations(
            _column(records, "segmentation", source, "annotation"), catalogue.sizes[image], source, "annotation"
        )
    keypoints = counts = None
    if iou_type == "keypoints":
        keypoints = _keypoints(_column(records, "keypoints", source, "annotation"), source, "annotation")
        visible = (keypoints[:, :, 2] > 0).sum(1)
        given = [r.get("num_keypoints") for r in records]
        counts = np.array([v if g is None else g for g, v in zip(given, visible.tolist(), strict=True)], np.int64)
    if area == "given":
        hint = "; give area='box' or 'mask' to compute it"
        areas = _numbers(_column(records, "area", source, "annotation", hint), source, "annotation", "area")
    else:
        areas = _area_of(area, boxes, masks, source)
    _check_area(areas, source)
    crowd = _flags([r.get("iscrowd", 0) for r in records], source, "annotation", "iscrowd")
    ignore = _flags([r.get("ignore", 0) for r in records], source, "annotation", "ignore")
    return GroundTruth(catalogue, image, category, ids, areas, crowd, ignore, boxes, None, masks, keypoints, counts)


def _coco_catalogue(data: Mapping[str, Any], source: str, lvis: bool) -> Catalogue:
    images: Records = data["images"]
    categories: Records = data["categories"]
    if not images:
        raise ValueError(f"{source} holds no images")
    if not categories:
        raise ValueError(f"{source} holds no categories")
    image_ids = _ids(_column(images, "id", source, "image"), source, "image")
    category_ids = _ids(_column(categories, "id", source, "category"), source, "category")
    check_unique(image_ids, source, "image")
    check_unique(category_ids, source, "category")
    if category_ids.dtype.kind != "i":
        raise ValueError(f"{source}: category 0: id {category_ids[0].item()!r} is no integer")
    by_image, by_category = np.argsort(image_ids, kind="stable"), np.argsort(category_ids, kind="stable")
    image_ids, category_ids = image_ids[by_image], category_ids[by_category]
    sizes = np.array([(i.get("height") or 0, i.get("width") or 0) for i in images], np.int64).reshape(-1, 2)
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
        lists = _column(images, key, source, "image", "; protocol lvis needs it")
        owner = np.repeat(np.argsort(by_image), list(map(len, lists)))
        flat = np.array(list(chain.from_iterable(lists)), np.int64)
        known = np.searchsorted(category_ids, flat)
        known = np.where(known < len(category_ids), known, 0)
        kept = category_ids[known] == flat  # a file of fewer categories may name others
        pairs.append(np.unique(owner[kept] * len(category_ids) + known[kept]))
    frequency = tuple(_frequency(categories[k], k, source) for k in by_category.tolist())
    return Catalogue(*(getattr(catalogue, f) for f in _BASIC), frequency, *pairs)


_BASIC = ("source", "images", "sizes", "files", "categories", "names")


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


def _columns_ground_truth(given: Mapping[str, Any], iou_type: str, area: AreaFrom, box_format: BoxFormat):
    source = "ground truth"
    known = {*("image_id", "category_id", "bbox", "segmentation", "keypoints", "area", "iscrowd", "ignore", "id")}
    known |= {*("num_keypoints", "images", "categories", "sizes")}
    _known_keys(given, known, source)
    image_ids = _ids(_array(given, "image_id", source), source, "annotation")
    category_ids = _ids(_array(given, "category_id", source), source, "annotation")
    count = len(image_ids)
    images = np.unique(_ids(given["images"], source, "image") if given.get("images") is not None else image_ids)
    categories, names = _categories(given.get("categories"), category_ids, source)
    sizes = np.zeros((len(images), 2), np.int64)
    if given.get("sizes") is not None:
        sizes = np.asarray(given["sizes"], np.int64)
        if given.get("images") is None or sizes.shape != (len(given["images"]), 2):
            raise ValueError(f"{source}: sizes must be [height, width] of each of 'images'; they are {sizes.shape}")
        sizes = sizes[np.argsort(_ids(given["images"], source, "image"), kind="stable")]
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
        areas = _numbers(_sized(given["area"], "area", count, source), source, "annotation", "area")
    else:
        areas = _area_of("mask" if masks is not None else "box", boxes, masks, source)
    _check_area(areas, source)
    ids = _ids(_optional(given, "id", count, np.arange(1, count + 1), source), source, "annotation")
    check_unique(ids, source, "annotation")
    return GroundTruth(
        catalogue,
        image,
        index_of(_by_name(category_ids, catalogue), categories, source, "annotation", "category_id", "categories"),
        ids,
        areas,
        _flags(_optional(given, "iscrowd", count, np.zeros(count), source), source, "annotation", "iscrowd"),
        _flags(_optional(given, "ignore", count, np.zeros(count), source), source, "annotation", "ignore"),
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
        return _ids(ids, source, "category").astype(np.int64), tuple(str(given[i]) for i in ids)
    given = list(given)
    if given and all(isinstance(name, str) for name in given):
        if len(set(given)) < len(given):
            raise ValueError(f"{source}: a category name is there twice: {sorted(given)}")
        return np.arange(len(given)), tuple(given)
    ids = np.unique(_ids(given, source, "category"))
    return ids, tuple(map(str, ids.tolist()))


def _by_name(ids: Array, catalogue: Catalogue) -> Array:
    """Category names to ids, where a column holds names."""
    if ids.dtype.kind != "U":
        return ids
    order = np.argsort(np.array(catalogue.names), kind="stable")
    names = np.array(catalogue.names)[order]
    place = index_of(ids, names, "category_id", "row", "category", catalogue.source)
    return catalogue.categories[order[place]]


# Detections.


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
            return _voc_detections(path, catalogue)
        columns = read_results(path, iou_type == "segm") if iou_type != "keypoints" else None
        if columns is not None:
            columns = dict(columns)
            if iou_type == "segm":
                sizes, starts, text = (columns.pop(key) for key in ("size", "starts", "counts"))
                columns["segmentation"] = m.Encoded(sizes, starts, text, f"{source}: detection")
            return _columns_detections(columns, catalogue, iou_type, "xywh", source)
        given = _read_json(path)
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
        return _columns_detections(given, catalogue, iou_type, "xywh", source)
    if isinstance(given, Mapping) and "annotations" in given:
        return _coco_detections(given["annotations"], catalogue, iou_type, source, own=True)
    if isinstance(given, Mapping):
        return _columns_detections(given, catalogue, iou_type, box_format, source)
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        return _coco_detections(given, catalogue, iou_type, source)
    raise ValueError(f"{source}: a list of results is wanted; this is {type(given).__name__}")


def _coco_detections(records: Records, catalogue: Catalogue, iou_type: str, source: str, own: bool = False):
    """A results list; or, where ``own``, the annotations of a dataset with scores, whose ids and areas stand."""
    count, what = len(records), "detection"
    scores = _numbers(_column(records, "score", source, what), source, what, "score")
    check_scores(scores, source)
    image = index_of(
        _ids(_column(records, "image_id", source, what), source, what),
        *(catalogue.images, source, what, "image_id", catalogue.source),
    )
    category = index_of(
        _by_name(_ids(_column(records, "category_id", source, what), source, what), catalogue),
        *(catalogue.categories, source, what, "category_id", catalogue.source),
    )
    # As in COCO's program, the first result says what all of them are.
    first = records[0] if count else {}
    boxed = bool("bbox" in first and first["bbox"] != [])
    boxes = _boxes(records, source, what) if boxed or (not count and iou_type == "bbox") else None
    area = masks = keypoints = None
    if boxes is not None:
        area = boxes[:, 2] * boxes[:, 3]
    if iou_type == "segm" or (count and iou_type == "bbox" and boxes is None):
        sizes = catalogue.sizes[image]
        if boxes is not None and not any("segmentation" in r for r in records):
            masks = m.from_boxes(boxes, _known_sizes(sizes, source, what))
        elif boxes is not None and not all("segmentation" in r for r in records):
            given = [r.get("segmentation") for r in records]
            given = [_rectangle(b) if s is None else s for s, b in zip(given, boxes.tolist(), strict=True)]
            masks = _segmentations(given, sizes, source, what)
        else:
            hint = "" if iou_type == "segm" else ", and the first result has no 'bbox'"
            masks = _segmentations(_column(records, "segmentation", source, what, hint), sizes, source, what)
        if iou_type == "bbox":
            boxes = masks.boxes()
            area = masks.areas().astype(np.float64)
    if iou_type == "keypoints":
        keypoints = _keypoints(_column(records, "keypoints", source, what), source, what)
        if boxes is None:
            x, y = keypoints[:, :, 0], keypoints[:, :, 1]
            left, top = x.min(1, initial=np.inf), y.min(1, initial=np.inf)
            boxes = np.stack([left, top, x.max(1, initial=-np.inf) - left, y.max(1, initial=-np.inf) - top], 1)
            area = boxes[:, 2] * boxes[:, 3]
    ids = np.arange(1, count + 1)
    if own:
        ids = _ids(_column(records, "id", source, what), source, what)
        check_unique(ids, source, what)
        area = _numbers(_column(records, "area", source, what), source, what, "area")
    if iou_type == "bbox":
        masks = None
    return Detections(source, image, category, ids, scores, area, boxes, None, masks, keypoints)


def _columns_detections(
    given: Mapping[str, Any], catalogue: Catalogue, iou_type: str, box_format: BoxFormat, source: str
) -> Detections:
    what = "detection"
    known = {*("image_id", "category_id", "bbox", "segmentation", "keypoints", "score", "area", "id")}
    _known_keys(given, known, source)
    image_ids = _ids(_array(given, "image_id", source), source, what)
    count = len(image_ids)
    category_ids = _ids(_sized(_array(given, "category_id", source), "category_id", count, source), source, what)
    scores = _numbers(_sized(_array(given, "score", source), "score", count, source), source, what, "score")
    check_scores(scores, source)
    image = index_of(image_ids, catalogue.images, source, what, "image_id", catalogue.source)
    category = index_of(
        _by_name(category_ids, catalogue), catalogue.categories, source, what, "category_id", catalogue.source
    )
    boxes, corners = _array_boxes(given, count, box_format, source, what, iou_type == "bbox")
    masks = keypoints = None
    area = None if boxes is None else boxes[:, 2] * boxes[:, 3]
    if iou_type == "segm":
        if given.get("segmentation") is None and boxes is not None:
            masks = m.from_boxes(boxes, _known_sizes(catalogue.sizes[image], source, what))
        else:
            masks = _array_masks(given, count, catalogue.sizes[image], source, what)
    if iou_type == "keypoints":
        keypoints = _array_keypoints(given, count, source, what)
        if area is None:
            extent = np.ptp(keypoints[:, :, :2], axis=1) if count else np.zeros((0, 2))
            boxes = np.concatenate([keypoints[:, :, :2].min(1), extent], 1) if count else np.zeros((0, 4))
            area = extent[:, 0] * extent[:, 1]
    if given.get("area") is not None:
        area = _numbers(_sized(given["area"], "area", count, source), source, what, "area")
    ids = np.arange(1, count + 1)
    if given.get("id") is not None:
        ids = _ids(_sized(given["id"], "id", count, source), source, what)
        check_unique(ids, source, what)
    return Detections(source, image, category, ids, scores, area, boxes, corners, masks, keypoints)


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


# PASCAL VOC.


def _voc_ground_truth(folder: Path) -> GroundTruth:
    """XML files, one an image; or the folder that holds them as Annotations. An image's id is its file's name."""
    if not any(folder.glob("*.xml")) and (folder / "Annotations").is_dir():
        folder = folder / "Annotations"
    paths = sorted(folder.glob("*.xml"), key=lambda path: path.stem)
    if not paths:
        raise ValueError(f"{folder} holds no XML files of annotations")
    images, sizes, files, rows = [], [], [], []
    for number, path in enumerate(paths):
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise ValueError(f"{path} is no XML: {error}") from None
        images.append(path.stem)
        size = root.find("size")
        wanted = ("height", "width")
        sizes.append([0 if size is None else _voc_int(size, key, path, "size") for key in wanted])
        files.append(root.findtext("filename") or "")
        for index, item in enumerate(root.findall("object")):
            name, box = item.findtext("name"), item.find("bndbox")
            if name is None or box is None:
                raise ValueError(f"{path}: object {index} has no {'name' if name is None else 'bndbox'}")
            corners = [_voc_float(box, key, path, f"object {index}") for key in ("xmin", "ymin", "xmax", "ymax")]
            if corners[2] < corners[0] or corners[3] < corners[1]:
                raise ValueError(f"{path}: object {index}: bndbox {corners} has a negative width or height")
            difficult = (
                _voc_int(item, "difficult", path, f"object {index}") if item.find("difficult") is not None else 0
            )
            rows.append((number, name.strip(), corners, difficult))
    names = sorted({name for _, name, _, _ in rows})
    if not names:
        raise ValueError(f"{folder}: no XML file holds an object")
    index = {name: i for i, name in enumerate(names)}
    catalogue = Catalogue(
        str(folder), np.array(images), np.array(sizes, np.int64), tuple(files), np.arange(len(names)), tuple(names)
    )
    corners = np.array([c for _, _, c, _ in rows], np.float64).reshape(-1, 4)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    return GroundTruth(
        catalogue,
        np.array([i for i, _, _, _ in rows], np.int64),
        np.array([index[name] for _, name, _, _ in rows], np.int64),
        np.arange(1, len(rows) + 1),
        boxes[:, 2] * boxes[:, 3],
        np.zeros(len(rows), bool),
        np.array([d for _, _, _, d in rows], bool),
        boxes,
        corners,
    )


def _voc_float(element: ElementTree.Element, key: str, path: Path, where: str) -> float:
    text = element.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        raise ValueError(f"{path}: {where}: {key} {text!r} is no number") from None
    if not np.isfinite(value):
        raise ValueError(f"{path}: {where}: {key} {text!r} is not finite")
    return value


def _voc_int(element: ElementTree.Element, key: str, path: Path, where: str) -> int:
    return int(_voc_float(element, key, path, where))


def _voc_detections(folder: Path, catalogue: Catalogue) -> Detections:
    """Text files <anything>_<class>.txt of lines: image, score, xmin, ymin, xmax, ymax."""
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise ValueError(f"{folder} holds no text files of detections, such as comp4_det_test_car.txt")
    images, categories, values, places = [], [], [], []
    for path in paths:
        fitting = [k for k, name in enumerate(catalogue.names) if path.stem == name or path.stem.endswith(f"_{name}")]
        if not fitting:
            raise ValueError(
                f"{path}: its name ends in no category of {catalogue.source}: {', '.join(catalogue.names)}"
            )
        category = max(fitting, key=lambda k: len(catalogue.names[k]))
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            fields = line.split()
            if not fields:
                continue
            try:
                image, numbers = fields[0], [float(field) for field in fields[1:]]
            except ValueError:
                raise ValueError(f"{path}: line {number}: {line!r} holds what is no number") from None
            if len(numbers) != 5:
                raise ValueError(
                    f"{path}: line {number}: {line!r} has {len(fields)} fields; image, score, xmin, ymin, xmax, ymax "
                    "are wanted"
                )
            images.append(image)
            categories.append(category)
            values.append(numbers)
            places.append((path, number))
    values = np.array(values, np.float64).reshape(-1, 5)
    corners = values[:, 1:]
    row = first_bad(np.isfinite(values))
    if row is not None:
        raise ValueError(f"{places[row][0]}: line {places[row][1]}: {values[row].tolist()} is not finite")
    row = first_bad(corners[:, 2:] >= corners[:, :2])
    if row is not None:
        path, number = places[row]
        raise ValueError(f"{path}: line {number}: box {corners[row].tolist()} has a negative width or height")
    known = {image: i for i, image in enumerate(catalogue.images.tolist())}
    for row, image in enumerate(images):
        if image not in known:
            path, number = places[row]
            raise ValueError(
                f"{path}: line {number}: image {image!r} is not among the {len(known)} of {catalogue.source}"
            )
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    return Detections(
        str(folder),
        np.array([known[image] for image in images], np.int64),
        np.array(categories, np.int64),
        np.arange(1, len(values) + 1),
        values[:, 0],
        boxes[:, 2] * boxes[:, 3],
        boxes,
        corners,
    )


# Columns of records.


def _read_json(path: Path) -> Any:
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(f"{path} is empty")
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def _column(records: Records, key: str, source: str, what: str, hint: str = "") -> list[Any]:
    try:
        return list(map(operator.itemgetter(key), records))
    except (KeyError, TypeError):
        for row, record in enumerate(records):
            if not isinstance(record, Mapping):
                raise ValueError(f"{source}: {what} {row} is {record!r}, no object of named values") from None
            if key not in record:
                raise ValueError(f"{source}: {what} {row} has no '{key}'{hint}") from None
        raise


def _ids(values: Any, source: str, what: str) -> Array:
    """Ids as int64 or text."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind in "iu":
            return values.astype(np.int64)
        if values.dtype.kind == "U":
            return values
        values = values.tolist()
    values = list(values)
    kinds = set(map(type, values))
    if not kinds <= {int} and not kinds <= {str}:
        if all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds):
            return np.array(list(map(int, values)), np.int64)
        odd = next(
            (i, v) for i, v in enumerate(values) if type(v) is not type(values[0]) or not isinstance(v, int | str)
        )
        raise ValueError(f"{source}: {what} {odd[0]}: id {odd[1]!r} is no integer, as the others are")
    return np.array(values) if kinds == {str} else np.array(values, np.int64)


def _numbers(values: Any, source: str, what: str, name: str) -> Array:
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        return values.astype(np.float64)
    if isinstance(values, list) and set(map(type, values)) <= {int, float}:
        return np.array(values, np.float64)
    for row, value in enumerate(values):
        if not isinstance(value, int | float | np.number) or isinstance(value, bool):
            raise ValueError(f"{source}: {what} {row}: {name} {value!r} is no number")
    return np.asarray(values, np.float64)


def _flags(values: Any, source: str, what: str, name: str) -> Array:
    numbers = np.asarray(values)
    good = np.isin(numbers, (0, 1))
    row = first_bad(good)
    if row is not None:
        raise ValueError(f"{source}: {what} {row}: {name} {values[row]!r} is not 0 or 1")
    return numbers.astype(bool)


def _boxes(records: Records, source: str, what: str) -> Array:
    lists = _column(records, "bbox", source, what)
    try:
        if not set(map(len, lists)) <= {4}:
            raise ValueError
        boxes = np.fromiter(chain.from_iterable(lists), np.float64, 4 * len(lists)).reshape(-1, 4)
    except (TypeError, ValueError):
        for row, box in enumerate(lists):
            wrong = not isinstance(box, Sequence | np.ndarray) or len(box) != 4
            if wrong or not all(isinstance(v, int | float | np.number) for v in box):
                raise ValueError(f"{source}: {what} {row}: bbox {box!r} is not four numbers") from None
        raise
    check_boxes(boxes, source, what)
    return boxes


def _keypoints(lists: Sequence[Any], source: str, what: str) -> Array:
    """[N, J, 3]."""
    if not len(lists):
        return np.zeros((0, 0, 3))
    count = len(lists[0])
    for row, points in enumerate(lists):
        if len(points) != count or count % 3 or count == 0:
            raise ValueError(
                f"{source}: {what} {row}: keypoints are {len(points)} numbers; x, y, visibility of each are wanted, and "
                f"the first has {count}"
            )
    points = np.array(list(lists), np.float64).reshape(len(lists), -1, 3)
    row = first_bad(np.isfinite(points))
    if row is not None:
        raise ValueError(f"{source}: {what} {row}: keypoints {points[row].tolist()} are not finite")
    return points


def _rectangle(box: Sequence[float]) -> list[list[float]]:
    x, y, width, height = box
    return [[x, y, x, y + height, x + width, y + height, x + width, y]]


def _known_sizes(sizes: Array, source: str, what: str) -> Array:
    row = first_bad(sizes > 0)
    if row is not None:
        raise ValueError(f"{source}: {what} {row}: masks need the height and width of its image, and it has none")
    return sizes


def _segmentations(given: Sequence[Any], sizes: Array, source: str, what: str) -> m.AnyMasks:
    """Masks of polygons, run lengths and compressed run lengths, in their order."""
    kinds = np.array([_segmentation_kind(one, row, source, what) for row, one in enumerate(given)], np.int8)
    if not len(kinds):
        return m.Masks.empty()
    name = f"{source}: {what}"
    coded = np.flatnonzero(kinds > 0)
    if len(coded):
        own = np.array([given[row]["size"] for row in coded.tolist()], np.int64).reshape(-1, 2)
        row = first_bad((own == sizes[coded]) | (sizes[coded] == 0))
        if row is not None:
            raise ValueError(
                f"{name} {coded[row]}: its run lengths are of size {own[row].tolist()}, its image of "
                f"{sizes[coded[row]].tolist()} (height, width)"
            )
        sizes = sizes.copy()
        sizes[coded] = own
    _known_sizes(sizes, source, what)
    if (kinds == 2).all():
        return m.from_strings([one["counts"] for one in given], sizes, name)
    parts, rows = [], []
    for kind, make in enumerate((m.from_polygons, m.from_counts, _decoded)):
        chosen = np.flatnonzero(kinds == kind)
        if len(chosen):
            picked = [given[row] if kind == 0 else given[row]["counts"] for row in chosen.tolist()]
            try:
                parts.append(make(picked, sizes[chosen], ""))
            except ValueError as error:  # " 3: ..." of the picked ones
                row, words = str(error).strip().split(": ", 1)
                raise ValueError(f"{name} {chosen[int(row)]}: {words}") from None
            rows.append(chosen)
    return m.Masks.join(parts).take(np.argsort(np.concatenate(rows), kind="stable"))


def _decoded(strings: Sequence[str | bytes], sizes: Array, source: str) -> m.Masks:
    return m.from_strings(strings, sizes, source).take(np.arange(len(strings)))


def _segmentation_kind(one: Any, row: int, source: str, what: str) -> int:
    """0: polygons; 1: run lengths; 2: compressed run lengths."""
    if isinstance(one, list | tuple | np.ndarray) and len(one):
        return 0
    if isinstance(one, Mapping) and "counts" in one and "size" in one:
        return 2 if isinstance(one["counts"], str | bytes) else 1
    raise ValueError(
        f"{source}: {what} {row}: segmentation {str(one)[:60]} is neither polygons nor {{'size', 'counts'}}"
    )


def _area_of(area: AreaFrom, boxes: Array | None, masks: m.AnyMasks | None, source: str) -> Array:
    if area == "mask":
        assert masks is not None
        return masks.areas().astype(np.float64)
    if boxes is None:
        raise ValueError(f"{source}: there are no boxes to take the area from; give area='mask'")
    return boxes[:, 2] * boxes[:, 3]


def _check_area(areas: Array, source: str) -> None:
    row = first_bad(np.isfinite(areas) & (areas >= 0))
    if row is not None:
        raise ValueError(f"{source}: annotation {row}: area {areas[row]} is no area")


# Columns of arrays.


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
    boxes = np.asarray(_array(given, "bbox", source), np.float64)
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
    return _segmentations(masks, sizes, source, what)


def _array_keypoints(given: Mapping[str, Any], count: int, source: str, what: str) -> Array:
    points = _sized(_array(given, "keypoints", source), "keypoints", count, source)
    if isinstance(points, np.ndarray) and points.ndim == 3:
        points = points.reshape(count, -1)
    return _keypoints(points, source, what)


Maker = Callable[[Sequence[Any], Array, str], m.AnyMasks]
