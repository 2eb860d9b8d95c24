"""Updates that were NaN or Inf: what is kept of them, and how to repeat one alone."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from flashjax.training.experiment import Batch
from flashjax.training.step import TrainState


class NonFiniteError(RuntimeError):
    """Too many updates in a row were NaN or Inf."""


def release(state: TrainState) -> TrainState:
    """Past the step that was not applied."""
    return state.replace(step=state.step + 1, halted=jnp.zeros((), bool))


def dump(where: Path, state: TrainState, batch: Batch, values: dict[str, float]) -> None:
    """Keeps the state that met the batch, this process's rows of the batch, and the figures.

    The step number in the state and the seed in config.json give the step's random keys.
    """
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(where.absolute() / "state", state.replace(halted=jnp.zeros_like(state.halted)), force=True)
    checkpointer.wait_until_finished()
    checkpointer.close()
    rows = {name: _local_rows(array) for name, array in batch.items()}
    np.savez(where / f"batch_{jax.process_index()}.npz", allow_pickle=False, **rows)
    if jax.process_index() == 0:
        step = int(jax.device_get(state.step))
        (where / "figures.json").write_text(json.dumps({"step": step, "batch": step, **values}) + "\n")


def load(where: Path, abstract_state: TrainState) -> tuple[TrainState, dict[str, np.ndarray]]:
    """What ``dump`` kept: the state on its shardings, and this process's rows.

    Raises:
        FileNotFoundError: naming the steps that were kept.
    """
    rows = where / f"batch_{jax.process_index()}.npz"
    if not rows.is_file():
        kept = sorted(p.name for p in where.parent.glob("*")) if where.parent.is_dir() else []
        raise FileNotFoundError(
            f"no step {where.name} was kept in {where.parent}; "
            + (f"kept: {', '.join(kept)}" if kept else "no update of this run was NaN or Inf")
        )
    checkpointer = ocp.StandardCheckpointer()
    state = checkpointer.restore(where.absolute() / "state", abstract_state)
    checkpointer.close()
    with np.load(rows) as stored:
        return state, dict(stored)


def _local_rows(array: jax.Array) -> np.ndarray:
    shards = {shard.index[0].start or 0: shard for shard in array.addressable_shards if shard.replica_id == 0}
    return np.concatenate([np.asarray(jax.device_get(shards[k].data)) for k in sorted(shards)])


__all__: list[Any] = ["NonFiniteError", "dump", "load", "release"]
