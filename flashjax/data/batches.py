"""Batches by number: what every pipeline shares.

A pipeline is an `Examples`, which fills row r of batch k as a function of its slot k * B + r alone; this file cuts the
batches of a host into chunks, makes them here and now or ahead of time in threads or processes, and joins them.

The unit of work is a chunk, a few rows of a batch: small enough that workers fill their first batch together and that
shared memory stays small, large enough that handing it over costs nothing.

Legend: B batch (rows over all hosts), P hosts (processes), C rows of a chunk.
"""

import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, Protocol

import grain
import jax
import numpy as np
from absl import flags

CHUNK_ROWS = 32
ENDLESS = 2**60  # chunks of a training stream: no run reaches it, and sums with it still fit 64 bits
MAX_WORKERS = 32  # each decodes some 150 images of ImageNet in a second and holds some 300 MB
SHUFFLE, AUGMENT, MIX, DOCUMENTS = range(4)  # one family of draws each

log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]
Leaves = Mapping[str, tuple[tuple[int, ...], np.dtype | type]]


def generator(seed: int, family: int, index: int) -> np.random.Generator:
    """The draws of one slot or batch: independent for every (seed, family, index), with no state to carry."""
    return np.random.Generator(np.random.Philox(key=[seed, family], counter=[0, 0, index, 0]))


def shuffled(count: int, seed: int) -> Any:
    """Random access to an endless order: slots e * count to (e + 1) * count are a permutation, a new one for each e."""
    # Grain adds the epoch to this number, so neighbouring seeds must not lie next to each other.
    shuffle_seed = int(generator(seed, SHUFFLE, 0).integers(2**32))
    return grain.MapDataset.range(count).shuffle(seed=shuffle_seed).repeat()


class Examples(Protocol):
    """What fills the rows: `examples(slot, arrays, row)` writes one row and tells of what had to be left out."""

    def __call__(self, slot: int, arrays: Arrays, row: int) -> list[str]: ...


class Chunk(NamedTuple):
    """Some rows of a batch, and what had to be left out of them."""

    arrays: Arrays
    bad: list[str]


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
        leaves: Leaves,
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


class Batches:
    """Batches of one split, for one host; satisfies `flashjax.training.experiment.Pipeline`.

    Args:
        examples: what fills a row.
        leaves: name -> shape of one example and dtype.
        sizes: name of the batch size, for messages, and B.
        num_batches: batches in the split; None for the endless training stream.
        steps_per_epoch: batches in one pass.
        process: which host this is, and of how many.
        workers: processes that make chunks ahead of time; 0 for threads of this process.
        threads: how many of those.
        prefetch: batches made ahead.

    Attributes:
        batch_size: B, rows over all hosts.
        num_batches: batches in the split; None for the endless training stream.
        steps_per_epoch: batches in one pass over the set, at least 1.
        spec: name -> shape and dtype of each leaf over all hosts; the first dimension is always B.
        skipped: what was left out of the batches handed out so far, on this host.
    """

    def __init__(
        self,
        examples: Examples,
        leaves: Leaves,
        sizes: tuple[str, int],
        num_batches: int | None,
        steps_per_epoch: int,
        process: tuple[int, int],
        workers: int,
        threads: int,
        prefetch: int,
    ):
        (name, self.batch_size), (index, count) = sizes, process
        if self.batch_size % count:
            raise ValueError(f"{name} {self.batch_size} does not divide over {count} hosts")
        self.num_batches, self.steps_per_epoch, self.skipped = num_batches, max(1, steps_per_epoch), 0
        self.spec = {
            name: jax.ShapeDtypeStruct((self.batch_size, *shape), dtype) for name, (shape, dtype) in leaves.items()
        }
        self._rows = self.batch_size // count
        self._first_row = index * self._rows
        self._chunks = ChunkSource(examples, leaves, self.batch_size, self._first_row, self._rows, num_batches)
        self._workers, self._threads, self._prefetch = workers, threads, prefetch

    def batch(self, k: int) -> Arrays:
        """This host's rows of batch k, made here and now: rows [p * B/P, (p + 1) * B/P).

        Raises:
            IndexError: no such batch.
        """
        if k < 0 or (self.num_batches is not None and k >= self.num_batches):
            raise IndexError(f"batch {k} of {self.num_batches}")
        first = k * self._chunks.parts
        return self._assemble(k, [self._chunks[first + part] for part in range(self._chunks.parts)])

    def batches(self, start: int = 0) -> Generator[Arrays, None, None]:
        """Batches start, start + 1, ...: the same as `batch`, made ahead of time by worker processes or threads.

        The iterator's `close()` ends them; so does reaching the end, an error, or dropping the iterator.
        """
        if self.num_batches is not None and start >= self.num_batches:
            return
        parts = self._chunks.parts
        ahead = self._prefetch * parts
        chunks = grain.MapDataset.source(self._chunks)[start * parts :]
        workers = min(self._workers, len(chunks))
        if workers:
            _parse_absl_flags()
            read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
            options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=math.ceil(ahead / workers))
            iterator = iter(chunks.to_iter_dataset(read).mp_prefetch(options, worker_init_fn=start_worker))
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

    def _assemble(self, k: int, chunks: list[Chunk]) -> Arrays:
        for text in (text for chunk in chunks for text in chunk.bad):
            self.skipped += 1
            log.warning("left out: %s", text)
        arrays = [chunk.arrays for chunk in chunks]
        if len(arrays) == 1 and not self._workers:
            batch = arrays[0]
        else:  # also where there is one chunk: what workers hand over lies in shared memory that they take back
            batch = {name: np.concatenate([chunk[name] for chunk in arrays]) for name in arrays[0]}
        return self._finish(k, batch)

    def _finish(self, k: int, batch: Arrays) -> Arrays:
        """What is drawn for a batch as a whole."""
        return batch


def check_seed(seed: int) -> None:
    """Raises ValueError where `seed` is no key for `generator`."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in 0..2^63-1, got {seed}")


def cores() -> int:
    """Cores of this process, at most MAX_WORKERS."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, MAX_WORKERS)


def _parse_absl_flags() -> None:
    """Grain's worker processes read absl's flags; a program that does not use absl has to say that it has none."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def start_worker(index: int = 0, count: int = 1) -> None:
    """In a worker: leave Ctrl-C to the trainer, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
