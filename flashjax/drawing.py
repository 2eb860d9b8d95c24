"""Drawings for pages: curves, heat maps, and the style that they share. SVG and HTML as text, no script, no package."""

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape

Point = tuple[float, float]

# A drawing of WIDTH x HEIGHT units that scales with the page; the plot lies inside the margins.
WIDTH, HEIGHT = 400, 234
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 12, 40
MOST_POINTS = 400  # of one curve; more than the eye can tell apart at this width
COLORS = 10  # of curves, in STYLE


def line_chart(
    title: str,
    curves: Mapping[str, Sequence[Point]],
    x_name: str,
    *,
    doublings: Sequence[float] | None = None,
    y_range: tuple[float, float] | None = None,
    note: str = "",
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
) -> str:
    """A figure of curves by their words, each of (x, y) points with rising x; the legend shows their last values.

    Args:
        x_name: what x is, singular: below the axis, and for whoever points at a value.
        doublings: the x at which there are ticks, drawn by their logarithm; default: round numbers from 0 on.
        y_range: what the plot shows, values outside of it on its rim, which is then noted; default: all of the curves.
        bands: around some of the curves, each of (x, from, to) with rising x.
    """
    values = [y for points in curves.values() for _, y in points]
    low, high = y_range or (min(values), max(values))
    y_ticks = ticks(low, high, 5)
    if any(not y_ticks[0] <= y <= y_ticks[-1] for y in values):
        note = f"{note}{'; ' * bool(note)}what lies outside is drawn on the rim"
    end = max(x for points in curves.values() for x, _ in points) or 1
    x_ticks = list(doublings or [tick for tick in ticks(0, end, 6) if tick <= end])
    first, last = (math.log2(x_ticks[0]), math.log2(x_ticks[-1])) if doublings else (0, end)

    def across(x: float) -> float:
        where = math.log2(x) if doublings else x
        return LEFT + (WIDTH - LEFT - RIGHT) * (where - first) / ((last - first) or 1)

    def down(y: float) -> float:
        part = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(part, 0), 1)

    grid = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(t):.1f}" y2="{down(t):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{down(t) + 4:.1f}" text-anchor="end">{label(t, y_ticks)}</text>'
        for t in y_ticks
    ]
    grid += [
        f'<text x="{across(t):.1f}" y="{HEIGHT - 21}" text-anchor="middle">'
        f"{(power(t) if t < 1 else f'{t:g}') if doublings else label(t, ticks(0, end, 6))}</text>"
        for t in x_ticks
    ]
    grid.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_name)}</text>')
    drawn, legend = [], []
    for number, (words, points) in enumerate(curves.items()):
        color = f"c{number % COLORS + 1}"
        if edges := (bands or {}).get(words):
            sides = [thinned([(edge[0], edge[i]) for edge in edges]) for i in (1, 2)]
            around = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in [*sides[0], *reversed(sides[1])])
            drawn.append(f'<polygon class="{color}" points="{around}"/>')
        if len(points) > 1:
            path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in thinned(points))
            drawn.append(f'<polyline class="{color}" points="{path}"/>')
        if len(points) <= 60:  # few enough to point at
            drawn += [
                f'<circle class="{color}" cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.2">'
                f"<title>{escape(f'{words}, ' if len(curves) > 2 else '')}{x_name} {x:g}: {y:.4g}</title></circle>"
                for x, y in points
            ]
        if points:
            legend.append(f'<span class="{color}">{escape(words)} <b>{points[-1][1]:.4g}</b></span>')
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<figure><figcaption><h2>{escape(title)}</h2><p class="legend">{"".join(legend)}</p></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} by {escape(x_name)}">'
        f'<g class="grid">{"".join(grid)}</g>{"".join(drawn)}</svg>{below}</figure>'
    )


CELL_WIDTH, CELL_HEIGHT, ROW_NAMES, COLUMN_NAMES = 52, 26, 52, 22


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    value_range: tuple[float, float] = (0.0, 1.0),
    form: str = ".2f",
    note: str = "",
    marked: Collection[tuple[int, int]] = (),
) -> str:
    """A figure of numbers [rows][columns] as shades, from nothing at the first of ``value_range`` to full at the last.

    ``None`` is a place without a number. ``form`` writes the numbers. The places (row, column) of ``marked`` get a rim.
    """
    low, high = value_range
    left = max(ROW_NAMES, 8 + 7 * max(map(len, rows), default=0))
    drawn = [
        f'<text x="{left + (c + 0.5) * CELL_WIDTH}" y="14" text-anchor="middle">{escape(name)}</text>'
        for c, name in enumerate(columns)
    ]
    for r, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = COLUMN_NAMES + r * CELL_HEIGHT
        drawn.append(f'<text x="{left - 8}" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
        for c, value in enumerate(line):
            x = left + c * CELL_WIDTH
            share = 0.0 if value is None else max(0.0, min((value - low) / ((high - low) or 1), 1.0))
            words = "" if value is None else format(value, f"z{form}")  # z: no minus before 0.0
            # Where neither end's letters can be read on a shade between them, dark ones can, whatever the scheme.
            letters = "over" if share > 0.85 else "between" if share > 0.6 else "on"
            drawn.append(
                f'<rect class="cell{" marked" * ((r, c) in marked)}" x="{x}" y="{y}" width="{CELL_WIDTH - 2}" '
                f'height="{CELL_HEIGHT - 2}" rx="3" fill-opacity="{share:.3f}">'
                f"<title>{escape(name)}, {escape(columns[c])}: {words or 'none'}</title></rect>"
                f'<text class="{letters}" x="{x + CELL_WIDTH / 2 - 1}" y="{y + 16}" '
                f'text-anchor="middle">{words}</text>'
            )
    width, height = left + len(columns) * CELL_WIDTH, COLUMN_NAMES + len(rows) * CELL_HEIGHT
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="heat"><figcaption><h2>{escape(title)}</h2></figcaption>'
        f'<svg style="max-width:{width}px" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(drawn)}</svg>{below}</figure>"
    )


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,), style: str = "figures"
) -> str:
    """A table of the CSS class `style`: its columns `words` hold words, others numbers; a first one names the row."""

    def cell(i: int, text: str) -> str:
        if i not in words:
            return f"<td>{escape(text)}</td>"
        return f"<th>{escape(text)}</th>" if i == 0 else f'<td class="w">{escape(text)}</td>'

    head = "".join(f'<th class="{"w" if i in words else "n"}">{escape(name)}</th>' for i, name in enumerate(heads))
    body = "".join(f"<tr>{''.join(cell(i, text) for i, text in enumerate(row))}</tr>" for row in rows)
    return f'<div class="wide"><table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a terminal and for Markdown."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    edge = [f"{'-' * widths[0]}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]

    def line(row: Sequence[str]) -> str:
        words = [row[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True))]
        return f"| {' | '.join(words)} |"

    return "\n".join([line(heads), line(edge), *map(line, rows)])


WIDE, TALL, NAME = 760, 372, 6.8  # of a scatter; units that a letter of a name takes
ABOVE = 34  # its plot, where y is named


def scatter(
    title: str, groups: Mapping[str, Sequence[tuple[float, float, str]]], x_name: str, y_name: str, note: str = ""
) -> str:
    """A figure of named points (x, y, name), a colour for each group."""
    points = [point for found in groups.values() for point in found]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 6), ticks(min(ys), max(ys), 6)

    def at(x: float, y: float) -> tuple[float, float]:
        across, down = ((v - t[0]) / (t[-1] - t[0]) for v, t in ((x, x_ticks), (y, y_ticks)))
        return LEFT + (WIDE - LEFT - RIGHT) * across, TALL - 40 - (TALL - ABOVE - 40) * down

    grid = []
    for tick in y_ticks:
        _, y = at(x_ticks[0], tick)
        grid.append(f'<line x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        grid.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label(tick, y_ticks)}</text>')
    for tick in x_ticks:
        x, _ = at(tick, y_ticks[0])
        grid.append(f'<text x="{x:.1f}" y="{TALL - 22}" text-anchor="middle">{label(tick, x_ticks)}</text>')
    grid.append(f'<text x="{WIDE / 2}" y="{TALL - 5}" text-anchor="middle">{escape(x_name)}</text>')
    grid.append(f'<text x="0" y="14">{escape(y_name)}</text>')
    drawn, names, legend = [], [], []
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in (at(p[0], p[1]) for p in points)]
    for number, (group, found) in enumerate(groups.items()):
        color = f"c{number % COLORS + 1}"
        legend.append(f'<span class="{color}">{escape(group)}</span>')
        for x_value, y_value, name in found:
            x, y = at(x_value, y_value)
            words = f"{name}: {x_name} {x_value:,.4g}, {y_name} {y_value:.4g}"
            drawn.append(
                f'<circle class="{color}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(words)}</title></circle>'
            )
            place = _free(x, y, len(name) * NAME, taken)
            if place is not None:
                names.append(f'<text x="{place[0]:.1f}" y="{place[1]:.1f}">{escape(name)}</text>')
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="scatter"><figcaption><h2>{escape(title)}</h2><p class="legend">{"".join(legend)}</p>'
        f'</figcaption><div class="wide"><svg viewBox="0 0 {WIDE} {TALL}" role="img" '
        f'aria-label="{escape(y_name)} by {escape(x_name)}"><g class="grid">{"".join(grid)}</g>'
        f'<g class="names">{"".join(names)}</g>{"".join(drawn)}</svg></div>{below}</figure>'
    )


Box = tuple[float, float, float, float]


def _free(x: float, y: float, width: float, taken: list[Box]) -> Point | None:
    """Where a name of `width` hides no other name and no point: beside, above or below (x, y); its place is taken."""
    beside = [(x + 7, y + 4), (x - 7 - width, y + 4)]
    for left, base in [*beside, *((x - width / 2, y + d) for d in (-9, 17, -22, 30))]:
        box = (left, base - 11, left + width, base + 2)
        inside = left >= LEFT and left + width <= WIDE and base > ABOVE
        if inside and all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in taken):
            taken.append(box)
            return left, base
    return None


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS points, each the mean of its neighbours, the last one kept as it is."""
    size = math.ceil(len(points) / MOST_POINTS)
    means = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in (points[i : i + size] for i in range(0, len(points), size))
    ]
    return means if size == 1 else [*means, points[-1]]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count` of them, the first at or below `low` and the last at or above `high`."""
    if high == low:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def power(value: float) -> str:
    """A power of two as such, another number as it is."""
    exponent = math.log2(value)
    if not exponent.is_integer():
        return f"{value:g}"
    return "2" + f"{exponent:.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def label(tick: float, ticks: Sequence[float]) -> str:
    """As many digits as tell neighbours apart; powers of ten for what is tiny, k for thousands of steps."""
    step = ticks[1] - ticks[0]
    if max(map(abs, ticks)) < 0.01:
        return "0" if abs(tick) < step / 2 else f"{tick:.1e}".replace("e-0", "e-").replace(".0e", "e")
    if step >= 1000:
        return f"{tick / 1000:g}k" if tick else "0"
    return f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


BASE = """
:root { --page: #fafaf8; --card: #fff; --ink: #1d2126; --muted: #68707a; --line: #e3e4e0; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --card: #1d2126; --ink: #e7e9ec; --muted: #97a0ab; --line: #31363d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 26px; font-weight: 650; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
th { font-weight: 400; color: var(--muted); }
.wide { overflow-x: auto; }
svg { display: block; }
svg text { font-size: 12px; fill: var(--muted); }
.names text { paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
@media print { figure { break-inside: avoid; } }
"""
"""What every page looks like; a page adds what it draws."""

STYLE = (
    BASE
    + """
:root { --c1: #2f6bd8; --c2: #d9660b; --c3: #138a5b; --c4: #a338b5; --c5: #b08900; --c6: #c9252d; --c7: #1591a8;
  --c8: #68707a; --c9: #8a5a2b; --c10: #4b4fc9; --over: #fff; --between: #15181c; }
@media (prefers-color-scheme: dark) {
  :root { --c1: #77a6f7; --c2: #f2a05a; --c3: #5fce9e; --c4: #d78ae4; --c5: #e0c04c; --c6: #ff7b7b; --c7: #5cc8dc;
    --c8: #97a0ab; --c9: #c99a6b; --c10: #9a9df5; --over: #15181c; } }
h1 { margin-bottom: 18px; }
h2 { font-size: 16px; font-weight: 650; margin: 0; }
main > h2 { font-size: 19px; margin: 36px 0 2px; }
.note { color: var(--muted); margin: 0 0 14px; }
table { border-collapse: collapse; margin: 0 0 28px; max-width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 5px 28px 5px 0; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.n, table.figures td, table.plan td { text-align: right; white-space: nowrap; }
table td.w { text-align: left; }
table.figures th, table.figures td { padding: 4px 9px 4px 0; }
table.figures thead th { white-space: normal; vertical-align: bottom; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 16px; }
.charts + .charts, .charts + .wide, .charts + .note { margin-top: 16px; }
.charts > :only-child { max-width: 560px; }
.charts > figure { display: flex; flex-direction: column; } .charts > figure > svg { margin-top: auto; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 16px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px 6px; }
figure .note { margin: 4px 0; font-size: 13px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 2px 12px; }
.legend { margin: 0; display: flex; flex-wrap: wrap; gap: 2px 14px; color: var(--muted); font-size: 13px; }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.legend span::before { content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 50%;
  margin-right: 5px; }
svg { width: 100%; height: auto; margin-top: 6px; }
.charts > figure.scatter { max-width: 800px; } .scatter svg { min-width: 560px; }
svg line { stroke: var(--line); }
polyline { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
rect.cell { fill: var(--c1); stroke: var(--line); }
rect.marked { stroke: var(--ink); stroke-width: 2; }
svg text.on { fill: var(--ink); } svg text.over { fill: var(--over); } svg text.between { fill: var(--between); }
"""
    + "\n".join(
        f".legend .c{i}::before, circle.c{i} {{ background: var(--c{i}); fill: var(--c{i}); }} "
        f"polyline.c{i} {{ stroke: var(--c{i}); }} polygon.c{i} {{ fill: var(--c{i}); fill-opacity: .15; }}"
        for i in range(1, COLORS + 1)
    )
    + "\n"
)
"""CSS of a page with figures: light and dark."""
