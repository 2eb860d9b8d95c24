"""A study of length extrapolation as a table, as files, and as a page with curves and heat maps."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from flashjax import drawing
from flashjax.drawing import STYLE, heat_map, line_chart, table
from flashjax.evaluation.length import by_bucket
from flashjax.evaluation.length_methods import FAMILIES
from flashjax.pages import write_page

Line = Mapping[str, Any]
PLAIN = ("name", "family", "multiple", "made_for", "length", "loss", "perplexity", "accuracy", "repeated_loss")
PLAIN += ("repeated_accuracy",)


def grouped(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each method, shortest first, without those of modules that are made for another length."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        rows = found.setdefault(line["name"], [])
        if line["multiple"] == line["made_for"]:
            rows.append(line)
    return {name: sorted(rows, key=lambda line: line["multiple"]) for name, rows in found.items()}


def cells(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): perplexity at each multiple, the short length as the longest's module reads it, and the tasks."""
    multiples = sorted({line["multiple"] for line in lines})
    longest = multiples[-1]
    heads = ["method", *(f"{multiple}x" for multiple in multiples)]
    if len(multiples) > 1:
        heads.append(f"{multiples[0]}x, made for {longest}x")
    heads += [f"accuracy {longest}x", f"repeated {longest}x", f"passkey {longest}x", "whole keys"]
    rows = []
    for name, found in grouped(lines).items():
        last = found[-1]
        row = [name, *(_perplexity(line["perplexity"]) for line in found)]
        if len(multiples) > 1:
            taxed = [x for x in lines if x["name"] == name and x["multiple"] != x["made_for"]]
            row.append(_perplexity(taxed[0]["perplexity"]) if taxed else "")
        row += [f"{100 * last['accuracy']:.1f} %", f"{100 * last['repeated_accuracy']:.1f} %"]
        rows.append([*row, *(f"{100 * _mean(last[key]):.0f} %" for key in ("passkey", "passkey_exact"))])
    return heads, rows


def text_table(lines: Sequence[Line]) -> str:
    """The table of `cells` for a terminal and for Markdown."""
    return drawing.text_table(*cells(lines))


def cautions(lines: Sequence[Line], chance: float) -> list[str]:
    """What cannot be concluded from these figures, as sentences.

    ``chance`` is the share of a key's tokens that guessing gets right. A model that does not copy at the length it was
    trained at cannot show which method lets it look further back.
    """
    words = ["One model and one seed for each line, and a few passages: gaps of a few percent may be noise."]
    first = next(iter(grouped(lines).values()))[0]
    gain = first["repeated_accuracy"] - first["accuracy"]
    if gain < 0.1:
        words.append(
            f"At {first['multiple']}x, text that came once before is predicted at {first['repeated_accuracy']:.0%}, "
            f"new text at {first['accuracy']:.0%}: this model hardly copies from its context even there. These figures "
            "say which methods keep the loss, not which make use of far text: a window forgets and does as well."
        )
    if _mean(first["passkey"]) < max(2 * chance, 0.3):
        words.append(
            f"It finds no keys at {first['multiple']}x either ({_mean(first['passkey']):.0%} of their tokens): the "
            "passkey maps say nothing about the methods."
        )
    return words


def write_files(directory: Path, lines: Sequence[Line], facts: Mapping[str, Any]) -> tuple[Path, Path]:
    """results.json (facts and lines as they are) and results.csv (a row a line, passkey by depth in columns)."""
    directory.mkdir(parents=True, exist_ok=True)
    whole, flat = directory / "results.json", directory / "results.csv"
    whole.write_text(json.dumps({**facts, "lines": list(lines)}, indent=1) + "\n", encoding="utf-8")
    depths = len(lines[0]["passkey"]) if lines else 0
    with flat.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*PLAIN, *(f"passkey_depth_{place}" for place in _places(depths))])
        for line in lines:
            writer.writerow([*(line[key] for key in PLAIN), *line["passkey"]])
    return whole, flat


def write_figure(
    path: str | Path,
    title: str,
    lines: Sequence[Line],
    training_length: int,
    notes: Sequence[str] = (),
    chance: float = 0,
) -> Path:
    """Writes the page: notes, table, perplexity and repeated text by length, loss by position, passkey heat maps.

    ``chance`` is the share of a key's tokens that guessing gets right.
    """
    found = grouped(lines)
    parts = [f"<h1>{escape(title)}</h1>", *(f'<p class="note">{escape(note)}</p>' for note in notes)]
    parts += ["<h2>Perplexity of the same last tokens</h2>", table(*cells(lines))]
    shown = _families(found)
    for key, words, note in (
        ("loss", "Loss", "nats a token of the same last tokens, by the tokens that the model reads"),
        ("repeated_accuracy", "Repeated text", "accuracy on the same tokens where their text came once before"),
    ):
        parts.append(f'<h2>{words} by length</h2><p class="note">{note}</p><section class="charts">')
        curves_of = [[line[key] for line in rows] for rows in found.values()]
        ceiling = _room(curves_of) if key == "loss" else (0.0, max(0.1, *(y for curve in curves_of for y in curve)))
        for heading, names in shown.items():
            curves = {name: [(line["length"], line[key]) for line in found[name]] for name in names}
            doublings = [line["length"] for line in found[names[0]]]
            parts.append(line_chart(heading, curves, "length", doublings=doublings, y_range=ceiling))
        parts.append("</section>")
    parts.append('<h2>Loss by position</h2><p class="note">at the longest, with the method made for it</p>')
    parts.append('<section class="charts">')
    size = max(1, training_length // 2)
    by_place = {
        name: [(x - size / 2, y) for x, y in by_bucket(rows[-1]["by_position"], size)] for name, rows in found.items()
    }
    ceiling = _room([[y for _, y in curve] for curve in by_place.values()])
    for heading, names in shown.items():
        parts.append(line_chart(heading, {name: by_place[name] for name in names}, "position", y_range=ceiling))
    parts.append("</section>")
    words = "Share of the key's tokens that are right, by its depth in the text (rows) and by length (columns)."
    words += f" Guessing finds {chance:.0%}." if chance else ""
    parts.append(f'<h2>Passkey</h2><p class="note">{words}</p><section class="maps">')
    for name, rows in found.items():
        depths = [f"{place} %" for place in _places(len(rows[0]["passkey"]))]
        values = [[line["passkey"][depth] for line in rows] for depth in range(len(depths))]
        parts.append(heat_map(name, depths, [f"{line['multiple']}x" for line in rows], values))
    parts.append("</section>")
    return write_page(path, title, STYLE, parts)


def _families(found: Mapping[str, Sequence[Line]]) -> dict[str, list[str]]:
    """Names by what is changed, each with the unchanged model first, to be seen against it."""
    plain = [name for name, rows in found.items() if rows[0]["family"] == "as it is"]
    groups = {}
    for family, words in FAMILIES.items():
        names = [name for name, rows in found.items() if rows[0]["family"] == family]
        if names and names != plain:
            groups[words[0].upper() + words[1:]] = plain + names
    return groups or {"Nothing is changed": plain}


def _room(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """A range in which methods that work can be told apart: what explodes after its start is drawn at the rim."""
    values, start = [y for curve in curves for y in curve if math.isfinite(y)], max(curve[0] for curve in curves)
    return min(values), max(min(max(values), 2 * start), start + 0.1)


def _places(depths: int) -> list[int]:
    return [round(100 * depth / max(depths - 1, 1)) for depth in range(depths)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}" if value < 1e6 else f"{value:.0e}"
