"""The window kernel, interpreted on the CPU: the attention and the gradients of the plain products, on a mesh too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flashjax.ops import paired_windows as paired
from flashjax.ops import window_kernel
from flashjax.training.mesh import MeshConfig, make_mesh
from flashjax.training.sharding import on_mesh


def arguments(B, L, h, d, N, biases, dtype=jnp.float32):
    """q, k, v, bias and a cotangent of the result."""
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v, ct = (jax.random.normal(key, (B, L, h, d, N)).astype(dtype) for key in keys[:4])
    return q, k, v, jax.random.normal(keys[4], (biases, h, N, N)), ct


def pulled_back(attend):
    def both(q, k, v, bias, ct):
        out, pull = jax.vjp(attend, q, k, v, bias)
        return out, *pull(ct)

    return jax.jit(both)


@pytest.mark.parametrize(
    ("shape", "biases"),
    [((2, 2, 1, 4, 8), 1), ((4, 2, 2, 4, 9), 2), ((1, 1, 14, 2, 4), 1)],
    ids=["one bias", "a bias for each rectangle", "more heads than a turn takes"],
)
def test_attention_and_its_gradients_are_those_of_the_products(shape, biases):
    args = arguments(*shape, biases)
    wanted, found = pulled_back(paired.attend)(*args), pulled_back(window_kernel.attend)(*args)
    for name, a, b in zip(("out", *"qkvb"), found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


def test_bfloat16_rounds_as_the_products_do():
    args = arguments(1, 2, 1, 8, 18, 1, jnp.bfloat16)
    wanted, found = pulled_back(paired.attend)(*args), pulled_back(window_kernel.attend)(*args)
    for name, a, b in zip(("out", *"qkvb"), found, wanted, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=0.05, err_msg=name)


def test_tokens_apart_share_nothing_and_large_logits_do_not_overflow():
    q = jnp.full((1, 1, 1, 1, 4), 300.0)
    values = jnp.arange(4.0).reshape(1, 1, 1, 1, 4)
    bias = jnp.where(jnp.arange(4)[:, None] // 2 == jnp.arange(4) // 2, 0.0, paired.APART)[None, None]
    found = jax.jit(window_kernel.attend)(q, q, values, bias)
    np.testing.assert_allclose(found.ravel(), [0.5, 0.5, 2.5, 2.5], rtol=1e-6)


@pytest.mark.parametrize(("axes", "heads"), [({"fsdp": 2, "tensor": 2}, 4), ({"tensor": 2}, 3)])
def test_each_device_of_a_mesh_computes_its_own(axes, heads):
    args = arguments(8, 1, heads, 4, 4, 1)
    wanted = pulled_back(paired.attend)(*args)
    mesh = make_mesh(MeshConfig(**axes))
    whole = jax.device_put(args, NamedSharding(mesh, PartitionSpec()))
    found = jax.jit(on_mesh(pulled_back(window_kernel.attend), mesh))(*whole)
    for name, a, b in zip(("out", *"qkvb"), found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


def test_a_gpu_is_refused():
    gpu = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=1, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(NotImplementedError, match="attention='windows'"):
        window_kernel.attend(*arguments(1, 1, 1, 4, 9, 1)[:4])


@pytest.mark.parametrize(
    ("images", "heads", "tokens", "block"), [(64, 3, 98, (3, 4)), (64, 24, 49, (12, 1)), (7, 4, 576, (4, 1))]
)
def test_a_turn_takes_a_dozen_pairs_of_heads_and_images(images, heads, tokens, block):
    assert window_kernel._block(images, heads, tokens) == block
