"""The looks of a run as pictures: a map of layers by steps for each figure."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from flashjax.shades import shade_map
from flashjax.training.watch import FIGURES


def pictures(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """HTML of a section, from the lines of watch.jsonl; nothing where there are none."""
    maps = [_map(name, words, lines) for name, words in FIGURES.items() if any(_named(line, name) for line in lines)]
    if not maps:
        return []
    note = "Shades by logarithm, of means by their size; what is not finite is left blank."
    return [
        "<h2>By layer</h2>",
        f'<p class="note">{escape(note)}</p>',
        f'<section class="charts">{"".join(maps)}</section>',
    ]


def _map(name: str, words: str, lines: Sequence[Mapping[str, Any]]) -> str:
    rows = list(dict.fromkeys(layer for line in lines for layer in _named(line, name)))
    values = [[_named(line, name).get(layer) for line in lines] for layer in rows]
    title = name.replace("_", " ").capitalize()
    return shade_map(title, rows, [str(line["step"]) for line in lines], values, "step", note=words.capitalize() + ".")


def _named(line: Mapping[str, Any], name: str) -> dict[str, float]:
    """The layers of a figure."""
    return {key.removeprefix(f"{name}/"): value for key, value in line.items() if key.startswith(f"{name}/")}
