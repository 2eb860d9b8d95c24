"""Fixed attention of the Sparse Transformer (Child et al. 2019, section 4.3)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from flashjax.layers.attention.base import Keys, Outputs, Queries, Segments, Values, numbered
from flashjax.layers.attention.pattern import Pattern, finish, heads_first
from flashjax.layers.positions import positions_of
from flashjax.ops import partial_attention as over
from flashjax.ops.pairs import same


@dataclass(frozen=True)
class Fixed(Pattern):
    """o_i = softmax over {j : [j / l] = [i / l]} and {j : j mod l >= l - c}: its block, and the last c of each block.

    Those last c summarise their block for all later ones. Both sets in every head, the paper's merged head. Blocks are
    counted from the start of a document. Time and memory N (l + N c / l); a decoder keeps all tokens and reads that
    many of them. Where all are seen, the sets are the same without j <= i.
    """

    name: ClassVar[str] = "fixed"
    linear: ClassVar[bool] = False
    block: int = 128
    """l: tokens of a block."""
    summary: int = 8
    """c: tokens at the end of a block that all later blocks see; the paper takes 8, 16 or 32 for l of 128 or 256."""

    def __post_init__(self) -> None:
        if not 1 <= self.summary <= self.block:
            raise ValueError(f"fixed: summary={self.summary} must be 1 to block={self.block}, tokens of a block")

    def sees(self, i: Int[Array, "..."], j: Int[Array, "..."], causal: bool, heads: int) -> Bool[Array, "..."]:
        return (i // self.block == j // self.block) | (j % self.block >= self.block - self.summary)

    def remembers(self, capacity: int) -> int:
        return capacity

    def recalls(self, i: Int[Array, "B 1 1"], size: int, heads: int) -> Int[Array, "..."]:
        first = i - i % self.block
        own = first + np.arange(min(self.block, size))
        far = np.arange(size)[np.arange(size) % self.block >= self.block - self.summary]
        return jnp.concatenate(
            [jnp.where(own <= i, own, -1), jnp.where(far < first, far, -1)], axis=-1, dtype=jnp.int32
        )

    def parallel(
        self, q: Queries, k: Keys, v: Values, *, causal: bool = True, segment_ids: Segments | None = None, **_: Array
    ) -> Outputs:
        self.check(causal=causal)
        N, size, c = q.shape[1], self.block, self.summary
        ids = numbered(segment_ids, *q.shape[:2])
        q, k, v = heads_first(q, k, v)
        position = positions_of(ids)
        blocks = jnp.cumsum(position % size == 0, axis=1) * (ids > 0)  # all blocks of a row
        near = over.window(q, k, v, blocks, size - 1, 0 if causal else size - 1)
        if N * c < size:  # nor has any document a summary
            return finish(near, dtype=v.dtype)
        # No row has more summaries than this, however its documents are cut.
        last = jax.vmap(lambda row: jnp.flatnonzero(row, size=N * c // size, fill_value=N))(
            (position % size >= size - c) & (ids > 0)
        )
        keys, values = (jnp.take_along_axis(x, last[:, None, :, None], 2, mode="fill", fill_value=0) for x in (k, v))
        of, in_block = (jnp.take_along_axis(x, last, 1, mode="fill", fill_value=0) for x in (ids, blocks))
        mask = same(ids, of) & (blocks[:, :, None] != in_block[:, None, :])
        if causal:
            mask &= last[:, None, :] <= np.arange(N)[:, None]
        return finish(near, over.partial(q, keys, values, mask[:, None]), dtype=v.dtype)
