"""The MLP kernel, interpreted on the CPU: the branch and its gradients as the layers compute them, on a mesh too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flashjax.layers.mlp import gelu
from flashjax.ops import mlp_kernel
from flashjax.training.mesh import MeshConfig, make_mesh
from flashjax.training.sharding import on_mesh


def by_layers(x, factor, weights):
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    normed = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights.scale + weights.offset
    hidden = gelu(normed @ weights.kernel_in + weights.bias_in)
    mixed = hidden @ weights.kernel_out + weights.bias_out
    return (x32 + factor.astype(jnp.float32)[:, None, None, None] * mixed).astype(x.dtype)


def arguments(shape, dtype=jnp.float32, hidden=24):
    B, _, _, C = shape
    keys = iter(jax.random.split(jax.random.key(0), 9))

    def noise(*shape):
        return jax.random.normal(next(keys), shape)

    weights = mlp_kernel.Weights(
        1 + 0.5 * noise(C), noise(C), noise(C, hidden) / C**0.5, noise(hidden), noise(hidden, C) / 5, noise(C)
    )
    factor = jnp.where(jnp.arange(B) % 3 == 1, 0.0, 1.25).astype(dtype)
    return (3 * noise(*shape) + 1).astype(dtype), factor, weights, noise(*shape).astype(dtype)


def pulled_back(branch):
    def both(x, factor, weights, ct):
        out, pull = jax.vjp(lambda x, weights: branch(x, factor, weights), x, weights)
        return out, *pull(ct)

    return both


def assert_same(found, wanted, atol):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), atol=atol * max(1, np.abs(b).max())),
        found,
        wanted,
    )


@pytest.mark.parametrize(
    ("shape", "turn"),
    [
        ((2, 3, 6, 8), 10**6),  # a batch that is filled up, one turn
        ((8, 3, 6, 8), 3 * 64),  # three positions a turn, three turns of each core
        ((24, 1, 3, 8), 64),  # a third of the images, one position, a core for all
    ],
)
def test_the_branch_and_its_gradients_are_those_of_the_layers(shape, turn, monkeypatch):
    monkeypatch.setattr(mlp_kernel, "TURN", turn)
    args = arguments(shape)
    jax.clear_caches()
    wanted, found = (jax.jit(pulled_back(f))(*args) for f in (by_layers, mlp_kernel.branch))
    assert_same(found, wanted, 2e-6)


def test_bfloat16_rounds_as_the_products_do():
    x, factor, weights, ct = arguments((8, 2, 2, 8), jnp.bfloat16)
    wanted = jax.jit(pulled_back(by_layers))(x.astype(jnp.float32), factor, weights, ct.astype(jnp.float32))
    found = jax.jit(pulled_back(mlp_kernel.branch))(x, factor, weights, ct)
    assert found[0].dtype == found[1].dtype == jnp.bfloat16 and found[2].kernel_in.dtype == jnp.float32
    assert_same(found, wanted, 0.02)


def test_the_normal_distribution_is_within_a_millionth():
    x = jnp.linspace(-9, 9, 4001)
    share, density = mlp_kernel._normal(x, rough=False)
    np.testing.assert_allclose(share, jax.scipy.stats.norm.cdf(x), atol=2e-7)
    np.testing.assert_allclose(density, jax.scipy.stats.norm.pdf(x), atol=1e-7)


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"data": 3}])
def test_each_device_of_a_mesh_computes_its_own_examples(axes):
    args = arguments((8, 2, 2, 8))
    wanted = jax.jit(pulled_back(by_layers))(*args)
    size = int(np.prod(list(axes.values())))
    mesh = make_mesh(MeshConfig(**axes), jax.devices()[:size])
    whole = jax.device_put(args, NamedSharding(mesh, PartitionSpec()))
    found = jax.jit(on_mesh(pulled_back(mlp_kernel.branch), mesh))(*whole)
    assert_same(found, wanted, 2e-6)


def test_what_it_cannot_do_is_refused():
    x, factor, weights, _ = arguments((1, 2, 2, 8))
    with pytest.raises(ValueError, match="not float16"):
        mlp_kernel.branch(x.astype(jnp.float16), factor, weights)
    gpu = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=1, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(NotImplementedError, match="mlp='dense'"):
        mlp_kernel.branch(x, factor, weights)
