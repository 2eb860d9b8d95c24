"""The table of parameters: what there is, where each tensor lives on the mesh, and what a device holds of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding, Sharding

from flashjax.training.sharding import path_string

PyTree = Any


@dataclass(frozen=True)
class ParameterRow:
    """One tensor."""

    path: str
    """'/'-joined names."""
    shape: tuple[int, ...]
    dtype: str
    spec: str
    """Mesh axes by dim, '-' where a dim is whole; 'whole' where the tensor is."""
    bytes: int
    """Of the whole tensor."""
    bytes_per_device: int
    """Of the largest shard; shards of a dim that does not divide differ."""
    why: str = ""
    """What put it there, where the caller said."""


def parameter_rows(tree: PyTree, shardings: PyTree, why: Mapping[str, str] | None = None) -> list[ParameterRow]:
    """A row for each leaf of `tree` (arrays or `jax.ShapeDtypeStruct`s), in the order of the tree.

    `shardings` has the structure of `tree`; `why` has a reason by path (`sharding.reasons`).
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    rows = []
    for (path, leaf), sharding in zip(leaves, structure.flatten_up_to(shardings), strict=True):
        size = leaf.dtype.itemsize
        name = path_string(path)
        rows.append(
            ParameterRow(
                path=name,
                shape=tuple(leaf.shape),
                dtype=str(leaf.dtype),
                spec=_spec(sharding, len(leaf.shape)),
                bytes=size * math.prod(leaf.shape),
                bytes_per_device=size * math.prod(sharding.shard_shape(tuple(leaf.shape))),
                why=(why or {}).get(name, ""),
            )
        )
    return rows


def parameter_table(
    trees: Mapping[str, PyTree],
    shardings: Mapping[str, PyTree],
    why: Mapping[str, str] | None = None,
    columns: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The tensors of the first tree, a line each, then the totals of every tree and of all.

    `trees` are named, e.g. parameters, gradients, optimizer state; `shardings` has the same names. `why` has a reason
    for the place of each tensor, by path; `columns` are further ones by header, each with a text by path.
    """
    listed, *_ = trees
    columns = columns or {}
    rows = {name: parameter_rows(tree, shardings[name], why) for name, tree in trees.items()}
    header = ("path", "shape", "dtype", "sharding", "bytes", "per device", *columns, "why" if why else "")
    lines = [
        (
            row.path,
            "x".join(map(str, row.shape)) or "scalar",
            row.dtype,
            row.spec,
            human_bytes(row.bytes),
            human_bytes(row.bytes_per_device),
            *(column.get(row.path, "") for column in columns.values()),
            row.why,
        )
        for row in rows[listed]
    ]
    totals = [
        (
            name,
            f"{sum(math.prod(row.shape) for row in of_tree):,} in {len(of_tree)}",
            "",
            "",
            human_bytes(sum(row.bytes for row in of_tree)),
            human_bytes(sum(row.bytes_per_device for row in of_tree)),
            "",
        )
        for name, of_tree in rows.items()
    ]
    if len(rows) > 1:
        everything = [row for of_tree in rows.values() for row in of_tree]
        whole, part = (sum(getattr(row, size) for row in everything) for size in ("bytes", "bytes_per_device"))
        totals.append(("in all", "", "", "", human_bytes(whole), human_bytes(part), ""))
    parts = [header, *lines], [("total of", "elements in tensors", "", "", "bytes", "per device", ""), *totals]
    return _aligned(*([line[:6] + ("",) * (len(header) - len(line)) + line[6:] for line in part] for part in parts))


def human_bytes(count: int) -> str:
    """Bytes in the largest unit that leaves at least one, to a decimal: '812 B', '1.5 MiB'."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _spec(sharding: Sharding, ndim: int) -> str:
    if sharding.is_fully_replicated:
        return "whole"
    if not isinstance(sharding, NamedSharding):
        return type(sharding).__name__
    entries = [*sharding.spec, *[None] * (ndim - len(sharding.spec))]
    return ", ".join("-" if e is None else e if isinstance(e, str) else "+".join(e) for e in entries)


def _aligned(*parts: Sequence[tuple[str, ...]]) -> str:
    """Parts of equal columns under common widths, each under a rule; bytes flush right, reasons left."""
    widths = [max(len(line[column]) for part in parts for line in part) for column in range(len(parts[0][0]))]

    def text(line: tuple[str, ...]) -> str:
        columns = enumerate(zip(line, widths, strict=True))
        cells = [cell.rjust(width) if i in (4, 5) else cell.ljust(width) for i, (cell, width) in columns]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join(f"{text(head)}\n{rule}\n" + "\n".join(map(text, body)) + "\n" for head, *body in parts)
