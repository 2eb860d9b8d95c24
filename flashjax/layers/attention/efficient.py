"""Efficient attention: one softmax on queries, one on keys (Shen et al. 2018, "Efficient Attention").

    o_i = softmax_d(q_i) sum_j softmax_j(k_j) v_j^T

softmax_d over the dims of a query, softmax_j over the positions of each dim of the keys: the weights of a row sum to 1
by themselves. As written each token sees all others. Where it must not see later ones, the keys' exponentials are
added up and one normaliser is shared by all dims (lucidrains, linear-attention-transformer):

    o_i = softmax_d(q_i) sum_{j <= i} exp(k_j) v_j^T / softmax_d(q_i).sum_{j <= i} exp(k_j)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flashjax.layers.attention.base import Keys, Outputs, Queries, Segments, Values, visible
from flashjax.layers.attention.kernel import Kernel
from flashjax.ops import linear_attention as linear
from flashjax.ops.pairs import HIDDEN


@dataclass(frozen=True)
class Efficient(Kernel):
    """Both forms. A sum of weights below eps, in the scale of the largest key so far, counts as eps."""

    name: ClassVar[str] = "efficient"

    scale_queries: bool = False
    """Divides queries by sqrt(D) after their softmax, as linear-attention-transformer does and the paper does not: the
    weights of a row then sum to 1 / sqrt(D), and in the causal form to 1 all the same."""

    def query_features(self, q: Array, positions: Array, **inputs: Any) -> Array:
        return jax.nn.softmax(q, -1) * (q.shape[-1] ** -0.5 if self.scale_queries else 1.0)

    def key_features(self, k: Array, positions: Array, level: Array | None, **inputs: Any) -> Array:
        assert level is not None
        return jnp.exp(k - level[..., None])

    def exponential(self) -> bool:
        return True

    def level(self, k: Array, **inputs: Any) -> Array:
        return k.max(-1)

    def normalise(self, o: Float[Array, "... E"], n: Float[Array, "..."]) -> Float[Array, "... E"]:
        return o / jnp.maximum(n, self.eps)[..., None]

    def reference(
        self, q: Queries, k: Keys, v: Values, *, causal: bool = True, segment_ids: Segments | None = None
    ) -> Outputs:
        if causal:
            return super().reference(q, k, v, segment_ids=segment_ids)
        B, N = q.shape[:2]
        seen = visible(segment_ids, B, N, causal=False)[:, None, None]
        k = jnp.where(seen, jnp.einsum("bjhd->bhdj", k)[:, :, :, None], HIDDEN)  # [B, H, D, N, N]
        w = jnp.einsum("bihd,bhdij->bhij", self.query_features(q, q), jnp.where(seen, jax.nn.softmax(k, -1), 0))
        return jnp.einsum("bhij,bjhe->bihe", w, v.astype(w.dtype)).astype(v.dtype)

    def parallel(
        self, q: Queries, k: Keys, v: Values, *, causal: bool = True, segment_ids: Segments | None = None
    ) -> Outputs:
        if causal:
            return super().parallel(q, k, v, segment_ids=segment_ids)
        dtype = jnp.promote_types(q.dtype, jnp.float32)
        phi = self.query_features(q.astype(dtype), q)
        weights = segment_softmax(k.astype(dtype), segment_ids)
        return linear.bidirectional(phi, weights, v, segment_ids, chunk=self.chunk)[0].astype(v.dtype)


def segment_softmax(x: Float[Array, "B N H D"], segment_ids: Segments | None) -> Float[Array, "B N H D"]:
    """softmax of each dim over the positions of a segment; padding (0) is one segment more."""
    if segment_ids is None:
        return jax.nn.softmax(x, 1)
    N = x.shape[1]

    def row(x: Float[Array, "N H D"], ids: Array) -> Float[Array, "N H D"]:
        largest = jax.lax.stop_gradient(jax.ops.segment_max(x, ids, N + 1))
        weights = jnp.exp(x - largest[ids])
        return weights / jax.ops.segment_sum(weights, ids, N + 1)[ids]

    return jax.vmap(row)(x, segment_ids)
