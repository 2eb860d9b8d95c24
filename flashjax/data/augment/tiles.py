"""Boxes of a batch on the device, written tile by tile, so that the other pixels are not touched.

A mask passes every pixel of the batch; boxes are a few per cent of them. XLA's shapes are static, so a box is covered
by tiles of one size, written one after another into the same buffer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Shaped

from flashjax.data.augment.draws import Patch

TILE = (16, 64)
"""Rows and columns."""


def write_boxes(
    images: Shaped[Array, "*B H W C"], boxes: Int32[Array, "*B N 4"], fill: Callable[[Patch, Array], Array]
) -> Shaped[Array, "*B H W C"]:
    """The images with their boxes (top, left, height, width; height 0: none) filled; of two that overlap the later
    one shows.

    Args:
        fill: from the pixels of a tile, and the number of the box among all B * N, to what fills it: [h w C], or less
            that broadcasts to it, in the dtype of the images.
    """
    height, width, channels = images.shape[-3:]
    flat, boxes = images.reshape(-1, height, width, channels), boxes.reshape(-1, 4)
    each = len(boxes) // len(flat)
    tall, broad = min(TILE[0], height), min(TILE[1], width)

    def write_box(number: Array, flat: Array) -> Array:
        top, left, h, w = boxes[number]
        across = -(-w // broad)

        def write_tile(place: Array, flat: Array) -> Array:
            # The last tile of a row or column would stick out of a small image: it is moved in.
            row = jnp.minimum(top + place // across * tall, height - tall)
            column = jnp.minimum(left + place % across * broad, width - broad)
            start = (number // each, row, column, 0)
            tile = jax.lax.dynamic_slice(flat, start, (1, tall, broad, channels))
            rows, columns = (row + jnp.arange(tall))[:, None, None], (column + jnp.arange(broad))[:, None]
            inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
            filled = jnp.where(inside, fill(Patch(rows, columns, width, channels), number), tile)
            return jax.lax.dynamic_update_slice(flat, filled, start)

        return jax.lax.fori_loop(0, jnp.where(h > 0, -(-h // tall) * across, 0), write_tile, flat)

    return jax.lax.fori_loop(0, len(boxes), write_box, flat).reshape(images.shape)
