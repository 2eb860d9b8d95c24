"""Mixup and CutMix of the rows of a batch.

`Mixup` and `CutMix` draw and apply on either side. `sample_mixing` draws for the house pipeline, with the parameters
and the order of draws of timm's `Mixup`, which the official Swin code uses; there row i is mixed with row B-1-i, and
`device.mix` applies it.

Sources: "mixup" (1710.09412), "CutMix" (1905.04899), its official code, torchvision's and timm's.

Legend: B rows of the global batch, H height, W width, C channels, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from flashjax.data.augment import draws as common
from flashjax.data.augment.draws import Augmentation, Images, Rng
from flashjax.data.config import AugmentConfig

Box = tuple[int, int, int, int]


class Mixing(NamedTuple):
    """`weight` of a row's own label, and its CutMix `box` (y0, y1, x0, x1); an empty box means Mixup by `weight`."""

    weight: Float[Any, "B"]
    box: Int32[Any, "B 4"]


def sample_box(rng: np.random.Generator, height: int, width: int, weight: float) -> tuple[Box, float]:
    """A CutMix box of area `1 - weight` around a uniform center, clipped to the image.

    Returns:
        The box (y0, y1, x0, x1) and the weight that its area after clipping leaves to the image's own label.
    """
    side = np.sqrt(1 - weight)
    cut_h, cut_w = int(height * side), int(width * side)
    center_y, center_x = int(rng.integers(0, height)), int(rng.integers(0, width))
    y0, y1 = max(center_y - cut_h // 2, 0), min(center_y + (cut_h + 1) // 2, height)
    x0, x1 = max(center_x - cut_w // 2, 0), min(center_x + (cut_w + 1) // 2, width)
    return (y0, y1, x0, x1), 1.0 - (y1 - y0) * (x1 - x0) / float(height * width)


def sample_mixing(rng: np.random.Generator, batch_size: int, height: int, width: int, config: AugmentConfig) -> Mixing:
    """Draws how each row of a batch is mixed with its mirror row.

    Args:
        rng: the batch's own generator.
        batch_size: B, even where mixing is on.
        config: `mixup`, `cutmix` (alphas), `mixup_prob`, `switch_prob`, `mixup_mode`.
    """
    weight, box = np.ones(batch_size, np.float32), np.zeros((batch_size, 4), np.int32)
    if not config.mixes:
        return Mixing(weight, box)
    if config.mixup_mode == "batch":
        lam, cut = _draw_one(rng, config)
        if lam != 1.0:
            if cut:
                box[:], lam = sample_box(rng, height, width, lam)
            weight[:] = lam
        return Mixing(weight, box)

    rows = batch_size if config.mixup_mode == "elem" else batch_size // 2
    lams, cuts = _draw_many(rng, rows, config)
    for row in range(rows):
        if lams[row] != 1.0 and cuts[row]:
            box[row], lams[row] = sample_box(rng, height, width, lams[row])
    weight[:rows] = lams
    if config.mixup_mode == "pair":
        weight[rows:], box[rows:] = weight[:rows][::-1], box[:rows][::-1]
    return Mixing(weight, box)


def _kinds(config: AugmentConfig) -> Literal["both", "mixup", "cutmix"]:
    if config.mixup > 0 and config.cutmix > 0:
        return "both"
    return "mixup" if config.mixup > 0 else "cutmix"


def _draw_one(rng: np.random.Generator, config: AugmentConfig) -> tuple[float, bool]:
    if not rng.random() < config.mixup_prob:
        return 1.0, False
    kinds = _kinds(config)
    cut = bool(rng.random() < config.switch_prob) if kinds == "both" else kinds == "cutmix"
    alpha = config.cutmix if cut else config.mixup
    return float(rng.beta(alpha, alpha)), cut


def _draw_many(rng: np.random.Generator, rows: int, config: AugmentConfig) -> tuple[np.ndarray, np.ndarray]:
    kinds = _kinds(config)
    if kinds == "both":
        cut = rng.random(rows) < config.switch_prob
        by_cut, by_mix = (rng.beta(alpha, alpha, rows) for alpha in (config.cutmix, config.mixup))
        lam = np.where(cut, by_cut, by_mix)
    else:
        alpha = config.cutmix if kinds == "cutmix" else config.mixup
        cut, lam = np.full(rows, kinds == "cutmix"), rng.beta(alpha, alpha, rows)
    mixed = rng.random(rows) < config.mixup_prob
    return np.where(mixed, lam.astype(np.float32), np.float32(1)), cut


@dataclass(frozen=True)
class Mixup(Augmentation):
    """Blends each row of a batch, and its target, with those of another row. Draws: a `Mixing` without boxes."""

    alpha: float = 0.2
    """A row keeps a share drawn from Beta(alpha, alpha)."""
    prob: float = 1.0
    """Probability that a batch (or row) is mixed at all."""
    mode: Literal["batch", "elem"] = "batch"
    """One draw for the batch, or for each row."""
    partner: Literal["flip", "roll"] = "flip"
    """Row i is mixed with row B-1-i, or with row i-1; the batch is shuffled, so neither is better."""

    def __post_init__(self):
        common.check_unit(prob=self.prob)
        if self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}; prob=0 turns mixing off")
        for name, known in (("mode", ("batch", "elem")), ("partner", ("flip", "roll"))):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")

    def draw(self, rng: Rng, shape: Sequence[int]) -> Mixing:
        """Shares for images [B H W C]: float64 on the host, float32 on the device."""
        weight, _ = self._draw_weight(rng, shape)
        xp = common.namespace(weight)
        return Mixing(weight, xp.zeros((shape[0], 4), xp.int32))

    def apply(self, images: Images, draws: Mixing) -> Images:
        if images.dtype == np.uint8:
            raise ValueError("uint8 images cannot hold a blend: mix them as floating point, after normalisation")
        own, other = _shares(draws.weight, images)
        return images * own + self.partners(images) * other

    def apply_targets(self, targets: Any, draws: Mixing) -> Any:
        """Targets [B K] under the same draws; their rows sum to 1 as before."""
        own, other = _shares(draws.weight, targets)
        return targets * own + self.partners(targets) * other

    def partners(self, rows: Any) -> Any:
        """The row that each row [B ...] is mixed with."""
        return rows[::-1] if self.partner == "flip" else common.namespace(rows).roll(rows, 1, 0)

    def __call__(self, rng: Rng, images: Images, targets: Any) -> tuple[Images, Any]:
        """Images [B H W C] and targets [B K], mixed."""
        if common.on_device(rng):
            images, targets = jnp.asarray(images), jnp.asarray(targets)
        common.check_dtype(images)
        if targets.ndim != 2 or len(targets) != len(images) or not jnp.issubdtype(targets.dtype, jnp.floating):
            raise ValueError(
                f"targets are floating point [B K] beside images [B H W C], got {targets.dtype} {targets.shape} and "
                f"{images.shape}: one-hot the labels first"
            )
        draws = self.draw(rng, images.shape)
        return self.apply(images, draws), self.apply_targets(targets, draws)

    def _draw_weight(self, rng: Rng, shape: Sequence[int]) -> tuple[Any, Rng]:
        if len(shape) != 4:
            raise ValueError(f"mixing is for a batch [B H W C], got shape {tuple(shape)}")
        rows = shape[0]
        if self.partner == "flip" and rows % 2:
            raise ValueError(f"partner='flip' pairs the rows of a batch: {rows} rows must be even, or partner='roll'")
        coin, share, rest = common.split(rng, 3)
        count = (rows,) if self.mode == "elem" else (1,)
        mixed = common.units(coin, count) < self.prob
        xp = common.namespace(mixed)
        return xp.broadcast_to(xp.where(mixed, _beta(share, self.alpha, count), 1), (rows,)), rest


@dataclass(frozen=True)
class CutMix(Mixup):
    """Pastes a box of another row into each row, which keeps the share of its target that it keeps of its pixels."""

    alpha: float = 1.0
    """The share that a box is meant to leave is drawn from Beta(alpha, alpha)."""
    sides: Literal["even", "whole"] = "even"
    """The side of a box is rounded down to an even number (official code, torchvision), or to a whole one (timm)."""

    def __post_init__(self):
        super().__post_init__()
        if self.sides not in ("even", "whole"):
            raise ValueError(f"unknown sides {self.sides!r}; known: even, whole")

    def draw(self, rng: Rng, shape: Sequence[int]) -> Mixing:
        weight, rest = self._draw_weight(rng, shape)
        xp = common.namespace(weight)
        place = common.units(rest, ((len(weight) if self.mode == "elem" else 1), 2))
        side, bounds = xp.sqrt(1 - weight), []
        for axis, size in enumerate(shape[1:3]):
            center = common.below(place[:, axis], size)
            if self.sides == "even":
                before = after = xp.floor(0.5 * side * size).astype(xp.int32)
            else:
                whole = xp.floor(side * size).astype(xp.int32)
                before, after = whole // 2, (whole + 1) // 2
            bounds += [xp.maximum(center - before, 0), xp.minimum(center + after, size)]
        box = xp.stack(bounds, -1).astype(xp.int32)
        area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
        return Mixing(1 - area / (shape[1] * shape[2]), box)

    def apply(self, images: Images, draws: Mixing) -> Images:
        y0, y1, x0, x1 = (draws.box[:, i] for i in range(4))
        cut = common.covered(common.namespace(y0).stack([y0, x0, y1 - y0, x1 - x0], -1)[:, None], *images.shape[1:3])
        return common.namespace(images).where(cut[..., None], self.partners(images), images)


def _shares(weight: Any, like: Any) -> tuple[Any, Any]:
    """A row's own share and its partner's in the dtype of `like`; 1 - weight is taken before it is rounded."""
    room = (-1, *(1,) * (like.ndim - 1))
    return weight.reshape(room).astype(like.dtype), (1 - weight).reshape(room).astype(like.dtype)


def _beta(rng: Rng, alpha: float, shape: tuple[int, ...]) -> Any:
    if not common.on_device(rng):
        return np.asarray(rng.beta(alpha, alpha, size=shape))
    # Beta(1, 1) is uniform, and the general sampler is a loop of rejections.
    return jax.random.uniform(rng, shape) if alpha == 1 else jax.random.beta(rng, alpha, alpha, shape)


MIXUP = {
    "imagenet": {},
    "cifar10": {"alpha": 1.0},
    "torchvision": {"alpha": 1.0, "partner": "roll"},
    "swin": {"alpha": 0.8},
}
CUTMIX = {"imagenet": {}, "cifar10": {"prob": 0.5}, "torchvision": {"partner": "roll"}, "timm": {"sides": "whole"}}
