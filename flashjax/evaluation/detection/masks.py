"""Masks as runs: COCO's run-length codec, rasterised polygons, areas, boxes and overlaps, many masks at a time.

A mask of H x W pixels is read down its columns (position = x * H + y). `Masks` holds, for all masks one behind the
other, the positions at which the foreground begins and ends: ``bounds[starts[i]:starts[i + 1]]`` is begin, end, begin,
end, ... of mask i, rising. Every function works on all masks at once, in pieces that stay in the processor's cache.

Sources: the format of COCO's annotations and the rules of its mask interface (Lin, Dollar, 2015): polygons are drawn
five times enlarged, each edge is stepped along its longer side, and a pixel's column is crossed where the step passes
from 5x + 2 to 5x + 3. What is written here are those rules, solved for the crossings alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

Array = np.ndarray

CHUNK = 1 << 17
"""Elements that are worked on at a time: a megabyte of 64-bit numbers."""
_SCALE = 5


@dataclass(frozen=True)
class Masks:
    """Masks by the ends of their runs.

    Attributes:
        sizes: int64 [N, 2], height and width.
        starts: int64 [N + 1], where each mask's bounds begin.
        bounds: int64 [2 R], begin and end (exclusive) of each run of foreground, rising within a mask.
    """

    sizes: Array
    starts: Array
    bounds: Array

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, rows: Array) -> "Masks":
        """The masks of these rows."""
        rows = np.asarray(rows, np.int64)
        first, last = self.starts[rows], self.starts[rows + 1]
        starts = offsets(last - first)
        bounds = np.empty(starts[-1], np.int64)
        for piece in pieces(last - first):
            index, _ = ragged(first[piece], last[piece])
            bounds[starts[piece.start] : starts[piece.stop]] = self.bounds.take(index)
        return Masks(self.sizes[rows], starts, bounds)

    def rows(self, rows: Array) -> "Masks":
        """`take`, as of `Encoded`."""
        return self.take(rows)

    def areas(self) -> Array:
        """Pixels of foreground, int64 [N]."""
        return _sums(self.bounds[1::2] - self.bounds[::2], self.starts // 2)

    def boxes(self) -> Array:
        """The tightest box of each mask as x, y, width, height, float64 [N, 4]; zeros for an empty one.

        A run that passes from one column to the next covers the whole height, as in COCO's interface.
        """
        boxes = np.zeros((len(self), 4))
        for piece in pieces(np.diff(self.starts)):
            starts = self.starts[piece.start : piece.stop + 1]
            bounds = self.bounds[starts[0] : starts[-1]].astype(np.float64)
            runs = np.diff(starts) // 2
            height = np.repeat(self.sizes[piece, 0].astype(np.float64), runs)
            begin, end = bounds[::2], bounds[1::2] - 1
            # Quotients of whole numbers this small never round up to the next whole number.
            x0, x1 = np.floor(begin / height), np.floor(end / height)
            begin -= x0 * height
            end -= x1 * height
            wide = np.flatnonzero(x0 < x1)
            begin[wide], end[wide] = 0, height[wide] - 1
            some = np.flatnonzero(runs > 0)
            if len(some):
                first = (starts[:-1][some] - starts[0]) // 2
                left, top = x0[first], np.minimum.reduceat(begin, first)
                right, bottom = np.maximum.reduceat(x1, first), np.maximum.reduceat(end, first)
                boxes[piece.start + some] = np.stack([left, top, right - left + 1, bottom - top + 1], 1)
        return boxes

    def dense(self, row: int) -> Array:
        """One mask as bool [H, W]."""
        height, width = map(int, self.sizes[row])
        steps = np.zeros(height * width + 1, np.int8)
        bounds = self.bounds[self.starts[row] : self.starts[row + 1]]
        np.add.at(steps, bounds[::2], 1)
        np.add.at(steps, bounds[1::2], -1)
        return np.cumsum(steps[:-1]).astype(bool).reshape(width, height).T

    def strings(self) -> list[str]:
        """The compressed run lengths, COCO's ``counts`` (of the shortest form: no empty runs but the first)."""
        texts = []
        for row in range(len(self)):
            bounds = self.bounds[self.starts[row] : self.starts[row + 1]]
            texts.append(_string(np.diff(_joined(bounds), prepend=0, append=int(np.prod(self.sizes[row])))))
        return texts

    @staticmethod
    def empty() -> "Masks":
        """No mask at all."""
        return Masks(np.zeros((0, 2), np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64))

    @staticmethod
    def join(parts: Sequence["Masks"]) -> "Masks":
        """All masks of ``parts`` in their order."""
        if not parts:
            return Masks.empty()
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        return Masks(
            np.concatenate([part.sizes for part in parts]),
            offsets(lengths),
            np.concatenate([part.bounds for part in parts]),
        )


@dataclass(frozen=True)
class Opened:
    """Encoded masks of which the numbers are read but not yet the runs: what areas need, and few need more.

    Attributes:
        sizes: int64 [N, 2].
        starts: int64 [N + 1], where each mask's numbers begin.
        numbers: int32, as the strings hold them.
        areas: int64 [N].
    """

    sizes: Array
    starts: Array
    numbers: Array
    areas: Array

    def take(self, rows: Array) -> Masks:
        """The masks of these rows."""
        first, last = self.starts[rows], self.starts[rows + 1]
        parts = []
        for piece in pieces(last - first):
            index, starts = ragged(first[piece], last[piece])
            values = self.numbers.take(index).astype(np.int64)
            parts.append(_from_runs(values, starts, self.sizes[rows[piece]], "mask", rows[piece], differences=True))
        return Masks.join(parts)


@dataclass(frozen=True)
class Encoded:
    """Masks as compressed strings, one behind the other: what a file holds, at about a byte a run.

    Attributes:
        sizes: int64 [N, 2], height and width.
        starts: int64 [N + 1], where each string begins.
        text: uint8 [C], the characters.
        source: What errors call the N masks.
    """

    sizes: Array
    starts: Array
    text: Array
    source: str = "mask"

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, rows: Array) -> Masks:
        """The masks of these rows, decoded.

        Raises:
            ValueError: a string that is no run-length code, or whose runs do not fill height x width.
        """
        rows = np.asarray(rows, np.int64)
        parts = []
        for piece in pieces(self.starts[rows + 1] - self.starts[rows]):
            chosen = rows[piece]
            index, starts = ragged(self.starts[chosen], self.starts[chosen + 1])
            parts.append(_decode(self.text[index], starts, self.sizes[chosen], self.source, chosen))
        return Masks.join(parts)

    def rows(self, rows: Array) -> "Encoded":
        """The masks of these rows, encoded as they are."""
        index, starts = ragged(self.starts[rows], self.starts[np.asarray(rows) + 1])
        return Encoded(self.sizes[rows], starts, self.text[index], self.source)

    def open(self, rows: Array) -> Opened:
        """The masks of these rows as numbers, with their areas."""
        first, last = self.starts[rows], self.starts[rows + 1]
        counts, numbers, areas = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for piece in pieces(last - first):
            begin, end = first[piece], last[piece]
            if (begin[1:] == end[:-1]).all():  # as they lie in the file
                text, starts = self.text[begin[0] : end[-1]], np.append(begin, end[-1]) - begin[0]
            else:
                index, starts = ragged(begin, end)
                text = self.text.take(index)
            value, number_starts = _numbers(text, starts, self.source, rows[piece])
            areas.append(_coded_areas(value, number_starts, self.sizes[rows[piece]], self.source, rows[piece]))
            counts.append(np.diff(number_starts))
            numbers.append(value)
        return Opened(self.sizes[rows], offsets(np.concatenate(counts)), np.concatenate(numbers), np.concatenate(areas))

    def areas(self) -> Array:
        """Pixels of foreground, int64 [N]."""
        every = np.arange(len(self))
        parts = (self.open(every[piece]).areas for piece in pieces(np.diff(self.starts), 16 * CHUNK))
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def boxes(self) -> Array:
        """Tightest boxes, float64 [N, 4]."""
        every = np.arange(len(self))
        parts = (self.take(every[piece]).boxes() for piece in pieces(np.diff(self.starts)))
        return np.concatenate([np.zeros((0, 4)), *parts])

    @staticmethod
    def join(parts: Sequence["Encoded"]) -> "Encoded":
        """All masks of ``parts`` in their order."""
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        return Encoded(
            np.concatenate([part.sizes for part in parts]),
            offsets(lengths),
            np.concatenate([part.text for part in parts]),
            parts[0].source,
        )


AnyMasks = Masks | Encoded


# Many lists in one array.


def offsets(lengths: Array) -> Array:
    """Where each of the lists begins, and where the last ends, int64 [N + 1]."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def ragged(first: Array, last: Array) -> tuple[Array, Array]:
    """(indices of all ranges first[i] .. last[i] - 1 one behind the other, where each begins among them)."""
    starts = offsets(last - first)
    index = np.arange(starts[-1])
    index += np.repeat(first - starts[:-1], last - first)
    return index, starts


def pieces(lengths: Array, most: int = CHUNK) -> Iterator[slice]:
    """Slices of rows whose lengths add up to about ``most``; a longer row is a slice of its own."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        reached = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, reached + most, side="right")))
        yield slice(first, last)
        first = last


def _sums(values: Array, starts: Array) -> Array:
    """Sum of each list, int64; those of int32 are added in int32."""
    total = np.zeros(len(values) + 1, np.int32 if values.dtype == np.int32 else np.int64)
    np.cumsum(values, out=total[1:])
    return (total[starts[1:]] - total[starts[:-1]]).astype(np.int64)


# The codec.


def encode(dense: Array) -> Masks:
    """Runs of bool [N, H, W]."""
    dense = np.asarray(dense)
    if dense.ndim != 3:
        raise ValueError(f"masks must be an array [number, height, width]; it has shape {dense.shape}")
    count, height, width = dense.shape
    if not count:
        return Masks.empty()
    flat = np.zeros((count, height * width + 2), bool)
    flat[:, 1:-1] = dense.transpose(0, 2, 1).reshape(count, -1)
    row, position = np.nonzero(flat[:, 1:] != flat[:, :-1])
    sizes = np.tile(np.array([height, width], np.int64), (count, 1))
    return Masks(sizes, offsets(np.bincount(row, minlength=count)), position)


def from_counts(counts: Sequence[Sequence[int]], sizes: Array, source: str = "mask") -> Masks:
    """Masks of plain run lengths: background first, then foreground and background in turn.

    Raises:
        ValueError: a negative run, or runs that do not fill height x width; it names the row.
    """
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    starts = offsets(np.array([len(runs) for runs in counts], np.int64))
    values = np.fromiter((run for runs in counts for run in runs), np.int64, starts[-1])
    return _from_runs(values, starts, sizes, source, np.arange(len(sizes)))


def from_strings(strings: Sequence[str | bytes], sizes: Array, source: str = "mask") -> Encoded:
    """Masks of COCO's compressed strings, kept as they are."""
    text = b"".join(s if isinstance(s, bytes) else s.encode("latin-1", "replace") for s in strings)
    lengths = np.fromiter(map(len, strings), np.int64, len(strings))
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    return Encoded(sizes, offsets(lengths), np.frombuffer(text, np.uint8), source)


def _numbers(text: Array, starts: Array, source: str, rows: Array) -> tuple[Array, Array]:
    """(the numbers that strings hold, int32; where each string's begin among them).

    A character holds 5 bits from the lowest up, bit 6 says that more follow, and the highest bit of the last is the
    sign.
    """
    code = text - np.uint8(48)  # what is below '0' wraps to above 63
    if len(code) and code.max() > 63:
        bad = int(np.argmax(code > 63))
        row = int(np.searchsorted(starts, bad, side="right")) - 1
        raise ValueError(f"{source} {rows[row]}: {chr(text[bad])!r} is no character of compressed run lengths")
    more = code >= 32
    ends = starts[1:][np.diff(starts) > 0] - 1
    if more[ends].any():
        row = int(np.searchsorted(starts, ends[np.argmax(more[ends])], side="right")) - 1
        raise ValueError(f"{source} {rows[row]}: its run lengths break off in the middle of a number")
    # What a character adds: its 5 bits; of one that ends a number, the highest with the sign.
    low = (code & np.uint8(31)).view(np.int8)
    low -= ((code & np.uint8(48)) == 16).view(np.int8) << 5
    both = low.astype(np.int32)  # of two characters, as most numbers have no more
    following = both[1:] << 5
    following *= more[:-1]
    both[:-1] += following
    begins = np.ones(len(code), bool)
    np.logical_not(more[:-1], out=begins[1:])
    first = np.flatnonzero(begins)
    value = both.take(first)
    longer = np.flatnonzero(begins[:-2] & more[:-2] & more[1:-1])  # starts of those of three and more
    place, slot = 2, np.searchsorted(first, longer)
    while len(longer):
        if place == 6:
            row = int(np.searchsorted(starts, longer[0], side="right")) - 1
            raise ValueError(f"{source} {rows[row]}: a run length of more than 30 bits")
        value[slot] += low[longer + place].astype(np.int32) << (5 * place)
        on = np.flatnonzero(more[longer + place])
        longer, slot, place = longer[on], slot[on], place + 1
    return value, np.searchsorted(first, starts)


def _decode(text: Array, starts: Array, sizes: Array, source: str, rows: Array) -> Masks:
    """Strings to runs. From the fourth on, a number is the difference to the one two before it."""
    value, number_starts = _numbers(text, starts, source, rows)
    return _from_runs(value.astype(np.int64), number_starts, sizes, source, rows, differences=True)


def _coded_areas(numbers: Array, number_starts: Array, sizes: Array, source: str, rows: Array) -> Array:
    """Areas of strings without their runs: a difference counts once for itself and once for every second number after
    it. Sums are modulo 2^32, and so right for images of less than 2^31 pixels."""
    count = np.diff(number_starts)
    behind = np.repeat((number_starts[1:] - 1).astype(np.int32), count)  # how many numbers come after each
    behind -= np.arange(len(numbers), dtype=np.int32)
    # Whether its place is odd and so foreground: the number of those before it is.
    odd = np.repeat((count & 1).astype(np.int32), count)
    odd ^= behind
    odd &= 1
    odd ^= 1
    behind >>= 1
    behind += 1
    behind[number_starts[:-1][count > 0]] = 1  # nothing builds on the first number
    value = numbers * behind
    filled = _sums(value, number_starts)
    value *= odd
    wrong = np.flatnonzero(filled != sizes[:, 0] * sizes[:, 1])
    if len(wrong):
        raise _wrong_size(int(wrong[0]), filled, sizes, source, rows)
    return _sums(value, number_starts)


def _wrong_size(row: int, filled: Array, sizes: Array, source: str, rows: Array) -> ValueError:
    height, width = map(int, sizes[row])
    return ValueError(
        f"{source} {rows[row]}: its runs hold {int(filled[row])} pixels, but its size is {height} x {width} = "
        f"{height * width}"
    )


def _from_runs(value: Array, starts: Array, sizes: Array, source: str, rows: Array, differences: bool = False) -> Masks:
    """Runs from (background, foreground, ...) lengths, or from the differences that strings hold."""
    lengths = np.diff(starts)
    runs = lengths // 2
    is_foreground = np.repeat((starts[:-1] & 1).astype(bool), lengths)
    is_foreground[1::2] ^= True
    place = np.flatnonzero(is_foreground)
    fore, back = value.take(place), value.take(place - 1)
    some = np.flatnonzero(runs > 0)
    each, first = runs[some], offsets(runs)[some]
    if differences:
        head = back[first]  # the first number stands alone; the third is whole as well
        back[first] = 0
        _restart(np.cumsum(fore, out=fore), first, each)
        _restart(np.cumsum(back, out=back), first, each)
        back[first] = head
    ends = fore + back
    _restart(np.cumsum(ends, out=ends), first, each)
    filled = np.zeros(len(sizes), np.int64)
    filled[some] = ends[first + each - 1]
    open_end = np.flatnonzero(lengths & 1 == 1)  # background to the last pixel
    tail = value[starts[open_end + 1] - 1]
    if differences:
        far = lengths[open_end] > 4
        tail[far] += back[(first + each - 1)[np.searchsorted(some, open_end[far])]]
    filled[open_end] += tail
    if min(fore.min(initial=0), back.min(initial=0), tail.min(initial=0)) < 0:
        run = int(np.argmin(np.minimum(fore, back))) if len(fore) else 0
        row = int(some[np.searchsorted(first, run, side="right") - 1]) if len(fore) else int(open_end[0])
        raise ValueError(f"{source} {rows[row]}: a run of a negative number of pixels")
    wrong = np.flatnonzero(filled != sizes[:, 0] * sizes[:, 1])
    if len(wrong):
        raise _wrong_size(int(wrong[0]), filled, sizes, source, rows)
    bounds = np.empty(2 * len(ends), np.int64)
    np.subtract(ends, fore, out=bounds[::2])
    bounds[1::2] = ends
    if fore.min(initial=1) == 0:  # runs of no pixel
        real = fore > 0
        bounds, runs = bounds[np.repeat(real, 2)], _sums(real, offsets(runs))
    return Masks(sizes, offsets(2 * runs), bounds)


def _restart(running: Array, first: Array, each: Array) -> None:
    """Makes of one running sum many, in place: the lists begin at ``first`` and are ``each`` long."""
    base = np.zeros(len(first), running.dtype)
    base[1:] = running[first[1:] - 1]
    running -= np.repeat(base, each)


def _joined(bounds: Array) -> Array:
    """Bounds without runs that touch."""
    touch = np.flatnonzero(bounds[2::2] == bounds[1:-1:2])
    return np.delete(bounds, np.concatenate([2 * touch + 1, 2 * touch + 2])) if len(touch) else bounds


def _string(runs: Array) -> str:
    """Compressed run lengths of (background, foreground, ...)."""
    runs = runs[:-1] if len(runs) % 2 == 1 and len(runs) > 1 and runs[-1] == 0 else runs
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    letters = []
    for number in numbers.tolist():
        while True:
            low, number = number & 31, number >> 5
            more = number != (-1 if low & 16 else 0)
            letters.append(48 + low + 32 * more)
            if not more:
                break
    return bytes(letters).decode()


# Polygons.


def from_polygons(polygons: Sequence[Sequence[Sequence[float]]], sizes: Array, source: str = "mask") -> Masks:
    """Masks of polygons: of each mask a list of parts, of each part x, y, x, y, ...; parts are united.

    As in COCO's interface, a mask whose first part holds four numbers is made of boxes x, y, width, height.

    Raises:
        ValueError: no part, an odd number of values, fewer than four, or one that is not finite; it names the row.
    """
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    parts_of = np.fromiter(map(len, polygons), np.int64, len(polygons))
    lengths = np.fromiter((len(part) for mask in polygons for part in mask), np.int64, int(parts_of.sum()))
    owner = np.repeat(np.arange(len(polygons)), parts_of)
    if (parts_of == 0).any():
        raise ValueError(f"{source} {int(np.argmin(parts_of))}: a polygon without parts")
    bad = np.flatnonzero((lengths % 2 == 1) | (lengths < 4))
    if len(bad):
        raise ValueError(
            f"{source} {int(owner[bad[0]])}: a polygon of {int(lengths[bad[0]])} numbers; x, y, x, y, ... of three or "
            "more points are wanted"
        )
    try:
        values = np.fromiter(chain.from_iterable(chain.from_iterable(polygons)), np.float64, int(lengths.sum()))
    except (TypeError, ValueError):
        for row, mask in enumerate(polygons):
            for part in mask:
                for value in part:
                    if not isinstance(value, int | float | np.number):
                        raise ValueError(f"{source} {row}: {value!r} in a polygon is not a number") from None
        raise
    starts = offsets(lengths)
    if not (np.abs(values) < 1e8).all():  # NaN fails as well
        place = int(np.argmin(np.abs(values) < 1e8))
        row = int(owner[np.searchsorted(starts, place, side="right") - 1])
        raise ValueError(f"{source} {row}: {values[place]} in a polygon is no coordinate")
    boxed = np.zeros(len(polygons), bool)
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
        for piece in pieces(np.diff(starts), CHUNK // 16)
    ]
    drawn = Masks.join(done)
    return drawn if (parts_of == 1).all() else union(drawn, offsets(parts_of))


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
        for p in pieces(np.full(len(sizes), 4), CHUNK // 16)
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
    return Masks(sizes, offsets(count), position)


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


# Sets of masks.


def union(masks: Masks, groups: Array) -> Masks:
    """For each group of rows groups[i] .. groups[i + 1] - 1, the pixels that any of them covers."""
    sizes = masks.sizes[groups[:-1]]
    owner = np.repeat(np.repeat(np.arange(len(sizes)), np.diff(groups)), np.diff(masks.starts))
    done = []
    for piece in pieces(masks.starts[groups[1:]] - masks.starts[groups[:-1]]):
        span = slice(int(masks.starts[groups[piece.start]]), int(masks.starts[groups[piece.stop]]))
        # Begin before end where they meet, so that runs that touch become one.
        is_end = np.arange(int(span.stop) - int(span.start)) & 1
        key = np.sort(owner[span] << 40 | masks.bounds[span] << 1 | is_end, kind="stable")
        depth = np.cumsum(1 - 2 * (key & 1))
        begins = np.concatenate([[0], depth[:-1]]) == 0
        kept = key[begins | (depth == 0)]
        count = np.bincount((kept >> 40) - piece.start, minlength=piece.stop - piece.start)
        done.append(Masks(sizes[piece], offsets(count), (kept & ((1 << 40) - 1)) >> 1))
    return Masks.join(done)


def intersections(a: Masks, b: Masks, rows_a: Array, rows_b: Array) -> Array:
    """Pixels that masks ``rows_a[i]`` of ``a`` and ``rows_b[i]`` of ``b`` share, int64 [P].

    The bounds of both are sorted together; after each, one knows of both masks whether it is inside.
    """
    common = np.zeros(len(rows_a), np.int64)
    lengths_a = a.starts[rows_a + 1] - a.starts[rows_a]
    lengths_b = b.starts[rows_b + 1] - b.starts[rows_b]
    for piece in pieces(lengths_a + lengths_b):
        ra, rb, na, nb = rows_a[piece], rows_b[piece], lengths_a[piece], lengths_b[piece]
        pair = np.arange(len(ra)) << 41
        index, starts_a = ragged(a.starts[ra], a.starts[ra + 1])
        key = np.empty(int(na.sum() + nb.sum()), np.int64)
        mine, other = key[: len(index)], key[len(index) :]
        np.left_shift(a.bounds.take(index), 1, out=mine)
        mine += np.repeat(pair, na)
        index, starts_b = ragged(b.starts[rb], b.starts[rb + 1])
        np.left_shift(b.bounds.take(index), 1, out=other)
        other += np.repeat(pair + 1, nb)
        key.sort(kind="stable")  # two rising lists: a single merge
        of_b = key & 1
        np.cumsum(of_b, out=of_b)
        both = np.arange(1, len(key) + 1)
        both -= of_b  # how many of a's
        both &= of_b
        both &= 1
        key >>= 1
        covered = np.zeros(len(key), np.int64)
        np.subtract(key[1:], key[:-1], out=covered[:-1])
        covered *= both
        common[piece] = _sums(covered, starts_a + starts_b)
    return common


def rle(masks: AnyMasks, row: int) -> Mapping[str, Any]:
    """One mask in COCO's form: {"size": [height, width], "counts": string}."""
    one = masks.take(np.array([row]))
    return {"size": one.sizes[0].tolist(), "counts": one.strings()[0]}
