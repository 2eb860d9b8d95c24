"""GPUs that are not there, described as the CUDA compiler wants them.

The packages of `jax[cuda13]` compile without a GPU and without a driver, for a device that is told to them as a text
(XLA's `GpuTargetConfigProto`). It is made here of what NVIDIA publishes: the table below after the architectures' white
papers and product pages, what all of them share after "Compute Capabilities" in the CUDA programming guide, and memory
after `flashjax.analysis.chips`. Kernels are not tried out, as they are on a device, but chosen by XLA's own rules: the
program is nearly the one that would run, not the very one.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flashjax.analysis.chips import CHIPS

HOST = 8
"""GPUs of a host, which NVLink joins."""
KiB, MiB = 2**10, 2**20
OPTIONS = {"xla_gpu_enable_triton_gemm": False}
"""Of the compiler. Products go to cuBLAS: the tiles of its own kernels are found by trying them on a device, and those
that it takes untried do not fit all products (it then ends with an error, of a Swin's for one)."""


@dataclass(frozen=True)
class Gpu:
    """What the compiler is told, besides `Chip`."""

    kind: str
    """`device_kind`, a key of `CHIPS`."""
    capability: tuple[int, int]
    """Compute capability."""
    multiprocessors: int
    clock: float
    """GHz, at most."""
    cache: int
    """Bytes of the L2 cache."""
    shared: int
    """Bytes of shared memory of a multiprocessor; a block can have all but 1 KiB."""
    lanes: int
    """Float32 operations of a multiprocessor in a cycle."""


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 40 * MiB, 164 * KiB, 64),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 50 * MiB, 228 * KiB, 128),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 1.98, 50 * MiB, 228 * KiB, 128),
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 1.965, 126 * MiB, 228 * KiB, 128),
}


def installed() -> bool:
    """Whether the CUDA compiler is there."""
    return importlib.util.find_spec("jax_cuda13_plugin") is not None


def memory_share() -> float:
    """Of a GPU's memory, what JAX takes at the start for arrays and programs."""
    return float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or 0.75)


def devices(gpu: Gpu, count: int) -> Sequence[Any]:
    """`count` devices to compile for, up to `HOST` of them on a host.

    Raises:
        ValueError: if they are no whole hosts.
    """
    from jax.experimental import topologies

    if count > HOST and count % HOST:
        raise ValueError(f"{count} GPUs are no whole hosts: want at most {HOST}, or a multiple of {HOST}")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the plugin would ask a driver for its version
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=gpu.kind,
        target_config=target_config(gpu),
        topology=f"1x{max(1, count // HOST)}x{min(count, HOST)}",  # parts of the job, hosts, devices of a host
    ).devices


def target_config(gpu: Gpu) -> str:
    """The text that describes a GPU to the compiler, with the versions of the libraries that are installed."""
    chip, (major, minor) = CHIPS[gpu.kind], gpu.capability
    information = {
        "core_count": gpu.multiprocessors,
        "fpus_per_core": gpu.lanes,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": chip.hbm_bytes,
        "memory_bandwidth": int(chip.hbm_bandwidth),
        "l2_cache_size": gpu.cache,
        "shared_memory_per_core": gpu.shared,
        "shared_memory_per_block_optin": gpu.shared - KiB,
        "shared_memory_per_block": 48 * KiB,
        "threads_per_warp": 32,
        "threads_per_block_limit": 1024,
        "threads_per_core_limit": 2048,
        "registers_per_core_limit": 64 * KiB,
        "registers_per_block_limit": 64 * KiB,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
    }
    numbers = "".join(f"  {name}: {value}\n" for name, value in information.items())
    # From Hopper on tensor cores have instructions of one architecture alone (sm_90a).
    own = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return (
        f"gpu_device_info {{\n{numbers}  cuda_compute_capability {{ major: {major} minor: {minor}{own} }}\n}}\n"
        f'platform_name: "CUDA"\ndevice_description_str: "{gpu.kind}"\n'
        f"{_version('dnn_version_info', 'nvidia-cudnn-cu13')}{_version('runtime_version', 'nvidia-cuda-runtime')}"
    )


def _version(field: str, package: str) -> str:
    try:
        numbers = importlib.metadata.version(package).split(".")[:3]
    except importlib.metadata.PackageNotFoundError:
        return ""
    parts = zip(("major", "minor", "patch"), numbers, strict=False)
    return f"{field} {{ {' '.join(f'{name}: {number}' for name, number in parts)} }}\n"
