"""Tokens of a text on disk: made once, by one of many processes, whole or not at all."""

import logging
import threading

import numpy as np
import pytest

from flashjax.data import token_store
from flashjax.data.text_sources import Listed, TextFiles
from flashjax.data.token_store import tokenise
from flashjax.data.tokenizers import open_tokenizer
from tests.data.helpers import forbid, texts

BYTES = open_tokenizer("bytes")


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(token_store, "SMALL", 100)


def test_a_cache_is_made_once_and_read_again(tmp_path, monkeypatch):
    source, cache = Listed(texts(), "letters"), tmp_path / "cache"
    in_memory = tokenise(source, BYTES)
    assert in_memory.tokens.dtype == np.uint16 and not cache.exists()
    made = tokenise(source, BYTES, cache)
    for other in (made, in_memory):
        assert isinstance(made.tokens, np.memmap)
        assert (other.tokens == made.tokens).all() and (other.starts == made.starts).all()
        assert (other.ends == made.ends).all()
    monkeypatch.setattr(Listed, "documents", forbid)
    assert (tokenise(source, BYTES, cache).tokens == made.tokens).all()
    names = [path.name for path in cache.iterdir() if not path.name.startswith(".")]
    assert len(names) == 1 and names[0].startswith("letters-")
    with pytest.raises(AssertionError):
        tokenise(Listed([*texts(), "more"], "letters"), BYTES, cache)
    other = open_tokenizer("bytes:eos")
    other.fingerprint = "of other tokens"
    with pytest.raises(AssertionError):
        tokenise(source, other, cache)
    other.vocab_size = 70_000
    monkeypatch.undo()
    assert tokenise(source, other, cache).tokens.dtype == np.uint32


def test_a_changed_file_is_another_text(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = TextFiles(file, [file], None).fingerprint
    assert TextFiles(file, [file], None).fingerprint == before
    assert TextFiles(file, [file], "blank").fingerprint != before
    file.write_text("two!")
    assert TextFiles(file, [file], None).fingerprint != before


@pytest.mark.parametrize(
    "file, content",
    [
        ("tokens.bin", b"ab"),
        ("tokens.bin", None),
        ("offsets.bin", b"\0" * 16),
        ("offsets.bin", None),
        ("meta.json", b"{"),
        ("meta.json", b"{}"),
        ("meta.json", None),
    ],
)
def test_a_damaged_cache_is_named(tmp_path, file, content):
    source = Listed(["abc", "de"], "letters")
    tokenise(source, BYTES, tmp_path)
    directory = next(path for path in tmp_path.iterdir() if path.is_dir())
    if content is None:
        (directory / file).unlink()
    else:
        (directory / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"the token cache {directory} is damaged .* delete it, and the next run"):
        tokenise(source, BYTES, tmp_path)


def test_a_cache_that_was_not_finished_leaves_nothing(tmp_path):
    class Breaks(Listed):
        def documents(self):
            yield "a" * (1 << 20)
            raise ValueError("record 7 is not UTF-8")

    with pytest.raises(ValueError, match="record 7"):
        tokenise(Breaks(["a"], "letters"), BYTES, tmp_path)
    with pytest.raises(ValueError, match="no text in letters"):
        tokenise(Listed([], "letters"), BYTES, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def run_together(count, action):
    """Runs `action` in threads; their results."""
    results = []
    threads = [threading.Thread(target=lambda: results.append(action())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    return results


def test_processes_that_want_one_cache_wait_for_it(tmp_path, caplog):
    started, read_by = threading.Event(), []

    class Slow(Listed):
        def documents(self):
            read_by.append(threading.get_ident())
            started.wait(0.2)
            return iter(self.texts)

    (tmp_path / ".killed").mkdir()
    with caplog.at_level(logging.INFO, logger=token_store.__name__):
        made = run_together(3, lambda: tokenise(Slow(texts(), "letters"), BYTES, tmp_path))
    assert len(read_by) == 1 and "waiting for it" in caplog.text
    assert all((other.tokens == made[0].tokens).all() for other in made)


def test_machines_that_know_no_common_lock_do_not_spoil_a_cache(tmp_path, monkeypatch, caplog):
    both = threading.Barrier(2)

    class Together(Listed):
        def documents(self):
            both.wait()
            return iter(self.texts)

    def no_locks(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(token_store.fcntl, "flock", no_locks)
    made = run_together(2, lambda: tokenise(Together(texts(), "letters"), BYTES, tmp_path))
    assert (made[0].tokens == made[1].tokens).all() and "cannot be locked" in caplog.text
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_what_a_killed_process_left_is_cleared(tmp_path):
    source = Listed(texts(), "letters")
    tokenise(source, BYTES, tmp_path)
    directory = next(path for path in tmp_path.iterdir() if path.is_dir())
    left = directory.rename(tmp_path / f".{directory.name}.{token_store.socket.gethostname()}.1.aaaa")
    other = directory.with_name(f".{directory.name}.elsewhere.1.aaaa")
    other.mkdir()
    tokenise(source, BYTES, tmp_path)
    assert directory.exists() and other.exists() and not left.exists()


@pytest.mark.slow
def test_worker_processes_keep_the_order(tmp_path, monkeypatch, small_limit):
    monkeypatch.setattr(token_store, "BATCH", 50)
    source = Listed(texts(50), "letters")
    made = tokenise(source, BYTES, tmp_path, workers=2)
    ids = np.frombuffer("".join(texts(50)).encode(), np.uint8)
    assert (made.tokens == ids).all() and (made.ends - made.starts == [len(text) for text in texts(50)]).all()


def test_large_text_goes_to_the_users_cache(tmp_path, monkeypatch, small_limit):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenise(Listed(["a" * 99], "small"), BYTES, workers=0)
    assert not list(tmp_path.iterdir())
    tokenise(Listed(["a" * 100], "large"), BYTES, workers=0)
    assert [path.name[:6] for path in (tmp_path / "flashjax" / "tokens").glob("large*")] == ["large-"]
