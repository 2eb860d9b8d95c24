"""One image of a batch: what the worker processes do."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from flashjax.data.batches import AUGMENT, Arrays, generator, shuffled
from flashjax.data.config import DataConfig
from flashjax.data.sources import Source
from flashjax.data.transforms import TrainTransform, center_resize, decode, pixels

MAX_BAD_IN_A_ROW = 100
SKIP_HINT = "--data.on_error skip leaves such images out and counts them"


class BadImageError(ValueError):
    """An image that is missing or cannot be decoded; the message names the file or record and the class."""


def read_image(source: Source, index: int, config: DataConfig) -> tuple[Image.Image, int]:
    """Example `index`, decoded to RGB or gray, and its label; raises BadImageError where that cannot be done."""
    try:
        payload, label = source[index]
        # The smallest crop that the recipe draws must still cover the result, so a draft stays well above it.
        draft = 2 * config.image_size if config.jpeg_draft else None
        return decode(payload, config.exif_rotate, draft, config.channels), label
    except Exception as error:  # Pillow's readers raise nearly anything on a damaged file
        raise BadImageError(f"bad image: {source.describe(index)}: {error or type(error).__name__}") from error


@dataclass(frozen=True)
class TrainExamples:
    """The endless training stream: slot i -> one augmented example."""

    source: Source
    order: Any
    """A Grain `MapDataset` of indices."""
    transform: TrainTransform
    config: DataConfig
    seed: int

    @staticmethod
    def create(source: Source, config: DataConfig, seed: int) -> "TrainExamples":
        """Shuffles `source` anew for each epoch; every example comes once in an epoch."""
        order = shuffled(len(source), seed)
        return TrainExamples(source, order, TrainTransform.create(config), config, seed)

    def __call__(self, slot: int, arrays: Arrays, row: int) -> list[str]:
        """Writes the example of `slot` into `row`; a bad image gives its place to the next one of the source."""
        first, bad = int(self.order[slot]), []
        for attempt in range(MAX_BAD_IN_A_ROW):
            try:
                image, label = read_image(self.source, (first + attempt) % len(self.source), self.config)
            except BadImageError as error:
                if self.config.on_error == "raise":
                    raise BadImageError(f"{error}; {SKIP_HINT}") from error.__cause__
                bad.append(str(error))
                continue
            rng = generator(self.seed, AUGMENT, slot)
            arrays["image"][row], arrays["erase_box"][row] = self.transform(image, rng)
            arrays["label"][row] = label
            return bad
        raise BadImageError(f"{MAX_BAD_IN_A_ROW} in a row; the last {bad[-1]}")


@dataclass(frozen=True)
class EvalExamples:
    """The evaluation set in its own order: slot i -> example i; slots past the end are padding."""

    source: Source
    config: DataConfig

    def __call__(self, slot: int, arrays: Arrays, row: int) -> list[str]:
        """Writes the example of `slot` into `row`; padding and a bad image are zeros under a mask of 0."""
        arrays["image"][row], arrays["label"][row], arrays["mask"][row] = 0, 0, 0
        if slot >= len(self.source):
            return []
        try:
            image, label = read_image(self.source, slot, self.config)
        except BadImageError as error:
            if self.config.on_error == "raise":
                raise BadImageError(f"{error}; {SKIP_HINT}") from error.__cause__
            return [str(error)]
        arrays["image"][row] = pixels(center_resize(image, self.config.image_size, self.config.augment))
        arrays["label"][row], arrays["mask"][row] = label, 1
        return []
