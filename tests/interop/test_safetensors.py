"""The `.safetensors` reader and writer: every dtype, and every way a file can be damaged."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from flashjax.interop import safetensors
from flashjax.interop.safetensors import SafetensorsError

DTYPES = [
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "bool"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
]


def raw_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file with this header, written by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: tuple = (2,), offsets: tuple = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_roundtrip_keeps_every_bit(tmp_path: Path, dtype: object) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)  # type: ignore[call-overload]
    safetensors.write(tmp_path / "x.safetensors", {"a": values, "b.c": values[0, 0, 0]})
    read = safetensors.read(tmp_path / "x.safetensors")
    assert read["a"].dtype == values.dtype
    assert read["a"].shape == (2, 3, 4)
    assert read["b.c"].shape == ()
    assert read["a"].tobytes() == values.tobytes()


def test_roundtrip_of_odd_arrays(tmp_path: Path) -> None:
    state = {
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "big endian": np.arange(3, dtype=">f4"),
        "empty": np.zeros((0, 4), np.float32),
        "byte": np.ones(3, np.uint8),  # makes what follows unaligned, were it not sorted to the end
        "infinite": np.array([np.inf, -0.0, np.nan], np.float32),
    }
    safetensors.write(tmp_path / "x.safetensors", state)
    read = safetensors.read(tmp_path / "x.safetensors")
    assert read.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(read[name], array)
    assert all(array.flags.aligned for array in read.values())
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_nothing_but_empty_tensors(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "x.safetensors", {"a": np.zeros((3, 0), np.float32)})
    assert safetensors.read(tmp_path / "x.safetensors")["a"].shape == (3, 0)
    safetensors.write(tmp_path / "none.safetensors", {})
    assert safetensors.read(tmp_path / "none.safetensors") == {}


def test_unaligned_data_of_other_writers(tmp_path: Path) -> None:
    data = b"\x01" + np.array([1.5, -2.0], "<f4").tobytes()
    header = {"__metadata__": {"format": "pt"}, "b": entry("U8", (1,), (0, 1)), "a": entry(offsets=(1, 9))}
    read = safetensors.read(raw_file(tmp_path / "x", header, data))
    assert read.keys() == {"a", "b"}
    np.testing.assert_array_equal(read["a"], [1.5, -2.0])


def test_unknown_dtype_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match="'a' has dtype complex64"):
        safetensors.write(tmp_path / "x.safetensors", {"a": np.zeros(2, np.complex64)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"not json", b"", "not JSON"),
        (b"\xff\xfe{}", b"", "not JSON"),
        ([1, 2], b"", "a JSON list"),
        (b'{"a": {}, "a": {}}', b"", "names a more than once"),
        ({"a": {"dtype": "F32"}}, b"", "'a' lacks"),
        ({"a": 3}, b"", "'a' lacks"),
        ({"a": entry("F31")}, bytes(8), "unknown dtype 'F31'"),
        ({"a": entry(shape=(-2,))}, bytes(8), "not all whole numbers"),
        ({"a": entry(shape=(3,))}, bytes(8), "needs 12 bytes"),
        ({"a": entry(offsets=(8, 0))}, bytes(8), "needs 8 bytes"),
        ({"a": entry(), "b": entry()}, bytes(8), "'b' begins at byte 0, expected 8"),
        ({"a": entry(offsets=(4, 12))}, bytes(12), "'a' begins at byte 4, expected 0"),
        ({"a": entry()}, bytes(7), "truncated: the tensors need 8 bytes, the file holds 7"),
        ({"a": entry()}, bytes(9), "1 bytes after the last tensor"),
        ({}, bytes(1), "1 bytes after the last tensor"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    path = raw_file(tmp_path / "broken.safetensors", header, data)
    with pytest.raises(SafetensorsError, match=message) as error:
        safetensors.read(path)
    assert "broken.safetensors" in str(error.value)


def test_damaged_header_lengths(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"\x00" * 5)
    with pytest.raises(SafetensorsError, match="truncated: 5 bytes"):
        safetensors.read(tmp_path / "short")
    with pytest.raises(SafetensorsError, match="truncated: the header ends at byte 108"):
        safetensors.read(raw_file(tmp_path / "cut", {}, length=100))
    with pytest.raises(SafetensorsError, match="past the limit"):
        safetensors.read(raw_file(tmp_path / "huge", {}, length=2**63))


def test_every_truncation_of_a_file_is_an_error(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "x.safetensors", {"a": np.arange(4, dtype=np.float32), "b": np.ones(3, np.int8)})
    whole = (tmp_path / "x.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(SafetensorsError):
            safetensors.read(tmp_path / "cut")
