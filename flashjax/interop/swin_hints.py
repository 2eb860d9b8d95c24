"""What to pass when a Swin state does not fit: the configuration that the state itself shows."""

import itertools
import math
from collections.abc import Collection
from typing import Any

from flashjax.interop.rules import Lookup
from flashjax.models import registry
from flashjax.models.swin_config import SwinConfig

_SIZE = ("version", "embed_dim", "depths", "num_heads")
_FOUND = {
    "num_classes": "the head has {} classes",
    "window_size": "the bias tables are of window {}",
    "always_partition": "bias tables that never shrink with the map: {}",
    "patch_size": "the patches have side {}",
    "in_chans": "the images have {} channels",
    "mlp_ratio": "the MLPs widen {} times",
    "qkv_bias": "biases on queries and values: {}",
    "ape": "absolute position embeddings: {}",
    "patch_norm": "a norm after the patch embedding: {}",
    "feature_norms": "norms of a pyramid backbone: {}",
}
# What a converted model can still be made into (a classifier into a backbone, though not the reverse).
_RESIZED = ("num_classes", "window_size", "feature_norms")


def explain(config: SwinConfig, found: Lookup, names: Collection[str]) -> list[str]:
    """One sentence for each field in which the state and the configuration differ, with what to pass instead."""
    looks = _looks_like(config, found, names)
    hints = []
    if any(looks[field] != getattr(config, field) for field in _SIZE):
        this = ", ".join(f"{field} {getattr(config, field)}" for field in _SIZE)
        that = ", ".join(f"{field} {looks[field]}" for field in _SIZE)
        alike = _named_like(looks)
        as_in = f" (as in {', '.join(alike)})" if alike else ""
        hints.append(f"the model has {this}; the state looks like {that}{as_in}: name a model of that size")
    for field, text in _FOUND.items():
        if field in looks and looks[field] != getattr(config, field):
            hint = f"{text.format(looks[field])}: pass {field}={looks[field]}"
            if field in _RESIZED and looks[field] is not True:
                hint += " and then flashjax.models.swin_transfer.resize_parameters"
            hints.append(hint)
    return hints


def _looks_like(config: SwinConfig, found: Lookup, names: Collection[str]) -> dict[str, Any]:
    """The fields that the state shows. The size is always among them, the rest where its leaves are there."""
    depths = []
    for i in itertools.count():
        depth = sum(1 for _ in itertools.takewhile(lambda j, i=i: _has_block(found, i, j), itertools.count()))
        if not depth:
            break
        depths.append(depth)
    block = "stage_0/block_0"
    tables = [found(f"stage_{i}/block_0/attn/relative_position_bias_table") for i in range(len(depths))]
    scales = [found(f"stage_{i}/block_0/attn/logit_scale") for i in range(len(depths))]
    heads = tuple(table[1] if table else scale[0] if scale else 0 for table, scale in zip(tables, scales, strict=True))
    pyramid = found("feature_norm_0/scale") is not None
    looks: dict[str, Any] = {
        "version": 2 if any("logit_scale" in name for name in names) else 1,
        "embed_dim": config.embed_dim,
        "depths": tuple(depths),
        "num_heads": heads if all(heads) else config.num_heads,
        "ape": found("absolute_pos_embed") is not None,
        "patch_norm": found("patch_embed/norm/scale") is not None,
        "feature_norms": pyramid,
    }
    if kernel := found("patch_embed/proj/kernel"):
        looks |= {"patch_size": kernel[0], "in_chans": kernel[2], "embed_dim": kernel[3]}
    if not pyramid:
        looks["num_classes"] = (found("head/kernel") or (0, 0))[1]
    if fc1 := found(f"{block}/mlp/fc1/kernel"):
        looks["mlp_ratio"] = fc1[1] / fc1[0]
    if found(f"{block}/attn/qkv/kernel"):
        looks["qkv_bias"] = bool(found(f"{block}/attn/qkv/bias") or found(f"{block}/attn/q_bias"))
    if tables and all(tables):
        sides = [(math.isqrt(table[0]) + 1) // 2 for table in tables if table]
        looks["window_size"] = whole = max(sides)
        shrunk = [min(whole, *config.stage_size(i)) for i in range(len(sides))]
        if whole > min(shrunk) and sides in (shrunk, [whole] * len(sides)):
            looks["always_partition"] = sides != shrunk
    return looks


def _has_block(found: Lookup, stage: int, block: int) -> bool:
    leaves = ("norm1/scale", "norm2/scale", "attn/qkv/kernel", "mlp/fc1/kernel")
    return any(found(f"stage_{stage}/block_{block}/{leaf}") for leaf in leaves)


def _named_like(looks: dict[str, Any]) -> list[str]:
    """The published models of this size; of this window and number of classes too, where there are such."""

    def alike(fields: tuple[str, ...]) -> list[str]:
        configs = {name: registry.config(name) for name in registry.names("swin*")}
        return [
            name
            for name, config in configs.items()
            if all(getattr(config, field) == looks.get(field, getattr(config, field)) for field in fields)
        ]

    return alike((*_SIZE, "window_size", "num_classes")) or alike(_SIZE)
