"""Weights on disk as plain states: torch names to numpy arrays."""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flashjax.interop import safetensors
from flashjax.interop.mapping import to_numpy

_PICKLED = (".pth", ".pt", ".bin")
# Whole models in a directory, the format that needs no torch first; an index names the files of a model in parts.
_IN_DIRECTORY = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_WRAPPERS = ("model", "state_dict")


def read_state(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by their torch names.

    `.safetensors` is read without torch; `.pth`, `.pt` and `.bin` through `torch.load(weights_only=True)`, and what
    training scripts wrap (`{"model": ...}`, `{"state_dict": ...}`) is unwrapped. A directory may hold a model as one
    file or in parts with an index, under the names that transformers gives them.

    Raises:
        FileNotFoundError: no such file, or a directory without weights.
        ModuleNotFoundError: the file needs torch, which is not installed.
        ValueError: an unknown kind of file, a damaged one, or one that holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        inside = next((path / name for name in _IN_DIRECTORY if (path / name).exists()), None)
        if inside is None:
            raise FileNotFoundError(f"{path}: a directory without any of {', '.join(_IN_DIRECTORY)}")
        path = inside
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.name.endswith(".index.json"):
        return _read_parts(path)
    if path.suffix == ".safetensors":
        return safetensors.read(path)
    if path.suffix in _PICKLED:
        return _read_pickled(path)
    raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; known: .safetensors, {', '.join(_PICKLED)}")


def _read_parts(index: Path) -> dict[str, np.ndarray]:
    """A model in several files, by its index `{"weight_map": {tensor: file}}`."""
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{index}: not an index: a JSON object with a weight_map is expected") from error
    state: dict[str, np.ndarray] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise ValueError(f"{index}: places tensors in {file!r}, outside its directory")
        part = read_state(index.parent / file)
        wanted = [name for name, place in places.items() if place == file]
        if absent := [name for name in wanted if name not in part]:
            raise ValueError(f"{index.parent / file}: lacks {', '.join(absent)}, which {index.name} places there")
        state.update((name, part[name]) for name in wanted)
    return state


def _read_pickled(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path.name} is read by torch, which is not installed: pip install torch (the CPU build will do), "
            "or convert the file to .safetensors, which needs no torch"
        ) from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds more than tensors, or is damaged, and only tensors are read from a pickle: load it where "
            "you trust it and save the state dict alone"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    return {name: to_numpy(value) for name, value in _unwrap(path, content).items()}


def _unwrap(path: Path, content: Any) -> Mapping[str, Any]:
    """The mapping of names to tensors in what a training script saved."""
    while isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, Mapping) or not all(hasattr(value, "detach") for value in content.values()):
        held = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path}: no state dict, neither bare nor under {' or '.join(_WRAPPERS)}; it holds {held}")
    return content
