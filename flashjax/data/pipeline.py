"""The way of images into a run: a source, an order, worker processes, batches.

Batch k is a pure function of (seed, k): the order is a permutation of the set for each epoch, drawn from (seed, epoch);
the augmentation of the example in slot i = k * B + row is drawn from (seed, i); the mixing of batch k from (seed, k).
So a resumed run, with any number of workers or hosts, sees the same batches.

Legend: B batch (rows over all hosts), P hosts (processes), H, W, C height, width, channels, N erase boxes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from flashjax.data import described, idx_source, imagenet, sources
from flashjax.data.augment.mixing import sample_mixing
from flashjax.data.batches import MIX, Arrays, Batches, check_seed, cores, generator
from flashjax.data.config import AugmentConfig, DataConfig
from flashjax.data.examples import BadImageError, EvalExamples, TrainExamples
from flashjax.data.sources import Source
from flashjax.data.tfds_source import tfds

__all__ = ["AugmentConfig", "BadImageError", "DataConfig", "DatasetInfo", "Pipeline", "classification"]


MIXING = {"mix_lambda": ((), np.float32), "mix_box": ((4,), np.int32)}
"""What a training batch has beside what its examples are: shape of a row and dtype."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set holds."""

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    train_examples: int
    eval_examples: int


class Pipeline(Batches):
    """Batches of images of one split, for one host; see `Batches`. Their leaves:

    Training: `image` uint8 [B/P, H, W, C], `label` int32 [B/P], `mix_lambda` float32 [B/P], `mix_box` int32 [B/P, 4]
    (y0, y1, x0, x1), `erase_box` int32 [B/P, N, 4] (top, left, height, width; height 0: none).
    Evaluation: `image`, `label`, `mask` float32 [B/P], 0 for padding and skipped images.

    Making a batch raises BadImageError where an image is missing or corrupt and `on_error` is `raise`; `skipped` counts
    the images left out otherwise.
    """

    def __init__(self, examples: TrainExamples | EvalExamples, config: DataConfig, seed: int, process: tuple[int, int]):
        self._config, self._seed, self._training = config, seed, isinstance(examples, TrainExamples)
        total = len(examples.source)
        if self._training:
            sizes, batches, steps = ("batch_size", config.batch_size), None, total // config.batch_size
        else:
            sizes = ("eval_batch_size", config.eval_batch_size)
            batches = steps = math.ceil(total / config.eval_batch_size)
        in_memory = isinstance(examples.source, sources.ArraySource)
        workers = config.workers if config.workers is not None else 0 if in_memory else cores()
        threads = 1 if in_memory else cores()
        leaves = _leaves(config, self._training)
        super().__init__(examples, leaves, sizes, batches, steps, process, workers, threads, config.prefetch)
        if self._training:  # drawn for the whole batch at once, so that all hosts agree; the workers leave it out
            rows = self.batch_size
            self.spec |= {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in MIXING.items()}

    def _finish(self, k: int, batch: Arrays) -> Arrays:
        if self._training:
            size = self._config.image_size
            rng = generator(self._seed, MIX, k)
            mixing = sample_mixing(rng, self.batch_size, size, size, self._config.augment)
            mine = slice(self._first_row, self._first_row + self._rows)
            batch |= {"mix_lambda": mixing.weight[mine], "mix_box": mixing.box[mine]}
        return batch


def classification(
    config: DataConfig, data_dir: str | None, seed: int, process_index: int = 0, process_count: int = 1
) -> tuple[Pipeline, Pipeline, DatasetInfo]:
    """The training stream and the evaluation set of an image classification data set.

    Args:
        config: which set and how.
        data_dir: where it is; None for the embedded digits.
        seed: of the order and of every draw.
        process_index, process_count: which host this is, and of how many.
    Returns:
        (training, evaluation, what the set holds).
    Raises:
        FileNotFoundError, ValueError: the data are not there or not as they should be; the message says what to do.
    """
    check_seed(seed)
    sizes = described.sizes()
    if sizes is not None and data_dir is None and config.dataset != "digits":
        return _described(config, sizes)
    train, held_out = open_source(config, data_dir)
    if config.train_examples is not None:
        train = sources.sample(train, config.train_examples)
    process = (process_index, process_count)
    name = train.name if train.name == held_out.name else f"{train.name} / {held_out.name}"
    names = _display_names(train.class_names)
    info = DatasetInfo(name, len(names), names, len(train), len(held_out))
    training = Pipeline(TrainExamples.create(train, config, seed), config, seed, process)
    return training, Pipeline(EvalExamples(held_out, config), config, seed, process), info


def _described(config: DataConfig, sizes: described.Sizes) -> tuple[Any, Any, DatasetInfo]:
    """What `classification` returns of a set that is not there."""
    classes = sizes.classes or described.CLASSES.get(config.dataset) or len(imagenet.wnids())
    steps, rows = described.STEPS, config.batch_size
    training = described.Described(rows, _leaves(config, True) | MIXING, steps, None)
    evaluation = described.Described(config.eval_batch_size, _leaves(config, False), steps, steps)
    names = imagenet.class_names() if classes == len(imagenet.wnids()) else tuple(map(str, range(classes)))
    return training, evaluation, DatasetInfo(f"{config.dataset} (described)", classes, names, steps * rows, steps)


def open_source(config: DataConfig, data_dir: str | None) -> tuple[Source, Source]:
    """The training and evaluation sources that `config.dataset` names; see `classification`."""
    if config.dataset == "digits":
        if data_dir is not None:
            raise ValueError(
                f"the digits are embedded and read no directory, but data_dir is {data_dir}: name its kind with "
                "--data.dataset folder, or the TFDS set in it, as in --data.dataset imagenet2012"
            )
        return sources.digits()
    if config.dataset == "fashion_mnist" and (data_dir is None or idx_source.holds_idx(data_dir)):
        return idx_source.fashion_mnist(data_dir)
    if data_dir is None:
        raise ValueError(f"data set {config.dataset!r} needs --data_dir (or TFDS_DATA_DIR)")
    if config.dataset == "folder":
        return sources.folder(data_dir, config.holdout)
    return tfds(config.dataset, data_dir, config.holdout)


def _display_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """English names where the classes are the WordNet ids of ImageNet-1k, else the names themselves."""
    names = tuple(class_names)
    return imagenet.class_names() if names == imagenet.wnids() else names


def _leaves(config: DataConfig, training: bool) -> dict[str, tuple[tuple[int, ...], type]]:
    """What the workers fill: name -> shape of one example and dtype."""
    size = config.image_size
    leaves = {"image": ((size, size, config.channels), np.uint8), "label": ((), np.int32)}
    if training:
        return leaves | {"erase_box": ((config.augment.erase_count, 4), np.int32)}
    return leaves | {"mask": ((), np.float32)}
