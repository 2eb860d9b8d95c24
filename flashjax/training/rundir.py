"""The directory of a run: who may write there, and the one file that says what the run is."""

import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from flashjax.training.checkpoints import Checkpoints
from flashjax.training.experiment import CheckpointConfig
from flashjax.training.parametrization import multiply

FREE_FIELDS = (
    *(
        "preset",
        "mode",
        "step",
        "workdir",
        "data_dir",
        "dry_run",
        "plan",
        "search",
        "save",
        "compiled",
        "watch",
        "images",
        "mesh.",
        "checkpoint.",
        "data.workers",
        "data.prefetch",
    ),
    *("data.on_error", "data.eval_batch_size", "train.accept_changes", "train.log_every", "train.eval_every"),
    *("train.progress", "train.writers", "train.max_nonfinite", "prompt", "max_new_tokens", "sampling."),
    "data.cache_dir",
)
"""Settings (and groups of them, with a dot) that may change on resuming: how a run runs, not what it computes."""


def workdir(config: Any, program: str) -> str:
    """Where a launcher's run or study is: what ``--workdir`` says, or runs/<launcher>-<preset>."""
    return config.workdir or f"runs/{program.split('.')[-1]}-{config.preset}"


class RunDirectoryError(RuntimeError):
    """A workdir that cannot be written, or in which another run is at work."""


class RunDirectory:
    """``workdir`` held by this process: made if absent, tried for writing, locked against a second run.

    Only process 0 of a job makes and locks it.

    Raises:
        RunDirectoryError: if it is no directory, cannot be written, or another run holds it.
    """

    def __init__(self, workdir: str | Path):
        self.path = Path(workdir).absolute()
        self._lock: Any = None
        if jax.process_index() == 0:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = open(self.path / ".lock", "a+")  # noqa: SIM115 - held as long as the run lives
            except OSError as error:
                raise RunDirectoryError(
                    f"cannot write in the workdir {self.path}: {error.strerror}; name another with --workdir"
                ) from error
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.seek(0)
                holder = self._lock.read().strip() or "another process"
                raise RunDirectoryError(
                    f"another run is at work in {self.path} ({holder}): wait for it, or name another --workdir"
                ) from None
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
            self._lock.flush()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def watch(self) -> Path:
        return self.path / "watch.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def dump(self, step: int) -> Path:
        """Where the state and the batch of a step whose update was not finite are kept."""
        return self.path / "nonfinite" / str(step)

    def write_config(self, name: str, config: Any, mesh: Mesh, **facts: Any) -> None:
        """Writes config.json; on resumption the facts of the new process replace the old ones."""
        if jax.process_index() != 0:
            return
        content = {
            "name": name,
            "config": dataclasses.asdict(config),
            "arguments": ["--preset", config.preset, *sys.argv[1:]],
            "mesh": {axis: size for axis, size in mesh.shape.items()},
            "devices": {
                "count": mesh.size,
                "kind": mesh.devices.flat[0].device_kind,
                "platform": mesh.devices.flat[0].platform,
                "processes": jax.process_count(),
            },
            "versions": versions(),
            "git": git_state(),
            **facts,
        }
        temporary = self.path / ".config.json.new"
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
        temporary.replace(self.path / "config.json")

    def check_same(self, config: Any, accept: bool) -> None:
        """A run that is resumed must be the run that was begun.

        Raises:
            RunDirectoryError: listing the fields that differ, unless ``accept``.
        """
        path = self.path / "config.json"
        if accept or not path.is_file():
            return
        old, new = (
            flat(json.loads(path.read_text())["config"]),
            flat(json.loads(json.dumps(dataclasses.asdict(config)))),
        )
        changed = [
            f"{name}: {old.get(name)} then, {new.get(name)} now"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and not is_free(name)
        ]
        if changed:
            raise RunDirectoryError(
                f"the run in {self.path} was made with other settings ({'; '.join(changed)}): name another --workdir, "
                "or go on with the new ones by --train.accept_changes"
            )

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The best checkpoint of a run directory, and what config.json says of it."""

    step: int
    config: dict[str, Any]
    class_names: tuple[str, ...]
    variables: dict[str, Any]
    """Host arrays, as the model takes them: the multipliers of the run's parametrization are in them."""


def finished_run(workdir: str | Path, checkpoint: CheckpointConfig | None = None) -> FinishedRun | None:
    """What a run left in ``workdir``; ``None`` where no checkpoint is.

    Raises:
        CheckpointError: if the best checkpoint cannot be read.
    """
    path = Path(workdir)
    if not (path / "config.json").is_file() or not (path / "checkpoints").is_dir():
        return None
    facts = json.loads((path / "config.json").read_text())
    checkpoints = Checkpoints(path / "checkpoints", checkpoint or CheckpointConfig(), read_only=True)
    try:
        step = checkpoints.best()
        if step is None:
            return None
        names = tuple(facts.get("class_names", ()))
        variables = checkpoints.restore_variables(step)
        variables["params"] = multiply(facts.get("multipliers", {}), variables["params"])
        return FinishedRun(step, _tuples(facts["config"]), names, variables)
    finally:
        checkpoints.close()


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that frozen settings hold."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def is_free(name: str) -> bool:
    """Whether a setting is of `FREE_FIELDS`."""
    return any(name == field or (field.endswith(".") and name.startswith(field)) for field in FREE_FIELDS)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested settings by their dotted names, as the command line has them."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: value for key, branch in tree.items() for name, value in flat(branch, f"{prefix}{key}.").items()}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    names = ("flashjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state() -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; ``None`` outside a git checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
