"""Strided attention of the Sparse Transformer (Child et al. 2019, section 4.3)."""

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
from flashjax.ops.pairs import same


@dataclass(frozen=True)
class Strided(Pattern):
    """o_i = softmax over {j : i - l <= j <= i} and {j : (i - j) mod l = 0}: the last l tokens, and every l-th before.

    Both sets in every head, the paper's merged head. Time and memory N (l + N / l): N sqrt(N) for l near sqrt(N). A
    decoder keeps all tokens and reads l + N / l of them. Where all are seen, both sets have their mirror image.
    """

    name: ClassVar[str] = "strided"
    linear: ClassVar[bool] = False
    stride: int = 128
    """l"""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"strided: stride={self.stride} must be at least 1; near the root of the length is best")

    def sees(self, i: Int[Array, "..."], j: Int[Array, "..."], causal: bool, heads: int) -> Bool[Array, "..."]:
        return (jnp.abs(i - j) <= self.stride) | ((i - j) % self.stride == 0)

    def remembers(self, capacity: int) -> int:
        return capacity

    def recalls(self, i: Int[Array, "B 1 1"], size: int, heads: int) -> Int[Array, "..."]:
        far = np.arange(2 * self.stride, size, self.stride)
        return i - np.concatenate([np.arange(min(self.stride + 1, size)), far])

    def parallel(
        self, q: Queries, k: Keys, v: Values, *, causal: bool = True, segment_ids: Segments | None = None, **_: Array
    ) -> Outputs:
        self.check(causal=causal)
        N, stride = q.shape[1], self.stride
        ids = numbered(segment_ids, *q.shape[:2])
        q, k, v = heads_first(q, k, v)
        near = over.window(q, k, v, ids, stride, 0 if causal else stride)
        # Rows of l tokens under one another: column c holds the tokens of residue c, [B, H, l, N / l, D].
        q, k, v = (to_blocks(x, stride, 2).swapaxes(2, 3) for x in (q, k, v))
        of = to_blocks(ids, stride, 1).swapaxes(1, 2)
        row = np.arange(of.shape[2])
        apart = row[:, None] - row  # rows between; those less than two apart are in the window
        mask = (apart if causal else np.abs(apart)) >= 2
        far = over.partial(q, k, v, mask & same(of, of)[:, None])
        return finish(near, jax.tree.map(lambda x: from_blocks(x.swapaxes(2, 3), N, 2), far), dtype=v.dtype)
