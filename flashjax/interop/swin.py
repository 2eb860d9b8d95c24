"""Where Swin and Swin V2 keep their weights elsewhere.

Layouts: `official`, the authors' repository, its detection and segmentation backbones, and timm before 0.9;
`timm`, timm since 0.9; `hf`, the modules of transformers 5; `hf4`, those of transformers 4 and most files on its
hub. For V2 the last two are the same.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flashjax.interop.rules import Layout, Names, Rule, Table, conv, linear, norm, tensor
from flashjax.interop.swin_hints import explain
from flashjax.interop.transforms import KEEP, Grid
from flashjax.models.swin import SwinTransformer
from flashjax.models.swin_config import SwinConfig
from flashjax.ops import windows

# Recomputed from sizes, so never read.
_BUFFERS = r".*\.(relative_position_index|relative_coords_table|attn_mask)"
# What pre-training by masked images adds to the encoder, and detectors and segmenters to the backbone.
_SIMMIM = r"(embeddings\.)?mask_token|decoder\..*"
_HEADS = r"(neck|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head)\..*"


@functools.lru_cache(maxsize=16)
def abstract(model: SwinTransformer) -> dict[str, dict]:
    """Shape and dtype of every variable of the model; nothing is computed."""
    config = model.config
    images = jax.ShapeDtypeStruct((1, *config.image_shape, config.in_chans), jnp.float32)
    method = "features" if config.feature_norms else None
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, method=method), images)


def table(model: SwinTransformer) -> Table:
    """The table for one model: names differ with its version, and with its being a classifier or a backbone."""
    config = model.config
    return Table(_layouts(config), _rules(config), lambda found, names: explain(config, found, names))


def extras(model: SwinTransformer, layout: str) -> dict[str, np.ndarray]:
    """What a strict load in this layout asks for beside the parameters.

    The official code saves its buffers. The backbone of transformers 5 holds a final norm that it does not use.
    """
    config = model.config
    if layout == "hf" and config.feature_norms:
        channels = config.dim(len(config.depths) - 1)
        name = _layouts(config)[layout].written("layernorm")
        return {
            f"{name}.weight": np.ones(channels, np.float32),
            f"{name}.bias": np.zeros(channels, np.float32),
        }
    if layout != "official":
        return {}
    buffers = {}
    for i, depth in enumerate(config.depths):
        size, window = config.stage_size(i), config.stage_window(i)
        # The backbones build their masks as they run; the classifier takes no map that needs padding.
        backbone = config.feature_norms or config.always_partition
        masked = not backbone and min(size) > window and all(side % window == 0 for side in size)
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            index = windows.relative_position_index(window)
            buffers[f"{block}.attn.relative_position_index"] = index.astype(np.int64)
            if config.version == 2:
                coords = windows.log_relative_coords(window, config.pretrained_window_sizes[i])
                coords = coords.reshape(1, 2 * window - 1, 2 * window - 1, 2)
                buffers[f"{block}.attn.relative_coords_table"] = coords.copy()
            if masked and j % 2:
                buffers[f"{block}.attn_mask"] = np.array(windows.shift_mask(size, window, window // 2))
    return buffers


def _layouts(config: SwinConfig) -> dict[str, Layout]:
    official = Layout("patch_embed.proj.weight", ignored=(_BUFFERS, _SIMMIM, _HEADS))
    # A backbone has no use for the final norm that transformers may keep in it.
    unused = (r"layernorm\..*",) if config.feature_norms else ()
    hf = Layout(
        "embeddings.patch_embeddings.projection.weight",
        prefix="swin." if config.version == 1 else "swinv2.",
        outside=("classifier.", "hidden_states_norms."),
        ignored=(_BUFFERS, _SIMMIM, *unused),
    )
    return {"official": official, "timm": official, "hf": hf, "hf4": hf}


def _rules(config: SwinConfig) -> list[Rule]:
    block, there, hf_block = "stage_{i}/block_{j}", "layers.{i}.blocks.{j}", "encoder.layers.{i}.blocks.{j}"
    attn, hf_attn, hf4_attn = f"{there}.attn", f"{hf_block}.attention", f"{hf_block}.attention.self"
    down = "layers.{i}.downsample"
    qkv = tuple(f"{hf_attn}.{part}_proj" for part in "qkv")
    qkv4 = tuple(f"{hf4_attn}.{part}" for part in ("query", "key", "value"))
    bias_table = "relative_position_bias_table"
    cpb_mlp = f"{hf4_attn}.continuous_position_bias_mlp"

    def at(official: str, hf: Names, hf4: Names | None = None, timm: str | None = None) -> dict[str, Names]:
        hf4 = hf4 or hf
        # transformers 5 has renamed the modules of the first version only.
        return {
            "official": official,
            "timm": timm or official,
            "hf": hf if config.version == 1 else hf4,
            "hf4": hf4,
        }

    return [
        *conv("patch_embed/proj", **at("patch_embed.proj", "embeddings.patch_embeddings.projection")),
        *norm("patch_embed/norm", **at("patch_embed.norm", "embeddings.norm")),
        *norm(f"{block}/norm1", **at(f"{there}.norm1", f"{hf_block}.layernorm_before")),
        *norm(f"{block}/norm2", **at(f"{there}.norm2", f"{hf_block}.layernorm_after")),
        *linear(f"{block}/attn/qkv", **at(f"{attn}.qkv", qkv, qkv4)),
        *linear(
            f"{block}/attn/proj",
            **at(f"{attn}.proj", f"{hf_attn}.o_proj", f"{hf_attn}.output.dense"),
        ),
        *tensor(
            f"{block}/attn/relative_position_bias_table",
            **at(
                f"{attn}.{bias_table}",
                f"{hf_attn}.relative_position_bias.{bias_table}",
                f"{hf4_attn}.{bias_table}",
            ),
        ),
        *tensor(f"{block}/attn/q_bias", **at(f"{attn}.q_bias", f"{hf4_attn}.query.bias")),
        *tensor(f"{block}/attn/v_bias", **at(f"{attn}.v_bias", f"{hf4_attn}.value.bias")),
        *tensor(f"{block}/attn/logit_scale", **at(f"{attn}.logit_scale", f"{hf4_attn}.logit_scale")),
        *linear(f"{block}/attn/cpb_mlp/fc1", **at(f"{attn}.cpb_mlp.0", f"{cpb_mlp}.0")),
        *linear(f"{block}/attn/cpb_mlp/fc2", **at(f"{attn}.cpb_mlp.2", f"{cpb_mlp}.2")),
        *linear(
            f"{block}/mlp/fc1",
            **at(f"{there}.mlp.fc1", f"{hf_block}.mlp.fc1", f"{hf_block}.intermediate.dense"),
        ),
        *linear(
            f"{block}/mlp/fc2",
            **at(f"{there}.mlp.fc2", f"{hf_block}.mlp.fc2", f"{hf_block}.output.dense"),
        ),
        # timm merges at the beginning of a stage, everyone else at its end.
        *norm(
            "stage_{i}/downsample/norm",
            **at(f"{down}.norm", f"encoder.{down}.norm", timm="layers.{i+1}.downsample.norm"),
        ),
        *linear(
            "stage_{i}/downsample/reduction",
            **at(f"{down}.reduction", f"encoder.{down}.reduction", timm="layers.{i+1}.downsample.reduction"),
        ),
        *norm("norm", **at("norm", "layernorm")),
        *linear("head", **at("head", "classifier", timm="head.fc")),
        *_rare(config),
    ]


def _rare(config: SwinConfig) -> list[Rule]:
    """Absolute positions and the norms of a pyramid: timm has neither, transformers' V2 neither that works."""
    grid = Grid(*config.stage_size(0)) if config.feature_norms else KEEP
    rules = [
        *tensor("absolute_pos_embed", grid, official="absolute_pos_embed"),
        *norm("feature_norm_{i}", official="norm{i}"),
    ]
    if config.version == 1:
        positions, stage = "embeddings.position_embeddings", "hidden_states_norms.stage{i+1}"
        rules += tensor("absolute_pos_embed", hf=positions, hf4=positions)
        rules += norm("feature_norm_{i}", hf=stage, hf4=stage)
    return rules
