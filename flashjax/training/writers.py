"""Where metrics go: JSON lines always, TensorBoard and Weights & Biases when asked for by name.

Only process 0 writes; the others get a writer that does nothing, so that no caller has to ask.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from flashjax.words import nearest


class Writer(Protocol):
    """Takes numbers by name at a step; steps do not decrease."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class JsonLinesWriter:
    """One JSON object a line, `step` first, each line on disk's way as soon as it is written.

    With `resume_step` the file goes on where that checkpoint left it: lines of later steps are dropped, since the
    resumed run writes them again, and so is a last line that a killed process left incomplete. Without, an old file
    is replaced. NaN and infinities, which JSON has not, are written as the strings "nan", "inf" and "-inf".
    """

    def __init__(self, path: str | Path, resume_step: int | None = None):
        self.path = Path(path)
        kept = [] if resume_step is None else [m for m in read_json_lines(self.path) if m["step"] <= resume_step]
        # The new beginning replaces the old file in one step: killed here, either the old or the new is whole.
        beginning = self.path.with_name(f".{self.path.name}.new")
        beginning.write_text("".join(_line(values) for values in kept))
        beginning.replace(self.path)
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 - closed by close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(_line({"step": step, **values}))

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self.flush()
            self._file.close()


class TensorBoardWriter:
    """Event files for TensorBoard, by tensorboardX; on resumption it hides what was written past `resume_step`."""

    def __init__(self, directory: str | Path, resume_step: int | None = None):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise _not_installed("tensorboard") from None
        purge_step = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """A run on Weights & Biases with the resolved config; the same workdir resumes the same run.

    Their server takes no step twice: what a resumed run repeats stays as it was logged first.
    """

    def __init__(self, workdir: str | Path, resume_step: int | None = None, config: Mapping[str, Any] | None = None):
        try:
            import wandb
        except ImportError:
            raise _not_installed("wandb") from None
        identity = Path(workdir) / "wandb_id"
        if resume_step is None or not identity.exists():
            identity.write_text(wandb.util.generate_id())
        self._run = wandb.init(
            project="flashjax",
            name=Path(workdir).name,
            id=identity.read_text().strip(),
            resume="allow",
            dir=str(workdir),
            config=dict(config or {}),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Their client uploads in the background, on its own time."""

    def close(self) -> None:
        self._run.finish()


class MultiWriter:
    """Writes to each of several writers, in order."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        for writer in self._writers:
            writer.write(step, numbers)

    def without_lines(self) -> "MultiWriter":
        """Those of the writers that write no JSON lines."""
        return MultiWriter([writer for writer in self._writers if not isinstance(writer, JsonLinesWriter)])

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


NAMES = ("tensorboard", "wandb")
"""Writers that may be asked for beside the JSON lines."""


def make_writers(names: Sequence[str], workdir: str | Path, resume_step: int | None, config: Any) -> MultiWriter:
    """`metrics.jsonl` in `workdir`, and the writers of `NAMES` that `names` asks for.

    `resume_step` is the step of the checkpoint that the run goes on from, None for a new run; `config` a dataclass or
    a mapping, shown beside the metrics where a writer can.

    Raises ValueError for an unknown name, with the nearest one, and ImportError, with the extra to install, for one
    whose package is missing.
    """
    for name in names:
        if name not in NAMES:
            near = nearest(name, NAMES, count=1)
            raise ValueError(f"unknown writer {name!r}; nearest: {near} (metrics.jsonl is always written)")
    if jax.process_index() != 0:
        return MultiWriter(())
    workdir = Path(workdir)
    # The optional ones first: one that is missing is told before the run's file is touched.
    writers: list[Writer] = []
    if "tensorboard" in names:
        writers.append(TensorBoardWriter(workdir / "tensorboard", resume_step))
    if "wandb" in names:
        plain = config if isinstance(config, Mapping) else dataclasses.asdict(config)
        writers.append(WandbWriter(workdir, resume_step, plain))
    return MultiWriter([JsonLinesWriter(workdir / "metrics.jsonl", resume_step), *writers])


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, none where there is no file; an incomplete last line is left out.

    Numbers that JSON has not come back as floats.

    Raises ValueError for any other line that is no JSON object with a step: it names the line.
    """
    path = Path(path)
    lines = path.read_text().split("\n") if path.exists() else []
    parsed: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is nothing, or incomplete
        try:
            values = json.loads(line)
            parsed.append({"step": int(values["step"]), **{k: _number(v) for k, v in values.items() if k != "step"}})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a line of metrics: {line[:80]!r}") from error
    return parsed


_NOT_IN_JSON = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _number(value: Any) -> Any:
    return _NOT_IN_JSON.get(value, value) if isinstance(value, str) else value


def _line(values: Mapping[str, float]) -> str:
    finite = {k: v if math.isfinite(v) else str(float(v)) for k, v in values.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _not_installed(name: str) -> ImportError:
    return ImportError(f"the writer {name!r} is asked for but not installed: pip install 'flashjax[{name}]'")
