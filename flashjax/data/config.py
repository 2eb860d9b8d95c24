"""What a pipeline does, as typed values: `DataConfig` (with its `AugmentConfig`) for images, `TextConfig` for text.

The defaults of the images are the recipe of Swin on ImageNet-1k (section A2.1 of the paper; `config.py` of the official
code).
"""

from dataclasses import dataclass, field
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EMBEDDED = ("digits", "kjv")
"""Data sets that come with a package and read no directory."""


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
    """A policy by name: RandAugment in timm's notation (`rand-m9-mstd0.5-inc1`), `trivial`, `aa-imagenet`,
    `aa-cifar10`, `aa-svhn`, `augmix-m3-w3`, or one of timm's AutoAugment (`v0-mstd0.5`); None for none. See
    flashjax/data/augment/policies.py."""
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
    """`digits` (embedded, no directory), `folder` (class/image.jpg in the directory), `fashion_mnist` (Debian's package
    or its idx files in the directory), or the name of a TFDS set, with a version if you like: `imagenet2012:5.1.0`."""
    image_size: int = 224
    """Height and width of the images that the model sees."""
    channels: Literal[1, 3] = 3
    """RGB, or gray: the first of mean and std holds then."""
    batch_size: int = 1024
    """Training examples in a step, over all hosts and devices."""
    eval_batch_size: int = 1024
    """Evaluation examples in a step, over all hosts and devices; the last batch is padded and masked."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Crops, flips, RandAugment, mixing, erasing, normalisation."""
    train_examples: int | None = None
    """Train on so many of the training set, drawn with a fixed seed: always the same ones; None: on all."""
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
        if self.train_examples is not None and self.train_examples < 1:
            raise ValueError(f"train_examples must be at least 1, or None for all, got {self.train_examples}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must lie between 0 and 1, got {self.holdout}")
        if self.channels == 1 and self.augment.auto_augment is not None:
            raise ValueError(f"auto_augment {self.augment.auto_augment!r} needs colour: set it to None for 1 channel")
        if self.augment.mixes and self.batch_size % 2:
            raise ValueError(f"Mixup and CutMix pair the rows of a batch: batch_size {self.batch_size} must be even")


@dataclass(frozen=True)
class TextConfig:
    """Which text, in which tokens, packed into rows of what length."""

    dataset: str = "kjv"
    """`kjv` (the King James Bible, embedded, no directory), `text` (text files), `jsonl` (JSON lines), or the name of a
    TFDS set of text, with its configuration and a version if you like: `c4`, `pg19`, `wiki40b/en:1.3.0`."""
    tokenizer: str = "bytes"
    """`bytes` (256 and pad, bos, eos, mask; `bytes:eos` for that one alone), or a path: a SentencePiece `.model`, a
    `tokenizer.json`, a directory with GPT-2's `encoder.json` and `vocab.bpe`, or a `.gguf` with its tokenizer in it."""
    mask_token: str | None = None
    """Masked language models: the token that stands for a hidden one, where the tokenizer does not say; its text as
    listed in the vocabulary."""
    length: int = 512
    """Tokens of a row that the model reads at once (a causal row holds one more, its last target)."""
    batch_size: int = 32
    """Training rows in a step, over all hosts and devices."""
    eval_batch_size: int = 32
    """Evaluation rows in a step, over all hosts and devices; the last batch is padded and masked."""
    eval_batches: int | None = None
    """Evaluate on this many batches, their rows spread evenly over the evaluation text; None: on all of it."""
    documents: Literal["separate", "joined"] = "separate"
    """Whether the documents packed into a row are kept apart (the rows carry segment ids) or read as one text."""
    document_separator: str | None = None
    """`text`: what ends a document inside a file: `blank` for blank lines, else the string itself (\\n and \\t are
    understood); None: each file is one document."""
    text_key: str | None = None
    """`jsonl`: the key of the text (default `text`); TFDS: the feature, where the set has several of type Text."""
    holdout: float = 0.05
    """Where the data have no evaluation split: fraction of the documents held out (of a lone document: its end)."""
    cache_dir: str | None = None
    """Where tokenised text is kept, to be read again by later runs; None: ~/.cache/flashjax for text of 16 MB or more,
    and memory alone for less."""
    workers: int | None = None
    """Processes that tokenise large text; None: one for each core. 0: none besides this one."""
    prefetch: int = 2
    """Batches made ahead on each host."""

    def __post_init__(self):
        for name in ("length", "batch_size", "eval_batch_size", "prefetch"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.eval_batches is not None and self.eval_batches < 1:
            raise ValueError(f"eval_batches must be at least 1, or None for all, got {self.eval_batches}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must lie between 0 and 1, got {self.holdout}")
        if self.document_separator == "":
            raise ValueError("document_separator is empty: want `blank`, a string, or None for one document a file")
        if self.document_separator is not None and self.dataset != "text":
            raise ValueError(f"document_separator is for --data.dataset text, but dataset is {self.dataset}")
        if self.text_key is not None and self.dataset in ("kjv", "text"):
            raise ValueError(f"text_key is for jsonl and TFDS sets, but dataset is {self.dataset}")
