"""Signals by layer of any model by name: at step 0 and after some steps on embedded data, as `--watch` shows them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flashjax import models
from flashjax.data.sources import digits
from flashjax.objectives.classification import Classification
from flashjax.objectives.language import LanguageModelling, Masking
from flashjax.ops.platform import jit_here
from flashjax.recipes.short_runs import bible
from flashjax.training.experiment import Batch, Objective
from flashjax.training.optimizers import OptimizerConfig, ScheduleConfig, make_optimizer
from flashjax.training.parametrization import ParametrizationConfig, parametrize
from flashjax.training.step import TrainState, make_train_step
from flashjax.training.watch import Look, flat

Batches = Callable[[int], Batch]
"""The batch of a step."""
_LENGTH, _SIDE = 128, 64


def looks(
    name: str,
    steps: int,
    rate: float,
    batch_size: int,
    seed: int = 0,
    parametrization: ParametrizationConfig | None = None,
) -> dict[int, dict[str, float]]:
    """{step: lines as of watch.jsonl} of the model `name` at step 0 and, if any are taken, after `steps` steps of Adam.

    Raises ValueError for an unknown name, with the nearest, and for a model that reads neither text nor images.
    """
    goal, batches = _objective(name, batch_size, seed)
    shapes = functools.partial(_shapes, batch=batches(0))
    objective = parametrize(goal, parametrization or ParametrizationConfig(), shapes(goal), shapes)
    keys = dict(zip(("params", "dropout"), jax.random.split(jax.random.key(seed)), strict=True))
    variables = dict(jax.jit(objective.init)(keys, batches(0)))
    params = variables.pop("params")
    constant = ScheduleConfig(kind="constant")
    config = OptimizerConfig(learning_rate=rate, weight_decay=0.0, clip_norm=None, schedule=constant)
    optimizer = make_optimizer(config, max(steps, 1), params, objective.scales)
    state = TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params), None, jnp.zeros((), bool))
    look = Look(objective, optimizer, seed)
    seen = jit_here(look, backward=True)
    step = jit_here(make_train_step(objective, optimizer, seed), backward=True, donate_argnums=0)
    found = {0: flat(jax.device_get(seen(state, batches(0))), look.order)}
    for t in range(steps):
        state, _ = step(state, batches(t))
    if steps:
        found[steps] = flat(jax.device_get(seen(state, batches(steps))), look.order)
    return found


def _shapes(goal: Objective, batch: Batch) -> Any:
    return jax.eval_shape(goal.init, {"params": jax.random.key(0), "dropout": jax.random.key(0)}, batch)["params"]


def _objective(name: str, batch_size: int, seed: int) -> tuple[Objective, Batches]:
    model = models.create(name)
    config: Any = model.config
    if hasattr(config, "vocab_size"):
        return _text(model, config, batch_size, seed)
    if hasattr(config, "num_classes") and hasattr(config, "in_chans"):
        return _images(model, config, batch_size, seed)
    raise ValueError(
        f"model {name!r} reads neither text (vocab_size) nor images (num_classes, in_chans): it has no looks"
    )


def _text(model: nn.Module, config: Any, batch_size: int, seed: int) -> tuple[Objective, Batches]:
    """The Bible's bytes; a model that is not causal guesses hidden ones."""
    masking = None if config.causal else Masking(mask_token=0)
    length = min(_LENGTH, config.max_length) + config.causal

    def batch(t: int) -> Batch:
        text = bible()[0]
        starts = np.random.default_rng([seed, t]).integers(0, len(text) - length, (batch_size, 1))
        return {"tokens": text[starts + np.arange(length)].astype(np.int32)}

    return LanguageModelling(model, config.vocab_size, config.causal, masking), batch


def _images(model: nn.Module, config: Any, batch_size: int, seed: int) -> tuple[Objective, Batches]:
    """The embedded digits, of mean 0 and deviation 1, at the size and with the channels of the model."""
    if config.num_classes < 10:
        raise ValueError(f"num_classes is {config.num_classes}: looks need a head for the ten digits")
    height, width = getattr(config, "image_shape", (_SIDE, _SIDE))
    source = digits()[0]
    mean, deviation = source.images.mean(), source.images.std()

    def batch(t: int) -> Batch:
        rows = np.random.default_rng([seed, t]).integers(0, len(source.images), batch_size)
        images = (source.images[rows, ..., None] - mean) / deviation
        shape = (batch_size, height, width, config.in_chans)
        images = jax.image.resize(jnp.repeat(jnp.asarray(images, jnp.float32), config.in_chans, -1), shape, "bilinear")
        return {"image": images, "target": jax.nn.one_hot(source.labels[rows], config.num_classes)}

    return Classification(model, config.num_classes, lambda batch, _: dict(batch), dict), batch
