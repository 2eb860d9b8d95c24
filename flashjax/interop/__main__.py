"""Rewrites a checkpoint in another torch layout, checked against the model it is for."""

import ast
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from flashjax import interop


def convert(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    /,
    name: str,
    layout: str = "official",
    override: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE ...")] = (),
) -> None:
    """Reads weights in any known layout and writes them in another.

    Args:
        source: A .safetensors, .pth, .pt or .bin file, or a directory with weights.
        target: The .safetensors file to write.
        name: The model, such as swin_tiny_patch4_window7_224.
        layout: official, timm, hf (transformers 5) or hf4 (transformers 4).
        override: Fields in which the model differs from its name, such as num_classes=21841.
    """
    try:
        overrides = dict(map(_parse, override))
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
