"""Softmax attention over a part of the keys, and how parts become one softmax: what sparse patterns are made of.

A pattern splits the keys that a query sees into parts that are each regular (a window, a column, some global tokens).
`partial` attends within one part and does not divide; `combine` puts parts that share no key together:

    l_ij = q_i . k_j / sqrt(D)    m_i = max_j l_ij
    weight_i = sum_j exp(l_ij - m_i)    total_i = sum_j exp(l_ij - m_i) v_j

Heads come first here. Shapes: B batch, N tokens, H heads, Q queries, K keys, D width of a query and key, E of a value;
L blocks of b tokens. Logits, weights and sums are float32 (float64 for such inputs). A query that sees no key gets 0.
`segments` int32 [B, N]: a query sees keys of its own number alone, and none of number 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flashjax.ops.blocks import from_blocks, neighbours, to_blocks
from flashjax.ops.pairs import FLOOR, HIDDEN, same

Mask = Bool[Array, "..."] | Bool[np.ndarray, "..."]


class Partial(NamedTuple):
    """Attention over a part of the keys: sums that are still to be divided, relative to the largest logit."""

    total: Array
    """float32 [..., Q, E]"""
    weight: Array
    """float32 [..., Q]"""
    largest: Array
    """float32 [..., Q]; HIDDEN where no key is seen."""


def partial(q: Float[Array, "*q Q D"], k: Float[Array, "*k K D"], v: Float[Array, "*k K E"], mask: Mask) -> Partial:
    """Attention to the keys that `mask` (broadcast to [..., Q, K]) lets through; time and memory Q * K.

    Leading dims of keys and queries broadcast: keys of size 1 there serve all queries.
    """
    exact = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=exact) * q.shape[-1] ** -0.5
    logits = jnp.where(mask, logits, HIDDEN)
    largest = jax.lax.stop_gradient(logits.max(-1))
    weights = jnp.exp(logits - jnp.maximum(largest, FLOOR)[..., None])
    total = jnp.einsum("...qk,...ke->...qe", weights.astype(v.dtype), v, preferred_element_type=exact)
    return Partial(total, weights.sum(-1), largest)


def combine(*parts: Partial) -> Float[Array, "*q Q E"]:
    """The softmax over all keys of the parts, float32; parts must share no key."""
    largest = jnp.stack([part.largest for part in parts]).max(0)
    scales = [jnp.exp(part.largest - largest) for part in parts]
    total = sum(scale[..., None] * part.total for scale, part in zip(scales, parts, strict=True))
    weight = sum(scale * part.weight for scale, part in zip(scales, parts, strict=True))
    return jnp.asarray(total) / jnp.where(jnp.asarray(weight) > 0, weight, 1)[..., None]


def masked_softmax(logits: Float[Array, "*b Q K"], mask: Mask) -> Float[Array, "*b Q K"]:
    """Softmax over the keys that `mask` lets through, in float32; rows that see nothing are 0."""
    logits = jnp.where(mask, logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), HIDDEN)
    return jnp.where(mask, jax.nn.softmax(logits, axis=-1), 0)


def window(
    q: Float[Array, "B H N D"],
    k: Float[Array, "B H N D"],
    v: Float[Array, "B H N E"],
    segments: Int[Array, "B N"],
    before: int,
    after: int,
    of_keys: Int[Array, "B N"] | None = None,
) -> Partial:
    """Query i sees keys i - before to i + after of its segment; `of_keys` are the keys' segments where they differ.

    Blocks of half the reach see their neighbours, so time and memory are N * 1.5 (before + after), about.
    """
    N = q.shape[2]
    before, after = min(before, N - 1), min(after, N - 1)
    b = min(max(-(-max(before, after) // 2), 16), N)  # smaller blocks waste less and run slower
    left, right = -(-before // b), -(-after // b)
    keys, values = (neighbours(to_blocks(x, b, 2), left, right, 2) for x in (k, v))
    of_keys = neighbours(to_blocks(segments if of_keys is None else of_keys, b, 1), left, right, 1)
    offset = np.arange(keys.shape[3]) - left * b - np.arange(b)[:, None]  # of key to query
    near = (-before <= offset) & (offset <= after)
    part = partial(to_blocks(q, b, 2), keys, values, near & same(to_blocks(segments, b, 1), of_keys)[:, None])
    return Partial(*(from_blocks(x, N, 2) for x in part))
