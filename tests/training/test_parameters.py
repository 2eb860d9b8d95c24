"""The table of parameters on a mesh of the virtual devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flashjax.training.parameters import human_bytes, parameter_rows, parameter_table


@pytest.fixture(scope="module")
def placed():
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:8])
    shapes = {"dense": {"kernel": (8, 6), "bias": (6,)}, "table": (16, 2), "scale": ()}
    specs = {"dense": {"kernel": P("fsdp"), "bias": P()}, "table": P(("data", "fsdp")), "scale": P()}
    leaf = lambda x: isinstance(x, tuple | P)  # noqa: E731
    tree = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=leaf)
    return tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=leaf)


def test_rows_hold_what_a_device_holds(placed):
    rows = {row.path: row for row in parameter_rows(*placed)}
    assert list(rows) == ["dense/bias", "dense/kernel", "scale", "table"]
    kernel = rows["dense/kernel"]
    assert (kernel.shape, kernel.dtype, kernel.spec) == ((8, 6), "float32", "fsdp, -")
    assert (kernel.bytes, kernel.bytes_per_device) == (192, 48)
    assert (rows["table"].spec, rows["table"].bytes_per_device) == ("data+fsdp, -", 16)
    assert (rows["dense/bias"].spec, rows["dense/bias"].bytes_per_device) == ("whole", 24)
    assert (rows["scale"].spec, rows["scale"].bytes) == ("whole", 4)


def test_rows_equal_what_arrays_occupy(placed):
    tree, shardings = placed
    arrays = jax.tree.map(lambda leaf, where: jax.device_put(jnp.zeros(leaf.shape), where), tree, shardings)
    first = jax.devices()[0]
    held = sum(s.data.nbytes for a in jax.tree.leaves(arrays) for s in a.addressable_shards if s.device == first)
    assert sum(row.bytes_per_device for row in parameter_rows(arrays, shardings)) == held


def test_table_lists_the_first_tree_and_totals_all(placed):
    tree, shardings = placed
    moments = {"mu": tree, "nu": tree}
    text = parameter_table(
        {"parameters": tree, "optimizer state": moments},
        {"parameters": shardings, "optimizer state": {"mu": shardings, "nu": shardings}},
    )
    lines = text.splitlines()
    assert lines[0].split() == ["path", "shape", "dtype", "sharding", "bytes", "per", "device"]
    assert sum(line.startswith("dense/kernel") for line in lines) == 1
    (kernel,) = (line for line in lines if line.startswith("dense/kernel"))
    assert kernel.split() == ["dense/kernel", "8x6", "float32", "fsdp,", "-", "192", "B", "48", "B"]
    (total,) = (line for line in lines if line.startswith("parameters"))
    assert total.split() == ["parameters", "87", "in", "4", "348", "B", "92", "B"]
    assert lines[-2].split()[:2] == ["optimizer", "state"]
    assert lines[-1].split() == ["in", "all", "1.0", "KiB", "276", "B"]
    assert not any(line.endswith(" ") for line in lines)


def test_one_device_and_one_tree():
    array = jnp.zeros((3, 2), jnp.bfloat16)
    (row,) = parameter_rows([array], [array.sharding])
    assert (row.path, row.spec, row.dtype, row.bytes, row.bytes_per_device) == ("0", "whole", "bfloat16", 12, 12)
    assert "in all" not in parameter_table({"parameters": [array]}, {"parameters": [array.sharding]})


def test_another_structure_is_an_error(placed):
    tree, _ = placed
    with pytest.raises(ValueError):
        parameter_rows(tree, {"dense": np.zeros(3)})


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**40, "3.0 TiB"), (2**52, "4096.0 TiB")]
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text


def test_further_columns_stand_before_the_reasons(placed):
    tree, shardings = placed
    columns = {"rate": {"dense/kernel": "0.5"}, "decay": {"dense/kernel": "1", "scale": "0"}}
    why = {"dense/kernel": "fsdp: dim 0"}
    lines = parameter_table({"parameters": tree}, {"parameters": shardings}, why, columns).splitlines()
    assert lines[0].split()[-3:] == ["rate", "decay", "why"]
    (kernel,) = (line for line in lines if line.startswith("dense/kernel"))
    assert kernel.split()[-5:] == ["0.5", "1", "fsdp:", "dim", "0"]
    (scale,) = (line for line in lines if line.startswith("scale"))
    assert scale.split()[-1] == "0"
    (total,) = (line for line in lines if line.startswith("parameters"))
    assert total.split() == ["parameters", "87", "in", "4", "348", "B", "92", "B"]
