"""Mosaic: four images around a random point, seen through a window that is scaled and shifted.

Source: YOLOv5's loader and its `random_perspective` at the default hyper-parameters (no turn, no shear). Four images
of one size, in a grid of two by two, are the same thing as its canvas but for a shift: the junction of the grid lies at
the drawn center. So the whole transform is one scale and one shift for each axis.

Legend: *B none or the batch, H height, W width, C channels, M objects of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from flashjax.data.augment import draws as common
from flashjax.data.augment.draws import Images, Rng


class Tiling(NamedTuple):
    """`center` int32 [*B 2] (y, x) of the junction on a canvas of 2H x 2W; the canvas's middle is scaled by `scale`
    float32 [*B] and moved to `shift` float32 [*B 2] (y, x), in pixels of the result."""

    center: Any
    scale: Any
    shift: Any


@dataclass(frozen=True)
class Mosaic:
    """Images [*B 4 H W C] (top left, top right, bottom left, bottom right) -> one [*B H W C] with their boxes."""

    center: tuple[float, float] = (0.5, 1.5)
    """Range of the junction along each axis, as a share of an image's side; the canvas is 2."""
    scale: float = 0.5
    """The canvas is scaled by a factor uniform in 1 - scale .. 1 + scale."""
    translate: float = 0.1
    """Its middle lands within this share of a side around the middle of the result."""
    value: float = 114.0
    """What shows where no image is: a byte, for images in 0..255."""
    min_side: float = 2.0
    """A box is dropped unless both its sides are longer than this, in pixels of the result."""
    min_area: float = 0.1
    """A box is dropped unless more than this share of its (scaled) area is left by clipping to canvas and window."""
    max_aspect: float = 100.0
    """A box is dropped if one of its sides is this many times the other."""

    def __post_init__(self):
        common.check_range("center", self.center, low=-1e-9, high=2.0)
        for name in ("scale", "translate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in 0..1, 1 excluded, got {getattr(self, name)}")

    def draw(self, rng: Rng, shape: Sequence[int]) -> Tiling:
        """For images of this shape, [4 H W C] or [B 4 H W C]."""
        if len(shape) not in (4, 5) or shape[-4] != 4:
            raise ValueError(f"a mosaic takes images [4 H W C] or [B 4 H W C], got shape {tuple(shape)}")
        batch, (height, width) = tuple(shape[:-4]), shape[-3:-1]
        centers, scales, shifts = common.split(rng, 3)
        unit = common.units(centers, (*batch, 2))
        xp = common.namespace(unit)
        sides, (low, high) = xp.asarray([height, width]), self.center
        center = xp.floor((low + (high - low) * unit) * sides).astype(xp.int32)
        scale = 1 + self.scale * (2 * common.units(scales, batch) - 1)
        shift = (0.5 + self.translate * (2 * common.units(shifts, (*batch, 2)) - 1)) * sides
        return Tiling(center, xp.asarray(scale, xp.float32), xp.asarray(shift, xp.float32))

    def apply(self, images: Images, draws: Tiling) -> Images:
        """The window on the mosaic, bilinear; the dtype stays (uint8 is rounded)."""
        xp = common.namespace(images, draws.scale)
        *_, height, width, channels = images.shape
        batch = images.shape[:-4]
        grid = images.reshape(*batch, 2, 2, height, width, channels)
        grid = xp.moveaxis(grid, -4, -3).reshape(*batch, 2 * height, 2 * width, channels)
        made = grid.astype(xp.float32) - np.float32(self.value)
        for axis, size in ((0, height), (1, width)):
            made = _resample(made, self._positions(draws, axis, size), axis - 3)
        made = made + np.float32(self.value)
        if images.dtype == np.uint8:
            made = xp.clip(xp.rint(made), 0, 255)
        return made.astype(images.dtype)

    def apply_boxes(self, boxes: Any, valid: Any, draws: Tiling, height: int, width: int) -> tuple[Any, Any]:
        """The boxes of all four images in the window.

        Args:
            boxes: [*B 4 M 4] (x0, y0, x1, y1) in pixels of their own image.
            valid: bool [*B 4 M], False where a row is padding.
        Returns:
            float32 [*B 4M 4], clipped to the window, and bool [*B 4M]: False for padding and for what is dropped.
        """
        xp = common.namespace(boxes, draws.scale)
        if boxes.shape[-3] != 4 or boxes.shape[-1] != 4 or tuple(valid.shape) != tuple(boxes.shape[:-1]):
            raise ValueError(f"boxes are [*B 4 M 4] and valid [*B 4 M], got {boxes.shape} and {valid.shape}")
        # x and y, each with a box's two ends: [*B 4 M 2 (axis) 2 (end)] -> axes y, x.
        ends = xp.moveaxis(xp.asarray(boxes, xp.float32).reshape(*boxes.shape[:-1], 2, 2), -1, -2)[..., ::-1, :]
        sides = xp.asarray([height, width], xp.float32)[:, None]
        tile = xp.asarray([[0, 0], [0, 1], [1, 0], [1, 1]], xp.float32)[:, None, :, None]
        room = lambda array: array[..., None, None, :, None]  # noqa: E731  [*B 2] -> [*B 1 1 2 1]
        scale = draws.scale[..., None, None, None, None]
        canvas = xp.clip(ends + (tile - 1) * sides + room(draws.center), 0, 2 * sides)
        before = (canvas - sides) * scale + room(draws.shift)
        after = xp.clip(before, 0, sides)
        (h0, w0), (h1, w1) = ([part[..., axis, 1] - part[..., axis, 0] for axis in (0, 1)] for part in (before, after))
        tiny = np.float32(1e-16)
        aspect = xp.maximum(w1 / (h1 + tiny), h1 / (w1 + tiny))
        kept = (w1 > self.min_side) & (h1 > self.min_side) & (aspect < self.max_aspect)
        kept &= w1 * h1 / (w0 * h0 + tiny) > self.min_area
        made = xp.stack([after[..., 1, 0], after[..., 0, 0], after[..., 1, 1], after[..., 0, 1]], -1)
        batch = boxes.shape[:-3]
        return made.reshape(*batch, -1, 4), (kept & xp.asarray(valid)).reshape(*batch, -1)

    def apply_masks(self, masks: Any, draws: Tiling) -> Any:
        """Masks bool [*B 4 M H W] of the objects -> [*B 4M H W], by the nearest pixel."""
        xp = common.namespace(masks, draws.scale)
        *batch, _, objects, height, width = masks.shape
        made = masks
        for axis, size in ((0, height), (1, width)):
            position, inside = self._positions(draws, axis, size)
            first = xp.asarray([0, 0, size, size] if axis == 0 else [0, size, 0, size], xp.int32)[:, None]
            index = xp.floor(position + np.float32(0.5)).astype(xp.int32)[..., None, :] - first
            seen = (index >= 0) & (index < size) & inside(index + first)
            room = (*batch, 4, 1, size, 1) if axis == 0 else (*batch, 4, 1, 1, size)
            at = xp.clip(index, 0, size - 1).reshape(room)
            made = xp.take_along_axis(made, at, axis - 2) & seen.reshape(room)
        return made.reshape(*batch, 4 * objects, height, width)

    def __call__(self, rng: Rng, images: Images, boxes: Any, valid: Any | None = None) -> tuple[Images, Any, Any]:
        """Images [*B H W C], boxes [*B 4M 4] and valid [*B 4M]; see `apply` and `apply_boxes`."""
        xp = jnp if common.on_device(rng) else np
        images, boxes = xp.asarray(images), xp.asarray(boxes)
        valid = xp.ones(boxes.shape[:-1], bool) if valid is None else xp.asarray(valid)
        common.check_dtype(images)
        draws = self.draw(rng, images.shape)
        if tuple(boxes.shape[:-2]) != tuple(images.shape[:-3]):
            raise ValueError(
                f"boxes are [*B 4 M 4] beside images [*B 4 H W C], got {tuple(boxes.shape)} and {tuple(images.shape)}"
            )
        return self.apply(images, draws), *self.apply_boxes(boxes, valid, draws, *images.shape[-3:-1])

    def _positions(self, draws: Tiling, axis: int, size: int) -> tuple[Any, Any]:
        """Where in the grid of images each row (column) of the result comes from, float32 [*B size], and which
        integer positions lie on both the grid and the canvas."""
        xp = common.namespace(draws.scale)
        out = xp.arange(size, dtype=xp.float32) + np.float32(0.5)
        shift = size - draws.center[..., axis, None]  # from the canvas to the grid
        canvas = (out - draws.shift[..., axis, None]) / draws.scale[..., None] + np.float32(size - 0.5)

        def inside(index: Any) -> Any:
            first = shift.reshape(*shift.shape[:-1], *(1,) * (index.ndim - shift.ndim + 1))
            return (index >= xp.maximum(first, 0)) & (index < xp.minimum(first, 0) + 2 * size)

        return canvas + shift.astype(xp.float32), inside


def _resample(values: Any, where: tuple[Any, Any], axis: int) -> Any:
    """Linear interpolation along one axis of [*B h w C] (-3 or -2); outside there is 0."""
    xp = common.namespace(values)
    position, inside = where
    low = xp.floor(position)
    made: Any = 0
    for step in (0, 1):
        index = low.astype(xp.int32) + step
        share = 1 - xp.abs(position - index.astype(xp.float32))
        room = (*index.shape, 1, 1) if axis == -3 else (*index.shape[:-1], 1, index.shape[-1], 1)
        part = xp.take_along_axis(values, xp.clip(index, 0, values.shape[axis] - 1).reshape(room), axis)
        made = made + part * (share * inside(index)).astype(xp.float32).reshape(room)
    return made


PRESETS = {"yolov5": {}}
