"""Where residual networks keep their weights elsewhere.

Layouts: `torchvision`, also timm's, and that of the nets for CIFAR in Random Erasing's and the pytorch-classification
repository; `hf`, transformers' `ResNetForImageClassification`; `wide`, Random Erasing's Wide ResNets; `resnext`, the
ResNeXts for CIFAR that the paper used. Running statistics go both ways; torch's count of batches, which no norm with
a momentum uses, is written as 0 and not read.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flashjax.interop.paths import flatten
from flashjax.interop.rules import Layout, Lookup, Names, Rule, Table, batch_norm, conv, linear
from flashjax.models import registry
from flashjax.models.resnet import ResNet, ResNetConfig

_COUNTS = r".*\.num_batches_tracked"
_SIZE = ("block", "depths", "widths")


@functools.lru_cache(maxsize=16)
def abstract(model: ResNet) -> dict[str, dict]:
    """Shape and dtype of every variable of the model; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, 64, 64, model.config.in_chans), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)


def table(model: ResNet) -> Table:
    """The table for one model: names differ with where its blocks have their norms.

    Raises ValueError for a network without any, which none of these layouts has.
    """
    config = model.config
    if config.norm == "none":
        raise ValueError("networks of norm 'none' (Fixup) are in no public layout here: pass norm='batch'")
    return Table(_layouts(config), _rules(config), lambda found, _: explain(config, found))


def extras(model: ResNet, layout: str) -> dict[str, np.ndarray]:
    """The count of batches of every batch norm, int64: 0."""
    how, rules = _layouts(model.config)[layout], table(model)
    variables = flatten(abstract(model))  # type: ignore[arg-type]
    means = [path for path in variables if path.startswith("batch_stats/") and path.endswith("/mean")]
    places = [place for path in means if (place := rules.place(path, layout))]
    names = [how.written(name.replace("running_mean", "num_batches_tracked")) for p in places for name in p.names]
    return {name: np.zeros((), np.int64) for name in names}


def _layouts(config: ResNetConfig) -> dict[str, Layout]:
    layouts = {"torchvision": Layout("layer1.0.conv1.weight", ignored=(_COUNTS,))}
    if config.preact:
        wide = {"wide": Layout("block1.layer.0.conv1.weight", ignored=(_COUNTS,))}
        return layouts | (wide if config.block == "basic" else {})
    stages = "encoder.stages.0.layers.0.layer.0.convolution.weight"
    layouts["hf"] = Layout(stages, prefix="resnet.", outside=("classifier.",), ignored=(_COUNTS,))
    if config.block == "bottleneck":
        resnext = "stage_1.stage_1_bottleneck_0.conv_reduce.weight"
        layouts["resnext"] = Layout(resnext, ignored=(_COUNTS,))
    return layouts


def _rules(config: ResNetConfig) -> list[Rule]:
    block, there = "stage_{i}/block_{j}", "layer{i+1}.{j}"
    hf, wide = "encoder.stages.{i}.layers.{j}", "block{i+1}.layer.{j}"
    resnext = "stage_{i+1}.stage_{i+1}_bottleneck_{j}"
    rules = [
        *conv("stem_conv", torchvision="conv1", wide="conv1", resnext="conv_1_3x3", hf="embedder.embedder.convolution"),
        *batch_norm("stem_norm", torchvision="bn1", resnext="bn_1", hf="embedder.embedder.normalization"),
        *batch_norm("final_norm", torchvision="bn", wide="bn1"),
        *linear("head", torchvision="fc", wide="fc", resnext="classifier", hf="classifier.1"),
        *conv(
            f"{block}/shortcut_conv",
            torchvision=f"{there}.downsample.0",
            wide=f"{wide}.convShortcut",
            resnext=f"{resnext}.shortcut.shortcut_conv",
            hf=f"{hf}.shortcut.convolution",
        ),
        *batch_norm(
            f"{block}/shortcut_norm",
            torchvision=f"{there}.downsample.1",
            resnext=f"{resnext}.shortcut.shortcut_bn",
            hf=f"{hf}.shortcut.normalization",
        ),
    ]
    parts = zip(("conv_reduce", "conv_conv", "conv_expand"), ("bn_reduce", "bn", "bn_expand"), strict=True)
    for k, (conv_part, norm_part) in enumerate(parts):

        def at(kind: str, part: str, hf_part: str, k: int = k) -> dict[str, Names]:
            return {
                "torchvision": f"{there}.{kind}{k + 1}",
                "wide": f"{wide}.{kind}{k + 1}",
                "resnext": f"{resnext}.{part}",
                "hf": f"{hf}.layer.{k}.{hf_part}",
            }

        rules += conv(f"{block}/conv{k + 1}", **at("conv", conv_part, "convolution"))
        rules += batch_norm(f"{block}/norm{k + 1}", **at("bn", norm_part, "normalization"))
    return rules


def explain(config: ResNetConfig, found: Lookup) -> list[str]:
    """One sentence for each field in which the state and the configuration differ, with what to pass instead."""
    looks = _looks_like(found)
    hints = []
    if any(looks[field] != getattr(config, field) for field in _SIZE):
        this = ", ".join(f"{field} {getattr(config, field)}" for field in _SIZE)
        that = ", ".join(f"{field} {looks[field]}" for field in _SIZE)
        known = {name: registry.config(name) for name in registry.names("*res*")}
        alike = [name for name, c in known.items() if all(getattr(c, f, None) == looks[f] for f in _SIZE)]
        as_in = f" (as in {', '.join(alike)})" if alike else ""
        hints.append(f"the model has {this}; the state looks like {that}{as_in}: name a model of that size")
    return hints + [
        f"the state looks like {field} {looks[field]}: pass {field}={looks[field]}"
        for field in ("num_classes", "in_chans")
        if field in looks and looks[field] != getattr(config, field)
    ]


def _looks_like(found: Lookup) -> dict[str, Any]:
    """The fields that the state shows."""

    def blocks(stage: int) -> int:
        has = (found(f"stage_{stage}/block_{j}/conv1/kernel") for j in itertools.count())
        return sum(1 for _ in itertools.takewhile(bool, has))

    depths = tuple(itertools.takewhile(bool, map(blocks, itertools.count())))
    last = 3 if found("stage_0/block_0/conv3/kernel") else 2
    kernels = [found(f"stage_{i}/block_0/conv{last}/kernel") for i in range(len(depths))]
    looks: dict[str, Any] = {
        "block": "bottleneck" if last == 3 else "basic",
        "depths": depths,
        "widths": tuple(kernel[3] // (4 if last == 3 else 1) for kernel in kernels if kernel),
        "num_classes": (found("head/kernel") or (0, 0))[1],
    }
    if stem := found("stem_conv/kernel"):
        looks["in_chans"] = stem[2]
    return looks
