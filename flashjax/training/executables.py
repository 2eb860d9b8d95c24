"""A compiled train step in a file: made beforehand by `--plan TOPOLOGY --save FILE`, loaded by `--compiled FILE`.

The file says what it is of: the versions of the compilers, the devices, how far they reach, the mesh, the compiler's
options, and a digest of the program before compilation (without source lines), so that a step of another configuration
or of other code is refused; and a digest of itself, so that a damaged one is. Like every pickle it can run code when it
is loaded: load files of your own alone.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import Mesh

from flashjax.analysis import kernels

KIND = b"flashjax compiled step "
MAGIC = KIND + b"2\n"


def compilers() -> dict[str, str]:
    """Versions of what compiles, of those that are installed."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def jit_options(lowered: jax.stages.Lowered) -> dict[str, Any]:
    """What `jax.jit(compiler_options=...)` was given, which the program's text does not say."""
    # JAX has no public name for it; a test tells when the private one is gone.
    return dict(getattr(getattr(lowered, "_lowering", None), "_compiler_options_kvs", ()))


def bounds(devices: Iterable[Any]) -> str | None:
    """'2x2x4': how many chips there are along each dim of the torus; None of devices that have no coordinates."""
    places = [device.coords for device in devices if getattr(device, "coords", None) is not None]
    return "x".join(str(max(along) - min(along) + 1) for along in zip(*places, strict=True)) or None


def describe(lowered: jax.stages.Lowered, mesh: Mesh) -> dict[str, Any]:
    """What decides whether a compiled step is the one that is wanted; JSON values."""
    device, versions = mesh.devices.flat[0], compilers()
    if device.platform == "cpu":
        versions.pop("libtpu", None)
    return {
        "versions": versions,
        "device_kind": device.device_kind,
        "devices": mesh.size,
        "topology": bounds(mesh.devices.flat),
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "options": jit_options(lowered),
        "program": hashlib.sha256(kernels.text(lowered).encode()).hexdigest(),
    }


@contextlib.contextmanager
def compiling_anew() -> Iterator[None]:
    """Within, JAX's own cache of compiled programs is not read: what a CPU gets from there cannot be written again."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # which also makes JAX look at the setting again
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


def save(path: str | Path, executable: jax.stages.Compiled, description: Mapping[str, Any]) -> Path:
    """Writes the file, replacing an older one whole, and returns where it is; `executable` is `compiling_anew`'s.

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
    described = {**description, "content": hashlib.sha256(content).hexdigest()}
    new.write_bytes(MAGIC + json.dumps(described).encode() + b"\n" + content)
    new.replace(path)
    return path


def load(path: str | Path, lowered: jax.stages.Lowered, mesh: Mesh) -> jax.stages.Compiled:
    """The step in a file, to be called as `lowered.compile()` would be.

    Raises:
        ValueError: if it is no such file, is damaged, or is of other versions, devices, another mesh or another
            program; the message says which.
        FileNotFoundError: if there is none.
    """
    content = Path(path).read_bytes()
    if not content.startswith(MAGIC):
        what = "is of another format than this version's" if content.startswith(KIND) else "is no compiled step"
        raise ValueError(f"{path} {what}: make one with --plan TOPOLOGY --save {path}")
    first, end, rest = content.removeprefix(MAGIC).partition(b"\n")
    try:
        there = json.loads(first) if end else {}
    except ValueError:
        there = {}
    if there.get("content") != hashlib.sha256(rest).hexdigest():
        raise ValueError(f"{path} is damaged, perhaps a copy that was cut short: copy it again, or make it anew")
    here = describe(lowered, mesh)
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
