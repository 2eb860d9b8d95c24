"""The page that shows who holds what: what it says is what the shardings say."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from flashjax.training import MeshConfig
from flashjax.training.layout_page import write_layout
from flashjax.training.mesh import make_mesh

SHAPES = {"dense": {"kernel": (8, 6), "bias": (6,)}, "stack": (4, 8, 6), "scale": ()}
SPECS = {
    "dense": {"kernel": PartitionSpec("fsdp", "tensor"), "bias": PartitionSpec()},
    "stack": PartitionSpec(("data", "fsdp"), None, "tensor"),
    "scale": PartitionSpec(),
}


def page(tmp_path, config, devices=8, specs=SPECS, **words):
    mesh = make_mesh(config, jax.devices()[:devices])
    leaf = lambda x: isinstance(x, tuple | PartitionSpec)  # noqa: E731
    tree = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SHAPES, is_leaf=leaf)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=leaf)
    trees, where = {"parameters": tree, "optimizer state": [tree, tree]}, {"parameters": places}
    where["optimizer state"] = [places, places]
    return write_layout(tmp_path / "new" / "layout.html", "a <run>", mesh, trees, where, **words).read_text()


def row(text: str, path: str) -> str:
    (found,) = [line for line in re.findall(r"<tr>.*?</tr>", text) if f"<td>{path}</td>" in line]
    return found


def test_what_a_device_holds(tmp_path):
    text = page(tmp_path, MeshConfig(data=2, fsdp=2, tensor=2), why={"dense/kernel": "because <it> is"})
    assert "a &lt;run&gt;" in text and "because &lt;it&gt; is" in text
    assert "= 8 devices" in text and text.count('<text class="id') == 8
    kernel = row(text, "dense/kernel")
    assert "192 B" in kernel and "48 B" in kernel and "/fsdp" in kernel and "/tensor" in kernel
    assert "held by 2 of 8 devices: 0, 4" in kernel and kernel.count("<line") == 2
    assert "held by 2 of 8 devices: 0, 1" not in kernel
    stack = row(text, "stack")
    assert "1/4 of its leading dims" in stack and "held by 1 of 8 devices: 0" in stack and "/data fsdp" in stack
    assert "held by 8 of 8 devices" in row(text, "dense/bias") and "scalar" in row(text, "scale")
    whole = 4 * (48 + 6 + 192 + 1)
    part = 4 * (48 // 4 + 6 + 192 // 8 + 1)
    assert f"<b>{part} B</b> of {whole} B" in text
    assert f"<b>{3 * part} B</b> of {3 * whole / 1024:.1f} KiB" in text
    assert not re.search(r"https?://|<script", text)


def test_one_device(tmp_path):
    whole = {"dense": {"kernel": PartitionSpec(), "bias": PartitionSpec()}, "stack": PartitionSpec()}
    text = page(tmp_path, MeshConfig(), devices=1, specs=whole | {"scale": PartitionSpec()})
    assert "one device: every tensor is whole" in text and "<line" not in text


def test_an_older_page_is_replaced(tmp_path):
    first = page(tmp_path, MeshConfig(data=4, tensor=2))
    second = page(tmp_path, MeshConfig(fsdp=4, tensor=2))
    assert "data 4" in first and "data 4" not in second
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["layout.html"]
