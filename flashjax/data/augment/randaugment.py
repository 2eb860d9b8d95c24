"""RandAugment on Pillow images, in timm's notation and with its draws.

A policy is written `rand-KEYvalue-KEYvalue...`; the recipe of Swin is `rand-m9-mstd0.5-inc1`.

| key    | meaning                                                                     | default |
|--------|-----------------------------------------------------------------------------|---------|
| `m`    | magnitude of every operation, on a scale of 0..10                           | 10      |
| `n`    | operations for each image, drawn with replacement                           | 2       |
| `p`    | probability that a drawn operation is applied                               | 0.5     |
| `mstd` | deviation of the magnitude, drawn anew for each operation; > 100: uniform in 0..m | 0 |
| `mmax` | upper bound of the magnitude                                                | 10      |
| `inc`  | 1: every operation gets stronger with the magnitude (not so in the paper's TensorFlow code) | 0 |

Sources: "RandAugment" (1909.13719); the set of operations, their ranges and the order of draws are timm's
`rand_augment_transform`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
RANDOM_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
SCALE = 10.0  # a magnitude of 10 is an operation's full range


@dataclass(frozen=True)
class RandAugment:
    """`policy(image, rng)` -> image: `num_ops` operations drawn with replacement, one after another."""

    magnitude: float = SCALE
    num_ops: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = SCALE
    increasing: bool = False
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    fill: tuple[int, int, int] = (128, 128, 128)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Augments one RGB image; consumes draws from `rng` in timm's order."""
        operations = INCREASING if self.increasing else PLAIN
        for index in rng.integers(0, len(operations), size=self.num_ops):
            if self.probability < 1 and rng.random() > self.probability:
                continue
            level = min(max(self._draw_magnitude(rng), 0.0), self.magnitude_max) / SCALE
            image = operations[index](image, level, rng, self)
        return image

    def _draw_magnitude(self, rng: np.random.Generator) -> float:
        if self.magnitude_std == math.inf:
            return rng.uniform(0, self.magnitude)
        return rng.normal(self.magnitude, self.magnitude_std) if self.magnitude_std > 0 else self.magnitude


def parse(
    text: str,
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic",
    fill: tuple[int, int, int] = (128, 128, 128),
) -> RandAugment:
    """The policy that `text` describes.

    Args:
        text: such as `rand-m9-mstd0.5-inc1`; the table above lists the keys.
        interpolation: filter of the geometric operations; `random` draws one for each operation.
        fill: colour of what a geometric operation leaves empty.
    Raises:
        ValueError: another policy than `rand`, an unknown key, a value that is no number.
    """
    head, *sections = text.split("-")
    if head != "rand":
        raise ValueError(f"unknown policy {head!r} in {text!r}: want rand-..., as in rand-m9-mstd0.5-inc1")
    readers = {"m": int, "n": int, "p": float, "mstd": float, "mmax": int, "inc": int}
    values: dict[str, float] = {}
    for section in sections:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", section)
        if match is None or match[1] not in readers:
            raise ValueError(f"cannot read {section!r} in {text!r}: want one of {', '.join(readers)} and a number")
        try:
            values[match[1]] = readers[match[1]](match[2])
        except ValueError:
            raise ValueError(f"{match[1]} in {text!r} must be a whole number, got {match[2]}") from None
    std = values.get("mstd", 0.0)
    return RandAugment(
        magnitude=values.get("m", SCALE),
        num_ops=int(values.get("n", 2)),
        probability=values.get("p", 0.5),
        magnitude_std=math.inf if std > 100 else std,
        magnitude_max=values.get("mmax", 0) or SCALE,
        increasing=bool(values.get("inc", 0)),
        interpolation=interpolation,
        fill=fill,
    )


# An operation takes (image, level, rng, policy); level 1 is its full range.
Operation = Callable[[Image.Image, float, np.random.Generator, RandAugment], Image.Image]


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() > 0.5 else value


def _filter(rng: np.random.Generator, policy: RandAugment) -> Image.Resampling:
    if policy.interpolation == "random":
        return RANDOM_FILTERS[int(rng.integers(0, 2))]
    return FILTERS[policy.interpolation]


def _affine(coefficients: Callable[[Image.Image, float], tuple[float, ...]], full: float) -> Operation:
    """A shear or shift: `coefficients(image, amount)` maps output to input pixels; amount at most `full`."""

    def apply(image: Image.Image, level: float, rng: np.random.Generator, policy: RandAugment) -> Image.Image:
        matrix = coefficients(image, _signed(level * full, rng))
        resample = _filter(rng, policy)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=policy.fill)

    return apply


def _rotate(image: Image.Image, level: float, rng: np.random.Generator, policy: RandAugment) -> Image.Image:
    degrees = _signed(level * 30.0, rng)
    return image.rotate(degrees, _filter(rng, policy), fillcolor=policy.fill)


def _lookup(table: Callable[[float], list[int]]) -> Operation:
    """An operation that maps each value of each channel by itself."""
    return lambda image, level, rng, policy: image.point(table(level) * len(image.getbands()))


def _posterize(keep_bits: Callable[[float], int]) -> Operation:
    def table(level: float) -> list[int]:
        mask = 0xFF & ~(2 ** (8 - keep_bits(level)) - 1)
        return [value & mask for value in range(256)]

    return _lookup(table)


def _solarize(threshold: Callable[[float], int]) -> Operation:
    def table(level: float) -> list[int]:
        limit = threshold(level)
        return [value if value < limit else 255 - value for value in range(256)]

    return _lookup(table)


def _solarize_add_table(level: float) -> list[int]:
    add = min(128, int(level * 110))
    return [min(255, value + add) if value < 128 else value for value in range(256)]


_RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))


def _blend_table(image: Image.Image, gray: int, factor: float) -> Image.Image:
    """Blends with a constant gray. All pixels of one value end alike, so Pillow blends 256 of them, not all."""
    table = Image.blend(Image.new("L", (256, 1), gray), _RAMP, factor)
    return image.point(list(table.tobytes()) * len(image.getbands()))


def _brightness(image: Image.Image, factor: float) -> Image.Image:
    return _blend_table(image, 0, factor)


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    counts = np.array(image.convert("L").histogram())
    mean = int(int(counts @ np.arange(256)) / int(counts.sum()) + 0.5)
    return _blend_table(image, mean, factor)


def _color(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _sharpness(image: Image.Image, factor: float) -> Image.Image:
    return Image.blend(image.filter(ImageFilter.SMOOTH), image, factor)


def _enhance(apply: Callable[[Image.Image, float], Image.Image], increasing: bool) -> Operation:
    """An enhancement by a factor in 0.1..1.9, where 1 changes nothing."""
    if increasing:
        return lambda image, level, rng, policy: apply(image, max(0.1, 1.0 + _signed(level * 0.9, rng)))
    return lambda image, level, rng, policy: apply(image, level * 1.8 + 0.1)


def _operations(increasing: bool) -> tuple[Operation, ...]:
    def keep_bits(level: float) -> int:
        return 4 - int(level * 4) if increasing else int(level * 4)

    def threshold(level: float) -> int:
        return 256 - min(256, int(level * 256)) if increasing else min(256, int(level * 256))

    return (  # in the order of timm's table: a drawn index must name the same operation
        lambda image, level, rng, policy: ImageOps.autocontrast(image),
        lambda image, level, rng, policy: ImageOps.equalize(image),
        lambda image, level, rng, policy: ImageOps.invert(image),
        _rotate,
        _posterize(keep_bits),
        _solarize(threshold),
        _lookup(_solarize_add_table),
        _enhance(_color, increasing),
        _enhance(_contrast, increasing),
        _enhance(_brightness, increasing),
        _enhance(_sharpness, increasing),
        _affine(lambda image, amount: (1, amount, 0, 0, 1, 0), 0.3),
        _affine(lambda image, amount: (1, 0, 0, amount, 1, 0), 0.3),
        _affine(lambda image, amount: (1, 0, amount * image.size[0], 0, 1, 0), 0.45),
        _affine(lambda image, amount: (1, 0, 0, 0, 1, amount * image.size[1]), 0.45),
    )


PLAIN, INCREASING = _operations(False), _operations(True)
