"""Swin: sizes to the unit, the parameter tree, any image size, precision, stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from flashjax import models
from flashjax.models.swin_config import SwinConfig
from tests.models.small_swin import SMALL, apply, noise, parameters, small

PARAMETERS = {
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_base_patch4_window7_224": 87_768_224,
    "swin_large_patch4_window7_224": 196_532_476,
    "swin_tiny_patch4_window12_384": 28_338_034,
    "swin_small_patch4_window12_384": 49_707_778,
    "swin_base_patch4_window12_384": 87_903_584,
    "swin_large_patch4_window12_384": 196_735_516,
    "swin_tiny_c24_patch4_window8_256": 28_306_432,
    "swin_tiny_patch4_window7_224_22k": 44_315_083,
    "swin_small_patch4_window7_224_22k": 65_632_987,
    "swin_base_patch4_window7_224_22k": 109_130_249,
    "swin_large_patch4_window7_224_22k": 228_565_093,
    "swinv2_tiny_window8_256": 28_347_154,
    "swinv2_tiny_window16_256": 28_347_154,
    "swinv2_small_window8_256": 49_728_418,
    "swinv2_small_window16_256": 49_728_418,
    "swinv2_base_window8_256": 87_918_816,
    "swinv2_base_window16_256": 87_918_816,
    "swinv2_base_window12to16_192to256": 87_918_816,
    "swinv2_base_window12to24_192to384": 87_918_816,
    "swinv2_large_window12to16_192to256": 196_739_932,
    "swinv2_large_window12to24_192to384": 196_739_932,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = models.create(name)
    shape = (1, *model.config.image_shape, 3)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables)) == PARAMETERS[name]


def test_every_published_name_is_counted():
    uncounted = {"swin_*_window12_384_22k", "swinv2_*_window12_192_22k"}  # 384 with 22k heads; not in the table
    known = set(PARAMETERS).union(*(models.names(pattern) for pattern in uncounted))
    assert set(models.names("swin*")) == known


def shapes(variables) -> dict[str, tuple[int, ...]]:
    return {key: leaf.shape for key, leaf in traverse_util.flatten_dict(variables["params"], sep="/").items()}


def test_parameter_tree_of_version_1():
    model = small(ape=True)
    tree = shapes(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))))
    assert tree["patch_embed/proj/kernel"] == (2, 2, 3, 16)
    assert tree["absolute_pos_embed"] == (1, 256, 16)
    assert tree["stage_0/block_1/attn/qkv/kernel"] == (16, 48)
    assert tree["stage_0/block_1/attn/relative_position_bias_table"] == (49, 2)
    assert tree["stage_0/downsample/norm/scale"] == (64,)
    assert tree["stage_0/downsample/reduction/kernel"] == (64, 32)
    assert tree["stage_1/block_0/mlp/fc1/kernel"] == (32, 128)
    assert tree["head/kernel"] == (32, 5)
    assert len(tree) == 4 + 1 + 4 * 13 + 3 + 4 and "stage_1/downsample/norm/scale" not in tree


def test_parameter_tree_of_version_2():
    model = small(2)
    tree = shapes(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))))
    attention = {key.split("attn/")[1]: shape for key, shape in tree.items() if "stage_0/block_0/attn/" in key}
    assert attention == {
        "qkv/kernel": (16, 48), "q_bias": (16,), "v_bias": (16,), "logit_scale": (2, 1, 1),
        "cpb_mlp/fc1/kernel": (2, 512), "cpb_mlp/fc1/bias": (512,), "cpb_mlp/fc2/kernel": (512, 2),
        "proj/kernel": (16, 16), "proj/bias": (16,),
    }  # fmt: skip
    assert tree["stage_0/downsample/norm/scale"] == (32,)


def test_a_pyramid_backbone_has_norms_for_each_stage_and_no_head():
    model, images = small(feature_norms=True), jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, method="features"))
    assert {"feature_norm_0", "feature_norm_1"} < set(variables["params"])
    assert not {"norm", "head"} & set(variables["params"])
    with pytest.raises(ValueError, match="method='features'"):
        model.init(jax.random.key(0), images)


def test_stochastic_depth_rises_linearly_from_zero():
    rates = models.config("swin_tiny_patch4_window7_224").drop_path_rates()
    np.testing.assert_allclose(rates, np.linspace(0, 0.2, 12))
    assert rates[0] == 0 and len(rates) == 12


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [(32, 32), (37, 51), (8, 40)])
def test_any_image_size(version, size):
    model = small(version)
    variables = parameters(model)
    pyramid = apply(model, variables, noise(2, *size, 3), method="features")
    H, W = -(-size[0] // 2), -(-size[1] // 2)
    assert [x.shape for x in pyramid] == [(2, H, W, 16), (2, -(-H // 2), -(-W // 2), 32)]


@pytest.mark.parametrize("version", [1, 2])
def test_gradients_are_finite_where_windows_are_padded(version):
    # Version 2 normalises keys, and a padded token has a key of zero.
    model = small(version)
    gradient = jax.jit(jax.grad(lambda v, x: model.apply(v, x).var(), (0, 1)))(parameters(model), noise(1, 22, 14, 3))
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_a_sample_does_not_depend_on_its_batch():
    model, images = small(), noise(3, 32, 32, 3)
    variables = parameters(model)
    np.testing.assert_allclose(apply(model, variables, images)[2], apply(model, variables, images[2:])[0], atol=1e-5)


def test_information_crosses_windows_only_through_the_shift():
    model = small(depths=(1, 1))  # no shifted block in the first stage
    images = noise(1, 32, 32, 3)
    variables = parameters(model)
    changed = images.at[:, :8, :8].add(1.0)  # the first window

    def difference(model, variables):
        a, b = (apply(model, variables, x, method="features")[0] for x in (images, changed))
        return np.abs(np.asarray(a - b)).max((0, 3)) > 1e-6

    np.testing.assert_array_equal(np.argwhere(difference(model, variables)).max(0), [3, 3])
    model = small()
    assert difference(model, parameters(model)).sum() > 16


def test_small_maps_shrink_the_window_and_keep_the_bias_of_each_offset():
    model = small(depths=(2, 2), img_size=32)
    variables = parameters(model)
    images = noise(1, 6, 6, 3)  # a 3x3 map under a window of 4
    assert model.config.stage_window(0) == 4
    tables = {(f"stage_{i}", f"block_{j}"): (7, 3 if i == 0 else 2) for i in range(2) for j in range(2)}
    # The same model made for 6x6 images has smaller tables: the centre of the larger ones.
    target = small(img_size=6)
    params = traverse_util.flatten_dict(variables["params"])
    for (stage, block), (old, window) in tables.items():
        key = (stage, block, "attn", "relative_position_bias_table")
        cut = slice(old // 2 - window + 1, old // 2 + window)
        params[key] = params[key].reshape(old, old, -1)[cut, cut].reshape((2 * window - 1) ** 2, -1)
    expected = apply(target, {"params": traverse_util.unflatten_dict(params)}, images)
    np.testing.assert_allclose(apply(model, variables, images), expected, atol=1e-5)


def test_always_partition_pads_instead():
    images = noise(1, 6, 6, 3)
    pad, shrink = small(always_partition=True), small()
    variables = parameters(shrink)
    assert np.abs(np.asarray(apply(pad, variables, images) - apply(shrink, variables, images))).max() > 1e-4
    # Where every map is larger than the window the two are one model.
    images = noise(1, 32, 32, 3)
    np.testing.assert_array_equal(apply(pad, variables, images), apply(shrink, variables, images))
    assert small(img_size=6, always_partition=True).config.stage_window(1) == 4


def test_the_strict_check_names_the_fix():
    model = small(strict_img_size=True)
    with pytest.raises(ValueError, match=r"\(30, 32\).*strict_img_size=False"):
        model.init(jax.random.key(0), jnp.zeros((1, 30, 32, 3)))


def test_training_draws_stochastic_depth_and_evaluation_does_not():
    model, images = small(drop_path_rate=0.9, depths=(1, 1)), noise(4, 32, 32, 3)
    variables = parameters(model)

    def train(seed):
        return apply(model, variables, images, train=True, rngs={"drop_path": jax.random.key(seed)})

    assert not np.allclose(train(0), train(1))
    np.testing.assert_array_equal(train(0), train(0))
    np.testing.assert_array_equal(apply(model, variables, images), apply(model, variables, images))


@pytest.mark.parametrize(("rate", "train"), [(0.3, False), (0.0, True)])
def test_stochastic_depth_needs_no_randomness_where_it_does_nothing(rate, train):
    model, images = small(drop_path_rate=rate, depths=(1, 1)), noise(2, 32, 32, 3)
    variables = parameters(model)
    plain = apply(small(drop_path_rate=0.0, depths=(1, 1)), variables, images)
    np.testing.assert_array_equal(apply(model, variables, images, train=train), plain)


@pytest.mark.parametrize("depths", [(2, 2), (2, 6)])
def test_stochastic_depth_of_all_blocks_is_one_draw(depths):
    """Each draw begins with a key that a TPU makes by a hundred operations on single numbers."""
    model, images = small(drop_path_rate=0.5, depths=depths), noise(2, 32, 32, 3)
    variables = jax.eval_shape(lambda: parameters(model))

    def train(variables, key):
        return model.apply(variables, images, train=True, rngs={"drop_path": key})

    assert str(jax.make_jaxpr(train)(variables, jax.random.key(0))).count("random_bits[") == 1


def test_a_sample_whose_branches_are_all_dropped_keeps_its_patches():
    model, images = small(drop_path_rate=0.9, depths=(2,), num_heads=(2,)), noise(16, 32, 32, 3)
    variables = parameters(model)
    options = dict(train=True, rngs={"drop_path": jax.random.key(0)}, method="features")
    first = apply(small(depths=(1,), num_heads=(2,)), _without(variables, "block_1"), images, method="features")[0]
    last = apply(model, variables, images, **options)[0]
    equal = [np.allclose(a, b, atol=1e-6) for a, b in zip(first, last, strict=True)]
    assert any(equal) and not all(equal)  # both branches of the last block: 0.9 * 0.9 of the samples


def _without(variables, name):
    params = dict(variables["params"])
    params["stage_0"] = {key: value for key, value in params["stage_0"].items() if key != name}
    return {"params": params}


@pytest.mark.parametrize("version", [1, 2])
def test_bfloat16_keeps_parameters_and_logits_in_float32(version):
    images = noise(2, 32, 32, 3)
    model = small(version, dtype="bfloat16", depths=(1, 1))
    variables = parameters(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = apply(model, variables, images)
    exact = apply(small(version, depths=(1, 1)), variables, images)
    assert logits.dtype == jnp.float32
    assert apply(model, variables, images, method="features")[0].dtype == jnp.bfloat16
    assert 0 < np.abs(np.asarray(logits - exact)).max() < 0.05 * np.abs(np.asarray(exact)).max()


def test_version_2_starts_as_the_identity():
    model, images = small(2, depths=(2,), num_heads=(2,), pretrained_window_sizes=(0,)), noise(1, 32, 32, 3)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    embedding = model.bind(variables).patch_embed(images)
    np.testing.assert_allclose(apply(model, variables, images, method="features")[0], embedding, rtol=1e-6)


def test_initial_values():
    def initial(**overrides):
        return jax.jit(small(depths=(1, 1), **overrides).init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]

    params = initial()
    block = params["stage_1"]["block_0"]
    assert abs(float(block["mlp"]["fc1"]["kernel"].std()) - 0.02) < 1e-3
    assert abs(float(block["attn"]["relative_position_bias_table"].std()) - 0.02) < 3e-3
    assert float(jnp.abs(params["patch_embed"]["proj"]["kernel"]).max()) <= 12**-0.5
    narrow = initial(initializer="fan_in")["stage_1"]["block_0"]
    assert abs(float(narrow["mlp"]["fc1"]["kernel"].std()) - 32**-0.5) < 0.01


def test_dropout_needs_its_stream_and_changes_the_result():
    model, images = small(drop_rate=0.5, drop_path_rate=0.0, depths=(1, 1)), noise(1, 32, 32, 3)
    variables = parameters(model)
    dropped = apply(model, variables, images, train=True, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(dropped, apply(model, variables, images))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(num_heads=(2,)), "same stages"),
        (dict(num_heads=(3, 4)), "16 channels do not divide into 3 heads"),
        (dict(version=3), "version must be 1 or 2"),
        (dict(version=2, pretrained_window_sizes=(0,)), "must name 2 stages"),
        (dict(initializer="nromal"), "unknown initializer 'nromal'"),
        (dict(branches="fused", drop_rate=0.1), r"got drop_rate 0\.1 and version 1: use branches='apart'"),
    ],
)
def test_impossible_configurations(overrides, message):
    with pytest.raises(ValueError, match=message):
        SwinConfig(**{**SMALL, **overrides})
