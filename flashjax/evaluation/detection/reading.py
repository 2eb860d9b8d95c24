"""COCO's JSON files in: any of them as objects, and a results file as columns.

A results file holds half a million records, a ground truth a million coordinates; `msgspec` reads both several times as
fast as `json`. Of results, only the fields that count become objects, a part of the file at a time, so that these stay
in the processor's cache and memory grows with the columns alone. What `msgspec` refuses - other types, NaN, anything
wrong - is left to `json`, which reads it or says what is wrong and where.
"""

import gc
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from flashjax.evaluation.detection.ragged import offsets

PART = 1 << 17
"""Bytes of a results file that are worked on at a time."""
_LONGEST = 1 << 26
"""Bytes without the end of a record after which a file is not read in parts."""
_BLANK = b" \t\r\n"


class _Boxed(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    score: float
    bbox: tuple[float, float, float, float]


class _RunLengths(msgspec.Struct, gc=False):
    size: tuple[int, int]
    counts: str


class _Masked(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    score: float
    segmentation: _RunLengths
    bbox: tuple[float, float, float, float] | None = None


def read_json(path: Path) -> Any:
    """What a file holds.

    Raises:
        ValueError: an empty file, or no JSON; it names the file and the place.
    """
    text = path.read_bytes()
    if not text.strip():
        raise ValueError(f"{path} is empty")
    with _without_collector():
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            pass
        try:
            return json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from None


def read_results(path: Path, masks: bool) -> Mapping[str, Any] | None:
    """The columns of a results file; None if it holds other than boxes, or other than compressed run lengths.

    ``image_id`` and ``category_id`` are int64, ``bbox`` [N, 4] and ``score`` float64; where ``masks``, ``size`` is
    int64 [N, 2], ``counts`` uint8, ``starts`` int64 [N + 1], and ``bbox`` is there if all records have it.
    """
    try:
        with open(path, "rb") as file, _without_collector():
            return _columns(file, masks)
    except (msgspec.DecodeError, RecursionError, struct.error, UnicodeEncodeError, _IrregularError):
        return None


class _IrregularError(Exception):
    """No list of records, or records of which some have boxes."""


def _columns(file: Any, masks: bool) -> Mapping[str, Any]:
    decoder = msgspec.json.Decoder(list[_Masked] if masks else list[_Boxed])
    pool = np.empty(os.fstat(file.fileno()).st_size if masks else 0, np.uint8)  # pages that are not used cost nothing
    parts, used = [], 0
    for text in _parts(file):
        records: list[Any] = decoder.decode(text)
        part = {
            "image_id": _packed("q", [one.image_id for one in records]),
            "category_id": _packed("q", [one.category_id for one in records]),
            "score": _packed("d", [one.score for one in records]),
        }
        boxes = [one.bbox for one in records if one.bbox is not None]
        if boxes:
            part["bbox"] = _packed("d", list(chain.from_iterable(boxes))).reshape(-1, 4)
        if masks:
            coded = [one.segmentation for one in records]
            part["size"] = _packed("q", list(chain.from_iterable([one.size for one in coded]))).reshape(-1, 2)
            counts = [one.counts for one in coded]
            part["lengths"] = _packed("q", list(map(len, counts)))
            joined = "".join(counts).encode("ascii")
            pool[used : used + len(joined)] = np.frombuffer(joined, np.uint8)
            used += len(joined)
        parts.append(part)
        if len(boxes) not in (0, len(records)) or part.keys() != parts[0].keys():
            raise _IrregularError
    columns = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    if masks:
        columns |= {"counts": pool[:used], "starts": offsets(columns.pop("lengths"))}
    return columns


def _packed(kind: str, values: list[Any]) -> np.ndarray:
    """An array of integers ("q") or floats ("d"), in half the time of `np.array`."""
    return np.frombuffer(struct.pack(f"{len(values)}{kind}", *values), kind)


def _parts(file: Any) -> Iterator[bytes]:
    """Lists of whole records, about PART bytes of them at a time.

    A part that was cut elsewhere, in a string or within a record, has a quote or a bracket without its partner.
    """
    rest, opened = b"", False
    while True:
        block = file.read(PART)
        text = rest + block
        if not opened:
            text = text.lstrip(_BLANK)
            if not text.startswith(b"["):
                raise _IrregularError
            text, opened = text[1:], True
        if not block:
            if not text.rstrip(_BLANK).removesuffix(b"]").strip(_BLANK):
                raise _IrregularError  # no record
            yield b"[" + text
            return
        cut = _last_record(text)
        if cut:
            yield b"[" + text[:cut] + b"]"
            text = text[cut + 1 :]
        elif len(text) > _LONGEST:
            raise _IrregularError
        rest = text


def _last_record(text: bytes) -> int:
    """Place of the comma before the last brace that opens a record, not one within it; 0 if there is none."""
    brace = len(text)
    while (brace := text.rfind(b"{", 0, brace)) > 0:
        start = max(brace - 64, 0)
        before = text[start:brace].rstrip(_BLANK)
        if before.endswith(b","):
            return start + len(before) - 1
    return 0


@contextmanager
def _without_collector() -> Iterator[None]:
    """It would look through the new objects again and again, and none of them is garbage."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
