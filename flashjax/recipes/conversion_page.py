"""The page of the study of Performer: what becomes of a model that changes over, and the errors of random features."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from flashjax.drawing import STYLE, line_chart, table
from flashjax.pages import write_page
from flashjax.recipes.conversion import SOFTMAX


def write(where: Path, errors: list[dict[str, Any]], found: Mapping[str, dict[str, Any]], notes: list[str]) -> Path:
    """Table and curve of the conversion, table and curves of the errors."""
    features = sorted({line["features"] for line in errors})
    kinds = {f"{line['kernel']}, {line['rows']}": {} for line in errors}
    for line in errors:
        kinds[f"{line['kernel']}, {line['rows']}"][line["features"]] = line["error"]
    curves = {words: [tuple(point) for point in model["curve"]] for words, model in found.items()}
    worst = max(model["curve"][0][1] for model in found.values())
    least = min(y for points in curves.values() for _, y in points)
    plain = [(words, each) for words, each in kinds.items() if not words.startswith("trig")]
    parts = [
        "<h1>Performer: random features for softmax attention</h1>",
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        "<h2>A softmax model changes over</h2>",
        table(*conversions(found)),
        '<section class="charts">',
        line_chart("Held-out loss by steps of tuning", curves, "step", y_range=(least, worst)),
        "</section><h2>Error of attention by the number of rows</h2>",
        table(
            ["|o - exact| / |exact|", *map(str, features)],
            [[words, *(f"{each[m]:.3f}" for m in features)] for words, each in kinds.items()],
        ),
        '<section class="charts">',
        line_chart("Positive features", {w: sorted(e.items()) for w, e in plain}, "rows", doublings=features),
        line_chart(
            "And trigonometric ones",
            {w: sorted(e.items()) for w, e in kinds.items() if not w.startswith("hyperbolic")},
            "rows",
            doublings=features,
            y_range=(0, 1.5),
        ),
        "</section>",
    ]
    return write_page(where / "figure.html", "Performer", STYLE, parts)


def conversions(found: Mapping[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): loss as the weights came, and after tuning."""
    steps = found[SOFTMAX]["curve"][-1][0]
    rows = [[words, *(f"{model['curve'][i][1]:.4f}" for i in (0, -1))] for words, model in found.items()]
    return ["held-out loss, nats a token", "at once", f"after {steps} steps"], rows
