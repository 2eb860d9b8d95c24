"""The first update of every model on every kind of mesh equals that of one device, within a stated bound."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs.swin_imagenet import PRESETS
from flashjax import models
from flashjax.training import MeshConfig, Program, sharding
from tests.golden.tiny import tiny
from tests.golden.tiny_resnet import tiny_resnet
from tests.golden.tiny_text import MIXERS, MODELS, tiny_text

pytestmark = pytest.mark.faults

FIGURES_RTOL = 1e-5
"""Of the loss and of the gradient's norm (measured: 1e-7)."""
PARAMETERS_ATOL = 1e-6
"""Of each updated parameter (measured: 2e-8), of which the update itself is up to 1e-3."""

FAMILIES = {
    "swin": functools.partial(tiny, PRESETS["tiny_1k"]),
    "swinv2": functools.partial(tiny, PRESETS["v2_tiny_w8"]),
    "resnet": functools.partial(tiny_resnet, "resnet20_cifar"),
    **{name: functools.partial(tiny_text, name) for name in MIXERS | MODELS},
}
"""A tiny experiment, by its mesh, for each kind of model."""
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(data=4, tensor=2),
    "hybrid": MeshConfig(replica=2, data=2, fsdp=2),
    "all": MeshConfig(replica=2, data=1, fsdp=2, tensor=2),
    "sequence": MeshConfig(data=4, sequence=2),
    "sequence and tensor": MeshConfig(data=1, fsdp=2, sequence=2, tensor=2),
}
FEWER = {"swin": ("data", "fsdp", "tensor", "hybrid", "all"), "resnet": ("fsdp", "hybrid")}
"""What families that are no language models have: images are no sequence, convolutions are not split by tensor. And
mixers and kinds of FLASH, whose block was on all meshes with others."""
FEWER["swinv2"] = FEWER["swin"]
FEWER |= {name: ("sequence and tensor",) for name in (MIXERS.keys() - MODELS.keys()) | {"flash_quad", "gau"}}
CELLS = [(family, mesh) for family in FAMILIES for mesh in FEWER.get(family, MESHES)]


def test_every_registered_module_is_here():
    tried = {type(make(MeshConfig()).objective.model) for make in FAMILIES.values()}
    assert {type(models.create(name)) for name in models.names()} == tried


@functools.cache
def first_update(family, mesh):
    """(loss, gradient norm, parameters before, parameters after) as host arrays; ``mesh`` None: one device."""
    made = FAMILIES[family](MeshConfig() if mesh is None else MESHES[mesh])
    # A constant rate, since a warm-up's first update is none; and an eps with which Adam's first update is not the
    # gradient's mere sign, which rounding may turn where the gradient is near zero.
    schedule = dataclasses.replace(made.config.optimizer.schedule, kind="constant", warmup_steps=0, late_by_one=False)
    adam = {"eps": 1e-3} if made.config.optimizer.name == "adamw" else {}
    optimizer = dataclasses.replace(made.config.optimizer, learning_rate=1e-3, schedule=schedule, **adam)
    made = dataclasses.replace(made, config=dataclasses.replace(made.config, optimizer=optimizer))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SMALL", 256)  # the tiny model's kernels would stay whole under fsdp
        program = Program(made, jax.devices()[:1] if mesh is None else None)
    state = program.init()
    split = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
    if mesh is not None:
        # FLASH has three kernels for tensor, which a scan stacks.
        assert len(split) >= (3 if max(MESHES[mesh].fsdp, MESHES[mesh].tensor) > 1 else 0), "kernels are split"
        assert program.mesh.size == 8
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = program.train_step(state, program.put(made.train_data.batch(0), made.train_data.spec))
    return metrics["loss"].item(), metrics["grad_norm"].item(), before, jax.tree.map(np.asarray, state.params)


@pytest.mark.slow  # compiling takes all the time; tests/golden holds the losses of one mesh
@pytest.mark.parametrize(("family", "mesh"), CELLS)
def test_first_update_equals_one_device(family, mesh):
    loss, norm, before, after = first_update(family, None)
    loss_here, norm_here, before_here, after_here = first_update(family, mesh)
    moved = max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True))
    assert moved > 100 * PARAMETERS_ATOL, "an update that the bound can see"
    pairs = list(zip(jax.tree.leaves(after), jax.tree.leaves(after_here), strict=True))
    drift = max(np.abs(a - b).max() for a, b in pairs)
    print(
        f"{family} on {mesh}: loss {loss_here / loss - 1:.1e}, norm {norm_here / norm - 1:.1e}, parameters {drift:.1e}"
    )
    np.testing.assert_allclose([loss_here, norm_here], [loss, norm], rtol=FIGURES_RTOL)
    jax.tree.map(np.testing.assert_array_equal, before_here, before)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=PARAMETERS_ATOL), after_here, after)
