"""A compiled train step in a file: made beforehand by `--plan TOPOLOGY --save FILE`, loaded by `--compiled FILE`.

The file says what it is of: the versions of the compilers, the devices and the mesh, and a digest of the program before
compilation, so that a step of another configuration or of other code is refused. Like every pickle it can run code when
it is loaded: load files of your own alone.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

MAGIC = b"flashjax compiled step 1\n"


def compilers() -> dict[str, str]:
    """Versions of what compiles, of those that are installed."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def describe(lowered: jax.stages.Lowered, mesh: Mesh) -> dict[str, Any]:
    """What decides whether a compiled step is the one that is wanted; JSON values."""
    device, versions = mesh.devices.flat[0], compilers()
    if device.platform == "cpu":
        versions.pop("libtpu", None)
    return {
        "versions": versions,
        "device_kind": device.device_kind,
        "devices": mesh.size,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "program": hashlib.sha256(lowered.as_text().encode()).hexdigest(),
    }


def save(path: str | Path, executable: jax.stages.Compiled, description: Mapping[str, Any]) -> Path:
    """Writes the file, replacing an older one whole, and returns where it is.

    Raises:
        ValueError: if JAX cannot serialise this executable.
    """
    try:
        content, _, _ = serialize_executable.serialize(executable)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(f"JAX cannot write this step to a file: {str(error).splitlines()[0]}") from None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(MAGIC + json.dumps(description).encode() + b"\n" + content)
    new.replace(path)
    return path


def load(path: str | Path, lowered: jax.stages.Lowered, mesh: Mesh) -> jax.stages.Compiled:
    """The step in a file, to be called as `lowered.compile()` would be.

    Raises:
        ValueError: if it is no such file, or of other versions, devices, another mesh or another program; the message
            says which.
        FileNotFoundError: if there is none.
    """
    content = Path(path).read_bytes()
    if not content.startswith(MAGIC):
        raise ValueError(f"{path} is no compiled step: make one with --plan TOPOLOGY --save {path}")
    first, _, rest = content.removeprefix(MAGIC).partition(b"\n")
    there, here = json.loads(first), describe(lowered, mesh)
    words = {"program": "its program is another: the configuration, or the code, has changed"}
    for name, value in here.items():
        if there.get(name) != value:
            reason = words.get(name, f"its {name.replace('_', ' ')}: {there.get(name)}, of this run: {value}")
            raise ValueError(f"{path} is not the compiled step of this run; {reason}. Make it anew with --save {path}")
    in_tree = jax.tree.structure(lowered.args_info)
    try:
        return serialize_executable.deserialize_and_load(
            rest, in_tree, lowered.out_tree, execution_devices=list(mesh.devices.flat)
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"{path} cannot be loaded on these devices: {str(error).splitlines()[0]}") from None
