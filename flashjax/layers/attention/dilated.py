"""Dilated sliding-window attention, a dilation for each head (Beltagy et al. 2020, Longformer, section 3.1)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from flashjax.layers.attention.base import Keys, Outputs, Queries, Segments, Values, numbered
from flashjax.layers.attention.pattern import Pattern, finish, heads_first
from flashjax.ops import partial_attention as over
from flashjax.ops.blocks import from_blocks, to_blocks


@dataclass(frozen=True)
class Dilated(Pattern):
    """o_i of head h = softmax over {i - d_h m : 0 <= m < w}, or |m| <= w / 2 where all are seen.

    d_h = 1, 2, 4, ... in turn: heads of dilation 1 see what is near, one of dilation d sees d times as far with the
    same work. The paper gives no list of dilations. Time N w D, memory N w: tokens of one residue mod d are a plain
    window. A decoder keeps the widest head's (w - 1) d + 1 tokens and reads w of them.
    """

    name: ClassVar[str] = "dilated"
    window: int = 64
    """w: keys that a query sees in each head, itself among them."""
    dilation: int = 4
    """The largest dilation, a power of two: head h has 2^(h mod (log2 of it + 1))."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"dilated: window={self.window} must be at least 1, the token itself")
        if self.dilation < 1 or self.dilation & (self.dilation - 1):
            raise ValueError(f"dilated: dilation={self.dilation} must be a power of two: 1, 2, 4, ...")

    def dilations(self, heads: int) -> np.ndarray:
        """int64 [H]"""
        return 2 ** (np.arange(heads) % self.dilation.bit_length())

    def sees(self, i: Int[Array, "..."], j: Int[Array, "..."], causal: bool, heads: int) -> Bool[Array, "..."]:
        d = self.dilations(heads)[:, None, None]
        reach = self.window - 1 if causal else self.window // 2
        return ((i - j) % d == 0) & (jnp.abs(i - j) <= reach * d)

    def remembers(self, capacity: int) -> int:
        return (self.window - 1) * self.dilation + 1

    def recalls(self, i: Int[Array, "B 1 1"], size: int, heads: int) -> Int[Array, "..."]:
        return i - self.dilations(heads)[:, None] * jnp.arange(min(self.window, size))

    def parallel(
        self, q: Queries, k: Keys, v: Values, *, causal: bool = True, segment_ids: Segments | None = None, **_: Array
    ) -> Outputs:
        self.check(causal=causal)
        before, after = (self.window - 1, 0) if causal else (self.window // 2,) * 2
        ids, heads = numbered(segment_ids, *q.shape[:2]), heads_first(q, k, v)
        dilations = self.dilations(q.shape[2])
        parts = []
        for d in np.unique(dilations):
            chosen = np.flatnonzero(dilations == d)
            q_d, k_d, v_d = (residues(x[:, chosen], int(d), 2) for x in heads)
            part = over.window(q_d, k_d, v_d, residues(ids, int(d), 1), before, after)
            parts.append(jax.tree.map(lambda x, d=int(d): together(x, d, ids.shape[1]), part))
        order = np.argsort(np.argsort(dilations, kind="stable"))  # a head's place among the parts
        part = jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1)[:, order], *parts)
        return finish(part, dtype=v.dtype)


def residues(x: Array, d: int, axis: int) -> Array:
    """Tokens of one residue mod d become a row of their own: [B, ..., N, ...] -> [B d, ..., N / d, ...]."""
    x = jnp.moveaxis(to_blocks(x, d, axis), axis + 1, 1)  # [B, d, ..., N / d, ...]
    return x.reshape(-1, *x.shape[2:])


def together(x: Array, d: int, length: int) -> Array:
    """The other way, on [B d, H, N / d, ...]."""
    x = jnp.moveaxis(x.reshape(-1, d, *x.shape[1:]), 1, 3)
    return from_blocks(x, length, 2)
