"""The machinery of the tables, on a toy family that has what Swin has not: another collection, fused convolutions."""

from typing import Any

import jax
import numpy as np
import pytest

from flashjax.interop import mapping, paths, rules
from flashjax.interop.mapping import ConversionError
from flashjax.interop.rules import Layout, Share, Table
from flashjax.interop.transforms import CONV, KEEP, LINEAR, Fuse, Grid, Permute, Transform


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("transform", "leaf", "torch_shapes"),
    [
        (KEEP, (3, 4), [(3, 4)]),
        (LINEAR, (3, 4), [(4, 3)]),
        (CONV, (5, 6, 3, 4), [(4, 3, 5, 6)]),
        (Permute((2, 0, 1)), (3, 4, 5), [(5, 3, 4)]),
        (Fuse(3, LINEAR), (4, 6), [(2, 4)] * 3),
        (Fuse(2, KEEP), (6,), [(3,)] * 2),
        (Grid(2, 3), (1, 6, 4), [(1, 4, 2, 3)]),
    ],
)
def test_transforms_are_invertible(transform: Transform, leaf: tuple, torch_shapes: list) -> None:
    original = random(*leaf)
    tensors = transform.to_torch(original)
    assert [tensor.shape for tensor in tensors] == torch_shapes
    np.testing.assert_array_equal(transform.to_flax(tensors), original)


TABLE = Table(
    layouts={"a": Layout("stem.weight"), "b": Layout("conv1.weight", prefix="net.", outside=("fc.",))},
    rules=[
        *rules.conv("stem", a="stem", b="conv1"),
        *rules.norm("block_{i}/bn", a="blocks.{i}.bn", b="layer{i+1}.bn1"),
        *rules.tensor("batch_stats/block_{i}/bn/mean", a="blocks.{i}.bn.running_mean", b="layer{i+1}.bn1.running_mean"),
        *rules.linear("head", a="head", b=("fc.x", "fc.y")),
    ],
    explain=lambda found, names: [f"head {found('head/kernel')}, stem {found('stem/kernel')}"],
)
VARIABLES: dict[str, Any] = {
    "params": {
        "stem": {"kernel": random(3, 3, 2, 4)},
        "block_0": {"bn": {"scale": random(4), "bias": random(4)}},
        "head": {"kernel": random(4, 6), "bias": random(6)},
    },
    "batch_stats": {"block_0": {"bn": {"mean": random(4)}}},
}
LEAVES = paths.flatten(VARIABLES)
EXPECTED = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in LEAVES.items()}


def test_paths_name_every_collection_but_params() -> None:
    assert "stem/kernel" in LEAVES
    assert "batch_stats/block_0/bn/mean" in LEAVES
    back = paths.unflatten(LEAVES, VARIABLES.keys())
    assert jax.tree.structure(back) == jax.tree.structure(VARIABLES)
    assert all(a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(VARIABLES), strict=True))
    assert paths.unflatten({"scale": 1}, ["params"]) == {"params": {"scale": 1}}


@pytest.mark.parametrize("layout", ["a", "b"])
def test_there_and_back(layout: str) -> None:
    state = mapping.write(TABLE, layout, LEAVES, EXPECTED)
    read = mapping.read(TABLE, state, EXPECTED)
    assert read.keys() == LEAVES.keys()
    for path, leaf in LEAVES.items():
        np.testing.assert_array_equal(read[path], leaf)


def test_written_names() -> None:
    assert mapping.write(TABLE, "b", LEAVES, EXPECTED).keys() == {
        "net.conv1.weight",
        "net.layer1.bn1.weight",
        "net.layer1.bn1.bias",
        "net.layer1.bn1.running_mean",
        *("fc.x.weight", "fc.y.weight", "fc.x.bias", "fc.y.bias"),
    }


def test_names_beside_and_under_a_prefix() -> None:
    state = mapping.write(TABLE, "b", LEAVES, EXPECTED)
    wrapped = {f"module.{name}": array for name, array in state.items()}
    assert mapping.read(TABLE, wrapped, EXPECTED).keys() == LEAVES.keys()
    with pytest.raises(ConversionError) as error:
        mapping.read(TABLE, wrapped | {"layer1.bn1.weight": random(4), "fc.x.weight": random(3, 4)}, EXPECTED)
    assert str(error.value).splitlines() == [
        "the state (b layout, names after 'module.net.') does not fit the model",
        "unexpected (2):",
        "  fc.x.weight: found (3, 4)",
        "  layer1.bn1.weight: found (4,)",
        "head (4, 6), stem (3, 3, 2, 4)",
    ]


def test_shapes_in_errors_are_those_of_the_layout() -> None:
    state = mapping.write(TABLE, "b", LEAVES, EXPECTED)
    state["fc.y.weight"] = random(2, 4)
    state["net.conv1.weight"] = random(4)  # not even four dims
    del state["fc.x.bias"]
    with pytest.raises(ConversionError) as error:
        mapping.read(TABLE, state, EXPECTED)
    assert str(error.value).splitlines()[1:] == [
        "missing (1):",
        "  fc.x.bias: expected (3,)",
        "misshapen (2):",
        "  conv1.weight: expected (4, 2, 3, 3), found (4,)",
        "  fc.y.weight: expected (3, 4), found (2, 4)",
        "head (4, 5), stem None",
    ]


def test_blocks_are_listed_in_order() -> None:
    more = {f"block_{i}/bn/scale": jax.ShapeDtypeStruct((4,), np.float32) for i in (10, 9, 2)}
    with pytest.raises(ConversionError) as error:
        mapping.read(TABLE, mapping.write(TABLE, "a", LEAVES, EXPECTED), EXPECTED | more)
    assert [line.strip()[:9] for line in str(error.value).splitlines()[2:5]] == ["blocks.2.", "blocks.9.", "blocks.10"]


# A scanned stack of two layers; torch joins their queries and keys into one tensor, and ties its head to the embedding.
SCANNED_TABLE = Table(
    layouts={
        "joined": Layout("embed.weight", prefix="net.", outside=("out.",), copies={"out.weight": "embed.weight"}),
        "apart": Layout("stem.weight"),
    },
    rules=[
        *rules.tensor("embed", joined="embed.weight", apart="stem.weight"),
        *rules.linear("layer_{i}/query", joined=Share("h.{i}.qk", 0, 2), apart="h.{i}.q"),
        *rules.linear("layer_{i}/key", joined=Share("h.{i}.qk", 1, 2), apart="h.{i}.k"),
    ],
    explain=lambda found, names: [f"query {found('layer_0/query/kernel')}"],
    stacks={"layers": "layer_{i}"},
)
SCANNED = {
    "embed": random(7, 3),
    "layers/query/kernel": random(2, 3, 4),
    "layers/query/bias": random(2, 4),
    "layers/key/kernel": random(2, 3, 4) + 1,
    "layers/key/bias": random(2, 4) + 1,
}
LAYERS = paths.unstack(SCANNED, SCANNED_TABLE.stacks)


def shapes_of(leaves: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}


def test_stacked_leaves_are_those_of_the_layers() -> None:
    assert LAYERS.keys() == {"embed"} | {
        f"layer_{i}/{m}/{p}" for i in (0, 1) for m in ("query", "key") for p in ("kernel", "bias")
    }
    np.testing.assert_array_equal(LAYERS["layer_1/key/bias"], SCANNED["layers/key/bias"][1])
    back = paths.stack(LAYERS, SCANNED, SCANNED_TABLE.stacks)
    assert list(back) == list(SCANNED)
    for path, leaf in SCANNED.items():
        np.testing.assert_array_equal(back[path], leaf)
    assert paths.unstack(shapes_of(SCANNED), SCANNED_TABLE.stacks) == shapes_of(LAYERS)
    with pytest.raises(ValueError, match="no layer 'layer_0/key/bias' to stack into 'layers/key/bias'"):
        paths.stack({}, ["layers/key/bias"], SCANNED_TABLE.stacks)


@pytest.mark.parametrize("layout", ["joined", "apart"])
@pytest.mark.parametrize("scanned", [True, False])
def test_scanned_or_not_the_torch_state_is_the_same(layout: str, scanned: bool) -> None:
    leaves = SCANNED if scanned else LAYERS
    state = mapping.write(SCANNED_TABLE, layout, leaves, shapes_of(leaves))
    other = mapping.write(SCANNED_TABLE, layout, LAYERS, shapes_of(LAYERS))
    assert state.keys() == other.keys()
    assert all(np.array_equal(state[name], other[name]) for name in other)
    back = mapping.read(SCANNED_TABLE, state, shapes_of(leaves))
    assert back.keys() == leaves.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(back[path], leaf)


def test_a_tensor_that_several_leaves_share() -> None:
    state = mapping.write(SCANNED_TABLE, "joined", SCANNED, shapes_of(SCANNED))
    assert {name: array.shape for name, array in state.items()} == {
        "net.embed.weight": (7, 3),
        "out.weight": (7, 3),
        "net.h.0.qk.weight": (8, 3),
        "net.h.1.qk.weight": (8, 3),
        "net.h.0.qk.bias": (8,),
        "net.h.1.qk.bias": (8,),
    }
    np.testing.assert_array_equal(state["net.h.1.qk.weight"][4:], SCANNED["layers/key/kernel"][1].T)
    broken = state | {"net.h.0.qk.weight": random(7, 3)}
    del broken["net.h.1.qk.bias"]
    with pytest.raises(ConversionError) as error:
        mapping.read(SCANNED_TABLE, broken, shapes_of(SCANNED))
    assert str(error.value).splitlines()[1:] == [
        "missing (1):",
        "  h.1.qk.bias: expected (8,)",
        "misshapen (1):",
        "  h.0.qk.weight: expected (8, 3), found (7, 3)",
        "query None",
    ]
    alone = {path: leaf for path, leaf in SCANNED.items() if "key" not in path}
    with pytest.raises(ConversionError, match=r"joins leaves that the model lacks into h\.0\.qk\.weight, h\.1"):
        mapping.write(SCANNED_TABLE, "joined", alone, shapes_of(alone))


def test_copies_may_be_absent_but_not_differ() -> None:
    state = mapping.write(SCANNED_TABLE, "joined", SCANNED, shapes_of(SCANNED))
    without = {name: array for name, array in state.items() if name != "out.weight"}
    assert mapping.read(SCANNED_TABLE, without, shapes_of(SCANNED)).keys() == SCANNED.keys()
    with pytest.raises(
        ConversionError, match=r"out\.weight: differs from embed\.weight, of which the model makes it a"
    ):
        mapping.read(SCANNED_TABLE, state | {"out.weight": state["out.weight"] + 1}, shapes_of(SCANNED))


def test_misshapen_stacks_are_reported() -> None:
    leaves = SCANNED | {"layers/key/bias": np.float32(1), "layers/query/bias": random(3, 4)}
    with pytest.raises(ConversionError) as error:
        mapping.write(SCANNED_TABLE, "apart", leaves, shapes_of(SCANNED))
    assert str(error.value).splitlines() == [
        "the variables do not fit the model",
        "misshapen (2):",
        "  layers/key/bias: expected (2, 4), found ()",
        "  layers/query/bias: expected (2, 4), found (3, 4)",
        "query (3, 4)",
    ]
