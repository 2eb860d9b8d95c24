"""Softmax attention under a rule of distances (`flashjax.layers.extension`): of rows, and of one token and a cache.

Shapes: B batch, Q queries, K keys, H query heads, Hk key-value heads, D width of a query and key head, E of a value
head, P copies of a key that a cache keeps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flashjax.layers.extension import Extension, Part, applied, log_n, parts, seen
from flashjax.layers.positions import RopeParameters, rope_frequencies, rotate
from flashjax.ops.blocks import from_blocks, to_blocks
from flashjax.ops.pairs import HIDDEN, exponentials, same

BLOCK = 256
"""Queries whose logits are held at once."""


def attend(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K Hk D"],
    v: Float[Array, "B K Hk E"],
    q_positions: Int[Array, "B Q"],
    k_positions: Int[Array, "B K"],
    k_valid: Bool[Array, "B K"],
    rope: RopeParameters | None,
    extension: Extension,
    causal: bool = True,
    *,
    q_segment_ids: Int[Array, "B Q"] | None = None,
    k_segment_ids: Int[Array, "B K"] | None = None,
    length: int | Int[Array, ""] | None = None,
    interleaved: bool = False,
    scale: float | None = None,
    block: int = BLOCK,
) -> Float[Array, "B Q H E"]:
    """o_i = sum_j softmax_j(scale lambda_i q_i . R(d(i, j)) k_j) v_j over the keys that i sees, on unrotated q and k.

    Logits and softmax are float32, and no more than ``block`` queries' logits are held at once.

    Args:
        q_positions, k_positions: i and j, from 0 in each segment.
        k_valid: False for slots of a cache that are not filled, and for padding.
        rope: None: no positions (d does not matter).
        q_segment_ids, k_segment_ids: a query sees keys of its own segment, 0 none; both or neither.
        length: for `dynamic` and `longrope`, the length that angles are made for; default K. With one length a cached
            decoding equals the forward pass; with one that grows it could not, since what earlier tokens left was made
            with other angles.
        scale: of the logits; default D^-1/2.

    Returns attention in v's dtype; 0 for a query that sees nothing.
    """
    B, Q, H, D = q.shape
    K, Hk, E = k.shape[1], k.shape[2], v.shape[3]
    if H % Hk:
        raise ValueError(f"{H} query heads do not divide into {Hk} key-value heads")
    if (q_segment_ids is None) != (k_segment_ids is None):
        raise ValueError("segments of queries and of keys come together: pass q_segment_ids and k_segment_ids")
    unit = D**-0.5 if scale is None else scale
    turn = _turner(rope, D, K if length is None else length, interleaved)
    e = applied(extension, rope)
    ends, which = _ends(parts(e, q_positions[:, :1], k_positions, causal))
    turned_keys = [turn(k, at) for at in ends]
    keys = [turned_keys[n] for n in which]

    def of(q: Array, i: Array, ids: Array | None) -> Array:
        """Attention of some queries [B, n, H, D]."""
        logits = None
        for (where, at, _), key in zip(parts(e, i, k_positions, causal), keys, strict=True):
            turned = turn(q, at).reshape(B, -1, Hk, H // Hk, D)
            s = jnp.einsum("bqhgd,bkhd->bhgqk", turned, key, preferred_element_type=jnp.float32)
            logits = s if logits is None or where is None else jnp.where(where[:, None, None], s, logits)
        assert logits is not None
        mask = seen(e, i, k_positions, causal) & k_valid[:, None, :]
        if ids is not None and k_segment_ids is not None:
            mask &= same(ids, k_segment_ids)
        factor = unit * log_n(e, mask.sum(-1))[:, None, None, :, None]
        weights, total = exponentials(jnp.where(mask[:, None, None], logits * factor, HIDDEN))
        o = jnp.einsum("bhgqk,bkhe->bqhge", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        o = o / total.transpose(0, 3, 1, 2)[..., None]
        return o.reshape(B, -1, H, E).astype(v.dtype)

    if block >= Q:
        return of(q, q_positions, q_segment_ids)
    given = jax.tree.map(lambda x: to_blocks(x, block, 1).swapaxes(0, 1), (q, q_positions, q_segment_ids))
    o = jax.lax.map(jax.checkpoint(lambda x: of(*x)), given)  # [blocks, B, block, H, E]
    return from_blocks(o.swapaxes(0, 1), Q, 1)


def key_copies(extension: Extension, rope: RopeParameters | None) -> int:
    """How many times a cache keeps each key: once for each b(j) that the rule has."""
    at = np.zeros((1, 1), np.int32)
    return len(_ends(parts(applied(extension, rope), at, at))[0])


def keys_to_keep(
    k: Float[Array, "B K Hk D"],
    k_positions: Int[Array, "B K"],
    rope: RopeParameters | None,
    extension: Extension,
    length: int | Int[Array, ""],
) -> Float[Array, "B K Hk PD"]:
    """The P copies of each key that `attend_cached` reads, rotated by their b(j), one behind the other.

    Arguments as those of `attend`. So a step rotates one key, and not all that are in the cache.
    """
    turn = _turner(rope, k.shape[-1], length, False)
    ends, _ = _ends(parts(applied(extension, rope), k_positions[:, :1], k_positions))
    return jnp.concatenate([turn(k, at) for at in ends], -1)


def attend_cached(
    q: Float[Array, "B H D"],
    keys: Float[Array, "B Hk K PD"],
    values: Float[Array, "B Hk K E"],
    at: Int[Array, "B"],
    rope: RopeParameters | None,
    extension: Extension,
    *,
    length: int | Int[Array, ""],
    scale: float | None = None,
) -> Float[Array, "B H E"]:
    """Causal `attend` of one token a row, at position `at`, over what `keys_to_keep` made of keys 0 to `at`.

    Each part's query stands before its copy of the keys, with zeros before the others: one product, which reads the
    cache once and in order.
    """
    (B, H, D), (Hk, K) = q.shape, keys.shape[1:3]
    unit = D**-0.5 if scale is None else scale
    e, turn = applied(extension, rope), _turner(rope, D, length, False)
    i, j = at[:, None], jnp.broadcast_to(jnp.arange(K), (B, K))
    rule = parts(e, i, j)
    ends, which = _ends(rule)
    turned = [turn(q[:, None], a)[:, 0].reshape(B, Hk, H // Hk, D) for _, a, _ in rule]
    sides = [(n * D, (len(ends) - 1 - n) * D) for n in which]
    queries = [jnp.pad(x, ((0, 0), (0, 0), (0, 0), side)) for x, side in zip(turned, sides, strict=True)]
    s = jnp.einsum("bhpgd,bhkd->bhpgk", jnp.stack(queries, 2), keys.astype(q.dtype), preferred_element_type=jnp.float32)
    logits = s[:, :, 0]
    for n, (where, _, _) in enumerate(rule[1:], 1):
        logits = jnp.where(where[:, :, None], s[:, :, n], logits)
    mask = seen(e, i, j)
    factor = unit * log_n(e, mask.sum(-1))[:, :, None, None]
    weights, total = exponentials(jnp.where(mask[:, :, None], logits * factor, HIDDEN))
    o = jnp.einsum("bhgk,bhke->bhge", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (o / total[..., None]).reshape(B, H, values.shape[-1]).astype(values.dtype)


def _ends(rule: list[Part]) -> tuple[list[Any], list[int]]:
    """(the different b(j) of a rule, the number of each part's among them): keys are rotated once for each."""
    ends = {id(b): b for _, _, b in rule}
    return list(ends.values()), [list(ends).index(id(b)) for _, _, b in rule]


def _turner(rope: RopeParameters | None, D: int, length: int | Array, interleaved: bool):
    """(x [B, N, H, D], positions [B, N]) -> x rotated."""
    if rope is None:
        return lambda x, at: x
    frequencies, scale = rope_frequencies(rope, D, length)
    return lambda x, at: rotate(x, at, frequencies, scale, interleaved)
