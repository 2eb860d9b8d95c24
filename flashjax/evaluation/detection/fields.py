"""Fields of records, checked: ids, numbers, flags, boxes, keypoints and masks from what a file holds."""

import operator
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Literal

import numpy as np

from flashjax.evaluation.detection import masks as m
from flashjax.evaluation.detection import polygons
from flashjax.evaluation.detection.rle import MOST_PIXELS
from flashjax.evaluation.detection.tables import Catalogue, check_boxes, first_bad, index_of, is_number

Array = np.ndarray
Records = Sequence[Mapping[str, Any]]
AreaFrom = Literal["given", "box", "mask"]
BoxFormat = Literal["xywh", "xyxy"]


def column(records: Records, key: str, source: str, what: str, hint: str = "") -> list[Any]:
    try:
        return list(map(operator.itemgetter(key), records))
    except (KeyError, TypeError):
        for row, record in enumerate(records):
            if not isinstance(record, Mapping):
                raise ValueError(f"{source}: {what} {row} is {record!r}, no object of named values") from None
            if key not in record:
                raise ValueError(f"{source}: {what} {row} has no '{key}'{hint}") from None
        raise


def ids_of(values: Any, source: str, what: str) -> Array:
    """Ids as int64 or text."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind in "iu":
            return values.astype(np.int64, copy=False)
        if values.dtype.kind == "U":
            return values
        values = values.tolist()
    values = list(values)
    kinds = set(map(type, values))
    if not kinds <= {int} and not kinds <= {str}:
        if all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds):
            return _whole(list(map(int, values)), source, what, "id")
        odd = next(
            (i, v) for i, v in enumerate(values) if type(v) is not type(values[0]) or not isinstance(v, int | str)
        )
        raise ValueError(f"{source}: {what} {odd[0]}: id {odd[1]!r} is no integer, as the others are")
    return np.array(values) if kinds == {str} else _whole(values, source, what, "id")


def _whole(values: Sequence[int], source: str, what: str, name: str) -> Array:
    try:
        return np.array(values, np.int64)
    except OverflowError:
        row = next(row for row, value in enumerate(values) if not -(2**63) <= value < 2**63)
        raise ValueError(f"{source}: {what} {row}: {name} {values[row]} has more than 64 bits") from None


def numbers(values: Any, source: str, what: str, name: str) -> Array:
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        return values.astype(np.float64, copy=False)
    if isinstance(values, list) and set(map(type, values)) <= {int, float}:
        with suppress(OverflowError):  # an integer of hundreds of digits
            return np.array(values, np.float64)
    for row, value in enumerate(values):
        if not is_number(value) or isinstance(value, bool):
            raise ValueError(f"{source}: {what} {row}: {name} {value!r} is no number")
    return np.asarray(values, np.float64)


def flags(values: Any, source: str, what: str, name: str) -> Array:
    numbers = np.asarray(values)
    good = np.isin(numbers, (0, 1))
    row = first_bad(good)
    if row is not None:
        raise ValueError(f"{source}: {what} {row}: {name} {values[row]!r} is not 0 or 1")
    return numbers.astype(bool)


def boxes_of(records: Records, source: str, what: str) -> Array:
    lists = column(records, "bbox", source, what)
    try:
        if not set(map(len, lists)) <= {4}:
            raise ValueError
        boxes = np.fromiter(chain.from_iterable(lists), np.float64, 4 * len(lists)).reshape(-1, 4)
    except (TypeError, ValueError, OverflowError):
        for row, box in enumerate(lists):
            wrong = not isinstance(box, Sequence | np.ndarray) or len(box) != 4
            if wrong or not all(map(is_number, box)):
                raise ValueError(f"{source}: {what} {row}: bbox {box!r} is not four numbers") from None
        raise
    check_boxes(boxes, source, what)
    return boxes


def keypoints_of(lists: Sequence[Any] | Array, source: str, what: str) -> Array:
    """[N, J, 3]."""
    if not len(lists):
        return np.zeros((0, 0, 3))
    count = len(lists[0]) if isinstance(lists[0], Sequence | np.ndarray) else 0
    for row, points in enumerate(lists):
        if not isinstance(points, Sequence | np.ndarray):
            raise ValueError(f"{source}: {what} {row}: keypoints {points!r} are no list of x, y, visibility of each")
        if len(points) != count or count % 3 or count == 0:
            raise ValueError(
                f"{source}: {what} {row}: keypoints are {len(points)} numbers; x, y, visibility of each are wanted, "
                f"and the first has {count}"
            )
    try:
        points = np.array(list(lists), np.float64).reshape(len(lists), -1, 3)
    except (TypeError, ValueError, OverflowError):
        for row, points in enumerate(lists):
            odd = next((v for v in points if not is_number(v)), None)
            if odd is not None:
                raise ValueError(f"{source}: {what} {row}: {odd!r} among its keypoints is no number") from None
        raise
    row = first_bad(np.isfinite(points))
    if row is not None:
        raise ValueError(f"{source}: {what} {row}: keypoints {points[row].tolist()} are not finite")
    return points


def whole_numbers(values: Sequence[Any], source: str, what: str, name: str) -> Array:
    """int64 of what must be integers."""
    for row, value in enumerate(values):
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ValueError(f"{source}: {what} {row}: {name} {value!r} is no integer")
    return _whole(values, source, what, name)


def rectangle(box: Sequence[float]) -> list[list[float]]:
    x, y, width, height = box
    return [[x, y, x, y + height, x + width, y + height, x + width, y]]


def known_sizes(sizes: Array, source: str, what: str) -> Array:
    row = first_bad(sizes > 0)
    if row is not None:
        raise ValueError(f"{source}: {what} {row}: masks need the height and width of its image, and it has none")
    row = first_bad(sizes[:, 0] * sizes[:, 1] < MOST_PIXELS)
    if row is not None:
        height, width = sizes[row].tolist()
        raise ValueError(f"{source}: {what} {row}: {height} x {width} pixels are too many for a mask: 2^31 or more")
    return sizes


def segmentations(given: Sequence[Any] | Array, sizes: Array, source: str, what: str) -> m.AnyMasks:
    """Masks of polygons, run lengths and compressed run lengths, in their order."""
    kinds = np.array([_segmentation_kind(one, row, source, what) for row, one in enumerate(given)], np.int8)
    if not len(kinds):
        return m.Masks.empty()
    name = f"{source}: {what}"
    coded = np.flatnonzero((kinds == 1) | (kinds == 2))
    if len(coded):
        own = np.array([given[row]["size"] for row in coded.tolist()], np.int64).reshape(-1, 2)
        row = first_bad((own == sizes[coded]) | (sizes[coded] == 0))
        if row is not None:
            raise ValueError(
                f"{name} {coded[row]}: its mask is of size {own[row].tolist()}, its image of "
                f"{sizes[coded[row]].tolist()} (height, width)"
            )
        sizes = sizes.copy()
        sizes[coded] = own
    known_sizes(sizes, source, what)
    if (kinds == 2).all():
        return m.from_strings([one["counts"] for one in given], sizes, name)
    parts, rows = [], []
    for kind, make in enumerate((polygons.from_polygons, m.from_counts, _decoded)):
        chosen = np.flatnonzero(kinds == kind)
        if len(chosen):
            picked = [given[row]["counts"] if kind in (1, 2) else given[row] for row in chosen.tolist()]
            try:
                parts.append(make(picked, sizes[chosen], ""))
            except ValueError as error:  # " 3: ..." of the picked ones
                row, words = str(error).strip().split(": ", 1)
                raise ValueError(f"{name} {chosen[int(row)]}: {words}") from None
            rows.append(chosen)
    if len(parts) == 1:
        return parts[0]
    return m.Masks.join(parts).take(np.argsort(np.concatenate(rows), kind="stable"))


def _decoded(strings: Sequence[str | bytes], sizes: Array, source: str) -> m.Masks:
    return m.from_strings(strings, sizes, source).take(np.arange(len(strings)))


def _segmentation_kind(one: Any, row: int, source: str, what: str) -> int:
    """0: polygons; 1: run lengths; 2: compressed run lengths."""
    if isinstance(one, list | tuple | np.ndarray) and len(one):
        return 0
    if isinstance(one, Mapping) and "counts" in one and "size" in one:
        size, counts = one["size"], one["counts"]
        if not _are_integers(size) or len(size) != 2:
            raise ValueError(f"{source}: {what} {row}: size {size!r} of its mask is not height and width")
        if isinstance(counts, str | bytes):
            return 2
        if _are_integers(counts):
            return 1
        raise ValueError(f"{source}: {what} {row}: counts {str(counts)[:60]} are neither a string nor integers")
    raise ValueError(
        f"{source}: {what} {row}: segmentation {str(one)[:60]} is neither polygons nor {{'size', 'counts'}}"
    )


def _are_integers(values: Any) -> bool:
    if not isinstance(values, Sequence | np.ndarray) or not all(isinstance(v, int | np.integer) for v in values):
        return False
    return not len(values) or max(map(abs, values)) < 2**63


def area_of(area: AreaFrom, boxes: Array | None, masks: m.AnyMasks | None, source: str) -> Array:
    if area == "mask":
        assert masks is not None
        return masks.areas().astype(np.float64)
    if boxes is None:
        raise ValueError(f"{source}: there are no boxes to take the area from; give area='mask'")
    return boxes[:, 2] * boxes[:, 3]


def check_area(areas: Array, source: str) -> None:
    row = first_bad(np.isfinite(areas) & (areas >= 0))
    if row is not None:
        raise ValueError(f"{source}: annotation {row}: area {areas[row]} is no area")


def by_name(ids: Array, catalogue: Catalogue, source: str, what: str) -> Array:
    """Category names to ids, where a column holds names."""
    if ids.dtype.kind != "U":
        return ids
    order = np.argsort(np.array(catalogue.names), kind="stable")
    names = np.array(catalogue.names)[order]
    place = index_of(ids, names, source, what, "category", catalogue.source)
    return catalogue.categories[order[place]]
