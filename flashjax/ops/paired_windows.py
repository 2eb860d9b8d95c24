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

from flashjax.ops.loop import keep
from flashjax.ops.pairs import HIDDEN
from flashjax.ops.tpu_kernel import LANES
from flashjax.ops.windows import rolled_by_sums


def together(size: tuple[int, int], window: int) -> int:
    """Windows of a rectangle: 2 where a map of `size` has an even number of them in a row and both fit the lanes."""
    return 2 if size[1] // window % 2 == 0 and 2 * window**2 <= LANES else 1


@lru_cache(maxsize=64)
def _selection(width: int, window: int, count: int, shift: int) -> np.ndarray:
    """float32 [window, width, width / side, window * side], side = `count` windows: which token of a strip of windows,
    rolled left by `shift`, is which one of rectangle j."""
    columns = np.roll(np.eye(width, dtype=np.float32), shift, axis=0).reshape(width, -1, count * window)
    tokens = np.einsum("ab,wjs->awjbs", np.eye(window, dtype=np.float32), columns)
    return tokens.reshape(window, *columns.shape[:2], -1)


def _select(equation: str, x: Array, rows: np.ndarray) -> Array:
    """A product with ones and zeros: it moves tokens at the speed of the matrix unit, where slices of sublanes crawl.

    Exact: each result has one term at most; float32 needs all of its passes for that.
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, x, jnp.asarray(rows, x.dtype), precision=precision)


def partition(x: Float[Array, "B H W C"], window: int, count: int, shift: int) -> Float[Array, "B L C N"]:
    """Rolls a map up and left by `shift` and cuts it into rectangles of `count` windows, row by row.

    H must be a multiple of `window`, W of `count` times it. A product over a strip of windows, `2 window W` FLOPs for
    each number, hands the tokens to the lanes in whatever order the map lies.
    """
    B, H, W, C = x.shape
    strips = rolled_by_sums(x, shift).reshape(B, H // window, window, W, C)
    cut = _select("BriWC,iWjn->BrjCn", strips, _selection(W, window, count, shift))
    return cut.reshape(B, -1, C, count * window**2)


def reverse(
    rectangles: Float[Array, "B L C N"], window: int, count: int, shift: int, size: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """Undoes `partition` of a map of `size` = (H, W)."""
    (H, W), (B, _, C, N) = size, rectangles.shape
    cut = rectangles.reshape(B, H // window, W // (count * window), C, N)
    strips = _select("BrjCn,iWjn->BriWC", cut, _selection(W, window, count, shift))
    return rolled_by_sums(strips.reshape(B, H, W, C), -shift)


@lru_cache(maxsize=64)
def _offsets(window: int, table_window: int, count: int) -> np.ndarray:
    """int32 [N, N], keys by queries of a rectangle: the row of the bias table, -1 where two tokens share no window."""
    row, column = np.divmod(np.arange(count * window**2), count * window)
    number, column = np.divmod(column, window)
    down, right = (x[None, :] - x[:, None] + table_window - 1 for x in (row, column))
    return np.where(number[None, :] == number[:, None], down * (2 * table_window - 1) + right, -1).astype(np.int32)


def position_bias(
    table: Float[Array, "offsets h"], window: int, table_window: int, count: int
) -> Float[Array, "1 h N N"]:
    """float32, keys by queries: the bias of each pair of tokens of a rectangle of `count` windows, `HIDDEN` where they
    are in different ones.

    The table has (2T-1)^2 rows for a window of side T = `table_window`, as of `windows.relative_position_index`. Looked
    up by a product with ones, whose gradient is a product too: a TPU gathers and scatters numbers one by one.
    """
    rows, heads, tokens = *table.shape, count * window**2
    offsets = _offsets(window, table_window, count)
    one = jnp.asarray(offsets).reshape(1, -1) == jnp.arange(rows)[:, None]
    bias = jnp.einsum(
        "oh,op->hp", table.astype(jnp.float32), one.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    apart = np.where(offsets >= 0, np.float32(0), np.float32(HIDDEN))
    return bias.reshape(1, heads, tokens, tokens) + apart


def _einsum(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _logits(q: Array, k: Array, bias: Array) -> Array:
    return _einsum("BLhdm,BLhdn->BLhmn", k, q) + bias


@jax.custom_vjp
def attend(
    q: Float[Array, "B L h d N"],
    k: Float[Array, "B L h d N"],
    v: Float[Array, "B L h d N"],
    bias: Float[Array, "l h N N"],
) -> Float[Array, "B L h d N"]:
    """Softmax attention of every rectangle; queries are scaled already.

    `bias` is float32, [1 or L, h, keys, queries], and added to the logits. Logits and exponentials are float32; the
    weights that meet the values have their dtype and are divided by their own sum. The backward pass makes them again.
    """
    return _forward(q, k, v, bias)[0]


def _forward(q: Array, k: Array, v: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    logits = _logits(q, k, bias)
    largest = logits.max(-2, keepdims=True)
    # A row of ones under the values: the weights' sums come out of the product, not of another pass over the logits.
    ones = jnp.ones((*v.shape[:-2], 1, v.shape[-1]), v.dtype)
    mixed = _einsum("BLhdm,BLhmn->BLhdn", jnp.concatenate([v, ones], -2), jnp.exp(logits - largest).astype(v.dtype))
    mixed, sums = mixed[..., :-1, :], mixed[..., -1:, :]
    out, log_sums = keep((mixed / sums).astype(v.dtype)), keep(jnp.log(sums) + largest)
    return out, (q, k, v, bias, out, log_sums)


def _backward(kept: tuple[Array, ...], of_out: Array) -> tuple[Array, ...]:
    q, k, v, bias, out, log_sums = kept
    weights = jnp.exp(_logits(q, k, bias) - log_sums)
    of_v = _einsum("BLhdn,BLhmn->BLhdm", of_out, weights.astype(v.dtype))
    # sum_m w_m dw_m of a query is what comes back to its result times the result.
    shared = (of_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-2, keepdims=True)
    of_logits = weights * (_einsum("BLhdm,BLhdn->BLhmn", v, of_out) - shared)
    of_bias = of_logits.sum(0)
    if bias.shape[0] == 1:
        of_bias = of_bias.sum(0, keepdims=True)
    of_logits = of_logits.astype(q.dtype)
    of_q = _einsum("BLhdm,BLhmn->BLhdn", k, of_logits)
    of_k = _einsum("BLhdn,BLhmn->BLhdm", q, of_logits)
    return of_q.astype(q.dtype), of_k.astype(k.dtype), of_v.astype(v.dtype), of_bias


attend.defvjp(_forward, _backward)
