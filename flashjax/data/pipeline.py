"""The way of images into a run: a source, an order, worker processes, batches.

Batch k is a pure function of (seed, k): the order is a permutation of the set for each epoch, drawn from (seed, epoch);
the augmentation of the example in slot i = k * B + row is drawn from (seed, i); the mixing of batch k from (seed, k).
So a resumed run, with any number of workers or hosts, sees the same batches.

The unit of work is a chunk, a few rows of a batch: small enough that workers fill their first batch together and that
shared memory stays small, large enough that handing it over costs nothing.

Legend: B batch (rows over all hosts), P hosts (processes), H, W height and width, N erase boxes.
"""

import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import grain
import jax
import numpy as np
from absl import flags

from flashjax.data import imagenet, sources
from flashjax.data.augment.mixup import sample_mixing
from flashjax.data.config import AugmentConfig, DataConfig
from flashjax.data.examples import (
    MIX,
    BadImageError,
    Chunk,
    ChunkSource,
    EvalExamples,
    TrainExamples,
    generator,
)
from flashjax.data.sources import Source
from flashjax.data.tfds_source import tfds

__all__ = ["AugmentConfig", "BadImageError", "DataConfig", "DatasetInfo", "Pipeline", "classification"]

MAX_WORKERS = 32  # each decodes some 150 images of ImageNet in a second and holds some 300 MB

log = logging.getLogger(__name__)
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set holds."""

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    train_examples: int
    eval_examples: int


class Pipeline:
    """Batches of one split, for one host.

    Attributes:
        batch_size: B, rows over all hosts.
        num_batches: batches in the split; None for the endless training stream.
        steps_per_epoch: batches in one pass over the set, at least 1.
        spec: name -> shape and dtype of each leaf over all hosts; the first dimension is always B.
        skipped: bad images left out of the batches handed out so far (`on_error="skip"`), on this host.
    """

    def __init__(self, examples: TrainExamples | EvalExamples, config: DataConfig, seed: int, process: tuple[int, int]):
        index, count = process
        training = isinstance(examples, TrainExamples)
        self.batch_size = config.batch_size if training else config.eval_batch_size
        if self.batch_size % count:
            name = "batch_size" if training else "eval_batch_size"
            raise ValueError(f"{name} {self.batch_size} does not divide over {count} hosts")
        total = len(examples.source)
        self.num_batches = None if training else math.ceil(total / self.batch_size)
        self.steps_per_epoch = self.num_batches or max(1, total // self.batch_size)
        self.spec = _spec(config, self.batch_size, training)
        self.skipped = 0
        self._config, self._seed, self._training = config, seed, training
        self._rows = self.batch_size // count
        self._first_row = index * self._rows
        # Mixing is drawn for the whole batch at once, so that all hosts agree; the workers leave it out.
        leaves = {n: (s.shape[1:], s.dtype) for n, s in self.spec.items() if not n.startswith("mix_")}
        self._chunks = ChunkSource(examples, leaves, self.batch_size, self._first_row, self._rows, self.num_batches)
        in_memory = isinstance(examples.source, sources.ArraySource)
        self._threads = 1 if in_memory else _cores()
        self._workers = config.workers if config.workers is not None else 0 if in_memory else _cores()

    def batch(self, k: int) -> Batch:
        """This host's rows of batch k, made here and now: rows [p * B/P, (p + 1) * B/P).

        Training: `image` uint8 [B/P, H, W, 3], `label` int32 [B/P], `mix_lambda` float32 [B/P], `mix_box` int32
        [B/P, 4] (y0, y1, x0, x1), `erase_box` int32 [B/P, N, 4] (top, left, height, width; height 0: none).
        Evaluation: `image`, `label`, `mask` float32 [B/P], 0 for padding and skipped images.

        Raises:
            IndexError: no such batch.
            BadImageError: an image is missing or corrupt, and `on_error` is `raise`.
        """
        if k < 0 or (self.num_batches is not None and k >= self.num_batches):
            raise IndexError(f"batch {k} of {self.num_batches}")
        first = k * self._chunks.parts
        return self._assemble(k, [self._chunks[first + part] for part in range(self._chunks.parts)])

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Batches start, start + 1, ...: the same as `batch`, made ahead of time by worker processes.

        The iterator's `close()` ends the workers; so does reaching the end, an error, or dropping the iterator.
        """
        if self.num_batches is not None and start >= self.num_batches:
            return
        parts = self._chunks.parts
        ahead = self._config.prefetch * parts
        chunks = grain.MapDataset.source(self._chunks)[start * parts :]
        workers = min(self._workers, len(chunks))
        if workers:
            _parse_absl_flags()
            read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
            options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=math.ceil(ahead / workers))
            iterator = iter(chunks.to_iter_dataset(read).mp_prefetch(options, worker_init_fn=_start_worker))
        else:
            ahead = max(ahead, self._threads)
            iterator = iter(chunks.to_iter_dataset(grain.ReadOptions(self._threads, ahead)))
        try:
            k = start
            while self.num_batches is None or k < self.num_batches:
                yield self._assemble(k, [next(iterator) for _ in range(parts)])
                k += 1
        finally:
            iterator.close()

    def _assemble(self, k: int, chunks: list[Chunk]) -> Batch:
        for text in (text for chunk in chunks for text in chunk.bad):
            self.skipped += 1
            log.warning("left out: %s", text)
        arrays = [chunk.arrays for chunk in chunks]
        if len(arrays) == 1 and not self._workers:
            batch = arrays[0]
        else:  # also where there is one chunk: what workers hand over lies in shared memory that they take back
            batch = {name: np.concatenate([chunk[name] for chunk in arrays]) for name in arrays[0]}
        if self._training:
            size = self._config.image_size
            rng = generator(self._seed, MIX, k)
            mixing = sample_mixing(rng, self.batch_size, size, size, self._config.augment)
            mine = slice(self._first_row, self._first_row + self._rows)
            batch |= {"mix_lambda": mixing.weight[mine], "mix_box": mixing.box[mine]}
        return batch


def _cores() -> int:
    """Cores of this process, at most MAX_WORKERS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_WORKERS)


def _parse_absl_flags() -> None:
    """Grain's worker processes read absl's flags; a program that does not use absl has to say that it has none."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_worker(index: int, count: int) -> None:
    """In a worker: leave Ctrl-C to the trainer, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


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
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in 0..2^63-1, got {seed}")
    train, held_out = open_source(config, data_dir)
    process = (process_index, process_count)
    name = train.name if train.name == held_out.name else f"{train.name} / {held_out.name}"
    names = _display_names(train.class_names)
    info = DatasetInfo(name, len(names), names, len(train), len(held_out))
    training = Pipeline(TrainExamples.create(train, config, seed), config, seed, process)
    return training, Pipeline(EvalExamples(held_out, config), config, seed, process), info


def open_source(config: DataConfig, data_dir: str | None) -> tuple[Source, Source]:
    """The training and evaluation sources that `config.dataset` names; see `classification`."""
    if config.dataset == "digits":
        if data_dir is not None:
            raise ValueError(
                f"the digits are embedded and read no directory, but data_dir is {data_dir}: name its kind with "
                "--data.dataset folder, or the TFDS set in it, as in --data.dataset imagenet2012"
            )
        return sources.digits()
    if data_dir is None:
        raise ValueError(f"data set {config.dataset!r} needs --data_dir (or TFDS_DATA_DIR)")
    if config.dataset == "folder":
        return sources.folder(data_dir, config.holdout)
    return tfds(config.dataset, data_dir, config.holdout)


def _display_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """English names where the classes are the WordNet ids of ImageNet-1k, else the names themselves."""
    names = tuple(class_names)
    return imagenet.class_names() if names == imagenet.wnids() else names


def _spec(config: DataConfig, rows: int, training: bool) -> dict[str, jax.ShapeDtypeStruct]:
    size, boxes = config.image_size, config.augment.erase_count
    leaves = {"image": ((size, size, 3), np.uint8), "label": ((), np.int32)}
    if training:
        leaves |= {
            "erase_box": ((boxes, 4), np.int32),
            "mix_lambda": ((), np.float32),
            "mix_box": ((4,), np.int32),
        }
    else:
        leaves["mask"] = ((), np.float32)
    return {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in leaves.items()}
