"""Batch statistics in the train step: under fsdp, over eight devices, and with gradient accumulation."""

import dataclasses

import jax
import numpy as np
import pytest

from flashjax.training import MeshConfig, Program
from tests.golden.tiny_resnet import tiny_resnet


def steps(mesh: MeshConfig, count: int, accumulate: int = 1, devices=None):
    experiment = tiny_resnet("resnet20_cifar", mesh)
    train = dataclasses.replace(experiment.config.train, accumulate=accumulate)
    experiment = dataclasses.replace(experiment, config=dataclasses.replace(experiment.config, train=train))
    program = Program(experiment, devices)
    state, data = program.init(), experiment.train_data
    for k in range(count):
        state, metrics = program.train_step(state, program.put(data.batch(k), data.spec))
        assert float(metrics["applied"]) == 1
    return program, state


def same(one, other, rtol=2e-4):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.linalg.norm(np.asarray(a) - np.asarray(b)) <= rtol * np.linalg.norm(np.asarray(b)) + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_three_steps_on_eight_devices_are_those_of_one(accumulate):
    _, alone = steps(MeshConfig(), 3, accumulate, jax.devices()[:1])
    program, shared = steps(MeshConfig(data=4, fsdp=2), 3, accumulate)
    kernel = program.shardings.params["stage_2"]["block_0"]["conv2"]["kernel"]
    assert "fsdp" in kernel.spec
    same(shared.params, alone.params)
    same(shared.collections, alone.collections)
    assert np.abs(alone.collections["batch_stats"]["stem_norm"]["mean"]).max() > 0.01


@pytest.mark.slow
def test_micro_batches_have_statistics_of_their_own():
    """Each is normalised by itself, and moves the running statistics that the one before it left."""
    _, state = steps(MeshConfig(), 1, 2, jax.devices()[:1])
    experiment = tiny_resnet("resnet20_cifar", MeshConfig())
    program = Program(experiment, jax.devices()[:1])
    first, goal = program.init(), experiment.objective
    data_key = jax.random.split(jax.random.fold_in(jax.random.key(experiment.config.seed), 0))[0]
    prepared = jax.jit(goal.prepare)(experiment.train_data.batch(0), data_key)
    collections, gradients = first.collections, []
    for half in range(2):
        rows = {name: array[half::2] for name, array in prepared.items()}

        def loss(params, collections=collections, rows=rows):
            value, _, changed = goal.loss({"params": params, **collections}, rows, {})
            return value, changed

        found, collections = jax.jit(jax.grad(loss, has_aux=True))(first.params)
        gradients.append(found)
    same(state.collections, collections, 1e-5)
    # SGD's first step: rate times (mean gradient + decay times parameter).
    optimizer = experiment.config.optimizer
    moved = jax.tree.map(
        lambda p, a, b: p - optimizer.learning_rate * ((a + b) / 2 + optimizer.decay * p), first.params, *gradients
    )
    same(state.params, moved, 1e-5)
