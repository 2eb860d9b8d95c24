"""Cells of a study: each measured in a process of its own, kept as a line of JSON, never measured twice."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]
Key = Callable[[Line], Hashable]


def in_process(
    module: str, request: str, environment: Mapping[str, str] | None = None, timeout: float = 1800.0
) -> dict[str, Any]:
    """What ``python -m module request`` prints last, one line of JSON, with ``environment`` added to this process's.

    Where it fails the result is ``{"error": its last words}``.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, request],
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {timeout:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"error": next((line for line in reversed(words) if line.startswith("error:")), words[-1])}
    return json.loads(lines[-1])


def sweep(
    cells: Sequence[dict[str, Any]],
    log: Path,
    key: Key,
    measure: Callable[[int], dict[str, Any]],
    told: Callable[[Line], str],
) -> list[Line]:
    """Measures the cells that ``log`` does not hold yet, a line each as soon as it is known; returns all of them.

    Args:
        cells: what identifies each, the beginning of its line.
        key: of a line; lines of one key are of one cell. A line with an ``error`` is measured again.
        measure: the figures of cell number ``i``.
        told: a line in words, for the terminal.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    known = {key(line): line for line in read(log, key) if "error" not in line}
    for number, cell in enumerate(cells):
        held = known.get(key(cell))
        if held is None:
            held = {**cell, **measure(number)}
            _append(log, held)
            known[key(cell)] = held
        print(f"{number + 1}/{len(cells)}  {told(held)}", flush=True)
    return [known[key(cell)] for cell in cells]


def _append(log: Path, line: Line) -> None:
    """Adds a line; one that a killed process left incomplete ends first."""
    text = log.read_bytes() if log.is_file() else b""
    with log.open("ab") as file:
        if text and not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)
        file.write(json.dumps(line).encode() + b"\n")


def read(log: Path, key: Key) -> list[Line]:
    """The last line of each cell, in the order in which cells first appear; a last line cut short is left out.

    Raises:
        ValueError: naming another line that is no cell.
    """
    text = log.read_text() if log.is_file() else ""
    found: dict[Any, Line] = {}
    for number, words in enumerate(text.splitlines(), start=1):
        try:
            line = json.loads(words)
            found[key(line)] = line
        except (ValueError, KeyError, TypeError):
            if number > text.count("\n"):  # the sweep was stopped while it wrote
                break
            raise ValueError(f"{log}, line {number} is no cell of a study: {words[:60]!r}") from None
    return list(found.values())
