"""The device mesh: six named axes, of which those of size 1 cost nothing.

Words: an *axis* belongs to the mesh, a *dim* to a tensor. ``replica`` crosses the slowest links (slices joined by a
data-centre network), then ``data``, ``fsdp``, ``expert``, ``sequence`` and ``tensor``, whose neighbours talk most.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("replica", "data", "fsdp", "expert", "sequence", "tensor")
BATCH_AXES = ("replica", "data", "fsdp")
"""The axes over which a batch is split; parameters may be split over ``fsdp`` too."""


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices. One may be -1: what is left."""

    replica: int = 1
    """Copies of the whole mesh, one or more a slice, over the data-centre network."""
    data: int = -1
    """Data parallel: the batch is split, the parameters are whole."""
    fsdp: int = 1
    """Fully sharded data parallel: batch, parameters and optimizer state are split."""
    expert: int = 1
    """Experts of a mixture are split."""
    sequence: int = 1
    """Tokens of one example are split."""
    tensor: int = 1
    """Matrices are split: attention heads and hidden units."""


def resolve_shape(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Axis sizes with -1 replaced by what is left.

    Raises:
        ValueError: if a size is not positive, more than one is -1, or the product is not ``num_devices``.
    """
    sizes = {axis: asdict(config)[axis] for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    bad = {axis: size for axis, size in sizes.items() if size < 1 and size != -1}
    if bad:
        raise ValueError(f"mesh axes must be positive or -1, found {bad}")
    if len(free) > 1:
        raise ValueError(f"only one mesh axis may be -1, found {free}: give all but one of them a size")
    known = math.prod(size for size in sizes.values() if size != -1)
    spelled = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size != 1) or "all axes 1"
    if free and num_devices % known == 0:
        return sizes | {free[0]: num_devices // known}
    if not free and known == num_devices:
        return sizes
    divisors = [d for d in range(1, num_devices + 1) if num_devices % d == 0]
    nearest = sorted(divisors, key=lambda d: (abs(d - known), d))[:3]
    raise ValueError(
        f"the mesh ({spelled}) asks for {'a multiple of ' if free else ''}{known} devices, "
        f"but there are {num_devices}; "
        f"products that work: {', '.join(map(str, sorted(nearest)))}"
        + ("" if free else ", or give one axis the size -1")
    )


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over ``devices`` (default: all), ``replica`` outermost over slices where the hardware has several.

    Axes are of type ``Auto``: the compiler propagates shardings from those given at the boundary of ``jit``.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = resolve_shape(config, len(devices))
    shape = tuple(sizes.values())
    num_slices = len({getattr(d, "slice_index", 0) for d in devices})
    if num_slices > 1:
        if sizes["replica"] % num_slices:
            raise ValueError(
                f"{num_slices} slices need mesh.replica to be a multiple of {num_slices}, found {sizes['replica']}"
            )
        inner = (sizes["replica"] // num_slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(inner, (num_slices,) + (1,) * (len(AXES) - 1), devices)
    elif devices[0].platform == "cpu":
        grid = np.asarray(devices).reshape(shape)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dim over all batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(name: str, size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises ``ValueError`` with the nearest sizes that work if ``size`` does not split evenly."""
    unit = batch_shards(mesh) * accumulate
    if size % unit or size <= 0:
        below, above = size // unit * unit, (size // unit + 1) * unit
        works = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"{name} {size} does not divide into {batch_shards(mesh)} batch shards"
            + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
            + f"; nearest that works: {works}"
        )
