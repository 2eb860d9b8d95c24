"""What the sparse mixers share: a pattern of pairs, and decoding from a cache of the keys that it still needs."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flashjax.layers.attention.base import Keys, Mixer, Outputs, Queries, Segments, State, Values, numbered, visible
from flashjax.layers.positions import positions_of
from flashjax.ops.cache import newest, write
from flashjax.ops.partial_attention import Partial, combine, masked_softmax


@dataclass(frozen=True)
class Pattern(Mixer):
    """o_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j over the keys j that the pattern lets query i see.

    A pattern is three statements of one rule, which tests hold equal: `sees` for all pairs, `parallel` by blocks, and
    for decoding `recalls`, the tokens that a query needs of a cache that keeps the newest `remembers` of them.
    Positions count from the start of a document.
    """

    linear: ClassVar[bool] = True

    def sees(self, i: Int[Array, "..."], j: Int[Array, "..."], causal: bool, heads: int) -> Bool[Array, "..."]:
        """Whether a query at position i sees a key at position j, besides causality; dims are [B, heads or 1, Q, K]."""
        raise NotImplementedError

    def remembers(self, capacity: int) -> int:
        """Tokens that the cache of a decoder holds."""
        raise NotImplementedError

    def recalls(self, i: Int[Array, "B 1 1"], size: int, heads: int) -> Int[Array, "..."]:
        """Positions [B, heads or 1, K] of the tokens that a query at i sees, in a cache of `size`; negative: none."""
        raise NotImplementedError

    def reference(
        self, q: Queries, k: Keys, v: Values, *, causal: bool = True, segment_ids: Segments | None = None, **_: Array
    ) -> Outputs:
        self.check(causal=causal)
        B, N, H, D = q.shape
        position = positions_of(numbered(segment_ids, B, N))
        mask = self.sees(position[:, None, :, None], position[:, None, None, :], causal, H)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * D**-0.5
        weights = masked_softmax(logits, mask & visible(segment_ids, B, N, causal)[:, None])
        return jnp.einsum("bhqk,bkhe->bqhe", weights, v).astype(v.dtype)

    def initial_state(
        self, batch: int, heads: int, head_dim: int, value_dim: int, capacity: int, dtype: Any = float
    ) -> State:
        """Keys and values of the newest tokens, token t in place t mod their number, and how many tokens there were."""
        size = min(self.remembers(capacity), capacity)
        return {
            "keys": jnp.zeros((batch, size, heads, head_dim), dtype),
            "values": jnp.zeros((batch, size, heads, value_dim), dtype),
            "position": jnp.zeros((batch,), jnp.int32),
        }

    def prefill(
        self, q: Queries, k: Keys, v: Values, valid: Bool[Array, "B N"], state: State, **inputs: Array
    ) -> tuple[State, Outputs]:
        lengths = valid.sum(1, dtype=jnp.int32)
        size, dtype = state["keys"].shape[1], state["keys"].dtype
        kept = {name: newest(x, lengths, size).astype(dtype) for name, x in (("keys", k), ("values", v))}
        o = self.parallel(q, k, v, causal=True, segment_ids=valid.astype(jnp.int32), **inputs)
        return {**state, **kept, "position": lengths}, o

    def step(
        self, state: State, q: Float[Array, "B H D"], k: Float[Array, "B H D"], v: Float[Array, "B H E"], **_: Array
    ) -> tuple[State, Float[Array, "B H E"]]:
        i = state["position"]
        keys, values = remember(state["keys"], i, k), remember(state["values"], i, v)
        seen = self.recalls(i[:, None, None], keys.shape[1], q.shape[1])
        o = recall(q, keys, values, seen).astype(v.dtype)
        return {**state, "keys": keys, "values": values, "position": i + 1}, o


def heads_first(*arrays: Float[Array, "B N H _"]) -> tuple[Any, ...]:
    """[B, N, H, D] as [B, H, N, D]."""
    return tuple(jnp.swapaxes(x, 1, 2) for x in arrays)


def finish(*parts: Partial, dtype: Any) -> Outputs:
    """The softmax over all parts, tokens first again."""
    return jnp.swapaxes(combine(*parts), 1, 2).astype(dtype)


def remember(cache: Array, position: Int[Array, "B"], x: Float[Array, "B H _"]) -> Array:
    """The cache with one more token in each row, in the place of the oldest."""
    return write(cache, position % cache.shape[1], x)


def recall(q: Float[Array, "B H D"], keys: Array, values: Array, seen: Int[Array, "..."]) -> Float[Array, "B H E"]:
    """Attention to the tokens `seen` [B, heads or 1, K] of a cache; negative ones are none."""
    place = (jnp.maximum(seen, 0) % keys.shape[1]).swapaxes(1, 2)[..., None]  # [B, K, heads or 1, 1]
    k, v = (jnp.take_along_axis(x, place, axis=1) for x in (keys, values))
    return attend(q, k, v, seen >= 0)


def attend(q: Float[Array, "B H D"], k: Array, v: Array, mask: Bool[Array, "..."]) -> Float[Array, "B H E"]:
    """One query a head to keys [B, K, H, D] that `mask` [B, heads or 1, K] lets through; in float32, or what the keys
    have beyond it."""
    q, k, v = (x.astype(jnp.promote_types(k.dtype, jnp.float32)) for x in (q, k, v))
    logits = jnp.einsum("bhd,bkhd->bhk", q, k) * q.shape[-1] ** -0.5
    return jnp.einsum("bhk,bkhe->bhe", masked_softmax(logits, mask), v)
