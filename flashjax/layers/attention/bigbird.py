"""BigBird's block-sparse attention (Zaheer et al. 2020, section 2 and appendix D): window, random and global blocks."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from flashjax.layers.attention.base import Keys, Mixer, Outputs, Queries, Segments, Values, numbered, visible
from flashjax.layers.attention.pattern import finish, heads_first
from flashjax.ops import partial_attention as over
from flashjax.ops.blocks import from_blocks, to_blocks
from flashjax.ops.pairs import same


@dataclass(frozen=True)
class BigBird(Mixer):
    """o_i = softmax over the tokens of {blocks next to i's, its own, r random ones, the first and the last}.

    Queries of the first and the last block see all. The random blocks of a query block and a head are drawn from those
    that it would not see, once, by `seed`; a row of so few blocks that there are none left sees all. Blocks are those
    of the row: documents packed into one see what lies in their own. Time and memory N (5 + r) b.

    Not causal: the last block is global, and random blocks lie ahead.
    """

    name: ClassVar[str] = "bigbird"
    causal: ClassVar[bool] = False
    block: int = 64
    """b: tokens of a block."""
    random: int = 3
    """r: random blocks of each query block."""
    seed: int = 0
    """Of the random blocks, which are the same in every layer."""

    def __post_init__(self) -> None:
        if self.block < 1 or self.random < 0:
            raise ValueError(f"bigbird: block={self.block} must be at least 1, and random={self.random} at least 0")

    def check(self, *, causal: bool, position: str = "none") -> None:
        if causal:
            raise ValueError(
                "bigbird has no causal form: its last block is global and its random blocks lie ahead; use it with "
                "causal=False, or sliding_window, longformer, strided or fixed for a causal pattern"
            )
        super().check(causal=causal, position=position)

    def random_blocks(self, heads: int, blocks: int) -> Int[np.ndarray, "H L r"]:
        """int32: the random blocks of each query block but the first and the last; -1 where there are fewer."""
        return _draw(heads, blocks, self.random, self.seed)

    def block_mask(self, heads: int, blocks: int) -> Bool[np.ndarray, "H L L"]:
        """Which blocks of keys a block of queries sees."""
        i = np.arange(blocks)
        edge = (i == 0) | (i == blocks - 1)
        mask = (np.abs(i[:, None] - i) <= 1) | edge | edge[:, None]
        mask = np.repeat(mask[None], heads, 0)
        for h, rows in enumerate(self.random_blocks(heads, blocks)):
            for row, chosen in enumerate(rows, start=1):
                mask[h, row, chosen[chosen >= 0]] = True
        return mask

    def reference(
        self, q: Queries, k: Keys, v: Values, *, causal: bool = False, segment_ids: Segments | None = None
    ) -> Outputs:
        self.check(causal=causal)
        B, N, H, D = q.shape
        mask = self.block_mask(H, -(-N // self.block)).repeat(self.block, 1).repeat(self.block, 2)[:, :N, :N]
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * D**-0.5
        weights = over.masked_softmax(logits, mask & visible(segment_ids, B, N, causal)[:, None])
        return jnp.einsum("bhqk,bkhe->bqhe", weights, v).astype(v.dtype)

    def parallel(
        self, q: Queries, k: Keys, v: Values, *, causal: bool = False, segment_ids: Segments | None = None
    ) -> Outputs:
        self.check(causal=causal)
        (B, N, H, _), b = q.shape, self.block
        q, k, v = heads_first(q, k, v)
        ids = numbered(segment_ids, B, N)
        L = -(-N // b)
        if L <= 2:  # all blocks are global
            return finish(over.partial(q, k, v, same(ids, ids)[:, None]), dtype=v.dtype)
        qs, ks, vs = (to_blocks(x, b, 2) for x in (q, k, v))  # [B, H, L, b, D]
        of = to_blocks(ids, b, 1)[:, None]  # [B, 1, L, b]

        def near(x: Array) -> Array:
            return jnp.concatenate([x[:, :, :-2], x[:, :, 1:-1], x[:, :, 2:]], axis=3)

        def edges(x: Array) -> Array:
            return jnp.concatenate([x[:, :, :1], x[:, :, -1:]], axis=3)

        inner, of_inner = qs[:, :, 1:-1], of[:, :, 1:-1]
        window = over.partial(inner, near(ks), near(vs), same(of_inner, near(of)))
        row = np.arange(1, L - 1)[:, None]
        apart = np.repeat((row != (1, L - 2)), b, axis=1)[:, None]  # the edge is not in the window already
        edge = over.partial(inner, edges(ks), edges(vs), same(of_inner, edges(of)) & apart)
        parts = [window, edge]
        chosen = self.random_blocks(H, L)
        if chosen.size:
            rows, real = np.maximum(chosen, 0), np.repeat(chosen >= 0, b, axis=2)[:, :, None]
            k_drawn, v_drawn = (_blocks_of(x, rows) for x in (ks, vs))
            of_drawn = of[:, 0][:, rows].reshape(B, H, L - 2, -1)
            parts.append(over.partial(inner, k_drawn, v_drawn, same(of_inner, of_drawn) & real))
        o = over.combine(*parts)
        outer = over.combine(over.partial(edges(qs)[:, :, 0], k, v, same(edges(of)[:, 0, 0], ids)[:, None]))[:, :, None]
        o = jnp.concatenate([outer[..., :b, :], o, outer[..., b:, :]], axis=2)
        return from_blocks(o, N, 2).swapaxes(1, 2).astype(v.dtype)


def _blocks_of(x: Array, rows: np.ndarray) -> Array:
    """Blocks [B, H, L, b, D] by number [H, L - 2, r]: [B, H, L - 2, r b, D]."""
    x = x[:, np.arange(len(rows))[:, None, None], rows]
    return x.reshape(*x.shape[:3], -1, x.shape[-1])


@lru_cache(maxsize=64)
def _draw(heads: int, blocks: int, random: int, seed: int) -> np.ndarray:
    rng, edge = np.random.default_rng(seed), {0, blocks - 1}
    drawn = np.full((heads, max(blocks - 2, 0), min(random, max(blocks - 4, 0))), -1, np.int32)
    for h, row in np.ndindex(drawn.shape[:2]):
        free = sorted(set(range(blocks)) - edge - {row, row + 1, row + 2})
        chosen = rng.permutation(free)[: drawn.shape[2]]
        drawn[h, row, : len(chosen)] = chosen
    return drawn
