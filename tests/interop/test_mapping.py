"""The machinery of the tables, on a toy family that has what Swin has not: another collection, fused convolutions."""

from typing import Any

import jax
import numpy as np
import pytest

from flashjax.interop import mapping
from flashjax.interop.mapping import CONV, KEEP, LINEAR, ConversionError, Fuse, Grid, Layout, Permute, Table


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
def test_transforms_are_invertible(transform: mapping.Transform, leaf: tuple, torch_shapes: list) -> None:
    original = random(*leaf)
    tensors = transform.to_torch(original)
    assert [tensor.shape for tensor in tensors] == torch_shapes
    np.testing.assert_array_equal(transform.to_flax(tensors), original)


TABLE = Table(
    layouts={"a": Layout("stem.weight"), "b": Layout("conv1.weight", prefix="net.", outside=("fc.",))},
    rules=[
        *mapping.conv("stem", a="stem", b="conv1"),
        *mapping.norm("block_{i}/bn", a="blocks.{i}.bn", b="layer{i+1}.bn1"),
        *mapping.tensor(
            "batch_stats/block_{i}/bn/mean", a="blocks.{i}.bn.running_mean", b="layer{i+1}.bn1.running_mean"
        ),
        *mapping.linear("head", a="head", b=("fc.x", "fc.y")),
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
LEAVES = mapping.flatten(VARIABLES)
EXPECTED = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in LEAVES.items()}


def test_paths_name_every_collection_but_params() -> None:
    assert "stem/kernel" in LEAVES
    assert "batch_stats/block_0/bn/mean" in LEAVES
    back = mapping.unflatten(LEAVES, VARIABLES.keys())
    assert jax.tree.structure(back) == jax.tree.structure(VARIABLES)
    assert all(a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(VARIABLES), strict=True))
    assert mapping.unflatten({"scale": 1}, ["params"]) == {"params": {"scale": 1}}


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
