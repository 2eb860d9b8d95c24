"""A scaling study: cells of (model size, mesh), each measured in its own process; a table; loss against compute.

Everything is kept as JSON lines, and table and figure are drawn from those alone.
"""

import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashjax.processes import in_process
from flashjax.studies import cells
from flashjax.studies.measure import Request
from flashjax.training.mesh import AXES
from flashjax.training.parameters import human_bytes
from flashjax.training.writers import read_json_lines

Line = Mapping[str, Any]

VIRTUAL = (
    "The devices are virtual: {cores} cores of one machine act as all of them. Wall-clock shows the overhead of "
    "cutting the work up, not a speed-up; bytes and collectives are those of a real mesh of this shape."
)


@dataclass(frozen=True)
class Cell:
    """One model size on one mesh."""

    experiment: str
    """The launcher and its flags, 'experiments.swin_imagenet --preset demo'."""
    size: str
    """Further flags, 'model.embed_dim=64 model.depths=2,2'; '' for the preset's own size."""
    mesh: str
    """'data=2 fsdp=4'; axes that are not named have size 1."""
    weak: bool = False
    """The batch grows with the devices."""

    def request(self, steps: int, rounds: int) -> Request:
        """What to ask of `flashjax.studies.measure`.

        Raises:
            ValueError: naming what is not NAME=VALUE, or no mesh axis.
        """
        launcher, *arguments = shlex.split(self.experiment)
        axes = {axis: "1" for axis in AXES} | assignments(self.mesh)
        unknown = axes.keys() - set(AXES)
        if unknown:
            raise ValueError(
                f"unknown mesh axis {', '.join(sorted(unknown))} in '{self.mesh}'; axes: {', '.join(AXES)}"
            )
        devices = math.prod(int(size) for size in axes.values())
        for name, value in (assignments(self.size) | {f"mesh.{a}": n for a, n in axes.items()}).items():
            arguments += [f"--{name}", *value.split(",")]
        return Request(launcher, tuple(arguments), devices, steps, rounds, devices if self.weak else 1)


def assignments(text: str) -> dict[str, str]:
    """'a=1 b=2,3' as {'a': '1', 'b': '2,3'}."""
    found = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f"'{word}' in '{text}' is not NAME=VALUE")
        found[name] = value
    return found


def measure_in_process(request: Request, virtual: bool, timeout: float = 1800.0) -> dict[str, Any]:
    """The figures of a cell from a process of its own, which sees as many virtual CPU devices as it needs.

    With ``virtual`` false the process sees the real devices of this machine. Where it fails the result is
    ``{"error": its last words}``.
    """
    environment = {}
    if virtual:
        flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
        flags.append(f"--xla_force_host_platform_device_count={request.devices}")
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    return in_process("flashjax.studies.measure", json.dumps(asdict(request)), environment, timeout)


def sweep(wanted: Sequence[Cell], log: Path, steps: int, rounds: int, virtual: bool) -> list[Line]:
    """Measures the cells that ``log`` does not hold yet, a line each as soon as it is known; returns all of them."""
    requests = [cell.request(steps, rounds) for cell in wanted]  # wrong words are refused before hours are spent

    def told(line: Line) -> str:
        words = line.get("error") or f"{1e3 * line['step_time']:.1f} ms a step"
        return f"{line['size'] or 'own size'}, {line['mesh']}: {words}"

    return cells.sweep(
        [asdict(cell) for cell in wanted], log, _key, lambda i: measure_in_process(requests[i], virtual), told
    )


def read_cells(log: Path) -> list[Line]:
    """`cells.read` of a scaling study's log."""
    return cells.read(log, _key)


def _key(line: Line) -> tuple[Any, ...]:
    return line["experiment"], line["size"], line["mesh"], line["weak"]


def virtual_note(lines: Iterable[Line]) -> str | None:
    """The sentence that virtual devices need, or None where none was virtual."""
    return VIRTUAL.format(cores=os.cpu_count()) if any(line.get("virtual") for line in lines) else None


HEADER = (
    *("size", "mesh", "devices", "parameters", "batch", "step ms", "examples/s", "of one device"),
    *("state/device", "temporaries", "sent a step", "collectives", "compile s"),
)


def table(lines: Sequence[Line]) -> str:
    """The study as a Markdown table; it reads as plain text too.

    'step ms' is the median over the rounds, with the least in brackets; 'of one device' compares the least.
    """
    sizes = list(dict.fromkeys(line["size"] for line in lines))
    lines = sorted(lines, key=lambda line: sizes.index(line["size"]))  # a log that went on has them in any order
    alone = {(line["size"], line["weak"]): line["step_time_range"][0] for line in lines if line.get("devices") == 1}
    rows = [HEADER, *(_row(line, alone.get((line["size"], line["weak"]))) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    note = virtual_note(lines)
    return "\n".join(text) + "\n" + (f"\n{note}\n" if note else "")


def _row(line: Line, alone: float | None) -> tuple[str, ...]:
    size, mesh = line["size"] or "as preset", line["mesh"]
    if "error" in line:
        return (size, mesh, *("",) * (len(HEADER) - 4), str(line["error"])[:60].replace("|", "/"), "")
    held = line["bytes_per_device"]
    moved = line["collectives"]
    kinds = ", ".join(f"{kind} {t['count']} ({human_bytes(t['bytes'])})" for kind, t in moved.items())
    return (
        size,
        mesh,
        str(line["devices"]),
        f"{line['parameters']:,}",
        str(line["batch_size"]),
        f"{1e3 * line['step_time']:.1f} ({1e3 * line['step_time_range'][0]:.1f})",
        f"{line['examples_per_second']:.0f}",
        "" if alone is None else f"{line['step_time_range'][0] / alone:.2f}x",
        human_bytes(sum(v for k, v in held.items() if k != "temporaries")),
        "n/a" if held["temporaries"] is None else human_bytes(held["temporaries"]),
        human_bytes(round(sum(t["wire_bytes"] for t in moved.values()))),
        kinds or "none",
        f"{line['compile_time']:.1f}",
    )


@dataclass(frozen=True)
class Run:
    """What a finished run says about loss and compute."""

    name: str
    parameters: int
    compute: float
    """FLOPs of all its train steps."""
    loss: float
    """Of the last evaluation."""


def read_run(directory: str | Path) -> Run:
    """Compute and final loss of a workdir: FLOPs of a step (config.json) times the step of its last evaluation.

    Raises:
        ValueError: if one of the two is missing there.
    """
    path = Path(directory)
    if not (path / "config.json").is_file() or not (path / "metrics.jsonl").is_file():
        raise ValueError(f"{path} is no run directory: config.json and metrics.jsonl are not both there")
    facts = json.loads((path / "config.json").read_text())
    measured = [line for line in read_json_lines(path / "metrics.jsonl") if "eval_loss" in line]
    if not measured or "flops_per_step" not in facts:
        raise ValueError(f"{path}: no eval_loss in metrics.jsonl, or no flops_per_step in config.json")
    last = measured[-1]
    compute = float(facts["flops_per_step"]) * last["step"]
    return Run(path.name, int(facts.get("parameters", 0)), compute, float(last["eval_loss"]))


@dataclass(frozen=True)
class PowerLaw:
    """loss = scale * compute ** -exponent."""

    scale: float
    exponent: float
    low: float
    """Of the exponent's 95% interval."""
    high: float
    draws: tuple[tuple[float, float], ...] = ()
    """(log scale, exponent) of each bootstrap draw, for a band around the line."""

    def __call__(self, compute: float) -> float:
        return self.scale * compute**-self.exponent

    def band(self, compute: float) -> tuple[float, float]:
        """95% of the draws' lines at ``compute``."""
        values = [a - b * math.log(compute) for a, b in self.draws]
        low, high = np.exp(np.percentile(values, [2.5, 97.5]))
        return float(low), float(high)


def fit_power_law(compute: Sequence[float], loss: Sequence[float], draws: int = 2000, seed: int = 0) -> PowerLaw:
    """Least squares of log loss over log compute, with a percentile bootstrap over the runs.

    The runs are drawn with replacement; draws of a single compute, through which no line goes, are drawn again. From a
    handful of runs such an interval is too narrow: it is a hint, and the count of runs belongs beside it. No constant
    is subtracted: of a loss that is near its floor the exponent comes out too small.

    Raises:
        ValueError: for fewer than three runs, equal computes, or values that are not positive.
    """
    x, y = np.asarray(compute, float), np.asarray(loss, float)
    if len(x) != len(y) or len(x) < 3 or len(set(x)) < 2:
        raise ValueError(f"a power law needs at least 3 runs of different compute, found {len(set(x))}")
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y)) and np.all(x > 0) and np.all(y > 0)):
        raise ValueError(f"compute and loss must be positive and finite: {list(zip(compute, loss, strict=True))}")
    x, y = np.log(x), np.log(y)

    def line(rows: np.ndarray) -> tuple[float, float]:
        slope, height = np.polyfit(x[rows], y[rows], 1)
        return float(height), float(-slope)

    height, exponent = line(np.arange(len(x)))
    rng, found = np.random.default_rng(seed), []
    while len(found) < draws:
        rows = rng.integers(0, len(x), len(x))
        if np.ptp(x[rows]) > 1e-9:
            found.append(line(rows))
    low, high = np.percentile([b for _, b in found], [2.5, 97.5])
    return PowerLaw(math.exp(height), exponent, float(low), float(high), tuple(found))


def fit_words(law: PowerLaw, runs: Sequence[Run]) -> str:
    """The fit as a sentence."""
    return (
        f"loss = {law.scale:.4g} * FLOPs^-{law.exponent:.4f}, exponent {law.low:.4f} to {law.high:.4f} "
        f"(95%, bootstrap over {len(runs)} runs)"
    )
