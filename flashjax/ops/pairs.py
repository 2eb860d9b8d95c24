"""Which pairs of a query and a key attention is over.

Shapes: B batch, b either B or 1, Q queries, K keys.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

HIDDEN = -1e30
"""Logit of a key that is not seen: its exponential is 0. Finite, so that a row without any makes no NaN."""
FLOOR = -1e20
"""Least maximum of a row's logits: exp(HIDDEN - FLOOR) is 0, so a row that sees nothing sums to 0."""


class Seen:
    """Which keys a query sees."""

    def __init__(self, causal, window, q_positions, k_positions, q_segment_ids, k_segment_ids):
        self.causal, self.window = causal, window
        self.q_positions, self.k_positions = q_positions, k_positions
        self.q_ids, self.k_ids = q_segment_ids, k_segment_ids

    def q_index(self, length: int) -> Int[Array, "b Q"]:
        return jnp.arange(length)[None] if self.q_positions is None else self.q_positions

    def k_index(self, length: int) -> Int[Array, "b K"]:
        return jnp.arange(length)[None] if self.k_positions is None else self.k_positions

    def mask(self, queries: int, keys: int) -> Bool[Array, "b Q K"] | None:
        """For all pairs; None: all are seen."""
        ids = (None, None) if self.q_ids is None else (self.q_ids, self.k_ids)
        return pair_mask(self.causal, self.window, self.q_index(queries), self.k_index(keys), *ids)


def pair_mask(
    causal: bool, window: int | None, q_index: Array, k_index: Array, q_ids: Any, k_ids: Any, k_first: bool = False
) -> Array | None:
    """bool [b, Q, K] of index [b, Q] and [b, K], or [b, K, Q]; None where nothing is hidden."""
    of_q, of_k = (np.s_[:, None, :], np.s_[:, :, None]) if k_first else (np.s_[:, :, None], np.s_[:, None, :])
    parts = []
    ahead = q_index[of_q] - k_index[of_k]
    if causal:
        parts.append(ahead >= 0)
    if window is not None:
        parts.append(ahead < window)
        if not causal:
            parts.append(ahead > -window)
    if q_ids is not None:
        parts.append((q_ids[of_q] == k_ids[of_k]) & (k_ids[of_k] > 0))
    return functools.reduce(jnp.logical_and, parts) if parts else None


def same(of_queries: Int[Array, "*q Q"], of_keys: Int[Array, "*k K"]) -> Bool[Array, "*both Q K"]:
    """Whether query and key are of one segment, and none of them padding (0)."""
    return (of_queries[..., :, None] == of_keys[..., None, :]) & (of_keys[..., None, :] > 0)


def exponentials(logits: Float[Array, "*b K"]) -> tuple[Float[Array, "*b K"], Float[Array, "*b"]]:
    """(exp of the logits less the largest, what they are to be divided by: their sum, or 1 where no key is seen)."""
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.maximum(logits.max(-1, keepdims=True), FLOOR)))
    total = weights.sum(-1)
    return weights, jnp.where(total > 0, total, 1)
