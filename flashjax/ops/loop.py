"""A stack of blocks as one loop, so that one turn is compiled for all; each block keeps its own parameters."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

KEPT = "kept"
ArrayT = TypeVar("ArrayT", bound=Array)


def keep(x: ArrayT) -> ArrayT:
    """x, which the backward pass finds kept under a policy of remat that asks for `KEPT`; under others x alone."""
    return checkpoint_name(x, KEPT)


def in_turns(
    turn: Callable[[Array, tuple[Any, ...]], Array], x: Array, blocks: Sequence[Any], each: int, names: tuple[str, ...]
) -> Array:
    """x after all blocks, `each` of them in a turn: `turn(x, its blocks)`.

    `blocks` are trees of arrays (parameters, draws), those that take the same place in a turn with the same shapes.
    They are stacked for the loop, which copies them once. The backward pass keeps what enters a turn and what is named
    in `names` (`KEPT`: by `keep`), and computes the rest of a turn again.

    Raises ValueError where the blocks do not divide into turns.
    """
    if len(blocks) % each:
        raise ValueError(f"{len(blocks)} blocks do not divide into turns of {each}")
    stacked = tuple(jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks[place::each]) for place in range(each))
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    body = jax.checkpoint(lambda x, own: (turn(x, own), None), policy=policy, prevent_cse=False)
    return jax.lax.scan(body, x, stacked)[0]
