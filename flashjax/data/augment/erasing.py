"""Random Erasing, in the variants in use, on whole images and inside objects.

Sources: "Random Erasing Data Augmentation" (1708.04896); its official code, torchvision's `RandomErasing` and timm's,
each of which is a preset. They differ in the law of the aspect ratio, in the area, in what fills a box and in when one
is rejected: docs/augment.md has the table. `RandomErasing` draws all attempts at once and takes the first that fits;
`sample_boxes` is the loop of timm with its order of draws, which the recipes of the house pipeline use.

Legend: *B none or the batch, H height, W width, C channels, N boxes in one image, A attempts, M objects of an image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from flashjax.data import augment
from flashjax.data.augment import draws as common
from flashjax.data.augment.draws import Augmentation, Images, Patch, Rng
from flashjax.data.augment.tiles import write_boxes
from flashjax.data.config import IMAGENET_MEAN, AugmentConfig

ATTEMPTS = 10


class Erasing(NamedTuple):
    """What is erased: `boxes` int32 [*B N 4] (top, left, height, width; height 0: none), and `key` uint32 [*B N 2]
    of the noise that fills each."""

    boxes: Any
    key: Any


@dataclass(frozen=True)
class RandomErasing(Augmentation):
    """A random box of each image is overwritten. The defaults are the paper's for classification (preset `paper`).

    Raises ValueError for a range that is none, and for what the images cannot hold (normal noise in uint8).
    """

    prob: float = 0.5
    """Probability that an image is erased at all."""
    area: tuple[float, float] = (0.02, 0.4)
    """Range (s_l, s_h) of the erased share of the image, uniform; all boxes together."""
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Range (r_1, r_2) of height over width."""
    aspect_law: Literal["linear", "log"] = "linear"
    """The aspect, or its logarithm, is uniform."""
    attempts: int = 100
    """Tries for each box; where none fits the image is left as it is."""
    placement: Literal["inside", "reject"] = "inside"
    """`inside`: a size that is smaller than the image is placed so that it fits. `reject`: a place is drawn with the
    size, and the attempt fails where the box sticks out (the paper's pseudocode; small boxes become likelier)."""
    count: tuple[int, int] = (1, 1)
    """Fewest and most boxes of an image, uniform; they share the area."""
    fill: Literal["pixel", "channel", "mean", "value"] = "pixel"
    """Noise for each pixel, noise for each channel of a box, the mean of the data set, or `value`."""
    noise: Literal["uniform", "normal"] = "uniform"
    """Random bytes (in floating-point images: what becomes of them, see `std`), or N(0, 1)."""
    value: float | tuple[float, ...] = 0.0
    """Fill `value`: a number, or one for each channel, as the images hold them."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel of the data set, for pixels in 0..1; one number serves all channels."""
    std: tuple[float, ...] | None = None
    """Floating-point images hold 0..1 where this is None; else they were normalised by `mean` and this deviation."""
    write: Literal["mask", "tiles"] = "mask"
    """On the device. `mask`: every pixel passes, in a pass that fuses with its neighbours and is split as the batch is.
    `tiles`: only where boxes are, one tile after another, in place where the caller donates the images: for a batch
    that lies on one CPU. The pixels are the same."""

    def __post_init__(self):
        common.check_unit(prob=self.prob)
        common.check_range("area", self.area, high=1.0)
        common.check_range("aspect", self.aspect)
        common.check_range("count", self.count)
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")

    def draw(self, rng: Rng, shape: Sequence[int]) -> Erasing:
        """Boxes for each image, and keys of their noise."""
        batch, height, width, _ = common.image_dims(shape)
        return self._draw(rng, batch, height, width)

    def draw_objects(self, rng: Rng, boxes: Any, valid: Any, height: int, width: int) -> Erasing:
        """Boxes inside objects: each object of an image is erased or not by itself, its area being the whole.

        Args:
            boxes: [*B M 4] (x0, y0, x1, y1) in pixels; the part outside of the image is left out.
            valid: bool [*B M], False where a row is padding.
        Returns:
            N = M * most of `count` boxes, in pixels of the image.
        """
        xp = common.namespace(boxes) if not common.on_device(rng) else jnp
        corner = xp.stack([boxes[..., 1], boxes[..., 0], boxes[..., 3], boxes[..., 2]], -1)
        limit = xp.asarray([height, width, height, width])
        outer = xp.concatenate([xp.floor(corner[..., :2]), xp.ceil(corner[..., 2:])], -1)
        top, left, bottom, right = xp.moveaxis(xp.clip(outer, 0, limit).astype(xp.int32), -1, 0)
        made = self._draw(rng, tuple(boxes.shape[:-1]), bottom - top, right - left)
        shift = xp.stack([top, left, xp.zeros_like(top), xp.zeros_like(top)], -1)
        erased = (made.boxes[..., 2:3] > 0) & xp.asarray(valid)[..., None, None]
        inside = xp.where(erased, made.boxes + shift[..., None, :], 0)
        objects, each = inside.shape[-3:-1]
        merge = lambda array: array.reshape(*array.shape[:-3], objects * each, array.shape[-1])  # noqa: E731
        return Erasing(merge(inside), merge(made.key))

    def apply(self, images: Images, draws: Erasing) -> Images:
        """Fills the boxes; where two overlap, the later one shows."""
        common.image_dims(images.shape)
        if not isinstance(images, jax.Array):
            return self._apply_slices(images, draws)
        if self.write == "tiles":
            keys = draws.key.reshape(-1, 2)
            return write_boxes(images, draws.boxes, lambda patch, number: self._noise(images, patch, keys[number]))
        return self._apply_masked(images, draws)

    def _draw(self, rng: Rng, batch: tuple[int, ...], height: Any, width: Any) -> Erasing:
        """`height` and `width` are numbers, or int arrays [*batch]."""
        most, reject = self.count[1], self.placement == "reject"
        coin, number, sizes, places, keys = common.split(rng, 5)
        hit = common.units(coin, batch) < self.prob
        xp = common.namespace(hit)
        count = self.count[0] + common.below(common.units(number, batch), most - self.count[0] + 1)
        size = common.units(sizes, (*batch, most, self.attempts, 2))
        place = common.units(places, (*batch, most, self.attempts if reject else 1, 2))
        # Room for the dims of boxes and attempts behind those of the batch.
        wide = lambda array: xp.asarray(array)[..., None, None]  # noqa: E731
        tall, broad = wide(height), wide(width)

        low, high = self.area
        area = (low + (high - low) * size[..., 0]) * (tall * broad) / wide(count)
        low, high = self.aspect
        if self.aspect_law == "linear":
            aspect = low + (high - low) * size[..., 1]
        else:
            low, high = math.log(low), math.log(high)
            aspect = xp.exp(low + (high - low) * size[..., 1])
        h, w = (xp.rint(xp.sqrt(side)).astype(xp.int32) for side in (area * aspect, area / aspect))
        if reject:
            top, left = common.below(place[..., 0], tall), common.below(place[..., 1], broad)
            fits = (top + h <= tall) & (left + w <= broad)
        else:
            fits = (h < tall) & (w < broad)
            top, left = (
                common.below(place[..., i], xp.maximum(a - b + 1, 1)) for i, a, b in ((0, tall, h), (1, broad, w))
            )
        boxes = xp.stack(xp.broadcast_arrays(top, left, h, w), -1)
        first = xp.argmax(fits, -1)[..., None, None]
        box = xp.take_along_axis(boxes, first, -2)[..., 0, :]
        used = hit[..., None] & fits.any(-1) & (xp.arange(most) < count[..., None])
        return Erasing(xp.where(used[..., None], box, 0).astype(xp.int32), common.words(keys, (*batch, most, 2)))

    def _apply_masked(self, images: jax.Array, draws: Erasing) -> jax.Array:
        *_, height, width, channels = images.shape
        whole = Patch(jnp.arange(height)[:, None, None], jnp.arange(width)[:, None], width, channels)
        if self.fill in ("mean", "value"):
            return jnp.where(
                common.covered(draws.boxes, height, width)[..., None], self._noise(images, whole, None), images
            )
        rows, columns = common.spans(draws.boxes, height, width)
        for slot in range(draws.boxes.shape[-2]):
            inside = (rows[..., slot, :, None] & columns[..., slot, None, :])[..., None]
            images = jnp.where(inside, self._noise(images, whole, draws.key[..., slot, :]), images)
        return images

    def _apply_slices(self, images: np.ndarray, draws: Erasing) -> np.ndarray:
        width, channels = images.shape[-2:]
        images = images.copy()
        for index in np.argwhere(np.asarray(draws.boxes)[..., 2] > 0):
            row, slot = tuple(index[:-1]), index[-1]
            top, left, h, w = (int(number) for number in draws.boxes[(*row, slot)])
            patch = Patch(np.arange(top, top + h)[:, None, None], np.arange(left, left + w)[:, None], width, channels)
            inside = (*row, slice(top, top + h), slice(left, left + w))
            images[inside] = self._noise(images, patch, np.asarray(draws.key)[(*row, slot)])
        return images

    def _noise(self, images: Images, patch: Patch, key: Any) -> Any:
        """What fills a patch of the images, in their dtype: [*B h w C], or less that broadcasts to it."""
        xp, channels, dtype = common.namespace(images), images.shape[-1], images.dtype
        if self.fill == "value":
            return common.constant(self.value, images)
        if self.fill == "mean":
            mean = common.per_channel(self.mean, channels, "mean")
            if dtype == np.uint8:
                return xp.asarray(np.rint(mean * 255).astype(np.uint8))
            return xp.asarray((np.zeros_like(mean) if self.std is not None else mean).astype(dtype))
        if self.fill == "channel":  # the noise of one pixel serves the box
            patch = Patch(xp.zeros((1, 1, 1), xp.int32), xp.zeros((1, 1), xp.int32), 1, channels)
        if self.noise == "normal":
            if dtype == np.uint8:
                raise ValueError(
                    "normal noise is for normalised floating-point images, these are uint8: noise='uniform'"
                )
            return common.random_normal(patch, key).astype(dtype)
        made = common.random_bytes(patch, key)
        if dtype == np.uint8:
            return made.astype(np.uint8)
        if self.std is None:
            return (made.astype(np.float32) * np.float32(1 / 255)).astype(dtype)
        mean, std = (common.per_channel(value, channels, "mean and std") for value in (self.mean, self.std))
        # One multiplication and one addition; the scale and shift are those of the normalisation, in float64.
        scale, shift = 1 / (255 * std.astype(np.float64)), mean.astype(np.float64) / std
        return (made.astype(np.float32) * xp.asarray(np.float32(scale)) - xp.asarray(np.float32(shift))).astype(dtype)


_CHOICES = {
    "aspect_law": ("linear", "log"),
    "placement": ("inside", "reject"),
    "fill": ("pixel", "channel", "mean", "value"),
    "noise": ("uniform", "normal"),
    "write": ("mask", "tiles"),
}

_LOG = {"aspect_law": "log", "attempts": 10, "fill": "value", "noise": "normal"}
PRESETS = {
    "paper": {},
    "pseudocode": {"placement": "reject"},
    "official": {"fill": "value", "value": (0.4914, 0.4822, 0.4465)},
    "torchvision": {"area": (0.02, 0.33), "aspect": (0.3, 3.3), **_LOG},
    "timm": {"area": (0.02, 1 / 3), **_LOG},
    "detection": {"area": (0.02, 0.2)},
}


def erase_objects(
    rng: Rng,
    images: Images,
    boxes: Any,
    valid: Any | None = None,
    where: Literal["image", "objects", "both"] = "both",
    masks: Any | None = None,
    preset: str = "detection",
    **fields: Any,
) -> tuple[Images, Any, Any]:
    """Random Erasing for detection (section 3.3 of the paper): IRE, ORE, or I+ORE.

    Args:
        images: [*B H W C].
        boxes: [*B M 4] (x0, y0, x1, y1) in pixels. They stay as they are, as in the paper, however much is hidden.
        valid: bool [*B M], False where a row of `boxes` is padding; None: all are objects.
        where: `image` erases the image (IRE), `objects` each object (ORE), `both` first the one, then the others.
        masks: bool [*B M H W]; what is erased is taken out of them. None where there are none.
        preset, fields: of `RandomErasing`.
    Returns:
        images, masks, and `visible` float32 [*B M]: the share of each box that was not erased, so that a caller can
        drop objects that are gone; 0 for padding.
    Raises:
        ValueError: another `where`, or arrays whose dims do not go together.
    """
    erasing = augment.create("random_erasing", preset, **fields)
    if where not in ("image", "objects", "both"):
        raise ValueError(f"unknown where {where!r}; known: image (IRE), objects (ORE), both (I+ORE)")
    batch, height, width, _ = common.image_dims(images.shape)
    if tuple(boxes.shape[:-2]) != batch or boxes.shape[-1] != 4:
        raise ValueError(f"boxes are [*B M 4] beside images [*B H W C], got {boxes.shape} and {images.shape}")
    if masks is not None and tuple(masks.shape) != (*boxes.shape[:-1], height, width):
        raise ValueError(f"masks are [*B M H W], want {(*boxes.shape[:-1], height, width)}, got {masks.shape}")
    xp = jnp if common.on_device(rng) else np
    images, boxes = xp.asarray(images), xp.asarray(boxes)
    valid = xp.ones(boxes.shape[:-1], bool) if valid is None else xp.asarray(valid)
    common.check_dtype(images)

    whole, parts = common.split(rng, 2)
    drawn = []
    if where != "objects":
        drawn.append(erasing.draw(whole, images.shape))
    if where != "image":
        drawn.append(erasing.draw_objects(parts, boxes, valid, height, width))
    draws = Erasing(*(xp.concatenate(arrays, -2) for arrays in zip(*drawn, strict=True)))
    images, erased = erasing.apply(images, draws), common.covered(draws.boxes, height, width)
    if masks is not None:
        masks = xp.asarray(masks) & ~erased[..., None, :, :]
    y, x = xp.arange(height) + 0.5, xp.arange(width) + 0.5
    corner = boxes[..., None]
    rows = ((y >= corner[..., 1, :]) & (y < corner[..., 3, :])).astype(xp.float32)
    columns = ((x >= corner[..., 0, :]) & (x < corner[..., 2, :])).astype(xp.float32)
    gone = xp.einsum("...mh,...hw,...mw->...m", rows, erased.astype(xp.float32), columns)
    total = rows.sum(-1) * columns.sum(-1)
    visible = xp.where(valid & (total > 0), 1 - gone / xp.maximum(total, 1), 0).astype(xp.float32)
    return images, masks, visible


def sample_boxes(rng: np.random.Generator, height: int, width: int, config: AugmentConfig) -> Int32[np.ndarray, "N 4"]:
    """Boxes (top, left, height, width) to erase in one image; height 0 where there is none. `device.erase` fills them.

    Args:
        rng: the image's own generator; drawn from in timm's order.
        config: `erase_prob`, `erase_count` (N), `erase_area`, `erase_aspect`.
    """
    boxes = np.zeros((config.erase_count, 4), np.int32)
    if config.erase_prob == 0 or rng.random() > config.erase_prob:
        return boxes
    count = 1 if config.erase_count == 1 else int(rng.integers(1, config.erase_count + 1))
    log_aspect = math.log(config.erase_aspect[0]), math.log(config.erase_aspect[1])
    for slot in range(count):
        for _ in range(ATTEMPTS):
            area = rng.uniform(*config.erase_area) * (height * width) / count
            aspect = math.exp(rng.uniform(*log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
                boxes[slot] = top, left, h, w
                break
    return boxes
