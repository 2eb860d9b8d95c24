"""AutoAugment, RandAugment and TrivialAugment in the notation of torchvision, AugMix, and timm's AutoAugment.

Sources: "AutoAugment" (1805.09501), "RandAugment" (1909.13719), "TrivialAugment" (2103.10158), "AugMix" (1912.02781);
spaces, roundings and the order of draws are those of torchvision's `v2` and timm's `auto_augment`. RandAugment in
timm's notation, which the recipe of Swin uses, is `randaugment.RandAugment`.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from flashjax.data.augment import randaugment
from flashjax.data.augment.operations import FILTERS, Fill, HostPolicy, Picture, Step, like, pillow, run

Interpolation = Literal["nearest", "bilinear", "bicubic"]


def linspace(low: float, high: float, count: int) -> np.ndarray:
    """float32 [count] evenly spaced, as torch has it: counted from the nearer end, a step of float32, one rounding."""
    first, last = float(np.float32(low)), float(np.float32(high))
    step = float(np.float32(np.float32(last - first) / np.float32(count - 1)))
    index = np.arange(count)
    return np.where(index < count // 2, first + step * index, last - step * index[::-1]).astype(np.float32)


# name -> magnitudes for (bins, height, width), or None where an operation has none. The geometric and the enhancing
# ones go either way.
Space = dict[str, Callable[[int, int, int], np.ndarray] | None]
_ENHANCE = ("Brightness", "Color", "Contrast", "Sharpness")
_SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *_ENHANCE}


def _up_to(high: float) -> Callable[[int, int, int], np.ndarray]:
    return lambda bins, height, width: linspace(0.0, high, bins)


def _bits(most: int, fewer: int) -> Callable[[int, int, int], np.ndarray]:
    """Bits that are kept: `most`, and at the far end `fewer` less."""
    return lambda bins, height, width: np.rint(
        np.float32(most) - np.arange(bins, dtype=np.float32) / np.float32((bins - 1) / fewer)
    )


def _space(shear: float, across: Any, down: Any, degrees: float, enhance: float, posterize: Any, invert: bool) -> Space:
    space: Space = {
        "ShearX": _up_to(shear),
        "ShearY": _up_to(shear),
        "TranslateX": across,
        "TranslateY": down,
        "Rotate": _up_to(degrees),
        **dict.fromkeys(_ENHANCE, _up_to(enhance)),
        "Posterize": posterize,
        "Solarize": lambda bins, height, width: linspace(1.0, 0.0, bins),
        "AutoContrast": None,
        "Equalize": None,
    }
    return space | {"Invert": None} if invert else space


_FAR = 150.0 / 331.0
_PAPERS = (
    0.3,
    lambda bins, height, width: linspace(0.0, _FAR * width, bins),
    lambda bins, height, width: linspace(0.0, _FAR * height, bins),
    30.0,
    0.9,
    _bits(8, 4),
)
# The order matters: a drawn index names an operation.
AUTO = _space(*_PAPERS, invert=True)
RAND: Space = {"Identity": None, **_space(*_PAPERS, invert=False)}
WIDE: Space = {"Identity": None, **_space(0.99, _up_to(32.0), _up_to(32.0), 135.0, 0.99, _bits(8, 6), invert=False)}
_MIX = _space(
    0.3,
    lambda bins, height, width: linspace(0.0, width / 3.0, bins),
    lambda bins, height, width: linspace(0.0, height / 3.0, bins),
    30.0,
    0.9,
    _bits(4, 4),
    invert=False,
)
MIX_PART: Space = {name: _MIX[name] for name in _MIX if name not in _ENHANCE}
MIX_ALL: Space = {**MIX_PART, **{name: _MIX[name] for name in _ENHANCE}}

_STEPS = {
    "Identity": ("identity", None),
    # The slope goes through an angle and back.
    "ShearX": ("shear_x", lambda m: math.tan(math.radians(math.degrees(math.atan(m))))),
    "ShearY": ("shear_y", lambda m: math.tan(math.radians(math.degrees(math.atan(m))))),
    # The content moves right and down by whole pixels.
    "TranslateX": ("translate_x", lambda m: -int(m)),
    "TranslateY": ("translate_y", lambda m: -int(m)),
    "Rotate": ("rotate", float),
    "Brightness": ("brightness", lambda m: 1.0 + m),
    "Color": ("color", lambda m: 1.0 + m),
    "Contrast": ("contrast", lambda m: 1.0 + m),
    "Sharpness": ("sharpness", lambda m: 1.0 + m),
    "Posterize": ("posterize", int),
    "Solarize": ("solarize", lambda m: 255.0 * m),
    "AutoContrast": ("auto_contrast", None),
    "Equalize": ("equalize", None),
    "Invert": ("invert", None),
}


@dataclass(frozen=True)
class _Binned(HostPolicy):
    """Operations whose magnitude is one of a few bins."""

    interpolation: Interpolation = "nearest"
    """Filter of the geometric operations."""
    fill: Fill = None
    """Colour of what geometry leaves empty; None for black."""

    def __post_init__(self):
        if self.interpolation not in FILTERS:
            raise ValueError(f"unknown interpolation {self.interpolation!r}; known: {', '.join(FILTERS)}")

    def _step(
        self,
        rng: np.random.Generator,
        name: str,
        magnitudes: Callable[[int, int, int], np.ndarray] | None,
        bins: int,
        index: Callable[[], int],
        shape: Sequence[int],
    ) -> Step:
        """One operation: the bin from `index()`, then its sign."""
        step, amount = _STEPS[name]
        if magnitudes is None:
            return Step(step)
        magnitude = float(magnitudes(bins, shape[0], shape[1])[index()])
        if name in _SIGNED and rng.random() <= 0.5:
            magnitude = -magnitude
        assert amount is not None
        return Step(step, amount(magnitude), FILTERS[self.interpolation])


@dataclass(frozen=True)
class BinnedRandAugment(_Binned):
    """RandAugment as torchvision has it: `num_ops` of 14 operations with replacement, all at one magnitude."""

    num_ops: int = 2
    """Operations for each image."""
    magnitude: int = 9
    """Which of the bins."""
    bins: int = 31
    """How finely a full range is divided."""

    def __post_init__(self):
        super().__post_init__()
        if self.num_ops < 0 or not 0 <= self.magnitude < self.bins or self.bins < 2:
            raise ValueError(
                f"want num_ops >= 0 and 0 <= magnitude < bins, got {self.num_ops}, {self.magnitude} and {self.bins}"
            )

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> tuple[Step, ...]:
        names, steps = list(RAND), []
        for _ in range(self.num_ops):
            name = names[int(rng.integers(0, len(names)))]
            steps.append(self._step(rng, name, RAND[name], self.bins, lambda: self.magnitude, shape))
        return tuple(steps)


@dataclass(frozen=True)
class TrivialAugment(_Binned):
    """TrivialAugment (wide): one operation at one magnitude, both uniform."""

    bins: int = 31
    """How finely a full range is divided."""

    def __post_init__(self):
        super().__post_init__()
        if self.bins < 2:
            raise ValueError(f"bins must be at least 2, got {self.bins}")

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> tuple[Step, ...]:
        names = list(WIDE)
        name = names[int(rng.integers(0, len(names)))]
        return (self._step(rng, name, WIDE[name], self.bins, lambda: int(rng.integers(0, self.bins)), shape),)


Rule = tuple[str, float, int | None]
# 25 pairs of (operation, probability, magnitude) each. The first three are the paper's; v0 is that of the official
# EfficientNet code, which no paper has.
_TABLES = {
    "imagenet": """
        Posterize 0.4 8, Rotate 0.6 9; Solarize 0.6 5, AutoContrast 0.6; Equalize 0.8, Equalize 0.6;
        Posterize 0.6 7, Posterize 0.6 6; Equalize 0.4, Solarize 0.2 4; Equalize 0.4, Rotate 0.8 8;
        Solarize 0.6 3, Equalize 0.6; Posterize 0.8 5, Equalize 1; Rotate 0.2 3, Solarize 0.6 8;
        Equalize 0.6, Posterize 0.4 6; Rotate 0.8 8, Color 0.4 0; Rotate 0.4 9, Equalize 0.6;
        Equalize 0, Equalize 0.8; Invert 0.6, Equalize 1; Color 0.6 4, Contrast 1 8; Rotate 0.8 8, Color 1 2;
        Color 0.8 8, Solarize 0.8 7; Sharpness 0.4 7, Invert 0.6; ShearX 0.6 5, Equalize 1; Color 0.4 0, Equalize 0.6;
        Equalize 0.4, Solarize 0.2 4; Solarize 0.6 5, AutoContrast 0.6; Invert 0.6, Equalize 1;
        Color 0.6 4, Contrast 1 8; Equalize 0.8, Equalize 0.6
    """,
    "cifar10": """
        Invert 0.1, Contrast 0.2 6; Rotate 0.7 2, TranslateX 0.3 9; Sharpness 0.8 1, Sharpness 0.9 3;
        ShearY 0.5 8, TranslateY 0.7 9; AutoContrast 0.5, Equalize 0.9; ShearY 0.2 7, Posterize 0.3 7;
        Color 0.4 3, Brightness 0.6 7; Sharpness 0.3 9, Brightness 0.7 9; Equalize 0.6, Equalize 0.5;
        Contrast 0.6 7, Sharpness 0.6 5; Color 0.7 7, TranslateX 0.5 8; Equalize 0.3, AutoContrast 0.4;
        TranslateY 0.4 3, Sharpness 0.2 6; Brightness 0.9 6, Color 0.2 8; Solarize 0.5 2, Invert 0;
        Equalize 0.2, AutoContrast 0.6; Equalize 0.2, Equalize 0.6; Color 0.9 9, Equalize 0.6;
        AutoContrast 0.8, Solarize 0.2 8; Brightness 0.1 3, Color 0.7 0; Solarize 0.4 5, AutoContrast 0.9;
        TranslateY 0.9 9, TranslateY 0.7 9; AutoContrast 0.9, Solarize 0.8 3; Equalize 0.8, Invert 0.1;
        TranslateY 0.7 9, AutoContrast 0.9
    """,
    "svhn": """
        ShearX 0.9 4, Invert 0.2; ShearY 0.9 8, Invert 0.7; Equalize 0.6, Solarize 0.6 6; Invert 0.9, Equalize 0.6;
        Equalize 0.6, Rotate 0.9 3; ShearX 0.9 4, AutoContrast 0.8; ShearY 0.9 8, Invert 0.4;
        ShearY 0.9 5, Solarize 0.2 6; Invert 0.9, AutoContrast 0.8; Equalize 0.6, Rotate 0.9 3;
        ShearX 0.9 4, Solarize 0.3 3; ShearY 0.8 8, Invert 0.7; Equalize 0.9, TranslateY 0.6 6;
        Invert 0.9, Equalize 0.6; Contrast 0.3 3, Rotate 0.8 4; Invert 0.8, TranslateY 0 2;
        ShearY 0.7 6, Solarize 0.4 8; Invert 0.6, Rotate 0.8 4; ShearY 0.3 7, TranslateX 0.9 3;
        ShearX 0.1 6, Invert 0.6; Solarize 0.7 2, TranslateY 0.6 7; ShearY 0.8 4, Invert 0.8;
        ShearX 0.7 9, TranslateY 0.8 3; ShearY 0.8 5, AutoContrast 0.7; ShearX 0.7 2, Invert 0.1
    """,
    "v0": """
        Equalize 0.8, ShearY 0.8 4; Color 0.4 9, Equalize 0.6; Color 0.4 1, Rotate 0.6 8;
        Solarize 0.8 3, Equalize 0.4; Solarize 0.4 2, Solarize 0.6 2; Color 0.2 0, Equalize 0.8;
        Equalize 0.4, SolarizeAdd 0.8 3; ShearX 0.2 9, Rotate 0.6 8; Color 0.6 1, Equalize 1;
        Invert 0.4, Rotate 0.6 0; Equalize 1, ShearY 0.6 3; Color 0.4 7, Equalize 0.6;
        Posterize 0.4 6, AutoContrast 0.4; Solarize 0.6 8, Color 0.6 9; Solarize 0.2 4, Rotate 0.8 9;
        Rotate 1 7, TranslateYRel 0.8 9; ShearX 0 0, Solarize 0.8 4; ShearY 0.8 0, Color 0.6 4;
        Color 1 0, Rotate 0.6 2; Equalize 0.8, Equalize 0; Equalize 1, AutoContrast 0.6;
        ShearY 0.4 7, SolarizeAdd 0.6 7; Posterize 0.8 2, Solarize 0.6 10; Solarize 0.6 8, Equalize 0.6;
        Color 0.8 6, Rotate 0.4 5
    """,
}


def _read(table: str) -> tuple[tuple[Rule, Rule], ...]:
    def rule(text: str) -> Rule:
        name, probability, *magnitude = text.split()
        return name, float(probability), int(magnitude[0]) if magnitude else None

    pairs = [[rule(text) for text in pair.split(",")] for pair in table.split(";")]
    return tuple((first, second) for first, second in pairs)


POLICIES = {name: _read(table) for name, table in _TABLES.items()}


@dataclass(frozen=True)
class AutoAugment(_Binned):
    """AutoAugment as torchvision has it: one of 25 pairs of operations, each with its probability and magnitude."""

    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"
    """The data set that it was searched on."""

    def __post_init__(self):
        super().__post_init__()
        if self.policy not in ("imagenet", "cifar10", "svhn"):
            raise ValueError(f"unknown policy {self.policy!r}; known: imagenet, cifar10, svhn (timm's: preset='timm')")

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> tuple[Step, ...]:
        pairs, steps = POLICIES[self.policy], []
        for name, probability, magnitude in pairs[int(rng.integers(0, len(pairs)))]:
            if rng.random() <= probability:
                steps.append(self._step(rng, name, AUTO[name], 10, lambda index=magnitude: index or 0, shape))
        return tuple(steps)


@dataclass(frozen=True)
class TimmAutoAugment(HostPolicy):
    """AutoAugment as timm has it, with timm's operations."""

    policy: Literal["original", "originalr", "v0", "v0r"] = "v0"
    """`original` is the paper's for ImageNet, `v0` that of the official EfficientNet code; in those with an r posterize
    keeps fewer bits the higher its magnitude."""
    magnitude_std: float = 0.0
    """Deviation of each magnitude, drawn anew."""
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """Filter of the geometric operations; `random` draws one for each."""
    fill: Fill = (128, 128, 128)
    """Colour of what geometry leaves empty."""

    def __post_init__(self):
        if self.policy not in _TIMM:
            raise ValueError(f"unknown policy {self.policy!r}; known: {', '.join(_TIMM)}")

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> tuple[Step, ...]:
        table, posterize = _TIMM[self.policy]
        pairs, steps = POLICIES[table], []
        for name, probability, magnitude in pairs[int(rng.integers(0, len(pairs)))]:
            if probability < 1 and rng.random() > probability:
                continue
            drawn = randaugment.draw_magnitude(rng, float(magnitude or 0), self.magnitude_std)
            operation = randaugment.OPERATIONS[posterize if name == "Posterize" else name]
            level = min(max(drawn, 0.0), randaugment.SCALE) / randaugment.SCALE
            steps.append(operation.draw(level, rng, self.interpolation))
        return tuple(steps)


_TIMM = {
    "original": ("imagenet", "PosterizeOriginal"),
    "originalr": ("imagenet", "PosterizeIncreasing"),
    "v0": ("v0", "Posterize"),
    "v0r": ("v0", "PosterizeIncreasing"),
}


class Mixture(NamedTuple):
    """AugMix: `own` share of the image as it is, `shares` float32 of the chains, and the steps of each chain."""

    own: np.float32
    shares: np.ndarray
    chains: tuple[tuple[Step, ...], ...]


@dataclass(frozen=True)
class AugMix(_Binned):
    """AugMix as torchvision mixes: chains of operations, blended with the image in float32 and cut to bytes once.

    torchvision applies its operations to tensors here; these are Pillow's, as in the official code.
    """

    interpolation: Interpolation = "bilinear"
    severity: int = 3
    """A magnitude is one of the first so many of 10 bins."""
    width: int = 3
    """Chains."""
    depth: int = -1
    """Operations in a chain; below 1: uniform in 1..3."""
    alpha: float = 1.0
    """Of the Dirichlet law of the shares, and of the Beta law of the image's own."""
    all_ops: bool = True
    """With brightness, color, contrast and sharpness, which the paper leaves out: they are in its test corruptions."""

    def __post_init__(self):
        super().__post_init__()
        _check_mix(self.severity, self.width, self.alpha)

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Mixture:
        own, rest = np.asarray(rng.dirichlet([self.alpha] * 2), np.float32)
        shares = np.asarray(rng.dirichlet([self.alpha] * self.width), np.float32) * rest
        space = MIX_ALL if self.all_ops else MIX_PART
        names, chains = list(space), []
        for _ in range(self.width):
            depth = self.depth if self.depth > 0 else int(rng.integers(1, 4))
            steps = []
            for _ in range(depth):
                name = names[int(rng.integers(0, len(names)))]
                steps.append(self._step(rng, name, space[name], 10, lambda: int(rng.integers(0, self.severity)), shape))
            chains.append(tuple(steps))
        return Mixture(own, shares, tuple(chains))

    def apply(self, image: Picture, draws: Mixture) -> Picture:
        original = pillow(image)
        mixed = draws.own * np.asarray(original, np.float32)
        for share, steps in zip(draws.shares, draws.chains, strict=True):
            mixed += share * np.asarray(run(original, steps, self.fill), np.float32)
        return like(Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)), image)


@dataclass(frozen=True)
class TimmAugMix(HostPolicy):
    """AugMix as timm has it: the mixture of the chains is cut to bytes, then blended with the image."""

    magnitude: float = 3.0
    """Strength of the operations, of 10."""
    width: int = 3
    """Chains."""
    depth: int = -1
    """Operations in a chain; below 1: uniform in 1..3."""
    alpha: float = 1.0
    """Of the Dirichlet law of the shares, and of the Beta law of the mixture's."""
    magnitude_std: float = math.inf
    """Deviation of each magnitude; infinite: uniform in 0..magnitude."""
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """Filter of the geometric operations; `random` draws one for each."""
    fill: Fill = (128, 128, 128)
    """Colour of what geometry leaves empty."""

    def __post_init__(self):
        _check_mix(self.magnitude, self.width, self.alpha)

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Mixture:
        shares = np.asarray(rng.dirichlet([self.alpha] * self.width), np.float32)
        own, chains = np.float32(1) - np.float32(rng.beta(self.alpha, self.alpha)), []
        for _ in range(self.width):
            depth = self.depth if self.depth > 0 else int(rng.integers(1, 4))
            steps = []
            for index in rng.integers(0, len(_TIMM_MIX), size=depth):
                drawn = randaugment.draw_magnitude(rng, self.magnitude, self.magnitude_std)
                level = min(max(drawn, 0.0), randaugment.SCALE) / randaugment.SCALE
                steps.append(randaugment.OPERATIONS[_TIMM_MIX[index]].draw(level, rng, self.interpolation))
            chains.append(tuple(steps))
        return Mixture(own, shares, tuple(chains))

    def apply(self, image: Picture, draws: Mixture) -> Picture:
        original = pillow(image)
        mixed = np.zeros(np.asarray(original).shape, np.float32)
        for share, steps in zip(draws.shares, draws.chains, strict=True):
            mixed += share * np.asarray(run(original, steps, self.fill), np.float32)
        chains = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
        return like(Image.blend(original, chains, float(np.float32(1) - draws.own)), image)


_TIMM_MIX = (
    *("AutoContrast", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"),
    *("Equalize", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing"),
    *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)


def _check_mix(severity: float, width: int, alpha: float) -> None:
    if not 1 <= severity <= 10:
        raise ValueError(f"severity (timm: magnitude) must lie in 1..10, got {severity}")
    if width < 1 or alpha <= 0:
        raise ValueError(f"want width >= 1 and alpha > 0, got {width} and {alpha}")


def parse(text: str, interpolation: str = "bicubic", fill: tuple[int, int, int] = (128, 128, 128)) -> HostPolicy:
    """The policy that a configuration names.

    Args:
        text: `rand-...` (RandAugment, see `randaugment.parse`), `trivial`, `aa-imagenet`, `aa-cifar10`, `aa-svhn`
            (torchvision's AutoAugment), `original`, `originalr`, `v0`, `v0r` (timm's, with `-mstd0.5` and the like),
            `augmix` (timm's, with `-m3-w3-d-1`: magnitude, width, depth; `-mstd0.5`).
        interpolation: filter of the geometric operations: bicubic, bilinear or, for timm's, random.
        fill: colour of what they leave empty.
    Raises:
        ValueError: another name, an unknown key, a value that is no number.
    """
    head, _, rest = text.partition("-")
    shared: dict[str, Any] = {"interpolation": interpolation, "fill": fill}
    if head == "rand":
        return randaugment.parse(text, interpolation, fill)  # pyright: ignore[reportArgumentType]
    if text == "trivial":
        return TrivialAugment(**shared)
    if head == "aa":
        return AutoAugment(policy=rest, **shared)  # pyright: ignore[reportArgumentType]
    keys = {"mstd": "magnitude_std"} | ({"m": "magnitude", "w": "width", "d": "depth"} if head == "augmix" else {})
    if head not in (*_TIMM, "augmix"):
        raise ValueError(f"unknown policy {text!r}; known: rand-..., trivial, aa-imagenet, aa-cifar10, aa-svhn, "
                         f"augmix, {', '.join(_TIMM)}")  # fmt: skip
    values: dict[str, Any] = {}
    for section in re.split(r"-(?=[a-z])", rest) if rest else ():
        match = re.fullmatch(r"([a-z]+)(-?\d+(?:\.\d+)?)", section)
        if match is None or match[1] not in keys:
            raise ValueError(f"cannot read {section!r} in {text!r}: want one of {', '.join(keys)} and a number")
        values[keys[match[1]]] = int(match[2]) if match[1] in ("w", "d") else float(match[2])
    if head == "augmix":
        return TimmAugMix(**values, **shared)
    return TimmAutoAugment(policy=head, **values, **shared)  # pyright: ignore[reportArgumentType]


RAND_PRESETS = {"timm": {"class": randaugment.RandAugment, "magnitude": 9, "magnitude_std": 0.5, "increasing": True},
                "torchvision": {"class": BinnedRandAugment}}  # fmt: skip
AUTO_PRESETS = {"torchvision": {}, "timm": {"class": TimmAutoAugment}}
TRIVIAL_PRESETS = {"wide": {}}
MIX_PRESETS = {"torchvision": {}, "paper": {"all_ops": False}, "timm": {"class": TimmAugMix}}
