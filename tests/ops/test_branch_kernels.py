"""Kernels of branches, interpreted on the CPU: the branch and its gradients as layers compute them, on a mesh too."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flashjax.layers.mlp import gelu
from flashjax.ops import branch_kernels as branches
from flashjax.ops import tpu_kernel
from flashjax.training.mesh import MeshConfig, make_mesh
from flashjax.training.sharding import on_mesh

K, F = 12, 24


def norm(x, weights):
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights.scale + weights.offset


def add(x, factor, mixed):
    return (x.astype(jnp.float32) + factor.astype(jnp.float32)[:, None, None, None] * mixed).astype(x.dtype)


def mlp_by_layers(x, y, factor, mlp, normed, added, embedded):
    hidden = gelu(norm(x, mlp) @ mlp.kernel_in + mlp.bias_in)
    return add(x, factor, hidden @ mlp.kernel_out + mlp.bias_out)


def normed_by_layers(x, y, factor, mlp, normed, added, embedded):
    return x, (norm(x, normed) @ normed.kernel.astype(jnp.float32)).astype(x.dtype)


def four_fold(weights):
    """Of four tokens side by side, no two alike."""
    return branches.NormedWeights(
        *(jnp.concatenate([n * w for n in (1, 2, -1, 0.5)]) for w in weights[:2]),
        jnp.concatenate([n * weights.kernel for n in (1, -2, 0.5, 3)]),
    )


def doubled(x):
    """A map twice as high and as wide, no two tokens alike."""
    H, W = x.shape[1:3]
    of_tokens = jnp.cos(jnp.arange(4.0 * H * W)).reshape(1, 2 * H, 2 * W, 1)
    return (x.repeat(2, 1).repeat(2, 2) * of_tokens).astype(x.dtype)


def merged_by_layers(x, y, factor, mlp, normed, added, embedded):
    x, weights = doubled(x), four_fold(normed)
    merged = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
    return (norm(merged, weights) @ weights.kernel.astype(jnp.float32)).astype(x.dtype)


def added_by_layers(x, y, factor, mlp, normed, added, embedded):
    return add(x, factor, y.astype(jnp.float32) @ added.kernel.astype(jnp.float32) + added.bias)


def embedded_by_layers(x, y, factor, mlp, normed, added, embedded):
    return norm(y.astype(jnp.float32) @ embedded.kernel.astype(jnp.float32) + embedded.bias, embedded).astype(y.dtype)


LAYERS_AND_KERNELS = {
    "product_normed": (
        embedded_by_layers,
        lambda x, y, factor, mlp, normed, added, embedded: branches.product_normed(y, embedded),
    ),
    "mlp_branch": (
        mlp_by_layers,
        lambda x, y, factor, mlp, normed, added, embedded: branches.mlp_branch(x, factor, mlp),
    ),
    "normed_product": (
        normed_by_layers,
        lambda x, y, factor, mlp, normed, added, embedded: branches.normed_product(x, normed),
    ),
    "merged_product": (
        merged_by_layers,
        lambda x, y, factor, mlp, normed, added, embedded: branches.merged_product(doubled(x), four_fold(normed)),
    ),
    "added_product": (
        added_by_layers,
        lambda x, y, factor, mlp, normed, added, embedded: branches.added_product(x, y, factor, added),
    ),
}


def arguments(shape, dtype=jnp.float32):
    """Two maps, a factor, weights of all three, and a key of what comes back."""
    B, H, W, C = shape
    keys = iter(jax.random.split(jax.random.key(0), 20))

    def noise(*shape):
        return jax.random.normal(next(keys), shape)

    mlp = branches.MlpWeights(
        1 + 0.5 * noise(C), noise(C), noise(C, F) / C**0.5, noise(F), noise(F, C) / F**0.5, noise(C)
    )
    normed = branches.NormedWeights(1 + 0.5 * noise(C), noise(C), (noise(C, K) / C**0.5).astype(dtype))
    embedded = branches.EmbeddedWeights((noise(K, C) / K**0.5).astype(dtype), noise(C), 1 + 0.5 * noise(C), noise(C))
    added = branches.AddedWeights((noise(K, C) / K**0.5).astype(dtype), noise(C))
    factor = jnp.where(jnp.arange(B) % 3 == 1, 0.0, 1.25).astype(dtype)
    return (3 * noise(*shape) + 1).astype(dtype), noise(B, H, W, K).astype(dtype), factor, mlp, normed, added, embedded


def pulled_back(branch):
    """Results and gradients for noise that comes back."""

    def both(*args):
        x, y, factor, *weights = args
        out, pull = jax.vjp(lambda x, y, *weights: branch(x, y, factor, *weights), x, y, *weights)
        coming = jax.tree.map(lambda o: jax.random.normal(jax.random.key(o.shape[-1]), o.shape).astype(o.dtype), out)
        return out, pull(coming)

    return both


def assert_same(found, wanted, tolerance):
    def same(a, b):
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=tolerance * max(1, np.abs(np.float32(b)).max()))

    jax.tree.map(same, found, wanted)


@pytest.fixture(params=LAYERS_AND_KERNELS)
def layers_and_kernel(request):
    return LAYERS_AND_KERNELS[request.param]


@pytest.mark.parametrize(
    ("shape", "turn"),
    [
        ((2, 3, 6, 8), 10**6),  # a batch that is filled up, one turn
        ((8, 3, 6, 8), 3 * 8 * 128),  # three positions a turn, three turns of each core
        ((8, 3, 6, 8), 3 * 8 * 4 * 128),  # that of four tokens each
        ((16, 1, 3, 8), 3 * 8 * 128),  # all positions, half of the images for each core
        ((24, 1, 3, 8), 64),  # a third of the images, one position, a core for all
    ],
)
@pytest.mark.parametrize("cores", [1, 2])
def test_a_branch_and_its_gradients_are_those_of_layers(shape, turn, cores, layers_and_kernel, monkeypatch):
    monkeypatch.setattr(tpu_kernel, "cores_of_device", lambda: cores)
    monkeypatch.setattr(tpu_kernel, "TURN", turn)
    monkeypatch.setattr(tpu_kernel, "ROWS", 1)
    args = arguments(shape)
    jax.clear_caches()
    wanted, found = (jax.jit(pulled_back(f))(*args) for f in layers_and_kernel)
    assert_same(found, wanted, 2e-6)


def test_a_large_layer_is_computed_by_some_units_at_a_time(layers_and_kernel, monkeypatch):
    monkeypatch.setattr(branches, "AT_ONCE", 64)
    monkeypatch.setattr(branches, "LANES", 4)
    assert branches._loops(8, F) == branches._loops(8, K) == branches._loops(4 * 8, K) == 3
    assert branches._loops(8, 8) == 1  # as many as at once
    assert branches._loops(8, K + 1) == 1  # a tile of lanes does not divide them
    args = arguments((2, 2, 3, 8))
    jax.clear_caches()
    wanted, found = (jax.jit(pulled_back(f))(*args) for f in layers_and_kernel)
    assert_same(found, wanted, 2e-6)


@pytest.mark.parametrize(
    ("row", "positions", "batch", "tokens", "cores", "found"),
    [
        (3136, 3136, 64, 1024, 2, (16, 64, 2)),
        (49, 49, 64, 256, 2, (7, 32, 2)),  # the cores share the images
        (196, 196, 64, 341, 2, (7, 32, 2)),  # 4 x 64 are more, and no two cores can share 49 turns
        (196, 196, 64, 341, 1, (4, 64, 1)),
        (49, 49, 96, 256, 2, (7, 24, 2)),
        (28, 784, 64, 256, 2, (4, 64, 2)),
        (7, 49, 8, 256, 2, (7, 8, 1)),  # no halves of it
        (13, 169, 8, 4, 2, (1, 8, 1)),  # as few as there can be
    ],
)
def test_a_turn_takes_tokens_that_divide_and_that_cores_can_share(row, positions, batch, tokens, cores, found):
    assert tpu_kernel._turn(row, positions, batch, tokens, cores) == found


def test_bfloat16_rounds_as_products_do(layers_and_kernel):
    layers, kernel = layers_and_kernel
    args = arguments((8, 2, 2, 8), jnp.bfloat16)
    wanted = jax.jit(pulled_back(layers))(*(a.astype(jnp.float32) for a in args[:3]), *args[3:])
    found = jax.jit(pulled_back(kernel))(*args)
    assert {a.dtype for a in jax.tree.leaves(found[0])} == {jnp.dtype("bfloat16")}
    assert [g.dtype for g in jax.tree.leaves(found[1])] == [a.dtype for a in jax.tree.leaves((*args[:2], *args[3:]))]
    assert_same(found, wanted, 0.02)


@pytest.mark.parametrize(("kind", "tokens"), [("TPU v5 lite", 256), ("TPU v6 lite", 512), ("TPU7x", 512)])
def test_a_turn_of_wide_maps_has_tokens_for_the_matrix_unit(kind, tokens, layers_and_kernel, monkeypatch):
    seen = []
    turn_of = tpu_kernel._turn
    monkeypatch.setattr(tpu_kernel, "_turn", lambda *args: (seen.append(args[3]), turn_of(*args))[1])
    monkeypatch.setattr(tpu_kernel, "TURN", 1)
    device = jax.sharding.AbstractDevice(kind, num_cores=1, platform="tpu")
    jax.clear_caches()
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)):
        jax.eval_shape(layers_and_kernel[1], *arguments((8, 2, 2, 8)))
    assert seen == [tokens]


@pytest.mark.parametrize(("rough", "of_share", "of_gelu"), [(False, 2e-7, 4e-7), (True, 5.1e-5, 2.6e-5)])
def test_the_normal_distribution_is_as_near_as_is_said(rough, of_share, of_gelu, monkeypatch):
    monkeypatch.setattr(branches.pl, "reciprocal", lambda x, approx: 1 / x)  # interpreted it is that of bfloat16
    x = jnp.concatenate([jnp.linspace(-12, 12, 4001), jnp.array([-1e30, -40.0, 40.0, 1e30])])
    share, density = branches._normal(x, rough)
    exact = jax.scipy.stats.norm.cdf(x)
    np.testing.assert_allclose(share, exact, atol=of_share)
    np.testing.assert_allclose(x * share, x * exact, atol=of_gelu, rtol=1e-6)
    np.testing.assert_allclose(density, jax.scipy.stats.norm.pdf(x), atol=1e-7)


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"data": 3}])
def test_each_device_of_a_mesh_computes_its_own_examples(axes, layers_and_kernel):
    layers, kernel = layers_and_kernel
    args = arguments((8, 2, 2, 8))
    wanted = jax.jit(pulled_back(layers))(*args)
    mesh = make_mesh(MeshConfig(**axes), jax.devices()[: int(np.prod(list(axes.values())))])
    whole = jax.device_put(args, NamedSharding(mesh, PartitionSpec()))
    assert_same(jax.jit(on_mesh(pulled_back(kernel), mesh))(*whole), wanted, 2e-6)


def test_devices_add_their_gradients_of_bfloat16_weights_in_float32(layers_and_kernel):
    args = arguments((8, 2, 2, 8), jnp.bfloat16)
    whole = jax.device_put(args, NamedSharding(mesh := make_mesh(MeshConfig(data=8)), PartitionSpec()))
    lowered = jax.jit(on_mesh(pulled_back(layers_and_kernel[1]), mesh)).lower(*whole)
    summed = re.findall(r"stablehlo.all_reduce.*?\}\) : \(tensor<([^>]*)>", lowered.as_text(), re.DOTALL)
    assert summed and all(of.endswith("xf32") for of in summed)


def test_what_kernels_cannot_do_is_refused(layers_and_kernel):
    _, kernel = layers_and_kernel
    x, y, *others = arguments((1, 2, 2, 8))
    with pytest.raises(ValueError, match="not float16"):
        kernel(x.astype(jnp.float16), y.astype(jnp.float16), *others)
    gpu = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=1, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(NotImplementedError, match="branches='apart'"):
        kernel(x, y, *others)
