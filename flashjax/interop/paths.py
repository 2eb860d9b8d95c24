"""Leaves of a tree of variables by path, and those of scanned layers apart; `rules.py` says what paths look like."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path, as the rules write paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    return {"/".join(str(key.key) for key in path).removeprefix("params/"): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any], collections: Collection[str]) -> dict[str, Any]:
    """The inverse of `flatten`, for variables that have these collections."""
    variables: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        if not parents or parents[0] not in collections:
            parents = ["params", *parents]
        node = variables
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return variables


def unstack(leaves: Mapping[str, Any], stacks: Mapping[str, str]) -> dict[str, Any]:
    """Leaves, or their shapes, with every scanned module taken apart into its layers (see `Table.stacks`)."""
    result: dict[str, Any] = {}
    for path, leaf in leaves.items():
        member = _member(path, stacks)
        if member is None or not leaf.shape:
            result[path] = leaf
        elif isinstance(leaf, jax.ShapeDtypeStruct):
            layer = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
            result.update((member(i), layer) for i in range(leaf.shape[0]))
        else:
            result.update((member(i), leaf[i]) for i in range(leaf.shape[0]))
    return result


def stack(leaves: Mapping[str, Any], paths: Collection[str], stacks: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The inverse of `unstack`: the leaves at `paths`, those of scanned modules put together from their layers.

    Raises ValueError for a path of which there is no layer, or whose layers differ in shape.
    """
    rest = dict(leaves)
    result: dict[str, np.ndarray] = {}
    for path in paths:
        member = _member(path, stacks)
        if member is None:
            result[path] = rest.pop(path)
            continue
        layers = []
        while member(len(layers)) in rest:
            # Taken out one by one, so that what is already stacked need not be held twice.
            layers.append(rest.pop(member(len(layers))))
        if not layers:
            raise ValueError(f"no layer {member(0)!r} to stack into {path!r}")
        result[path] = np.stack(layers)
        del layers
    return result


def fill(name: str, numbers: Mapping[str, int]) -> str:
    """`layers.{i+1}.norm` and {"i": 2} -> `layers.3.norm`."""
    return re.sub(r"\{(\w+)(?:\+(\d+))?\}", lambda m: str(numbers[m[1]] + int(m[2] or 0)), name)


def _member(path: str, stacks: Mapping[str, str]) -> Callable[[int], str] | None:
    """From the number of a layer to its path, for the path of a leaf of a scanned module; None for any other."""
    for stacked, layer in stacks.items():
        if path.startswith(f"{stacked}/"):
            rest = path.removeprefix(stacked)
            return lambda i: fill(layer, {"i": i}) + rest
    return None
