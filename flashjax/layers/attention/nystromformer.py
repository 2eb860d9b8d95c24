"""Nyströmformer attention (Xiong et al. 2021, sections 3.2 to 3.4): softmax attention by way of a few landmarks."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from flashjax.layers.attention.base import Keys, Mixer, Outputs, Queries, Segments, Values, numbered
from flashjax.layers.attention.documents import Slots, document_slots
from flashjax.layers.initializers import torch_uniform
from flashjax.ops.pairs import same
from flashjax.ops.partial_attention import masked_softmax


class ResidualConvolution(nn.Module):
    """The taps [T, H] of a convolution along the tokens, one for all dims of a head; torch's default draw."""

    taps: int
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> dict[str, Float[Array, "T H"]]:
        return {"taps": self.param("taps", torch_uniform(self.taps), (self.taps, self.heads))}


@dataclass(frozen=True)
class Nystromformer(Mixer):
    """o = softmax(q k~^T) softmax(q~ k~^T)^+ softmax(q~ k^T) v + conv(v), with q and k each divided by D^(1/4).

    The landmarks q~, k~ [m, D] are means over m segments of a document: its token p belongs to segment floor(p m / n).
    The pseudoinverse is iterated: Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from A^T / (|A|_1 |A|_inf). Time
    N m D + m^3, memory N m. Documents of m tokens or fewer are their own landmarks, where it is softmax attention but
    for what the iteration leaves. A row may hold `documents`; the tokens of further ones become NaN.

    Not causal: landmarks are means over tokens that lie ahead.
    """

    name: ClassVar[str] = "nystromformer"
    causal: ClassVar[bool] = False
    rotary: ClassVar[bool] = False
    shared_inputs: ClassVar[tuple[str, ...]] = ("taps",)
    landmarks: int = 64
    """m"""
    iterations: int = 6
    """Of the pseudoinverse."""
    conv: int = 33
    """Taps of the convolution of values that is added, an odd number; 0: none. (The checkpoints of 2021 have 65.)"""
    init: str = "exact"
    """|A|_1 at the start of the iteration: exact, of each matrix, or original, the largest of the whole batch, whose
    rows then depend on each other."""
    documents: int = 1
    """Most documents of a packed row; time and memory grow with it."""

    def __post_init__(self) -> None:
        if self.landmarks < 1 or self.iterations < 0 or self.documents < 1:
            raise ValueError(
                f"nystromformer: landmarks={self.landmarks} and documents={self.documents} must be at least 1, "
                f"iterations={self.iterations} at least 0"
            )
        if self.conv < 0 or (self.conv and self.conv % 2 == 0):
            raise ValueError(f"nystromformer: conv={self.conv} must be odd, so that it has a middle, or 0 for none")
        if self.init not in ("exact", "original"):
            raise ValueError(f"nystromformer: init={self.init!r} must be exact or original")

    def inputs(self, heads: int, head_dim: int, length: int, dtype: Any) -> nn.Module | None:
        return ResidualConvolution(self.conv, heads) if self.conv else None

    def reference(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = False,
        segment_ids: Segments | None = None,
        taps: Float[Array, "T H"] | None = None,
    ) -> Outputs:
        """One matrix of all pairs, the convolution a band of it, and its product with the values."""
        of_queries, middle, of_keys, slots = self._kernels(q, k, causal, segment_ids)
        pairs = jnp.einsum("bhnsl,bhslm,bhsmt->bhnt", of_queries, middle, of_keys)
        if taps is not None:
            N, ids = q.shape[1], numbered(segment_ids, *q.shape[:2])
            tap = np.arange(N) - np.arange(N)[:, None] + len(taps) // 2
            band = jnp.where(((tap >= 0) & (tap < len(taps)))[..., None], taps[np.clip(tap, 0, len(taps) - 1)], 0)
            pairs = pairs + jnp.moveaxis(band, 2, 0) * same(ids, ids)[:, None]
        return slots.poison(jnp.einsum("bhnm,bmhe->bnhe", pairs, v)).astype(v.dtype)

    def parallel(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = False,
        segment_ids: Segments | None = None,
        taps: Float[Array, "T H"] | None = None,
    ) -> Outputs:
        of_queries, middle, of_keys, slots = self._kernels(q, k, causal, segment_ids)
        summary = middle @ jnp.einsum("bhsln,bnhe->bhsle", of_keys, v)
        o = jnp.einsum("bhnsl,bhsle->bnhe", of_queries, summary)
        if taps is not None:
            o = o + _convolve(v, taps, segment_ids)
        return slots.poison(o).astype(v.dtype)

    def _kernels(
        self, q: Queries, k: Keys, causal: bool, segment_ids: Segments | None
    ) -> tuple[Float[Array, "B H N S m"], Float[Array, "B H S m m"], Float[Array, "B H S m N"], Slots]:
        """softmax(q k~^T), the pseudoinverse of softmax(q~ k~^T), and softmax(q~ k^T), in float32, and the slots."""
        self.check(causal=causal)
        exact = jnp.promote_types(q.dtype, jnp.float32)
        q, k = (x.astype(exact) * q.shape[-1] ** -0.25 for x in (q, k))
        documents = 1 if segment_ids is None else self.documents
        slots = document_slots(numbered(segment_ids, *q.shape[:2]), documents, self.name)
        if segment_ids is None and q.shape[1] % self.landmarks == 0:
            near_q, near_k = (x.reshape(x.shape[0], 1, self.landmarks, -1, *x.shape[2:]).mean(3) for x in (q, k))
            filled = jnp.ones(near_q.shape[:3], bool)
        else:
            near_q, near_k, filled = self._landmarks(q, k, slots)  # [B, S, m, H, D], bool [B, S, m]

        own = slots.own[:, None, :, :, None] & filled[:, None, None]  # [B, 1, N, S, m]
        logits = jnp.einsum("bnhd,bslhd->bhnsl", q, near_k)
        of_queries = masked_softmax(logits.reshape(*logits.shape[:3], -1), own.reshape(*own.shape[:3], -1))
        logits = jnp.einsum("bslhd,bsmhd->bhslm", near_q, near_k)
        among = masked_softmax(logits, (filled[..., None] & filled[:, :, None])[:, None])
        of_keys = masked_softmax(jnp.einsum("bslhd,bnhd->bhsln", near_q, k), jnp.moveaxis(own, 2, 4))
        return of_queries.reshape(*of_queries.shape[:3], *own.shape[3:]), self._pseudoinverse(among), of_keys, slots

    def _landmarks(self, q: Array, k: Array, slots: Slots) -> tuple[Array, Array, Array]:
        """Means over the segments of each document, and which segments have a token."""
        m, documents = self.landmarks, slots.own.shape[2]
        segment = slots.position * m // jnp.maximum(slots.length, 1)
        place = jnp.where(slots.own.any(-1), slots.own.argmax(-1) * m + segment, -1)  # negative: left out

        def sums(x: Array) -> Array:
            found = jax.vmap(lambda x, p: jax.ops.segment_sum(x, p, documents * m))(x, place)
            return found.reshape(x.shape[0], documents, m, *x.shape[2:])

        count = sums(jnp.ones(place.shape, q.dtype))
        near_q, near_k = (sums(x) / jnp.maximum(count, 1)[..., None, None] for x in (q, k))
        return near_q, near_k, count > 0

    def _pseudoinverse(self, a: Float[Array, "B H S m m"]) -> Float[Array, "B H S m m"]:
        """Rows and columns of 0, of landmarks that are not there, stay 0. |A|_inf is 1: rows are softmaxes."""
        columns = a.sum(-2)
        norm = columns.max() if self.init == "original" else columns.max(-1)[..., None, None]
        z = jnp.swapaxes(a, -1, -2) / jnp.maximum(norm, 1e-30)
        one = jnp.eye(a.shape[-1], dtype=a.dtype)
        for _ in range(self.iterations):
            az = a @ z
            z = 0.25 * z @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
        return z


def _convolve(v: Float[Array, "B N H E"], taps: Float[Array, "T H"], segments: Segments | None) -> Array:
    """sum_t taps[t] v[n + t - T // 2] over the tokens of n's document, in float32."""
    N, half = v.shape[1], len(taps) // 2
    padded = jnp.pad(v.astype(jnp.promote_types(v.dtype, jnp.float32)), ((0, 0), (half, half), (0, 0), (0, 0)))
    ids = None if segments is None else jnp.pad(segments, ((0, 0), (half, half)))
    o = jnp.zeros(v.shape, padded.dtype)
    for t, tap in enumerate(taps):
        shifted = padded[:, t : t + N]
        if segments is not None and ids is not None:
            here = (ids[:, t : t + N] == segments) & (segments > 0)
            shifted = jnp.where(here[..., None, None], shifted, 0)
        o = o + tap[:, None] * shifted
    return o
