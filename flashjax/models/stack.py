"""Parameters of a stack of layers: one leading dim for all (scanned), or a subtree for each (`layer_0`, `layer_1` ...).

Scanned layers compile once; a subtree for each is what decoding wants, which would otherwise copy a layer's weights out
of the stack at every token.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

STACKED, LAYER = "layers", re.compile(r"layer_(\d+)$")


def unstack(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`layers/...` [L, ...] to `layer_i/...` [...]; a tree without `layers` comes back as it is."""
    tree = dict(tree)
    stacked = tree.pop(STACKED, None)
    if stacked is None:
        return tree
    depth = jax.tree.leaves(stacked)[0].shape[0]
    return tree | {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(depth)}


def stack(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`layer_i/...` to `layers/...`; the reverse of `unstack`.

    Raises ValueError where layers are missing or are not alike.
    """
    found = {int(match[1]): name for name in tree if (match := LAYER.match(name))}
    if not found:
        return dict(tree)
    if sorted(found) != list(range(len(found))):
        raise ValueError(f"layers {sorted(found)} are not 0 to {len(found) - 1}")
    layers = [tree[found[i]] for i in range(len(found))]
    if len({jax.tree.structure(layer) for layer in layers}) > 1:
        raise ValueError("the layers hold different parameters and cannot be scanned: use scan_layers=False")
    rest = {name: value for name, value in tree.items() if name not in found.values()}
    return rest | {STACKED: jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
