"""Short trainings of language models on the embedded Bible's bytes, many from one compiled program.

The learning rate and the seed are inputs of the program, so that a model is compiled once for all of them. Trainings of
one seed see the same text in the same order, whatever the model.

Shapes: T steps, B rows, N tokens of a row, L layers, C width.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from flashjax.analysis.flops import count_flops
from flashjax.data.text_sources import kjv
from flashjax.objectives.language import LanguageModelling
from flashjax.ops.platform import jit_here
from flashjax.training.optimizers import OptimizerConfig, make_optimizer, with_arrays
from flashjax.training.parametrization import ParametrizationConfig, Parametrized, parametrize
from flashjax.training.step import TrainState
from flashjax.training.watch import Look

VOCABULARY = 256
HELD_OUT_ROWS = 32
_STREAM = "stream"
_BRANCHES = (("layers", "attn"), ("layers", "mlp"))


@functools.cache
def bible() -> tuple[np.ndarray, np.ndarray]:
    """The King James Bible's bytes, uint8: (to train on, held out)."""
    train, held_out = ("\n\n".join(part.documents()).encode() for part in kjv())
    return np.frombuffer(train, np.uint8), np.frombuffer(held_out, np.uint8)


@dataclass(frozen=True)
class Budget:
    """What each training is given."""

    steps: int = 80
    """T."""
    batch_size: int = 8
    """B."""
    length: int = 32
    """N."""


@dataclass(frozen=True, eq=False)
class ShortRuns:
    """Trainings of one model: AdamW without decay or clipping, after a warm-up that is part of `optimizer`."""

    model: nn.Module
    """Of `VOCABULARY` tokens, with scanned layers."""
    budget: Budget = field(default_factory=Budget)
    parametrization: ParametrizationConfig = field(default_factory=ParametrizationConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.0, clip_norm=None))
    """Algorithm and schedule; the rate is each training's own."""

    @functools.cached_property
    def objective(self) -> Parametrized:
        goal = LanguageModelling(self.model, VOCABULARY)
        return parametrize(goal, self.parametrization, self._shapes(goal), self._shapes)

    def _shapes(self, goal: Any) -> Any:
        spec = {"tokens": jax.ShapeDtypeStruct((1, self.budget.length + 1), jnp.int32)}
        return jax.eval_shape(goal.init, {"params": jax.random.key(0)}, spec)["params"]

    def train(self, seed: int, rate: float) -> tuple[np.ndarray, float]:
        """(loss of each step float32 [T], mean cross entropy of held-out rows after the last, nats a byte).

        A training that diverged has losses that are large, or no finite numbers.
        """
        losses, held_out = jax.device_get(self._trained(seed, np.float32(rate), *bible()))
        return losses, float(held_out)

    def looks(self, seed: int, rate: float, steps: int = 0) -> list[dict[str, Any]]:
        """What there is to see at step 0 and, if any are to be taken, after `steps` steps.

        Each is {figure: {layer: float32 [] or, of scanned layers, [L]}} as of `flashjax.training.watch.Look`; "kept":
        {"layers": [L]}, the correlation of the stream after each block with what entered the first; and "branch":
        {"attn": [L], "mlp": [L]}, second moments of what branches add.
        """
        traced, text = np.float32(rate), bible()[0]
        first, carry = self._begun(seed, traced, text)
        seen = [jax.device_get(first)]
        if steps:
            for t in range(steps):
                carry, _ = self._stepped(carry, seed, traced, t, text)
            seen.append(jax.device_get(self._looked(carry, seed, traced, steps, text)))
        return seen

    def changes(self, seed: int, rate: float) -> dict[str, np.ndarray]:
        """Mean |activation after t steps - at step 0| of the same tokens: "stream" [T, L + 1] and "logits" [T]."""
        return jax.device_get(self._changed(seed, np.float32(rate), bible()[0]))

    def flops(self) -> int:
        """FLOPs of the matrix products of one training."""
        return count_flops(self._train, 0, jnp.zeros(()), *bible())

    @functools.cached_property
    def _trained(self) -> Any:
        return jit_here(self._train, backward=True)

    @functools.cached_property
    def _changed(self) -> Any:
        return jit_here(self._change, backward=True)

    @functools.cached_property
    def _begun(self) -> Any:
        def begin(seed: Any, rate: Any, text: Any) -> Any:
            carry = self._start(seed, rate)[1]
            return self._look(carry, seed, rate, 0, text), carry

        return jit_here(begin, backward=True)

    @functools.cached_property
    def _looked(self) -> Any:
        return jit_here(self._look, backward=True)

    @functools.cached_property
    def _stepped(self) -> Any:
        def step(carry: Any, seed: Any, rate: Any, t: Any, text: Any) -> Any:
            return self._step(self._optimizer(carry[0], rate), carry, self._batch(seed, t, text))

        return jit_here(step, backward=True, donate_argnums=0)

    def _start(self, seed: Any, rate: Any) -> tuple[optax.GradientTransformation, Any]:
        params_key, dropout_key = jax.random.split(jax.random.key(seed))
        tokens = jnp.zeros((1, self.budget.length + 1), jnp.int32)
        params = self.objective.init({"params": params_key, "dropout": dropout_key}, {"tokens": tokens})["params"]
        optimizer = self._optimizer(params, rate)
        return optimizer, (params, optimizer.init(params))

    def _optimizer(self, params: Any, rate: Any) -> optax.GradientTransformation:
        config = with_arrays(self.optimizer, learning_rate=rate)
        return make_optimizer(config, self.budget.steps, params, self.objective.scales)

    def _step(self, optimizer: optax.GradientTransformation, carry: Any, tokens: Any) -> tuple[Any, Array]:
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: self._loss(p, tokens))(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    def _loss(self, params: Any, tokens: Int[Array, "B N_and_one"]) -> Array:
        return self.objective.loss({"params": params}, {"tokens": tokens}, {})[0]

    def _batch(self, seed: Any, step: Any, text: Any, rows: int = 0) -> Int[Array, "B N_and_one"]:
        """Rows that begin anywhere in the text."""
        rows, length = rows or self.budget.batch_size, self.budget.length + 1
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), seed), step)
        starts = jax.random.randint(key, (rows, 1), 0, len(text) - length)
        return text[starts + jnp.arange(length)].astype(jnp.int32)

    def _train(self, seed: Any, rate: Any, text: Any, other: Any) -> tuple[Array, Array]:
        optimizer, carry = self._start(seed, rate)
        carry, losses = jax.lax.scan(
            lambda carry, t: self._step(optimizer, carry, self._batch(seed, t, text)),
            carry,
            jnp.arange(self.budget.steps),
        )
        return losses, self._loss(carry[0], self._batch(0, 0, other, HELD_OUT_ROWS))

    def _look(self, carry: Any, seed: Any, rate: Any, t: Any, text: Any) -> dict[str, Any]:
        params, opt_state = carry
        tokens = self._batch(seed, t, text)
        state = TrainState(jnp.asarray(t, jnp.int32), params, {}, opt_state, None, jnp.zeros((), bool))
        figures = Look(self.objective, self._optimizer(params, rate), 0)(state, {"tokens": tokens})
        streams, _, branch = self._activations(params, tokens[:, :-1])
        flat = streams.reshape(len(streams), -1)
        flat = flat - flat.mean(1, keepdims=True)
        kept = (flat @ flat[0]) / (jnp.linalg.norm(flat, axis=1) * jnp.linalg.norm(flat[0]))
        return {**figures, "kept": {"layers": kept[1:]}, "branch": branch}

    def _change(self, seed: Any, rate: Any, text: Any) -> dict[str, Array]:
        optimizer, carry = self._start(seed, rate)
        probe = self._batch(seed, self.budget.steps, text)[:, :-1]
        first = self._activations(carry[0], probe)[:2]

        def step(carry: Any, t: Any) -> tuple[Any, Any]:
            carry, _ = self._step(optimizer, carry, self._batch(seed, t, text))
            streams, logits = jax.tree.map(
                lambda now, then: jnp.abs(now - then), self._activations(carry[0], probe)[:2], first
            )
            return carry, {"stream": streams.mean((1, 2, 3)), "logits": logits.mean()}

        return jax.lax.scan(step, carry, jnp.arange(self.budget.steps))[1]

    def _activations(
        self, params: Any, tokens: Int[Array, "B N"]
    ) -> tuple[Float[Array, "L_and_one B N C"], Float[Array, "B N V"], dict[str, Float[Array, "L"]]]:
        """(what enters the first block and what leaves each, logits, second moments of what branches add)."""

        def keep(following: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            result = following(*args, **kwargs)
            module, path = context.module, context.module.path
            if context.method_name == "__call__" and path == ("layers",):
                module.sow(_STREAM, "entering", args[0])
                module.sow(_STREAM, "leaving", result[0])
            if context.method_name == "__call__" and path in _BRANCHES:
                y = result[0] if isinstance(result, tuple) else result
                module.sow(_STREAM, "moment", jnp.square(y).mean())
            return result

        with nn.intercept_methods(keep):
            variables = self.objective.of_model({"params": params})
            logits, shown = self.model.apply(variables, tokens, None, mutable=[_STREAM])
        assert isinstance(logits, jax.Array)
        layers: Any = shown[_STREAM]["layers"]
        (entering,), (leaving,) = layers["entering"], layers["leaving"]
        branch = {name: layers[name]["moment"][0] for _, name in _BRANCHES}
        return jnp.concatenate([entering[:1], leaving]), logits, branch
