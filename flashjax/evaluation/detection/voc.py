"""PASCAL VOC's folders: XML of ground truths, text of detections."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from flashjax.evaluation.detection.tables import Catalogue, Detections, GroundTruth, first_bad


def ground_truth(folder: Path) -> GroundTruth:
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


def detections(folder: Path, catalogue: Catalogue) -> Detections:
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
