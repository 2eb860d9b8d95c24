"""Softmax attention: one function, several ways to compute it, none chosen behind the caller's back.

Shapes: B batch, Q queries, K keys, H query heads, Hk key-value heads (H is a multiple of Hk: query head h reads
key-value head h // (H / Hk)), D width of a query and key head, E width of a value head.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flashjax.ops import platform
from flashjax.ops.blocked_attention import blocked
from flashjax.ops.pairs import HIDDEN, Seen, exponentials, pair_mask

Implementation = Literal["auto", "xla", "blocked", "cudnn"]

BLOCKED_FROM = {"cpu": 128, "gpu": 1024, "tpu": 1024}
"""By platform: `auto` takes the blocked form where queries times keys reach the square of this."""


def dot_product_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K Hk D"],
    v: Float[Array, "B K Hk E"],
    *,
    bias: Any = None,
    causal: bool = False,
    q_positions: Int[Array, "#B Q"] | None = None,
    k_positions: Int[Array, "#B K"] | None = None,
    q_segment_ids: Int[Array, "B Q"] | None = None,
    k_segment_ids: Int[Array, "B K"] | None = None,
    window: int | None = None,
    scale: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "B Q H E"]:
    """softmax(scale q k^T + bias) v over the keys that each query sees; logits and softmax in float32.

    Args:
        bias: added to the logits: an array that broadcasts to [B, H, Q, K], or a pytree that is called as
            `bias(q_positions [Q'], k_positions [K'])` and gives [H, Q', K'] for any part of the positions, so that the
            blocked form never holds it whole (`flashjax.layers.positions` has such). Both are differentiated.
        causal: a query sees the keys whose position is not above its own.
        q_positions, k_positions: default 0, 1, 2 ... for both; the same for all rows where `bias` is called.
        q_segment_ids, k_segment_ids: a query sees the keys of its own segment; 0 is padding, which nobody sees.
        window: a query sees keys nearer than this: |q position - k position| < window.
        scale: default D^-1/2.
        implementation: `xla` holds all logits at once. `blocked` never holds more than a few blocks of them, forward
            and backward (online softmax, Dao et al. 2022), and passes over the blocks above the diagonal and outside of
            the window where positions are the default ones. `cudnn` is NVIDIA's kernel. `auto` is `xla` for one
            query, and below `BLOCKED_FROM`^2 pairs, and `blocked` from there on.

    Returns attention in v's dtype; a query that sees nothing gets 0 and passes gradients of 0.

    Raises:
        ValueError: for heads that do not divide, a window below 1, segments of one side alone, or an implementation
            that is unknown or not to be had here.
    """
    _check(q, k, window, q_segment_ids, k_segment_ids, implementation)
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    if implementation == "auto":
        least = BLOCKED_FROM.get(platform.traced_for(), 1024)
        implementation = "blocked" if q.shape[1] * k.shape[1] >= least**2 and q.shape[1] > 1 else "xla"
        platform.chosen("implementation", implementation)
    seen = Seen(causal, window, q_positions, k_positions, q_segment_ids, k_segment_ids)
    if implementation == "blocked":
        return blocked(q, k, v, bias, seen, scale)
    if callable(bias):
        bias = bias(seen.q_index(q.shape[1])[0], seen.k_index(k.shape[1])[0])
    compute = _cudnn if implementation == "cudnn" else _xla
    return compute(q, k, v, bias, seen, scale)


def cached_attention(
    q: Float[Array, "B H D"],
    keys: Float[Array, "B Hk K D"],
    values: Float[Array, "B Hk K E"],
    at: Int[Array, "B"],
    *,
    bias: Array | None = None,
    window: int | None = None,
    scale: float | None = None,
) -> Float[Array, "B H E"]:
    """Attention of one token a row, at position `at`, over keys and values 0 to `at` of a cache.

    As `dot_product_attention` otherwise; `bias` broadcasts to [B, H, K]. Heads come first in the cache, so that each is
    read in order as it lies.
    """
    (B, H, D), (Hk, K) = q.shape, keys.shape[1:3]
    scale = float(D**-0.5) if scale is None else scale
    q = (q * jnp.asarray(scale, q.dtype)).reshape(B, Hk, H // Hk, D)
    logits = jnp.einsum("bhgd,bhkd->bhgk", q, keys.astype(q.dtype), preferred_element_type=jnp.float32)
    if bias is not None:
        bias = jnp.broadcast_to(bias, jnp.broadcast_shapes(jnp.shape(bias), (1, H, 1)))
        logits = logits + bias.reshape(bias.shape[0], Hk, H // Hk, bias.shape[-1]).astype(jnp.float32)
    mask = pair_mask(True, window, at[:, None], jnp.arange(K)[None], None, None)
    assert mask is not None
    weights, total = exponentials(jnp.where(mask[:, None], logits, HIDDEN))
    o = jnp.einsum("bhgk,bhke->bhge", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (o / total[..., None]).reshape(B, H, values.shape[-1]).astype(values.dtype)


def _check(q: Array, k: Array, window: int | None, q_ids: Any, k_ids: Any, implementation: str) -> None:
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads do not divide into {k.shape[2]} key-value heads")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it must be at least 1 (a token sees itself), or None")
    if (q_ids is None) != (k_ids is None):
        raise ValueError("segments of queries and of keys come together: pass q_segment_ids and k_segment_ids")
    if implementation not in ("auto", "xla", "blocked", "cudnn"):
        raise ValueError(f"unknown implementation {implementation!r}; choose auto, xla, blocked or cudnn")
    if implementation == "cudnn" and (here := platform.traced_for()) != "gpu":
        raise ValueError(f"implementation 'cudnn' needs an NVIDIA GPU, and this is for a {here}: use auto")


def _xla(q: Array, k: Array, v: Array, bias: Array | None, seen: Seen, scale: float) -> Array:
    """All logits at once."""
    B, Q, H, D = q.shape
    K, Hk = k.shape[1:3]
    q = (q * jnp.asarray(scale, q.dtype)).reshape(B, Q, Hk, H // Hk, D)
    logits = jnp.einsum("bqhgd,bkhd->bhgqk", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        bias = jnp.broadcast_to(bias, jnp.broadcast_shapes(jnp.shape(bias), (1, H, 1, 1)))
        logits = logits + bias.reshape(bias.shape[0], Hk, H // Hk, *bias.shape[2:]).astype(jnp.float32)
    mask = seen.mask(Q, K)
    if mask is not None:
        mask = mask[:, None, None]
        logits = jnp.where(mask, logits, HIDDEN)
    weights, total = exponentials(logits)
    o = jnp.einsum("bhgqk,bkhe->bqhge", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    # Divided after the product: E numbers a query instead of K.
    o = o / total.transpose(0, 3, 1, 2)[..., None]
    return o.reshape(B, Q, H, v.shape[-1]).astype(v.dtype)


def _cudnn(q: Array, k: Array, v: Array, bias: Array | None, seen: Seen, scale: float) -> Array:
    """NVIDIA's kernel, which wants 16-bit inputs; it raises for what it does not take."""
    plain = seen.q_positions is None and seen.k_positions is None and seen.q_ids is None and seen.window is None
    mask = None if plain else seen.mask(q.shape[1], k.shape[1])
    o = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=None if bias is None else jnp.broadcast_to(bias, (1, q.shape[2], q.shape[1], k.shape[1])).astype(q.dtype),
        mask=None if mask is None else mask[:, None],
        scale=scale,
        is_causal=plain and seen.causal,
        implementation="cudnn",
    )
    return o if mask is None else jnp.where(mask.any(-1)[:, :, None, None], o, 0)
