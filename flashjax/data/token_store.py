"""Documents as tokens: one flat array and where each document lies in it, in memory or in a cache on disk.

A cache is a directory named after the text and the tokenizer: `tokens.bin` (uint16 or uint32), `offsets.bin` (int64,
one more than there are documents) and `meta.json`. It appears whole (written beside its place, then renamed), and is
mapped into memory, so that a run holds no more of it than it reads. Processes of one machine that want the same cache
wait for the one that makes it; on several machines each may make it, and the first is kept.

Legend: D documents, T tokens.
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flashjax.data.batches import cores, start_worker
from flashjax.data.text_sources import TextSource
from flashjax.data.tokenizers import Tokenizer

SMALL = 16 << 20  # bytes of text that are tokenised at every start rather than kept on disk
BATCH = 1 << 20  # characters that a process tokenises at a time
FORMAT = 1  # of the directory; counts up when it changes

log = logging.getLogger(__name__)
Encoded = tuple[np.ndarray, np.ndarray]  # tokens of some documents, and how many each has


@dataclass(frozen=True)
class Documents:
    """D documents of tokens.

    Attributes:
        name: what the set is called.
        tokens: uint16 or uint32 [T].
        starts, ends: int64 [D], where each document lies in `tokens`.
    """

    name: str
    tokens: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def split(self, fraction: float) -> "tuple[Documents, Documents]":
        """(the rest, `fraction` of the documents held out): always the same ones; of a lone document its end."""
        name = f"{self.name} ({fraction:.0%} held out)"
        if len(self) == 1:
            start, end = int(self.starts[0]), int(self.ends[0])
            cut = np.array([end - max(1, round(fraction * (end - start)))])
            return Documents(name, self.tokens, self.starts, cut), Documents(name, self.tokens, cut, self.ends)
        order = np.random.default_rng(0).permutation(len(self))
        count = min(max(round(fraction * len(self)), 1), len(self) - 1)
        kept, held_out = np.sort(order[count:]), np.sort(order[:count])
        return self._only(kept, name), self._only(held_out, name)

    def _only(self, rows: np.ndarray, name: str) -> "Documents":
        return Documents(name, self.tokens, self.starts[rows], self.ends[rows])


def tokenise(
    source: TextSource, tokenizer: Tokenizer, cache_dir: str | Path | None = None, workers: int | None = None
) -> Documents:
    """The documents of `source` in the tokens of `tokenizer`.

    Args:
        cache_dir: keep them there, or read them there if an earlier call has; None: in the user's cache where the text
            is large, nowhere where it is small.
        workers: processes for large text; None: one for each core. 0: none besides this one.
    Raises:
        ValueError: no text, text that the tokenizer cannot take, or a damaged cache.
    """
    if cache_dir is None and source.size < SMALL:
        tokens, lengths = _joined(_encode(tokenizer, texts) for texts in _batches(source.documents()))
        _check(source, len(lengths))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Documents(source.name, tokens, offsets[:-1], offsets[1:])
    directory = _directory(source, tokenizer, Path(cache_dir or default_cache()).expanduser())
    if not directory.exists():
        _make(directory, source, tokenizer, workers)
    return _read(directory, source.name)


def default_cache() -> Path:
    """Where large text is kept if nothing else is said."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flashjax" / "tokens"


def _directory(source: TextSource, tokenizer: Tokenizer, cache: Path) -> Path:
    facts = f"{FORMAT} {source.fingerprint} {tokenizer.fingerprint}"
    title = re.sub(r"[^A-Za-z0-9]+", "-", source.name)[-40:].strip("-")
    return cache / f"{title}-{hashlib.sha256(facts.encode()).hexdigest()[:20]}"


def _make(directory: Path, source: TextSource, tokenizer: Tokenizer, workers: int | None) -> None:
    """Writes the cache, unless another process has it ready meanwhile."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{directory.name}.{socket.gethostname()}."
    with _locked(directory.with_name(f".{directory.name}.lock")) as alone:
        if directory.exists():
            return
        if alone:  # what is left is of processes of this machine that were killed
            for left in directory.parent.glob(prefix + "*"):
                shutil.rmtree(left, ignore_errors=True)
        unfinished = directory.with_name(f"{prefix}{os.getpid()}.{uuid.uuid4().hex[:8]}")
        unfinished.mkdir()
        try:
            _write(unfinished, source, tokenizer, workers)
            os.rename(unfinished, directory)
        except OSError:
            if not directory.exists():  # else another machine was first, and its cache is as good
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Held by one process of this machine at a time; gives False where the file system knows no locks.

    The lock saves work; that a cache is whole does not depend on it.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is tokenising into %s: waiting for it", path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s cannot be locked (%s): processes may tokenise the same text side by side", path, error)
            yield False
            return
        yield True


def _write(directory: Path, source: TextSource, tokenizer: Tokenizer, workers: int | None) -> None:
    log.info("tokenising %s into %s", source.name, directory.parent)
    tokens, documents, dtype = 0, 0, _dtype(tokenizer)
    with open(directory / "tokens.bin", "wb") as token_file, open(directory / "offsets.bin", "wb") as offset_file:
        offset_file.write(np.zeros(1, np.int64).tobytes())
        for ids, lengths in _encoded(source, tokenizer, workers):
            token_file.write(ids.tobytes())
            offset_file.write((tokens + np.cumsum(lengths, dtype=np.int64)).tobytes())
            tokens, documents = tokens + len(ids), documents + len(lengths)
        for file in (token_file, offset_file):  # a crash of the machine must not leave a renamed, empty cache
            file.flush()
            os.fsync(file.fileno())
    _check(source, documents)
    meta = {"format": FORMAT, "source": source.name, "tokenizer": tokenizer.name}
    meta |= {"dtype": dtype.name, "tokens": tokens, "documents": documents}
    (directory / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def _read(directory: Path, name: str) -> Documents:
    try:
        meta = json.loads((directory / "meta.json").read_text())
        tokens = np.memmap(directory / "tokens.bin", meta["dtype"], "r") if meta["tokens"] else np.zeros(0, np.uint16)
        offsets = np.memmap(directory / "offsets.bin", np.int64, "r")
        if len(tokens) != meta["tokens"] or len(offsets) != meta["documents"] + 1:
            raise ValueError(f"{len(tokens)} tokens and {len(offsets) - 1} documents, where meta.json says otherwise")
        if offsets[0] != 0 or offsets[-1] != len(tokens):
            raise ValueError(f"documents reach from {offsets[0]} to {offsets[-1]} of {len(tokens)} tokens")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the token cache {directory} is damaged ({type(error).__name__}: {error}): delete it, and the next run "
            "makes it anew"
        ) from error
    return Documents(name, tokens, offsets[:-1], offsets[1:])


def _encoded(source: TextSource, tokenizer: Tokenizer, workers: int | None) -> Iterator[Encoded]:
    """All of `source`, in order, some documents at a time."""
    count = 0 if source.size < SMALL else cores() if workers is None else workers
    # disable=None: no bar where there is no terminal.
    with tqdm(total=source.size, unit="B", unit_scale=True, desc=f"tokenising {source.name}", disable=None) as bar:

        def seen() -> Iterator[list[str]]:
            for texts in _batches(source.documents()):
                yield texts
                bar.update(sum(map(len, texts)))

        if not count:
            yield from (_encode(tokenizer, texts) for texts in seen())
            return
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        with ProcessPoolExecutor(count, context, _start, (tokenizer,)) as pool:
            running: collections.deque[Future[Encoded]] = collections.deque()
            for texts in seen():
                running.append(pool.submit(_encode_here, texts))
                if len(running) > 2 * count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()


_tokenizer: Tokenizer  # of a worker process


def _start(tokenizer: Tokenizer) -> None:
    global _tokenizer
    start_worker()
    _tokenizer = tokenizer


def _encode_here(texts: list[str]) -> Encoded:
    return _encode(_tokenizer, texts)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    ids = []
    for text in texts:
        try:
            ids.append(tokenizer.encode(text))
        except (UnicodeEncodeError, TypeError) as error:  # which of them, depends on the tokenizer's package
            start = f"{text[:60]}..." if len(text) > 60 else text
            raise ValueError(
                f"the document {start!a} is no Unicode (half of a surrogate pair, written as \\ud800?): {error}"
            ) from error
    return np.concatenate(ids).astype(_dtype(tokenizer)), np.array([len(part) for part in ids], np.int64)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in groups of some BATCH characters."""
    group, size = [], 0
    for text in documents:
        group.append(text)
        size += len(text)
        if size >= BATCH:
            yield group
            group, size = [], 0
    if group:
        yield group


def _joined(parts: Iterable[Encoded]) -> Encoded:
    tokens, lengths = [np.zeros(0, np.uint16)], [np.zeros(0, np.int64)]
    for ids, counts in parts:
        tokens.append(ids)
        lengths.append(counts)
    return np.concatenate(tokens), np.concatenate(lengths)


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def _check(source: TextSource, documents: int) -> None:
    if not documents:
        raise ValueError(f"no text in {source.name}: it is empty, or blank")
