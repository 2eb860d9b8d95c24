"""Parametrized runs: drawn on a mesh as on one device, stored as drawn, given away as the model takes them."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from flashjax import training
from flashjax.training import CheckpointConfig, MeshConfig, Program
from flashjax.training.checkpoints import Checkpoints
from flashjax.training.optimizers import OptimizerConfig
from flashjax.training.parametrization import ParametrizationConfig
from flashjax.training.rundir import RunDirectoryError, finished_run
from tests.golden.tiny_text import FixedTokens, tiny_text

MUP = ParametrizationConfig(preset="mup", base_width=16, rules=("embed/ learning_rate=2",))


@dataclasses.dataclass(frozen=True)
class OneBatch(FixedTokens):
    num_batches: int | None = 1

    def batches(self, start: int = 0):
        yield self.batch(start)


def experiment(parametrization, mesh=MeshConfig(), workdir="unused", steps=4, name="transformer"):  # noqa: B008
    """Of one block: what is compiled is what these tests cost."""
    built = tiny_text(name, mesh)
    model = built.objective.model
    model = model.clone(config=dataclasses.replace(model.config, depth=1, dropout_rate=0.0, remat="none"))
    config = dataclasses.replace(
        built.config,
        parametrization=parametrization,
        optimizer=OptimizerConfig(learning_rate=5e-3),
        checkpoint=CheckpointConfig(metric="loss", mode="min", every=2),
        train=dataclasses.replace(built.config.train, progress=False),
    )
    return dataclasses.replace(
        built,
        config=config,
        objective=dataclasses.replace(built.objective, model=model),
        workdir=str(workdir),
        steps=steps,
        eval_data=OneBatch(),
    )


def equal(ours, theirs, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


@pytest.mark.slow
def test_drawn_on_a_mesh_as_on_one_device():
    preset = ParametrizationConfig(preset="orthogonal", rules=("mlp/ distribution=normal std=0.1",))
    of = functools.partial(experiment, preset, name="transformer_modern")  # of scanned layers
    ours, theirs = Program(of(MeshConfig(data=2, fsdp=2, tensor=2))).init(), Program(of(), jax.devices()[:1]).init()
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(ours.params))
    equal(jax.device_get(ours.params), jax.device_get(theirs.params), rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(experiment, result) of a run under muP over eight devices."""
    built = experiment(MUP, MeshConfig(data=8), tmp_path_factory.mktemp("run"))
    return built, training.fit(built)


def test_a_run_stores_what_it_drew_and_gives_away_what_the_model_takes(trained):
    built, result = trained
    program = result.program
    assert program.objective.multipliers == {"final_norm/bias": 0.5, "final_norm/scale": 0.5}
    facts = json.loads((result.workdir / "config.json").read_text())
    assert facts["multipliers"] == program.objective.multipliers

    run = finished_run(result.workdir, built.config.checkpoint)
    assert run is not None and run.step == 4
    equal(run.variables["params"], jax.device_get(result.variables())["params"], rtol=1e-6)
    stored = jax.device_get(result.state.params)["final_norm"]["scale"]
    np.testing.assert_allclose(run.variables["params"]["final_norm"]["scale"], stored / 2, rtol=1e-6)
    # The model alone, on what the run gives away, has the loss that the run measured.
    loss, weight = jax.jit(built.objective.evaluate)(run.variables, OneBatch().batch(0))["loss"]
    np.testing.assert_allclose(loss / weight, result.metrics["loss"], rtol=1e-5)


def test_a_run_goes_on_under_its_own_parametrization_alone(trained):
    built, result = trained
    other = dataclasses.replace(built.config, parametrization=ParametrizationConfig(preset="standard"))
    with pytest.raises(RunDirectoryError, match=r"parametrization.preset: mup then, standard now"):
        training.fit(dataclasses.replace(built, config=other, steps=8))
    program = result.program
    restored = Checkpoints(result.workdir / "checkpoints", built.config.checkpoint, read_only=True).restore(
        4, program.abstract_state
    )
    equal(jax.device_get(restored.params), jax.device_get(result.state.params))


def test_pretrained_parameters_are_stored_divided(trained):
    built, result = trained
    run = finished_run(result.workdir, built.config.checkpoint)
    assert run is not None
    start = {"params": run.variables["params"]}
    program = Program(dataclasses.replace(built, initial=lambda drawn: {**drawn, **start}))
    state = program.init()
    equal(jax.device_get(program.objective.of_model(state.variables()))["params"], start["params"], rtol=1e-6)
    np.testing.assert_allclose(
        state.params["final_norm"]["scale"], 2 * start["params"]["final_norm"]["scale"], rtol=1e-6
    )


def test_rates_and_decay_reach_the_optimizer():
    rows = Program(experiment(MUP)).rates
    assert (rows["layer_0/attn/query/kernel"].learning_rate, rows["layer_0/attn/query/kernel"].decay) == (0.5, 2.0)
    assert (rows["embed/embedding"].learning_rate, rows["embed/embedding"].decay) == (2.0, 1.0)
    assert rows["final_norm/scale"].decay == 0  # a vector


def test_dry_run_prints_the_table(capsys, tmp_path):
    training.dry_run(experiment(MUP, workdir=tmp_path))
    header, *lines = capsys.readouterr().out.splitlines()[1:]
    assert [word in header for word in ("drawn from", "std", "multiplier", "rate", "decay")] == [True] * 5
    line = next(line for line in lines if line.startswith("layer_0/attn/query/kernel"))
    assert "  ".join(line.split()).count("normal  0.1768  1  0.5  2") == 1
