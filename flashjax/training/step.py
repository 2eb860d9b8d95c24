"""The train state and the three compiled functions of a run: init, train step, evaluation step."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from flashjax.training.experiment import Batch, Metrics, Objective, Variables
from flashjax.training.optimizers import Average


class TrainState(flax.struct.PyTreeNode):
    """All that a run must remember. Randomness and data follow from (seed, step) and are not stored."""

    step: jax.Array
    """int32 scalar: steps taken, skipped ones included; also the number of the next batch."""
    params: Any
    collections: Variables
    """Mutable collections of the model, such as ``batch_stats``."""
    opt_state: optax.OptState
    ema: Any
    """What evaluation uses instead of ``params``, an average of them; or ``None``."""
    halted: jax.Array
    """bool scalar: the last update was NaN or Inf and was not applied. The state is still the one that met the batch,
    and stays so until the host has kept a copy and cleared the flag."""

    def variables(self, averaged: bool = True) -> Variables:
        """Variables for evaluation: with the averaged parameters if there are any."""
        params = self.ema if averaged and self.ema is not None else self.params
        return {"params": params, **self.collections}


def step_rngs(seed: int, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(key of the device half of the data pipeline, key of the model) of a step."""
    data, model = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return data, model


def make_init(
    objective: Objective, optimizer: optax.GradientTransformation, spec: Batch, seed: int, with_ema: bool
) -> Callable[[], TrainState]:
    """A function without arguments, to be compiled with ``out_shardings``: nothing exists unsharded."""

    def init() -> TrainState:
        params_key, dropout_key = jax.random.split(jax.random.key(seed))
        zeros = {name: jnp.zeros((1, *s.shape[1:]), s.dtype) for name, s in spec.items()}
        variables = dict(objective.init({"params": params_key, "dropout": dropout_key}, zeros))
        params = variables.pop("params")
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            collections={name: tree for name, tree in variables.items() if name != "losses"},
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, params) if with_ema else None,
            halted=jnp.zeros((), bool),
        )

    return init


def make_gradients(
    objective: Objective, accumulate: int = 1, constrain: Callable[[Batch], Batch] = lambda batch: batch
) -> Callable[[Any, Variables, Batch, jax.Array], tuple[jax.Array, Metrics, Variables, Any]]:
    """``(params, collections, prepared batch, key) -> (loss, metrics, collections, gradients)`` of a step.

    Args:
        accumulate: micro-batches; each takes every ``accumulate``-th row, so that rows stay on their device. Loss,
            metrics and gradients are means over them; mutable collections pass from one to the next.
        constrain: places micro-batches ``[accumulate, rows, ...]`` on the mesh.
    """

    def loss_fn(params: Any, collections: Variables, batch: Batch, key: jax.Array):
        dropout, drop_path = jax.random.split(key)
        rngs = {"dropout": dropout, "drop_path": drop_path}
        loss, metrics, collections = objective.loss({"params": params, **collections}, batch, rngs)
        return loss, (metrics, collections)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def gradients(params: Any, collections: Variables, batch: Batch, key: jax.Array):
        if accumulate == 1:
            (loss, (metrics, collections)), grads = grad_fn(params, collections, batch, key)
            return loss, metrics, collections, grads
        split = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        split = constrain(split)

        def body(carry, xs):
            collections, total = carry
            micro, micro_key = xs
            (loss, (metrics, collections)), grads = grad_fn(params, collections, micro, micro_key)
            return (collections, jax.tree.map(jnp.add, total, (loss, metrics, grads))), None

        keys = jax.random.split(key, accumulate)
        first = jax.tree.map(lambda x: x[0], split)
        shapes = jax.eval_shape(grad_fn, params, collections, first, key)
        (loss_s, (metrics_s, _)), grads_s = shapes
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss_s, metrics_s, grads_s))
        (collections, sums), _ = jax.lax.scan(body, (collections, zeros), (split, keys))
        loss, metrics, grads = jax.tree.map(lambda x: x / accumulate, sums)
        return loss, metrics, collections, grads

    return gradients


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int,
    accumulate: int = 1,
    average: Average | None = None,
    constrain: Callable[[Batch], Batch] = lambda batch: batch,
    lay_out: Callable[[Any], Any] = lambda grads: grads,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One update: ``(state, batch) -> (state, metrics)``; ``accumulate`` and ``constrain`` as of ``make_gradients``,
    ``lay_out`` says how gradients lie in memory.

    An update whose loss or gradient norm is not finite is not applied: the state stays, ``halted`` is set, and
    further steps do nothing until it is cleared.
    """
    gradients = make_gradients(objective, accumulate, constrain)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        data_key, model_key = step_rngs(seed, state.step)
        with jax.named_scope("prepare"):
            prepared = objective.prepare(batch, data_key)
        loss, metrics, collections, grads = gradients(state.params, state.collections, prepared, model_key)
        with jax.named_scope("optimizer"):
            grads = lay_out(grads)
            grad_norm = optax.global_norm(grads)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema = state.ema
            if average is not None:
                ema = average(ema, params, opt_state, state.step)
            finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
            apply = finite & ~state.halted
            new = TrainState(
                step=state.step + 1,
                params=params,
                collections=collections,
                opt_state=opt_state,
                ema=ema,
                halted=jnp.zeros((), bool),
            )
            old = state.replace(halted=jnp.ones((), bool))
            new = jax.tree.map(lambda n, o: jnp.where(apply, n, o), new, old)
        return new, {**metrics, "loss": loss, "grad_norm": grad_norm, "finite": finite, "applied": apply}

    return train_step


def make_eval_step(objective: Objective) -> Callable[[Variables, Batch, Any], Any]:
    """``(variables, batch, totals) -> totals``: adds (sum, weight) of each metric; the totals stay on the device."""

    def eval_step(variables: Variables, batch: Batch, totals: Any) -> Any:
        sums = objective.evaluate(variables, batch)
        return jax.tree.map(lambda t, s: t + s.astype(jnp.float32), totals, sums)

    return eval_step
