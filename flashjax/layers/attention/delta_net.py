"""DeltaNet: a state that is corrected, not only added to (Schlag et al. 2021; Yang et al. 2024, "Parallelizing Linear
Transformers with the Delta Rule over Sequence Length").

    S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T,    o_t = q_t S_t / sqrt(D),    b_t = sigmoid(x_t W),  |k_t| = 1
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from flashjax.layers.attention.base import Keys, Mixer, Outputs, Queries, Segments, Values, numbered
from flashjax.ops import delta_rule


class Strength(nn.Module):
    """b_t, float32 [B, N, H]."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> dict[str, Array]:
        raw = nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name="beta")(x)
        return {"beta": jax.nn.sigmoid(raw.astype(jnp.float32))}


@dataclass(frozen=True)
class DeltaNet(Mixer):
    """The input `beta` is b_t, float32 [B, N, H]; the block makes keys of length 1."""

    name: ClassVar[str] = "delta_net"
    bidirectional: ClassVar[bool] = False
    short_conv: ClassVar[int] = 4
    unit_queries: ClassVar[bool] = True
    output_norm: ClassVar[bool] = True

    chunk: int | None = None
    """Tokens of a chunk of the parallel form, None: 64, on TPUs 128; rounded up to a power of two."""

    def inputs(self, heads: int, head_dim: int, length: int, dtype: Any) -> nn.Module:
        return Strength(heads, dtype)

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
        """The equation's matrices, one after the other: S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T."""
        self.check(causal=causal)
        q, k, beta, log_decay = _terms(q, k, inputs)
        B, N, H, D = q.shape
        ids = numbered(segment_ids, B, N)
        same = jnp.pad(ids[:, 1:] == ids[:, :-1], ((0, 0), (1, 0)))[..., None, None, None]
        a = jnp.ones((B, N, H), q.dtype) if log_decay is None else jnp.exp(log_decay)
        k_k, k_v = jnp.einsum("bnhd,bnhc->bnhdc", k, k), jnp.einsum("bnhd,bnhe->bnhde", k, v.astype(k.dtype))
        beta = beta[..., None, None]
        keep = jnp.where(same, a[..., None, None] * (jnp.eye(D) - beta * k_k), 0)

        def advance(S: Array, token: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            keep_t, write_t, q_t = token
            S = keep_t @ S + write_t
            return S, jnp.einsum("bhd,bhde->bhe", q_t, S)

        tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (keep, beta * k_v, q))
        _, o = jax.lax.scan(advance, jnp.zeros((B, H, D, v.shape[-1]), q.dtype), tokens)
        return jnp.moveaxis(o, 0, 1).astype(v.dtype)

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
        """Chunkwise (`flashjax.ops.delta_rule`)."""
        self.check(causal=causal)
        q, k, beta, log_decay = _terms(q, k, inputs)
        return delta_rule.causal(q, k, v, beta, log_decay, segment_ids, chunk=self.chunk)[0].astype(v.dtype)

    def initial_state(self, batch: int, heads: int, head_dim: int, value_dim: int, capacity: int) -> dict[str, Array]:
        """S, float32."""
        return {"S": jnp.zeros((batch, heads, head_dim, value_dim))}

    def prefill(
        self, q: Queries, k: Keys, v: Values, valid: Bool[Array, "B N"], state: dict[str, Array], **inputs: Array
    ) -> tuple[dict[str, Array], Outputs]:
        """Padding corrects nothing (b = 0) and does not decay."""
        q, k, beta, log_decay = _terms(q, k, inputs)
        beta = jnp.where(valid[..., None], beta, 0)
        log_decay = None if log_decay is None else jnp.where(valid[..., None], log_decay, 0)
        o, S = delta_rule.causal(q, k, v, beta, log_decay, None, state["S"], chunk=self.chunk)
        return {"S": S}, o.astype(v.dtype)

    def step(
        self,
        state: dict[str, Array],
        q: Float[Array, "B H D"],
        k: Float[Array, "B H D"],
        v: Float[Array, "B H E"],
        **inputs: Array,
    ) -> tuple[dict[str, Array], Float[Array, "B H E"]]:
        """One correction of S."""
        q, k, beta, log_decay = _terms(q, k, inputs)
        S, o = delta_rule.step(state["S"], q, k, v, beta, log_decay)
        return {"S": S}, o.astype(v.dtype)


def _terms(q: Array, k: Array, inputs: dict[str, Array]) -> tuple[Array, Array, Array, Array | None]:
    """(q / sqrt(D), k, b, log a or None), float32."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    given = {name: x.astype(dtype) for name, x in inputs.items()}
    return q.astype(dtype) * q.shape[-1] ** -0.5, k.astype(dtype), given["beta"], given.get("log_decay")
