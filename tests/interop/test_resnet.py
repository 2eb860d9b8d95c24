"""Weights of residual networks in every layout, on states that need no torch: names, values, what errors say."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tyro

from flashjax import interop
from flashjax.interop import ConversionError, resnet
from flashjax.interop.__main__ import convert
from flashjax.models.resnet import ResNet, ResNetConfig
from flashjax.models.resnet_variants import PREACT
from tests.interop.test_swin import assert_same

TINY: dict[str, Any] = {"num_classes": 5, "depths": (1, 2), "widths": (4, 8), "stem_width": 4}
BOTTLENECK = TINY | {"block": "bottleneck"}
CASES = {
    "torchvision basic": ("torchvision", TINY),
    "torchvision bottleneck": ("torchvision", BOTTLENECK | {"groups": 2, "width_per_group": 32}),
    "torchvision preact": ("torchvision", TINY | PREACT),
    "hf": ("hf", BOTTLENECK),
    "wide": ("wide", TINY | PREACT),
    "resnext": ("resnext", BOTTLENECK | {"stem": "cifar", "groups": 2}),
    "padding": ("torchvision", TINY | {"shortcut": "padding"}),
}


def variables(model: ResNet, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), resnet.abstract(model))


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_bit_exact(case: str) -> None:
    layout, fields = CASES[case]
    model = ResNet(ResNetConfig(**fields))
    original = variables(model)
    state = interop.to_torch(model, original, layout)
    assert_same(interop.from_torch(model, state), original)
    parallel = {f"module.{name}": array for name, array in state.items()}
    assert_same(interop.from_torch(model, parallel), original)
    counts = {name: array for name, array in state.items() if name.endswith("num_batches_tracked")}
    norms = [name for name in state if name.endswith("running_var")]
    assert len(counts) == len(norms) > 3
    assert all(array.dtype == np.int64 and array.shape == () for array in counts.values())
    assert_same(interop.from_torch(model, {name: a for name, a in state.items() if name not in counts}), original)


def test_names_and_values() -> None:
    model = ResNet(ResNetConfig(**BOTTLENECK))
    tree = variables(model)
    state = interop.to_torch(model, tree)
    block = tree["params"]["stage_1"]["block_0"]
    assert state["layer2.0.conv2.weight"][3, 2, 0, 1] == block["conv2"]["kernel"][0, 1, 2, 3]
    np.testing.assert_array_equal(state["layer2.0.downsample.1.weight"], block["shortcut_norm"]["scale"])
    running = tree["batch_stats"]["stage_1"]["block_1"]["norm3"]
    np.testing.assert_array_equal(state["layer2.1.bn3.running_var"], running["var"])
    assert "layer2.1.downsample.0.weight" not in state and state["fc.weight"].shape == (5, 32)
    hf = interop.to_torch(model, tree, "hf")
    assert "resnet.encoder.stages.1.layers.0.layer.1.convolution.weight" in hf and "classifier.1.bias" in hf


@pytest.mark.parametrize(
    ("theirs", "ours", "fix"),
    [
        ({"num_classes": 7}, {}, "looks like num_classes 7: pass num_classes=7"),
        ({"in_chans": 1}, {}, "looks like in_chans 1: pass in_chans=1"),
        ({"depths": (1, 3)}, {}, r"the state looks like block basic, depths \(1, 3\), widths \(4, 8\): name a model"),
        ({"block": "bottleneck"}, {}, "the state looks like block bottleneck"),
    ],
)
def test_the_fix_is_named(theirs: dict[str, Any], ours: dict[str, Any], fix: str) -> None:
    source, target = (ResNet(ResNetConfig(**(TINY | changes))) for changes in (theirs, ours))
    state = interop.to_torch(source, variables(source))
    with pytest.raises(ConversionError, match=fix):
        interop.from_torch(target, state)


def test_a_published_size_is_named() -> None:
    source = ResNet(ResNetConfig(depths=(3, 4, 6, 3), num_classes=5))
    state = interop.to_torch(source, variables(source))
    with pytest.raises(ConversionError, match=re.escape("(as in resnet34): name a model of that size")):
        interop.from_torch("resnet18", state)


def test_layouts_that_a_model_has_not() -> None:
    model = ResNet(ResNetConfig(**TINY))
    with pytest.raises(ConversionError, match="unknown layout 'wide'; known: torchvision, hf"):
        interop.to_torch(model, variables(model), "wide")


def test_the_command_rewrites_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ResNet(ResNetConfig(**(TINY | {"depths": (2, 2, 2, 2), "widths": (4, 8, 16, 32)})))
    original = variables(model)
    source, target = tmp_path / "torchvision.safetensors", tmp_path / "hf.safetensors"
    interop.save(source, interop.to_torch(model, original))
    overrides = ["--override", "num_classes=5", "widths=(4,8,16,32)", "stem_width=4"]
    tyro.cli(convert, args=[str(source), str(target), "--name", "resnet18", "--layout", "hf", *overrides])
    assert "resnet.embedder.embedder.normalization.running_mean" in interop.read_state(target)
    assert_same(interop.from_torch(model, interop.read_state(target)), original)
    assert capsys.readouterr().out.startswith(f"{target}: 122 tensors")
