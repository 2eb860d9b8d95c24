"""Linformer attention (Wang et al. 2020, section 4): keys and values projected along the sequence."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flashjax.layers.attention.base import Keys, Mixer, Outputs, Queries, Segments, Values
from flashjax.layers.attention.documents import Slots, document_slots
from flashjax.ops.partial_attention import masked_softmax


class SequenceProjections(nn.Module):
    """E and F [heads or 1, n, r], drawn with variance 1 / r as random projections are that keep lengths, on which the
    paper's proof rests; its code draws them by Xavier's rule."""

    heads: int
    length: int
    rank: int
    share_key_value: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> dict[str, Float[Array, "h n r"]]:
        shape, init = (self.heads, self.length, self.rank), nn.initializers.normal(self.rank**-0.5)
        key = self.param("key_projection", init, shape)
        return {
            "key_projection": key,
            "value_projection": key if self.share_key_value else self.param("value_projection", init, shape),
        }


@dataclass(frozen=True)
class Linformer(Mixer):
    """K' = E^T K, V' = F^T V; o_i = softmax_r(q_i K'^T / sqrt(D)) V', with E and F [n, r] learned for n positions.

    Time N r D, memory N r. Fixed length: E has a row for each position of the longest sequence; shorter ones use its
    first rows, longer ones are an error. Not causal: each row of K' is a sum over all tokens. Positions count from the
    start of a document, of which a row may hold `documents`; the tokens of further ones become NaN.
    """

    name: ClassVar[str] = "linformer"
    causal: ClassVar[bool] = False
    rotary: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    shared_inputs: ClassVar[tuple[str, ...]] = ("key_projection", "value_projection")
    rank: int = 256
    """r: rows that keys and values are projected to."""
    share: str = "heads"
    """Projections that are one: none (each head has its own E and F), heads (one E, one F), key_value (one E = F)."""
    documents: int = 1
    """Most documents of a packed row; time and memory grow with it."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.documents < 1:
            raise ValueError(f"linformer: rank={self.rank} and documents={self.documents} must be at least 1")
        if self.share not in ("none", "heads", "key_value"):
            further = "; a block has its own parameters, so layers share none" if self.share == "layers" else ""
            raise ValueError(f"linformer: share={self.share!r} must be none, heads or key_value{further}")

    def inputs(self, heads: int, head_dim: int, length: int, dtype: Any) -> nn.Module:
        return SequenceProjections(heads if self.share == "none" else 1, length, self.rank, self.share == "key_value")

    def reference(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = False,
        segment_ids: Segments | None = None,
        key_projection: Float[Array, "h n r"],
        value_projection: Float[Array, "h n r"],
    ) -> Outputs:
        """P F^T as one matrix of all pairs, and its product with the values."""
        weights, slots = self._weights(q, k, causal, segment_ids, key_projection)
        pairs = jnp.einsum("bhnr,bhmr->bhnm", weights, self._of_tokens(value_projection, slots, q.shape[1]))
        o = jnp.einsum("bhnm,bmhe->bnhe", pairs, v).astype(v.dtype)
        return o if slots is None else slots.poison(o)

    def parallel(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = False,
        segment_ids: Segments | None = None,
        key_projection: Float[Array, "h n r"],
        value_projection: Float[Array, "h n r"],
    ) -> Outputs:
        weights, slots = self._weights(q, k, causal, segment_ids, key_projection)
        projected = jnp.einsum(
            "bhnr,bnhe->bhre", self._of_tokens(value_projection, slots, q.shape[1]).astype(v.dtype), v
        )
        o = jnp.einsum("bhnr,bhre->bnhe", weights.astype(v.dtype), projected)
        return o if slots is None else slots.poison(o)

    def _weights(
        self, q: Queries, k: Keys, causal: bool, segment_ids: Segments | None, projection: Array
    ) -> tuple[Float[Array, "B H N R"], Slots | None]:
        """softmax_r(q_i K'^T / sqrt(D)), R = documents * r, and the documents' slots."""
        self.check(causal=causal)
        N = q.shape[1]
        if projection.shape[1] < N:
            raise ValueError(
                f"linformer: {N} tokens, but its projections are made for at most {projection.shape[1]}: "
                "set the model's max_length"
            )
        slots = None if segment_ids is None else document_slots(segment_ids, self.documents, self.name)
        projected = jnp.einsum("bhnr,bnhd->bhrd", self._of_tokens(projection, slots, N).astype(k.dtype), k)
        logits = jnp.einsum("bnhd,bhrd->bhnr", q, projected) * q.shape[-1] ** -0.5
        mask = True if slots is None else jnp.repeat(slots.own, projection.shape[2], axis=2)[:, None]
        return masked_softmax(logits, jnp.asarray(mask)), slots

    def _of_tokens(self, projection: Array, slots: Slots | None, length: int) -> Float[Array, "b h N R"]:
        """The row of E that each token has, in the place of its document; 0 for padding."""
        if slots is None:
            return projection[None, :, :length]
        rows = projection[:, slots.position].swapaxes(0, 1)  # [B, h, N, r]
        return (rows[:, :, :, None] * slots.own[:, None, :, :, None]).reshape(*rows.shape[:3], -1)
