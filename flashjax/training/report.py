"""The page at the end of a run: curves, predictions, texts and a summary in one file that needs nothing else."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flashjax.pages import write_page

Prediction = tuple[np.ndarray, str, Sequence[tuple[str, float]]]
"""Image uint8 [H, W, 1 or 3]; its true name; (name, probability) of the likeliest classes, falling."""

Sample = tuple[str, str]
"""A given text, and what the model made of it."""


@dataclass(frozen=True)
class Panel:
    """One chart: its title and, by the name of the metric, the words for each curve."""

    title: str
    curves: Mapping[str, str]


PANELS = (
    Panel("Loss", {"loss": "train", "eval_loss": "held out"}),
    Panel("Accuracy", {"accuracy": "train", "eval_top1": "held out", "eval_accuracy": "held out"}),
    Panel("Bits per byte", {"eval_bits_per_byte": "held out"}),
    Panel("Learning rate", {"learning_rate": "last"}),
)
"""Charts in order; one of whose metrics none was logged is left out."""


def write_report(
    path: str | Path,
    title: str,
    metrics: Sequence[Mapping[str, Any]],
    predictions: Sequence[Prediction],
    summary: Mapping[str, str],
    samples: Sequence[Sample] = (),
) -> Path:
    """Writes the page to `path`, replacing an older one whole, and returns where it is.

    `metrics` are the objects of metrics.jsonl, each with `step`; values that are no finite numbers are passed over,
    and of several at one step the last counts. `summary` is shown as a table, in its order.
    """
    charts = [chart for panel in PANELS if (chart := _chart(panel, metrics))]
    parts = [f"<h1>{escape(title)}</h1>", _summary(summary)]
    if charts:
        parts.append(f'<section class="charts">{"".join(charts)}</section>')
    if predictions:
        parts.append(_predictions(predictions))
    if samples:
        parts.append(_samples(samples))
    return write_page(path, title, _STYLE, parts)


def _summary(summary: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in summary.items())
    return f"<table>{rows}</table>" if rows else ""


# Charts: a drawing of WIDTH x HEIGHT units that scales with the page; the plot lies inside the margins.
WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 8, 12, 26
MOST_POINTS = 400  # of one curve; more than the eye can tell apart at this width


def _chart(panel: Panel, metrics: Sequence[Mapping[str, Any]]) -> str:
    curves = {words: points for name, words in panel.curves.items() if (points := _points(metrics, name))}
    if not curves:
        return ""
    everything = [point for points in curves.values() for point in points]
    steps, values = zip(*everything, strict=True)
    x_ticks, y_ticks = _ticks(0, max(steps), 6), _ticks(min(values), max(values), 5)
    x_end = max(steps) or 1

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / x_end

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    grid = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{_label(t, y_ticks)}</text>'
        for t in y_ticks
    ]
    grid += [
        f'<text x="{x(t):.1f}" y="{HEIGHT - 7}" text-anchor="middle">{_label(t, x_ticks)}</text>'
        for t in x_ticks
        if t <= x_end
    ]
    drawn, legend = [], []
    for number, (words, points) in enumerate(curves.items(), start=1):
        if len(points) > 1:
            path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in _thinned(points))
            drawn.append(f'<polyline class="c{number}" points="{path}"/>')
        if len(points) <= 60:  # few enough to point at
            drawn += [
                f'<circle class="c{number}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.2">'
                f"<title>step {step}: {value:.4g}</title></circle>"
                for step, value in points
            ]
        legend.append(f'<span class="c{number}">{escape(words)} <b>{points[-1][1]:.4g}</b></span>')
    return (
        f'<figure><figcaption><h2>{escape(panel.title)}</h2><p class="legend">{"".join(legend)}</p></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(panel.title)} by step">'
        f'<g class="grid">{"".join(grid)}</g>{"".join(drawn)}</svg></figure>'
    )


def _points(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    found = {
        line["step"]: float(line[name])
        for line in metrics
        if isinstance(line.get(name), int | float) and math.isfinite(line[name])
    }
    return sorted(found.items())


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS points, each the mean of its neighbours, the last one kept as it is."""
    size = math.ceil(len(points) / MOST_POINTS)
    means = [
        (sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group))
        for group in (points[i : i + size] for i in range(0, len(points), size))
    ]
    return means if size == 1 else [*means, points[-1]]


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count` of them, the first at or below `low` and the last at or above `high`."""
    if high == low:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _label(tick: float, ticks: Sequence[float]) -> str:
    """As many digits as tell neighbours apart; powers of ten for what is tiny, k for thousands of steps."""
    step = ticks[1] - ticks[0]
    if max(map(abs, ticks)) < 0.01:
        return "0" if abs(tick) < step / 2 else f"{tick:.1e}".replace("e-0", "e-").replace(".0e", "e")
    if step >= 1000:
        return f"{tick / 1000:g}k" if tick else "0"
    return f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _predictions(predictions: Sequence[Prediction]) -> str:
    right = sum(ranked[0][0] == truth for _, truth, ranked in predictions)
    cards = "".join(map(_card, predictions))
    return (
        f'<h2>Predictions</h2><p class="note">{right} of these {len(predictions)} are right; '
        f'each bar is a probability.</p><section class="cards">{cards}</section>'
    )


def _samples(samples: Sequence[Sample]) -> str:
    texts = "".join(
        f'<figure class="text"><p>{escape(given)}</p><p class="made">{escape(made)}</p></figure>'
        for given, made in samples
    )
    return f'<h2>Text</h2><p class="note">What was given, and below it what the model made of it.</p>{texts}'


def _card(prediction: Prediction) -> str:
    image, truth, ranked = prediction
    right = ranked[0][0] == truth
    bars = "".join(
        f'<li{" class=true" if name == truth else ""}><span class="bar" style="width:{100 * probability:.1f}%"></span>'
        f'<span class="name">{escape(name)}</span><span class="value">{100 * probability:.1f} %</span></li>'
        for name, probability in ranked
    )
    verdict = "" if right else f'<span class="wrong">wrong: {escape(ranked[0][0])}</span>'
    small = " class=small" if min(image.shape[:2]) < 96 else ""
    return (
        f'<article class="{"right" if right else "missed"}"><img{small} alt="{escape(truth)}" src="{_png(image)}">'
        f"<p><b>{escape(truth)}</b>{verdict}</p><ol>{bars}</ol></article>"
    )


def _png(image: np.ndarray) -> str:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"a prediction's image must be uint8 [H, W, 1 or 3]; it is {image.dtype} {image.shape}")
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_STYLE = """
:root { --page: #fafaf8; --card: #fff; --ink: #1d2126; --muted: #68707a; --line: #e3e4e0;
  --c1: #2f6bd8; --c2: #d9660b; --bar: #dbe6fa; --true: #cdead3; --bad: #c9252d; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --card: #1d2126; --ink: #e7e9ec; --muted: #97a0ab; --line: #31363d;
    --c1: #77a6f7; --c2: #f2a05a; --bar: #2b3c5c; --true: #24523a; --bad: #ff7b7b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 26px; font-weight: 650; margin: 0 0 18px; letter-spacing: -.01em; }
h2 { font-size: 16px; font-weight: 650; margin: 0; }
main > h2 { font-size: 19px; margin: 36px 0 2px; }
.note { color: var(--muted); margin: 0 0 14px; }
table { border-collapse: collapse; margin: 0 0 28px; max-width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 5px 28px 5px 0; border-bottom: 1px solid var(--line); }
th { font-weight: 400; color: var(--muted); white-space: nowrap; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 16px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px 6px; }
figcaption { display: flex; justify-content: space-between; align-items: baseline; gap: 12px; }
.legend { margin: 0; display: flex; gap: 14px; color: var(--muted); font-size: 13px; }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.legend span::before { content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 50%;
  margin-right: 5px; }
.legend .c1::before { background: var(--c1); } .legend .c2::before { background: var(--c2); }
figure.text { margin-bottom: 14px; font-family: ui-serif, Georgia, serif; }
figure.text p { margin: 0 0 8px; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--muted); }
figure.text p.made { color: var(--ink); }
svg { display: block; width: 100%; height: auto; margin-top: 6px; }
svg text { font-size: 12px; fill: var(--muted); }
svg line { stroke: var(--line); }
polyline { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
polyline.c1 { stroke: var(--c1); } polyline.c2 { stroke: var(--c2); }
circle.c1 { fill: var(--c1); } circle.c2 { fill: var(--c2); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr)); gap: 14px; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
article.missed { border-color: var(--bad); box-shadow: 0 0 0 1px var(--bad); }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #0001; }
img.small { image-rendering: pixelated; }
article p { margin: 8px 10px 4px; display: flex; justify-content: space-between; gap: 8px; }
.wrong { color: var(--bad); font-size: 13px; }
ol { list-style: none; margin: 0 10px 10px; padding: 0; font-size: 12.5px; }
li { position: relative; display: flex; justify-content: space-between; gap: 6px; padding: 1px 6px; margin-top: 3px;
  border-radius: 3px; overflow: hidden; }
.bar { position: absolute; inset: 0 auto 0 0; background: var(--bar); border-radius: 3px; }
li.true .bar { background: var(--true); }
.name, .value { position: relative; white-space: nowrap; }
.name { overflow: hidden; text-overflow: ellipsis; }
.value { color: var(--muted); font-variant-numeric: tabular-nums; }
@media print { article, figure { break-inside: avoid; } }
"""
