"""python -m flashjax.training.check DIR: is this run directory whole, which steps load, and what is in them.

It reads every byte of every checkpoint and compares it with what was written, and changes nothing; a run may be at
work in the directory meanwhile. Exit status: 0 whole, 1 damaged, 2 not a run directory.
"""

import argparse
import fcntl
import json
import logging
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flashjax.training import digests
from flashjax.training.sharding import path_string
from flashjax.training.writers import read_json_lines

WHOLE, DAMAGED, NO_RUN = 0, 1, 2


@dataclass
class Findings:
    """What was found in a run directory."""

    lines: list[str] = field(default_factory=list)
    """To be printed."""
    damage: list[str] = field(default_factory=list)
    """Names of the parts that are not whole."""
    whole_steps: list[int] = field(default_factory=list)
    """Steps whose checkpoint loads."""

    def note(self, part: str, text: str, damaged: bool = False) -> None:
        """One line; ``damaged`` counts."""
        self.lines.append(f"{part:16} {'DAMAGED: ' if damaged else ''}{text}")
        if damaged:
            self.damage.append(part)


def is_run(directory: Path) -> bool:
    """Whether a trainer has been at work in ``directory``."""
    return any((directory / name).exists() for name in ("config.json", "checkpoints"))


def check(directory: Path, restore: bool = False) -> Findings:
    """Looks at all parts of a run directory.

    Args:
        restore: also reads every array through Orbax, one checkpoint at a time, into the memory of this machine.
    """
    found = Findings()
    _config(directory, found)
    _metrics(directory, found)
    found.note("lock", _lock(directory / ".lock"))
    _checkpoints(directory / "checkpoints", found, restore)
    _nonfinite(directory / "nonfinite", found)
    return found


def _config(directory: Path, found: Findings) -> None:
    try:
        facts = json.loads((directory / "config.json").read_text())
        axes = " x ".join(f"{axis} {size}" for axis, size in facts["mesh"].items() if size > 1) or "one device"
        text = f"{facts['name']}, preset {facts['config']['preset']}: {facts['steps']} steps, "
        text += f"{facts['parameters']:,} parameters; mesh {axes}"
        found.note("config.json", text)
    except FileNotFoundError:
        found.note("config.json", "missing", damaged=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found.note("config.json", f"cannot be read ({type(error).__name__}: {error})", damaged=True)


def _metrics(directory: Path, found: Findings) -> None:
    path = directory / "metrics.jsonl"
    if not path.is_file():
        return found.note("metrics.jsonl", "none yet")
    try:
        lines = read_json_lines(path)
    except ValueError as error:
        return found.note("metrics.jsonl", str(error), damaged=True)
    text = f"{len(lines)} lines" + (f" up to step {max(line['step'] for line in lines)}" if lines else "")
    if not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        text += "; the last line is incomplete, as a killed run leaves it: resuming drops it"
    found.note("metrics.jsonl", text)


def _lock(path: Path) -> str:
    if not path.is_file():
        return "free"
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return f"held: a run is at work here ({file.read().strip() or 'unknown process'})"
    return "free"


def _checkpoints(directory: Path, found: Findings, restore: bool) -> None:
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    for step in sorted(int(name) for name in names if name.isdigit()):
        part, path = f"step {step}", directory / str(step)
        problems = digests.problems(path)
        if not problems:
            try:
                found.note(part, _contents(path, restore))
                found.whole_steps.append(step)
                continue
            except Exception as error:  # whatever Orbax finds amiss
                problems = [f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"]
        for problem in problems:
            found.note(part, problem, damaged=True)
    unfinished = [name for name in names if "orbax-checkpoint-tmp" in name]
    if unfinished:
        found.note("half-written", f"{', '.join(unfinished)}: counts for nothing, the next start clears it away")
    if not found.whole_steps:
        found.note("checkpoints", "no step can be loaded", damaged=any(name.isdigit() for name in names))


def _contents(path: Path, restore: bool) -> str:
    """What is in a checkpoint whose bytes are as they were written."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree: Any = checkpointer.metadata(path / "state").item_metadata.tree
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
        if restore:
            here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
            wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree)
            jax.block_until_ready(checkpointer.restore(path / "state", wanted))
    parts: dict[str, int] = {}
    for key, leaf in leaves:
        size = int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        name = path_string(key).split("/")[0]
        parts[name] = parts.get(name, 0) + size
    large = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size > 8)
    text = f"whole{', every array read' if restore else ''}; {len(leaves)} leaves ({large})"
    metrics = path / "metrics" / "metrics"
    figures = json.loads(metrics.read_text()) if metrics.is_file() else {}
    return text + (
        "; " + ", ".join(f"{k} {v:.6g}" for k, v in figures.items()) if figures else "; not evaluated at this step"
    )


def _nonfinite(directory: Path, found: Findings) -> None:
    for path in sorted(directory.iterdir(), key=lambda p: p.name) if directory.is_dir() else ():
        part = f"nonfinite/{path.name}"
        try:
            figures = json.loads((path / "figures.json").read_text())
            rows = {}
            for file in sorted(path.glob("batch_*.npz")):
                with np.load(file) as stored:
                    rows[file.name] = ", ".join(f"{name} {list(stored[name].shape)}" for name in stored)
            if not rows or not (path / "state").is_dir():
                raise FileNotFoundError("the batch is missing" if not rows else "the state is missing")
            text = f"loss {figures['loss']}, gradient norm {figures['grad_norm']}; " + "; ".join(
                f"{name}: {shapes}" for name, shapes in rows.items()
            )
            found.note(part, f"{text}; --mode replay --step {path.name} repeats it")
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            found.note(part, f"{type(error).__name__}: {error}", damaged=True)


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the findings; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flashjax.training.check",
        description="Is this run directory whole, which steps load, and what is in them? Reads every byte of every "
        "checkpoint and compares it with what was written; changes nothing.",
        epilog="Exit status: 0 whole, 1 damaged (the lines that say DAMAGED, and what to do), 2 not a run directory.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the --workdir of a run")
    parser.add_argument(
        "--restore",
        action="store_true",
        help="also read every array through Orbax; takes the memory of one whole state",
    )
    options = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's notes on its own files
    directory: Path = options.directory
    if not is_run(directory):
        why = "holds neither config.json nor checkpoints/" if directory.is_dir() else "is not a directory"
        print(f"error: {directory} {why}: name the --workdir of a run", file=sys.stderr)
        return NO_RUN
    found = check(directory, options.restore)
    print(f"{directory}", *found.lines, sep="\n  ")
    if not found.damage:
        print("whole")
        return WHOLE
    print(f"DAMAGED: {', '.join(dict.fromkeys(found.damage))}")
    bad = [int(part.split()[1]) for part in dict.fromkeys(found.damage) if part.startswith("step ")]
    older = [step for step in found.whole_steps if not bad or step < max(bad)]
    if bad and older:
        later = " ".join(str(directory / "checkpoints" / str(step)) for step in bad if step > older[-1])
        print(f"to resume at step {older[-1]}, move away: {later}")
    return DAMAGED


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # a look at files needs no accelerator, which a run may be using
    sys.exit(main())
