"""Read and write `.safetensors` files with numpy alone.

The format: eight bytes of little-endian header length, a JSON header
`{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}`, then the raw
little-endian bytes of the tensors, to which the offsets are relative. Every byte of the data belongs to
exactly one tensor.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

# The reference implementation refuses longer headers, so that a damaged length cannot ask for all memory.
_MAX_HEADER = 100_000_000

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class SafetensorsError(ValueError):
    """A file that is not a whole, well-formed `.safetensors` file."""


class _Entry(NamedTuple):
    """Where one tensor lies in the data, its bytes and its shape in agreement."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Tensors of a `.safetensors` file by name.

    The arrays are read-only views of the memory-mapped file: a tensor costs memory when it is used.

    Raises:
        SafetensorsError: the file is truncated, or its header is damaged or disagrees with itself.
    """
    path = Path(path)
    size = path.stat().st_size
    if size < 8:
        raise SafetensorsError(f"{path}: truncated: {size} bytes, and the header length alone takes 8")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            raise SafetensorsError(f"{path}: a header of {length} bytes is past the limit; not .safetensors?")
        start = 8 + length
        if start > size:
            raise SafetensorsError(f"{path}: truncated: the header ends at byte {start}, the file at {size}")
        header = _parse_header(path, file.read(length))
    header.pop("__metadata__", None)
    entries = {name: _check_entry(path, name, entry) for name, entry in header.items()}
    _check_coverage(path, entries, size - start)
    # Nothing but empty tensors: an empty map is an error to the operating system.
    data = np.memmap(path, mode="r", offset=start) if size > start else np.empty(0, np.uint8)
    return {
        name: np.asarray(data[entry.begin : entry.end]).view(entry.dtype).reshape(entry.shape)
        for name, entry in entries.items()
    }


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as a `.safetensors` file; the file appears under its name only when it is whole.

    Args:
        metadata: strings kept in the header. `format: pt` is added, which torch-side readers ask for.

    Raises:
        SafetensorsError: a tensor's dtype has no name in the format.
    """
    path = Path(path)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    arrays: list[np.ndarray] = []
    offset = 0
    # Wide types first: every tensor then begins at a multiple of its item size.
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        array = np.asarray(tensors[name])
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            known = ", ".join(str(dtype) for dtype in _NAMES)
            raise SafetensorsError(f"tensor {name!r} has dtype {array.dtype}; the format knows {known}")
        end = offset + array.nbytes
        header[name] = {"dtype": _NAMES[dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        arrays.append(array.astype(dtype, copy=False))
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in arrays:
            file.write(np.ascontiguousarray(array).tobytes())
    partial.replace(path)


def _parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise SafetensorsError(f"{path}: the header names {', '.join(twice)} more than once")
        return dict(pairs)

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SafetensorsError(f"{path}: the header is not JSON ({error}); not .safetensors?") from error
    if not isinstance(header, dict):
        raise SafetensorsError(f"{path}: the header is a JSON {type(header).__name__}, not an object")
    return header


def _check_entry(path: Path, name: str, entry: Any) -> _Entry:
    what = f"{path}: tensor {name!r}"
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise SafetensorsError(f"{what} lacks dtype, shape or two data_offsets") from error
    if kind not in _DTYPES:
        raise SafetensorsError(f"{what} has unknown dtype {kind!r}; known: {', '.join(_DTYPES)}")
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise SafetensorsError(f"{what} has shape {shape} and offsets {begin}, {end}: not all whole numbers")
    needed = math.prod(shape) * _DTYPES[kind].itemsize
    if end - begin != needed:
        raise SafetensorsError(f"{what}, {kind} {shape}, needs {needed} bytes, its offsets {end - begin}")
    return _Entry(_DTYPES[kind], shape, begin, end)


def _check_coverage(path: Path, entries: Mapping[str, _Entry], size: int) -> None:
    """The tensors, in order of their offsets, must fill the data without a gap or an overlap."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            raise SafetensorsError(f"{path}: tensor {name!r} begins at byte {entry.begin}, expected {at}")
        at = entry.end
    if at > size:
        raise SafetensorsError(f"{path}: truncated: the tensors need {at} bytes, the file holds {size}")
    if at < size:
        raise SafetensorsError(f"{path}: {size - at} bytes after the last tensor belong to none")
