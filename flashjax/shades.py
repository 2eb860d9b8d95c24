"""A map of numbers of any size as shades by their logarithm: layers by steps, widths by learning rates."""

import math
from collections.abc import Sequence
from html import escape
from typing import TypeGuard

NAMES, WIDTH, LINE, TOP = 116, 400, 12, 4
MOST_COLUMNS, MOST_NAMES = 64, 48


def shade_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    x_name: str = "",
    note: str = "",
) -> str:
    """A figure [rows][columns] whose shades go by log |value| from the least to the most, which its legend says.

    Values that are None, zero or not finite stay blank. Of many columns every k-th is drawn, of many rows every k-th is
    named. Shades need the style of `flashjax.drawing.STYLE`.
    """
    step = math.ceil(len(columns) / MOST_COLUMNS)
    kept = sorted({*range(0, len(columns), step), len(columns) - 1})
    sizes = [math.log10(abs(v)) for row in values for v in (row[c] for c in kept) if _drawable(v)]
    low, high = (min(sizes), max(sizes)) if sizes else (0.0, 0.0)
    wide = (WIDTH - NAMES) / max(len(kept), 1)
    each = math.ceil(len(rows) / MOST_NAMES)
    drawn = []
    for r, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = TOP + r * LINE
        if r % each == 0:
            drawn.append(f'<text x="{NAMES - 6}" y="{y + 10}" text-anchor="end">{escape(_short(name))}</text>')
        for place, c in enumerate(kept):
            value = row[c]
            words = f"{name}, {x_name} {columns[c]}: {'none' if value is None else format(value, '.4g')}"
            share = (math.log10(abs(value)) - low) / ((high - low) or 1) if _drawable(value) else None
            drawn.append(
                f'<rect class="{"cell" if share is not None else "gap"}" x="{NAMES + place * wide:.2f}" y="{y}" '
                f'width="{wide:.2f}" height="{LINE}" fill-opacity="{0.04 + 0.96 * (share or 0):.3f}">'
                f"<title>{escape(words)}</title></rect>"
            )
    bottom = TOP + len(rows) * LINE
    last = len(kept) - 1
    for place in range(len(kept)) if len(kept) <= 8 else (0, last // 3, 2 * last // 3, last):
        x, anchor = NAMES + (place + 0.5) * wide, "middle"
        if place == last and len(kept) > 8:
            x, anchor = WIDTH, "end"
        drawn.append(
            f'<text x="{x:.1f}" y="{bottom + 12}" text-anchor="{anchor}">{escape(columns[kept[place]])}</text>'
        )
    legend = f"<span>{10**low:.2g} to {10**high:.2g}{', ' + escape(x_name) + ' across' if x_name else ''}</span>"
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="shades"><figcaption><h2>{escape(title)}</h2><p class="note">{legend}</p></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {bottom + 20}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
        f"{below}</figure>"
    )


def _drawable(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and value != 0


def _short(name: str, most: int = 17) -> str:
    return name if len(name) <= most else "…" + name[-most + 1 :]


STYLE = """
figure.shades rect { stroke: none; } figure.shades rect.gap { fill: none; }
figure.shades svg text { font-size: 10px; }
"""
"""What `flashjax.drawing.STYLE` needs besides."""
