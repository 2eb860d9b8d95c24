"""What every augmentation shares: where it runs, what it draws, and noise that costs next to nothing.

An augmentation is a frozen dataclass with `draw(rng, shape)` and `apply(images, draws)`. The rng decides where it runs:
a NumPy generator draws NumPy arrays (the host, in the worker processes of the pipeline), a JAX key draws JAX arrays
(the device, under `jit`). `apply` follows the images. The formulas are written once, over either array module, so the
same draws make the same pixels on both sides.

Legend: *B none or the batch, H height, W width, C channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

Rng = Any
"""A `jax.random` key, or a `numpy.random.Generator`."""
Images = Any
"""NumPy or JAX array [H W C] or [B H W C], uint8 or floating point."""


def on_device(rng: Rng) -> bool:
    """Whether `rng` is a JAX key; raises ValueError where it is no NumPy generator either."""
    if isinstance(rng, jax.Array):
        return True
    if not hasattr(rng, "random"):
        raise ValueError(
            f"draws come from a numpy.random.Generator (host) or a jax.random.key (device), got {type(rng).__name__}"
        )
    return False


def split(rng: Rng, count: int) -> Sequence[Rng]:
    """`count` independent keys; a NumPy generator has a state of its own and is handed on."""
    return list(jax.random.split(rng, count)) if on_device(rng) else [rng] * count


def units(rng: Rng, shape: tuple[int, ...]) -> Float[Any, "..."]:
    """Uniform numbers in [0, 1): float64 from a generator, float32 from a key."""
    return jax.random.uniform(rng, shape) if on_device(rng) else np.asarray(rng.random(shape))


def words(rng: Rng, shape: tuple[int, ...]) -> UInt32[Any, "..."]:
    """Random words of 32 bits, which key the noise of an image."""
    if on_device(rng):
        return jax.random.bits(rng, shape, jnp.uint32)
    return rng.integers(0, 2**32, size=shape, dtype=np.uint32)


def below(unit: Float[Any, "..."], count: Any) -> Any:
    """int32 uniform in 0..count-1 from a uniform number in [0, 1); `count` may be an array."""
    xp = namespace(unit)
    return xp.minimum(xp.floor(unit * count), xp.asarray(count) - 1).astype(xp.int32)


def namespace(*arrays: Any) -> Any:
    """`jax.numpy` where one of the arrays is JAX's, else `numpy`."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def image_dims(shape: Sequence[int]) -> tuple[tuple[int, ...], int, int, int]:
    """(*B, H, W, C) of [H W C] or [B H W C]; raises ValueError for another number of dims, or an empty image."""
    if len(shape) not in (3, 4) or min(shape[-3:]) < 1:
        raise ValueError(f"images are [H W C] or [B H W C] with no empty dim, got shape {tuple(shape)}")
    height, width, channels = (int(size) for size in shape[-3:])
    return tuple(shape[:-3]), height, width, channels


def check_dtype(images: Images) -> None:
    """Raises ValueError for images that are neither uint8 nor floating point."""
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are uint8 or floating point, got {images.dtype}: convert them first")


def check_range(name: str, values: Sequence[float], low: float = 0.0, high: float = math.inf) -> None:
    """Raises ValueError unless `values` is (a, b) with low < a <= b <= high."""
    if len(values) != 2 or not low < values[0] <= values[1] <= high:
        bound = "" if high == math.inf else f" <= {high:g}"
        raise ValueError(f"{name} must be a range (a, b) with {low:g} < a <= b{bound}, got {tuple(values)}")


def check_unit(**values: float) -> None:
    """Raises ValueError for a probability or share outside of 0..1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in 0..1, got {value}")


def scramble(number: UInt32[Any, "..."], start: Any, mask: Any) -> UInt32[Any, "..."]:
    """Bits of a pixel from its number and a key of two words.

    Two rounds of multiply and shift instead of Threefry's twenty: good enough for noise that a network looks at, and
    for nothing else. The same integers on either side.
    """
    bits = number * np.uint32(0x9E3779B1) + start
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return bits ^ (bits >> np.uint32(15)) ^ mask


def normal(bits: UInt32[Any, "..."]) -> Float[Any, "..."]:
    """N(0, 1) in float32 from 32 random bits, by Box and Muller: half of them make the radius, half the angle.

    With its own logarithm and sine it is three times as fast as the inverse of the error function, and exact to 3e-5.
    The largest value is 4.9, which a normal number passes once in a million.
    """
    xp = namespace(bits)
    unit = ((bits >> np.uint32(16)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-16)
    turn = (bits & np.uint32(0xFFFF)).astype(np.int32).astype(np.float32) * np.float32(2.0**-15) - np.float32(1)
    # The sine of pi times `turn`, which is folded to -1/2..1/2, where five terms of the series are exact to 4e-6.
    turn = xp.where(xp.abs(turn) > np.float32(0.5), xp.sign(turn) - turn, turn)
    square, series = turn * turn, np.float32(0)
    for power in (9, 7, 5, 3, 1):
        series = series * square + np.float32((-1) ** (power // 2) * math.pi**power / math.factorial(power))
    return xp.sqrt(np.float32(-2 * math.log(2)) * _log2(unit)) * (series * turn)


def _log2(unit: Float[Any, "..."]) -> Float[Any, "..."]:
    """log2 of numbers in (0, 1), float32, to 4e-5; exact at the powers of two, so that it stays below 0."""
    if isinstance(unit, jax.Array):
        bits, back = jax.lax.bitcast_convert_type(unit, jnp.int32), jax.lax.bitcast_convert_type
    else:
        bits, back = unit.view(np.int32), lambda made, dtype: made.view(dtype)
    exponent = (bits >> 23) - 127
    part = back((bits & 0x7FFFFF) | 0x3F800000, np.float32) - np.float32(1)
    # log2(1 + x) = x (1 + (1 - x) q(x)), with q from a least-squares fit.
    series = np.float32(0)
    for factor in (-0.0394768, 0.139442, -0.262929, 0.441345):
        series = series * part + np.float32(factor)
    return exponent.astype(np.float32) + part * (np.float32(1) + (np.float32(1) - part) * series)


class Patch(NamedTuple):
    """Rows and columns of an image [H W C], each an array of int32 that broadcasts to [h w 1] of a part of it."""

    rows: Any
    columns: Any
    width: int
    channels: int


def _bits(patch: Patch, key: UInt32[Any, "*B 2"], each: int, part: UInt32[Any, "C"]) -> UInt32[Any, "*B h w C"]:
    """Word `part` of the `each` words of random bits that belong to a pixel."""
    number = (patch.rows * patch.width + patch.columns).astype(part.dtype) * np.uint32(each) + part
    start, mask = (key[..., i][..., None, None, None] for i in range(2))
    return scramble(number, start, mask)


def random_bytes(patch: Patch, key: UInt32[Any, "*B 2"]) -> UInt32[Any, "*B h w C"]:
    """A random byte for each pixel and channel: one word of random bits serves four channels."""
    xp = namespace(key)
    channel = xp.arange(patch.channels, dtype=xp.uint32)
    return (_bits(patch, key, -(-patch.channels // 4), channel // 4) >> (channel % 4 * 8)) & np.uint32(255)


def random_normal(patch: Patch, key: UInt32[Any, "*B 2"]) -> Float[Any, "*B h w C"]:
    """N(0, 1) for each pixel and channel, float32."""
    xp = namespace(key)
    return normal(_bits(patch, key, patch.channels, xp.arange(patch.channels, dtype=xp.uint32)))


def spans(boxes: Any, height: int, width: int) -> tuple[Any, Any]:
    """Rows and columns that boxes (top, left, height, width) [*B N 4] cover: bool [*B N H] and [*B N W]."""
    xp = namespace(boxes)
    y, x = xp.arange(height, dtype=xp.int32), xp.arange(width, dtype=xp.int32)
    top, left, h, w = (boxes[..., i][..., None] for i in range(4))
    return (y >= top) & (y < top + h), (x >= left) & (x < left + w)


def covered(boxes: Any, height: int, width: int) -> Any:
    """Which pixels lie in one of the boxes [*B N 4]: bool [*B H W]."""
    xp = namespace(boxes)
    rows, columns = spans(boxes, height, width)
    covers = xp.zeros((*boxes.shape[:-2], height, width), bool)
    for slot in range(boxes.shape[-2]):
        covers |= rows[..., slot, :, None] & columns[..., slot, None, :]
    return covers


def constant(value: float | Sequence[float], images: Images) -> Any:
    """`value` (a number, or one for each channel) in the dtype of the images, [1 or C].

    Raises ValueError where the values are not as many as the channels, or no bytes for uint8 images.
    """
    values = np.atleast_1d(np.asarray(value, np.float64))
    if values.ndim != 1 or len(values) not in (1, images.shape[-1]):
        raise ValueError(f"value {value} has {values.size} numbers but the images {images.shape[-1]} channels")
    if images.dtype == np.uint8 and not ((values >= 0) & (values <= 255) & (values % 1 == 0)).all():
        raise ValueError(f"value {value} is no byte, but the images are uint8: want whole numbers in 0..255")
    return namespace(images).asarray(values.astype(images.dtype))


def hide(images: Images, hidden: Any, value: float | Sequence[float]) -> Images:
    """The images with `value` where `hidden` [*B H W] says so."""
    xp = namespace(images, hidden)
    return xp.where(hidden[..., None], constant(value, images), images)


@dataclass(frozen=True)
class Augmentation:
    """A transform of images: `draw` decides, `apply` does it, calling does both."""

    def draw(self, rng: Rng, shape: Sequence[int]) -> Any:
        """Draws for images of this shape, [H W C] or [B H W C]."""
        raise NotImplementedError

    def apply(self, images: Images, draws: Any) -> Images:
        """The images under these draws; shape and dtype stay."""
        raise NotImplementedError

    def __call__(self, rng: Rng, images: Images) -> Images:
        """Draws and applies; see the module for what `rng` decides."""
        if on_device(rng):
            images = jnp.asarray(images)
        check_dtype(images)
        return self.apply(images, self.draw(rng, images.shape))


def per_channel(value: Array | Sequence[float], channels: int, name: str) -> np.ndarray:
    """float32 [C] from one number for each channel, or one for all; raises ValueError for another count."""
    values = np.atleast_1d(np.asarray(value, np.float32))
    if values.shape not in ((1,), (channels,)):
        raise ValueError(f"{name} has {values.size} numbers but the images have {channels} channels")
    return np.broadcast_to(values, (channels,))
