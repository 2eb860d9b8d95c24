"""Data that are described but not there, for plans: shapes without a file behind them.

    with described.allowed(classes=1000, vocab_size=32000):
        experiment = launcher.build(config)

Inside, `data.classification` and `data.language` open what is named or embedded as always; a set that needs a directory
and is given none becomes a `Described`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import numpy as np

STEPS = 1250
"""Steps of an epoch of a set that nobody has counted; ImageNet-1k in batches of 1024 has as many."""
CLASSES = {"cifar10": 10, "cifar100": 100, "fashion_mnist": 10}
"""Of sets that launchers name."""


@dataclass(frozen=True)
class Sizes:
    """What cannot be known without the data."""

    classes: int | None
    vocab_size: int | None


_allowed: ContextVar[Sizes | None] = ContextVar("described", default=None)


@contextlib.contextmanager
def allowed(classes: int | None = None, vocab_size: int | None = None) -> Iterator[None]:
    """Data sets that are not there are described inside, with so many classes, or tokens in their vocabulary."""
    token = _allowed.set(Sizes(classes, vocab_size))
    try:
        yield
    finally:
        _allowed.reset(token)


def sizes() -> Sizes | None:
    """What `allowed` said; None outside of it."""
    return _allowed.get()


class Described:
    """A pipeline's figures. Asking it for a batch is an error."""

    skipped = 0

    def __init__(
        self, batch_size: int, leaves: Mapping[str, tuple[tuple[int, ...], Any]], steps: int, batches: int | None
    ):
        """`leaves`: shape of one example and dtype, by name."""
        self.batch_size, self.steps_per_epoch, self.num_batches = batch_size, steps, batches
        self.spec = {name: jax.ShapeDtypeStruct((batch_size, *shape), dtype) for name, (shape, dtype) in leaves.items()}

    def batch(self, k: int) -> NoReturn:
        raise ValueError(f"batch {k} is described only: name the data with --data_dir")

    def batches(self, start: int = 0) -> NoReturn:
        return self.batch(start)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer of which the size is known alone; the last token hides others."""

    vocab_size: int
    name: str = "described"
    pad: int | None = 0
    bos: int | None = None
    eos: int | None = None
    fingerprint: str = "described"

    @property
    def mask(self) -> int:
        return self.vocab_size - 1

    @property
    def token_bytes(self) -> np.ndarray:
        return np.ones(self.vocab_size, np.int32)

    def encode(self, text: str, specials: bool = False) -> NoReturn:
        raise ValueError("a described vocabulary encodes nothing: name a tokenizer with --data.tokenizer")

    def decode(self, ids: Iterable[int]) -> NoReturn:
        raise ValueError("a described vocabulary decodes nothing: name a tokenizer with --data.tokenizer")

    def stream(self) -> NoReturn:
        return self.decode(())
