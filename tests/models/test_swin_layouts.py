"""Swin computed in other ways: the same function, gradients and draws, and what decides which way."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flashjax.models.swin import SwinBlock
from flashjax.models.swin_config import SwinConfig
from flashjax.training.mesh import MeshConfig, make_mesh
from flashjax.training.sharding import FSDP_RULES, on_mesh, shardings_for
from tests.models.small_swin import apply, noise, parameters, small


def test_remat_changes_nothing_but_memory():
    images, rngs = noise(2, 32, 32, 3), {"drop_path": jax.random.key(2), "dropout": jax.random.key(3)}
    options = dict(drop_path_rate=0.5, drop_rate=0.1, depths=(2,), num_heads=(2,))
    variables = parameters(small(**options))

    def gradients(remat):
        model = small(remat=remat, **options)
        return jax.jit(jax.grad(lambda v: (model.apply(v, images, train=True, rngs=rngs) ** 2).sum()))(variables)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), gradients(False), gradients(True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "options"),
    [
        (1, {"img_size": (40, 52)}),  # padded, shifted; pairs, and a row of three windows one by one
        (2, {"img_size": 32}),
        (1, {"img_size": 16, "qkv_bias": False, "window_size": 12}),  # the whole map in a window
    ],
)
def test_attention_of_pairs_is_the_same_function_of_the_same_parameters(version, options):
    forms = {form: small(version, attention=form, **options) for form in ("windows", "paired", "kernel")}
    plain = forms.pop("windows")
    variables, images = parameters(plain), noise(2, *plain.config.image_shape, 3)
    drawn, wanted = drawn_at_first(plain, images), value_and_gradients(plain, variables, images)
    for model in forms.values():
        jax.tree.map(np.testing.assert_array_equal, drawn_at_first(model, images), drawn)
        assert_same_function(value_and_gradients(model, variables, images), wanted)


def drawn_at_first(model, images):
    return jax.jit(model.init)(jax.random.key(1), images)


def value_and_gradients(model, variables, images, **options):
    return jax.jit(jax.value_and_grad(lambda v: jnp.square(model.apply(v, images, **options)).sum()))(variables)


def assert_same_function(found, wanted):
    (found, found_gradients), (wanted, gradients) = found, wanted
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    atol = 1e-5 * max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=atol), found_gradients, gradients)


@pytest.mark.parametrize("form", ["paired", "kernel"])
def test_attention_of_pairs_refuses_dropout_of_weights(form):
    with pytest.raises(ValueError, match=rf"attn_drop_rate 0\.1 .* attention='{form}'"):
        small(attention=form, attn_drop_rate=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_blocks_as_turns_of_a_loop_are_the_same_function_with_the_same_draws(version):
    images, rngs = noise(2, 32, 32, 3), {"drop_path": jax.random.key(2)}
    options = dict(depths=(4,), num_heads=(2,), drop_path_rate=0.5, pretrained_window_sizes=(0,))
    models_of = {blocks: small(version, blocks=blocks, **options) for blocks in ("apart", "looped")}
    variables = parameters(models_of["apart"])
    drawn = {blocks: jax.eval_shape(model.init, jax.random.key(0), images) for blocks, model in models_of.items()}
    chex.assert_trees_all_equal_shapes_and_dtypes(*drawn.values())

    def gradients(blocks):
        def loss(v):
            return (models_of[blocks].apply(v, images, train=True, rngs=rngs) ** 2).sum()

        return jax.jit(jax.grad(loss))(variables)

    wanted, found = gradients("apart"), gradients("looped")
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "depths", "forms"),
    [
        ((32, 32), (2, 1), [dict(attention="kernel"), dict(remat=True)]),
        ((32, 32), (4,), [dict(attention="kernel", blocks="looped")]),
        ((40, 52), (2,), [dict(attention="kernel")]),  # padded: the MLP alone, as with windows
    ],
)
def test_fused_branches_are_the_same_function_with_the_same_draws(size, depths, forms):
    images, training = noise(2, *size, 3), dict(train=True, rngs={"drop_path": jax.random.key(2)})
    shape = dict(img_size=size, depths=depths, num_heads=(2, 2)[: len(depths)], drop_path_rate=0.5)
    apart = small(**shape, attention="windows", branches="apart")
    variables, drawn = parameters(apart), drawn_at_first(apart, images)
    wanted, evaluated = value_and_gradients(apart, variables, images, **training), apply(apart, variables, images)
    for options in forms:
        fused = small(**shape, **options, branches="fused")
        jax.tree.map(np.testing.assert_array_equal, drawn_at_first(fused, images), drawn)
        assert_same_function(value_and_gradients(fused, variables, images, **training), wanted)
        np.testing.assert_allclose(apply(fused, variables, images), evaluated, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(attention="paired", remat=True),
        pytest.param(dict(blocks="looped", depths=(4, 2)), marks=pytest.mark.slow),
        pytest.param(dict(version=2), marks=pytest.mark.slow),
    ],
)
def test_images_some_at_a_time_are_the_same_function_with_the_same_draws(options):
    images, training = noise(3, 32, 32, 3), dict(train=True, rngs={"drop_path": jax.random.key(2)})
    shape = {"depths": (2, 1), "num_heads": (2, 2), "drop_path_rate": 0.5, "pretrained_window_sizes": (0, 0), **options}
    whole, together = small(**shape), small(**shape, together=(1, 2))
    variables, drawn = parameters(whole), drawn_at_first(whole, images)
    jax.tree.map(np.testing.assert_array_equal, drawn_at_first(together, images), drawn)
    wanted = value_and_gradients(whole, variables, images, **training)
    assert_same_function(value_and_gradients(together, variables, images, **training), wanted)
    features = [model.apply(variables, images, method="features") for model in (together, whole)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), *features)


def test_a_stage_computes_so_many_images_at_a_time():
    model, images, seen = small(together=(2, 0)), noise(3, 32, 32, 3), []
    variables = parameters(model)

    def see(method, args, kwargs, context):
        if isinstance(context.module, SwinBlock) and context.method_name == "__call__":
            seen.append((context.module.name, context.module.stage, len(args[0])))
        return method(*args, **kwargs)

    with nn.intercept_methods(see):
        jax.eval_shape(model.apply, variables, images)
    parts = [(f"block_{block}", 0, rows) for rows in (2, 1) for block in (0, 1)]
    assert seen == [*parts, ("block_0", 1, 3), ("block_1", 1, 3)]


def test_where_images_are_computed_at_a_time():
    config = SwinConfig(depths=(2, 4, 5), num_heads=(2, 2, 2), embed_dim=16, together=(2, 0, 8))
    assert [config.at_a_time(stage, train=True) for stage in range(3)] == [2, 0, 8]
    dropping = dataclasses.replace(config, drop_rate=0.1)
    assert not dropping.at_a_time(0, train=True) and dropping.at_a_time(0, train=False) == 2
    assert not config.plain().at_a_time(0, train=True)
    for wrong in ((2, 2), (2, -1, 8)):
        with pytest.raises(ValueError, match=rf"together {re.escape(str(wrong))} .* each of the 3 stages"):
            dataclasses.replace(config, together=wrong)


def test_which_stages_are_loops():
    config = SwinConfig(depths=(2, 4, 5), num_heads=(2, 2, 2), embed_dim=16, blocks="looped")
    assert [config.loops(stage, train=True) for stage in range(3)] == [False, True, False]
    dropping = dataclasses.replace(config, attn_drop_rate=0.1)
    assert not dropping.loops(1, train=True) and dropping.loops(1, train=False)
    assert not config.plain().loops(1, train=True)


def test_branches_follow_the_platform_and_the_mesh_that_are_traced_for():
    config = SwinConfig(depths=(2, 2), num_heads=(2, 4), embed_dim=512)
    assert not config.fuses(512, 2048)
    assert dataclasses.replace(config, branches="fused").fuses(512, 2048)
    tpu = jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "tensor"), abstract_device=tpu)
    with jax.sharding.use_abstract_mesh(mesh):
        assert config.fuses(512, 2048) and not config.fuses(1024, 4096)
        assert config.fuses(768, 3072)  # whose gradients fill what there is in float32
        assert not config.fuses(4 * 512, 1280) and dataclasses.replace(config, dtype="bfloat16").fuses(4 * 512, 1280)
        assert not dataclasses.replace(config, drop_rate=0.1).fuses(512, 2048)
        assert not dataclasses.replace(config, version=2, pretrained_window_sizes=(0, 0)).fuses(512, 2048)
        assert not config.plain().fuses(512, 2048)
        with nn.logical_axis_rules((("mlp", "tensor"),)):
            assert not config.fuses(512, 2048)
            with pytest.raises(ValueError, match=r"splits them over \('tensor',\): use 'apart'"):
                dataclasses.replace(config, branches="fused").fuses(512, 2048)
    older = jax.sharding.AbstractDevice("TPU v4", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=older)):
        assert not config.fuses(384, 1536)
        assert dataclasses.replace(config, dtype="bfloat16").fuses(256, 1024) and not config.fuses(256, 1024)


def test_fsdp_gathers_the_kernels_of_pairs_and_exchanges_nothing():
    """Queries, keys and values end elsewhere in the columns of their kernel than the devices' shares of it."""
    mesh = make_mesh(MeshConfig(fsdp=8))
    config = SwinConfig(embed_dim=128, depths=(1,), num_heads=(4,), attention="paired", branches="apart")
    block = SwinBlock(config, stage=0, shifted=False)
    x = jax.ShapeDtypeStruct((8, 14, 14, 128), jnp.float32)
    params = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
    of_params = shardings_for(params, FSDP_RULES, mesh)
    assert of_params["attn"]["qkv"]["kernel"].spec == jax.P(None, "fsdp")
    step = jax.jit(
        on_mesh(jax.grad(lambda params, x: (block.apply({"params": params}, x) ** 2).mean()), mesh),
        in_shardings=(of_params, jax.NamedSharding(mesh, jax.P("fsdp"))),
        out_shardings=of_params,
    )
    text = step.lower(params, x).compile().as_text()
    assert " all-gather(" in text
    assert " all-to-all(" not in text and " collective-permute(" not in text


def test_attention_follows_the_platform_that_is_traced_for():
    config = SwinConfig(depths=(2,), num_heads=(2,), embed_dim=16)
    assert config.attention_form == "windows"
    tpu = jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=tpu)):
        assert config.attention_form == "kernel"
        assert dataclasses.replace(config, attn_drop_rate=0.1).attention_form == "windows"
        assert dataclasses.replace(config, attention="paired").attention_form == "paired"
        assert dataclasses.replace(config, embed_dim=48).attention_form == "windows"  # 24 channels a head
        assert dataclasses.replace(config, window_size=12).attention_form == "windows"
        assert config.plain().attention_form == "windows"
