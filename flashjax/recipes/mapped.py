"""Many trainings of one small model in one compiled program: data on the device, rates and decays mapped.

Shapes: N images of the train set, B batch, C cells that are trained at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from flashjax.analysis.flops import count_flops
from flashjax.data.sources import digits, stratified_split
from flashjax.objectives.classification import Classification
from flashjax.ops.platform import jit_here
from flashjax.training.optimizers import OptimizerConfig, make_optimizer, with_arrays

Split = Mapping[str, np.ndarray]


def digit_splits(train_images: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(train, held out) of the embedded 5,000 digits: ``train_images`` of them, as many of each class, and the rest.

    Each is image float32 [N, 28, 28, 1], with the train set's mean 0 and deviation 1, label int32 [N], mask float32 [N]
    of ones, and target float32 [N, 10].

    Raises:
        ValueError: where there are not as many to train on.
    """
    sources = digits()
    images = np.concatenate([source.images for source in sources])[..., None].astype(np.float32)
    labels = np.concatenate([source.labels for source in sources])
    if not 0 < train_images <= len(sources[0]):
        raise ValueError(f"train_images is {train_images}; of {len(labels)} digits up to {len(sources[0])} can be that")
    held_out, train = stratified_split(labels, train_images / len(labels))
    mean, deviation = images[train].mean(), images[train].std()

    def split(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "image": (images[rows] - mean) / deviation,
            "label": labels[rows],
            "mask": np.ones(len(rows), np.float32),
            "target": np.eye(10, dtype=np.float32)[labels[rows]],
        }

    return split(train), split(held_out)


@dataclass(frozen=True, eq=False)
class MappedTraining:
    """Trains a classifier for each of C pairs of learning rate and weight decay, all from one seed.

    The cells of a call begin with the same parameters and see the same batches, so that an image is read once for all
    of them. Rates, decays and the seed are inputs of one compiled program.
    """

    objective: Classification
    """Whose `prepare_eval` changes nothing: the splits are prepared."""
    optimizer: OptimizerConfig
    """Algorithm and schedule; its rate and decay are replaced."""
    train: Split
    held_out: Split
    epochs: int
    batch_size: int
    """B. What is left of an epoch is left out."""

    def __post_init__(self) -> None:
        if not 0 < self.batch_size <= len(self.train["label"]):
            raise ValueError(f"batch_size is {self.batch_size}, of {len(self.train['label'])} images to train on")

    @property
    def steps(self) -> int:
        """Updates of each training."""
        return self.epochs * (len(self.train["label"]) // self.batch_size)

    def __call__(self, seed: int, rates: Sequence[float], decays: Sequence[float]) -> dict[str, np.ndarray]:
        """Of each cell after its last update, float32 [C]: train_loss, train_error, eval_loss, eval_error.

        The first two are of the train set, the others of what is held out. Losses are mean cross entropies without any
        decay, errors shares of the images. A training that diverged has losses that are no finite numbers.
        """
        found = self._compiled(seed, *(np.asarray(x, np.float32) for x in (rates, decays)), self.train, self.held_out)
        return {name: np.asarray(values) for name, values in found.items()}

    def flops(self) -> int:
        """FLOPs of the matrix products of one cell."""
        return count_flops(self._run, 0, jnp.zeros(1), jnp.zeros(1), self.train, self.held_out)

    @cached_property
    def _compiled(self) -> Any:
        return jit_here(self._run, backward=True)

    def _run(
        self, seed: Any, rates: Float[Array, "C"], decays: Float[Array, "C"], train: Any, held_out: Any
    ) -> dict[str, Float[Array, "C"]]:
        params_key, order_key = jax.random.split(jax.random.key(seed))
        params = self.objective.init({"params": params_key}, train)["params"]
        count = len(train["label"]) // self.batch_size * self.batch_size
        keys = jax.random.split(order_key, self.epochs)
        order = jax.vmap(lambda key: jax.random.permutation(key, len(train["label"]))[:count])(keys)

        def cell(rate: Any, decay: Any) -> dict[str, Any]:
            config = with_arrays(self.optimizer, learning_rate=rate, weight_decay=decay)
            optimizer = make_optimizer(config, self.steps, params)

            def step(carry: Any, rows: Any) -> tuple[Any, None]:
                params, state = carry
                batch = {name: train[name][rows] for name in ("image", "target")}
                grads = jax.grad(lambda p: self.objective.loss({"params": p}, batch, {})[0])(params)
                updates, state = optimizer.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            start = (params, optimizer.init(params))
            (trained, _), _ = jax.lax.scan(step, start, order.reshape(-1, self.batch_size))
            figures = {}
            for name, split in (("train", train), ("eval", held_out)):
                sums = self.objective.evaluate({"params": trained}, split)
                means = {key: total / weight for key, (total, weight) in sums.items()}
                figures |= {f"{name}_loss": means["loss"], f"{name}_error": 1 - means["top1"]}
            return figures

        return jax.vmap(cell)(rates, decays)


def digit_trainings(
    model: nn.Module, algorithms: Sequence[str], train_images: int, epochs: int, batch_size: int
) -> dict[str, MappedTraining]:
    """A `MappedTraining` of ``model``, images float32 [B, 28, 28, 1] to ten logits, under each algorithm by its name.

    All have the split that `digit_splits` makes, no clipping, and a rate that falls along a cosine. Raises as it does.
    """
    goal = Classification(model, 10, prepare_train=lambda batch, _: dict(batch), prepare_eval=dict)
    train, held_out = digit_splits(train_images)
    return {
        name: MappedTraining(goal, OptimizerConfig(name=name, clip_norm=None), train, held_out, epochs, batch_size)
        for name in algorithms
    }
