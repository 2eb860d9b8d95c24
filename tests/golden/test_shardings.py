"""Where every parameter of each family of presets lives on a mesh of data 2 x fsdp 2 x tensor 2.

Widths are the preset's own, so that what is split is what will be; of the blocks of a stage the first is enough.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.swin_imagenet import PRESETS, RULES
from experiments.swin_imagenet import objective
from flashjax import models
from flashjax.models.resnet import ResNet
from flashjax.recipes import language
from flashjax.training import MeshConfig
from flashjax.training.mesh import make_mesh
from flashjax.training.parameters import parameter_rows
from flashjax.training.sharding import FSDP_RULES, lint, reasons, shardings_for
from tests.golden.golden import expected, how

MESH = MeshConfig(data=2, fsdp=2, tensor=2)
CLASSES = {"demo": 10, "base_22k": 21841}
FAMILIES = (
    *("demo", "tiny_1k", "base_22k", "base_22k_to_1k", "base_384"),
    *("v2_tiny_w8", "v2_base_22k_to_1k_256"),
)
RESNETS = ("resnet20_cifar", "resnet50", "wrn_28_10")
TEXT = {
    **{name: {} for name in ("flash_base", "flash_quad_base", "gau_base", "transformer_base", "transformer_pp_base")},
    **{name: {} for name in ("gpt2", "smollm2_135m", "qwen3_0_6b")},
    **{mixer: {"mixer": mixer} for mixer in ("retnet", "gla", "mamba2", "gated_delta_net", "longformer")},
    **{mixer: {"mixer": mixer, "causal": False} for mixer in ("linformer", "nystromformer")},
}
"""Language models by name, and `transformer_base` with the mixers that have parameters of their own."""


@functools.cache
def parameters(preset: str):
    """Shapes of the preset's parameters, with one block a stage."""
    config = PRESETS[preset]
    model = dataclasses.replace(config.model, depths=(1,) * len(config.model.depths))
    goal = objective(dataclasses.replace(config, model=model), CLASSES.get(preset, 1000))
    image = jnp.zeros((1, *model.image_shape, 3), jnp.uint8)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return jax.eval_shape(lambda: goal.init(rngs, {"image": image}))["params"]


def resnet_parameters(name: str):
    """The same of a residual network."""
    config = models.config(name)
    model = ResNet(dataclasses.replace(config, depths=(1,) * len(config.depths)))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)))["params"]


def text_parameters(name: str):
    """The same of a language model."""
    model = models.create("transformer_base" if "mixer" in TEXT[name] else name, depth=1, **TEXT[name])
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 256), jnp.int32)))["params"]


def placed(name: str):
    """Parameters, and the rules by which they are split."""
    if name in TEXT:
        return text_parameters(name), language.RULES
    return (resnet_parameters(name), FSDP_RULES) if name in RESNETS else (parameters(name), RULES)


@pytest.mark.parametrize("preset", [*FAMILIES, *RESNETS, *TEXT])
def test_shardings(preset):
    params, rules = placed(preset)
    mesh = make_mesh(MESH)
    lint(params, rules, mesh)
    rows = parameter_rows(params, shardings_for(params, rules, mesh))
    found = {row.path: f"{'x'.join(map(str, row.shape))}: {row.spec}" for row in rows}
    golden = expected("shardings.json", preset, found)
    differ = [
        f"{path}: {golden.get(path, 'absent')} then, {found.get(path, 'absent')} now"
        for path in sorted(golden.keys() | found.keys())
        if golden.get(path) != found.get(path)
    ]
    assert not differ, "\n".join([f"{preset}:", *differ, how("shardings.json")])


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in FAMILIES])
def test_every_other_preset_resolves(preset):
    lint(parameters(preset), RULES, make_mesh(MESH))
    shardings_for(parameters(preset), RULES, make_mesh(MESH))


def test_each_place_has_its_reason():
    params, mesh = parameters("tiny_1k"), make_mesh(MESH)
    why = reasons(params, RULES, mesh)
    attention, mlp = "(attn/qkv|mlp/fc1)/kernel$", "(attn/proj|mlp/fc2)/kernel$"
    assert why["head/kernel"] == "fsdp: dim 1 over fsdp"
    assert why["head/bias"] == "fsdp: small, left whole"
    assert (
        why["stage_3/block_0/mlp/fc1/kernel"] == f"tensor_parallel(1) '{attention}': dim 0 over fsdp, dim 1 over tensor"
    )
    small = why["stage_0/block_0/attn/proj/kernel"]
    assert small == f"tensor_parallel(0) '{mlp}': dim 0 over tensor, small, not over fsdp"
    odd = {"kernel": jax.ShapeDtypeStruct((129, 129), np.float32), "scale": jax.ShapeDtypeStruct((), np.float32)}
    why = reasons(odd, RULES, mesh)
    assert why == {"kernel": "fsdp: no free dim divides by fsdp 2, left whole", "scale": "scalar: whole"}
    assert reasons(odd, RULES, make_mesh(MeshConfig(), jax.devices()[:1]))["kernel"] == "fsdp: whole"
