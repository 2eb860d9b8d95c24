"""Resizing that equals torch's `interpolate`, which `jax.image.resize` does not.

Shapes: H, W input size; h, w output size; C channels.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_A = -0.75  # torch's cubic coefficient; Pillow, Keys and jax.image use -0.5


@lru_cache(maxsize=64)
def bicubic_weights(source: int, target: int) -> np.ndarray:
    """The [target, source] float32 matrix that resizes one dim as torch's bicubic does.

    Half-pixel centres (`align_corners=False`), no antialiasing on the way down, and taps that fall outside are
    clamped to the border, so that their weights add up there. Source: `upsample_bicubic2d` of PyTorch.
    """
    centre = (np.arange(target, dtype=np.float64) + 0.5) * (source / target) - 0.5
    first = np.floor(centre)
    weights = np.zeros((target, source), np.float64)
    for tap in range(-1, 3):
        d = np.abs(centre - first - tap)
        near = ((_A + 2) * d - (_A + 3)) * d * d + 1
        far = (((d - 5) * d + 8) * d - 4) * _A
        column = np.clip(first + tap, 0, source - 1).astype(np.int64)
        np.add.at(weights, (np.arange(target), column), np.where(d <= 1, near, far))
    return weights.astype(np.float32)


def resize_bicubic(image: Float[Array | np.ndarray, "H W C"], size: tuple[int, int]) -> Float[Array, "h w C"]:
    """Resizes a map to `size` = (h, w) exactly as torch's `interpolate(mode="bicubic")` does; float32 in, float32 out.

    Raises ValueError where a size is not positive.
    """
    if min(size) < 1:
        raise ValueError(f"size must be positive, got {size}")
    rows, columns = bicubic_weights(image.shape[0], size[0]), bicubic_weights(image.shape[1], size[1])
    return jnp.einsum("hH,HWC,wW->hwC", rows, image, columns, precision=jax.lax.Precision.HIGHEST)
