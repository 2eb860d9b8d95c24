"""Hiding parts of an image: Cutout, Hide-and-Seek and GridMask.

Sources: "Improved Regularization of Convolutional Neural Networks with Cutout" (1708.04552), "Hide-and-Seek"
(1811.02545), "GridMask Data Augmentation" (2001.04086), and their official codes. All of them put `value` where they
hide; the codes do so after normalisation, where 0 is the mean of the data set.

Legend: *B none or the batch, H height, W width, C channels, N holes, G cells along a side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flashjax.data.augment import draws as common
from flashjax.data.augment.draws import Augmentation, Images, Rng


@dataclass(frozen=True)
class Cutout(Augmentation):
    """Squares around uniform centers, cut off at the edges of the image. Draws: boxes int32 [*B N 4] (top, left,
    height, width) of what lies inside the image."""

    length: int = 16
    """Side of a square, in pixels (the paper's: 16 for CIFAR-10, 8 for CIFAR-100, 20 for SVHN)."""
    holes: int = 1
    """Squares in each image."""
    prob: float = 1.0
    """Probability that an image is cut at all."""
    value: float | tuple[float, ...] = 0.0
    """What hides: a number, or one for each channel."""

    def __post_init__(self):
        common.check_unit(prob=self.prob)
        for name in ("length", "holes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def draw(self, rng: Rng, shape: Sequence[int]) -> Any:
        batch, height, width, _ = common.image_dims(shape)
        coin, places = common.split(rng, 2)
        cut = common.units(coin, batch) < self.prob
        xp = common.namespace(cut)
        place = common.units(places, (*batch, self.holes, 2))
        sides = []
        for axis, size in enumerate((height, width)):
            first = common.below(place[..., axis], size) - self.length // 2
            start, stop = xp.maximum(first, 0), xp.minimum(first + self.length, size)
            sides.append((start, stop - start))
        (top, h), (left, w) = sides
        box = xp.stack([top, left, h, w], -1)
        return xp.where(cut[..., None, None], box, 0).astype(xp.int32)

    def apply(self, images: Images, draws: Any) -> Images:
        if isinstance(images, jax.Array):
            return common.hide(images, common.covered(draws, *images.shape[-3:-1]), self.value)
        images = images.copy()
        value = common.constant(self.value, images)
        for index in np.ndindex(draws.shape[:-1]):
            top, left, h, w = (int(number) for number in draws[index])
            images[(*index[:-1], slice(top, top + h), slice(left, left + w))] = value
        return images


class Hiding(NamedTuple):
    """Hide-and-Seek: `size` int32 [*B] of a cell in pixels (0: the image stays), and which cells are hidden, bool
    [*B G G]; cells past the image's edge are never looked at."""

    size: Any
    hidden: Any


@dataclass(frozen=True)
class HideAndSeek(Augmentation):
    """A grid of square cells, each of which is hidden or not."""

    grids: tuple[int, ...] = (0, 16, 32, 44, 56)
    """Sides of a cell in pixels, one drawn for each image; 0 hides nothing (the official code's, for 224)."""
    prob: float = 0.5
    """Probability that a cell is hidden."""
    value: float | tuple[float, ...] = 0.0
    """What hides: a number, or one for each channel."""

    def __post_init__(self):
        common.check_unit(prob=self.prob)
        if not self.grids or min(self.grids) < 0 or max(self.grids) == 0:
            raise ValueError(f"grids are sides of cells in pixels, at least one of them above 0, got {self.grids}")

    def draw(self, rng: Rng, shape: Sequence[int]) -> Hiding:
        batch, height, width, _ = common.image_dims(shape)
        sizes, cells = common.split(rng, 2)
        which = common.below(common.units(sizes, batch), len(self.grids))
        xp = common.namespace(which)
        smallest = min(size for size in self.grids if size)
        most = tuple(math.ceil(side / smallest) for side in (height, width))
        return Hiding(xp.asarray(self.grids, xp.int32)[which], common.units(cells, (*batch, *most)) < self.prob)

    def apply(self, images: Images, draws: Hiding) -> Images:
        xp = common.namespace(images, draws.hidden)
        side = xp.maximum(draws.size, 1)[..., None]
        # A cell of 0 pixels hides nothing; its indices, which would pass the last cell, must still exist.
        row, column = (
            xp.minimum(xp.arange(size, dtype=xp.int32) // side, cells - 1)
            for size, cells in zip(images.shape[-3:-1], draws.hidden.shape[-2:], strict=True)
        )
        if xp is np:
            hidden = np.take_along_axis(np.take_along_axis(draws.hidden, row[..., None], -2), column[..., None, :], -1)
        else:  # a look-up by two products of zeros and ones, which devices do faster than gathers
            rows, columns = (
                jax.nn.one_hot(index, cells)
                for index, cells in zip((row, column), draws.hidden.shape[-2:], strict=True)
            )
            hidden = jnp.einsum("...hg,...gk,...wk->...hw", rows, draws.hidden.astype(jnp.float32), columns) > 0.5
        return common.hide(images, hidden & (draws.size > 0)[..., None, None], self.value)


class Grid(NamedTuple):
    """GridMask: `active` bool [*B], `period` and `width` of the stripes int32 [*B], `offset` int32 [*B 2] of the first
    stripe (row, column), and `matrix` int32 [*B 6] from a pixel to the turned grid, in 1/65536 of a pixel."""

    active: Any
    period: Any
    width: Any
    offset: Any
    matrix: Any


@dataclass(frozen=True)
class GridMask(Augmentation):
    """Squares on a regular, turned grid. Horizontal and vertical stripes of `ratio` of a period cross each other; the
    image is kept on them and hidden in the squares between (`invert`, the paper's), or the other way round."""

    period: tuple[int, int] = (96, 224)
    """Range (d1, d2) of the period in pixels, d2 excluded (the official code's for ImageNet at 224)."""
    ratio: float = 0.6
    """Width of a stripe as a share of the period."""
    rotate: int = 360
    """The grid is turned by a whole number of degrees below this; 1: not at all."""
    invert: bool = True
    """Hide the squares between the stripes (the official mode 1) rather than the stripes (mode 0)."""
    prob: float = 0.8
    """Probability that an image is masked. The official runs raise it linearly from 0 over 240 of 300 epochs: pass
    `prob` to `draw`, which may be traced."""
    value: float | tuple[float, ...] = 0.0
    """What hides: a number, or one for each channel."""

    def __post_init__(self):
        common.check_unit(prob=self.prob, ratio=self.ratio)
        if not 2 <= self.period[0] < self.period[1]:
            raise ValueError(f"period must be a range (d1, d2) of pixels with 2 <= d1 < d2, got {self.period}")
        if self.rotate < 1:
            raise ValueError(f"rotate must be at least 1 (no turn), got {self.rotate}")

    def draw(self, rng: Rng, shape: Sequence[int], prob: Any = None) -> Grid:
        """`prob`, a number or a traced one, takes the place of the field."""
        batch, height, width, _ = common.image_dims(shape)
        coin, periods, offsets, turns = common.split(rng, 4)
        active = common.units(coin, batch) < (self.prob if prob is None else prob)
        xp = common.namespace(active)
        period = self.period[0] + common.below(common.units(periods, batch), self.period[1] - self.period[0])
        stripe = xp.floor(period * self.ratio + 0.5).astype(xp.int32)
        offset = common.below(common.units(offsets, (*batch, 2)), period[..., None])
        degrees = common.below(common.units(turns, batch), self.rotate)
        return Grid(active, period, stripe, offset, rotation(degrees, int(1.5 * height), int(1.5 * width)))

    def apply(self, images: Images, draws: Grid) -> Images:
        xp = common.namespace(images, draws.period)
        height, width = images.shape[-3:-1]
        # The grid lies on a canvas of 1.5 times the image, so that its corners stay outside however it is turned.
        y = (int(1.5 * height) - height) // 2 + xp.arange(height, dtype=xp.int32)
        x = (int(1.5 * width) - width) // 2 + xp.arange(width, dtype=xp.int32)
        if self.rotate == 1:
            row, column = y[:, None], x[None, :]
        else:
            a, b, c, d, e, f = (draws.matrix[..., i, None, None] for i in range(6))
            column, row = (a * x + b * y[:, None] + c) >> 16, (d * x + e * y[:, None] + f) >> 16
        period, stripe = draws.period[..., None, None], draws.width[..., None, None]
        top, left = draws.offset[..., 0, None, None], draws.offset[..., 1, None, None]
        stripes = (_modulo(row - top, period) < stripe) | (_modulo(column - left, period) < stripe)
        hidden = (~stripes if self.invert else stripes) & draws.active[..., None, None]
        return common.hide(images, hidden, self.value)


def _modulo(number: Any, period: Any) -> Any:
    """`number % period` by a multiplication; half a pixel keeps it exact for any image that can be held."""
    xp = common.namespace(number, period)
    whole = xp.floor((number.astype(xp.float32) + np.float32(0.5)) * (np.float32(1) / period.astype(xp.float32)))
    return number - whole.astype(xp.int32) * period


def rotation(degrees: Any, height: int, width: int) -> Any:
    """The matrix of a turn about the middle of a canvas, as Pillow's nearest-neighbour rotation has it: int32 [*B 6],
    in 1/65536 of a pixel, from the index (x, y) of a pixel to where it comes from."""
    xp = common.namespace(degrees)
    angle = degrees * (-math.pi / 180)
    # Rounded as Pillow does, so that quarter turns are exact.
    cosine, sine = (xp.where(xp.abs(part) < 1e-6, 0.0, part) for part in (xp.cos(angle), xp.sin(angle)))
    half_x, half_y = width / 2, height / 2

    def row(from_x: Any, from_y: Any, middle: float) -> list[Any]:
        shift = from_x * -half_x + from_y * -half_y + middle
        return [from_x, from_y, shift + from_x * 0.5 + from_y * 0.5]

    values = xp.stack([*row(cosine, sine, half_x), *row(-sine, cosine, half_y)], -1)
    return xp.floor(values * 65536 + 0.5).astype(xp.int32)


CUTOUT = {"cifar10": {}, "cifar100": {"length": 8}, "svhn": {"length": 20}}
HIDE_AND_SEEK = {"official": {}}
GRID_MASK = {"official": {}, "mode_0": {"invert": False}}
