"""Machines that are not there: 'v5e:4x4', 'gpu:h100x8' or 'cpu:256' as devices that a program can be compiled for.

The package libtpu compiles for every TPU topology on any Linux machine, `jax[cuda13]` for GPUs (`gpus`); a CPU has as
many virtual devices as are asked for.
"""

import contextlib
import functools
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from flashjax.analysis import gpus
from flashjax.analysis.chips import Chip, chip

FORM = "vTPU:AxB[xC] such as v5e:4x4, v5p:4x4x4 or tpu7x:2x2x1, gpu:KINDxN such as gpu:h100x8, or cpu:N"
LARGEST = {"v2": (16, 16), "v3": (32, 32), "v4": 4096, "v5e": (16, 16), "v5p": 8960, "v6e": (16, 16), "tpu7x": 9216}
"""Of each TPU's pods the sides where chips lie in a plane, else the chips, by Google Cloud's pages "TPU v2" to "TPU7x":
the compiler makes programs for machines that cannot be."""


class TopologyError(ValueError):
    """A topology that this machine cannot compile for; the message says what is missing."""


@dataclass(frozen=True)
class Topology:
    """Devices to compile for."""

    name: str
    """As it was asked for."""
    kind: str
    """`device_kind` of the devices."""
    platform: str
    """tpu, gpu or cpu."""
    devices: Sequence[Any]
    """For meshes; they run nothing, a CPU's apart."""
    chip: Chip | None
    """Figures of one device, None for an unknown kind and for a CPU."""
    cache: int = 0
    """Bytes of the cache through which a device reads its memory: what lies there need not be read."""
    target: str = ""
    """What the compiler was told of a device that it does not know by its kind."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The compiler's."""

    @property
    def cores(self) -> int:
        """Of a device, among which a kernel's turns are divided."""
        return getattr(self.devices[0], "num_cores", None) or 1

    @functools.cached_property
    def hbm_bytes(self) -> int | None:
        """Memory of a device that programs can have, of a TPU by the compiler's own words; None where it has no limit.

        Of a GPU the share that JAX takes: 0.75, or what XLA_PYTHON_CLIENT_MEM_FRACTION says.
        """
        if self.platform != "tpu":
            return None if self.chip is None else int(self.chip.hbm_bytes * gpus.memory_share())
        place = jax.sharding.SingleDeviceSharding(self.devices[0])
        huge = jax.ShapeDtypeStruct((2**38,), jax.numpy.float32)
        try:
            with quiet():
                jax.jit(lambda x: x + 1, in_shardings=place, out_shardings=place).lower(huge).compile()
        except jax.errors.JaxRuntimeError as error:
            return out_of_memory(str(error))[1]
        return None


def out_of_memory(message: str) -> tuple[int | None, int | None]:
    """(bytes wanted, bytes there) as a TPU compiler's refusal says them; None for what it does not say."""
    unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

    def size(pattern: str) -> int | None:
        found = re.search(pattern, message)
        return round(float(found[1]) * unit[found[2]]) if found else None

    wanted = size(r"Used ([\d.]+)([KMGT]?) of") or size(r"\(([\d.]+)([KMGT]?)\) exceeds available")
    there = size(r"Used [\d.]+[KMGT]? of ([\d.]+)([KMGT]?)") or size(r"available HBM \(([\d.]+)([KMGT]?)\)")
    return wanted, there


def parse(name: str) -> tuple[str, int]:
    """(family, devices): family is cpu, gpu or tpu; devices is 0 for a TPU, where the compiler knows.

    Raises:
        ValueError: naming the forms that are understood, or the largest machine of the kind.
    """
    family, _, size = name.partition(":")
    if family == "cpu" and size.isdigit() and int(size) > 0:
        return "cpu", int(size)
    if family == "gpu" and (found := re.fullmatch(r"([a-z]+\d+)x(\d+)", size)) and int(found[2]) > 0:
        if found[1] not in gpus.GPUS:
            raise ValueError(f"unknown GPU '{found[1]}' in '{name}'; known: {', '.join(gpus.GPUS)}")
        return "gpu", int(found[2])
    if re.fullmatch(r"(v\d+[a-z]*|tpu\d+x?)", family) and re.fullmatch(r"\d+(x\d+){1,2}", size):
        _check_size(name, family, [int(side) for side in size.split("x")])
        return "tpu", 0
    raise ValueError(f"'{name}' is no topology: want {FORM}")


def _check_size(name: str, family: str, sides: Sequence[int]) -> None:
    largest, chips = LARGEST.get(family), math.prod(sides)
    if isinstance(largest, int) and chips > largest:
        raise ValueError(f"there is no {name}: it would have {chips} chips, the largest {family} has {largest}")
    if isinstance(largest, tuple) and any(a > b for a, b in zip(sides, (*largest, 1), strict=False)):
        raise ValueError(f"there is no {name}: chips of {family} lie in a plane, {largest[0]}x{largest[1]} at most")


def prepare(names: Sequence[str]) -> None:
    """Makes JAX keep off the real accelerators of this machine, with the virtual CPU devices that `names` ask for.

    To be called before JAX is first used.

    Raises:
        ValueError: if a name is no topology, or JAX has begun with too few CPU devices.
    """
    wanted = max([devices for family, devices in map(parse, names) if family == "cpu"], default=1)
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX has begun: what it has is checked below
        if wanted > 1:
            jax.config.update("jax_num_cpu_devices", wanted)
    if wanted > len(jax.devices("cpu")):
        raise ValueError(
            f"{wanted} virtual devices are asked for, but JAX has begun with {len(jax.devices('cpu'))}: set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted}, or leave that flag out"
        )


def open_topology(name: str) -> Topology:
    """The devices that a name means.

    Raises:
        ValueError: if it is no topology, or GPUs are no whole hosts.
        TopologyError: if its compiler is not installed, with how to get it; or if the compiler has no such topology.
    """
    family, count = parse(name)
    if family == "cpu":
        devices = jax.devices("cpu")
        if count > len(devices):
            raise TopologyError(f"{name} needs {count} virtual devices, JAX has begun with {len(devices)}")
        return Topology(name, "cpu", "cpu", devices[:count], None)
    if family == "gpu":
        return _gpu(name, gpus.GPUS[name.split(":")[1].split("x")[0]], count)
    return _tpu(name)


def _gpu(name: str, gpu: gpus.Gpu, count: int) -> Topology:
    if not gpus.installed():
        raise TopologyError(
            f"{name} needs the CUDA compiler: pip install 'flashjax[cuda]' (jax[cuda13], about 5 GB, Linux; no GPU). "
            "Without it --plan cpu:N shows what needs no compiler of its own"
        )
    with quiet():
        devices = gpus.devices(gpu, count)
    return Topology(name, gpu.kind, "gpu", devices, chip(gpu.kind), gpu.cache, gpus.target_config(gpu), gpus.OPTIONS)


def _tpu(name: str) -> Topology:
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            f"{name} needs the TPU compiler: pip install 'flashjax[plan]' (the package libtpu, about 200 MB, Linux). "
            "Without it --plan cpu:N shows what needs no TPU compiler"
        )
    # libtpu would ask the cloud which machine it is on, and let one process alone use it: nothing is used here.
    for variable, value in (
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ("TF_CPP_MIN_LOG_LEVEL", "3"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
        ("TPU_MIN_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(variable, value)
    with quiet():
        try:
            devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            words = str(error).splitlines()[0][:300]
            raise TopologyError(f"the TPU compiler has no topology {name}: {words}") from None
    figures = chip(devices[0].device_kind)
    chips = math.prod(int(n) for n in name.split(":")[1].split("x"))
    # The table counts a v4 chip as one device; the compiler, which is not told to fuse its cores, as two.
    if figures is not None and devices[0].device_kind == "TPU v4" and len(devices) == 2 * chips:
        figures = figures.part(0.5)
    return Topology(name, devices[0].device_kind, "tpu", devices, figures)


@contextlib.contextmanager
def quiet():
    """Leaves out what a compiler's C++ side writes to the terminal: its notes on machines that are not there.

    It goes past `sys.stderr`, so that the file behind it is exchanged. Errors are raised all the same.
    """
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
