"""Polygons and boxes drawn as masks, by the rules of COCO's mask interface (Lin, Dollar, 2015).

A polygon is drawn five times enlarged, each edge is stepped along its longer side, and a pixel's column is crossed
where the step passes from 5x + 2 to 5x + 3. What is written here are those rules, solved for the crossings alone.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from flashjax.evaluation.detection.mask_overlap import union
from flashjax.evaluation.detection.masks import Masks
from flashjax.evaluation.detection.ragged import offsets, pieces, ragged
from flashjax.evaluation.detection.tables import is_number

Array = np.ndarray

_SCALE = 5
_POINTS = 1 << 13
"""Corners that are worked on at a time; each becomes several crossings."""


def from_polygons(polygons: Sequence[Sequence[Sequence[float]]], sizes: Array, source: str = "mask") -> Masks:
    """Masks of polygons: of each mask a list of parts, of each part x, y, x, y, ...; parts are united.

    As in COCO's interface, a mask whose first part holds four numbers is made of boxes x, y, width, height.

    Raises:
        ValueError: no part, what is no number or not finite, an odd number of them, fewer than four; it names the row.
    """
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    parts_of, lengths, values = _joined(polygons, source)
    owner = np.repeat(np.arange(len(parts_of)), parts_of)
    if (parts_of == 0).any():
        raise ValueError(f"{source} {int(np.argmin(parts_of))}: a polygon without parts")
    bad = np.flatnonzero((lengths % 2 == 1) | (lengths < 4))
    if len(bad):
        raise ValueError(
            f"{source} {int(owner[bad[0]])}: a polygon of {int(lengths[bad[0]])} numbers; x, y, x, y, ... of three or "
            "more points are wanted"
        )
    starts = offsets(lengths)
    if not (np.abs(values) < 1e8).all():  # NaN fails as well
        place = int(np.argmin(np.abs(values) < 1e8))
        row = int(owner[np.searchsorted(starts, place, side="right") - 1])
        raise ValueError(f"{source} {row}: {values[place]} in a polygon is no coordinate")
    boxed = np.zeros(len(parts_of), bool)
    boxed[owner[::-1]] = lengths[::-1] == 4  # the first part's word stands
    flat = values.reshape(-1, 2)
    starts = starts // 2
    if boxed.any():
        flat, starts = _corners(flat, starts, boxed[owner], lengths, owner, source)
    done = [
        _rasterise(
            flat[starts[piece.start] : starts[piece.stop]],
            starts[piece.start : piece.stop + 1] - starts[piece.start],
            sizes[owner[piece]],
        )
        for piece in pieces(np.diff(starts), _POINTS)
    ]
    drawn = Masks.join(done)
    return drawn if (parts_of == 1).all() else union(drawn, offsets(parts_of))


def _joined(polygons: Sequence[Sequence[Sequence[float]]], source: str) -> tuple[Array, Array, Array]:
    """(how many polygons each mask has, how many numbers each polygon has, float64 x, y, x, y, ... of all)."""
    parts = np.fromiter(map(len, polygons), np.int64, len(polygons))
    try:
        lengths = np.fromiter(map(len, chain.from_iterable(polygons)), np.int64, int(parts.sum()))
        flat = chain.from_iterable(chain.from_iterable(polygons))
        return parts, lengths, np.fromiter(flat, np.float64, int(lengths.sum()))
    except (TypeError, ValueError, OverflowError):
        for row, mask in enumerate(polygons):
            for part in mask:
                if not isinstance(part, Sequence | np.ndarray):
                    raise ValueError(f"{source} {row}: polygon {part!r} is no list of numbers") from None
            for value in chain.from_iterable(mask):
                if not is_number(value):
                    raise ValueError(f"{source} {row}: {value!r} in a polygon is not a number") from None
        raise


def _corners(
    flat: Array, starts: Array, boxed: Array, lengths: Array, owner: Array, source: str
) -> tuple[Array, Array]:
    """Polygons in which the parts that are boxes have become their four corners."""
    mixed = np.flatnonzero(boxed & (lengths != 4))
    if len(mixed):
        raise ValueError(
            f"{source} {int(owner[mixed[0]])}: its first part has four numbers and is a box, another has "
            f"{int(lengths[mixed[0]])}"
        )
    parts = []
    for i in range(len(boxed)):
        part = flat[starts[i] : starts[i + 1]]
        if boxed[i]:
            (x, y), (width, height) = part
            part = np.array([(x, y), (x, y + height), (x + width, y + height), (x + width, y)])
        parts.append(part)
    return np.concatenate(parts), offsets(np.array([len(part) for part in parts]))


def from_boxes(boxes: Array, sizes: Array) -> Masks:
    """Masks of boxes x, y, width, height, float [N, 4]."""
    x, y, width, height = np.asarray(boxes, np.float64).reshape(-1, 4).T
    corners = np.stack([x, y, x, y + height, x + width, y + height, x + width, y], 1).reshape(-1, 2)
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    starts = 4 * np.arange(len(sizes) + 1)
    done = [
        _rasterise(corners[4 * p.start : 4 * p.stop], starts[: p.stop - p.start + 1], sizes[p])
        for p in pieces(np.full(len(sizes), 4), _POINTS)
    ]
    return Masks.join(done)


def _rasterise(points: Array, starts: Array, sizes: Array) -> Masks:
    """One mask for each polygon ``points[starts[i]:starts[i + 1]]``.

    The rule walks each edge of the enlarged polygon in unit steps along its longer side. Where it passes from column
    5n + 2 to 5n + 3, pixel column n changes between outside and inside from the crossing's height downwards. Only those
    crossings are computed, and they are found in closed form.
    """
    height, width = sizes[:, 0], sizes[:, 1]
    grid = np.trunc(_SCALE * points + 0.5)
    following = np.arange(1, len(grid) + 1)
    following[starts[1:] - 1] = starts[:-1]
    owner = np.repeat(np.arange(len(sizes)), np.diff(starts))
    xs, ys = grid.T
    xe, ye = grid[following].T
    dx, dy = np.abs(xe - xs), np.abs(ye - ys)
    flip = np.where(dx >= dy, xs > xe, ys > ye)
    xs, xe = np.where(flip, xe, xs), np.where(flip, xs, xe)
    ys, ye = np.where(flip, ye, ys), np.where(flip, ys, ye)

    # Columns that each edge crosses: 5n + 2 >= its left end, 5n + 3 <= its right end, within the image.
    first = np.maximum(np.ceil((np.minimum(xs, xe) - 2) / _SCALE), 0).astype(np.int64)
    last = np.minimum(np.floor((np.maximum(xs, xe) - 3) / _SCALE), width[owner] - 1).astype(np.int64)
    crossings = np.maximum(last - first + 1, 0)
    flat, some = dx >= dy, crossings > 0
    keys = []
    for edges in (np.flatnonzero(some & flat), np.flatnonzero(some & ~flat)):
        count = crossings[edges]
        column, _ = ragged(first[edges], first[edges] + count)
        left = (_SCALE * column + 2).astype(np.float64)
        rise, run = (ye - ys)[edges], (xe - xs)[edges]
        start, low = np.repeat(xs[edges], count), np.repeat(ys[edges], count)
        if len(keys) == 0:  # flat: x is known at each step, of the two around the line the lower y counts
            slope = np.repeat(rise / dx[edges], count)
            step = left - start
            row = np.minimum(np.trunc(low + slope * step + 0.5), np.trunc(low + slope * (step + 1) + 0.5))
        else:
            slope = np.repeat(run / dy[edges], count)
            row = low + _steep_step(start, slope, left + 1)
        row += 0.5
        row /= _SCALE
        row -= 0.5
        tall = np.repeat(height[owner[edges]], count)
        row = np.ceil(np.clip(row, 0, tall, out=row), out=row).astype(np.int64)
        row += column * tall
        row += np.repeat(owner[edges] << 40, count)
        keys.append(row)
    key = np.sort(np.concatenate(keys), kind="stable")
    # A position that is crossed an even number of times changes nothing.
    fresh = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
    odd = np.diff(np.append(fresh, len(key))) % 2 == 1
    key = key[fresh[odd]]
    owner, position = key >> 40, key & ((1 << 40) - 1)
    inside = position < (height * width)[owner]
    owner, position = owner[inside], position[inside]
    count = np.bincount(owner, minlength=len(sizes))
    open_end = np.flatnonzero(count % 2 == 1)  # foreground to the last pixel
    if len(open_end):
        place = np.cumsum(count)[open_end]
        position = np.insert(position, place, (height * width)[open_end])
        count[open_end] += 1
    return Masks.of(sizes, count, position)


def _steep_step(start: Array, slope: Array, column: Array) -> Array:
    """Of an edge whose x is trunc(start + slope * t + .5): the lower of the two steps t between which it passes the
    line before ``column``. A first guess from the equation is corrected by the rounded expression itself."""

    def right(t: Array) -> Array:
        return np.trunc(start + slope * t + 0.5) >= column

    rising = slope > 0
    exact = (column - 0.5 - start) / slope
    # Rising: the first step on the right. Falling: the last step on the right.
    guess = np.where(rising, np.ceil(exact), np.floor(exact))
    toward = np.where(rising, 1.0, -1.0)
    guess = np.where(right(guess), guess, guess + toward)
    guess = np.where(right(guess - toward), guess - toward, guess)
    return np.where(rising, guess - 1, guess)
