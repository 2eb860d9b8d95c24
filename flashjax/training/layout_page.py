"""Who holds what: one page that shows the mesh, how each tensor is cut over it, and what a device keeps of it.

The page is one HTML file that needs nothing beside it. A tensor is drawn as the matrix of its last two dims; lines in
the colour of an axis cut it, and the filled block is the one of the first device.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from flashjax.drawing import BASE
from flashjax.pages import write_page
from flashjax.training.parameters import ParameterRow, human_bytes, parameter_rows

MOST_DEVICES = 256
"""A larger mesh is drawn by its first devices."""
MOST_CUTS = 16
"""A dim in more parts is drawn in as many."""


def write_layout(
    path: str | Path,
    title: str,
    mesh: Mesh,
    trees: Mapping[str, Any],
    shardings: Mapping[str, Any],
    why: Mapping[str, str] | None = None,
) -> Path:
    """Writes the page to `path`, replacing an older one whole, and returns where it is.

    `trees` are named trees of arrays or shapes, e.g. parameters, gradients, optimizer state; `shardings` has the same
    names with a `NamedSharding` a leaf. The tensors of the first tree are drawn one by one, with their reason in `why`
    (by path); of the others the page has the totals.
    """
    listed, *_ = trees
    rows = {name: parameter_rows(tree, shardings[name], why) for name, tree in trees.items()}
    places = jax.tree.leaves(shardings[listed], is_leaf=lambda x: isinstance(x, NamedSharding))
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    colours = {axis: f"var(--a{number})" for number, axis in enumerate(axes, start=1)}
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{_mesh_words(mesh, colours)}</p>',
        '<section class="top">',
        f"<figure><h2>Devices</h2>{_devices(mesh, colours)}</figure>",
        f"<figure><h2>Bytes on each device</h2>{_totals(rows)}</figure>",
        "</section>",
        "<h2>Tensors</h2>",
        '<p class="note">A tensor is the matrix of its last two dims. Lines cut it over the axis of their colour; '
        "the filled block is what device 0 holds. Point at it for the devices that hold the same.</p>",
        _tensors(rows[listed], places, mesh, colours),
    ]
    return write_page(path, title, BASE + _STYLE, parts)


def _mesh_words(mesh: Mesh, colours: Mapping[str, str]) -> str:
    words = [f'<b style="color:{colours[a]}">{a} {n}</b>' for a, n in mesh.shape.items() if n > 1]
    return f"{' &times; '.join(words)} = {mesh.size} devices" if words else "one device: every tensor is whole"


# The grid of devices: the innermost axis runs along a row.
CELL, ROW, GAP, LABEL = 60, 27, 6, 62


def _devices(mesh: Mesh, colours: Mapping[str, str]) -> str:
    """Numbered devices in rows of the innermost axis, each row under the coordinates of the outer axes."""
    axes = list(colours)
    grid = mesh.devices.reshape([mesh.shape[axis] for axis in axes] or [1])
    rows = grid.reshape(-1, grid.shape[-1])
    shown = rows[: max(1, MOST_DEVICES // rows.shape[1]), :MOST_CUTS]
    outer = axes[:-1]
    begin = LABEL * len(outer)
    width = begin + shown.shape[1] * (CELL + GAP)
    drawn = []
    if axes:
        drawn += [
            f'<text x="{begin + i * (CELL + GAP) + CELL / 2}" y="14" text-anchor="middle" '
            f'style="fill:{colours[axes[-1]]}">{axes[-1]} {i}</text>'
            for i in range(shown.shape[1])
        ]
    for number, devices in enumerate(shown):
        top = 22 + number * (ROW + GAP)
        where = np.unravel_index(number, grid.shape[:-1]) if outer else ()
        drawn += [
            f'<text x="{LABEL * i}" y="{top + 18}" style="fill:{colours[axis]}">{axis} {index}</text>'
            for i, (axis, index) in enumerate(zip(outer, where, strict=True))
        ]
        for i, device in enumerate(devices):
            first = " first" if number == i == 0 else ""
            left = begin + i * (CELL + GAP)
            drawn.append(
                f'<rect class="device{first}" x="{left}" y="{top}" width="{CELL}" height="{ROW}" rx="4"/>'
                f'<text class="id{first}" x="{left + CELL / 2}" y="{top + 18}" text-anchor="middle">{device.id}</text>'
            )
    height = 22 + len(shown) * (ROW + GAP)
    hidden = mesh.size - shown.size
    more = f'<p class="note">and {hidden} more</p>' if hidden else ""
    size = f'width="{width}" viewBox="0 0 {width} {height}"'
    return f'<svg {size} role="img" aria-label="devices">{"".join(drawn)}</svg>{more}'


def _totals(rows: Mapping[str, Sequence[ParameterRow]]) -> str:
    """A bar for each tree: what it takes whole, and the part of it that a device holds."""
    sums = {
        name: (sum(row.bytes for row in tree), sum(row.bytes_per_device for row in tree)) for name, tree in rows.items()
    }
    whole, part = map(sum, zip(*sums.values(), strict=True))
    sums["in all"] = whole, part
    longest = max(whole for whole, _ in sums.values()) or 1
    lines = "".join(
        f'<tr><th>{escape(name)}</th><td class="bar"><span class="whole" style="width:{100 * whole / longest:.2f}%">'
        f'<span class="part" style="width:{100 * part / max(whole, 1):.2f}%"></span></span></td>'
        f'<td class="number"><b>{human_bytes(part)}</b> of {human_bytes(whole)}</td>'
        f'<td class="number">{part / max(whole, 1):.1%}</td></tr>'
        for name, (whole, part) in sums.items()
    )
    return f'<table class="totals">{lines}</table>'


def _tensors(
    rows: Sequence[ParameterRow], places: Sequence[NamedSharding], mesh: Mesh, colours: Mapping[str, str]
) -> str:
    """A table of the tensors with their drawings, under a heading for each first part of a path."""
    lines = []
    pairs = list(zip(rows, places, strict=True))
    largest = max((max(row.shape, default=1) for row in rows), default=1)
    for part, group in groupby(pairs, key=lambda pair: pair[0].path.split("/")[0]):
        group = list(group)
        size, share = (sum(getattr(row, name) for row, _ in group) for name in ("bytes", "bytes_per_device"))
        lines.append(
            f'<tr class="part"><th colspan="3">{escape(part)}</th><td class="number">{human_bytes(size)}</td>'
            f'<td class="number">{human_bytes(share)}</td><td></td></tr>'
        )
        lines += [
            f"<tr><td>{escape(row.path)}</td>"
            f'<td class="shape">{_shape(row, place, colours)}</td>'
            f"<td>{_drawing(row, place, mesh, colours, largest)}</td>"
            f'<td class="number">{human_bytes(row.bytes)}</td>'
            f'<td class="number">{human_bytes(row.bytes_per_device)}</td>'
            f'<td class="why">{escape(row.why)}</td></tr>'
            for row, place in group
        ]
    head = "<tr><th>path</th><th>shape</th><th>who holds what</th><th>bytes</th><th>per device</th><th>why</th></tr>"
    return f'<table class="tensors"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>'


def _axes_of(place: NamedSharding, ndim: int) -> list[tuple[str, ...]]:
    """The mesh axes that cut each dim, those of size 1 left out."""
    entries = [*place.spec, *[None] * (ndim - len(place.spec))]
    named: list[tuple[str, ...]] = [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries]
    return [tuple(axis for axis in axes if place.mesh.shape[axis] > 1) for axes in named]


def _shape(row: ParameterRow, place: NamedSharding, colours: Mapping[str, str]) -> str:
    """The sizes of the dims; one that is split with its axes under it."""
    if not row.shape:
        return "scalar"
    cells = [
        str(size) if not axes else f'<b style="color:{colours[axes[0]]}">{size}<small>/{" ".join(axes)}</small></b>'
        for size, axes in zip(row.shape, _axes_of(place, len(row.shape)), strict=True)
    ]
    return " &times; ".join(cells)


def _drawing(row: ParameterRow, place: NamedSharding, mesh: Mesh, colours: Mapping[str, str], largest: int) -> str:
    """The tensor as a matrix (columns: last dim, rows: the one before), cut, with the first device's block filled."""

    def length(size: int) -> float:  # lengths by the root: a bias and an embedding fit one column
        return max(6.0, 120 * math.sqrt(size / largest))

    shape, axes = [1, *row.shape], _axes_of(place, max(len(row.shape), 1))
    height, width = (length(shape[-2]) if len(row.shape) > 1 else 6.0), length(shape[-1])
    cuts = [math.prod(mesh.shape[axis] for axis in names) for names in axes]
    across, down = min(cuts[-1], MOST_CUTS), min(cuts[-2], MOST_CUTS) if len(cuts) > 1 else 1
    leading = math.prod(cuts[:-2])
    block = place.devices_indices_map(tuple(row.shape))
    first = block[mesh.devices.flat[0]]
    holders = [device.id for device in mesh.devices.flat if block[device] == first]
    held = ", ".join(map(str, holders[:16])) + (" ..." if len(holders) > 16 else "")
    lines = [
        f'<line x1="{width * i / across:.1f}" x2="{width * i / across:.1f}" y1="0" y2="{height:.1f}" '
        f'style="stroke:{colours[axes[-1][0]]}"/>'
        for i in range(1, across)
    ]
    lines += [
        f'<line y1="{height * i / down:.1f}" y2="{height * i / down:.1f}" x1="0" x2="{width:.1f}" '
        f'style="stroke:{colours[axes[-2][0]]}"/>'
        for i in range(1, down)
    ]
    words = f"held by {len(holders)} of {mesh.size} devices: {held}"
    depth = f'<small class="depth">1/{leading} of its leading dims</small>' if leading > 1 else ""
    return (
        f'<svg width="{width + 2:.0f}" height="{height + 2:.0f}" viewBox="-1 -1 {width + 2:.1f} {height + 2:.1f}">'
        f"<title>{words}</title>"
        f'<rect class="tensor" width="{width:.1f}" height="{height:.1f}"/>'
        f'<rect class="held" width="{width / across:.1f}" height="{height / down:.1f}"/>{"".join(lines)}</svg>{depth}'
    )


_STYLE = """
:root { --tensor: #eceef1; --held: #b9c3d1;
  --a1: #2f6bd8; --a2: #d9660b; --a3: #138a5b; --a4: #a338b5; --a5: #b58900; --a6: #c9252d; }
@media (prefers-color-scheme: dark) {
  :root { --tensor: #2a2f36; --held: #566173;
    --a1: #77a6f7; --a2: #f2a05a; --a3: #5fce9e; --a4: #d78ae4; --a5: #e0bd4d; --a6: #ff7b7b; } }
body { font-size: 14px; line-height: 1.45; }
main { max-width: 1280px; }
h2 { font-size: 16px; font-weight: 650; margin: 0 0 10px; }
main > h2 { font-size: 19px; margin: 32px 0 2px; }
.lead { font-size: 17px; margin: 0 0 18px; }
.note { color: var(--muted); margin: 0 0 12px; }
.top { display: flex; flex-wrap: wrap; gap: 16px; align-items: stretch; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  max-width: 100%; overflow-x: auto; }
figure:last-child { flex: 1 1 460px; }
.device { fill: var(--tensor); } .device.first { fill: var(--held); }
figure svg text.id { fill: var(--ink); font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: middle; padding: 4px 18px 4px 0; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; }
thead th { position: sticky; top: 0; background: var(--page); }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.tensors th:nth-child(4), .tensors th:nth-child(5) { text-align: right; }
.tensors tr.part th { color: var(--ink); font-weight: 650; padding-top: 16px; }
.tensors tr.part td { padding-top: 16px; font-weight: 650; }
.tensors td:first-child { overflow-wrap: anywhere; min-width: 200px; } .tensors td.why { min-width: 160px; }
.shape { white-space: nowrap; font-variant-numeric: tabular-nums; }
.shape b { font-weight: 600; } .shape small { font-size: 11px; font-weight: 400; }
.why, .depth { color: var(--muted); font-size: 12.5px; overflow-wrap: anywhere; }
.tensor { fill: var(--tensor); } .held { fill: var(--held); }
.tensors svg line { stroke-width: 1.4; }
.totals td.bar { width: 45%; min-width: 60px; }
.totals .whole, .totals .part { display: block; height: 14px; border-radius: 3px; }
.totals .whole { background: var(--tensor); } .totals .part { background: var(--a1); min-width: 1px; }
.totals tr:last-child > * { border-bottom: 0; }
@media (max-width: 900px) { .tensors { display: block; overflow-x: auto; } }
"""
