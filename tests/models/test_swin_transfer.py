"""Trained parameters at another resolution, window or set of classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.models.swin import SwinTransformer
from flashjax.models.swin_config import SwinConfig
from flashjax.models.swin_transfer import resize_parameters
from flashjax.ops.resize import resize_bicubic

BASE = dict(img_size=32, patch_size=2, embed_dim=16, depths=(1, 1), num_heads=(2, 4), window_size=4, num_classes=6)
SOURCE = SwinConfig(ape=True, **BASE)


def initial(config: SwinConfig):
    method = "features" if config.feature_norms else None
    images = jnp.zeros((1, *config.image_shape, 3))
    model = SwinTransformer(config)
    return jax.jit(lambda key: model.init(key, images, method=method))(jax.random.key(0))["params"]


def shapes(config: SwinConfig):
    return jax.tree.map(jnp.shape, jax.eval_shape(lambda: initial(config)))


@pytest.fixture(scope="module")
def trained():
    return initial(SOURCE)


def test_a_larger_window_and_image(trained):
    target = SwinConfig(ape=True, **{**BASE, "img_size": 48, "window_size": 6})
    params = resize_parameters(trained, SOURCE, target)
    assert jax.tree.map(jnp.shape, params) == shapes(target)
    table = trained["stage_0"]["block_0"]["attn"]["relative_position_bias_table"]
    expected = resize_bicubic(table.reshape(7, 7, 2), (11, 11)).reshape(121, 2)
    np.testing.assert_array_equal(params["stage_0"]["block_0"]["attn"]["relative_position_bias_table"], expected)
    positions = resize_bicubic(trained["absolute_pos_embed"].reshape(16, 16, 16), (24, 24))
    np.testing.assert_array_equal(params["absolute_pos_embed"][0], positions.reshape(576, 16))
    np.testing.assert_array_equal(params["head"]["kernel"], trained["head"]["kernel"])


def test_nothing_changes_for_the_same_configuration(trained):
    jax.tree.map(np.testing.assert_array_equal, resize_parameters(trained, SOURCE, SOURCE), dict(trained))


@pytest.mark.parametrize(
    "layout",
    [{"attention": "paired"}, {"branches": "apart"}, {"blocks": "looped"}, {"together": (2, 0)}, {"remat": True}],
)
def test_another_layout_is_the_same_model(trained, layout):
    target = SwinConfig(ape=True, **BASE, **layout)
    jax.tree.map(np.testing.assert_array_equal, resize_parameters(trained, SOURCE, target), dict(trained))


def test_a_head_for_other_classes(trained):
    target = SwinConfig(ape=True, **{**BASE, "num_classes": 3})
    fresh = resize_parameters(trained, SOURCE, target)["head"]
    assert fresh["kernel"].shape == (16 * 2, 3) and not fresh["kernel"].any() and not fresh["bias"].any()
    mapped = resize_parameters(trained, SOURCE, target, class_map=[5, 0, 2])["head"]
    np.testing.assert_array_equal(mapped["kernel"], trained["head"]["kernel"][:, np.array([5, 0, 2])])
    np.testing.assert_array_equal(mapped["bias"], trained["head"]["bias"][np.array([5, 0, 2])])
    headless = resize_parameters(trained, SOURCE, SwinConfig(ape=True, **{**BASE, "num_classes": 0}))
    assert "head" not in headless and "norm" in headless


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 6], [-1, 0, 1]])
def test_a_class_map_that_does_not_fit(trained, rows):
    with pytest.raises(ValueError, match="class_map must give each of 3 classes a number below 6"):
        resize_parameters(trained, SOURCE, SwinConfig(ape=True, **{**BASE, "num_classes": 3}), class_map=rows)


def test_a_classifier_becomes_a_pyramid_backbone(trained):
    target = SwinConfig(ape=True, feature_norms=True, **BASE)
    params = resize_parameters(trained, SOURCE, target)
    assert jax.tree.map(jnp.shape, params) == shapes(target)
    with pytest.raises(ValueError, match="no final norm"):
        resize_parameters(params, target, SOURCE)


def test_another_model_is_refused(trained):
    with pytest.raises(ValueError, match=r"embed_dim=16 do not fit embed_dim=32"):
        resize_parameters(trained, SOURCE, SwinConfig(ape=True, **{**BASE, "embed_dim": 32}))


def test_version_2_must_say_which_windows_it_was_trained_with():
    base = dict(BASE, version=2)
    source = SwinConfig(pretrained_window_sizes=(0, 0), **base)
    larger = dict(base, img_size=64, window_size=8)
    params = initial(source)
    with pytest.raises(ValueError, match=r"pass pretrained_window_sizes=\(4, 4\)"):
        resize_parameters(params, source, SwinConfig(pretrained_window_sizes=(0, 0), **larger))
    target = SwinConfig(pretrained_window_sizes=(4, 4), **larger)
    jax.tree.map(np.testing.assert_array_equal, resize_parameters(params, source, target), dict(params))
