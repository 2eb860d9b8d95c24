"""Attention in windows as a TPU's compiler likes it: two windows side by side in one product, tokens in the lanes.

A window of 7 x 7 tokens fills 49 of the 128 lanes of a tile, a head's 32 channels a quarter. Here two neighbours make
one rectangle of 7 x 14 (98 lanes), whose tokens see those of their own window alone, and heads stand as [channels,
tokens]. The function is that of windows one by one; what it changes for a TPU is in docs/plan.md.

Shapes: B batch; H, W map; C channels; M window side; t windows of a rectangle; N = t M*M its tokens; L rectangles of a
map; h heads, d channels of a head.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flashjax.ops.windows import relative_position_index

LANES = 128
"""Of a tile of a TPU's registers."""
APART = -1e30
"""The logit of two tokens of different windows: its exponential is 0."""


def together(size: tuple[int, int], window: int) -> int:
    """Windows of a rectangle: 2 where a map of `size` has an even number of them in a row and both fit the lanes."""
    return 2 if size[1] // window % 2 == 0 and 2 * window**2 <= LANES else 1


def _selection(length: int, side: int, shift: int) -> np.ndarray:
    """float32 [length, length / side, side]: which position of a rolled row is the i-th of rectangle j."""
    return np.roll(np.eye(length, dtype=np.float32), shift, axis=0).reshape(length, -1, side)


def _select(equation: str, x: Array, rows: np.ndarray) -> Array:
    # A product with ones and zeros moves tokens at the speed of the matrix unit, where slices of sublanes crawl. Exact:
    # each result has one term; float32 needs all of its passes for that.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, x, jnp.asarray(rows, x.dtype), precision=precision)


def partition(x: Float[Array, "B H W C"], window: int, count: int, shift: int) -> Float[Array, "B L N C"]:
    """Rolls a map up and left by `shift` and cuts it into rectangles of `count` windows, row by row.

    H must be a multiple of `window`, W of `count` times it.
    """
    B, H, W, C = x.shape
    rows = jnp.roll(x, -shift, axis=1).reshape(B, H // window, window, W, C)
    cut = _select("BriWC,Wjc->BrjicC", rows, _selection(W, count * window, shift))
    return cut.reshape(B, -1, count * window**2, C)


def reverse(
    rectangles: Float[Array, "B L N C"], window: int, count: int, shift: int, size: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """Undoes `partition` of a map of `size` = (H, W)."""
    (H, W), (B, _, _, C) = size, rectangles.shape
    cut = rectangles.reshape(B, H // window, W // (count * window), window, count * window, C)
    rows = _select("BrjicC,Wjc->BriWC", cut, _selection(W, count * window, shift))
    return jnp.roll(rows.reshape(B, H, W, C), shift, axis=1)


@lru_cache(maxsize=64)
def bias_index(window: int, table_window: int, count: int) -> np.ndarray:
    """int32 [N, N], keys by queries: the row of the bias table of each pair of tokens of a rectangle.

    Tokens of different windows have the row after the table's last, (2T-1)^2 for a window of side T = `table_window`.
    """
    row, column = np.divmod(np.arange(count * window**2), count * window)
    of_window, token = column // window, row * window + column % window
    index = relative_position_index(window, table_window).T[token[:, None], token[None, :]]
    apart = of_window[:, None] != of_window[None, :]
    return np.where(apart, (2 * table_window - 1) ** 2, index).astype(np.int32)


def position_bias(table: Float[Array, "offsets h"], index: np.ndarray) -> Float[Array, "1 h N N"]:
    """float32, keys by queries; `index` as `bias_index` gives it."""
    rows = jnp.concatenate([table.astype(jnp.float32), jnp.full((1, table.shape[1]), APART)])
    return rows[index].transpose(2, 0, 1)[None]


def _einsum(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _weights(q: Array, k: Array, bias: Array) -> tuple[Array, Array]:
    """Exponentials of the logits less each query's largest [B, L, h, keys, queries], and their sums over the keys."""
    logits = _einsum("BLhdm,BLhdn->BLhmn", k, q) + bias
    weights = jnp.exp(logits - logits.max(-2, keepdims=True))
    return weights, weights.sum(-2)


@jax.custom_vjp
def attend(
    q: Float[Array, "B L h d N"],
    k: Float[Array, "B L h d N"],
    v: Float[Array, "B L h d N"],
    bias: Float[Array, "l h N N"],
) -> Float[Array, "B L h d N"]:
    """Softmax attention of every rectangle; queries are scaled already.

    `bias` is float32, [1 or L, h, keys, queries], and added to the logits. Logits and softmax are float32, the weights
    that meet the values have their dtype; the backward pass computes the weights again.
    """
    return _attend(q, k, v, bias)


def _attend(q: Array, k: Array, v: Array, bias: Array) -> Array:
    weights, sums = _weights(q, k, bias)
    mixed = _einsum("BLhdm,BLhmn->BLhdn", v, weights.astype(v.dtype))
    return (mixed / sums[..., None, :]).astype(v.dtype)


def _forward(q: Array, k: Array, v: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    out = _attend(q, k, v, bias)
    return out, (q, k, v, bias, out)


def _backward(kept: tuple[Array, ...], of_out: Array) -> tuple[Array, ...]:
    q, k, v, bias, out = kept
    weights, sums = _weights(q, k, bias)
    weights = weights / sums[..., None, :]
    of_v = _einsum("BLhdn,BLhmn->BLhdm", of_out, weights.astype(v.dtype))
    # sum_m w_m dw_m of a query is what comes back to its result times the result.
    shared = (of_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-2)[..., None, :]
    of_logits = weights * (_einsum("BLhdm,BLhdn->BLhmn", v, of_out) - shared)
    of_bias = of_logits.sum(0)
    if bias.shape[0] == 1:
        of_bias = of_bias.sum(0, keepdims=True)
    of_logits = of_logits.astype(q.dtype)
    of_q = _einsum("BLhdm,BLhmn->BLhdn", k, of_logits)
    of_k = _einsum("BLhdn,BLhmn->BLhdm", q, of_logits)
    return of_q.astype(q.dtype), of_k.astype(k.dtype), of_v.astype(v.dtype), of_bias


attend.defvjp(_forward, _backward)
