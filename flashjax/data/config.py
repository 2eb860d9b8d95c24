"""What a classification pipeline does, as typed values: `DataConfig` and the `AugmentConfig` inside it.

The defaults are the recipe of Swin on ImageNet-1k (section A2.1 of the paper; `config.py` of the official code).
"""

from dataclasses import dataclass, field
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class AugmentConfig:
    """How an image is changed on its way to the model. A probability or alpha of 0 turns its part off."""

    crop: Literal["random_resized", "pad", "center"] = "random_resized"
    """Training crop: `random_resized` (ImageNet), `pad` (pad by `pad` black pixels, crop at random: small images),
    `center` (as in evaluation)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: range of the crop's area, as a fraction of the image's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: range of width over height, drawn log-uniformly."""
    pad: int = 4
    """Pad crop: how many pixels an image can shift, each way."""
    hflip: float = 0.5
    """Probability of a left-right flip; 0 for digits and text."""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment, in timm's notation (see flashjax/data/augment/randaugment.py); None for none."""
    mixup: float = 0.8
    """Mixup alpha: the mixing weight is drawn from Beta(alpha, alpha)."""
    cutmix: float = 1.0
    """CutMix alpha: one minus the box's area is drawn from Beta(alpha, alpha)."""
    mixup_prob: float = 1.0
    """Probability that a batch (or pair, or element) is mixed at all."""
    switch_prob: float = 0.5
    """Probability of CutMix rather than Mixup where both are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """One draw for the batch, for each pair (row i and row B-1-i), or for each element."""
    label_smoothing: float = 0.1
    """Weight of the uniform distribution in the training target."""
    erase_prob: float = 0.25
    """Random Erasing: probability for each image."""
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"
    """What fills an erased box: N(0, 1) for each pixel, N(0, 1) for each channel, or 0 (after normalisation)."""
    erase_count: int = 1
    """Random Erasing: most boxes in one image (their number is uniform in 1..count, the area is shared)."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Random Erasing: range of the erased area, as a fraction of the image."""
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Random Erasing: range of height over width, drawn log-uniformly."""
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """Pillow filter of every resize; `random` picks one of the two for each image (evaluation: bicubic)."""
    eval_crop: bool = True
    """Evaluation: resize the shorter side to 256/224 of the size and crop the center; False, and wherever the training
    crop is `pad`: resize to the square."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of each channel, for pixels in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of each channel, for pixels in 0..1."""

    def __post_init__(self):
        for name in ("hflip", "mixup_prob", "switch_prob", "erase_prob", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {value}")
        for name in ("scale", "ratio", "erase_area", "erase_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be a range (low, high) with 0 < low <= high, got ({low}, {high})")
        for name in ("mixup", "cutmix", "pad", "erase_count"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if self.erase_prob > 0 and self.erase_count < 1:
            raise ValueError(f"erase_prob is {self.erase_prob} but erase_count is {self.erase_count}: want >= 1")

    @property
    def mixes(self) -> bool:
        """Whether Mixup or CutMix can happen."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)


@dataclass(frozen=True)
class DataConfig:
    """Which images, at what size, in what batches, made by how many processes."""

    dataset: str = "imagenet2012"
    """`digits` (embedded, no directory), `folder` (class/image.jpg in the directory), or the name of a TFDS set,
    with a version if you like: `imagenet2012:5.1.0`."""
    image_size: int = 224
    """Height and width of the images that the model sees."""
    batch_size: int = 1024
    """Training examples in a step, over all hosts and devices."""
    eval_batch_size: int = 1024
    """Evaluation examples in a step, over all hosts and devices; the last batch is padded and masked."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Crops, flips, RandAugment, mixing, erasing, normalisation."""
    on_error: Literal["raise", "skip"] = "raise"
    """A corrupt or missing image stops the run, or is left out and counted."""
    holdout: float = 0.1
    """`folder` without a validation folder: fraction of each class held out for evaluation."""
    exif_rotate: bool = False
    """Turn photographs as their EXIF orientation says (the official loaders do not)."""
    jpeg_draft: bool = False
    """Let libjpeg shrink large JPEGs while decoding: faster, but not equal to the reference pixels."""
    workers: int | None = None
    """Decoding processes on each host; None: one for each core, at most 32, and none for the embedded set. 0: threads
    of the training process, which start at once but share its interpreter."""
    prefetch: int = 2
    """Batches made ahead on each host."""

    def __post_init__(self):
        for name in ("image_size", "batch_size", "eval_batch_size", "prefetch"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must lie between 0 and 1, got {self.holdout}")
        if self.augment.mixes and self.batch_size % 2:
            raise ValueError(f"Mixup and CutMix pair the rows of a batch: batch_size {self.batch_size} must be even")
