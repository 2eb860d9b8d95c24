"""Sliding-window attention (Beltagy et al. 2020, Longformer, section 3.1; causal as in Jiang et al. 2023, Mistral)."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from flashjax.layers.attention.base import Keys, Outputs, Queries, Segments, Values, numbered
from flashjax.layers.attention.pattern import Pattern, finish, heads_first
from flashjax.ops import partial_attention as over


@dataclass(frozen=True)
class SlidingWindow(Pattern):
    """o_i = softmax over the keys of a window: {j : i - w < j <= i}, or {j : |i - j| <= w / 2} where all are seen.

    Time N w D, memory N w, by blocks; a decoder keeps w tokens. Information moves w tokens further with each layer.
    """

    name: ClassVar[str] = "sliding_window"
    window: int = 256
    """w: tokens that a query sees, itself among them (half of them on each side, besides itself, where not causal)."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"sliding_window: window={self.window} must be at least 1, the token itself")

    def sees(self, i: Int[Array, "..."], j: Int[Array, "..."], causal: bool, heads: int) -> Bool[Array, "..."]:
        return i - j < self.window if causal else jnp.abs(i - j) <= self.window // 2

    def remembers(self, capacity: int) -> int:
        return self.window

    def recalls(self, i: Int[Array, "B 1 1"], size: int, heads: int) -> Int[Array, "..."]:
        return i - jnp.arange(size)

    def parallel(
        self, q: Queries, k: Keys, v: Values, *, causal: bool = True, segment_ids: Segments | None = None, **_: Array
    ) -> Outputs:
        self.check(causal=causal)
        before, after = (self.window - 1, 0) if causal else (self.window // 2,) * 2
        ids = numbered(segment_ids, *q.shape[:2])
        q, k, v = heads_first(q, k, v)
        return finish(over.window(q, k, v, ids, before, after), dtype=v.dtype)
