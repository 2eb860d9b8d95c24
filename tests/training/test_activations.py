"""Logical names of activations on a mesh: batches stay split through the model, and the numbers stay what they are."""

import functools
import math
import re

import jax
import numpy as np
import pytest
from flax.linen.spmd import with_logical_constraint

from configs.swin_imagenet import PRESETS
from flashjax.analysis.collectives import KINDS, collectives
from flashjax.training import MeshConfig, Program, sharding
from flashjax.training.mesh import batch_sharding, make_mesh
from flashjax.training.sharding import ACTIVATIONS, on_mesh
from tests.golden.tiny import BATCH, SIZE, tiny

TOKENS = (SIZE // 4) ** 2
WHOLE = BATCH * TOKENS * 16
"""Elements of an activation of the first stage, all devices' rows together; of the second it is half of that."""


def lowered(mesh, devices):
    program = Program(tiny(PRESETS["tiny_1k"], mesh), jax.devices()[:devices])
    batch = program.abstract_batch(program.experiment.train_data.spec)
    return program, program.train_step.lower(program.abstract_state, batch)


@functools.cache
def eight():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SMALL", 64)  # else nothing of so small a model is split over fsdp
        program, text = lowered(MeshConfig(data=2, fsdp=4), 8)
    return program, text.as_text(), text.compile()


@functools.cache
def alone():
    return lowered(MeshConfig(), 1)


def test_ten_names_with_axes_of_the_mesh():
    names = dict(ACTIVATIONS)
    assert len(names) == len(ACTIVATIONS) <= 10
    assert names["batch"] == ("replica", "data", "fsdp") and names["heads"] == names["mlp"] == "tensor"


def test_a_name_becomes_a_sharding_only_on_a_mesh():
    def named(x):
        return with_logical_constraint(2 * x, ("batch", "token", "heads"))

    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    x = jax.device_put(np.ones((8, 3, 4), np.float32), batch_sharding(mesh))
    out = jax.jit(on_mesh(named, mesh))(x)
    assert out.sharding.shard_shape(out.shape) == (2, 3, 2)
    assert on_mesh(named, make_mesh(MeshConfig(), jax.devices()[:1])) is named


@pytest.mark.slow
def test_every_constraint_of_the_model_splits_the_batch():
    _, text, _ = eight()
    constraints = [line for line in text.splitlines() if "sharding_constraint" in line]
    blocks = 3
    assert len(constraints) >= 2 * blocks  # what enters the windows and what leaves the block, and their gradients
    assert all('[{"data", "fsdp"}' in line or '[{"replica", "data", "fsdp"}' in line for line in constraints)
    assert "sharding_constraint" not in alone()[1].as_text()


@pytest.mark.slow
def test_no_device_holds_or_receives_a_whole_activation():
    program, _, compiled = eight()
    hlo = compiled.as_text()
    shapes = {dims for dims in re.findall(r"\b(?:f32|bf16|u32|pred)\[([\d,]+)\]", hlo)}
    largest = max(shapes, key=lambda dims: math.prod(map(int, dims.split(","))))
    assert math.prod(map(int, largest.split(","))) < WHOLE, f"[{largest}] is on a device"
    moved = collectives(hlo)
    kinds = {kind: [c.bytes for c in moved if c.kind == kind] for kind in KINDS}
    weights = [4 * x.size for x in jax.tree.leaves(program.abstract_state.params)]
    assert max(weights) < 4 * WHOLE // 2
    # Each split weight is put together for use (of a bias table, what was looked up), and each gradient summed; none
    # is as large as an activation.
    assert sum(weights) / 2 < sum(kinds["all-gather"]) <= 1.1 * sum(weights)
    assert max(kinds["all-gather"]) <= max(weights)
    assert sum(weights) <= sum(kinds["all-reduce"]) <= 1.5 * sum(weights)
    rows = BATCH // 8 * SIZE * SIZE * 3 * 4  # Mixup's mirror rows, to the device of each
    assert max(kinds["collective-permute"]) <= rows
    assert sum(kinds["all-to-all"]) <= BATCH * 32 * 4  # pooled features, for the gradient of the split head


@pytest.mark.slow
def test_the_step_equals_one_devices():
    program, _, compiled = eight()
    other, text = alone()
    data, found = program.experiment.train_data, []
    for each, step in ((program, compiled), (other, text.compile())):
        state, metrics = step(each.init(), each.put(data.batch(1), data.spec))
        found.append(jax.tree.map(np.asarray, (metrics["loss"], metrics["grad_norm"], state.opt_state)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


@pytest.mark.slow
def test_the_evaluation_equals_one_devices():
    spec = {"image": ((BATCH, SIZE, SIZE, 3), np.uint8), "label": ((BATCH,), np.int32), "mask": ((BATCH,), np.float32)}
    batch = {name: np.ones(shape, dtype) for name, (shape, dtype) in spec.items()}
    found = []
    for mesh, devices in ((MeshConfig(fsdp=4, tensor=2), 8), (MeshConfig(), 1)):
        program = Program(tiny(PRESETS["v2_tiny_w8"], mesh), jax.devices()[:devices])
        shapes = {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in batch.items()}
        zeros = {name: (np.float32(0), np.float32(0)) for name in ("loss", "top1", "top5")}
        found.append(program.eval_step(program.init().variables(), program.put(batch, shapes), zeros))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)
