"""The figure of a scaling study, SVG in one HTML file that needs nothing beside it: bars by cell, loss by compute."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from flashjax.analysis.collectives import KINDS
from flashjax.drawing import BASE, ticks
from flashjax.pages import write_page
from flashjax.studies.scaling import PowerLaw, Run, fit_words, virtual_note
from flashjax.training.parameters import human_bytes

Line = Mapping[str, Any]
Parts = Mapping[str, float]
HELD = ("parameters", "gradients", "optimizer state", "temporaries")


def write_figure(
    path: str | Path, title: str, lines: Sequence[Line], runs: Sequence[Run] = (), law: PowerLaw | None = None
) -> Path:
    """Writes the page to ``path``, replacing an older one whole, and returns where it is.

    ``lines`` are the cells of the log; those with an error are named below the bars. ``runs`` are drawn by loss and
    compute, with the line and the band of ``law``.
    """
    good, bad = [line for line in lines if "error" not in line], [line for line in lines if "error" in line]
    note = virtual_note(good)
    parts = [f"<h1>{escape(title)}</h1>"]
    if note:
        parts.append(f'<p class="warning">{escape(note)}</p>')
    if good:
        parts.append(f'<figure class="wide cells">{_bars(good)}</figure>')
    parts += [
        f'<p class="note">{escape(line["size"] or "as preset")}, {escape(line["mesh"])}: {escape(line["error"])}</p>'
        for line in bad
    ]
    if runs:
        words = fit_words(law, runs) if law else f"{len(runs)} runs: three or more make a fit"
        parts.append(f'<figure class="wide loss"><h2>Loss by compute</h2><p class="note">{escape(words)}</p>')
        parts.append(_scatter(runs, law) + "</figure>")
    return write_page(path, title, BASE + _STYLE, parts)


# Bars: a row for each cell under its size, four columns that share the rows.
NAMES, COLUMN, SPACE, ROW, TOP = 168, 214, 26, 22, 46


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def _held(line: Line) -> Parts:
    return {name: line["bytes_per_device"].get(name) or 0 for name in HELD}


def _sent(line: Line) -> Parts:
    return {kind: line["collectives"].get(kind, {}).get("wire_bytes", 0.0) for kind in KINDS}


COLUMNS: tuple[tuple[str, Callable[[Line], Parts], Callable[[float], str]], ...] = (
    ("Step time", lambda line: {"step": line["step_time"]}, _milliseconds),
    ("Bytes on a device", _held, lambda value: human_bytes(round(value))),
    ("Sent by a device each step", _sent, lambda value: human_bytes(round(value)) if value else "nothing"),
    ("Compile time", lambda line: {"compile": line["compile_time"]}, _milliseconds),
)


def _bars(lines: Sequence[Line]) -> str:
    sizes: dict[str, list[Line]] = {}
    for line in lines:
        sizes.setdefault(line["size"] or "as preset", []).append(line)
    drawn, y = [], TOP
    for size, group in sizes.items():
        words = f"{size} ({group[0]['parameters']:,} parameters)"
        drawn.append(f'<text class="size" x="0" y="{y + 15}">{escape(words)}</text>')
        y += ROW + 4
        for line in group:
            drawn.append(f'<text x="0" y="{y + 14}">{escape(_mesh_words(line))}</text>')
            for number, (_, parts_of, words_of) in enumerate(COLUMNS):
                longest = max(sum(parts_of(other).values()) for other in lines) or 1.0
                drawn.append(_bar(NAMES + number * (COLUMN + SPACE), y, parts_of(line), longest, words_of))
            y += ROW
        y += 10
    heads = []
    for number, (name, parts_of, _) in enumerate(COLUMNS):
        left = NAMES + number * (COLUMN + SPACE)
        heads.append(f'<text class="head" x="{left}" y="13">{name}</text>')
        present = [part for part in parts_of(lines[0]) if any(parts_of(line)[part] for line in lines)]
        for place, part in enumerate(present if len(parts_of(lines[0])) > 1 else []):
            x = left + place * COLUMN / max(len(present), 3)
            heads.append(
                f'<rect class="p{list(parts_of(lines[0])).index(part) + 1}" x="{x:.1f}" y="23" width="9" height="9"/>'
                f'<text class="key" x="{x + 12:.1f}" y="31">{SHORT.get(part, part)}</text>'
            )
    width = NAMES + len(COLUMNS) * (COLUMN + SPACE)
    return f'<svg viewBox="0 0 {width} {y}" role="img" aria-label="cells">{"".join([*heads, *drawn])}</svg>'


SHORT = {"optimizer state": "optim", "parameters": "param", "gradients": "grads", "temporaries": "temp"} | {
    "collective-permute": "permute"
}
WORDS = 72  # room for the figure right of the longest bar


def _bar(left: float, top: float, parts: Parts, longest: float, words: Callable[[float], str]) -> str:
    """Parts side by side, and their sum in words after them."""
    drawn, x = [], left
    for number, (name, value) in enumerate(parts.items(), start=1):
        width = (COLUMN - WORDS) * value / longest
        if width > 0:
            drawn.append(
                f'<rect class="p{number}" x="{x:.1f}" y="{top + 3}" width="{max(width, 0.6):.1f}" height="14">'
                f"<title>{name}: {words(value)}</title></rect>"
            )
        x += width
    return f'{"".join(drawn)}<text class="value" x="{x + 6:.1f}" y="{top + 14}">{words(sum(parts.values()))}</text>'


def _mesh_words(line: Line) -> str:
    axes = line["axes"]
    return " × ".join(f"{axis} {size}" for axis, size in axes.items()) if axes else "one device"


WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 640, 340, 62, 20, 44


def _scatter(runs: Sequence[Run], law: PowerLaw | None) -> str:
    """Loss over FLOPs, both by their logarithm."""
    xs, ys = [math.log10(run.compute) for run in runs], [math.log10(run.loss) for run in runs]
    x0, x1 = min(xs) - 0.15, max(xs) + 0.15
    grid_x = [x0 + (x1 - x0) * i / 40 for i in range(41)]
    bands = [law.band(10**x) for x in grid_x] if law else []
    tall = [*ys, *(math.log10(value) for band in bands for value in band)]
    margin = 0.05 * (max(tall) - min(tall)) + 0.005
    y0, y1 = min(tall) - margin, max(tall) + margin

    def at(x: float, y: float) -> str:
        left = LEFT + (WIDTH - LEFT - RIGHT) * (x - x0) / (x1 - x0)
        return f"{left:.1f},{HEIGHT - BOTTOM - (HEIGHT - 12 - BOTTOM) * (y - y0) / (y1 - y0):.1f}"

    drawn = []
    for value in _round_numbers(y0, y1):
        _, py = at(x0, math.log10(value)).split(",")
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py}" y2="{py}"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{float(py) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value in _round_numbers(x0, x1):
        px, _ = at(math.log10(value), y0).split(",")
        words = f"{value:.3g}".replace("e+", "e")
        drawn.append(f'<text x="{px}" y="{HEIGHT - 22}" text-anchor="middle">{words}</text>')
    drawn.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">FLOPs of training</text>')
    if law:
        rim = [at(x, math.log10(high)) for x, (_, high) in zip(grid_x, bands, strict=True)]
        rim += [at(x, math.log10(low)) for x, (low, _) in reversed(list(zip(grid_x, bands, strict=True)))]
        line = [at(x, math.log10(law(10**x))) for x in grid_x]
        drawn.append(f'<polygon class="band" points="{" ".join(rim)}"/>')
        drawn.append(f'<polyline points="{" ".join(line)}"/>')
    for run, x, y in zip(runs, xs, ys, strict=True):
        px, py = at(x, y).split(",")
        words = f"{run.name}: {run.parameters:,} parameters, {run.compute:.3g} FLOPs, loss {run.loss:.4f}"
        drawn.append(f'<circle cx="{px}" cy="{py}" r="4"><title>{escape(words)}</title></circle>')
        right = float(px) < 0.75 * WIDTH  # of the point there is room for its name
        across, down, anchor = (8, -6, "start") if right else (-8, 14, "end")
        drawn.append(
            f'<g class="names"><text x="{float(px) + across:.1f}" y="{float(py) + down:.1f}" text-anchor="{anchor}">'
            f"{escape(run.name)}</text></g>"
        )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss by compute">{"".join(drawn)}</svg>'


def _round_numbers(low: float, high: float) -> list[float]:
    """Those to be marked on a logarithmic axis from 10^low to 10^high: powers of ten if it has three of them."""
    powers = [10.0**x for x in range(math.ceil(low), math.floor(high) + 1)]
    return powers if len(powers) > 2 else [x for x in ticks(10**low, 10**high, 6) if low <= math.log10(x) <= high]


_STYLE = """
:root { --warn: #fdf3dc;
  --p1: #2f6bd8; --p2: #d9660b; --p3: #138a5b; --p4: #b3bac4; --p5: #a338b5; --band: #2f6bd822; }
@media (prefers-color-scheme: dark) {
  :root { --warn: #3a3220;
    --p1: #77a6f7; --p2: #f2a05a; --p3: #5fce9e; --p4: #59626e; --p5: #d78ae4; --band: #77a6f733; } }
main { max-width: 1240px; }
h1 { margin-bottom: 14px; }
h2 { font-size: 16px; font-weight: 650; margin: 0; }
.warning { background: var(--warn); border-radius: 8px; padding: 9px 14px; margin: 0 0 16px; }
.note { color: var(--muted); margin: 2px 0 8px; font-size: 13.5px; }
figure { margin: 0 0 16px; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px; }
figure.loss { max-width: 760px; }
figure.cells svg { min-width: 860px; } figure.loss svg { min-width: 480px; }
svg { width: 100%; height: auto; }
svg text { font-variant-numeric: tabular-nums; }
svg text.size, svg text.head { fill: var(--ink); font-weight: 650; }
svg text.head { font-size: 13px; } svg text.value { fill: var(--ink); font-size: 11.5px; }
svg text.key { font-size: 11px; }
svg line { stroke: var(--line); }
.p1 { fill: var(--p1); } .p2 { fill: var(--p2); } .p3 { fill: var(--p3); } .p4 { fill: var(--p4); }
.p5 { fill: var(--p5); }
polyline { fill: none; stroke: var(--p1); stroke-width: 1.6; } .band { fill: var(--band); } circle { fill: var(--p1); }
"""
