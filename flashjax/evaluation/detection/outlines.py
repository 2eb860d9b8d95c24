"""Polygons of many masks in one array, and a ground-truth file whose polygons are read so.

The polygons of a file are millions of numbers that `json` would make objects of. Where they are written as regularly as
programs write them, they are cut out of the text and read as columns, and `json` reads the small rest. Anything else
is left to `json`, which says what is wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from flashjax.evaluation.detection.numerals import IrregularError, read_numbers
from flashjax.evaluation.detection.ragged import gather, offsets, pieces

Array = np.ndarray


@dataclass(frozen=True)
class Outlines:
    """The polygons of N masks.

    Attributes:
        parts: int64 [N], how many polygons each mask has.
        lengths: int64 [P], how many numbers each polygon has.
        values: float64, x, y, x, y, ... of all polygons.
    """

    parts: Array
    lengths: Array
    values: Array

    def take(self, rows: Array) -> "Outlines":
        """Those of these masks."""
        part_starts, value_starts = offsets(self.parts), offsets(self.lengths)
        first, last = part_starts[rows], part_starts[rows + 1]
        lengths, _ = gather(self.lengths, first, last)
        values, _ = gather(self.values, value_starts[first], value_starts[last])
        return Outlines(self.parts[rows], lengths, values)

    @staticmethod
    def of(polygons: Sequence[Sequence[Sequence[float]]], source: str) -> "Outlines":
        """Of lists: of each mask its polygons.

        Raises:
            ValueError: what is no number; it names the row.
        """
        parts = np.fromiter(map(len, polygons), np.int64, len(polygons))
        try:
            lengths = np.fromiter(map(len, chain.from_iterable(polygons)), np.int64, int(parts.sum()))
            flat = chain.from_iterable(chain.from_iterable(polygons))
            return Outlines(parts, lengths, np.fromiter(flat, np.float64, int(lengths.sum())))
        except (TypeError, ValueError):
            for row, mask in enumerate(polygons):
                for part in mask:
                    if not isinstance(part, Sequence | np.ndarray):
                        raise ValueError(f"{source} {row}: polygon {part!r} is no list of numbers") from None
                for value in chain.from_iterable(mask):
                    if not isinstance(value, int | float | np.number):
                        raise ValueError(f"{source} {row}: {value!r} in a polygon is not a number") from None
            raise


class OutlineAt(NamedTuple):
    """The polygons of one mask: where they are."""

    outlines: Outlines
    row: int


_KEY = b'"segmentation"'
_STRUCTURE = b"[],"
_WRONG = (b",,", b"[,", b",]", b"[]", b"][", b"[[[", b"]]]")
_BATCH = 1 << 20


def cut_polygons(text: bytes) -> tuple[bytes, list[bytes]] | None:
    """(the text with a number in place of each mask's polygons, those in their order); None if they are not written
    as [[x, y, ...], ...], each behind its key."""
    head, *found = text.split(_KEY)
    kept, cuts = [head], []
    for piece in found:
        if piece.startswith((b": [[", b":[[")):
            start, end = piece.index(b"["), piece.find(b"]]")
            if end < 0:
                return None
            kept.append(b":%d%b" % (len(cuts), piece[end + 2 :]))
            cuts.append(piece[start : end + 2])
        elif piece.startswith((b": {", b":{")):
            kept.append(piece)
        else:
            return None
    return _KEY.join(kept), cuts


def read_polygons(cuts: Sequence[bytes]) -> Outlines | None:
    """The polygons that `cut_polygons` found; None if they are more than numbers in brackets."""
    lengths = np.fromiter(map(len, cuts), np.int64, len(cuts))
    try:
        made = [_read(b",".join(cuts[batch])) for batch in pieces(lengths, _BATCH)]
    except IrregularError:
        return None
    return Outlines(*(np.concatenate([getattr(one, name) for one in made]) for name in ("parts", "lengths", "values")))


def _read(text: bytes) -> Outlines:
    if text.count(b" ") != text.count(b", "):
        raise IrregularError
    text = text.translate(None, b" ")
    if any(wrong in text for wrong in _WRONG):
        raise IrregularError
    opening, closing = (text.count(letter) for letter in (b"[", b"]"))
    if opening != text.count(b"[[") + text.count(b",[") + 1 or closing != text.count(b"]]") + text.count(b"],") + 1:
        raise IrregularError
    left = text.translate(None, b"0123456789.-")
    if left.translate(None, _STRUCTURE):
        raise IrregularError
    # So every comma and bracket has a number or a bracket on either side, and the depth of brackets tells what it is.
    signs = np.frombuffer(left, np.uint8)
    step = (signs == ord("[")).astype(np.int8) - (signs == ord("]")).astype(np.int8)
    depth = np.cumsum(step)
    open_mask, open_part = (np.flatnonzero((step > 0) & (depth == d)) for d in (1, 2))
    close_part = np.flatnonzero((step < 0) & (depth == 1))
    lengths = close_part - open_part  # with a comma between two numbers
    values, _, powers = read_numbers(text)
    if depth[-1] != 0 or depth.min() < 0 or depth.max() > 2 or powers or len(values) != lengths.sum():
        raise IrregularError
    parts = np.diff(np.searchsorted(open_part, np.append(open_mask, len(signs))))
    return Outlines(parts, lengths, values)


def with_polygons(data: Any, outlines: Outlines) -> Mapping[str, Any] | None:
    """A dataset that was read from a text without its polygons, with the polygons in their places; None if it is no
    list of annotations that holds them all."""
    if not isinstance(data, Mapping) or not isinstance(data.get("annotations"), list):
        return None
    count = 0
    for record in data["annotations"]:
        if not isinstance(record, dict):
            return None
        row = record.get("segmentation")
        if type(row) is int:
            if row != count:
                return None
            record["segmentation"] = OutlineAt(outlines, row)
            count += 1
    return data if count == len(outlines.parts) else None
