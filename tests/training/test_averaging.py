"""What evaluation uses: averages sharded, saved and restored; optimizers' odd states on meshes; accumulation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.training import MeshConfig, OptimizerConfig, Program, ScheduleConfig, fit
from flashjax.training.checkpoints import Checkpoints
from flashjax.training.optimizers import ALGORITHMS, make_average
from flashjax.training.sharding import Rule, fsdp, tensor_parallel
from tests.training.toy import Vectors, experiment

FREE = OptimizerConfig(name="schedule_free_adamw", learning_rate=1e-2, schedule=ScheduleConfig("constant"))
WHOLE_TENSORS = ("muon", "adafactor", "lamb", "lars", "novograd", "prodigy")
"""Algorithms whose update of one number asks for others, which a mesh may hold elsewhere."""


def test_a_moving_average_by_hand_and_its_warm_up():
    constant, warmed = (make_average(OptimizerConfig(), 0.9, warmup) for warmup in (False, True))
    values, plain, warm = [1.0, 2.0, -3.0], 0.5, 0.5
    found = [jnp.float32(0.5)] * 2
    for t, value in enumerate(values):
        plain = 0.9 * plain + 0.1 * value
        decay = min(0.9, (1 + t) / (10 + t))
        warm = decay * warm + (1 - decay) * value
        found = [a(f, jnp.float32(value), None, jnp.asarray(t)) for a, f in zip((constant, warmed), found, strict=True)]
    np.testing.assert_allclose(found, [plain, warm], rtol=1e-6)
    late = warmed(jnp.float32(0), jnp.float32(1), None, jnp.asarray(10_000))
    np.testing.assert_allclose(late, 0.1, rtol=1e-6)


def test_averages_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="schedule_free_adamw averages the parameters itself"):
        make_average(FREE, 0.9)
    with pytest.raises(ValueError, match=r"ema_warmup needs train\.ema_decay"):
        make_average(OptimizerConfig(), None, True)
    assert make_average(OptimizerConfig(), None) is None


@pytest.mark.parametrize("kind", ["moving", "schedule-free"])
def test_an_average_is_sharded_saved_and_restored(kind, tmp_path):
    fields = {"optimizer": FREE} if kind == "schedule-free" else {"ema_decay": 0.9, "ema_warmup": True}
    made = experiment(tmp_path, steps=4, **fields)
    result = fit(made)
    kernel, average = result.state.params["dense"]["kernel"], result.state.ema["dense"]["kernel"]
    assert average.sharding == kernel.sharding
    assert not average.sharding.is_fully_replicated
    assert float(jnp.abs(average - kernel).max()) > 0
    checkpoints = Checkpoints(tmp_path / "checkpoints", made.config.checkpoint, read_only=True)
    restored = checkpoints.restore(4, result.program.abstract_state)
    checkpoints.close()
    assert restored.ema["dense"]["kernel"].sharding == kernel.sharding
    np.testing.assert_array_equal(restored.ema["dense"]["kernel"], average)
    np.testing.assert_array_equal(restored.variables()["params"]["dense"]["kernel"], average)
    assert result.program.evaluate(restored, made.eval_data) == result.metrics


def test_schedule_free_begins_at_pretrained_parameters(tmp_path):
    def pretrained(variables):
        dense = {"kernel": np.full((128, 256), 0.5, np.float32), "bias": np.ones(256, np.float32)}
        return {**variables, "params": {"dense": dense}}

    made = dataclasses.replace(experiment(tmp_path, optimizer=FREE), initial=pretrained)
    state = Program(made).init()
    held = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if "z" in str(path)]
    for kernel in (state.params["dense"]["kernel"], state.ema["dense"]["kernel"], held[-1]):
        np.testing.assert_array_equal(kernel, 0.5)


@pytest.mark.parametrize(
    "name", [n if n in ("adamw", *WHOLE_TENSORS) else pytest.param(n, marks=pytest.mark.slow) for n in ALGORITHMS]
)
def test_every_algorithm_steps_on_a_mesh_as_on_one_device(name, tmp_path):
    rules = (Rule("dense/kernel", tensor_parallel(1)), Rule(".*", fsdp))
    momentum = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {}
    # Near a gradient of zero rounding turns the sign of a first step.
    smooth = {"eps": 1e-2} if "eps" in ALGORITHMS[name].arguments else {}
    optimizer = OptimizerConfig(
        name=name, learning_rate=1e-2, schedule=ScheduleConfig("constant"), **momentum, **smooth
    )

    def two_steps(mesh, devices=None):
        program = Program(experiment(tmp_path, mesh=mesh, rules=rules, optimizer=optimizer), devices)
        state, data = program.init(), program.experiment.train_data
        for k in range(2):
            state, _ = program.train_step(state, program.put(data.batch(k), data.spec))
        return jax.tree.map(np.asarray, state.params), int(state.step)

    alone, steps = two_steps(MeshConfig(), jax.devices()[:1])
    sharded, same = two_steps(MeshConfig(fsdp=2, tensor=4))
    assert steps == same == 2
    agree = [np.abs(a - b) <= 1e-5 for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(sharded), strict=True)]
    assert np.mean(np.concatenate([x.ravel() for x in agree])) > 0.999


def test_four_micro_batches_equal_one_batch_and_the_schedule_counts_updates(tmp_path):
    schedule = ScheduleConfig("linear", warmup_steps=3)
    optimizer = OptimizerConfig(learning_rate=1e-2, eps=1e-2, clip_norm=0.5, schedule=schedule)

    def after(accumulate, steps=5):
        made = experiment(
            tmp_path,
            steps=steps,
            accumulate=accumulate,
            optimizer=optimizer,
            train_data=Vectors(None, batch_size=32),
            mesh=MeshConfig(),
        )
        program = Program(made, jax.devices()[:1])
        state, data = program.init(), made.train_data
        for k in range(steps):
            state, _ = program.train_step(state, program.put(data.batch(k), data.spec))
        counts = {int(x) for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.int32}
        return state.params, counts

    whole, counts = after(1)
    parts, same = after(4)
    assert counts == same == {5}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), whole, parts)
