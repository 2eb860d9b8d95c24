"""A SHA-256 of every file of a checkpoint, since Orbax does not notice a flipped byte in the values of an array.

The listing is written between the last byte of the checkpoint and the rename that commits it: a committed checkpoint
without one is not whole. Orbax's own two files that the commit itself touches carry no data and are not listed.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LISTING = "digests.json"
_OF_THE_COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt")
_THREADS = 8


def write(directory: Path) -> None:
    """Lists every file under ``directory`` with its size and digest, in ``digests.json`` there.

    It reads what was just written, at about 1.5 GB/s and core, in the thread that saves: the steps go on meanwhile.
    """
    names = sorted(_files(directory))
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(names, pool.map(lambda name: _describe(directory / name), names), strict=True))
    (directory / LISTING).write_text(json.dumps(found, indent=1) + "\n")


def problems(directory: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the files of a checkpoint; empty where it is whole.

    Args:
        part, parts: of ``parts`` processes the one numbered ``part`` reads its share of the files.
    """
    try:
        listed = json.loads((directory / LISTING).read_text())
        wanted = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    except FileNotFoundError:
        return [f"{LISTING} is missing"]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return [f"{LISTING} cannot be read ({error})"]
    mine = sorted(wanted)[part::parts]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [text for text in pool.map(lambda name: _compare(directory, name, *wanted[name]), mine) if text]


def _files(directory: Path) -> Iterator[str]:
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in (*_OF_THE_COMMIT, LISTING):
            yield name


def _describe(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _compare(directory: Path, name: str, size: int, digest: str) -> str:
    try:
        found = _describe(directory / name)
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    if found["bytes"] != size:
        return f"{name} has {found['bytes']} bytes, {size} were written"
    return "" if found["sha256"] == digest else f"{name} has changed since it was written (SHA-256)"
