"""Windows on a feature map: partition, the shift mask, and relative positions inside a window.

Everything that depends on sizes alone is a NumPy constant, computed once at trace time and cached.

Shapes: B batch; H, W map; C channels; M window side; N = M*M tokens of a window; L = (H/M)*(W/M) windows of a map.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flashjax.ops.platform import traced_for

MASKED = -100.0  # what Swin adds to a masked logit; finite, so that low precision and gradients behave
NEIGHBOURS = (0, 0), (1, 0), (0, 1), (1, 1)
"""(row, column) of the 2 x 2 tokens that are merged, in the official code's order: down the column first."""


def window_partition(x: Float[Array, "B H W C"], window: int) -> Float[Array, "B L N C"]:
    """Cuts a map into windows, row by row. H and W must be multiples of `window`."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // window, window, W // window, window, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, window * window, C)


def window_reverse(windows: Float[Array, "B L N C"], window: int, size: tuple[int, int]) -> Float[Array, "B H W C"]:
    """Puts the windows of `window_partition` back into a map of `size` = (H, W)."""
    (H, W), (B, _, _, C) = size, windows.shape
    x = windows.reshape(B, H // window, W // window, window, window, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)


@functools.lru_cache(maxsize=64)
def relative_position_index(window: int, table_window: int | None = None) -> np.ndarray:
    """int32 [N, N]: the row of the bias table that belongs to each (query, key) pair of a window.

    The table has (2T-1)^2 rows for a window of side T = `table_window`. A smaller window sees a part of the offsets, so
    it reads the same table. Source: Swin, `WindowAttention.relative_position_index`.
    """
    table_window = table_window or window
    if window > table_window:
        raise ValueError(f"a window of {window} reaches past a bias table made for {table_window}")
    coords = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    row, column = coords[:, :, None] - coords[:, None, :] + table_window - 1
    return (row * (2 * table_window - 1) + column).astype(np.int32)


@functools.lru_cache(maxsize=64)
def log_relative_coords(window: int, pretrained_window: int = 0) -> np.ndarray:
    """float32 [(2M-1)^2, 2]: log-spaced offsets, the input of Swin V2's bias network (paper section 3.3, equation 4).

    Offsets are divided by the reach of the window that the weights were trained with (`pretrained_window`, 0 for this
    one), scaled to [-8, 8], then sign(x) * log2(|x| + 1) / log2(8).
    """
    reach = max((pretrained_window or window) - 1, 1)  # a window of one token has the offset 0 alone
    offsets = np.arange(-(window - 1), window, dtype=np.float64) / reach * 8
    log_offsets = np.sign(offsets) * np.log2(np.abs(offsets) + 1) / np.log2(8)
    table = np.stack(np.meshgrid(log_offsets, log_offsets, indexing="ij"), axis=-1)
    return table.reshape(-1, 2).astype(np.float32)


@functools.lru_cache(maxsize=64)
def shift_regions(size: tuple[int, int], window: int, shift: int, count: int = 1) -> np.ndarray:
    """int8 [L, N]: which of the nine regions each token of the shifted map came from (paper figure 4).

    In windows, or with `count` in rectangles of so many windows side by side, row by row.
    """

    def bands(length: int) -> np.ndarray:
        position = np.arange(length)
        return (position >= length - window).astype(np.int8) + (position >= length - shift)

    H, W = size
    wide = count * window
    regions = bands(H)[:, None] * 3 + bands(W)[None, :]
    regions = regions.reshape(H // window, window, W // wide, wide).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(regions.reshape(-1, window * wide))


def shift_mask(size: tuple[int, int], window: int, shift: int, count: int = 1) -> Float[Array, "L N N"]:
    """float32: 0 between tokens that were neighbours before the shift, -100 between tokens that were not.

    `count` as of `shift_regions`. Built on the device from [L, N] region numbers, so that large maps do not embed
    gigabytes in the program.
    """
    regions = jnp.asarray(shift_regions(size, window, shift, count))
    return jnp.where(regions[:, :, None] != regions[:, None, :], jnp.float32(MASKED), jnp.float32(0))


def cyclic_shift(x: Float[Array, "B H W C"], shift: int) -> Float[Array, "B H W C"]:
    """Rolls a map up and left by `shift` (down and right where it is negative)."""
    return jnp.roll(x, (-shift, -shift), axis=(1, 2)) if shift else x


def rolled_by_sums(x: Float[Array, "B H W C"], shift: int) -> Float[Array, "B H W C"]:
    """Rolls a map up by `shift`, as the sum of its two parts, each with zeros around it.

    A TPU's compiler makes one pass of it, and of slices put together a copy for each.
    """
    H, zero = x.shape[1], jnp.zeros((), x.dtype)
    first = shift % H
    if not first:
        return x
    upper, lower = (
        jax.lax.pad(x, zero, ((0, 0, 0), (*rows, 0), (0, 0, 0), (0, 0, 0)))
        for rows in ((-first, first), (H - first, first - H))
    )
    return upper + lower


def merge_neighbours(x: Float[Array, "B H W C"]) -> Float[Array, "B h w four_C"]:
    """Each 2 x 2 of a map side by side (`NEIGHBOURS`).

    H and W must be even. For a TPU four slices with a stride: turned round, a map would be copied in the float32 of the
    norm behind it. A CPU's gradient is slower that way.
    """
    if traced_for() == "tpu":
        return jnp.concatenate([x[:, row::2, column::2] for row, column in NEIGHBOURS], axis=-1)
    B, H, W, C = x.shape
    x = x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(B, H // 2, W // 2, 4 * C)


def pad_to_multiple(x: Float[Array, "B H W C"], multiple: int) -> Float[Array, "B h w C"]:
    """Adds zeros at the bottom and at the right until both sides are multiples of `multiple`."""
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    if not (bottom or right):
        return x
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, bottom, 0), (0, right, 0), (0, 0, 0)))
