"""Orbax checkpoints of a run: written asynchronously, the best and the newest kept, restored onto any mesh."""

import contextlib
import errno
import math
import os
import shlex
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from flashjax.training import digests
from flashjax.training.experiment import CheckpointConfig
from flashjax.training.sharding import path_string

DELETED = ".deleted"
"""Subdirectory of steps that are no longer kept, emptied while the next one is written."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another model."""


class Checkpoints:
    """The ``checkpoints/`` directory of a run; one subdirectory a step.

    Args:
        directory: made if it does not exist, unless ``read_only``.
        read_only: never writes or deletes.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, read_only: bool = False):
        self.directory = directory.absolute()
        self.config = config
        self.read_only = read_only
        if read_only and not self.directory.is_dir():
            raise CheckpointError(f"no checkpoints at {directory}: train first, or name the run with --workdir")
        policies = checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            # What a killed run left half-written is never a step; it is cleared away here.
            cleanup_tmp_directories=not read_only,
            # Old steps leave by a rename, so that a kill in the midst of a deletion leaves no half of a step.
            todelete_subdir=DELETED,
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._write_digests,
                # Otherwise threads that wait for a directory that could not be made keep the process for minutes.
                create_directories_asynchronously=False,
            ),
            best_fn=self._score,  # makes Orbax store the metrics; the policy below decides
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(config.keep),
                    policies.BestN(
                        get_metric_fn=self._score, n=1, reverse=False, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
        )
        handlers = {"state": ocp.StandardCheckpointHandler()}
        self._saving: int | None = None
        try:
            if not read_only:
                self._empty_deleted()
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoints in {self.directory} ({error.strerror or error}): make it writable, or name "
                "another --workdir"
            ) from error
        except ValueError:  # Orbax reads the metrics of every step here
            for step in self._on_disk():
                self._check_bytes(step, 0, 1)
            raise

    def _score(self, metrics: dict[str, float]) -> float:
        value = metrics.get(self.config.metric, math.nan)
        if math.isnan(value):
            return -math.inf
        return value if self.config.mode == "max" else -value

    def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Starts writing ``state``; returns when it has been copied off the device. A step is written once.

        Raises:
            CheckpointError: if this write could not begin, or the one before could not end.
        """
        if step in self._manager.all_steps():
            return
        with self._writing():
            self._manager.wait_until_finished()
            threading.Thread(target=self._empty_deleted).start()
            self._saving = step
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=metrics, force=True
            )

    def wait(self) -> None:
        """Until every write has reached the disk.

        Raises:
            CheckpointError: if one did not.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last write; its failure is raised as by ``wait``."""
        with self._writing():
            self._manager.close()
            if not self.read_only and jax.process_index() == 0:
                shutil.rmtree(self.directory / DELETED, ignore_errors=True)

    def _empty_deleted(self) -> None:
        # Only what is in the directory, since Orbax may be about to rename another step into it.
        if jax.process_index() == 0:
            for path in self.directory.glob(f"{DELETED}/*"):
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            left = ", ".join(map(str, self.whole())) or "none"
            raise CheckpointError(
                f"checkpoint {self._saving} could not be written in {self.directory}: {_reason(error)}. Steps that are "
                f"whole: {left}. Make room (or the directory writable) and give the same command again"
            ) from error

    def _write_digests(self) -> None:
        """Called by Orbax on process 0, when all is written and nothing is committed."""
        unfinished = sorted(self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"))
        digests.write(unfinished[0] if unfinished else self.path(self._saving or 0))

    def steps(self) -> list[int]:
        """Steps that were written whole, oldest first."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        steps = self.steps()
        return steps[-1] if steps else None

    def best(self) -> int | None:
        """The step with the best ``metric``; the newest where no checkpoint carries metrics."""
        scored = [(self._score(metrics), step) for step in self.steps() if (metrics := self.metrics(step))]
        return max(scored)[1] if scored else self.latest()

    def whole(self) -> list[int]:
        """Steps of which every byte is as it was written, oldest first; reads them all."""
        return [step for step in self._on_disk() if not digests.problems(self.path(step))]

    def _on_disk(self) -> list[int]:
        return sorted(int(path.name) for path in self.directory.glob("*") if path.name.isdigit())

    def path(self, step: int) -> Path:
        return self.directory / str(step)

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state of ``step`` on the shardings of ``abstract_state`` (a tree of ``ShapeDtypeStruct``).

        Raises:
            CheckpointError: naming the step, what is wrong with it, and the steps that are left to try.
        """
        # Each process reads its share again: a flipped byte would otherwise go on as a number.
        self._check_bytes(step, jax.process_index(), jax.process_count())
        self._check_shapes(step, abstract_state)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
            )
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self.path(step)} cannot be read: {_first_line(error)}{self._others(step)}"
            ) from error
        return restored["state"]

    def metrics(self, step: int) -> dict[str, float]:
        """The evaluation saved with ``step``; empty where there was none."""
        try:
            return dict(self._manager.metrics(step) or {})
        except Exception as error:
            raise CheckpointError(
                f"the metrics of checkpoint {self.path(step)} cannot be read: {_first_line(error)}{self._others(step)}"
            ) from error

    def restore_variables(self, step: int) -> dict[str, Any]:
        """Model variables of ``step`` (averaged ones if the run kept them) as host arrays, whatever model it was."""
        stored = self._manager.item_metadata(step)["state"]
        if stored is None:
            raise CheckpointError(f"checkpoint {self.path(step)} has no readable listing{self._others(step)}")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), stored)
        state = self.restore(step, wanted)
        variables = {"params": state.get("ema") or state["params"], **(state.get("collections") or {})}
        return jax.tree.map(np.asarray, jax.device_get(variables))

    def _others(self, step: int) -> str:
        older = [s for s in self.whole() if s < step]
        if not older:
            return "; there is no older one that is whole: start afresh in another --workdir"
        aside = shlex.join(["mv", str(self.path(step)), str(self.directory.parent / f"damaged-{step}")])
        return f"; step {older[-1]} is whole: to resume there, give the same command again after\n  {aside}"

    def _check_bytes(self, step: int, part: int, parts: int) -> None:
        damage = digests.problems(self.path(step), part, parts)
        if damage:
            more = f" and {len(damage) - 3} more" if len(damage) > 3 else ""
            raise CheckpointError(
                f"checkpoint {self.path(step)} is damaged: {'; '.join(damage[:3])}{more}{self._others(step)}"
            )

    def _check_shapes(self, step: int, abstract_state: Any) -> None:
        """Another model's checkpoint is told by its tree, before anything is read."""
        try:
            stored = self._manager.item_metadata(step)["state"]
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self.path(step)} has no readable listing: {_first_line(error)}{self._others(step)}"
            ) from error
        if stored is None:
            raise CheckpointError(f"checkpoint {self.path(step)} has no readable listing{self._others(step)}")
        found = _shapes(stored)
        wanted = _shapes(abstract_state)
        missing = sorted(wanted.keys() - found.keys())
        unexpected = sorted(found.keys() - wanted.keys())
        misshapen = [
            f"{k}: {found[k]} stored, {wanted[k]} wanted"
            for k in sorted(wanted.keys() & found.keys())
            if found[k] != wanted[k]
        ]
        if missing or unexpected or misshapen:
            parts = [
                f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                for what, names in (
                    ("missing", missing),
                    ("unexpected", unexpected),
                    ("of another shape", misshapen),
                )
                if names
            ]
            raise CheckpointError(
                f"checkpoint {self.path(step)} is of another model or optimizer: {'; '.join(parts)}. "
                "Give the flags that made it (config.json beside it has them), or another --workdir"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path_string(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _reason(error: BaseException) -> str:
    """What the system said, which Orbax and TensorStore wrap in pages of their own."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        for code in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EFBIG, errno.EIO):
            if os.strerror(code) in text:
                return os.strerror(code)
        seen = seen.__cause__ or seen.__context__
    return _first_line(error)


__all__ = ["CheckpointError", "Checkpoints"]
