"""What a module shows of its inside to who watches it (`flashjax.training.watch`); to all others it costs nothing."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

WATCHED = "watched"
"""The collection of figures; it is there on watched steps alone."""


def is_watched(module: nn.Module) -> bool:
    """Whether somebody is looking; never when variables are drawn, which makes every collection."""
    return module.is_mutable_collection(WATCHED) and not module.is_initializing()


def show_logits(module: nn.Module, q: Float[Array, "*b N H D"], k: Float[Array, "*b M Hk D"], scale: Any) -> None:
    """Shows the second moment of attention's logits, `scale` q.k, as the figure "logits" of `module`.

    Before any bias, over all pairs of tokens of a row, hidden ones too: sum_ij (q_i k_j)^2 = <Q^T Q, K^T K>, which
    needs no logits. Query head h reads key-value head h // (H / Hk); `scale` is a number, or has H of them.
    """
    if not is_watched(module):
        return
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    gram_q = jnp.einsum("...nhd,...nhe->...hde", q, q)
    gram_k = jnp.repeat(jnp.einsum("...nhd,...nhe->...hde", k, k), q.shape[-2] // k.shape[-2], axis=-3)
    of_heads = (gram_q * gram_k).sum((-1, -2)) * jnp.square(jnp.asarray(scale, jnp.float32)).reshape(-1)
    module.sow(WATCHED, "logits", of_heads.mean() / (q.shape[-3] * k.shape[-3]))
