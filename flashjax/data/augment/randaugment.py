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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from flashjax.data.augment.operations import FILTERS, RANDOM_FILTERS, HostPolicy, Step

SCALE = 10.0  # a magnitude of 10 is an operation's full range


@dataclass(frozen=True)
class RandAugment(HostPolicy):
    """`policy(rng, image)` -> image: `num_ops` operations drawn with replacement, one after another."""

    magnitude: float = SCALE
    num_ops: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = SCALE
    increasing: bool = False
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    fill: tuple[int, int, int] = (128, 128, 128)

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> tuple[Step, ...]:
        """Consumes draws from `rng` in timm's order; they do not depend on the shape."""
        operations = INCREASING if self.increasing else PLAIN
        steps = []
        for index in rng.integers(0, len(operations), size=self.num_ops):
            if self.probability < 1 and rng.random() > self.probability:
                continue
            magnitude = draw_magnitude(rng, self.magnitude, self.magnitude_std)
            level = min(max(magnitude, 0.0), self.magnitude_max) / SCALE
            steps.append(operations[index].draw(level, rng, self.interpolation))
        return tuple(steps)


def draw_magnitude(rng: np.random.Generator, magnitude: float, std: float) -> float:
    """timm's: normal around `magnitude`, uniform below it where `std` is infinite, itself where `std` is 0."""
    if std == math.inf:
        return rng.uniform(0, magnitude)
    return rng.normal(magnitude, std) if std > 0 else magnitude


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


@dataclass(frozen=True)
class Operation:
    """One of timm's operations, by how it is drawn; level 1 is its full range."""

    name: str
    """timm's."""
    step: str
    """Its name in `operations.OPERATIONS`."""
    amount: Callable[[float, np.random.Generator], Any] = lambda level, rng: None
    """Draws the amount from the level."""
    geometric: bool = False
    """Whether it draws a filter where the policy's is `random`."""

    def draw(self, level: float, rng: np.random.Generator, interpolation: str) -> Step:
        """The amount and filter, drawn in timm's order."""
        amount = self.amount(level, rng)
        return Step(self.step, amount, _filter(rng, interpolation)) if self.geometric else Step(self.step, amount)


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() > 0.5 else value


def _filter(rng: np.random.Generator, interpolation: str) -> Image.Resampling:
    if interpolation == "random":
        return RANDOM_FILTERS[int(rng.integers(0, 2))]
    return FILTERS[interpolation]


def _moved(name: str, step: str, full: float) -> Operation:
    """Geometry by an amount of at most `full`, either way."""
    return Operation(name, step, lambda level, rng: _signed(level * full, rng), geometric=True)


def _enhanced(step: str) -> tuple[Operation, Operation]:
    """By a factor in 0.1..1.9, where 1 changes nothing: over the range, and away from 1 with the level."""
    name = step.capitalize()
    return (
        Operation(name, step, lambda level, rng: level * 1.8 + 0.1),
        Operation(f"{name}Increasing", step, lambda level, rng: max(0.1, 1.0 + _signed(level * 0.9, rng))),
    )


_COLOR, _CONTRAST, _BRIGHTNESS, _SHARPNESS = map(_enhanced, ("color", "contrast", "brightness", "sharpness"))

# timm's table by name; PosterizeOriginal is AutoAugment's.
OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("AutoContrast", "auto_contrast"),
        Operation("Equalize", "equalize"),
        Operation("Invert", "invert"),
        _moved("Rotate", "rotate", 30.0),
        Operation("Posterize", "posterize", lambda level, rng: int(level * 4)),
        Operation("PosterizeIncreasing", "posterize", lambda level, rng: 4 - int(level * 4)),
        Operation("PosterizeOriginal", "posterize", lambda level, rng: int(level * 4) + 4),
        Operation("Solarize", "solarize", lambda level, rng: min(256, int(level * 256))),
        Operation("SolarizeIncreasing", "solarize", lambda level, rng: 256 - min(256, int(level * 256))),
        Operation("SolarizeAdd", "solarize_add", lambda level, rng: min(128, int(level * 110))),
        *_COLOR,
        *_CONTRAST,
        *_BRIGHTNESS,
        *_SHARPNESS,
        _moved("ShearX", "shear_x", 0.3),
        _moved("ShearY", "shear_y", 0.3),
        _moved("TranslateXRel", "translate_x_rel", 0.45),
        _moved("TranslateYRel", "translate_y_rel", 0.45),
    )
}

# In the order of timm's lists: a drawn index must name the same operation.
_PLAIN = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
_GROWING = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}
PLAIN = tuple(OPERATIONS[name] for name in _PLAIN)
INCREASING = tuple(OPERATIONS[f"{name}Increasing" if name in _GROWING else name] for name in _PLAIN)
