"""What a decoder remembers of each token, in buffers that are written in place.

Shapes: B rows, N tokens of a prompt, T tokens that there is room for.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from flashjax.ops.platform import traced_for


def newest(x: Array, lengths: Int[Array, "B"], size: int) -> Array:
    """A ring [B, size, ...] of the newest of the first `lengths` tokens of x [B, N, ...], token t at t mod size; zeros
    where there was none yet."""
    last, dims = lengths[:, None] - 1, (..., *(None,) * (x.ndim - 2))
    token = last - (last - jnp.arange(size)) % size
    return jnp.where((token >= 0)[dims], jnp.take_along_axis(x, jnp.maximum(token, 0)[dims], axis=1), 0)


def write(cache: Array, at: Int[Array, "B"], new: Array, axis: int = 1) -> Array:
    """`cache` with `new` [B, ...] at token `at` of each row, in the dtype of the cache; dim `axis` is that of tokens.

    Row b of `new` is as row b of the cache without that dim. A token beyond the room is dropped.

    Where the buffer is donated nothing is copied. XLA for CPUs would fuse a write of one row both into the result and
    into what reads it next, and copy the whole cache for each of the two; it does not fuse into a branch.
    """
    at_token = (jnp.arange(cache.shape[0]), *(slice(None),) * (axis - 1), at)

    def put(cache: Array) -> Array:
        return cache.at[at_token].set(new.astype(cache.dtype))

    if traced_for() != "cpu":
        return put(cache)
    return jax.lax.cond(jnp.any(at < cache.shape[axis]), put, lambda cache: cache, cache)
