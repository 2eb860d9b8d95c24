"""Drawings of the pages: SVG of precision against recall, bars, boxes on images. Numbers in, markup out."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from flashjax.drawing import BASE

Array = np.ndarray

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 38
MOST_POINTS = 600


@dataclass(frozen=True)
class Line:
    """A curve: its words in the legend, class of the style sheet, points in 0 .. 1, and whether it goes in steps."""

    words: str
    style: str
    x: Array
    y: Array
    dots: bool = False
    joined: bool = True


def unit_chart(
    lines: Sequence[Line], x_name: str, y_name: str, title: str, fills: str = "", small: bool = False
) -> str:
    """A chart whose axes both run from 0 to 1; ``fills`` is drawn below the lines, in the chart's own units."""
    ticks = (0, 0.5, 1) if small else (0, 0.2, 0.4, 0.6, 0.8, 1)
    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(t):.1f}" y2="{_y(t):.1f}"/>'
        f'<text x="{LEFT - 7}" y="{_y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        f'<text x="{_x(t):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{t:g}</text>'
        for t in ticks
    )
    names = (
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_name)}</text>'
        f'<text transform="translate(11 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>"
    )
    drawn = "".join(map(_drawn, lines))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<g class="grid">{grid}{names}</g>{fills}{drawn}</svg>'
    )


def area_below(x: Array, y: Array, style: str) -> str:
    """The area below a step curve, y[i] from x[i] to x[i + 1]."""
    if not len(y):
        return ""
    path = [f"{_x(x[0]):.1f},{_y(0):.1f}"]
    for i in range(len(y)):
        path += [f"{_x(x[i]):.1f},{_y(y[i]):.1f}", f"{_x(x[i + 1]):.1f},{_y(y[i]):.1f}"]
    path.append(f"{_x(x[len(y)]):.1f},{_y(0):.1f}")
    return f'<polygon class="{style}" points="{" ".join(path)}"/>'


def _x(value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * value


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value


def _drawn(line: Line) -> str:
    x, y = thinned(np.asarray(line.x, float), np.asarray(line.y, float))
    points = [f"{_x(a):.1f},{_y(b):.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    parts = []
    if line.joined and len(points) > 1:
        parts.append(f'<polyline class="{line.style}" points="{" ".join(points)}"/>')
    if line.dots:
        parts += [
            f'<circle class="{line.style}" cx="{_x(a):.1f}" cy="{_y(b):.1f}" r="3">'
            f"<title>{escape(line.words)}: {a:.4f}, {b:.4f}</title></circle>"
            for a, b in zip(x.tolist(), y.tolist(), strict=True)
        ]
    return "".join(parts)


def thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """At most MOST_POINTS of the points; the ends and the extremes of each stretch stay."""
    if len(x) <= MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MOST_POINTS // 2 + 1).astype(int)
    kept = {0, len(x) - 1}
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        kept |= {first + int(np.argmax(y[first:last])), first + int(np.argmin(y[first:last]))}
    chosen = sorted(kept)
    return x[chosen], y[chosen]


def legend(lines: Sequence[Line]) -> str:
    """The words of the lines, each beside its colour."""
    return f'<p class="legend">{"".join(f"<span class={line.style}>{escape(line.words)}</span>" for line in lines)}</p>'


def bars(rows: Sequence[tuple[str, str, float, str]], most: float) -> str:
    """Horizontal bars: (name, words below it, length, number at the end), the longest of length ``most``."""
    lines = []
    for name, words, length, number in rows:
        share = 100 * max(length, 0) / most if most > 0 else 0
        lines.append(
            f'<tr><th>{escape(name)}<small>{escape(words)}</small></th><td class="barcell">'
            f'<span class="bar" style="width:{share:.1f}%"></span></td><td class="number">{escape(number)}</td></tr>'
        )
    return f'<table class="bars">{"".join(lines)}</table>'


@dataclass(frozen=True)
class Box:
    """A box to draw: x, y, width, height; its words, which show when one points at it; class of the style sheet; and
    what is written at its corner."""

    box: tuple[float, float, float, float]
    words: str
    style: str
    tag: str = ""


def picture(size: tuple[int, int], boxes: Sequence[Box], image: str | None = None, label: str = "") -> str:
    """Boxes on an image of (height, width), or on an empty canvas; what is written lies above all boxes."""
    height, width = size
    unit = max(height, width) / 320  # so that lines and words are of one size on the page
    font = 10.5 * unit
    shown = f'<image href="{image}" width="{width}" height="{height}"/>' if image else ""
    drawn, tags = [], []
    for one in boxes:
        x, y, w, h = one.box
        drawn.append(
            f'<g class="{one.style}"><rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" '
            f'stroke-width="{1.6 * unit:.2f}"/><title>{escape(one.words)}</title></g>'
        )
        if one.tag:
            left = max(min(x + 2 * unit, width - 0.62 * font * len(one.tag)), 2 * unit)
            base = min(y - 3 * unit if y > 1.2 * font else max(y, 0) + 1.1 * font, height - 2 * unit)
            tags.append(
                f'<g class="{one.style}"><text x="{left:.1f}" y="{base:.1f}" '
                f'style="font-size:{font:.2f}px;stroke-width:{2.6 * unit:.2f}">{escape(one.tag)}'
                f"<title>{escape(one.words)}</title></text></g>"
            )
    return (
        f'<svg class="picture" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f'<rect class="canvas" width="{width}" height="{height}"/>{shown}{"".join(drawn + tags)}</svg>'
    )


def embedded(path: Path, most: int = 480) -> str:
    """An image file as a data address, scaled down to ``most`` pixels on its longer side."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((most, most))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


STYLE = (
    BASE
    + """
:root { --bar: #8fb2ea;
  --c1: #2f6bd8; --c2: #d9660b; --c3: #1d8a55; --c4: #8a4fbf; --c5: #4c5561; --good: #1d8a55; --bad: #c9252d;
  --warn: #c76a00; --fill: #2f6bd822; --halo: #ffffffd0; --canvas: #eceeeb; }
@media (prefers-color-scheme: dark) {
  :root { --bar: #3f6195;
    --c1: #77a6f7; --c2: #f2a05a; --c3: #5cc491; --c4: #bd92e6; --c5: #a9b2bd; --good: #5cc491; --bad: #ff7b7b;
    --warn: #f2a05a; --fill: #77a6f726; --halo: #15181cd0; --canvas: #262b31; } }
h2 { font-size: 19px; font-weight: 650; margin: 40px 0 2px; }
h3 { font-size: 15px; font-weight: 650; margin: 0; }
p.note { color: var(--muted); margin: 0 0 14px; max-width: 80ch; }
table { border-collapse: collapse; margin: 0 0 12px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 22px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
.stats { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 0 48px;
  align-items: start; }
.stats table { width: 100%; }
.stats td.number { font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 16px; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 14px; }
.small svg text { font-size: 17px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px 8px; }
figure.picture { padding: 0 0 8px; overflow: hidden; }
figure.picture figcaption { padding: 8px 12px 0; }
figcaption { display: flex; justify-content: space-between; align-items: baseline; gap: 12px; flex-wrap: wrap; }
figcaption b { font-variant-numeric: tabular-nums; }
.legend { margin: 0; display: flex; flex-wrap: wrap; gap: 2px 14px; color: var(--muted); font-size: 13px; }
.legend span::before { content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 50%;
  margin-right: 5px; background: currentColor; }
.legend .c1::before, .legend .t0::before { background: var(--c1); } .legend .c2::before { background: var(--c2); }
.legend .c3::before { background: var(--c3); } .legend .c4::before { background: var(--c4); }
.legend .c5::before { background: var(--c5); }
svg { width: 100%; height: auto; margin-top: 6px; }
svg.picture { margin: 0; max-height: 340px; background: var(--canvas); }
svg .grid line { stroke: var(--line); }
polyline { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
polyline.c1 { stroke: var(--c1); } polyline.c2 { stroke: var(--c2); } polyline.c3 { stroke: var(--c3); }
polyline.c4 { stroke: var(--c4); } polyline.c5 { stroke: var(--c5); stroke-dasharray: 4 3; }
circle.c1 { fill: var(--c1); } circle.c2 { fill: var(--c2); } circle.c3 { fill: var(--c3); }
circle.c4 { fill: var(--c4); } circle.c5 { fill: var(--c5); }
polygon.fill { fill: var(--fill); }
table.bars { width: 100%; margin: 8px 0 0; }
table.bars th { color: var(--ink); padding-right: 14px; white-space: nowrap; }
table.bars th small { display: block; color: var(--muted); font-size: 12px; }
table.bars tr:last-child > * { border-bottom: 0; }
.barcell { width: 60%; vertical-align: middle; padding-right: 10px; }
.barcell .bar { display: block; height: 14px; border-radius: 3px; background: var(--bar); min-width: 1px; }
td.number { padding-right: 0; }
table.classes td, table.classes th { padding: 3px 16px 3px 0; }
table.confusion td { text-align: right; padding: 3px 6px; border: 1px solid var(--page); font-size: 12.5px;
  min-width: 34px; }
table.confusion th { font-size: 12.5px; padding: 3px 6px; border: 0; white-space: nowrap; }
table.confusion thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
.canvas { fill: var(--canvas); }
svg.picture rect { fill: none; } svg.picture rect.canvas { fill: var(--canvas); }
svg.picture text { paint-order: stroke; stroke: var(--halo); font-weight: 600; }
.truth rect { stroke: var(--good); } .truth text { fill: var(--good); }
.missed rect { stroke: var(--bad); stroke-dasharray: 6 4; } .missed text { fill: var(--bad); }
.wrong rect { stroke: var(--warn); } .wrong text { fill: var(--warn); }
.right rect { stroke: var(--c1); } .right text { fill: var(--c1); }
.legend.key { margin-bottom: 6px; } .key span::before { border-radius: 2px; }
.key .truth::before { background: var(--good); } .key .missed::before { background: var(--bad); }
.key .wrong::before { background: var(--warn); } .key .right::before { background: var(--c1); }
.key span { color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 16px;
  align-items: start; }
.good { color: var(--good); } .bad { color: var(--bad); }
ol.found { margin: 4px 12px 4px; padding: 0 0 0 24px; font-size: 12.5px; line-height: 1.4; columns: 2; gap: 18px; }
ol.found li { break-inside: avoid; }
ol.found li.missed { color: var(--bad); } ol.found li.wrong { color: var(--warn); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
"""
)
