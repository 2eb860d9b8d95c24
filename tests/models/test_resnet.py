"""Residual networks: sizes to the unit, the tree, shapes, errors, precision, remat, batches over many devices."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from flashjax import models
from flashjax.models.resnet import ResNet, ResNetConfig
from flashjax.models.resnet_variants import cifar, wide
from flashjax.training.mesh import MeshConfig, batch_sharding, make_mesh
from flashjax.training.sharding import on_mesh

TORCHVISION = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
}
"""As its documentation states them."""
SETS = {"cifar10": (10, 3), "cifar100": (100, 3), "fashion_mnist": (10, 1)}
RANDOM_ERASING = {
    "resnet20_cifar": (272_474, 278_324, 272_186),
    "resnet32_cifar": (466_906, 472_756, 466_618),
    "resnet44_cifar_bottleneck": (684_058, 707_188, 683_770),
    "resnet56_cifar_bottleneck": (869_530, 892_660, 869_242),
    "resnet110_cifar_bottleneck": (1_704_154, 1_727_284, 1_703_866),
    "wrn_28_10": (36_479_194, 36_536_884, 36_478_906),
}
"""Of its code, on each of SETS."""
OTHERS = {
    "resnet8_cifar": 78_042,
    "resnet20_cifar_basic": 269_722,
    "resnet32_cifar_basic": 464_154,
    "resnet44_cifar_basic": 658_586,
    "resnet56_cifar_basic": 853_018,
    "resnet110_cifar_basic": 1_727_962,
    "fixup_resnet20_cifar_basic": 268_393,
    "fixup_resnet32_cifar_basic": 461_959,
    "fixup_resnet44_cifar_basic": 655_525,
    "fixup_resnet56_cifar_basic": 849_091,
    "fixup_resnet110_cifar_basic": 1_720_138,
    "preact_resnet20_cifar": 272_282,
    "preact_resnet32_cifar": 466_714,
    "preact_resnet44_cifar_bottleneck": 683_162,
    "preact_resnet56_cifar_bottleneck": 868_634,
    "preact_resnet110_cifar_bottleneck": 1_703_258,
    "preact_resnet18_cifar": 11_171_146,
    "resnext29_8x64d_cifar": 34_426_698,
}
"""He et al. state 0.27, 0.46, 0.66, 0.85 and 1.7 million; Xie et al. 34.4."""


def abstract(model: ResNet):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, model.config.in_chans))))


def count(model: ResNet) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(model)["params"]))


def quick_where_shallow(names):
    """Tracing takes its time by the depth, which is one number of a configuration."""
    deep = ("44", "56", "101", "110", "152")
    return [pytest.param(n, marks=pytest.mark.slow) if any(d in n for d in deep) else n for n in names]


@pytest.mark.parametrize("name", quick_where_shallow([*TORCHVISION, *OTHERS]))
def test_parameter_count(name):
    assert count(models.create(name)) == (TORCHVISION | OTHERS)[name]


@pytest.mark.parametrize("name", quick_where_shallow(RANDOM_ERASING))
def test_parameter_count_of_random_erasing(name):
    counts = [count(models.create(name, num_classes=k, in_chans=c)) for k, c in SETS.values()]
    assert tuple(counts) == RANDOM_ERASING[name]


def test_every_name_is_counted():
    assert set(models.names("*resne[tx]*")) | {"wrn_28_10"} == {*TORCHVISION, *RANDOM_ERASING, *OTHERS}


def test_the_tree():
    variables = abstract(models.create("resnet50"))
    params, stats = variables["params"], variables["batch_stats"]
    block = params["stage_3"]["block_0"]
    assert block["conv2"]["kernel"].shape == (3, 3, 512, 512)
    assert block["shortcut_conv"]["kernel"].shape == (1, 1, 1024, 2048)
    assert params["head"]["kernel"].shape == (2048, 1000)
    assert stats["stage_3"]["block_0"]["norm3"]["var"].shape == (2048,)
    assert not any("bias" in name for name in jax.tree.leaves(block["conv1"].keys()))
    grouped = abstract(models.create("resnext50_32x4d"))["params"]["stage_0"]["block_0"]["conv2"]["kernel"]
    assert grouped.shape == (3, 3, 4, 128)
    padded = abstract(models.create("resnet20_cifar_basic"))["params"]
    assert not any("shortcut" in name for name in padded["stage_1"]["block_0"])


SMALL: dict[str, ResNetConfig] = {
    "basic": ResNetConfig(num_classes=5, depths=(1, 1), widths=(8, 16), stem_width=8),
    "bottleneck": ResNetConfig(num_classes=5, depths=(1, 1), widths=(8, 16), block="bottleneck", stem_width=8),
    "cifar": dataclasses.replace(cifar(8), num_classes=5),
    "padding": dataclasses.replace(cifar(8, shortcut="padding"), num_classes=5),
    "wide": dataclasses.replace(wide(10, 1, drop_rate=0.3), num_classes=5),
}


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def made(name: str, **overrides):
    model = ResNet(dataclasses.replace(SMALL[name], **overrides))
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, model.config.in_chans)))


@functools.partial(jax.jit, static_argnames=("model", "train", "method", "mutable"))
def apply(model, variables, x, **options):
    return model.apply(variables, x, rngs={"dropout": jax.random.key(1)}, **options)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (37, 51)])
def test_any_image_size(name, size):
    model, variables = made(name)
    half = lambda n: -(-n // 2)  # noqa: E731
    first = tuple(half(half(n)) for n in size) if name in ("basic", "bottleneck") else size
    maps = apply(model, variables, images(2, *size, 3), method="features")
    assert maps[0].shape[1:3] == first and maps[1].shape[1:3] == tuple(map(half, first))
    assert apply(model, variables, images(2, *size, 3)).shape == (2, 5)


def test_images_of_one_channel():
    model, variables = made("cifar", in_chans=1)
    assert apply(model, variables, images(3, 28, 28, 1)).shape == (3, 5)
    with pytest.raises(ValueError, match="images of 3 channels, but in_chans is 1"):
        model.apply(variables, images(3, 28, 28, 3))


def test_without_a_head_the_features_come_out():
    model, variables = made("bottleneck", num_classes=0)
    assert "head" not in variables["params"]
    assert apply(model, variables, images(2, 32, 32, 3)).shape == (2, 64)


@pytest.mark.parametrize("name", SMALL)
def test_training_changes_statistics_and_evaluating_does_not(name):
    model, variables = made(name)
    x = images(4, 32, 32, 3)
    _, changed = apply(model, variables, x, train=True, mutable="batch_stats")
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(changed["batch_stats"])
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))
    np.testing.assert_array_equal(apply(model, variables, x), apply(model, variables, x))


def test_dropout_of_wide_nets_draws_in_training_alone():
    model, variables = made("wide")
    x = images(4, 32, 32, 3)
    plain, _ = made("wide", drop_rate=0.0)
    np.testing.assert_array_equal(apply(model, variables, x), apply(plain, variables, x))
    trained = [apply(m, variables, x, train=True, mutable="batch_stats")[0] for m in (model, plain)]
    assert np.abs(trained[0] - trained[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["bottleneck", "wide"])
def test_remat_changes_no_number(name):
    x = images(4, 32, 32, 3)
    plain, variables = made(name, drop_rate=0.0)
    remat = ResNet(dataclasses.replace(plain.config, remat=True))

    def gradient(model):
        def loss(params):
            out, changed = model.apply({**variables, "params": params}, x, train=True, mutable="batch_stats")
            return (out**2).sum(), changed

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), gradient(plain), gradient(remat))


def test_bfloat16_keeps_float32_where_it_matters():
    model, variables = made("cifar", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    x = images(8, 32, 32, 3)
    logits, changed = apply(model, variables, x, train=True, mutable="batch_stats")
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == {jnp.dtype("float32")}
    assert apply(model, variables, x, method="features")[0].dtype == jnp.bfloat16
    exact, _ = made("cifar")
    np.testing.assert_allclose(apply(exact, variables, x), apply(model, variables, x), atol=0.1)


def test_blocks_that_begin_as_their_shortcuts():
    model, variables = made("cifar", zero_init_residual=True)
    x = images(2, 32, 32, 3)
    stem = nn.relu(model.apply(variables, x, method=lambda m, x: m.stem_norm(m.stem_conv(x))))
    np.testing.assert_allclose(model.apply(variables, x, method="features")[0], stem, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (1, 1)}, "widths .* and depths .* must name the same stages"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16, got 'float16'"),
        ({"groups": 8}, "groups 8 and width_per_group 64 are a bottleneck's"),
        ({"drop_rate": 1.0, "preact": True}, "drop_rate must be at least 0 and below 1, got 1.0"),
        ({"drop_rate": 0.3}, "drop_rate 0.3 is of pre-activation basic blocks"),
        ({"zero_init_residual": True, "preact": True}, "not with preact=True"),
    ],
)
def test_configurations_that_are_none(fields, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**fields)


def test_depths_that_are_none():
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 2 .*, got 21"):
        cifar(21)
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 4 .*, got 20"):
        wide(20, 2)
    with pytest.raises(ValueError, match="nearest: resnet44_cifar_basic, resnet44_cifar_bottleneck"):
        models.create("resnet44_cifar")  # which of the two must be said


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)], ids=["data", "mixed"])
@pytest.mark.parametrize("name", ["cifar", "wide"])
def test_statistics_of_a_sharded_batch_are_those_of_one_device(name, mesh):
    """The mean over a batch split over devices is the mean over all of it, and so is its gradient."""
    model, variables = made(name, drop_rate=0.0)
    x, labels = images(16, 16, 16, 3), jnp.arange(16) % 5

    def step(variables, x):
        def loss(params):
            out, changed = model.apply({**variables, "params": params}, x, train=True, mutable="batch_stats")
            return -jax.nn.log_softmax(out)[jnp.arange(16), labels].mean(), changed

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    alone = jax.jit(step)(variables, x)
    devices = make_mesh(mesh)
    whole = NamedSharding(devices, PartitionSpec())
    shared = jax.jit(on_mesh(step, devices), in_shardings=(whole, batch_sharding(devices)))(variables, x)
    (_, stats), _ = alone
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(stats)) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), alone, shared)


def test_without_norms_it_is_fixups_network():
    """Each line as Zhang et al. 2019, figure 1, with what is drawn replaced; and it begins as its shortcuts."""
    config = ResNetConfig(
        num_classes=3, depths=(1, 1), widths=(4, 8), stem="cifar", stem_width=4, shortcut="padding", norm="none"
    )
    images = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    variables = jax.jit(ResNet(config).init)(jax.random.key(1), images)
    assert variables.keys() == {"params"}
    maps = jax.jit(lambda v: ResNet(config).apply(v, images, method="features"))
    conv = lambda x, kernel, stride=1: jax.lax.conv_general_dilated(  # noqa: E731
        x, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    first, second = maps(variables)
    np.testing.assert_allclose(first, nn.relu(conv(images, variables["params"]["stem_conv"]["kernel"])), atol=1e-6)
    np.testing.assert_array_equal(second, np.pad(first[:, ::2, ::2], [(0, 0)] * 3 + [(0, 4)]))
    assert not jax.jit(ResNet(config).apply)(variables, images).any()

    leaves, tree = jax.tree.flatten(variables["params"])
    draw = np.random.default_rng(2)
    p = jax.tree.unflatten(tree, [draw.normal(0, 0.5, x.shape).astype(np.float32) for x in leaves])

    def by_hand(p):
        x = nn.relu(conv(images, p["stem_conv"]["kernel"]) + p["stem_norm"]["bias"])
        for stage, stride in ((0, 1), (1, 2)):
            b = p[f"stage_{stage}"]["block_0"]
            y = x + b["shift1"]["bias"]
            shortcut = x if stride == 1 else jnp.pad(y[:, ::2, ::2], [(0, 0)] * 3 + [(0, 4)])
            y = nn.relu(conv(y, b["conv1"]["kernel"], stride) + b["norm1"]["bias"])
            y = conv(y + b["shift2"]["bias"], b["conv2"]["kernel"])
            x = nn.relu(y * b["norm2"]["scale"] + b["norm2"]["bias"] + shortcut)
        return (x.mean((1, 2)) + p["head_shift"]["bias"]) @ p["head"]["kernel"] + p["head"]["bias"]

    found = jax.jit(lambda p: ResNet(config).apply({"params": p}, images, train=True))(p)
    np.testing.assert_allclose(found, jax.jit(by_hand)(p), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="norm 'none' is Fixup's network"):
        dataclasses.replace(config, preact=True)
