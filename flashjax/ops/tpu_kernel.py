"""What Pallas kernels for TPUs share: how maps lie, where they are interpreted, which axes of a mesh split them."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flashjax.ops.platform import traced_for

IMAGES = 8
"""Rows of a tile: a batch is filled up to a multiple of it."""


def laid_out(x: Float[Array, "B H W C"]) -> Float[Array, "H W b C"]:
    """A map as the TPU's compiler keeps it by itself, so that no copy is made: images in rows, filled up."""
    return jnp.pad(x, ((0, -x.shape[0] % IMAGES), (0, 0), (0, 0), (0, 0))).transpose(1, 2, 0, 3)


def taken_out(x: Float[Array, "H W b C"], batch: int) -> Float[Array, "B H W C"]:
    """Undoes `laid_out` of so many images."""
    return x.transpose(2, 0, 1, 3)[:batch]


def interpreted(instead: str) -> bool:
    """Whether a kernel is interpreted, as on a CPU, for tests.

    Raises:
        NotImplementedError: on a GPU; `instead` says what to choose.
    """
    platform = traced_for()
    if platform == "gpu":
        raise NotImplementedError(f"this kernel is for TPUs: on a GPU choose {instead}")
    return platform == "cpu"


def axes(name: str, size: int, mesh: Any) -> tuple[str, ...]:
    """The mesh axes that split a dim of that logical name; none where they do not divide its size."""
    found = dict(nn.get_logical_axis_rules()).get(name) or ()
    found = tuple(axis for axis in ((found,) if isinstance(found, str) else found) if mesh.shape[axis] > 1)
    return found if size % math.prod(mesh.shape[axis] for axis in found) == 0 else ()
