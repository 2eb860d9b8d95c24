"""Conversion of parameters between Flax and torch by a declared table.

A `Table` (`rules.py`) is all that a model family writes down: for each leaf of its Flax tree, where each torch layout
keeps it and how it is turned, and how a layout is told from the others. The functions here do the rest: recognise the
layout of a state, read it, write it, and report everything that does not fit at once.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flashjax.interop.paths import stack, unstack
from flashjax.interop.rules import Place, State, Table, stand_in


class ConversionError(ValueError):
    """Weights that do not fit the model; the message lists every key that differs and the fixes that are known."""


def read(table: Table, state: State, expected: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """The leaves of a model from a torch state whose layout is recognised by its names.

    Args:
        state: torch names to arrays; torch tensors on any device will do.
        expected: the shape and dtype of every leaf of the model, by path. A floating tensor of another precision
            is cast to that dtype.

    Raises:
        ConversionError: the layout is not recognised, or names or shapes differ from what the model needs.
    """
    layers = unstack(expected, table.stacks)
    layout, prefix, found, strangers = _recognise(table, state, layers)
    leaves, used = {}, set()
    # Dicts, since several leaves may share a tensor that is worth one line.
    missing, misshapen = {}, {}
    for path, want in layers.items():
        place = _place(table, path, layout)
        tensors = []
        for name, shape in place.shapes(want.shape).items():
            used.add(name)
            if name not in found:
                missing[name] = f"{name}: expected {shape}"
                continue
            array = to_numpy(found[name])
            if array.shape != shape:
                misshapen[name] = f"{name}: expected {shape}, found {array.shape}"
            elif not jnp.issubdtype(array.dtype, jnp.floating):
                misshapen[name] = f"{name}: expected floating-point {shape}, found {array.dtype}"
            else:
                tensors.append(array)
        if len(tensors) == len(place.names):
            # A copy in any case: the state may be a view of a file.
            leaves[path] = np.array(place.to_flax(tensors), dtype=want.dtype, order="C")
    differing = []
    for copy, of in table.layouts[layout].copies.items():
        if copy in found and copy not in used and of in found:
            if np.array_equal(to_numpy(found[copy]), to_numpy(found[of])):
                del found[copy]
            else:
                differing.append(f"{copy}: differs from {of}, of which the model makes it a copy")
                used.add(copy)
    unexpected = [name for name in found if name not in used]
    problems = {
        "missing": list(missing.values()),
        "unexpected": [f"{name}: found {tuple(found[name].shape)}" for name in unexpected] + strangers,
        "misshapen": list(misshapen.values()),
        "not tied": differing,
    }
    if any(problems.values()):
        hints = table.explain(lambda path: _found_shape(table, path, layout, found), list(state))
        under = f", names after {prefix!r}" if prefix else ""
        raise ConversionError(_report(f"the state ({layout} layout{under}) does not fit the model", problems, hints))
    return stack(leaves, expected, table.stacks)


def write(
    table: Table, layout: str, leaves: Mapping[str, Any], expected: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, np.ndarray]:
    """The torch state of a model in a named layout: the inverse of `read`, bit for bit.

    Raises:
        ConversionError: unknown layout, leaves that are not the model's, or a leaf the layout has no name for.
    """
    if layout not in table.layouts:
        raise ConversionError(f"unknown layout {layout!r}; known: {', '.join(table.layouts)}")
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    problems = {
        "missing": [f"{path}: expected {want.shape}" for path, want in expected.items() if path not in shapes],
        "unexpected": [f"{path}: found {shape}" for path, shape in shapes.items() if path not in expected],
        "misshapen": [
            f"{path}: expected {want.shape}, found {shapes[path]}"
            for path, want in expected.items()
            if shapes.get(path, want.shape) != want.shape
        ],
    }
    if any(problems.values()):
        hints = table.explain(_shapes_of_layers(leaves, table.stacks).get, list(shapes))
        raise ConversionError(_report("the variables do not fit the model", problems, hints))
    state: dict[str, np.ndarray] = {}
    shares: dict[str, dict[int, np.ndarray]] = {}
    how = table.layouts[layout]
    for path, leaf in unstack({path: np.asarray(leaf) for path, leaf in leaves.items()}, table.stacks).items():
        place = _place(table, path, layout)
        pieces = place.transform.to_torch(leaf)
        if (share := place.share) is None:
            state.update(
                (how.written(name), np.ascontiguousarray(array))
                for name, array in zip(place.names, pieces, strict=True)
            )
            continue
        (name,), (piece,) = place.names, pieces
        parts = shares.setdefault(name, {})
        parts[share.part] = piece
        if len(parts) == share.parts:
            whole = np.concatenate([parts[part] for part in range(share.parts)], axis=share.axis)
            state[how.written(name)] = np.ascontiguousarray(whole)
            del shares[name]
    if shares:
        raise ConversionError(f"the {layout} layout joins leaves that the model lacks into {', '.join(shares)}")
    state.update((how.written(copy), state[how.written(of)]) for copy, of in how.copies.items())
    return state


def to_numpy(value: Any) -> np.ndarray:
    """A numpy array from an array or a torch tensor; bfloat16, which torch does not hand to numpy, as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.asarray(value)


def _place(table: Table, path: str, layout: str) -> Place:
    place = table.place(path, layout)
    if place is None:
        raise ConversionError(f"the {layout} layout has no name for {path!r}")
    return place


def _shapes_of_layers(leaves: Mapping[str, Any], stacks: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, np.float32) for path, leaf in leaves.items()}
    return {path: tuple(leaf.shape) for path, leaf in unstack(shapes, stacks).items()}


def _found_shape(table: Table, path: str, layout: str, found: State) -> tuple[int, ...] | None:
    place = table.place(path, layout)
    if place is None or not all(name in found for name in place.names):
        return None
    try:
        return place.to_flax([stand_in(found[name].shape) for name in place.names]).shape
    except ValueError:  # so misshapen that the transform does not apply
        return None


def _recognise(table: Table, state: State, expected: Mapping[str, Any]) -> tuple[str, str, dict[str, Any], list[str]]:
    """The layout of a state, its prefix, its parameters by the names of the rules, and what belongs to nothing.

    Among the layouts whose anchor is there, the one that names the most of the model's leaves is meant.
    """
    best: tuple[int, str, str, dict[str, Any], list[str]] | None = None
    for name, layout in table.layouts.items():
        prefixes = {key[: -len(layout.anchor)] for key in state if f".{key}".endswith(f".{layout.anchor}")}
        if len(prefixes) > 1:
            raise ConversionError(
                f"the state holds several models, under {', '.join(map(repr, sorted(prefixes)))}; pass one of them"
            )
        if not prefixes:
            continue
        (prefix,) = prefixes
        found, strangers = layout.select(state, prefix)
        places = (table.place(path, name) for path in expected)
        covered = sum(key in found for place in places if place for key in place.names)
        if best is None or covered > best[0]:
            best = covered, name, prefix, found, strangers
    if best is None:
        anchors = ", ".join(f"{layout.anchor!r} ({name})" for name, layout in table.layouts.items())
        some = ", ".join(repr(key) for key in list(state)[:5]) or "nothing"
        raise ConversionError(f"no known layout: the state has none of {anchors}; it begins with {some}")
    return best[1:]


def _report(title: str, problems: Mapping[str, list[str]], hints: list[str]) -> str:
    lines = [title]
    for kind, entries in problems.items():
        if entries:
            lines.append(f"{kind} ({len(entries)}):")
            lines.extend(f"  {entry}" for entry in sorted(entries, key=_natural))
    return "\n".join(lines + hints)


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key by which block 9 comes before block 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]
