"""Studies: a grid of cells, measured in this process, kept as JSON lines from which alone everything is drawn.

A cell is a mapping of names to plain values; its line in the log is the cell with its figures. What one compiled
program can compute is measured together: `sweep` hands whole groups over, within which learning rates, decays and seeds
can be mapped (`jax.vmap`). Cells that need a process each are for `flashjax.studies.cells.sweep`.
"""

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashjax.studies import cells as logs
from flashjax.studies.cells import Line

Cell = Mapping[str, Any]


def grid(**axes: Sequence[Any]) -> list[Cell]:
    """The cells of all combinations of values, the last axis fastest: ``grid(name=["a"], seed=[0, 1])``.

    Values are what JSON has: strings, numbers, booleans, None. A single value that all cells share is an axis too.

    Raises:
        ValueError: for an axis without values, or with one twice.
    """
    for name, values in axes.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"the axis {name!r} of a study has {list(values)}: it needs values, each of them once")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def digest(config: Any, without: Sequence[str] = ()) -> str:
    """A short name of the settings, of a dataclass or by name, that change cells' figures: a value for an axis.

    ``without`` are the names of those that do not, and of those that are axes.
    """
    settings = config if isinstance(config, Mapping) else dataclasses.asdict(config)
    kept = {name: value for name, value in settings.items() if name not in without}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:12]


def figures(columns: Mapping[str, Any]) -> list[dict[str, float | None]]:
    """The figures of each of C cells from arrays [C] by name, to seven digits; what is no finite number is None."""
    rows = zip(*(map(float, values) for values in columns.values()), strict=True)
    return [
        {name: float(f"{x:.7g}") if math.isfinite(x) else None for name, x in zip(columns, row, strict=True)}
        for row in rows
    ]


def sweep(
    cells: Sequence[Cell],
    log: Path,
    measure: Callable[[Sequence[Cell]], Sequence[Mapping[str, Any]]],
    told: Callable[[Line], str],
    by: Sequence[str] | None = None,
) -> list[Line]:
    """The lines of all cells, after measuring those that ``log`` does not hold; any number of processes may take part.

    Args:
        cells: of `grid`, all with the same names.
        log: JSON lines; made where it is not.
        measure: the figures of each of some cells. An exception ends this process's sweep, and the cells stay free; the
            figure ``error``, a text, says that a cell failed and may be tried again by a later sweep.
        told: a line in words, for the terminal.
        by: cells that agree in these names are measured together; default: each is alone.
    """

    def checked(numbers: Sequence[int]) -> Sequence[Mapping[str, Any]]:
        found = measure([cells[i] for i in numbers])
        if any(not isinstance(figures.get("error", ""), str) for figures in found):
            raise ValueError("a figure is named 'error', which is for the words of a failure: name it eval_error, say")
        return found

    names = tuple(cells[0])
    groups: dict[str, list[int]] = {}
    for number, cell in enumerate(cells):
        groups.setdefault(json.dumps([cell[name] for name in (names if by is None else by)]), []).append(number)
    return logs.sweep_groups(cells, list(groups.values()), log, _key(names), checked, told)


def read(log: Path, cells: Sequence[Cell]) -> list[Line]:
    """The lines that a log holds of these cells, in their order; lines of other cells are passed over.

    Raises:
        ValueError: if it holds none of them, or a line that is no cell.
    """
    key = _key(tuple(cells[0]))
    held = {key(line): line for line in logs.read(log, key)}
    found = [held[key(cell)] for cell in cells if key(cell) in held]
    if not found:
        others = f" ({len(held)} of other settings)" if held else ""
        raise ValueError(f"{log} holds no cell of this study{others}: measure first, or name another --workdir")
    return found


def write_csv(path: Path, lines: Sequence[Line], without: Sequence[str] = ()) -> Path:
    """A row for each line, settings and figures in columns, those of ``without`` left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [name for name in lines[0] if name not in without], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    return path


def _key(names: Sequence[str]) -> logs.Key:
    return lambda line: json.dumps([line[name] for name in names])


@contextlib.contextmanager
def helpers(program: str, count: int, workdir: Path) -> Iterator[None]:
    """``count`` more processes of this command line, in ``--mode measure``, while the body runs.

    They take cells of the same log. What they print goes to ``workdir/process-<n>.log``. When the body is done they
    have nothing left to do, and are waited for; where it fails they are stopped. One that fails is told of, and its
    cells are the others'.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", program, *sys.argv[1:], "--mode", "measure", "--processes", "1"]
    started: list[tuple[subprocess.Popen, Path]] = []
    try:
        for number in range(1, count + 1):
            path = workdir / f"process-{number}.log"
            with path.open("wb") as out:
                started.append((subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT), path))
        yield
        for process, path in started:
            if process.wait():
                print(f"a process ended with status {process.returncode}; its last words are in {path}")
    finally:
        for process, _ in started:
            if process.poll() is None:
                process.terminate()
                process.wait()
