"""The operations on one image that the learned and the random policies are made of, on Pillow images.

Each takes (image, amount, resample, fill): `amount` in the operation's own unit, what geometry leaves empty is filled.
They are Pillow's `ImageOps`, `ImageEnhance` and `transform`, pixel by pixel; where a whole image would be blended with
one gray, 256 values are, and looked up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from flashjax.data.augment import draws as common

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
RANDOM_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
Fill = tuple[int, ...] | None


class Step(NamedTuple):
    """One operation, drawn: its name in `OPERATIONS`, its amount (None where it has none), its filter."""

    name: str
    amount: Any = None
    resample: Image.Resampling = Image.Resampling.NEAREST


def run(image: Image.Image, steps: "tuple[Step, ...] | list[Step]", fill: Fill) -> Image.Image:
    """The image after all steps; `fill` has one number for each channel, or is None for black."""
    for step in steps:
        image = OPERATIONS[step.name](image, step.amount, step.resample, fill)
    return image


Operation = Callable[[Image.Image, Any, Image.Resampling, Fill], Image.Image]


def _affine(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Operation:
    """`matrix(image, amount)` maps output to input pixels."""

    def apply(image: Image.Image, amount: float, resample: Image.Resampling, fill: Fill) -> Image.Image:
        coefficients = matrix(image, amount)
        return image.transform(
            image.size, Image.Transform.AFFINE, coefficients, resample, fillcolor=_color_of(image, fill)
        )

    return apply


def _rotate(image: Image.Image, degrees: float, resample: Image.Resampling, fill: Fill) -> Image.Image:
    return image.rotate(degrees, resample, fillcolor=_color_of(image, fill))


def _color_of(image: Image.Image, fill: Fill) -> Any:
    return fill[0] if fill is not None and len(image.getbands()) == 1 else fill


def _lookup(table: Callable[[Any], list[int]]) -> Operation:
    """An operation that maps each value of each channel by itself."""
    return lambda image, amount, resample, fill: image.point(table(amount) * len(image.getbands()))


def _posterize(bits: int) -> list[int]:
    mask = 0xFF & ~(2 ** (8 - bits) - 1)
    return [value & mask for value in range(256)]


def _solarize(threshold: float) -> list[int]:
    return [value if value < threshold else 255 - value for value in range(256)]


def _solarize_add(add: int) -> list[int]:
    return [min(255, value + add) if value < 128 else value for value in range(256)]


_RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))


def _blend_table(image: Image.Image, gray: int, factor: float) -> Image.Image:
    """Blends with a constant gray. All pixels of one value end alike, so Pillow blends 256 of them, not all."""
    table = Image.blend(Image.new("L", (256, 1), gray), _RAMP, factor)
    return image.point(list(table.tobytes()) * len(image.getbands()))


def _contrast(image: Image.Image, factor: float, resample: Image.Resampling, fill: Fill) -> Image.Image:
    counts = np.array(image.convert("L").histogram())
    mean = int(int(counts @ np.arange(256)) / int(counts.sum()) + 0.5)
    return _blend_table(image, mean, factor)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, amount, resample, fill: image,
    "auto_contrast": lambda image, amount, resample, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, amount, resample, fill: ImageOps.equalize(image),
    "invert": lambda image, amount, resample, fill: ImageOps.invert(image),
    # degrees, counter-clockwise, about the middle
    "rotate": _rotate,
    # bits that are kept
    "posterize": _lookup(_posterize),
    # values from here on are inverted
    "solarize": _lookup(_solarize),
    # what is added to values below 128
    "solarize_add": _lookup(_solarize_add),
    # factors; 1 changes nothing
    "color": lambda image, factor, resample, fill: ImageEnhance.Color(image).enhance(factor),
    "contrast": _contrast,
    "brightness": lambda image, factor, resample, fill: _blend_table(image, 0, factor),
    "sharpness": lambda image, factor, resample, fill: Image.blend(image.filter(ImageFilter.SMOOTH), image, factor),
    # pixels for each pixel of the other axis
    "shear_x": _affine(lambda image, amount: (1, amount, 0, 0, 1, 0)),
    "shear_y": _affine(lambda image, amount: (1, 0, 0, amount, 1, 0)),
    # pixels, and shares of a side; positive looks to the right and down, so that the content moves left and up
    "translate_x": _affine(lambda image, pixels: (1, 0, pixels, 0, 1, 0)),
    "translate_y": _affine(lambda image, pixels: (1, 0, 0, 0, 1, pixels)),
    "translate_x_rel": _affine(lambda image, share: (1, 0, share * image.size[0], 0, 1, 0)),
    "translate_y_rel": _affine(lambda image, share: (1, 0, 0, 0, 1, share * image.size[1])),
}


Picture = Any
"""A Pillow image (L or RGB), or uint8 [H W C] with 1 or 3 channels."""


def pillow(image: Picture) -> Image.Image:
    """The image as Pillow's; raises ValueError for what the operations are not defined on."""
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"policies work on images of mode L or RGB, got {image.mode}: convert the image first")
        return image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            "policies work on one Pillow image, or uint8 [H W C] with 1 or 3 channels, "
            f"got {image.dtype} {image.shape}: augment before normalising and batching"
        )
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def like(image: Image.Image, original: Picture) -> Picture:
    """`image` as the kind of thing that `original` is."""
    if isinstance(original, Image.Image):
        return image
    return np.asarray(image).reshape(original.shape)


@dataclass(frozen=True)
class HostPolicy:
    """A policy of Pillow's operations for one image on the host: `policy(rng, image)` gives back what it was given, a
    Pillow image or uint8 [H W C]. It runs where the image is decoded; there is no device version, since every image
    would pay for all operations there."""

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Any:
        """Draws for an image [H W C] of this shape; by default a tuple of steps."""
        raise NotImplementedError

    def apply(self, image: Picture, draws: Any) -> Picture:
        """The image under these draws."""
        return like(run(pillow(image), draws, getattr(self, "fill", None)), image)

    def __call__(self, rng: np.random.Generator, image: Picture) -> Picture:
        if common.on_device(rng):
            raise ValueError(f"{type(self).__name__} runs on the host: give a numpy.random.Generator, not a JAX key")
        drawn = pillow(image)
        return self.apply(image, self.draw(rng, (drawn.height, drawn.width, len(drawn.getbands()))))
