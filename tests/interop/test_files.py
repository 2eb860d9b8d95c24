"""Checkpoints on disk: one file, parts, directories, and what is wrong with the rest."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from flashjax import interop
from tests.interop.test_swin import TINY, V1, assert_same, variables

STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}


def write_index(directory: Path, places: dict[str, str], name: str = "model.safetensors.index.json") -> None:
    (directory / name).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def assert_state(state: dict[str, np.ndarray]) -> None:
    assert state.keys() == STATE.keys()
    for name, array in STATE.items():
        np.testing.assert_array_equal(state[name], array)


def test_load_is_the_inverse_of_save(tmp_path: Path) -> None:
    original = variables(V1, **TINY)
    for layout in ("official", "timm", "hf"):
        path = tmp_path / f"{layout}.safetensors"
        interop.save(path, interop.to_torch(V1, original, layout, **TINY))
        assert_same(interop.load(path, V1, **TINY), original)
        assert_same(interop.load(str(path), V1, **TINY), original)


def test_directory_with_one_file(tmp_path: Path) -> None:
    interop.save(tmp_path / "model.safetensors", STATE)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    assert_state(interop.read_state(tmp_path))


def test_directory_in_parts(tmp_path: Path) -> None:
    for i, name in enumerate(STATE, start=1):
        interop.save(tmp_path / f"model-0000{i}-of-00002.safetensors", {name: STATE[name]})
    places = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(STATE, start=1)}
    write_index(tmp_path, places)
    assert_state(interop.read_state(tmp_path))
    assert_state(interop.read_state(tmp_path / "model.safetensors.index.json"))

    write_index(tmp_path, places | {"c": "model-00001-of-00002.safetensors"})
    with pytest.raises(ValueError, match=r"model-00001-of-00002.safetensors: lacks c"):
        interop.read_state(tmp_path)
    write_index(tmp_path, places | {"c": "model-00003-of-00002.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"model-00003-of-00002.safetensors: no such file"):
        interop.read_state(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weights": 3}')
    with pytest.raises(ValueError, match="not an index"):
        interop.read_state(tmp_path)


def test_a_part_outside_the_directory_is_refused(tmp_path: Path) -> None:
    interop.save(tmp_path / "secret.safetensors", STATE)
    inside = tmp_path / "model"
    inside.mkdir()
    write_index(inside, {"b": "../secret.safetensors"})
    with pytest.raises(ValueError, match="outside"):
        interop.read_state(inside)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors: no such file"):
        interop.load(tmp_path / "nowhere.safetensors", V1)
    with pytest.raises(FileNotFoundError, match=r"a directory without any of model.safetensors"):
        interop.read_state(tmp_path)
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"unknown kind of file '.npz'; known: .safetensors, .pth"):
        interop.read_state(tmp_path / "weights.npz")


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    interop.save(path, STATE)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model.safetensors: truncated: the tensors need 32 bytes, the file holds 31"):
        interop.read_state(path)


def test_states_are_written_as_safetensors_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.pth: states are written as .safetensors"):
        interop.save(tmp_path / "model.pth", STATE)


def test_without_torch_a_pickle_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match="pip install torch"):
        interop.load(tmp_path / "model.pth", V1)


def test_safetensors_need_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "safetensors"):
        monkeypatch.setitem(sys.modules, package, None)
    interop.save(tmp_path / "x.safetensors", STATE)
    assert_state(interop.read_state(tmp_path / "x.safetensors"))
