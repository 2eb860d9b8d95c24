"""A stack of layers: how it is run, and its parameters, which have one leading dim for all (scanned), or a subtree for
each (`layer_0`, `layer_1` ...). And the end of a language model, behind it.

Scanned layers compile once; a subtree for each is what decoding wants, which would otherwise copy a layer's weights out
of the stack at every token.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from flashjax.layers.embedding import Head, project
from flashjax.ops.loop import KEPT

STACKED, LAYER = "layers", re.compile(r"layer_(\d+)$")
_POLICIES = jax.checkpoint_policies
REMAT = {
    "none": None,
    "full": None,
    "dots": _POLICIES.save_from_both_policies(
        _POLICIES.dots_with_no_batch_dims_saveable, _POLICIES.save_only_these_names(KEPT)
    ),
}
"""What each policy keeps for the backward pass; "none" recomputes nothing. "dots" keeps products with weights, and what
`flashjax.ops.loop.keep` names: what comes out of blocked attention."""

Cache = dict[str, Any]
Context = dict[str, Any]
"""What all layers are given besides the stream: positions, segment ids, and what their kind asks for."""
Mode = Literal["full", "prefill", "step"]
"""All tokens of a row; prompts into an empty cache; one token more in each row."""


def apply_layers(
    kind: type[nn.Module],
    arguments: Sequence[tuple[Any, ...]],
    scanned: bool,
    remat: Literal["none", "full", "dots"],
    x: Float[Array, "B N C"],
    cache: Cache | None,
    context: Context,
) -> tuple[Float[Array, "B N C"], Cache]:
    """(stream after all layers, the state of each): part of a compact method, whose submodules the layers become.

    Args:
        kind: of the layers; `layer(x, state, context)` gives (stream, state after it).
        arguments: each layer's, in order; scanned layers are all built with the first one's.
        scanned: one compiled layer for all, named "layers"; otherwise "layer_0", "layer_1" ...
        remat: what each recomputes in the backward pass.
        cache: states before, by those names; None: layers that remember nothing.

    Raises ValueError for rows of no tokens.
    """
    if not x.shape[1]:
        raise ValueError(f"rows of no tokens {x.shape[:2]}: give at least one")
    before = cache or {}
    if remat != "none":
        kind = nn.remat(kind, policy=REMAT[remat], prevent_cse=not scanned)
    if scanned:
        layers = nn.scan(
            kind,
            variable_axes={True: 0},
            split_rngs={True: True},
            in_axes=(0, nn.broadcast),  # type: ignore[arg-type]
            length=len(arguments),
        )
        x, states = layers(*arguments[0], name=STACKED)(x, before.get(STACKED), context)
        return x, {STACKED: states}
    after: Cache = {}
    for i, its in enumerate(arguments):
        name = f"layer_{i}"
        x, after[name] = kind(*its, name=name)(x, before.get(name), context)
    return x, after


def to_logits(
    x: Float[Array, "B N C"],
    embed: Float[Array, "V C"],
    head: Head | None,
    mode: Mode,
    lengths: Int[Array, "B"] | None = None,
) -> Float[Array, "B *N V"]:
    """Float32 logits of every token, or of a row's last one where it is decoded: of a prompt the one at lengths - 1.

    By `head`, or where it is None by the embedding.
    """
    if mode == "prefill":
        assert lengths is not None
        x = x[jnp.arange(x.shape[0]), lengths - 1]
    elif mode == "step":
        x = x[:, 0]
    logits = project(x, embed.T) if head is None else head(x)
    return with_logical_constraint(logits, ("batch", *map(length_name, x.shape[1:-1]), "vocab"))


def length_name(tokens: int) -> str | None:
    """Name of the dim of tokens; that of a single one is not split."""
    return "length" if tokens > 1 else None


def unstack(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`layers/...` [L, ...] to `layer_i/...` [...]; a tree without `layers` comes back as it is."""
    tree = dict(tree)
    stacked = tree.pop(STACKED, None)
    if stacked is None:
        return tree
    depth = jax.tree.leaves(stacked)[0].shape[0]
    return tree | {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(depth)}


def stack(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`layer_i/...` to `layers/...`; the reverse of `unstack`. NumPy's arrays stay on the host.

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

    def joined(*leaves: Any) -> Any:
        return (np if all(isinstance(x, np.ndarray) for x in leaves) else jnp).stack(leaves)

    return rest | {STACKED: jax.tree.map(joined, *layers)}
