"""Result files read as columns: of a list of records that all look like the first, only the numbers change.

A results file is a hundred megabytes in which the same keys return half a million times, and making objects of them
takes longer than the evaluation. So the file goes through in parts: what is left of a part without its digits must be
the first record's outline over and over, and then its numbers are the columns. Anything else - other keys, another
order, a string where a number belongs, any error - is left to the `json` module, which says what is wrong.

Numbers are read as `float` reads them, to the last bit (`numerals`).
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashjax.evaluation.detection.numerals import NO_INTEGER, IrregularError, read_numbers

Array = np.ndarray
PART = 1 << 20
"""Bytes of the file that are worked on at a time."""
_SCALARS = ("image_id", "category_id", "score", "id", "area", "iscrowd")
_BLANK = b" \t\r\n"


@dataclass(frozen=True)
class _Outline:
    """What every record looks like.

    Attributes:
        text: The record without whitespace, digits, points and signs, its run lengths empty.
        slots: What its numbers are, in their order.
        marker: What stands before the run lengths; empty if there are none.
    """

    text: bytes
    slots: tuple[str, ...]
    marker: bytes


def read_results(path: Path, masks: bool) -> Mapping[str, Any] | None:
    """The columns of a results file, or None if it is not regular.

    ``image_id`` and ``category_id`` are int64, ``bbox`` [N, 4] and ``score`` float64; where ``masks``, ``size`` is
    int64 [N, 2], ``counts`` uint8 and ``starts`` int64 [N + 1].
    """
    try:
        with open(path, "rb") as file:
            return _read(file, masks)
    except (IrregularError, UnicodeDecodeError):
        return None


def _read(file: Any, masks: bool) -> Mapping[str, Any]:
    outline, numbers, integers, lengths, used = None, [], [], [], 0
    pool = np.empty(os.fstat(file.fileno()).st_size if masks else 0, np.uint8)  # pages that are not used cost nothing
    for part, last in _parts(file):
        if outline is None:
            outline, part = _first(part, masks)
        if outline.marker:
            part, text, length = _without_strings(part, outline.marker)
            pool[used : used + len(text)] = np.frombuffer(text, np.uint8)
            used += len(text)
            lengths.append(length)
        values, whole, powers = read_numbers(part)
        count = _check(_without(part, powers), outline, last)
        if len(values) != count * len(outline.slots):
            raise IrregularError
        numbers.append(values.reshape(count, -1))
        integers.append(whole.reshape(count, -1))
    if outline is None:
        raise IrregularError
    places = {name: [n for n, slot in enumerate(outline.slots) if slot == name] for name in outline.slots}
    columns: dict[str, Any] = {}
    for name in ("image_id", "category_id", "size") if masks else ("image_id", "category_id"):
        value = np.concatenate([part[:, places[name]] for part in integers])
        if (value == NO_INTEGER).any():
            raise IrregularError
        columns[name] = value if name == "size" else value[:, 0]
    for name in ("bbox", "score"):
        if name in places:
            value = np.concatenate([part[:, places[name]] for part in numbers])
            columns[name] = np.ascontiguousarray(value) if name == "bbox" else value[:, 0]
    if masks:
        columns["counts"] = pool[:used]
        starts = np.zeros(len(columns["score"]) + 1, np.int64)
        np.cumsum(np.concatenate(lengths), out=starts[1:])
        columns["starts"] = starts
    return columns


def _parts(file: Any) -> Iterator[tuple[bytes, bool]]:
    """Whole records, about PART bytes of them at a time, and whether they are the last."""
    rest = b""
    while True:
        block = file.read(PART)
        text = rest + block
        if not block:
            if not text:
                raise IrregularError
            yield text, True
            return
        cut = len(text)
        while True:  # the last brace that opens a record, not one within it
            cut = text.rfind(b"{", 0, cut)
            if cut <= 0:
                break
            before = text[:cut].rstrip(_BLANK) if cut < 64 else text[cut - 64 : cut].rstrip(_BLANK)
            if before.endswith(b","):
                break
        if cut <= 0:
            rest = text
            if len(rest) > 64 * PART:
                raise IrregularError
            continue
        yield text[:cut], False
        rest = text[cut:]


def _first(part: bytes, masks: bool) -> tuple[_Outline, bytes]:
    """(outline of the first record, the part from that record on)."""
    part = part.lstrip(_BLANK)
    if not part.startswith(b"["):
        raise IrregularError
    part = part[1:].lstrip(_BLANK)
    try:
        record, end = json.JSONDecoder().raw_decode(part.decode("ascii"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise IrregularError from None
    if not isinstance(record, dict) or not {"image_id", "category_id", "score"} <= set(record):
        raise IrregularError
    slots: list[str] = []
    for key, value in record.items():
        if key == "bbox" and isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)):
            slots += ["bbox"] * 4
        elif key in _SCALARS and _is_number(value):
            slots.append(key)
        elif masks and key == "segmentation" and isinstance(value, dict) and sorted(value) == ["counts", "size"]:
            size, counts = value["size"], value["counts"]
            if not isinstance(counts, str) or not isinstance(size, list) or len(size) != 2:
                raise IrregularError
            slots += ["size"] * 2
        else:
            raise IrregularError
    if ("bbox" not in slots and not masks) or (masks and "size" not in slots):
        raise IrregularError
    raw = part[:end]
    marker = b""
    if masks:
        key = raw.index(b'"counts"')
        opening = raw.index(b'"', key + 8)
        marker = raw[key : opening + 1]
        raw = raw[: opening + 1] + raw[raw.index(b'"', opening + 1) :]
    raw = _without(raw, read_numbers(raw)[2])
    return _Outline(raw.translate(None, _CHANGING), tuple(slots), marker), part


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_CHANGING = b"0123456789.-" + _BLANK


def _check(part: bytes, outline: _Outline, last: bool) -> int:
    """How many records the part is made of."""
    left = part.translate(None, _CHANGING)
    count, odd = divmod(len(left), len(outline.text) + 1)
    if odd or left != b",".join([outline.text] * count) + (b"]" if last else b","):
        raise IrregularError
    return count


def _without(part: bytes, spans: list[tuple[int, int]]) -> bytes:
    """The part with these spans blanked: exponents, whose letters are not of the outline."""
    if not spans:
        return part
    text = bytearray(part)
    for start, stop in spans:
        text[start:stop] = b" " * (stop - start)
    return bytes(text)


def _without_strings(part: bytes, marker: bytes) -> tuple[bytes, bytes, Array]:
    """(the part with empty run lengths, their characters, how many each has).

    A quote within a string would leave its other half in the part, which is then of another outline.
    """
    head, *found = part.split(marker)
    cut = [piece.partition(b'"') for piece in found]
    rest = (marker + b'"').join([head, *[tail for _, _, tail in cut]])
    strings = [string for string, _, _ in cut]
    text = b"".join(strings)
    if b"\\" in text:  # in JSON a backslash is written twice; no other escape is a run length
        written = len(text)
        strings = [string.replace(b"\\\\", b"\\") for string in strings]
        text = b"".join(strings)
        if text.count(b"\\") != written - len(text):
            raise IrregularError
    return rest, text, np.fromiter(map(len, strings), np.int64, len(strings))
