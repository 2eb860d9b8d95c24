"""The listing of a checkpoint's files: what is in it, what is noticed, and how processes share the reading."""

import json

import pytest

from flashjax.training import digests


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "state" / "d").mkdir(parents=True)
    for name in ("state/d/a", "state/d/b", "state/c", "_CHECKPOINT_METADATA", "commit_success.txt"):
        (tmp_path / name).write_bytes(name.encode())
    digests.write(tmp_path)
    return tmp_path


def test_the_files_of_the_commit_are_not_listed(directory):
    assert sorted(json.loads((directory / "digests.json").read_text())) == ["state/c", "state/d/a", "state/d/b"]
    (directory / "_CHECKPOINT_METADATA").write_text("another time")
    (directory / "commit_success.txt").unlink()
    assert digests.problems(directory) == []


def test_each_kind_of_damage(directory):
    (directory / "state/c").write_bytes(b"state/C")
    (directory / "state/d/a").write_bytes(b"")
    (directory / "state/d/b").unlink()
    assert digests.problems(directory) == [
        "state/c has changed since it was written (SHA-256)",
        "state/d/a has 0 bytes, 9 were written",
        "state/d/b is missing",
    ]


def test_processes_share_the_reading(directory):
    (directory / "state/d/b").unlink()
    shares = [digests.problems(directory, part, 2) for part in range(2)]
    assert sorted(map(len, shares)) == [0, 1]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"bytes": 1}}'])
def test_a_listing_that_cannot_be_read(directory, text):
    (directory / "digests.json").write_text(text)
    assert digests.problems(directory)[0].startswith("digests.json cannot be read")


def test_no_listing_is_not_whole(tmp_path):
    assert digests.problems(tmp_path) == ["digests.json is missing"]
