"""What programs are compiled with."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flashjax.analysis.topology import open_topology
from flashjax.ops.platform import compiler_options
from flashjax.training.mesh import MeshConfig, make_mesh


def product(x, kernel):
    return x @ kernel


def column_sums(x, kernel):
    del kernel
    return (x * x).sum(0)


@pytest.mark.parametrize(("backward", "handed_on"), [(False, []), (True, [column_sums])])
def test_on_a_cpu_ynnpack_has_the_sums_of_a_backward_pass_alone(backward, handed_on):
    x, kernel = (
        jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32) for shape in [(512, 64), (64, 64)]
    )
    options = compiler_options(backward=backward)
    assert options, "this XLA does not know the setting: measure again what it does by itself"
    for function in (product, column_sums):
        by_itself, ours = (jax.jit(function, compiler_options=o).lower(x, kernel).compile() for o in ({}, options))
        assert "ynn_fusion" in by_itself.as_text()
        assert ("ynn_fusion" in ours.as_text()) == (function in handed_on)
        np.testing.assert_allclose(ours(x, kernel), by_itself(x, kernel), rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu (the extra plan)")
def test_on_tpus_a_split_weight_is_gathered_and_not_sent_around_a_ring():
    mesh = make_mesh(MeshConfig(fsdp=16), open_topology("v5e:4x4").devices)
    rows, columns = (NamedSharding(mesh, spec) for spec in (PartitionSpec("fsdp"), PartitionSpec(None, "fsdp")))
    x = jax.ShapeDtypeStruct((32, 8192, 768), jnp.bfloat16, sharding=rows)
    kernel = jax.ShapeDtypeStruct((768, 3072), jnp.bfloat16, sharding=columns)

    def loss(kernel, x):
        return (jnp.tanh(x @ kernel) @ kernel.T).astype(jnp.float32).sum()

    by_itself, ours = (
        jax.jit(jax.grad(loss), compiler_options=options).lower(kernel, x).compile().as_text()
        for options in ({}, compiler_options(backward=True, platform="tpu"))
    )
    assert "collective-permute" in by_itself, "this compiler makes no rings by itself: plan again without the option"
    assert "collective-permute" not in ours
    assert "all-gather" in ours


def test_gpus_are_left_alone():
    assert compiler_options(backward=True, platform="gpu") == compiler_options(backward=False, platform="gpu") == {}


def test_a_setting_that_xla_does_not_know_is_left_out(monkeypatch):
    def refuse(*_, **options):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option: " + str(options))

    monkeypatch.setattr(jax, "jit", refuse)
    assert compiler_options.__wrapped__(backward=True) == {}
