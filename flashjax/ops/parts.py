"""A batch some examples at a time, written out part by part: what a part makes stays in a memory that is near."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flashjax.ops.tpu_kernel import axes


def parts(x: Array, together: int, axis: int = 0) -> list[Array]:
    """The examples along dim `axis` in parts of `together` of each device, the last of as many as are left.

    Without a mesh that splits the batch, slices one after the other; with one, of each device's own examples.
    """
    axis, devices = axis % x.ndim, _devices(x.shape[axis])
    x = x.reshape(*x.shape[:axis], devices, -1, *x.shape[axis + 1 :])
    ends = list(range(together, x.shape[axis + 1], together))
    cut = jnp.split(x, ends, axis=axis + 1)
    return [part.reshape(*part.shape[:axis], -1, *part.shape[axis + 2 :]) for part in cut]


def joined(cut: Sequence[Array], size: int) -> Array:
    """Undoes `parts` of `size` examples along the first dim."""
    devices = _devices(size)
    whole = jnp.concatenate([part.reshape(devices, -1, *part.shape[1:]) for part in cut], axis=1)
    return whole.reshape(size, *whole.shape[2:])


def _devices(size: int) -> int:
    """Among how many devices that many examples are split."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in axes("batch", size, mesh))
