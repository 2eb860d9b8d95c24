"""Weights of public PyTorch implementations to Flax and back, bit for bit.

variables = load("swin_tiny_patch4_window7_224.pth", "swin_tiny_patch4_window7_224")
save("for_timm.safetensors", to_torch("swin_tiny_patch4_window7_224", variables, layout="timm"))
"""

import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from flax import linen as nn

from flashjax import models
from flashjax.interop import mapping, safetensors, swin
from flashjax.interop.files import read_state
from flashjax.interop.mapping import ConversionError
from flashjax.models.swin import SwinTransformer

__all__ = ["ConversionError", "from_torch", "load", "read_state", "save", "to_torch"]

# Model class -> the module with its `table`, its `abstract` variables and the `extras` that strict loads need.
_FAMILIES: dict[type[nn.Module], ModuleType] = {SwinTransformer: swin}


def from_torch(name: str, state: Mapping[str, Any], **overrides: Any) -> dict[str, Any]:
    """The variables of `models.create(name, **overrides)` from a torch state.

    Args:
        state: torch names to numpy arrays (or torch tensors). The layout is recognised by the names; a prefix of
            all of them (`backbone.`, `encoder.`, `module.`) is stripped; buffers are not needed and not read.

    Returns:
        `{"params": tree}` of numpy arrays in the dtypes of the model's parameters. They stay on the host, so that
        the caller decides how they are placed on devices.

    Raises:
        ValueError: unknown name or override.
        ConversionError: the state is of no known layout, or its names or shapes are not the model's. The message
            lists all that differ and, where it is known, what to pass instead.
    """
    model, family = _model(name, overrides)
    abstract = family.abstract(model)
    leaves = mapping.read(family.table(model), state, mapping.flatten(abstract))
    return mapping.unflatten(leaves, abstract.keys())


def to_torch(
    name: str, variables: Mapping[str, Any], layout: str = "official", **overrides: Any
) -> dict[str, np.ndarray]:
    """The torch state of `variables`, ready for a strict `load_state_dict`: the inverse of `from_torch`.

    Args:
        layout: `official`, `timm` (0.9 or later), `hf` (transformers 5) or `hf4` (transformers 4).

    Returns:
        Torch names to numpy arrays; in the official layout with the buffers that its code saves.

    Raises:
        ValueError: unknown name or override.
        ConversionError: unknown layout, variables that are not the model's, or a leaf the layout has no name for.
    """
    model, family = _model(name, overrides)
    expected = mapping.flatten(family.abstract(model))
    state = mapping.write(family.table(model), layout, mapping.flatten(variables), expected)
    return state | family.extras(model, layout)


def load(path: str | os.PathLike[str], name: str, **overrides: Any) -> dict[str, Any]:
    """The variables of a model from a checkpoint file: `read_state`, then `from_torch`, raising what they raise."""
    return from_torch(name, read_state(path), **overrides)


def save(path: str | os.PathLike[str], state: Mapping[str, np.ndarray]) -> None:
    """Writes a torch state as `.safetensors`.

    Raises:
        ValueError: another suffix, or a dtype that the format does not know.
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise ValueError(f"{path}: states are written as .safetensors; name the file so")
    safetensors.write(path, state)


def _model(name: str, overrides: Mapping[str, Any]) -> tuple[nn.Module, ModuleType]:
    model = models.create(name, **overrides)
    return model, _FAMILIES[type(model)]
