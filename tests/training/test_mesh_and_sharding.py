"""Meshes and sharding rules: shapes, refusals, and equality of a step on every mesh with one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from flashjax.training import MeshConfig, OptimizerConfig, Program
from flashjax.training.mesh import make_mesh, resolve_shape
from flashjax.training.sharding import FSDP_RULES, Rule, ShardingError, fsdp, lint, shardings_for, tensor_parallel
from tests.training.toy import experiment

BIG = jax.ShapeDtypeStruct((2048, 4099), jnp.float32)  # 32 MiB; 4099 is prime
TREE = {
    "a": {"kernel": jax.ShapeDtypeStruct((256, 512), jnp.float32), "bias": jax.ShapeDtypeStruct((512,), jnp.float32)}
}


def test_minus_one_is_what_is_left():
    assert resolve_shape(MeshConfig(data=-1, fsdp=4), 8)["data"] == 2
    assert make_mesh(MeshConfig(data=2, tensor=4)).shape["tensor"] == 4


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (MeshConfig(data=3), "asks for 3 devices, but there are 8; products that work: 1, 2, 4"),
        (MeshConfig(data=-1, fsdp=3), "a multiple of 3 devices"),
        (MeshConfig(data=-1, fsdp=-1), "only one mesh axis may be -1"),
        (MeshConfig(data=0), "must be positive or -1"),
    ],
)
def test_meshes_that_do_not_fit(config, text):
    with pytest.raises(ValueError, match=text):
        resolve_shape(config, 8)


def test_fsdp_takes_the_largest_dim_that_divides_and_leaves_small_tensors():
    mesh = make_mesh(MeshConfig(fsdp=4))
    specs = jax.tree.map(lambda s: s.spec, shardings_for(TREE, FSDP_RULES, mesh))
    assert specs == {"a": {"kernel": P(None, "fsdp"), "bias": P()}}
    assert fsdp((2048, 4099), mesh) == P("fsdp")


def test_tensor_parallel_then_fsdp():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    assert tensor_parallel(1)((256, 512), mesh) == P("fsdp", "tensor")
    assert tensor_parallel(0)((256, 512), mesh) == P("tensor", "fsdp")
    rules = (Rule("kernel", tensor_parallel(1)), Rule(".*", fsdp))
    with pytest.raises(
        ShardingError, match=r"b/kernel .*dim 1 of size 7 does not divide over the tensor axis of size 2"
    ):
        shardings_for({"b": {"kernel": jax.ShapeDtypeStruct((4, 7), jnp.float32)}}, rules, mesh)


def test_lint_names_dead_rules_and_large_whole_tensors():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    with pytest.raises(ShardingError, match="rule 'kernle' is the first match of no parameter"):
        lint(TREE, (Rule("kernle", fsdp), *FSDP_RULES), mesh)
    whole = (Rule("x", lambda shape, mesh: P()),)
    with pytest.raises(ShardingError, match=r"large tensors left replicated .*x \(2048, 4099\) \(32\.0 MiB\)"):
        lint({"x": BIG}, whole, mesh)
    lint({"x": BIG}, (Rule("x", lambda shape, mesh: P(), accept_replicated=True),), mesh)
    lint({"x": BIG}, whole, make_mesh(MeshConfig(data=8)))
    with pytest.raises(ShardingError, match="no sharding rule matches 'a/bias'"):
        shardings_for(TREE, (Rule("kernel", fsdp),), mesh)


@functools.cache
def first_step(config, accumulate=1, one_device=False):
    """(parameters, average, running mean, figures) after it."""
    rules = (Rule("dense/kernel", tensor_parallel(1)), Rule(".*", fsdp))
    # With the usual eps Adam's first update is the gradient's sign, which rounding may turn where it is near zero.
    optimizer = OptimizerConfig(learning_rate=1e-2, eps=1e-2)
    made = experiment("unused", mesh=config, rules=rules, accumulate=accumulate, ema_decay=0.9, optimizer=optimizer)
    program, data = Program(made, jax.devices()[:1] if one_device else None), made.train_data
    state, metrics = program.train_step(program.init(), program.put(data.batch(0), data.spec))
    figures = metrics["loss"], metrics["grad_norm"]
    return jax.tree.map(np.asarray, (state.params, state.ema, state.collections, figures))


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=8),
        MeshConfig(data=2, fsdp=4),
        MeshConfig(replica=2, data=2, tensor=2),
        MeshConfig(fsdp=2, tensor=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_on_any_mesh_equals_one_device(mesh, accumulate):
    alone, sharded = first_step(MeshConfig(), one_device=True), first_step(mesh, accumulate)
    if accumulate > 1:  # a running mean moves once a micro-batch
        alone, sharded = ([tree for i, tree in enumerate(trees) if i != 2] for trees in (alone, sharded))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), alone, sharded)


@pytest.mark.parametrize(
    ("mesh", "platform", "laid_out"),
    [(MeshConfig(data=8), "tpu", 1), (MeshConfig(fsdp=8), "tpu", 0), (MeshConfig(data=8), "gpu", 0)],
)
def test_for_tpus_large_gradients_of_whole_parameters_lie_row_by_row(mesh, platform, laid_out, tmp_path):
    program = Program(experiment(tmp_path, mesh=mesh))
    device = jax.sharding.AbstractDevice("named", num_cores=1, platform=platform)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)):
        jaxpr = jax.make_jaxpr(program.lay_out)(program.abstract_state.params)
    constrained = [equation for equation in jaxpr.eqns if equation.primitive.name == "layout_constraint"]
    assert len(constrained) == laid_out
    assert all(equation.params["layout"].major_to_minor == (0, 1) for equation in constrained)


def test_a_step_updates_with_gradients_as_they_were_laid_out(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Program, "lay_out", lambda self, gradients: seen.append(gradients) or gradients)
    program = Program(experiment(tmp_path))
    assert program.traced_step and len(seen) == 1
    assert jax.tree.map(jnp.shape, seen[0]) == jax.tree.map(jnp.shape, program.abstract_state.params)
