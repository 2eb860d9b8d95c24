"""From the bytes of an image file to the uint8 pixels that go to the device: decode, crop, flip, RandAugment.

All geometry is Pillow's, with the rounding of torchvision and timm, so that a recipe written for them sees the same
pixels. Every draw comes from the generator that is passed in.

Legend: H, W height and width of the result; C its channels.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from flashjax.data.augment import policies
from flashjax.data.augment.erasing import sample_boxes
from flashjax.data.augment.operations import FILTERS, RANDOM_FILTERS, HostPolicy
from flashjax.data.config import AugmentConfig, DataConfig

Crop = tuple[int, int, int, int]


def decode(
    payload: bytes | np.ndarray, exif_rotate: bool = False, draft_size: int | None = None, channels: int = 3
) -> Image.Image:
    """An RGB image, or a gray one, from an encoded file or from pixels.

    Gray is repeated over the channels, transparency is dropped, palettes and CMYK are converted: Pillow's `convert`,
    as the official loader does. Gray of 16 bits is the exception: `convert` would saturate nearly all of it, so it is
    scaled to 8 bits.

    Args:
        payload: a whole image file, or uint8 pixels [H, W] or [H, W, 3].
        exif_rotate: turn the image as its EXIF orientation says.
        draft_size: let the JPEG decoder halve the image while both sides stay at least this long (other pixels!).
        channels: 3, or 1 for gray.
    Raises:
        OSError, ValueError, SyntaxError: not an image, or a truncated one.
    """
    if isinstance(payload, np.ndarray):
        return _in_channels(Image.fromarray(payload), channels)
    image = Image.open(io.BytesIO(payload))
    if draft_size is not None:
        image.draft("RGB", (draft_size, draft_size))
    image.load()
    if exif_rotate:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return _in_channels(image, channels)


def _in_channels(image: Image.Image, channels: int) -> Image.Image:
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb if channels == 3 else rgb.convert("L")


def pixels(image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
    """RGB, or one channel of gray."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def sample_crop(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Crop:
    """The (top, left, height, width) of a random resized crop (torchvision's `RandomResizedCrop`).

    Ten attempts at an area uniform in `scale` and an aspect log-uniform in `ratio`; then the largest center crop whose
    aspect lies in `ratio`.
    """
    area, log_ratio = height * width, (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        target = rng.uniform(*scale) * area
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if w <= width and h <= height:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            return top, left, h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def resized_crop(image: Image.Image, crop: Crop, size: int, resample: Image.Resampling) -> Image.Image:
    """Cuts (top, left, height, width) out and resizes it to a square; the filter sees nothing outside the cut."""
    top, left, h, w = crop
    return image.crop((left, top, left + w, top + h)).resize((size, size), resample)


def center_resize(image: Image.Image, size: int, config: AugmentConfig) -> Image.Image:
    """The evaluation transform of the official code.

    `eval_crop`: the shorter side to int(256 / 224 * size), then the center. Otherwise (384; small images, whose
    training crop is `pad`): straight to the square.
    """
    resample = FILTERS["bicubic" if config.interpolation == "random" else config.interpolation]
    if not config.eval_crop or config.crop == "pad":
        return image.resize((size, size), resample)
    short, (width, height) = int(256 / 224 * size), image.size
    scaled = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    image = image.resize(scaled, resample)
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return image.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class TrainTransform:
    """`transform(image, rng)` -> (uint8 [H, W, C], int32 [N, 4] boxes to erase), for one training image."""

    config: DataConfig
    policy: HostPolicy | None

    @staticmethod
    def create(config: DataConfig) -> "TrainTransform":
        """Reads the policy string; raises ValueError where it is malformed."""
        augment = config.augment
        if augment.auto_augment is None:
            return TrainTransform(config, None)
        red, green, blue = (min(255, round(255 * channel)) for channel in augment.mean)
        return TrainTransform(config, policies.parse(augment.auto_augment, augment.interpolation, (red, green, blue)))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "H W C"], np.ndarray]:
        augment, size = self.config.augment, self.config.image_size
        image = self._crop(image, rng)
        if augment.hflip > 0 and rng.random() < augment.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.policy is not None:
            image = self.policy(rng, image)
        return pixels(image), sample_boxes(rng, size, size, augment)

    def _crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        augment, size = self.config.augment, self.config.image_size
        if augment.crop == "center":
            return center_resize(image, size, augment)
        if augment.crop == "random_resized":
            crop = sample_crop(rng, image.height, image.width, augment.scale, augment.ratio)
            return resized_crop(image, crop, size, self._filter(rng))
        if image.size != (size, size):
            image = image.resize((size, size), self._filter(rng))
        # Pillow fills with black what a crop takes from outside the image: that is the padding.
        left, top = (int(rng.integers(-augment.pad, augment.pad + 1)) for _ in range(2))
        return image.crop((left, top, left + size, top + size))

    def _filter(self, rng: np.random.Generator) -> Image.Resampling:
        if self.config.augment.interpolation == "random":
            return RANDOM_FILTERS[int(rng.integers(0, 2))]
        return FILTERS[self.config.augment.interpolation]
