"""Cells of a study: measured, alone or many at a time, kept as lines of JSON, never measured twice."""

import fcntl
import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashjax.studies.claims import Claims

Line = Mapping[str, Any]
Key = Callable[[Line], Hashable]


def sweep(
    cells: Sequence[dict[str, Any]],
    log: Path,
    key: Key,
    measure: Callable[[int], dict[str, Any]],
    told: Callable[[Line], str],
) -> list[Line]:
    """`sweep_groups` where each cell is measured alone: ``measure(i)`` are the figures of cell number ``i``."""
    alone = [[i] for i in range(len(cells))]
    return sweep_groups(cells, alone, log, key, lambda numbers: [measure(numbers[0])], told)


def sweep_groups(
    cells: Sequence[Mapping[str, Any]],
    groups: Sequence[Sequence[int]],
    log: Path,
    key: Key,
    measure: Callable[[Sequence[int]], Sequence[Mapping[str, Any]]],
    told: Callable[[Line], str],
    poll: float = 0.5,
) -> list[Line]:
    """Measures the cells that ``log`` does not hold yet, a line each as soon as it is known; returns all of them.

    Several processes may do so at once: each takes the groups that no other has taken, and at the end waits for the
    others, whose groups it takes over where they die. A group of which a part is missing is measured whole, so that
    what is computed never depends on when a process was stopped.

    Args:
        cells: what identifies each, the beginning of its line.
        groups: the numbers of the cells that are measured together; each number is in one of them.
        key: of a line; lines of one key are of one cell. A line with an ``error`` from before is measured again.
        measure: the figures of each of the cells with these numbers.
        told: a line in words, for the terminal.
        poll: seconds between two looks at what other processes do.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    failed = {key(line): line for line in read(log, key) if "error" in line}
    tried: set[Hashable] = set()

    def known() -> dict[Hashable, Line]:
        """What need not be measured: an error from before must, one that this or another process met since not."""
        lines = {key(line): line for line in read(log, key)}
        return {k: line for k, line in lines.items() if k in tried or line != failed.get(k)}

    def missing(group: Sequence[int]) -> list[int]:
        held = known()
        return [i for i in group if key(cells[i]) not in held]

    def settle(group: Sequence[int]) -> bool:
        """Measures what is missing of a group; False where another process does."""
        if missing(group):
            name = json.dumps([cells[i] for i in group], sort_keys=True, default=str)
            if not claims.take(name):
                return False
            try:
                gone = missing(group)  # its last owner may have finished between the two looks
                if gone:
                    figures = dict(zip(group, measure(group), strict=True))
                    append(log, [{**cells[i], **figures[i]} for i in gone])
                    tried.update(key(cells[i]) for i in gone)
            finally:
                claims.release(name)
        held = known()
        for i in group:
            print(f"{i + 1}/{len(cells)}  {told(held[key(cells[i])])}", flush=True)
        return True

    with Claims(log.with_name(f".{log.name}.claims")) as claims:
        left = [group for group in groups if not settle(group)]
        if left:
            print(f"{sum(map(len, left))} cells are with other processes: waiting for them", flush=True)
        while left:
            time.sleep(poll)
            left = [group for group in left if not settle(group)]
    held = known()
    return [held[key(cell)] for cell in cells]


def append(log: Path, lines: Sequence[Line]) -> None:
    """Adds lines, one process at a time; one that a killed process left incomplete goes first."""
    with log.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = log.read_bytes()
        if not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)
        file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def read(log: Path, key: Key) -> list[Line]:
    """The last line of each cell, in the order in which cells first appear; what follows the last newline is left out.

    Raises:
        ValueError: naming a line that is no cell.
    """
    text = log.read_text() if log.is_file() else ""
    found: dict[Any, Line] = {}
    for number, words in enumerate(text.split("\n")[:-1], start=1):  # what follows is nothing, or being written
        try:
            line = json.loads(words)
            found[key(line)] = line
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{log}, line {number} is no cell of a study: {words[:60]!r}") from None
    return list(found.values())
