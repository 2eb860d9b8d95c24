"""``--watch N``: figures of every layer, each N steps: what flows through it, what flows back, how far it moves.

A look at a step computes its loss and gradients once more, by a compiled function of its own, before the step is taken:
the same parameters, batch, micro-batches and draws. So it costs a watched step about as much again, and all others
nothing, and training is bit for bit what it is without.

Activations are seen by intercepting the calls of modules (`flax.linen.intercept_methods`), whatever the model. What
flows back is seen by a probe, the identity with a second argument of zero whose gradient is defined as the mean square
of what passes backwards.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from flashjax.analysis.modules import known
from flashjax.layers.watched import WATCHED, is_watched
from flashjax.training.experiment import Batch, Metrics, Objective, Rngs, Variables
from flashjax.training.program import Program
from flashjax.training.rundir import RunDirectory
from flashjax.training.sharding import on_mesh, path_string
from flashjax.training.step import TrainState, make_gradients, step_rngs
from flashjax.training.writers import JsonLinesWriter, MultiWriter

FIGURES = {
    "activation_moment": "second moment of what leaves the layer",
    "activation_mean": "mean of what leaves the layer",
    "backward_moment": "second moment of the loss's gradient there",
    "logit_rms": "root mean square of attention's logits, before bias and mask, over all pairs of a row",
    "gradient_rms": "root mean square of the gradient of its parameters, before clipping",
    "parameter_rms": "root mean square of its parameters",
    "update_ratio": "root mean square of the update over that of the parameters",
}
"""Figures by name, and what they are; a line holds each as 'name/layer'."""
ENTERING = "entering"
"""Stands for a layer in front of the first numbered one: what enters that."""

_PROBES = "probes"
_NUMBERED = re.compile(r"([a-z][a-z0-9_]*_\d+|layers)$")
_STACKED = "layers"

Figures = dict[str, dict[str, jax.Array]]


def layers(paths: Iterable[str]) -> dict[str, str]:
    """The layer of each parameter, by '/'-joined path.

    A layer is the innermost module with a number in its name ('stage_0/block_1'), or the stack of scanned ones
    ('layers'). What is in none of these, or beside some ('stage_0/downsample'), belongs to the module that is next.
    """
    numbered = {path: _innermost(path.split("/")[:-1]) for path in paths}
    holders = {(), *(name[:end] for name in numbered.values() for end in range(len(name)))}
    return {
        path: "/".join(path.split("/")[: len(name) + 1] if name in holders else name) for path, name in numbered.items()
    }


def _innermost(modules: list[str]) -> tuple[str, ...]:
    last = max((i for i, name in enumerate(modules, start=1) if _NUMBERED.match(name)), default=0)
    return tuple(modules[:last])


@jax.custom_vjp
def _probe(x: jax.Array, zero: jax.Array) -> jax.Array:
    """x; the gradient by `zero` is the mean square of the gradient by x."""
    return x


def _probe_backward(_: None, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return g, jnp.square(g.astype(jnp.float32)).mean()


_probe.defvjp(lambda x, zero: (x, None), _probe_backward)


@dataclass(eq=False)
class Watched:
    """An objective under observation, and an objective itself.

    Its `params` are {"model": the objective's own, "probes": zeros}; what modules show is what its metrics are.
    """

    objective: Objective
    names: frozenset[str]
    """Layers whose modules are looked at, '/'-joined."""
    order: list[str] = field(default_factory=list)
    """Layers in the order in which they were called, once traced."""

    def init(self, rngs: Rngs, batch: Batch) -> Variables:
        return self.objective.init(rngs, batch)

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        return self.objective.prepare(batch, key)

    def evaluate(self, variables: Variables, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        return self.objective.evaluate(variables, batch)

    def loss(self, variables: Variables, batch: Batch, rngs: Rngs) -> tuple[jax.Array, Metrics, Variables]:
        params = variables["params"]
        seen = {**variables, "params": params["model"], WATCHED: {}, _PROBES: params["probes"]}
        with nn.intercept_methods(self._look):
            loss, _, changed = self.objective.loss(seen, batch, rngs)
        changed = dict(changed)
        changed.pop(_PROBES, None)
        return loss, changed.pop(WATCHED, {}), changed

    def _look(
        self, following: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        """What a module returns, through a probe; its moments are kept. The first of several results is the signal."""
        module, path = context.module, "/".join(context.module.path)
        result = following(*args, **kwargs)
        if path not in self.names or context.method_name != "__call__":
            return result
        if path not in self.order:
            self.order.append(path)
        x, *others = result if isinstance(result, tuple) else (result,)
        # Without arguments, as an embedding that gives its table, it is no signal.
        if not args or not is_watched(module) or not _is_signal(x):
            return result
        if module.has_variable(_PROBES, "backward"):
            x = _probe(x, module.get_variable(_PROBES, "backward"))
        if _NUMBERED.match(path.split("/")[-1]) and _is_signal(args[0]):
            module.sow(WATCHED, "entering", jnp.square(args[0].astype(jnp.float32)).mean())
        wide = x.astype(jnp.float32)
        module.sow(WATCHED, "mean", wide.mean())
        module.sow(WATCHED, "moment", jnp.square(wide).mean())
        return (x, *others) if isinstance(result, tuple) else x


def _is_signal(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating) and x.ndim > 1


@dataclass(eq=False)
class Look:
    """Figures of the layers of a step, as a function to be compiled; `accumulate` and `constrain` as of a step."""

    objective: Objective
    optimizer: optax.GradientTransformation
    seed: int
    accumulate: int = 1
    constrain: Callable[[Batch], Batch] = lambda batch: batch
    order: list[str] = field(default_factory=list)
    """Layers as they follow each other, once it was traced."""

    def __call__(self, state: TrainState, batch: Batch) -> Figures:
        """{figure: {layer: float32 [] or, of scanned layers, [L]}} of the step that `state` would take with `batch`."""
        data_key, model_key = step_rngs(self.seed, state.step)
        prepared = self.objective.prepare(batch, data_key)
        of = layers(path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params))
        watched = Watched(self.objective, frozenset(of.values()))
        gradients = make_gradients(watched, self.accumulate, self.constrain)
        params = {"model": state.params, "probes": {}}
        _, shown, _, _ = jax.eval_shape(gradients, params, state.collections, prepared, model_key)
        params["probes"] = _probes(shown)
        _, shown, _, grads = gradients(params, state.collections, prepared, model_key)
        updates, _ = self.optimizer.update(grads["model"], state.opt_state, state.params)
        self.order = [*watched.order, *dict.fromkeys(name for name in of.values() if name not in watched.order)]
        backward = jax.tree.map(lambda moment: moment / self.accumulate**2, grads["probes"])
        return {**_signals(shown, backward, watched.names), **_sizes(of, state.params, grads["model"], updates)}


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by '/'-joined path; what modules sow stands in tuples, one entry for each call."""
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    return {path_string(path): leaf for path, leaf in flat}


def _probes(shown: Any) -> Any:
    """A zero for each module that shows a moment, in the tree of modules."""
    probes: dict[str, Any] = {}
    for path, moments in _leaves(shown).items():
        *modules, figure = path.split("/")
        if figure == "moment":
            place = probes
            for name in modules:
                place = place.setdefault(name, {})
            place["backward"] = jnp.zeros(moments[0].shape, jnp.float32)
    return probes


def _signals(shown: Any, backward: Any, names: Iterable[str]) -> Figures:
    """Figures of what flows; where a module is called, or attends, several times the mean moment."""
    figures: Figures = {"activation_moment": {}, "activation_mean": {}, "backward_moment": {}}
    kinds = {"moment": "activation_moment", "mean": "activation_mean", "entering": ENTERING}
    calls: dict[str, int] = {}
    logits: dict[str, list[jax.Array]] = {}
    for path, values in _leaves(shown).items():
        module, _, figure = path.rpartition("/")
        calls[module] = len(values)
        if figure == "logits":
            logits.setdefault(known(module, names), []).extend(values)
        else:
            figures.setdefault(kinds[figure], {})[module] = jnp.stack(values).mean(0)
    figures["logit_rms"] = {layer: jnp.sqrt(jnp.stack(values).mean(0)) for layer, values in logits.items()}
    for path, moment in _leaves(backward).items():
        module = path.rpartition("/")[0]
        figures["backward_moment"][module] = moment / calls[module]
    return {name: found for name, found in figures.items() if found}


def _sizes(of: Mapping[str, str], params: Any, grads: Any, updates: Any) -> Figures:
    """Figures of parameters, over all of a layer; scanned layers keep their dim."""

    def rms(tree: Any) -> dict[str, jax.Array]:
        squares: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for path, leaf in _leaves(tree).items():
            layer, stacked = of[path], _STACKED in path.split("/")
            axes = tuple(range(int(stacked), leaf.ndim))
            squares[layer] = squares.get(layer, 0) + jnp.square(leaf.astype(jnp.float32)).sum(axes)
            counts[layer] = counts.get(layer, 0) + math.prod(leaf.shape[int(stacked) :])
        return {layer: jnp.sqrt(total / counts[layer]) for layer, total in squares.items()}

    sizes = rms(params)
    moved = {layer: update / sizes[layer] for layer, update in rms(updates).items()}
    return {"gradient_rms": rms(grads), "parameter_rms": sizes, "update_ratio": moved}


def flat(figures: Mapping[str, Mapping[str, Any]], order: Iterable[str]) -> dict[str, float]:
    """'figure/layer': number, layers as they follow each other; of scanned ones layer_0, layer_1 ...

    Of what enters layers only what enters the first is kept, as the layer "entering".
    """
    places = {layer: place for place, layer in enumerate(order)}
    entering = figures.get(ENTERING, {})
    first = min(entering, key=places.__getitem__, default="")
    line: dict[str, float] = {}
    for name in FIGURES:
        found = figures.get(name, {})
        for layer in sorted(found, key=places.__getitem__):
            if layer == first and name == "activation_moment":
                line[f"{name}/{ENTERING}"] = float(np.ravel(entering[first])[0])
            line |= {f"{name}/{path}": number for path, number in _unstacked(layer, found[layer])}
    return line


def _unstacked(layer: str, value: Any) -> Iterable[tuple[str, float]]:
    if not value.ndim:
        return [(layer, float(value))]
    parts = layer.split("/")
    names = ["/".join(f"layer_{i}" if part == _STACKED else part for part in parts) for i in range(len(value))]
    return zip(names, map(float, value), strict=True)


class Watch:
    """The looks of a run: compiled, and written to ``watch.jsonl`` and to the writers that were asked for by name."""

    @classmethod
    def of(cls, program: Program, run: RunDirectory, writer: MultiWriter, resume_step: int | None) -> "Watch | None":
        """What ``config.watch`` asks for; a new run without leaves no lines of an older one in its directory.

        Raises:
            ValueError: for a negative ``watch``.
        """
        every = program.experiment.config.watch
        if every < 0:
            raise ValueError(f"watch is {every}: give the steps between two looks, or 0 for none")
        if every:
            return cls(program, every, writer.without_lines(), run.watch, resume_step)
        if resume_step is None and jax.process_index() == 0:
            run.watch.unlink(missing_ok=True)
        return None

    def __init__(self, program: Program, every: int, writer: MultiWriter, path: Path, resume_step: int | None):
        experiment, config = program.experiment, program.experiment.config
        self.every = every
        self._look = Look(
            program.objective, program.optimizer, config.seed, config.train.accumulate, program.constrain_micro
        )
        self._compiled = (
            jax.jit(
                on_mesh(self._look, program.mesh),
                in_shardings=(program.shardings, program.batch_sharding),
                out_shardings=program.replicated,
                compiler_options=program.compiler_options(backward=True),
            )
            .lower(program.abstract_state, program.abstract_batch(experiment.train_data.spec))
            .compile()
        )
        self._writer = writer
        self._lines = JsonLinesWriter(path, resume_step) if jax.process_index() == 0 else None

    def due(self, step: int) -> bool:
        """Whether step ``step``, counted from 0, is looked at: the first and each N-th, as lines of metrics are."""
        return step == 0 or (step + 1) % self.every == 0

    def __call__(self, state: TrainState, batch: Batch) -> Figures:
        """The figures, on the device; ``state`` is left as it is."""
        return self._compiled(state, batch)

    def write(self, step: int, figures: Figures) -> None:
        """A line of the step after which ``step`` steps are taken."""
        if self._lines is not None:
            line = flat(jax.device_get(figures), self._look.order)
            self._lines.write(step, line)
            self._writer.write(step, line)

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
