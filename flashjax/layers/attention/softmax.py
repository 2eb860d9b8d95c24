"""Softmax attention as a mixer: what all others replace (Vaswani et al. 2017).

o_i = sum_j softmax_j(q_i k_j / sqrt(D) + bias_ij) v_j over the keys j that i sees.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flashjax.layers.attention.base import Mixer, Outputs, Segments, visible
from flashjax.ops.attention import Implementation, cached_attention, dot_product_attention
from flashjax.ops.cache import write
from flashjax.ops.pairs import HIDDEN

Cache = dict[str, Array]


@dataclass(frozen=True)
class Softmax(Mixer):
    """Scaled dot-product attention; keys and values may have fewer heads than queries.

    The input `bias` is what `flashjax.ops.attention.dot_product_attention` takes: an array that broadcasts to
    [B, H, N, N], or a function of positions.
    """

    name: ClassVar[str] = "softmax"
    linear: ClassVar[bool] = False
    bias: ClassVar[bool] = True
    grouped: ClassVar[bool] = True
    shared_inputs: ClassVar[tuple[str, ...]] = ("bias",)

    window: int = 0
    """A token sees keys nearer than this; 0: all."""
    scale: float = 0.0
    """Factor of the logits; 0: D^-1/2."""
    implementation: str = "auto"
    """What computes it: auto, xla, blocked or cudnn (see flashjax.ops.attention)."""

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ValueError(f"softmax: window={self.window} must be 0, for all keys, or more")
        if self.implementation not in get_args(Implementation):
            choices = ", ".join(get_args(Implementation))
            raise ValueError(f"softmax: unknown implementation {self.implementation!r}; choose from {choices}")

    def reference(
        self,
        q: Float[Array, "B N H D"],
        k: Float[Array, "B N Hk D"],
        v: Float[Array, "B N Hk E"],
        *,
        causal: bool = True,
        segment_ids: Segments | None = None,
        bias: Any = None,
    ) -> Outputs:
        """The equation, all pairs at once."""
        group = q.shape[2] // k.shape[2]
        k, v = jnp.repeat(k, group, 2), jnp.repeat(v, group, 2)
        index = jnp.arange(q.shape[1])
        seen = visible(segment_ids, q.shape[0], q.shape[1], causal)
        if self.window:
            seen &= jnp.abs(index[:, None] - index) < self.window
        logits = jnp.einsum("bihd,bjhd->bhij", q, k, preferred_element_type=jnp.float32)
        logits = logits * (self.scale or q.shape[-1] ** -0.5)
        if bias is not None:
            logits = logits + jnp.asarray(bias(index, index) if callable(bias) else bias)
        logits = jnp.where(seen[:, None], logits, HIDDEN)
        weights = jnp.exp(logits - logits.max(-1, keepdims=True)) * seen[:, None]
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
        return jnp.einsum("bhij,bjhe->bihe", weights.astype(v.dtype), v)

    def parallel(
        self,
        q: Float[Array, "B N H D"],
        k: Float[Array, "B N Hk D"],
        v: Float[Array, "B N Hk E"],
        *,
        causal: bool = True,
        segment_ids: Segments | None = None,
        bias: Any = None,
    ) -> Outputs:
        """`dot_product_attention` of the named implementation."""
        return self._attend(q, k, v, causal=causal, bias=bias, q_segment_ids=segment_ids, k_segment_ids=segment_ids)

    def _attend(self, q: Array, k: Array, v: Array, **arguments: Any) -> Array:
        return dot_product_attention(
            q,
            k,
            v,
            window=self.window or None,
            scale=self.scale or None,
            implementation=self.implementation,
            **arguments,
        )

    def initial_state(
        self, batch: int, heads: int, head_dim: int, value_dim: int, capacity: int, dtype: Any = jnp.float32
    ) -> Cache:
        """The cache: keys and values of `heads` key-value heads, and how many tokens are in it."""
        return {
            "key": jnp.zeros((batch, heads, capacity, head_dim), dtype),
            "value": jnp.zeros((batch, heads, capacity, value_dim), dtype),
            "length": jnp.zeros((batch,), jnp.int32),
        }

    def prefill(
        self,
        q: Float[Array, "B N H D"],
        k: Float[Array, "B N Hk D"],
        v: Float[Array, "B N Hk E"],
        valid: Bool[Array, "B N"],
        state: Cache,
        bias: Any = None,
    ) -> tuple[Cache, Outputs]:
        """The prompt's keys and values into the cache, and attention among them."""
        # Padding lies behind: causality hides it.
        return self.fill(k, v, valid, state), self._attend(q, k, v, causal=True, bias=bias)

    def fill(
        self, k: Float[Array, "B N Hk D"], v: Float[Array, "B N Hk E"], valid: Bool[Array, "B N"], state: Cache
    ) -> Cache:
        """The cache with a prompt's keys and values in it."""
        room = state["key"].shape[2]
        if k.shape[1] > room:
            raise ValueError(f"a prompt of {k.shape[1]} tokens in a cache of {room}: make it longer")

        def filled(cache: Array, x: Array) -> Array:
            return cache.at[:, :, : x.shape[1]].set(x.swapaxes(1, 2).astype(cache.dtype))

        return {
            "key": filled(state["key"], k),
            "value": filled(state["value"], v),
            "length": valid.sum(1, dtype=jnp.int32),
        }

    def append(self, state: Cache, k: Float[Array, "B Hk D"], v: Float[Array, "B Hk E"]) -> Cache:
        """The cache with one key and value more in each row."""
        at = state["length"]
        return {"key": write(state["key"], at, k, 2), "value": write(state["value"], at, v, 2), "length": at + 1}

    def step(
        self,
        state: Cache,
        q: Float[Array, "B H D"],
        k: Float[Array, "B Hk D"],
        v: Float[Array, "B Hk E"],
        bias: Any = None,
    ) -> tuple[Cache, Float[Array, "B H E"]]:
        """One key and value more; the query sees what is in the cache. `bias` is a function of positions here."""
        at = state["length"]
        state = self.append(state, k, v)
        if callable(bias):
            index = jnp.arange(state["key"].shape[2])
            bias = jax.vmap(lambda position: bias(position[None], index)[:, 0])(at)
        arguments = {"window": self.window or None, "scale": self.scale or None}
        o = cached_attention(q, state["key"], state["value"].astype(v.dtype), at, bias=bias, **arguments)
        return state, o
