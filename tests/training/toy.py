"""A small experiment for tests of the trainer: a linear model on drawn vectors, with every part that a real one has."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flashjax.training import CheckpointConfig, Experiment, MeshConfig, OptimizerConfig, RunConfig, TrainConfig
from flashjax.training.sharding import FSDP_RULES

FEATURES, CLASSES, BATCH = 128, 256, 16


class Vectors:
    """Batch k is a pure function of k; ``poison`` batches hold an Inf."""

    def __init__(
        self, num_batches: int | None, batch_size: int = BATCH, poison: tuple[int, ...] = (), mask_from: int = 0
    ):
        self.num_batches, self.batch_size, self.poison, self.mask_from = num_batches, batch_size, poison, mask_from
        self.steps_per_epoch, self.skipped = num_batches or 4, 0
        self.served: list[int] = []

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        spec = {
            "x": jax.ShapeDtypeStruct((self.batch_size, FEATURES), jnp.float32),
            "y": jax.ShapeDtypeStruct((self.batch_size,), jnp.int32),
        }
        if self.num_batches is not None:
            spec["mask"] = jax.ShapeDtypeStruct((self.batch_size,), jnp.float32)
        return spec

    def batch(self, k: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([7, k])
        x = rng.normal(size=(self.batch_size, FEATURES)).astype(np.float32)
        y = (np.abs(x[:, 0]) * 10).astype(np.int32) % CLASSES
        if k in self.poison:
            x[0, 0] = np.inf
        batch = {"x": x, "y": y}
        if self.num_batches is not None:
            last = k == self.num_batches - 1
            batch["mask"] = (np.arange(self.batch_size) < (self.mask_from or self.batch_size)) | (not last)
            batch["mask"] = batch["mask"].astype(np.float32)
        return batch

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        k = start
        while self.num_batches is None or k < self.num_batches:
            self.served.append(k)
            yield self.batch(k)
            k += 1


@dataclasses.dataclass(frozen=True)
class Linear:
    """Logits = x W + b with noise on x, a running mean in a mutable collection, and an auxiliary term."""

    noise: float = 0.1

    def init(self, rngs: dict[str, jax.Array], batch: Any) -> dict[str, Any]:
        kernel = 0.01 * jax.random.normal(rngs["params"], (FEATURES, CLASSES))
        return {
            "params": {"dense": {"kernel": kernel, "bias": jnp.zeros(CLASSES)}},
            "batch_stats": {"mean": jnp.zeros(FEATURES)},
        }

    def prepare(self, batch: Any, key: jax.Array) -> Any:
        return {**batch, "x": batch["x"] + self.noise * jax.random.normal(key, batch["x"].shape)}

    def _losses(self, variables: Any, batch: Any) -> jax.Array:
        dense = variables["params"]["dense"]
        log_p = jax.nn.log_softmax(batch["x"] @ dense["kernel"] + dense["bias"])
        return -jnp.take_along_axis(log_p, batch["y"][:, None], 1)[:, 0]

    def loss(self, variables: Any, batch: Any, rngs: Any) -> Any:
        loss = self._losses(variables, batch).mean()
        mean = 0.9 * variables["batch_stats"]["mean"] + 0.1 * batch["x"].mean(0)
        return loss, {"mean_x": batch["x"].mean()}, {"batch_stats": {"mean": mean}}

    def evaluate(self, variables: Any, batch: Any) -> Any:
        losses = self._losses(variables, batch)
        return {
            "loss": (jnp.sum(losses * batch["mask"]), batch["mask"].sum()),
            "top1": (jnp.sum((losses < 5.0) * batch["mask"]), batch["mask"].sum()),
        }


def experiment(
    workdir: Path | str,
    steps: int = 8,
    mesh: MeshConfig | None = None,
    poison: tuple[int, ...] = (),
    objective: Any = None,
    train_data: Any = None,
    eval_data: Any = None,
    rules: Any = FSDP_RULES,
    checkpoint: CheckpointConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    **train: Any,
) -> Experiment:
    """An experiment of ``steps`` steps, evaluated every 4."""
    defaults = {"log_every": 1, "progress": False, "eval_every": 4}
    config = RunConfig(
        preset="toy",
        mesh=mesh or MeshConfig(data=2, fsdp=4),
        optimizer=optimizer or OptimizerConfig(learning_rate=1e-2),
        train=TrainConfig(**(defaults | train)),
        checkpoint=checkpoint or CheckpointConfig(keep=2),
    )
    return Experiment(
        name="toy",
        config=config,
        objective=objective or Linear(),
        train_data=train_data or Vectors(None, poison=poison),
        eval_data=eval_data or Vectors(3, mask_from=5),
        steps=steps,
        workdir=str(workdir),
        rules=rules,
        resume_command="python -m toy",
    )
