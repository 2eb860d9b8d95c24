"""Longformer attention (Beltagy et al. 2020, section 3.1): a window, and global tokens with their own projections."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from flashjax.layers.attention.base import Keys, Outputs, Queries, Segments, State, Values, numbered, visible
from flashjax.layers.attention.pattern import Pattern, attend, finish, heads_first, remember
from flashjax.layers.positions import positions_of
from flashjax.ops import partial_attention as over
from flashjax.ops.pairs import HIDDEN


class GlobalProjections(nn.Module):
    """Queries, keys and values of global attention, [B, N, H, D] each; no block rotates them."""

    heads: int
    head_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> dict[str, Float[Array, "B N H D"]]:
        def project(name: str) -> Array:
            y = nn.Dense(self.heads * self.head_dim, dtype=self.dtype, name=name)(x)
            return y.reshape(*x.shape[:2], self.heads, self.head_dim)

        return {name: project(name) for name in ("global_query", "global_key", "global_value")}


@dataclass(frozen=True)
class Longformer(Pattern):
    """o_i = softmax over a window and the document's first g tokens by q, k, v; those g tokens themselves see all.

    For i >= g the keys are {j : |i - j| <= w / 2 or j < g} (causal: {j : i - w < j <= i or j < g}); for i < g they are
    all of the document (causal: j <= i), by the global projections of queries, keys and values. Time and memory
    N (w + g); a decoder keeps w + 3 g tokens.
    """

    name: ClassVar[str] = "longformer"
    window: int = 512
    """w: tokens of the window; where not causal, half of them on each side."""
    global_tokens: int = 1
    """g: tokens at the start of each document that see all and are seen by all."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"longformer: window={self.window} must be at least 1, the token itself")
        if self.global_tokens < 1:
            raise ValueError(f"longformer: global_tokens={self.global_tokens}: without any, use sliding_window")

    def inputs(self, heads: int, head_dim: int, length: int, dtype: Any) -> nn.Module:
        return GlobalProjections(heads, head_dim, dtype)

    def sees(self, i: Int[Array, "..."], j: Int[Array, "..."], causal: bool, heads: int) -> Bool[Array, "..."]:
        near = i - j < self.window if causal else jnp.abs(i - j) <= self.window // 2
        return near | (j < self.global_tokens)

    def reference(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = True,
        segment_ids: Segments | None = None,
        global_query: Queries,
        global_key: Keys,
        global_value: Values,
    ) -> Outputs:
        o = super().reference(q, k, v, causal=causal, segment_ids=segment_ids)
        B, N, _, D = q.shape
        logits = jnp.einsum("bqhd,bkhd->bhqk", global_query, global_key) * D**-0.5
        weights = over.masked_softmax(logits, visible(segment_ids, B, N, causal)[:, None])
        o_global = jnp.einsum("bhqk,bkhe->bqhe", weights, global_value).astype(v.dtype)
        is_global = positions_of(numbered(segment_ids, B, N)) < self.global_tokens
        return jnp.where(is_global[..., None, None], o_global, o)

    def parallel(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = True,
        segment_ids: Segments | None = None,
        global_query: Queries,
        global_key: Keys,
        global_value: Values,
    ) -> Outputs:
        self.check(causal=causal)
        (B, N), g = q.shape[:2], min(self.global_tokens, q.shape[1])
        ids = numbered(segment_ids, B, N)
        position = positions_of(ids)
        start = None if segment_ids is None else jnp.arange(N) - position  # of the document; None: of the row
        # Global keys are a part of their own: the window does not see them.
        before, after = (self.window - 1, 0) if causal else (self.window // 2,) * 2
        q_first, k_first, v_first = heads_first(q, k, v)
        near = over.window(q_first, k_first, v_first, ids, before, after, jnp.where(position < g, 0, ids))
        keys, values, there = (_firsts(x, start, g) for x in (k, v, position))
        mask = (there == np.arange(g)) & (ids > 0)[..., None]
        if causal:
            mask &= np.arange(g) <= position[..., None]
        far = over.partial(q[..., None, :], keys.swapaxes(2, 3), values.swapaxes(2, 3), mask[:, :, None, None])
        far = jax.tree.map(lambda x: jnp.moveaxis(x, 3, 1)[:, 0].swapaxes(1, 2), far)
        o_global = self._global_rows(global_query, global_key, global_value, ids > 0, position, start, causal)
        return jnp.where((position < g)[..., None, None], o_global.astype(v.dtype), finish(near, far, dtype=v.dtype))

    def _global_rows(
        self, q: Queries, k: Keys, v: Values, real: Array, position: Array, start: Array | None, causal: bool
    ) -> Outputs:
        """What the global tokens get, each token the row of its place: a softmax over all tokens of each document."""
        g = min(self.global_tokens, q.shape[1])
        logits = jnp.einsum("bnghd,bnhd->bngh", _firsts(q, start, g), k) * q.shape[-1] ** -0.5
        mask = real[..., None] & (position[..., None] <= np.arange(g) if causal else True)
        logits = jnp.where(mask[..., None], logits.astype(jnp.promote_types(q.dtype, jnp.float32)), HIDDEN)
        largest = _over_documents(jax.lax.stop_gradient(logits), start, jax.ops.segment_max, jnp.max)
        weights = jnp.where(mask[..., None], jnp.exp(logits - largest), 0)
        total = _over_documents(weights[..., None] * v[:, :, None], start, jax.ops.segment_sum, jnp.sum)
        weight = _over_documents(weights, start, jax.ops.segment_sum, jnp.sum)
        o = total / jnp.where(weight > 0, weight, 1)[..., None]  # [B, N or 1, g, H, E]
        return jnp.take_along_axis(o, jnp.minimum(position, g - 1)[..., None, None, None], axis=2)[:, :, 0]

    def initial_state(
        self, batch: int, heads: int, head_dim: int, value_dim: int, capacity: int, dtype: Any = float
    ) -> State:
        """The window's cache, and keys and values of the first g tokens, local and global."""
        state = super().initial_state(batch, heads, head_dim, value_dim, capacity, dtype)
        dims = {"keys": head_dim, "values": value_dim, "global_key": head_dim, "global_value": value_dim}
        firsts = {name: jnp.zeros((batch, self.global_tokens, heads, dim), dtype) for name, dim in dims.items()}
        return {**state, "firsts": firsts}

    def remembers(self, capacity: int) -> int:
        return self.window

    def prefill(
        self, q: Queries, k: Keys, v: Values, valid: Bool[Array, "B N"], state: State, **inputs: Array
    ) -> tuple[State, Outputs]:
        new, o = super().prefill(q, k, v, valid, state, **inputs)
        given = {"keys": k, "values": v, "global_key": inputs["global_key"], "global_value": inputs["global_value"]}
        g = self.global_tokens
        firsts = {
            name: jax.lax.dynamic_update_slice_in_dim(old, given[name][:, :g].astype(old.dtype), 0, 1)
            for name, old in state["firsts"].items()
        }
        return {**new, "firsts": firsts}, o

    def step(
        self,
        state: State,
        q: Float[Array, "B H D"],
        k: Float[Array, "B H D"],
        v: Float[Array, "B H E"],
        **inputs: Array,
    ) -> tuple[State, Float[Array, "B H E"]]:
        i, g = state["position"][:, None], self.global_tokens
        keys, values = remember(state["keys"], i[:, 0], k), remember(state["values"], i[:, 0], v)
        given = {"keys": k, "values": v, "global_key": inputs["global_key"], "global_value": inputs["global_value"]}
        here = (np.arange(g) == i)[..., None, None]
        firsts = {n: jnp.where(here, given[n][:, None].astype(old.dtype), old) for n, old in state["firsts"].items()}
        token = i - (i - np.arange(keys.shape[1])) % keys.shape[1]  # in each place of the cache
        seen = jnp.concatenate([token >= g, np.arange(g) <= i], 1)[:, None]
        both = (jnp.concatenate([keys, firsts["keys"]], 1), jnp.concatenate([values, firsts["values"]], 1))
        o = attend(q, both[0], both[1], seen)
        o_global = attend(
            inputs["global_query"], firsts["global_key"], firsts["global_value"], (np.arange(g) <= i)[:, None]
        )
        o = jnp.where((i < g)[..., None], o_global, o).astype(v.dtype)
        return {**state, "keys": keys, "values": values, "firsts": firsts, "position": i[:, 0] + 1}, o


def _firsts(x: Array, start: Array | None, g: int) -> Array:
    """To each token the first g tokens of its document: [B, N, ...] -> [B, N, g, ...]; [B, 1, g, ...] of one document.

    Past the end of a document stands another one's token, or the row's last.
    """
    if start is None:
        return x[:, None, :g]
    return jax.vmap(lambda x, place: jnp.take(x, place, axis=0, mode="clip"))(x, start[..., None] + np.arange(g))


def _over_documents(x: Array, start: Array | None, packed: Any, whole: Any) -> Array:
    """Reduces [B, N, ...] over each document and gives the result to its tokens; [B, 1, ...] of one document."""
    if start is None:
        return whole(x, axis=1, keepdims=True)
    return jax.vmap(lambda x, s: packed(x, s, num_segments=x.shape[0])[s])(x, start)
