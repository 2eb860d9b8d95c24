"""What each parameter's learning rate and weight decay are multiplied by: one table, by path.

Groups by regular expression, masks, layer-wise decay and the scales that a parametrization gives all end in it.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from flashjax.training.optimizers.config import Group, OptimizerConfig
from flashjax.training.optimizers.layers import layer_numbers, stack_depth
from flashjax.training.sharding import path_string

PyTree = Any
Rate = float | tuple[float, ...]
"""One factor, or one for each of a stack of layers."""


@dataclass(frozen=True)
class Scale:
    """Factors of a parameter's learning rate and weight decay."""

    learning_rate: Rate = 1.0
    """Of scanned layers, either one for all or one for each."""
    decay: float = 1.0


def decay_mask(params: PyTree, no_decay: tuple[str, ...] = (), decay_vectors: bool = False) -> PyTree:
    """The tree of `params` with True where weight decay applies.

    Left out are the leaves in whose '/'-joined path an expression of `no_decay` is found and, unless
    `decay_vectors`, those of fewer than two dims. Of scanned layers (below `layers/`) the dim of the layers is not
    counted. Only shapes are read: an abstract tree will do.

    Raises ValueError for an expression found in no path, with the nearest paths.
    """
    leaves = leaves_by_path(params)
    check_found("no_decay", no_decay, leaves)
    decays = [
        (decay_vectors or own_ndim(path, leaf) >= 2) and not any(re.search(pattern, path) for pattern in no_decay)
        for path, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), decays)


def optimizer_rows(
    config: OptimizerConfig, params: PyTree, scales: Mapping[str, Scale] | None = None
) -> dict[str, Scale]:
    """By path, in the order of `params` (abstract will do): factors of the learning rate and of the decay.

    The learning rate's is the product of the layer-wise decay, the first group that matches and `scales`; the decay's
    that of the mask (0 or 1), the group and `scales`.

    Raises ValueError for an expression that matches no parameter, and for a path of `scales` that is none.
    """
    leaves = leaves_by_path(params)
    scales = scales or {}
    if unknown := [path for path in scales if path not in leaves]:
        raise ValueError(
            f"scale of {unknown[0]!r}, which is no parameter; nearest: {', '.join(nearest(unknown[0], leaves))}"
        )
    check_found("group", [group.pattern for group in config.groups], leaves)
    mask = jax.tree.leaves(decay_mask(params, config.no_decay, config.decay_vectors))
    depth = _layer_rates(config.layer_decay, leaves)
    rows = {}
    for (path, leaf), decays in zip(leaves.items(), mask, strict=True):
        group = next((group for group in config.groups if re.search(group.pattern, path)), Group(path))
        scale = scales.get(path, Scale())
        if isinstance(scale.learning_rate, tuple) and len(scale.learning_rate) != stack_depth(path, leaf):
            raise ValueError(f"scale of {path}: {len(scale.learning_rate)} rates for {stack_depth(path, leaf)} layers")
        rate = _product(depth[path], group.learning_rate, scale.learning_rate)
        rows[path] = Scale(rate, decays * group.decay * scale.decay)
    return rows


def rate_columns(rows: Mapping[str, Scale]) -> dict[str, dict[str, str]]:
    """Two columns for the table of parameters: by header, the factors as text by path; of a stack, from first to last.

    `rows` are those of `optimizer_rows`.
    """

    def text(rate: Rate) -> str:
        return f"{rate[0]:.4g} to {rate[-1]:.4g}" if isinstance(rate, tuple) else f"{rate:.4g}"

    return {
        "rate": {path: text(row.learning_rate) for path, row in rows.items()},
        "decay": {path: text(row.decay) for path, row in rows.items()},
    }


def _layer_rates(layer_decay: float | None, leaves: Mapping[str, Any]) -> dict[str, Rate]:
    if layer_decay is None:
        return dict.fromkeys(leaves, 1.0)
    numbers, head = layer_numbers(leaves)

    def rate(number: int) -> float:
        return layer_decay ** (head - number)

    return {path: tuple(map(rate, n)) if isinstance(n, tuple) else rate(n) for path, n in numbers.items()}


def _product(*rates: Rate) -> Rate:
    """Of factors one for all layers, and one for each; equal ones for each become one for all."""
    layers = max(len(rate) if isinstance(rate, tuple) else 1 for rate in rates)
    columns = [rate if isinstance(rate, tuple) else (rate,) * layers for rate in rates]
    found = tuple(float(math.prod(factors)) for factors in zip(*columns, strict=True))
    return found[0] if len(set(found)) == 1 else found


def leaves_by_path(params: PyTree) -> dict[str, Any]:
    """Leaves by '/'-joined path."""
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def own_ndim(path: str, leaf: Any) -> int:
    """Dims of a layer's tensor, without the one of scanned layers."""
    return leaf.ndim - bool(stack_depth(path, leaf))


def check_found(what: str, patterns: Iterable[str], paths: Iterable[str]) -> None:
    """Raises ValueError for a pattern that is found in no path, with the nearest paths."""
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"{what} {pattern!r} matches no parameter; nearest paths: {', '.join(nearest(pattern, paths))}"
            )


def nearest(pattern: str, paths: Iterable[str], count: int = 3) -> list[str]:
    """The paths of which the whole or one component resembles `pattern` most."""

    def likeness(path: str) -> float:
        return max(difflib.SequenceMatcher(None, pattern, part).ratio() for part in (path, *path.split("/")))

    return sorted(paths, key=likeness, reverse=True)[:count]
