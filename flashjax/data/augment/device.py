"""The half of augmentation that runs on the device, pure and jittable: normalise, erase, mix, soft labels.

The host sends uint8 images and the draws (boxes, weights); only the noise that fills erased boxes is drawn here, from
the key. The order is that of timm's training loop: normalise, erase each image, then mix the batch with its mirror.

Legend: B batch (rows over all hosts), H height, W width, C channels, N erase boxes, K classes.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from flashjax.data.augment.draws import scramble
from flashjax.data.config import AugmentConfig, DataConfig


def normalise(images: UInt8[Array, "B H W C"], config: AugmentConfig) -> Float[Array, "B H W C"]:
    """Pixels 0..255 to float32 of the recipe's mean 0 and deviation 1, channel by channel."""
    mean, std = (jnp.float32(values)[: images.shape[-1]] for values in (config.mean, config.std))
    return (jnp.asarray(images, jnp.float32) / 255 - mean) / std


def inside(
    rows: tuple[Int[Array, "B"], Int[Array, "B"]],
    columns: tuple[Int[Array, "B"], Int[Array, "B"]],
    height: int,
    width: int,
) -> Bool[Array, "B H W 1"]:
    """Which pixels lie in a box given by its half-open row and column ranges, image by image."""
    y, x = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
    (y0, y1), (x0, x1) = ([bound[:, None, None, None] for bound in span] for span in (rows, columns))
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


def erase(
    images: Float[Array, "B H W C"], boxes: Int[Array, "B N 4"], fill: Float[Array, "#B N #H #W #C"]
) -> Float[Array, "B H W C"]:
    """Replaces the pixels of each box (top, left, height, width) by `fill`; a box of height 0 changes nothing."""
    height, width = images.shape[1:3]
    for slot in range(boxes.shape[1]):
        top, left, h, w = jnp.moveaxis(boxes[:, slot], -1, 0)
        mask = inside((top, top + h), (left, left + w), height, width)
        images = jnp.where(mask, fill[:, slot], images)
    return images


def mix(images: Float[Array, "B H W C"], weight: Float[Array, "B"], box: Int[Array, "B 4"]) -> Float[Array, "B H W C"]:
    """Mixes row i with row B-1-i: inside its CutMix box where it has one, else by its Mixup weight."""
    y0, y1, x0, x1 = jnp.moveaxis(box, -1, 0)
    cut = inside((y0, y1), (x0, x1), *images.shape[1:3])
    has_box = (y1 > y0) & (x1 > x0)
    # One blend serves both: CutMix is a blend whose weight is 0 in the box and 1 around it.
    share = jnp.where(has_box[:, None, None, None], 1.0 - cut, weight[:, None, None, None])
    return share * images + (1 - share) * images[::-1]


def soft_labels(
    labels: Int[Array, "B"], weight: Float[Array, "B"], smoothing: float, num_classes: int
) -> Float[Array, "B K"]:
    """Smoothed one-hot targets of the rows, blended with those of their mirror rows."""
    off = smoothing / num_classes
    target = jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + off
    return weight[:, None] * target + (1 - weight[:, None]) * target[::-1]


def prepare_train(
    batch: Mapping[str, Array], key: Array, config: DataConfig, num_classes: int
) -> dict[str, Float[Array, "B ..."]]:
    """A training batch as the pipeline gives it -> what the model and the loss take.

    Args:
        batch: `image` uint8 [B, H, W, C], `label` int32 [B], `mix_lambda` float32 [B], `mix_box` int32 [B, 4],
            `erase_box` int32 [B, N, 4].
        key: a key for this step; it fills erased boxes and nothing else.
    Returns:
        `image` float32 [B, H, W, C] and `target` float32 [B, K] whose rows sum to 1.
    """
    augment = config.augment
    images = normalise(batch["image"], augment)
    if augment.erase_prob > 0:
        images = erase(images, batch["erase_box"], _fill(key, images.shape, augment))
    if augment.mixes:
        images = mix(images, batch["mix_lambda"], batch["mix_box"])
    target = soft_labels(batch["label"], batch["mix_lambda"], augment.label_smoothing, num_classes)
    return {"image": images, "target": target}


def prepare_eval(batch: Mapping[str, Array], config: DataConfig) -> dict[str, Array]:
    """An evaluation batch, normalised: `image` float32, `label` int32, `mask` float32 (0 where a row is padding)."""
    image = normalise(batch["image"], config.augment)
    return {"image": image, "label": batch["label"], "mask": batch["mask"]}


def pixel_noise(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """N(0, 1) for each pixel, float32, at a small fraction of the price of `jax.random.normal`.

    A batch at 224 takes 150,000 numbers an image, of which the erased boxes show a few per cent. They come from a hash
    of the pixel's number (two rounds of multiply and shift, keyed by 64 random bits) instead of Threefry's twenty
    rounds: good enough for noise that a network looks at, and for nothing else. As with Threefry, the value of a pixel
    does not depend on how the batch is laid out over devices.
    """
    start, mask = jax.random.bits(key, (2,), jnp.uint32)
    number, stride = jnp.zeros(shape, jnp.uint32), 1
    for dim in reversed(range(len(shape))):
        number += jax.lax.broadcasted_iota(jnp.uint32, shape, dim) * jnp.uint32(stride % 2**32)
        stride *= shape[dim]
    bits = scramble(number, start, mask)
    # The upper 23 bits, centered in their interval, so that the inverse of the distribution stays finite.
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1
    return jnp.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)


def _fill(key: Array, shape: tuple[int, ...], config: AugmentConfig) -> Float[Array, "#B N #H #W #C"]:
    rows, height, width, channels = shape
    match config.erase_mode:
        case "pixel":  # one canvas serves all boxes of an image: where boxes overlap, only the last one shows
            canvas = pixel_noise(key, (rows, 1, height, width, channels))
            return jnp.broadcast_to(canvas, (rows, config.erase_count, height, width, channels))
        case "rand":
            return jax.random.normal(key, (rows, config.erase_count, 1, 1, channels))
        case "const":
            return jnp.zeros((1, config.erase_count, 1, 1, 1))
        case mode:
            raise ValueError(f"unknown erase_mode {mode!r}; known: pixel, rand, const")
