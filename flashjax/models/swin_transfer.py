"""Trained Swin parameters for another resolution, window or set of classes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from flashjax.models.swin_config import SwinConfig
from flashjax.ops.resize import resize_bicubic

# What may differ between the two configurations, beside their layout, without making another model of them.
_FREE = {
    "img_size",
    "num_classes",
    "window_size",
    "pretrained_window_sizes",
    "drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "strict_img_size",
    "always_partition",
    "feature_norms",
    "dtype",
    "initializer",
}


def resize_parameters(
    params: Mapping[str, Any], source: SwinConfig, target: SwinConfig, class_map: Sequence[int] | None = None
) -> dict[str, Any]:
    """The parameters of a model trained as `source`, made to fit `target`.

    - Bias tables (version 1) and the absolute position embedding are resized by torch's bicubic. Version 2 needs no
      change, only `target.pretrained_window_sizes` that say which windows the weights know.
    - A head for another number of classes starts at zero, or takes the rows of `class_map` (for each class of `target`
      its number in `source`, such as ImageNet-1k inside ImageNet-22k).
    - A classifier that becomes a pyramid backbone (`feature_norms`) loses its final norm and head and gets fresh norms.

    `params` is the "params" collection; it is not modified. Raises ValueError where the two configurations are
    different models, where version 2's windows are not declared, or where `class_map` does not fit. Source:
    `load_pretrained` of the official repository.
    """
    _check(source, target)
    flat: dict[Any, Any] = dict(traverse_util.flatten_dict(dict(params)))
    for i in range(len(source.depths)):
        old, new = 2 * source.stage_window(i) - 1, 2 * target.stage_window(i) - 1
        if source.version == 1 and old != new:
            for j in range(source.depths[i]):
                key = (f"stage_{i}", f"block_{j}", "attn", "relative_position_bias_table")
                flat[key] = _resize_tokens(jnp.asarray(flat[key]), (old, old), (new, new))
    if source.ape and source.stage_size(0) != target.stage_size(0):
        key = ("absolute_pos_embed",)
        flat[key] = _resize_tokens(jnp.asarray(flat[key][0]), source.stage_size(0), target.stage_size(0))[None]
    if target.feature_norms and not source.feature_norms:
        flat = {key: value for key, value in flat.items() if key[0] not in ("norm", "head")}
        for i in range(len(target.depths)):
            flat[f"feature_norm_{i}", "scale"] = jnp.ones(target.dim(i))
            flat[f"feature_norm_{i}", "bias"] = jnp.zeros(target.dim(i))
    elif not target.feature_norms:
        flat.update(_head(flat, source, target, class_map))
    return traverse_util.unflatten_dict({key: value for key, value in flat.items() if value is not None})


def _check(source: SwinConfig, target: SwinConfig) -> None:
    plain_source, plain_target = source.plain(), target.plain()
    for field in dataclasses.fields(SwinConfig):
        old, new = getattr(plain_source, field.name), getattr(plain_target, field.name)
        if field.name not in _FREE and old != new:
            raise ValueError(f"parameters trained with {field.name}={old!r} do not fit {field.name}={new!r}")
    if source.feature_norms and not target.feature_norms:
        raise ValueError("a pyramid backbone (feature_norms=True) has no final norm to make a classifier from")
    if source.version == 2:
        stages = range(len(source.depths))
        trained = tuple(source.pretrained_window_sizes[i] or source.stage_window(i) for i in stages)
        declared = tuple(target.pretrained_window_sizes[i] or target.stage_window(i) for i in stages)
        if trained != declared:
            raise ValueError(
                f"the bias networks were trained for windows {trained} but would be read for {declared}: "
                f"pass pretrained_window_sizes={trained} to the target"
            )


def _resize_tokens(tokens: Float[Array, "n C"], old: tuple[int, int], new: tuple[int, int]) -> Float[Array, "m C"]:
    return resize_bicubic(jnp.asarray(tokens).reshape(*old, -1), new).reshape(new[0] * new[1], -1)


def _head(
    flat: Mapping[tuple[str, ...], Any], source: SwinConfig, target: SwinConfig, class_map: Sequence[int] | None
) -> dict[tuple[str, ...], Any]:
    """The head's entries for the target; None removes one."""
    kernel, bias = ("head", "kernel"), ("head", "bias")
    if class_map is not None:
        rows = np.asarray(class_map)
        if rows.shape != (target.num_classes,) or rows.min() < 0 or rows.max() >= source.num_classes:
            raise ValueError(
                f"class_map must give each of {target.num_classes} classes a number below {source.num_classes}, "
                f"got shape {rows.shape} with values from {rows.min()} to {rows.max()}"
            )
        return {kernel: flat[kernel][:, rows], bias: flat[bias][rows]}
    if source.num_classes == target.num_classes:
        return {}
    if target.num_classes == 0:
        return {kernel: None, bias: None}
    width = target.dim(len(target.depths) - 1)
    return {kernel: jnp.zeros((width, target.num_classes)), bias: jnp.zeros(target.num_classes)}
