"""Swin's weights in every layout, on states that need no torch: names, shapes, values, and what errors say."""

import ast
import re
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from flashjax import interop, models
from flashjax.interop import ConversionError, swin

V1, V2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
TINY: dict[str, Any] = {
    "img_size": 32,
    "embed_dim": 8,
    "depths": (2, 1),
    "num_heads": (2, 4),
    "window_size": 4,
    "num_classes": 5,
    "pretrained_window_sizes": (0, 0),
}
PYRAMID = TINY | {"feature_norms": True}
LAYOUTS = ["official", "timm", "hf", "hf4"]

# Names and shapes as the installed implementations show them; tests/parity holds these against the code itself.
BLOCK_V1 = {
    "norm1.weight": (8,),
    "norm1.bias": (8,),
    "attn.relative_position_bias_table": (49, 2),
    "attn.qkv.weight": (24, 8),
    "attn.qkv.bias": (24,),
    "attn.proj.weight": (8, 8),
    "attn.proj.bias": (8,),
    "norm2.weight": (8,),
    "norm2.bias": (8,),
    "mlp.fc1.weight": (32, 8),
    "mlp.fc1.bias": (32,),
    "mlp.fc2.weight": (8, 32),
    "mlp.fc2.bias": (8,),
}
BLOCK_V1_HF = {
    "layernorm_before.weight": (8,),
    "layernorm_before.bias": (8,),
    "attention.relative_position_bias.relative_position_bias_table": (49, 2),
    "attention.q_proj.weight": (8, 8),
    "attention.q_proj.bias": (8,),
    "attention.k_proj.weight": (8, 8),
    "attention.k_proj.bias": (8,),
    "attention.v_proj.weight": (8, 8),
    "attention.v_proj.bias": (8,),
    "attention.o_proj.weight": (8, 8),
    "attention.o_proj.bias": (8,),
    "layernorm_after.weight": (8,),
    "layernorm_after.bias": (8,),
    "mlp.fc1.weight": (32, 8),
    "mlp.fc1.bias": (32,),
    "mlp.fc2.weight": (8, 32),
    "mlp.fc2.bias": (8,),
}
BLOCK_V1_HF4 = {
    "layernorm_before.weight": (8,),
    "layernorm_before.bias": (8,),
    "attention.self.relative_position_bias_table": (49, 2),
    "attention.self.query.weight": (8, 8),
    "attention.self.query.bias": (8,),
    "attention.self.key.weight": (8, 8),
    "attention.self.key.bias": (8,),
    "attention.self.value.weight": (8, 8),
    "attention.self.value.bias": (8,),
    "attention.output.dense.weight": (8, 8),
    "attention.output.dense.bias": (8,),
    "layernorm_after.weight": (8,),
    "layernorm_after.bias": (8,),
    "intermediate.dense.weight": (32, 8),
    "intermediate.dense.bias": (32,),
    "output.dense.weight": (8, 32),
    "output.dense.bias": (8,),
}
BLOCK_V2 = {name: shape for name, shape in BLOCK_V1.items() if "table" not in name and name != "attn.qkv.bias"} | {
    "attn.q_bias": (8,),
    "attn.v_bias": (8,),
    "attn.logit_scale": (2, 1, 1),
    "attn.cpb_mlp.0.weight": (512, 2),
    "attn.cpb_mlp.0.bias": (512,),
    "attn.cpb_mlp.2.weight": (2, 512),
}
BLOCK_V2_HF = {
    name: shape for name, shape in BLOCK_V1_HF4.items() if "table" not in name and name != "attention.self.key.bias"
} | {
    "attention.self.logit_scale": (2, 1, 1),
    "attention.self.continuous_position_bias_mlp.0.weight": (512, 2),
    "attention.self.continuous_position_bias_mlp.0.bias": (512,),
    "attention.self.continuous_position_bias_mlp.2.weight": (2, 512),
}
AROUND = {
    "patch_embed.proj.weight": (8, 3, 4, 4),
    "patch_embed.proj.bias": (8,),
    "patch_embed.norm.weight": (8,),
    "patch_embed.norm.bias": (8,),
    "norm.weight": (16,),
    "norm.bias": (16,),
}
OFFICIAL = AROUND | {"layers.0.downsample.reduction.weight": (16, 32), "head.weight": (5, 16), "head.bias": (5,)}
TIMM = AROUND | {"layers.1.downsample.reduction.weight": (16, 32), "head.fc.weight": (5, 16), "head.fc.bias": (5,)}
HF = {
    "embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4),
    "embeddings.patch_embeddings.projection.bias": (8,),
    "embeddings.norm.weight": (8,),
    "embeddings.norm.bias": (8,),
    "encoder.layers.0.downsample.reduction.weight": (16, 32),
    "layernorm.weight": (16,),
    "layernorm.bias": (16,),
}


def variables(name: str, seed: int = 0, **overrides: Any) -> dict[str, Any]:
    """Random numbers in the shapes of a model's variables."""
    rng = np.random.default_rng(seed)
    abstract = swin.abstract(models.create(name, **overrides))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), abstract)


def shapes(state: dict[str, np.ndarray], *beginnings: str) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in state.items() if name.startswith(beginnings or "")}


def under(prefix: str, names: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in names.items()}


def assert_same(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [V1, V2])
def test_there_and_back_is_bit_exact(name: str, layout: str) -> None:
    original = variables(name, **TINY)
    state = interop.to_torch(name, original, layout, **TINY)
    assert all(isinstance(array, np.ndarray) and array.flags.c_contiguous for array in state.values())
    assert_same(interop.from_torch(name, state, **TINY), original)


@pytest.mark.parametrize(
    ("name", "layout", "block", "blocks", "around"),
    [
        (V1, "official", "layers.0.blocks.1.", BLOCK_V1, OFFICIAL),
        (V1, "timm", "layers.0.blocks.1.", BLOCK_V1, TIMM),
        (V1, "hf", "swin.encoder.layers.0.blocks.1.", BLOCK_V1_HF, under("swin.", HF)),
        (V1, "hf4", "swin.encoder.layers.0.blocks.1.", BLOCK_V1_HF4, under("swin.", HF)),
        (V2, "official", "layers.0.blocks.1.", BLOCK_V2, OFFICIAL),
        (V2, "timm", "layers.0.blocks.1.", BLOCK_V2, TIMM),
        (V2, "hf", "swinv2.encoder.layers.0.blocks.1.", BLOCK_V2_HF, under("swinv2.", HF)),
    ],
)
def test_names_and_shapes(name: str, layout: str, block: str, blocks: dict, around: dict) -> None:
    state = interop.to_torch(name, variables(name, **TINY), layout, **TINY)
    buffers = {key for key in state if key.endswith(("index", "coords_table", "attn_mask"))}
    parameters = {key: array for key, array in state.items() if key not in buffers}
    assert shapes(parameters, block) == under(block, blocks)
    rest = {key: shape for key, shape in shapes(parameters).items() if ".blocks." not in key}
    heads = {} if "head" in str(around) else {"classifier.weight": (5, 16), "classifier.bias": (5,)}
    merged = 32 if name == V1 else 16
    downsample = next(key for key in around if key.endswith("reduction.weight")).replace("reduction.weight", "norm.")
    assert rest == around | heads | {f"{downsample}weight": (merged,), f"{downsample}bias": (merged,)}
    assert bool(buffers) == (layout == "official")


def test_values_are_turned_as_torch_keeps_them() -> None:
    tree = variables(V1, **TINY)["params"]
    official = interop.to_torch(V1, {"params": tree}, **TINY)
    hf = interop.to_torch(V1, {"params": tree}, "hf", **TINY)
    conv = tree["patch_embed"]["proj"]["kernel"]
    assert official["patch_embed.proj.weight"][5, 2, 1, 3] == conv[1, 3, 2, 5]
    qkv = tree["stage_1"]["block_0"]["attn"]["qkv"]
    assert official["layers.1.blocks.0.attn.qkv.weight"][40, 3] == qkv["kernel"][3, 40]
    # Queries, keys and values lie side by side: rows 32 and later of the 48 are the values.
    assert hf["swin.encoder.layers.1.blocks.0.attention.v_proj.weight"][8, 3] == qkv["kernel"][3, 40]
    assert hf["swin.encoder.layers.1.blocks.0.attention.k_proj.bias"][2] == qkv["bias"][18]


def test_official_buffers_are_those_of_the_code() -> None:
    state = interop.to_torch(V2, variables(V2, **TINY), **TINY)
    index = state["layers.0.blocks.0.attn.relative_position_index"]
    assert index.dtype == np.int64
    assert (index[0, 0], index[0, 15], index[15, 0]) == (24, 0, 48)  # window 4: 49 offsets, the centre is 24
    coords = state["layers.0.blocks.0.attn.relative_coords_table"]
    assert coords.shape == (1, 7, 7, 2)
    np.testing.assert_allclose(coords[0, 0, 6], [-np.log2(9) / 3, np.log2(9) / 3], rtol=1e-6)
    mask = state["layers.0.blocks.1.attn_mask"]
    assert mask.shape == (4, 16, 16)
    assert set(np.unique(mask)) == {-100.0, 0.0}
    assert not mask[0].any()
    assert mask[3].any()
    # Even blocks do not shift, and neither does a stage whose map (4x4) is one window.
    assert [key for key in state if key.endswith("attn_mask")] == ["layers.0.blocks.1.attn_mask"]


@pytest.mark.parametrize("layout", ["official", "hf", "hf4"])
def test_pyramid_backbones(layout: str) -> None:
    original = variables(V1, **PYRAMID)
    state = interop.to_torch(V1, original, layout, **PYRAMID)
    norm = {"official": "norm1.weight"}.get(layout, "hidden_states_norms.stage2.weight")
    np.testing.assert_array_equal(state[norm], original["params"]["feature_norm_1"]["scale"])
    assert not any("attn_mask" in key or key.startswith(("head", "classifier")) for key in state)
    assert_same(interop.from_torch(V1, state, **PYRAMID), original)


def test_detection_checkpoint() -> None:
    original = variables(V1, **PYRAMID, ape=True)
    state = interop.to_torch(V1, original, **PYRAMID, ape=True)
    assert state["absolute_pos_embed"].shape == (1, 8, 8, 8)
    assert state["absolute_pos_embed"][0, 3, 2, 5] == original["params"]["absolute_pos_embed"][0, 2 * 8 + 5, 3]
    detector = {f"backbone.{key}": array for key, array in state.items()}
    detector |= {"neck.fpn_convs.0.conv.weight": np.zeros((4, 4, 3, 3)), "roi_head.bbox_head.fc.bias": np.zeros(3)}
    assert_same(interop.from_torch(V1, detector, **PYRAMID, ape=True), original)


def test_absolute_positions_of_classifiers() -> None:
    original = variables(V1, **TINY, ape=True)
    for layout, name in (("official", "absolute_pos_embed"), ("hf", "swin.embeddings.position_embeddings")):
        state = interop.to_torch(V1, original, layout, **TINY, ape=True)
        assert state[name].shape == (1, 64, 8)
        assert_same(interop.from_torch(V1, state, **TINY, ape=True), original)


def test_simmim_checkpoint() -> None:
    headless = TINY | {"num_classes": 0}
    original = variables(V1, **headless)
    state = {f"encoder.{key}": array for key, array in interop.to_torch(V1, original, **headless).items()}
    state |= {
        "encoder.mask_token": np.zeros((1, 1, 8)),
        "decoder.0.weight": np.zeros((3072, 16, 1, 1)),
        "decoder.0.bias": np.zeros(3072),
    }
    assert_same(interop.from_torch(V1, state, **headless), original)
    # transformers' names begin with `encoder.` too when the model is a bare one.
    bare = {key.removeprefix("swin."): array for key, array in interop.to_torch(V1, original, "hf", **headless).items()}
    assert "encoder.layers.0.blocks.0.mlp.fc1.weight" in bare
    assert_same(interop.from_torch(V1, bare | {"embeddings.mask_token": np.zeros((1, 1, 8))}, **headless), original)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parallel_training_prefix(layout: str) -> None:
    original = variables(V1, **TINY)
    state = {f"module.{key}": array for key, array in interop.to_torch(V1, original, layout, **TINY).items()}
    assert_same(interop.from_torch(V1, state, **TINY), original)


@pytest.mark.parametrize("options", [{"qkv_bias": False}, {"patch_norm": False}, {"always_partition": True}], ids=str)
@pytest.mark.parametrize("name", [V1, V2])
def test_other_configurations(name: str, options: dict[str, Any]) -> None:
    original = variables(name, **TINY, **options)
    state = interop.to_torch(name, original, **TINY, **options)
    assert_same(interop.from_torch(name, state, **TINY, **options), original)


def test_other_precisions_are_cast() -> None:
    original = variables(V1, **TINY)
    state = interop.to_torch(V1, original, **TINY)
    half = {
        name: array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array for name, array in state.items()
    }
    expected = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), original)
    assert_same(interop.from_torch(V1, half, **TINY), expected)


def test_the_result_does_not_alias_the_state() -> None:
    state = interop.to_torch(V1, variables(V1, **TINY), **TINY)
    tree = interop.from_torch(V1, state, **TINY)["params"]
    before = tree["norm"]["scale"].copy()
    state["norm.weight"][:] = 7
    np.testing.assert_array_equal(tree["norm"]["scale"], before)


def official_state(name: str = V1, **changes: Any) -> dict[str, np.ndarray]:
    options = TINY | changes
    return interop.to_torch(name, variables(name, **options), **options)


def error_of(state: dict[str, np.ndarray], name: str = V1, **changes: Any) -> str:
    with pytest.raises(ConversionError) as error:
        interop.from_torch(name, state, **(TINY | changes))
    return str(error.value)


def test_one_error_lists_everything_that_differs() -> None:
    state = official_state()
    del state["layers.0.blocks.0.norm1.weight"], state["norm.bias"]
    state["extra.weight"] = np.zeros((2, 3), np.float32)
    state["norm.weight"] = np.zeros(17, np.float32)
    state["patch_embed.norm.bias"] = np.zeros(8, np.int64)
    lines = error_of(state).splitlines()
    assert lines == [
        "the state (official layout) does not fit the model",
        "missing (2):",
        "  layers.0.blocks.0.norm1.weight: expected (8,)",
        "  norm.bias: expected (16,)",
        "unexpected (1):",
        "  extra.weight: found (2, 3)",
        "misshapen (2):",
        "  norm.weight: expected (16,), found (17,)",
        "  patch_embed.norm.bias: expected floating-point (8,), found int64",
    ]


@pytest.mark.parametrize(
    ("theirs", "ours", "fix"),
    [
        ({"num_classes": 21841}, {}, "the head has 21841 classes: pass num_classes=21841"),
        ({"num_classes": 0}, {}, "the head has 0 classes: pass num_classes=0"),
        (
            {"window_size": 3},
            {},
            "of window 3: pass window_size=3 and then flashjax.models.swin_transfer.resize_parameters",
        ),
        ({"patch_size": 2}, {}, "side 2: pass patch_size=2"),
        ({"in_chans": 1}, {}, "1 channels: pass in_chans=1"),
        ({"mlp_ratio": 2.0}, {}, "widen 2.0 times: pass mlp_ratio=2.0"),
        ({"qkv_bias": False}, {}, "pass qkv_bias=False"),
        ({"ape": True}, {}, "pass ape=True"),
        ({"patch_norm": False}, {}, "pass patch_norm=False"),
        ({"feature_norms": True}, {}, "pass feature_norms=True"),
        ({}, {"feature_norms": True}, "pass feature_norms=False and then flashjax.models.swin_transfer"),
        ({"window_size": 8, "always_partition": True}, {"window_size": 8}, "pass always_partition=True"),
        ({"window_size": 8}, {"window_size": 8, "always_partition": True}, "pass always_partition=False"),
    ],
)
def test_the_fix_is_named(theirs: dict[str, Any], ours: dict[str, Any], fix: str) -> None:
    state = official_state(**theirs)
    message = error_of(state, **ours)
    assert fix in message
    # Following the advice works.
    advice = {field: ast.literal_eval(value) for field, value in re.findall(r"pass (\w+)=(\S+)", message)}
    interop.from_torch(V1, state, **(TINY | ours | advice))


@pytest.mark.parametrize(
    ("field", "value"), [("embed_dim", 16), ("depths", (2, 3)), ("num_heads", (1, 2))], ids=lambda x: str(x)
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_size_is_named(layout: str, field: str, value: object) -> None:
    options = TINY | {field: value}
    state = interop.to_torch(V1, variables(V1, **options), layout, **options)
    last = error_of(state).splitlines()[-1]
    assert last.startswith(
        "the model has version 1, embed_dim 8, depths (2, 1), num_heads (2, 4); the state looks like"
    )
    size = {"embed_dim": 8, "depths": (2, 1), "num_heads": (2, 4)} | {field: value}
    assert last.endswith(", ".join(f"{key} {size[key]}" for key in size) + ": name a model of that size")


def test_a_published_size_is_named() -> None:
    c24 = "swin_tiny_c24_patch4_window8_256"
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), swin.abstract(models.create(c24)))
    with pytest.raises(ConversionError) as error:
        interop.from_torch(V1, interop.to_torch(c24, zeros))
    assert f"num_heads (4, 8, 16, 32) (as in {c24}): name a model of that size" in str(error.value)
    assert "of window 8: pass window_size=8" in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_other_version_is_named(layout: str) -> None:
    for ours, theirs, version in ((V1, V2, 2), (V2, V1, 1)):
        state = interop.to_torch(theirs, variables(theirs, **TINY), layout, **TINY)
        assert f"looks like version {version}, embed_dim 8, depths (2, 1)" in error_of(state, ours)


def test_unknown_layouts() -> None:
    with pytest.raises(ConversionError, match=r"none of 'patch_embed.proj.weight' \(official\).*begins with 'a', 'b'"):
        interop.from_torch(V1, {"a": np.zeros(1), "b": np.zeros(1)}, **TINY)
    with pytest.raises(ConversionError, match="begins with nothing"):
        interop.from_torch(V1, {}, **TINY)
    with pytest.raises(ConversionError, match="unknown layout 'tim'; known: official, timm, hf, hf4"):
        interop.to_torch(V1, variables(V1, **TINY), "tim", **TINY)
    state = official_state()
    both = {f"{prefix}.{key}": array for prefix in ("model", "ema") for key, array in state.items()}
    with pytest.raises(ConversionError, match=r"several models, under 'ema\.', 'model\.'"):
        interop.from_torch(V1, both, **TINY)


def test_leaves_that_a_layout_has_no_name_for() -> None:
    with pytest.raises(ConversionError, match="the timm layout has no name for 'feature_norm_0/bias'"):
        interop.to_torch(V1, variables(V1, **PYRAMID), "timm", **PYRAMID)
    with pytest.raises(ConversionError, match="the hf layout has no name for 'feature_norm_0/bias'"):
        interop.to_torch(V2, variables(V2, **PYRAMID), "hf", **PYRAMID)
    with pytest.raises(ConversionError, match="the hf layout has no name for 'absolute_pos_embed'"):
        interop.to_torch(V2, variables(V2, **TINY, ape=True), "hf", **TINY, ape=True)


def test_variables_of_another_model_are_not_written() -> None:
    with pytest.raises(ConversionError) as error:
        interop.to_torch(V1, variables(V1, **(TINY | {"num_classes": 7})), **TINY)
    assert "head/kernel: expected (16, 5), found (16, 7)" in str(error.value)
    assert "the head has 7 classes: pass num_classes=7" in str(error.value)
    tree = variables(V1, **TINY)
    del tree["params"]["norm"]["bias"]
    tree["batch_stats"] = {"mean": np.zeros(3)}
    with pytest.raises(ConversionError) as error:
        interop.to_torch(V1, tree, **TINY)
    assert "norm/bias: expected (16,)" in str(error.value)
    assert "batch_stats/mean: found (3,)" in str(error.value)


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match="swin_tiny_patch4_window7_224"):
        interop.from_torch("swin_tny_patch4_window7_224", {})


def test_the_converted_model_runs() -> None:
    """The tree is the one that the module asks for, and the logits follow the weights."""
    tree = interop.from_torch(V1, official_state(), **TINY)
    images = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    module = models.create(V1, **TINY)
    apply = jax.jit(module.apply)
    logits = apply(tree, images)
    assert logits.shape == (1, 5)
    tree["params"]["head"]["bias"] = tree["params"]["head"]["bias"] + 1
    np.testing.assert_allclose(apply(tree, images), logits + 1, rtol=1e-5, atol=1e-5)
