"""The tables that presets make of tiny models, each value; golden, and checked against what is drawn."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from flashjax.training.optimizers.groups import leaves_by_path
from flashjax.training.parametrization import PRESETS, Leaf, ParametrizationConfig, ParametrizationError, Rule
from flashjax.training.parametrization.draw import draw
from flashjax.training.parametrization.table import columns, resolve, tensors
from tests.golden.golden import expected, how
from tests.training.parametrization.cases import RNGS, batch, convolutions, images, shapes, text, under

FIELDS = {
    "mup": {"base_width": 16},
}
MODELS = {"transformer": text, "swin": images}
SWIN = ("standard", "gpt2", "orthogonal", "vit", "mup")


def goal_for(model: str, preset: str):
    if model == "swin":
        return images(embed_dim=32, num_heads=(4, 8)) if preset == "mup" else images()
    return text(attention_scale="none") if preset == "t5" else text()


CASES = [
    *(("transformer", preset) for preset in PRESETS if preset != "model"),
    *(("swin", preset) for preset in SWIN),
]


def row(leaf: Leaf) -> str:
    std = "" if leaf.std is None else f" {leaf.std:.6g}"
    factors = ((leaf.multiplier, "x"), (leaf.learning_rate, "rate "), (leaf.decay, "decay "))
    return leaf.distribution + std + "".join(f", {name}{value:.6g}" for value, name in factors if value != 1)


@pytest.mark.parametrize(("model", "preset"), CASES)
def test_tables(model, preset):
    table = under(goal_for(model, preset), preset, **FIELDS.get(preset, {})).table
    found = {path: row(leaf) for path, leaf in table.items()}
    golden = expected("parametrizations.json", f"{model} {preset}", found)
    assert found == golden, how("parametrizations.json")


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "model"])
def test_layers_apart_have_the_rows_of_scanned_ones(preset):
    fields = {"attention_scale": "none"} if preset == "t5" else {}
    scanned = under(text(**fields), preset, **FIELDS.get(preset, {}))
    apart = under(text(scan_layers=False, **fields), preset, **FIELDS.get(preset, {}))
    for path, leaf in scanned.table.items():
        for i in range(2):
            assert apart.table[path.replace("layers/", f"layer_{i}/")] == leaf


DISTRIBUTIONS = ["standard", "orthogonal", "xavier", "bert"]
"""Presets of one distribution each: normal, orthogonal, uniform, truncated normal."""


@pytest.mark.parametrize("preset", DISTRIBUTIONS)
def test_layers_apart_have_the_draws_of_scanned_ones(preset):
    parametrized, apart = (under(text(scan_layers=scan), preset) for scan in (True, False))
    scanned, apart = drawn(parametrized, "/mlp/.*kernel"), drawn(apart, "/mlp/.*kernel")
    for i in range(2):
        for name in ("up", "down"):
            one, same = scanned[f"layers/mlp/{name}/kernel"][i], apart[f"layer_{i}/mlp/{name}/kernel"]
            np.testing.assert_allclose(one, same, atol=1e-6)
    assert not np.array_equal(scanned["layers/mlp/up/kernel"][0], scanned["layers/mlp/up/kernel"][1])
    assert deviate_as_told(parametrized, scanned) == 2


@pytest.mark.parametrize(("model", "preset"), [("transformer", "fixup"), ("swin", "vit")])
def test_what_is_drawn_deviates_as_the_table_says(model, preset):
    parametrized = under(goal_for(model, preset), preset)
    assert deviate_as_told(parametrized, drawn(parametrized, "kernel$|embedding$")) >= 5


def deviate_as_told(parametrized, values_of):
    """How many of these parameters were checked."""
    checked = 0
    for path, values in values_of.items():
        entry = parametrized.table[path]
        if entry.distribution == "zeros":
            assert (values == 0).all()
        elif entry.std is not None:
            kurtosis = 3.0  # at most, of these distributions
            error = np.sqrt((kurtosis - 1) / values.size)
            np.testing.assert_allclose((values**2).mean() / entry.std**2, 1, atol=5 * error, err_msg=path)
            checked += 1
    return checked


def drawn(parametrized, pattern):
    """Parameters of step 0 whose paths match, by path."""
    leaves = leaves_by_path(shapes(parametrized.objective))
    found = {path: np.ones(leaf.shape, leaf.dtype) for path, leaf in leaves.items() if re.search(pattern, path)}
    made = jax.jit(lambda: draw(parametrized.table, parametrized.parameters, found, RNGS["params"]))()
    return {path: np.asarray(leaf) for path, leaf in made.items()}


def test_model_is_the_objective_itself():
    goal = text()
    parametrized = under(goal)
    assert set(parametrized.table.values()) == {Leaf()} and parametrized.multipliers == {}
    ours, theirs = jax.jit(lambda: [each.init(RNGS, batch(goal)) for each in (parametrized, goal)])()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert parametrized.of_model(ours)["params"] is ours["params"]


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_fixup_is_what_residual_networks_without_norms_draw(block):
    goal = convolutions(norm="none", block=block)
    table = under(goal, "fixup").table
    params = jax.jit(lambda: goal.init(RNGS, batch(goal))["params"])()
    zeros = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if table[name].distribution == "zeros":
            assert not leaf.any(), name
            zeros.append(name)
        elif "/conv" in name:
            error = math.sqrt(2 / leaf.size)
            np.testing.assert_allclose(np.square(leaf).mean() / table[name].std ** 2, 1, atol=5 * error, err_msg=name)
    last = "conv2" if block == "basic" else "conv3"
    kernels = [f"stage_{i}/block_0/{last}/kernel" for i in range(3)]
    assert {name for name in zeros if name.endswith("kernel")} == {"head/kernel", *kernels}
    # Three branches: L^(-1 / (2 m - 2)) of He's, by fan-out.
    std = 3 ** (-1 / 2 if block == "basic" else -1 / 4) * math.sqrt(2 / ((9 if block == "basic" else 1) * 16))
    assert table["stage_0/block_0/conv1/kernel"].std == pytest.approx(std)


def test_what_scales_by_depth_wants_branches_that_it_knows():
    with pytest.raises(ValueError, match=r"undoes its scales: take a model of norm 'none' \(fixup_resnet20"):
        under(convolutions(), "fixup")
    with pytest.raises(ValueError, match=r"preset gpt2 scales .* and ResNetConfig has none of these"):
        under(convolutions(), "gpt2")


def test_kernels_with_a_dim_of_heads_have_their_fans():
    params = {
        "attn": {
            "query": {"kernel": jax.ShapeDtypeStruct((10, 2, 4), np.float32)},
            "out": {"kernel": jax.ShapeDtypeStruct((2, 4, 10), np.float32)},
        },
        "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 5, 7), np.float32)},
        "layers": {"conv": {"kernel": jax.ShapeDtypeStruct((6, 3, 3, 5, 7), np.float32)}},
    }
    found = {path: (tensor.fans, tensor.matrix) for path, tensor in tensors(params).items()}
    assert found == {
        "attn/query/kernel": ((10, 8), (10, 8)),
        "attn/out/kernel": ((8, 10), (8, 10)),
        "conv/kernel": ((45, 63), (45, 7)),
        "layers/conv/kernel": ((45, 63), (45, 7)),
    }


def test_changes_of_single_values():
    table = under(
        text(),
        "standard",
        rules=("query/kernel$ std=0.5 learning_rate=.1", "embed/ distribution=zeros", "query/ decay=0"),
    ).table
    assert table["layers/attn/query/kernel"] == Leaf("normal", 0.5, learning_rate=0.1, decay=0)
    assert table["layers/attn/query/bias"] == Leaf("zeros", decay=0)
    assert table["embed/embedding"] == Leaf("zeros")
    found = columns(table)
    assert found["drawn from"]["embed/embedding"] == "zeros" and found["std"]["layers/attn/query/kernel"] == "0.5"


BAD = [
    ({"rules": ("qury/kernel$ std=1",)}, "matches no parameter; nearest paths: layers/attn/key/kernel"),
    ({"rules": ("query/kernel$",)}, "changes nothing: add FIELD=VALUE"),
    ({"rules": ("query/kernel$ sdt=1",)}, "'sdt=1' is no distribution=, std="),
    ({"rules": ("query/kernel$ std=one",)}, "'std=one' wants a number"),
    ({"rules": ("query/kernel$ distribution=cauchy",)}, "unknown distribution 'cauchy'; choose from model, normal"),
    ({"rules": ("query/kernel$ distribution=normal",)}, "distribution 'normal' needs a std, found None"),
    ({"rules": ("query/kernel$ std=0.1",)}, "distribution 'model' has no std, found 0.1"),
    ({"rules": ("query/kernel$ multiplier=0",)}, "could never be learned"),
    ({"preset": "standard", "rules": ("query/kernel$ std=-1",)}, "std is -1.0: it must be positive"),
    ({"preset": "xaver"}, "unknown parametrization.preset 'xaver'; nearest: xavier"),
    ({"preset": "mup"}, "mup needs the width from which it scales"),
    ({"preset": "ntk", "base_width": 16}, "no other preset has one"),
    ({"keep": "width"}, "must be head_dim or heads, found 'width'"),
    ({"preset": "t5"}, "set model.attention_scale=none"),
    ({"preset": "mup", "base_width": 24}, "heads 4 would be 1.5: choose another base width"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        under(text(), **fields)


def test_rules_that_do_not_fit_their_model():
    params = tensors(shapes(text()))
    model = Rule(r".*", lambda tensor: Leaf())
    with pytest.raises(ParametrizationError, match="no rule matches 'embed/embedding'; there are 'kernel"):
        resolve([Rule("kernel$", model.leaf)], params)
    with pytest.raises(ValueError, match="rule 'kernl' matches no parameter; nearest paths: layers/attn/key/kernel"):
        resolve([Rule("kernl", model.leaf), model], params)
    with pytest.raises(ParametrizationError, match=r"'kernel\$' is the first match of no parameter: move it up"):
        resolve([model, Rule("kernel$", model.leaf)], params)
    with pytest.raises(ParametrizationError, match=r"embed/none \(3,\) is no kernel"):
        resolve([Rule(".", lambda t: Leaf("normal", t.std("he")))], tensors({"embed": {"none": np.zeros(3)}}))
    with pytest.raises(ParametrizationError, match="asks for the model's branches"):
        resolve(PRESETS["deepnorm"], tensors({"mlp": {"up": {"kernel": np.zeros((3, 3))}}}))


def test_settings_are_hashable_values():
    assert hash(ParametrizationConfig()) == hash(dataclasses.replace(ParametrizationConfig()))
