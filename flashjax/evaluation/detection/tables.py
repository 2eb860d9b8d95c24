"""What is compared: ground truths and detections as columns, checked once, whichever form they came in.

A row is one annotation or one detection, in the order of its file. Images and categories are indices into a
`Catalogue`, whose ids rise; `rows` of an error message are these positions.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flashjax.evaluation.detection.masks import AnyMasks
from flashjax.evaluation.detection.ragged import CHUNK

Array = np.ndarray


@dataclass(frozen=True)
class Catalogue:
    """The images and categories of a ground truth.

    Attributes:
        source: What errors call the ground truth: its file.
        images: ids [I], rising, integers or strings.
        sizes: int64 [I, 2], height and width; 0 where unknown.
        files: names of the image files, empty where unknown.
        categories: ids int64 [K], rising.
        names: of the categories.
        frequency: LVIS: "r", "c" or "f" of each category; else empty.
        negative: LVIS: image * K + category of the pairs known to be absent, int64, rising.
        inexhaustive: LVIS: the same of the pairs of which not all objects are annotated.
    """

    source: str
    images: Array
    sizes: Array
    files: tuple[str, ...]
    categories: Array
    names: tuple[str, ...]
    frequency: tuple[str, ...] = ()
    negative: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    inexhaustive: Array = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class GroundTruth:
    """Annotations, one a row.

    Attributes:
        image, category: int64 [N], indices into the catalogue.
        ids: int64 [N].
        area: float64 [N].
        crowd, ignore: bool [N]; ignore is VOC's difficult.
        boxes: float64 [N, 4] x, y, width, height; None if there are none.
        corners: float64 [N, 4] x0, y0, x1, y1 where the boxes were given so.
        masks: of N objects.
        keypoints: float64 [N, J, 3] x, y, visibility.
        num_keypoints: int64 [N].
    """

    catalogue: Catalogue
    image: Array
    category: Array
    ids: Array
    area: Array
    crowd: Array
    ignore: Array
    boxes: Array | None = None
    corners: Array | None = None
    masks: AnyMasks | None = None
    keypoints: Array | None = None
    num_keypoints: Array | None = None

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Detections:
    """Detections, one a row.

    Attributes:
        source: What errors call them: their file.
        image, category: int64 [N], indices into the ground truth's catalogue.
        ids: int64 [N]: the position in the file from 1 on, unless they came with ids.
        scores: float64 [N].
        area: float64 [N], or None where it follows from the masks.
        boxes, corners, masks, keypoints: as in `GroundTruth`.
    """

    source: str
    image: Array
    category: Array
    ids: Array
    scores: Array
    area: Array | None
    boxes: Array | None = None
    corners: Array | None = None
    masks: AnyMasks | None = None
    keypoints: Array | None = None

    def __len__(self) -> int:
        return len(self.image)


# Checks. Each error names the source, the row and the value.


def is_number(value: Any) -> bool:
    """An integer or float that fits into 64 bits as a float; infinity and NaN are such."""
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    return isinstance(value, int | float | np.number)


def first_bad(good: Array) -> int | None:
    """Row of the first False of ``good`` [N] or [N, ...], None if there is none."""
    if good.all():
        return None
    flat = good.reshape(len(good), -1).all(1)
    return int(np.argmin(flat))


def check_boxes(boxes: Array, source: str, what: str) -> None:
    """Finite numbers, and sides that are not negative."""
    row = first_bad(np.isfinite(boxes))
    if row is not None:
        raise ValueError(f"{source}: {what} {row}: bbox {boxes[row].tolist()} is not finite")
    row = first_bad(boxes[:, 2:] >= 0)
    if row is not None:
        raise ValueError(f"{source}: {what} {row}: bbox {boxes[row].tolist()} has a negative width or height")


def check_scores(scores: Array, source: str) -> None:
    row = first_bad(np.isfinite(scores))
    if row is not None:
        raise ValueError(f"{source}: detection {row}: score {scores[row]} is not finite")


def check_unique(ids: Array, source: str, what: str) -> None:
    """No id twice."""
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if len(same):
        first, second = sorted(order[same[0] : same[0] + 2].tolist())
        raise ValueError(f"{source}: {what} {first} and {what} {second} have the same id {ids[first]}")


def index_of(ids: Array, known: Array, source: str, what: str, kind: str, where: str) -> Array:
    """Position of each id among the rising ``known`` ones.

    Raises:
        ValueError: naming the row and the id that is not known.
    """
    if not len(ids):
        return np.zeros(0, np.int64)
    if not len(known) or known.dtype.kind != ids.dtype.kind:
        reason = f"; those are {'text' if known.dtype.kind == 'U' else 'integers'}" if len(known) else ""
        value = ids[0].item()
        raise ValueError(f"{source}: {what} 0: {kind} {value!r} is not among the {len(known)} of {where}{reason}")
    if ids.dtype.kind == "i" and known[0] >= 0 and known[-1] < 4 * len(known) + 1024:  # dense: a table
        table = np.full(int(known[-1]) + 2, -1, np.int64)
        table[known] = np.arange(len(known))
    else:
        table = None
    place = np.empty(len(ids), np.int64)
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        if table is None:
            found = np.minimum(np.searchsorted(known, some), len(known) - 1)
            bad = known[found] != some
        else:
            found = table[np.where((some >= 0) & (some <= known[-1]), some, len(table) - 1)]
            bad = found < 0
        if bad.any():
            row = start + int(np.argmax(bad))
            value = ids[row].item()
            raise ValueError(f"{source}: {what} {row}: {kind} {value!r} is not among the {len(known)} of {where}")
        place[start : start + CHUNK] = found
    return place


# Parts.


def select(
    truth: GroundTruth, found: Detections, image_ids: Sequence | None, category_ids: Sequence[int] | None
) -> tuple[GroundTruth, Detections]:
    """Both with only these images and categories.

    Raises:
        ValueError: an id that the ground truth does not have.
    """
    if image_ids is None and category_ids is None:
        return truth, found
    c = truth.catalogue
    images, categories = np.arange(len(c.images)), np.arange(len(c.categories))
    if image_ids is not None:
        wanted = np.unique(np.asarray(image_ids))
        images = np.unique(index_of(wanted, c.images, "image_ids", "entry", "image id", c.source))
    if category_ids is not None:
        wanted = np.unique(np.asarray(category_ids))
        categories = np.unique(index_of(wanted, c.categories, "category_ids", "entry", "category id", c.source))
    count = len(c.categories)
    new_image, new_category = np.full(len(c.images), -1), np.full(count, -1)
    new_image[images], new_category[categories] = np.arange(len(images)), np.arange(len(categories))

    def codes(pairs: Array) -> Array:
        image, category = new_image[pairs // count], new_category[pairs % count]
        kept = (image >= 0) & (category >= 0)
        return image[kept] * len(categories) + category[kept]

    smaller = Catalogue(
        c.source,
        c.images[images],
        c.sizes[images],
        tuple(c.files[i] for i in images) if c.files else (),
        c.categories[categories],
        tuple(c.names[k] for k in categories),
        tuple(c.frequency[k] for k in categories) if c.frequency else (),
        codes(c.negative),
        codes(c.inexhaustive),
    )
    parts = []
    for table in (truth, found):
        kept = np.flatnonzero((new_image[table.image] >= 0) & (new_category[table.category] >= 0))
        part = take_rows(table, kept)
        parts.append(replace(part, image=new_image[part.image], category=new_category[part.category]))
    return replace(parts[0], catalogue=smaller), parts[1]


def take_rows(table, rows: Array):
    """The ground truths or detections of these rows."""
    changes = {}
    for name in ("image", "category", "ids", "area", "crowd", "ignore", "scores", "boxes", "corners", "keypoints"):
        value = getattr(table, name, None)
        if value is not None:
            changes[name] = value[rows]
    if getattr(table, "num_keypoints", None) is not None:
        changes["num_keypoints"] = table.num_keypoints[rows]
    if table.masks is not None:
        changes["masks"] = table.masks.rows(rows)
    return replace(table, **changes)
