"""The compiled side of an experiment: mesh -> abstract state -> shardings from rules -> jit(init) -> jit(step)."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flashjax.analysis.flops import flops_by
from flashjax.ops import platform
from flashjax.training import executables, nonfinite
from flashjax.training.checkpoints import CheckpointError, Checkpoints
from flashjax.training.experiment import Batch, Experiment, Objective, Pipeline
from flashjax.training.mesh import BATCH_AXES, batch_sharding, check_batch, make_mesh
from flashjax.training.optimizers import make_average, make_optimizer, optimizer_rows
from flashjax.training.parametrization import parametrize
from flashjax.training.sharding import lint, on_mesh, shardings_for
from flashjax.training.step import TrainState, make_eval_step, make_init, make_train_step

LARGE = 2**14
"""Numbers of a gradient whose layout counts: sixteen tiles of a TPU's registers."""


class Program:
    """The compiled side of an experiment: mesh, abstract state with shardings, and the functions on it."""

    def __init__(self, experiment: Experiment, devices: Sequence[Any] | None = None):
        config = experiment.config
        self.experiment = experiment
        self.mesh: Mesh = make_mesh(config.mesh, devices)
        accumulate = config.train.accumulate
        check_batch("batch size", experiment.train_data.batch_size, self.mesh, accumulate)
        check_batch("evaluation batch size", experiment.eval_data.batch_size, self.mesh)
        init_params = self._parameters(experiment.objective)
        self.objective = parametrize(experiment.objective, config.parametrization, init_params, self._parameters)
        scales = self.objective.scales
        self.rates = optimizer_rows(config.optimizer, init_params, scales)
        self.optimizer = make_optimizer(config.optimizer, experiment.steps, init_params, scales)
        lint(init_params, experiment.rules, self.mesh)
        average = make_average(config.optimizer, config.train.ema_decay, config.train.ema_warmup)
        self._init = make_init(
            self.objective,
            self.optimizer,
            experiment.train_data.spec,
            config.seed,
            with_ema=average is not None,
        )
        shapes = jax.eval_shape(self._init)
        self.shardings = shardings_for(shapes, experiment.rules, self.mesh, init_params)
        self.abstract_state: TrainState = jax.tree.map(
            lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, self.shardings
        )
        self.batch_sharding = batch_sharding(self.mesh)
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        step_fn = make_train_step(
            self.objective,
            self.optimizer,
            config.seed,
            accumulate,
            average,
            self.constrain_micro,
            self.lay_out,
        )
        self.step_fn = on_mesh(step_fn, self.mesh)
        self.train_step = jax.jit(
            self.step_fn,
            in_shardings=(self.shardings, self.batch_sharding),
            out_shardings=(self.shardings, self.replicated),
            donate_argnums=0,
            compiler_options=self.compiler_options(backward=True),
        )
        self.eval_step = jax.jit(
            on_mesh(make_eval_step(self.objective), self.mesh),
            donate_argnums=2,
            compiler_options=self.compiler_options(backward=False),
        )
        self.release = jax.jit(nonfinite.release, donate_argnums=0, out_shardings=self.shardings)

    def _parameters(self, objective: Objective) -> Any:
        """The parameters of an objective on this experiment's data, abstract."""
        spec, seed = self.experiment.train_data.spec, self.experiment.config.seed
        return jax.eval_shape(make_init(objective, optax.identity(), spec, seed, with_ema=False)).params

    def compiler_options(self, backward: bool) -> dict[str, str]:
        """What functions on the mesh are compiled with (`flashjax.ops.platform`)."""
        return platform.compiler_options(backward=backward, platform=self.mesh.devices.flat[0].platform)

    def constrain_micro(self, batch: Batch) -> Batch:
        """Micro-batches [accumulate, rows, ...] in their places."""
        where = NamedSharding(self.mesh, PartitionSpec(None, BATCH_AXES))
        return jax.lax.with_sharding_constraint(batch, where)

    def lay_out(self, gradients: Any) -> Any:
        """For TPUs large gradients of parameters that are whole on each device row by row, as most parameters lie.

        By itself the compiler updates a parameter as its gradient comes, which may be transposed, and copies the
        parameter and its moments to that layout and back; as it does here with those few that it lays out otherwise.
        What is split is cut out of its gradient, and copied anyway.
        """
        if platform.traced_for() != "tpu":
            return gradients

        def one(gradient: jax.Array, where: NamedSharding) -> jax.Array:
            if gradient.ndim < 2 or gradient.size < LARGE or not where.is_fully_replicated:
                return gradient
            return with_layout_constraint(gradient, Layout(tuple(range(gradient.ndim))))

        return jax.tree.map(one, gradients, self.shardings.params)

    def init(self) -> TrainState:
        """The state of step 0: drawn sharded; pretrained leaves are put in their places."""
        state = jax.jit(self._init, out_shardings=self.shardings)()
        if self.experiment.initial is None:
            return state
        drawn = {"params": state.params, **state.collections}
        wanted = self.experiment.initial(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), drawn))
        wanted = {**wanted, "params": self.objective.from_model(wanted["params"])}
        filled = jax.tree.map(
            lambda new, old: (
                old
                if isinstance(new, jax.ShapeDtypeStruct)
                else jax.make_array_from_callback(
                    old.shape, old.sharding, lambda i, new=new: np.asarray(new, old.dtype)[i]
                )
            ),
            wanted,
            drawn,
        )
        params = filled.pop("params")
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        begin = jax.jit(self.optimizer.init, out_shardings=self.shardings.opt_state)
        return state.replace(params=params, collections=filled, opt_state=begin(params), ema=ema)

    def abstract_batch(self, spec: dict[str, jax.ShapeDtypeStruct]) -> Batch:
        where = self.batch_sharding
        return {name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where) for name, s in spec.items()}

    def put(self, batch: dict[str, np.ndarray], spec: dict[str, jax.ShapeDtypeStruct]) -> Batch:
        """Process-local rows to global arrays; the copy goes on while the host does something else."""
        with jax.transfer_guard("allow"):  # the one way of data to the devices
            return {
                name: jax.make_array_from_process_local_data(self.batch_sharding, rows, spec[name].shape)
                for name, rows in batch.items()
            }

    @functools.cached_property
    def _tracing(self) -> tuple[jax.stages.Traced, dict[str, list[str]]]:
        with platform.choices() as chosen:
            traced = self.train_step.trace(self.abstract_state, self.abstract_batch(self.experiment.train_data.spec))
        return traced, {setting: sorted(values) for setting, values in sorted(chosen.items())}

    @property
    def traced_step(self) -> jax.stages.Traced:
        """The train step before it is lowered, traced once."""
        return self._tracing[0]

    @property
    def choices(self) -> dict[str, list[str]]:
        """What the train step left to the platform of its devices or to shapes, and what it is."""
        return self._tracing[1]

    def lower_step(self) -> jax.stages.Lowered:
        """The train step as the compiler gets it."""
        return self.traced_step.lower()

    def compile_step(self) -> jax.stages.Compiled:
        """The train step, compiled; or the one in the file that ``--compiled`` names.

        Raises:
            ValueError: if that is of another program.
        """
        lowered, file = self.lower_step(), self.experiment.config.compiled
        return executables.load(file, lowered, self.mesh) if file else lowered.compile()

    def flops(self) -> int:
        """FLOPs of one train step, all devices together, counted from its jaxpr."""
        return sum(flops_by(self.traced_step.jaxpr, lambda *_: None).values())

    def evaluate(
        self,
        state: TrainState,
        data: Pipeline,
        each_batch: Callable[[], None] = lambda: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """Means over the evaluation set; each real example counts once. Empty where ``stop`` ended it early."""
        variables = state.variables()
        spec = data.spec
        shapes = jax.eval_shape(self.objective.evaluate, variables, self.abstract_batch(spec))
        totals = jax.device_put(jax.tree.map(lambda s: np.zeros((), np.float32), shapes), self.replicated)
        with contextlib.closing(data.batches()) as batches:
            for rows in batches:
                each_batch()
                totals = self.eval_step(variables, self.put(rows, spec), totals)
                if stop():
                    return {}
        return {name: float(total / max(weight, 1e-9)) for name, (total, weight) in jax.device_get(totals).items()}


def evaluate(experiment: Experiment) -> dict[str, float]:
    """Evaluates the best checkpoint of the workdir, or the pretrained variables where there is none; says which.

    Raises:
        CheckpointError: if there is neither.
    """
    program = Program(experiment)
    directory = Path(experiment.workdir) / "checkpoints"
    if experiment.initial is not None and not directory.is_dir():
        print("evaluating the pretrained weights")
        return program.evaluate(program.init(), experiment.eval_data)
    checkpoints = Checkpoints(directory, experiment.config.checkpoint, read_only=True)
    try:
        best = checkpoints.best()
        if best is None:
            raise CheckpointError(f"{directory} holds no whole checkpoint: train first, or name another --workdir")
        print(f"evaluating {checkpoints.path(best)}")
        return program.evaluate(checkpoints.restore(best, program.abstract_state), experiment.eval_data)
    finally:
        checkpoints.close()
