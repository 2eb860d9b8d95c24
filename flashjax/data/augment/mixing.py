"""Mixup and CutMix: the draws, made on the host for a global batch. `device.mix` applies them.

Sources: "mixup" (1710.09412), "CutMix" (1905.04899); parameters and order of draws as timm's `Mixup`, which the
official Swin code uses. Row i is always mixed with row B-1-i.

Legend: B rows of the global batch.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from flashjax.data.config import AugmentConfig

Box = tuple[int, int, int, int]


class Mixing(NamedTuple):
    """`weight` of a row's own label, and its CutMix `box` (y0, y1, x0, x1); an empty box means Mixup by `weight`."""

    weight: Float32[np.ndarray, "B"]
    box: Int32[np.ndarray, "B 4"]


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
