"""Packed rows for mixers that make a few numbers of each document: every document has a slot of its own."""

from typing import NamedTuple

import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flashjax.layers.attention.base import Segments
from flashjax.layers.positions import positions_of


class Slots(NamedTuple):
    """Which slot each token has, S in a row."""

    own: Bool[Array, "B N S"]
    """Whether the token's document is the slot's; padding has none."""
    position: Int[Array, "B N"]
    """The token's place in its document."""
    length: Int[Array, "B N"]
    """Tokens of its document."""
    without: Bool[Array, "B N"]
    """Whether its document found no slot."""

    def poison(self, o: Float[Array, "B N H E"]) -> Float[Array, "B N H E"]:
        """NaN for the tokens that found no slot: a run stops there instead of learning from half of its data."""
        return jnp.where(self.without[..., None, None], jnp.nan, o)


def document_slots(segment_ids: Segments, documents: int, name: str) -> Slots:
    """Slots for the documents 1, 2, ... `documents` of each row.

    Raises:
        ValueError: for more documents than that, where the segments are known (not traced).
    """
    if not isinstance(segment_ids, jax.core.Tracer) and (found := np.asarray(segment_ids).max()) > documents:
        raise ValueError(f"{name}: a row holds {found} documents, but its option documents is {documents}: raise it")
    own = segment_ids[..., None] == np.arange(1, documents + 1)
    length = jnp.where(own, own.sum(1, keepdims=True), 0).sum(-1)
    return Slots(own, positions_of(segment_ids), length, segment_ids > documents)
