"""A dim of tokens, cut into blocks: of chunks, of windows, of queries that are taken together."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def to_blocks(x: Array, block: int, axis: int) -> Array:
    """Cuts dim `axis` [N] into [L, block], with zeros behind where N is no multiple."""
    axis %= x.ndim
    behind = -x.shape[axis] % block
    if behind:
        x = jnp.pad(x, [(0, behind if i == axis else 0) for i in range(x.ndim)])
    return x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


def from_blocks(x: Array, length: int, axis: int) -> Array:
    """Joins dims `axis` [L] and the next [block] again and cuts them off after `length`."""
    axis %= x.ndim
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def neighbours(x: Array, before: int, after: int, axis: int) -> Array:
    """For each block along `axis` (blocks, then tokens) also those `before` and `after` it, its tokens between theirs.

    Zeros stand where there is no block. Slices and a concatenation, whose backward pass has no scatter.
    """
    axis %= x.ndim
    L = x.shape[axis]
    x = jnp.pad(x, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)])
    shifted = [jax.lax.slice_in_dim(x, i, i + L, axis=axis) for i in range(before + 1 + after)]
    return jnp.concatenate(shifted, axis=axis + 1)
