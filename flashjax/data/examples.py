"""One example, one chunk: what the worker processes do.

Legend: B batch (rows over all hosts), C rows of a chunk.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np
from PIL import Image

from flashjax.data.config import DataConfig
from flashjax.data.sources import Source
from flashjax.data.transforms import TrainTransform, center_resize, decode

CHUNK_ROWS = 32
ENDLESS = 2**60  # chunks of a training stream: no run reaches it, and sums with it still fit 64 bits
MAX_BAD_IN_A_ROW = 100
SKIP_HINT = "--data.on_error skip leaves such images out and counts them"
SHUFFLE, AUGMENT, MIX = range(3)  # one family of draws each

Arrays = dict[str, np.ndarray]


class BadImageError(ValueError):
    """An image that is missing or cannot be decoded; the message names the file or record and the class."""


class Chunk(NamedTuple):
    """Some rows of a batch, and the images that had to be left out of them."""

    arrays: Arrays
    bad: list[str]


@runtime_checkable
class Examples(Protocol):
    """What fills the rows of chunks: `examples(slot, arrays, row)` writes one row and tells of images left out."""

    @property
    def source(self) -> Source: ...

    def __call__(self, slot: int, arrays: Arrays, row: int) -> list[str]: ...


def generator(seed: int, family: int, index: int) -> np.random.Generator:
    """The draws of one slot or batch: independent for every (seed, family, index), with no state to carry."""
    return np.random.Generator(np.random.Philox(key=[seed, family], counter=[0, 0, index, 0]))


def read_image(source: Source, index: int, config: DataConfig) -> tuple[Image.Image, int]:
    """Example `index`, decoded to RGB, and its label; raises BadImageError where that cannot be done."""
    try:
        payload, label = source[index]
        # The smallest crop that the recipe draws must still cover the result, so a draft stays well above it.
        return decode(payload, config.exif_rotate, 2 * config.image_size if config.jpeg_draft else None), label
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
        # Grain adds the epoch to this number, so neighbouring seeds must not lie next to each other.
        shuffle_seed = int(generator(seed, SHUFFLE, 0).integers(2**32))
        order = grain.MapDataset.range(len(source)).shuffle(seed=shuffle_seed).repeat()
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
        arrays["image"][row] = center_resize(image, self.config.image_size, self.config.augment)
        arrays["label"][row], arrays["mask"][row] = label, 1
        return []


class ChunkSource:
    """Random access to chunks, for Grain: chunk c is part c % parts of this host's rows of batch c // parts.

    Args:
        examples: what fills a row.
        leaves: name -> shape of one example and dtype.
        batch_size: B.
        first_row, rows: this host's share of each batch.
        num_batches: batches in the split; None for no end.
    """

    def __init__(
        self,
        examples: Examples,
        leaves: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        batch_size: int,
        first_row: int,
        rows: int,
        num_batches: int | None,
    ):
        self.examples, self.parts = examples, math.ceil(rows / CHUNK_ROWS)
        self._leaves, self._batch_size, self._first_row, self._rows = leaves, batch_size, first_row, rows
        self._length = ENDLESS if num_batches is None else num_batches * self.parts

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Chunk:
        batch, part = divmod(int(index), self.parts)
        start, stop = part * CHUNK_ROWS, min((part + 1) * CHUNK_ROWS, self._rows)
        arrays = {name: np.empty((stop - start, *shape), dtype) for name, (shape, dtype) in self._leaves.items()}
        slot = batch * self._batch_size + self._first_row + start
        notes = [self.examples(slot + row, arrays, row) for row in range(stop - start)]
        return Chunk(arrays, [text for note in notes for text in note])
