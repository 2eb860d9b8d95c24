"""Linear attention with decay: what mixers share that forget, and that have an output norm instead of a normaliser.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T,    o_t = q_t S_t + skip v_t

Shapes: as in `flashjax.layers.attention.base`.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flashjax.layers.attention.base import Keys, Mixer, Outputs, Queries, Segments, Values, visible
from flashjax.ops import linear_attention as linear


class Terms(NamedTuple):
    """The equation's q, k, log a ([H], [..., H] or [..., H, D]) and what of a value passes by ([H] or None)."""

    q: Array
    k: Array
    log_decay: Array
    skip: Array | None = None


@dataclass(frozen=True)
class Decayed(Mixer):
    """A mixer by its terms; a subclass says what they are."""

    bidirectional: ClassVar[bool] = False
    output_norm: ClassVar[bool] = True
    output_gate: ClassVar[bool] = True

    chunk: int | None = None
    """Tokens of a chunk of the parallel form; None: 64, on TPUs 128."""

    def terms(self, q: Array, k: Array, **inputs: Array) -> Terms:
        """Of tokens [..., H, D], float32."""
        raise NotImplementedError

    def reference(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = True,
        segment_ids: Segments | None = None,
        **inputs: Array,
    ) -> Outputs:
        """o_i = sum_j sum_d q_id k_jd exp(log a_(j+1)d + ... + log a_id) v_j, all pairs at once."""
        self.check(causal=causal)
        B, N, H, D = q.shape
        q, k, log_decay, skip = self._terms(q, k, inputs)
        seen = visible(segment_ids, B, N, causal)[:, :, :, None, None]
        log_decay = log_decay[..., None] if log_decay.ndim < 4 else log_decay
        b = jnp.cumsum(jnp.broadcast_to(log_decay, (B, N, H, log_decay.shape[-1])), 1)
        decay = jnp.where(seen, jnp.exp(jnp.where(seen, b[:, :, None] - b[:, None], 0)), 0)
        decay = jnp.broadcast_to(decay, (B, N, N, H, D))
        o = jnp.einsum("bihd,bjhd,bijhd,bjhe->bihe", q, k, decay, v.astype(q.dtype))
        return _passed(o, v, skip)

    def parallel(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = True,
        segment_ids: Segments | None = None,
        **inputs: Array,
    ) -> Outputs:
        """Chunkwise (`flashjax.ops.linear_attention`)."""
        self.check(causal=causal)
        q, k, log_decay, skip = self._terms(q, k, inputs)
        o = linear.causal(q, k, v, log_decay, segment_ids, chunk=self.chunk).o
        return _passed(o, v, skip)

    def initial_state(self, batch: int, heads: int, head_dim: int, value_dim: int, capacity: int) -> dict[str, Array]:
        """S, float32."""
        return {"S": jnp.zeros((batch, heads, head_dim, value_dim))}

    def prefill(
        self, q: Queries, k: Keys, v: Values, valid: Bool[Array, "B N"], state: dict[str, Array], **inputs: Array
    ) -> tuple[dict[str, Array], Outputs]:
        """Padding adds nothing and does not decay."""
        q, k, log_decay, skip = self._terms(q, k, inputs)
        log_decay = jnp.broadcast_to(log_decay, k.shape if log_decay.ndim == 4 else k.shape[:3])
        k = jnp.where(valid[..., None, None], k, 0)
        log_decay = jnp.where(valid.reshape(*valid.shape, *(1,) * (log_decay.ndim - 2)), log_decay, 0)
        mixed = linear.causal(q, k, v, log_decay, None, linear.State(state["S"]), chunk=self.chunk)
        return {"S": mixed.state.S}, _passed(mixed.o, v, skip)

    def step(
        self,
        state: dict[str, Array],
        q: Float[Array, "B H D"],
        k: Float[Array, "B H D"],
        v: Float[Array, "B H E"],
        **inputs: Array,
    ) -> tuple[dict[str, Array], Float[Array, "B H E"]]:
        """One update of S."""
        q, k, log_decay, skip = self._terms(q, k, inputs)
        new, o, _ = linear.step(linear.State(state["S"]), q, k, v, log_decay)
        return {"S": new.S}, _passed(o, v, skip)

    def _terms(self, q: Array, k: Array, inputs: dict[str, Array]) -> Terms:
        dtype = jnp.promote_types(q.dtype, jnp.float32)
        return self.terms(q.astype(dtype), k.astype(dtype), **{name: x.astype(dtype) for name, x in inputs.items()})


def _passed(o: Float[Array, "*n H E"], v: Float[Array, "*n H E"], skip: Float[Array, "H"] | None) -> Array:
    return (o if skip is None else o + skip[:, None] * v.astype(o.dtype)).astype(v.dtype)
