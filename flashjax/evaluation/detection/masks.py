"""Masks as runs, many at a time: `Masks` by the ends of their runs, `Encoded` as the strings of a file.

A mask of H x W pixels is read down its columns (position = x * H + y). Every function works on all masks at once, in
pieces that stay in the processor's cache. Polygons become masks in `polygons`; what masks share is in `mask_overlap`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from flashjax.evaluation.detection import rle as codec
from flashjax.evaluation.detection.ragged import CHUNK, gather, offsets, pieces, ragged, sums

Array = np.ndarray


@dataclass(frozen=True)
class Masks:
    """Masks by the ends of their runs, which lie in one array in any order.

    Attributes:
        sizes: int64 [N, 2], height and width.
        first, last: int64 [N]: ``bounds[first[i]:last[i]]`` are those of mask i.
        bounds: int32, begin and end (exclusive) of each run of foreground, rising within a mask.
    """

    sizes: Array
    first: Array
    last: Array
    bounds: Array

    def __len__(self) -> int:
        return len(self.sizes)

    @staticmethod
    def of(sizes: Array, lengths: Array, bounds: Array) -> "Masks":
        """Masks whose bounds lie one behind the other, ``lengths`` [N] of each."""
        starts = offsets(lengths)
        return Masks(sizes, starts[:-1], starts[1:], bounds.astype(np.int32, copy=False))

    def take(self, rows: Array) -> "Masks":
        """The masks of these rows; their bounds stay where they are."""
        rows = np.asarray(rows, np.int64)
        return Masks(self.sizes[rows], self.first[rows], self.last[rows], self.bounds)

    def of_rows(self, rows: slice | Array) -> tuple[Array, Array]:
        """(bounds of these rows one behind the other, where each begins)."""
        return gather(self.bounds, self.first[rows], self.last[rows])

    def rows(self, rows: Array) -> "Masks":
        """`take`, as of `Encoded`."""
        return self.take(rows)

    def areas(self) -> Array:
        """Pixels of foreground, int64 [N]."""
        areas = np.zeros(len(self), np.int64)
        for piece in pieces(self.last - self.first):
            bounds, starts = self.of_rows(piece)
            areas[piece] = sums(bounds[1::2] - bounds[::2], starts // 2)
        return areas

    def boxes(self) -> Array:
        """The tightest box of each mask as x, y, width, height, float64 [N, 4]; zeros for an empty one.

        A run that passes from one column to the next covers the whole height, as in COCO's interface.
        """
        boxes = np.zeros((len(self), 4))
        for piece in pieces(self.last - self.first):
            bounds, starts = self.of_rows(piece)
            runs = np.diff(starts) // 2
            height = np.repeat(self.sizes[piece, 0].astype(np.float64), runs)
            begin, end = bounds[::2].astype(np.float64), bounds[1::2].astype(np.float64)
            end -= 1
            # Quotients of whole numbers this small never round up to the next whole number.
            x0, x1 = np.floor(begin / height), np.floor(end / height)
            wide = np.flatnonzero(x0 < x1)
            begin -= x0 * height
            end -= x1 * height
            begin[wide], end[wide] = 0, height[wide] - 1
            some = np.flatnonzero(runs > 0)
            if len(some):
                head, tail = starts[some] // 2, starts[some + 1] // 2 - 1
                left, right = x0[head], x1[tail]
                top, bottom = np.minimum.reduceat(begin, head), np.maximum.reduceat(end, head)
                boxes[piece.start + some] = np.stack([left, top, right - left + 1, bottom - top + 1], 1)
        return boxes

    def dense(self, row: int) -> Array:
        """One mask as bool [H, W]."""
        height, width = map(int, self.sizes[row])
        steps = np.zeros(height * width + 1, np.int8)
        bounds, _ = self.of_rows(slice(row, row + 1))
        np.add.at(steps, bounds[::2], 1)
        np.add.at(steps, bounds[1::2], -1)
        return np.cumsum(steps[:-1]).astype(bool).reshape(width, height).T

    def strings(self) -> list[str]:
        """The compressed run lengths, COCO's ``counts`` (of the shortest form: no empty runs but the first)."""
        texts: list[str] = []
        for piece in pieces(self.last - self.first):
            texts += codec.strings(*self.of_rows(piece), self.sizes[piece].prod(1))
        return texts

    @staticmethod
    def empty() -> "Masks":
        """No mask at all."""
        return Masks.of(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int32))

    @staticmethod
    def join(parts: Sequence["Masks"]) -> "Masks":
        """All masks of ``parts`` in their order."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return Masks.empty()
        before = offsets(np.array([len(part.bounds) for part in parts])).tolist()
        return Masks(
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.first + start for part, start in zip(parts, before, strict=False)]),
            np.concatenate([part.last + start for part, start in zip(parts, before, strict=False)]),
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
        columns: int64 [N, 2], the first and the last that may hold foreground.
    """

    sizes: Array
    starts: Array
    numbers: Array
    areas: Array
    columns: Array

    def take(self, rows: Array) -> Masks:
        """The masks of these rows."""
        first, last = self.starts[rows], self.starts[rows + 1]
        parts = []
        for piece in pieces(last - first):
            value, starts = gather(self.numbers, first[piece], last[piece])
            sizes = self.sizes[rows[piece]]
            bounds, lengths = codec.bounds(value, starts, sizes, "mask", rows[piece], differences=True)
            parts.append(Masks.of(sizes, lengths, bounds))
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
            sizes = self.sizes[chosen]
            bounds, lengths = codec.bounds(*self._numbers(chosen), sizes, self.source, chosen, differences=True)
            parts.append(Masks.of(sizes, lengths, bounds))
        return Masks.join(parts)

    def _numbers(self, rows: Array) -> tuple[Array, Array]:
        text, starts = gather(self.text, self.starts[rows], self.starts[rows + 1])
        return codec.numbers(text, starts, self.source, rows)

    def rows(self, rows: Array) -> "Encoded":
        """The masks of these rows, encoded as they are."""
        index, starts = ragged(self.starts[rows], self.starts[np.asarray(rows) + 1])
        return Encoded(self.sizes[rows], starts, self.text[index], self.source)

    def open(self, rows: Array) -> Opened:
        """The masks of these rows as numbers, with their areas."""
        counts, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        areas, columns = np.zeros(len(rows), np.int64), np.zeros((len(rows), 2), np.int64)
        for piece in pieces(self.starts[rows + 1] - self.starts[rows]):
            value, starts = self._numbers(rows[piece])
            areas[piece], columns[piece] = codec.extents(
                value, starts, self.sizes[rows[piece]], self.source, rows[piece]
            )
            counts.append(np.diff(starts))
            numbers.append(value)
        return Opened(self.sizes[rows], offsets(np.concatenate(counts)), np.concatenate(numbers), areas, columns)

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


AnyMasks = Masks | Encoded


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
    return Masks.of(sizes, np.bincount(row, minlength=count), position)


def from_counts(counts: Sequence[Sequence[int]], sizes: Array, source: str = "mask") -> Masks:
    """Masks of plain run lengths: background first, then foreground and background in turn.

    Raises:
        ValueError: a negative run, or runs that do not fill height x width; it names the row.
    """
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    starts = offsets(np.array([len(runs) for runs in counts], np.int64))
    values = np.fromiter(chain.from_iterable(counts), np.int64, starts[-1])
    bounds, lengths = codec.bounds(values, starts, sizes, source, np.arange(len(sizes)), differences=False)
    return Masks.of(sizes, lengths, bounds)


def from_strings(strings: Sequence[str | bytes], sizes: Array, source: str = "mask") -> Encoded:
    """Masks of COCO's compressed strings, kept as they are."""
    text = b"".join(s if isinstance(s, bytes) else s.encode("latin-1", "replace") for s in strings)
    lengths = np.fromiter(map(len, strings), np.int64, len(strings))
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    return Encoded(sizes, offsets(lengths), np.frombuffer(text, np.uint8), source)


def rle(masks: AnyMasks, row: int) -> Mapping[str, Any]:
    """One mask in COCO's form: {"size": [height, width], "counts": string}."""
    one = masks.take(np.array([row]))
    return {"size": one.sizes[0].tolist(), "counts": one.strings()[0]}
