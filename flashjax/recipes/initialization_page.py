"""The page of a study of initialization: what was predicted, what was measured, and what the claims come to."""

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from flashjax.drawing import STYLE, heat_map, line_chart, power, table, text_table
from flashjax.pages import write_page
from flashjax.recipes.initialization import Part, predicted
from flashjax.recipes.optimum import Optimum, optimum
from flashjax.studies.cells import Line

Lines = Mapping[Part, Sequence[Line]]
Curves = dict[str, list[tuple[float, float]]]
DIVERGED = "diverged: its loss after the last step is no finite number, or above the first"


def told(part: Part, line: Line) -> str:
    """A cell for the terminal."""
    hidden = ("settings", "curve", "looks", "stream", "logits")
    return f"{part}: {', '.join(f'{name} {line[name]}' for name in line if name not in hidden)}"


def trains(line: Line) -> bool:
    """Whether a training ended below where it began."""
    return line["loss"] is not None and line["first"] is not None and line["loss"] < line["first"]


def mean_loss(lines: Sequence[Line]) -> float | None:
    """Held-out loss over seeds; None where one diverged."""
    return statistics.fmean(line["loss"] for line in lines) if lines and all(map(trains, lines)) else None


def where(lines: Sequence[Line], **values: Any) -> list[Line]:
    """The lines that have these values."""
    return [line for line in lines if all(line[name] == value for name, value in values.items())]


def axis(lines: Sequence[Line], name: str) -> list[Any]:
    """The values of an axis, in the order of the log's cells."""
    return list(dict.fromkeys(line[name] for line in lines))


def of_width(lines: Sequence[Line], preset: str, width: int) -> list[Line]:
    """The lines of a model; of muP at its base, the narrowest, those of "standard", which it is there."""
    return where(lines, width=width, preset="standard" if width == min(axis(lines, "width")) else preset)


def optima(lines: Sequence[Line], preset: str) -> dict[int, list[Optimum]]:
    """The best rates by width, one for each seed of which any training has a loss."""
    found: dict[int, list[Optimum]] = {}
    for width in sorted(axis(lines, "width")):
        own = [line for line in of_width(lines, preset, width) if trains(line)]
        found[width] = [
            optimum([(line["rate"], line["loss"]) for line in where(own, seed=seed)]) for seed in axis(own, "seed")
        ]
    return {width: best for width, best in found.items() if best}


def drift(lines: Sequence[Line], preset: str) -> float:
    """Octaves from the best rate of the narrowest model to that of the widest, of the seeds that both have."""
    best = list(optima(lines, preset).values())
    shared = min(map(len, best))
    best = [of[:shared] for of in best]
    return statistics.fmean(wide.rate - narrow.rate for narrow, wide in zip(best[0], best[-1], strict=True))


def verdicts(found: Lines) -> list[str]:
    """What each claim comes to, a sentence each."""
    said: list[str] = []
    if lines := found.get("transfer"):
        for preset in axis(lines, "preset"):
            best = optima(lines, preset)
            rates = ", ".join(f"{w}: 2^{statistics.fmean(o.rate for o in of):.2f}" for w, of in best.items())
            edge = " (one or more lie on the grid's edge)" if any(o.edge for of in best.values() for o in of) else ""
            said.append(f"Best rate by width, {preset}: {rates}{edge}; drift {drift(lines, preset):+.2f} octaves.")
    if lines := found.get("attention"):
        for arm in axis(lines, "arm"):
            rates = axis(lines, "rate")
            means = {rate: mean_loss(where(lines, arm=arm, rate=rate)) for rate in rates}
            good = {rate: loss for rate, loss in means.items() if loss is not None}
            bad = [rate for rate in rates if rate not in good]
            best = min(good, key=good.__getitem__) if good else None
            said.append(
                f"Logits {ARMS[arm]}: "
                + (f"best held-out loss {good[best]:.3f} at 2^{best}" if best is not None else "never trains")
                + (f"; diverges at {', '.join(f'2^{rate}' for rate in bad)}." if bad else "; diverges nowhere here.")
            )
    if lines := found.get("coordinates"):
        said.append(_growth(lines))
    if lines := found.get("map"):
        for name in axis(lines, "arrangement"):
            own = where(lines, arrangement=name)
            said.append(f"{name}: {sum(map(trains, own))} of {len(own)} cells of the map end below where they began.")
    return said


ARMS = {"sqrt_dim": "divided by sqrt(d)", "none": "not divided", "t5": "not divided, queries drawn smaller (T5)"}
_SHORT = {"sqrt_dim": "1 / √d", "none": "1", "t5": "T5"}
"""What fits beside a heat map."""


def _growth(lines: Sequence[Line]) -> str:
    """How the change of the logits and of the last stream grows with the width."""
    words = []
    for preset in axis(lines, "preset"):
        for what in ("stream", "logits"):
            low, high = (_changes(lines, preset, what)[end] for end in (0, -1))
            words.append(f"{preset} {what} x{high[1] / low[1]:.2f}")
    widths = axis(lines, "width")
    return f"Change after the last of the steps, width {widths[-1]} over {widths[0]}: {', '.join(words)}."


def _changes(lines: Sequence[Line], preset: str, what: str, t: int = -1) -> list[tuple[float, float]]:
    """(width, mean over seeds) of the change after step t of the logits, or of what leaves the last block."""
    points = []
    for width in sorted(axis(lines, "width")):
        own = of_width(lines, preset, width)
        values = [line[what][t] if what == "logits" else line[what][t][-1] for line in own]
        points.append((float(width), statistics.fmean(math.inf if v is None else v for v in values)))
    return points


def write(path: str | Path, found: Lines) -> Path:
    """The page."""
    parts = ["<h1>Initialization, parametrization, normalization</h1>"]
    parts += [f'<p class="note">{escape(words)}</p>' for words in verdicts(found)]
    drawers = {
        "transfer": _transfer, "coordinates": _coordinates, "attention": _attention, "depth": _depth, "map": _map
    }  # fmt: skip
    for part, drawer in drawers.items():
        if part in found:
            parts += drawer(found[part])  # type: ignore[index]
    return write_page(path, "Initialization", STYLE, parts)


def _section(title: str, note: str, drawn: Sequence[str]) -> list[str]:
    return [
        f"<h2>{escape(title)}</h2>",
        f'<p class="note">{escape(note)}</p>',
        f'<section class="charts">{"".join(drawn)}</section>',
    ]


def _transfer(lines: Sequence[Line]) -> list[str]:
    drawn, rows = [], []
    rates = axis(lines, "rate")
    for preset in axis(lines, "preset"):
        curves: Curves = {}
        for width in sorted(axis(lines, "width")):
            own = of_width(lines, preset, width)
            losses = [(2.0**rate, mean_loss(where(own, rate=rate))) for rate in rates]
            curves[f"width {width}"] = [(rate, loss) for rate, loss in losses if loss is not None]
        low = min(loss for points in curves.values() for _, loss in points)
        high = max(loss for points in curves.values() for _, loss in points)
        drawn.append(
            line_chart(
                f"Loss by learning rate, {preset}",
                {name: points for name, points in curves.items() if points},
                "learning rate",
                doublings=[2.0**rate for rate in rates],
                y_range=(low, min(high, low + 1.5)),
            )
        )
        rows += [[preset, str(width), *_optimum_words(best)] for width, best in optima(lines, preset).items()]
    heads = ["parametrization", "width", "best log2 rate, by seed", "loss there"]
    note = (
        "Held-out loss after the same steps, means over seeds; what diverged is not shown. "
        "The best rate is the vertex of a parabola through the best point and its neighbours."
    )
    return [*_section("muP: does the best rate of a narrow model serve a wide one?", note, drawn), table(heads, rows)]


def _optimum_words(best: Sequence[Optimum]) -> list[str]:
    return [
        ", ".join(f"{o.rate:.2f}{' (edge)' if o.edge else ''}" for o in best),
        ", ".join(f"{o.loss:.3f}" for o in best),
    ]


def _coordinates(lines: Sequence[Line]) -> list[str]:
    drawn = []
    for what, words in (("stream", "what leaves the last block"), ("logits", "the logits")):
        for preset in axis(lines, "preset"):
            steps = len(lines[0]["logits"])
            curves = {
                f"t = {t + 1}": [(w, math.log2(y)) for w, y in _changes(lines, preset, what, t) if 0 < y < math.inf]
                for t in range(steps)
            }
            widths = [float(w) for w in axis(lines, "width")]
            drawn.append(line_chart(f"Change of {words}, {preset}", curves, "width", doublings=widths, note="log2"))
    note = (
        "Mean |activation after t steps - before| of the same tokens, by width, at one learning rate: flat under muP."
    )
    return _section("muP: coordinate check", note, drawn)


def _attention(lines: Sequence[Line]) -> list[str]:
    rates, arms = axis(lines, "rate"), axis(lines, "arm")
    values = [[mean_loss(where(lines, arm=arm, rate=rate)) for rate in rates] for arm in arms]
    return _section(
        "The scale of attention's logits",
        f"Held-out loss by learning rate (2^x), means over seeds; empty: a seed {DIVERGED}.",
        [_losses("Loss", [_SHORT[arm] for arm in arms], rates, values)],
    )


def _losses(title: str, rows: Sequence[str], rates: Sequence[int], values: Sequence[Sequence[float | None]]) -> str:
    known = [v for row in values for v in row if v is not None] or [0.0]
    low, high = min(known), max(known)
    return heat_map(title, rows, [power(2.0**rate) for rate in rates], values, value_range=(high, low))


def _depth(lines: Sequence[Line]) -> list[str]:
    drawn = []
    for what, words in (
        ("moment", "Second moment of the stream"),
        ("kept", "What is left of what entered"),
        ("backward", "Second moment of the gradient"),
    ):
        for name in axis(lines, "arrangement"):
            curves: Curves = {}
            for line in where(lines, arrangement=name):
                seen, foreseen = signals(line)
                curves[f"{line['depth']} blocks"] = list(enumerate(map(_log2, seen[what]), start=1))
                if what in foreseen and line["depth"] == max(axis(lines, "depth")):
                    curves["predicted"] = list(enumerate(map(_log2, foreseen[what]), start=1))
            drawn.append(line_chart(f"{words}, {name}", curves, "block", note="log2"))
    note = "At step 0, embeddings of unit variance. Predictions are from the moments of the branches alone."
    return _section("Signals by depth", note, drawn)


def signals(line: Line, look: int = 0) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """(measured, predicted) by block: "moment", "kept", and measured alone "backward"."""
    seen = line["looks"][look]
    measured = {
        "moment": seen["activation_moment"]["layers"],
        "kept": seen["kept"]["layers"],
        "backward": seen["backward_moment"]["layers"],
    }
    branch, entering = seen["branch"], seen["entering"]["layers"][0]
    return measured, predicted(line["arrangement"], entering, branch["attn"], branch["mlp"])


def _log2(value: float | None) -> float:
    return math.log2(max(abs(value), 1e-30)) if value is not None else math.log2(1e30)


def _map(lines: Sequence[Line]) -> list[str]:
    drawn, rates = [], axis(lines, "rate")
    for name in axis(lines, "arrangement"):
        own = where(lines, arrangement=name)
        rows = [(depth, width) for depth in axis(own, "depth") for width in axis(own, "width")]
        values = [[mean_loss(where(own, depth=d, width=w, rate=rate)) for rate in rates] for d, w in rows]
        drawn.append(_losses(f"{name}-norm", [f"{d} x {w}" for d, w in rows], rates, values))
    note = f"Held-out loss by depth x width and learning rate; empty: {DIVERGED}."
    return _section("What trains", note, drawn)


LOOKED_AT = ("activation_moment", "backward_moment", "logit_rms", "gradient_rms", "update_ratio")


def _looked(lines: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, dict[int, float]]]:
    """{figure: {layer: {step: number}}}."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for step, line in lines.items():
        for key, value in line.items():
            figure, layer = key.split("/", 1)
            found.setdefault(figure, {}).setdefault(layer, {})[step] = value
    return {figure: found[figure] for figure in LOOKED_AT if figure in found}


def look_text(lines: Mapping[int, Mapping[str, float]]) -> str:
    """Looks at one model, by step, as tables for a terminal."""
    steps = list(lines)
    return "\n\n".join(
        text_table(
            [figure, *(f"step {t}" for t in steps)],
            [[layer, *(f"{v[t]:.4g}" for t in steps)] for layer, v in of.items()],
        )
        for figure, of in _looked(lines).items()
    )


def write_look(path: str | Path, name: str, lines: Mapping[int, Mapping[str, float]]) -> Path:
    """Looks at one model as a page: a curve of layers for each figure and step."""
    drawn = []
    for figure, layers in _looked(lines).items():
        curves = {f"step {t}": [(i, _log2(v[t])) for i, v in enumerate(layers.values(), start=1)] for t in lines}
        names = f"log2; layers: {', '.join(layers)}"
        drawn.append(line_chart(figure.replace("_", " ").capitalize(), curves, "layer", note=names))
    section = f'<section class="charts">{"".join(drawn)}</section>'
    return write_page(path, name, STYLE, [f"<h1>{escape(name)}: signals by layer</h1>", section])
