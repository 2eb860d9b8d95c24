"""The page at the end of a run: curves, predictions, texts and a summary in one file that needs nothing else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from flashjax import shades
from flashjax.drawing import STYLE, line_chart
from flashjax.pages import png_source, write_page
from flashjax.training import watch_page

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
    watched: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes the page to `path`, replacing an older one whole, and returns where it is.

    `metrics` are the objects of metrics.jsonl, each with `step`; values that are no finite numbers are passed over,
    and of several at one step the last counts. `summary` is shown as a table, in its order.
    `watched` are the objects of watch.jsonl.
    """
    charts = [chart for panel in PANELS if (chart := _chart(panel, metrics))]
    parts = [f"<h1>{escape(title)}</h1>", _summary(summary)]
    if charts:
        parts.append(f'<section class="charts">{"".join(charts)}</section>')
    parts += watch_page.pictures(watched)
    if predictions:
        parts.append(_predictions(predictions))
    if samples:
        parts.append(_samples(samples))
    return write_page(path, title, _STYLE, parts)


def _summary(summary: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in summary.items())
    return f"<table>{rows}</table>" if rows else ""


def _chart(panel: Panel, metrics: Sequence[Mapping[str, Any]]) -> str:
    curves = {words: points for name, words in panel.curves.items() if (points := _points(metrics, name))}
    return line_chart(panel.title, curves, "step") if curves else ""


def _points(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    found = {
        line["step"]: float(line[name])
        for line in metrics
        if isinstance(line.get(name), int | float) and math.isfinite(line[name])
    }
    return sorted(found.items())


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
    return png_source(image)


_STYLE = f"""{STYLE}{shades.STYLE}
:root {{ --bar: #dbe6fa; --true: #cdead3; --bad: #c9252d; }}
@media (prefers-color-scheme: dark) {{ :root {{ --bar: #2b3c5c; --true: #24523a; --bad: #ff7b7b; }} }}
figure.text {{ margin-bottom: 14px; font-family: ui-serif, Georgia, serif; }}
figure.text p {{ margin: 0 0 8px; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--muted); }}
figure.text p.made {{ color: var(--ink); }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(45%, 168px), 1fr)); gap: 14px; }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }}
article.missed {{ border-color: var(--bad); box-shadow: 0 0 0 1px var(--bad); }}
img {{ display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #0001; }}
img.small {{ image-rendering: pixelated; }}
article p {{ margin: 8px 10px 4px; display: flex; justify-content: space-between; gap: 8px; }}
.wrong {{ color: var(--bad); font-size: 13px; }}
ol {{ list-style: none; margin: 0 10px 10px; padding: 0; font-size: 12.5px; }}
li {{ position: relative; display: flex; justify-content: space-between; gap: 6px; padding: 1px 6px; margin-top: 3px;
  border-radius: 3px; overflow: hidden; }}
.bar {{ position: absolute; inset: 0 auto 0 0; background: var(--bar); border-radius: 3px; }}
li.true .bar {{ background: var(--true); }}
.name, .value {{ position: relative; white-space: nowrap; }}
.name {{ overflow: hidden; text-overflow: ellipsis; }}
.value {{ color: var(--muted); font-variant-numeric: tabular-nums; }}
@media print {{ article {{ break-inside: avoid; }} }}
"""
