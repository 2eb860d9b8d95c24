"""The gated attention unit of FLASH, in training and in decoding. Shapes as in `flash.py`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float

from flashjax.layers.initializers import KERNELS, NORMAL
from flashjax.layers.positions import Turn, t5_bucket, turned
from flashjax.layers.watched import show_logits
from flashjax.models.flash_config import FlashConfig
from flashjax.models.stack import Context, Mode, length_name
from flashjax.ops import gated_attention as ops
from flashjax.ops.cache import write
from flashjax.ops.dense import dot_general, scaled
from flashjax.ops.gate import product_of, silu
from flashjax.ops.pairs import HIDDEN


class RelativeBias(nn.Module):
    """b as a function of the distance j - i from query to key: for those from `first` to `last`, float32.

    toeplitz: w[j - i], learned for each distance below the span. rope: b_ij = <R_i a, R_j c> = <a, R_{j-i} c>, where
    R turns pairs of dims as rotary positions do, so that it reaches any distance. t5: bias_scale w[bucket(j - i)].
    """

    config: FlashConfig

    @nn.compact
    def __call__(self, first: int, last: int) -> Float[Array, "M"]:
        cfg = self.config
        distances = jnp.arange(first, last + 1)
        match cfg.bias_kind:
            case "toeplitz":
                w = self.param("weight", NORMAL, (2 * cfg.span - 1,))
                return jnp.take(w, jnp.clip(distances + cfg.span - 1, 0, 2 * cfg.span - 2))
            case "rope":
                a, c = (self.param(name, NORMAL, (cfg.head_dim,)) for name in "ac")
                return ops.rotated_dots(a, c, first, last)
            case _:
                w = self.param("weight", NORMAL, (32,))
                return cfg.bias_scale * jnp.take(w, t5_bucket(distances, bidirectional=not cfg.causal))


class GatedAttention(nn.Module):
    """The gated attention unit (paper section 2.2, and 3.2 for flash).

    U = silu(X W_u), V = silu(X W_v)  [N, e];  Z = silu(X W_z)  [N, s]
    Q = gamma_q * Z + beta_q, K = gamma_k * Z + beta_k, each turned by its positions
    O = (U * A V) W_o

    with A V of `ops.quadratic` (kinds quad and gau), or in its place V_quad + V_lin of `ops.mixed_chunk` (kind flash),
    which makes two pairs of Q and K.
    """

    config: FlashConfig
    mode: Mode = "full"

    @nn.compact
    def __call__(self, X: Float[Array, "B N d"], state: Any, context: Context) -> tuple[Float[Array, "B N d"], Any]:
        """(what is added to the stream, state after it)."""
        cfg = self.config
        dense = functools.partial(
            nn.Dense, dtype=cfg.dtype, kernel_init=KERNELS[cfg.initializer], dot_general=dot_general
        )
        names = ("batch", length_name(X.shape[1]), "mlp")
        gate = with_logical_constraint(dense(cfg.inner, name="gate")(X), names)  # U before its silu
        V = with_logical_constraint(silu(dense(cfg.inner, name="value")(X)), names)
        Z = silu(dense(cfg.head_dim, name="shared")(X))
        # A softmax wants logits that tell keys apart from the start; squared ReLU begins with its bias.
        gamma_init = nn.initializers.ones if cfg.kind == "gau" else NORMAL
        gamma = self.param("gamma", gamma_init, (cfg.projections, cfg.head_dim)).astype(Z.dtype)
        beta = self.param("beta", nn.initializers.zeros, (cfg.projections, cfg.head_dim)).astype(Z.dtype)
        heads = [self.turn(scaled(Z, gamma[i]) + beta[i], context["turn"]) for i in range(cfg.projections)]
        bias = RelativeBias(cfg, name="relative") if cfg.bias_kind != "none" else None
        # Of pairs inside chunks, too, where kind is flash; squared ReLU has other factors in place of 1 / sqrt(s).
        show_logits(self, heads[0][:, :, None], heads[1][:, :, None], cfg.head_dim**-0.5)
        attend = self.mixed_chunk if cfg.kind == "flash" else self.quadratic
        AV, state = attend(heads, V, bias, state, context)
        return dense(cfg.width, name="out", dot_general=product_of(jax.nn.silu, gate))(AV), state

    def turn(self, x: Float[Array, "B N s"], turn: Turn | None) -> Float[Array, "B N s"]:
        return x if turn is None else turned(x[:, :, None], turn, self.config.rotary_interleaved)[:, :, 0]

    def weigh(self, qk: Array, b: Any, n: Any) -> Array:
        """Weights of logits; of gau what softmax is taken of."""
        cfg = self.config
        if cfg.kind != "gau":
            return ops.squared_relu(qk, b, n, cfg.scaling, cfg.head_dim)
        scale = cfg.head_dim**-0.5
        if cfg.scaling == "log_n":
            scale = scale * jnp.log(n) / np.log(512)
        return qk * scale + b

    def quadratic(self, heads: list[Array], V: Array, bias: Any, state: Any, context: Context) -> tuple[Array, Any]:
        """A V over the row, or over the cache of all keys and values."""
        cfg = self.config
        Q, K = heads
        if self.mode == "step":
            return self.quadratic_step(Q[:, 0], K[:, 0], V[:, 0], bias, state, context)
        N = Q.shape[1]
        AV = ops.quadratic(
            Q,
            K,
            V,
            None if bias is None else bias(1 - N, N - 1),
            context["n"],
            self.weigh,
            softmax=cfg.kind == "gau",
            causal=cfg.causal,
            segment_ids=context["segment_ids"],
            block=cfg.query_block,
        )
        if self.mode == "prefill":
            state = state | {"key": state["key"].at[:, :N].set(K), "value": state["value"].at[:, :N].set(V)}
        return AV, state

    def quadratic_step(self, Q: Array, K: Array, V: Array, bias: Any, state: Any, context: Context):
        cfg, p = self.config, context["positions"][:, 0]
        capacity = state["key"].shape[1]
        keys, values = write(state["key"], p, K), write(state["value"], p, V)
        seen = jnp.arange(capacity) <= p[:, None]
        b = 0.0
        if bias is not None:
            behind = jnp.pad(bias(1 - capacity, 0), (0, capacity - 1))  # nothing ahead of the token is seen
            b = jax.vmap(lambda p: jax.lax.dynamic_slice(behind, (capacity - 1 - p,), (capacity,)))(p)
        A = self.weigh(jnp.einsum("bs,bjs->bj", Q, keys, preferred_element_type=jnp.float32), b, context["n"])
        A = jax.nn.softmax(jnp.where(seen, A, HIDDEN)) if cfg.kind == "gau" else jnp.where(seen, A, 0)
        out = ops.weighted_sum(A.astype(V.dtype), values).astype(V.dtype)
        return out[:, None], state | {"key": keys, "value": values}

    def mixed_chunk(self, heads: list[Array], V: Array, bias: Any, state: Any, context: Context) -> tuple[Array, Any]:
        """V_quad + V_lin of the row, or of one token and the state before it."""
        cfg, C = self.config, self.config.chunk
        b = jnp.zeros(2 * C - 1) if bias is None else bias(1 - C, C - 1)
        if self.mode == "step":
            p = context["positions"][:, 0]
            b = b[jnp.arange(C) - (p % C)[:, None] + C - 1]
            q_quad, k_quad, q_lin, k_lin, v = (x[:, 0] for x in (*heads, V))
            out, chunks = ops.chunk_step(q_quad, k_quad, q_lin, k_lin, v, b, self.weigh, state["chunks"], p)
            return out[:, None], state | {"chunks": chunks}
        Q_quad, K_quad, Q_lin, K_lin = heads
        operands = Q_quad, K_quad, Q_lin, K_lin, V, b, context["n"], self.weigh
        if context["segment_ids"] is None:
            out = ops.mixed_chunk(*operands, chunk=C, causal=cfg.causal)
        else:
            ids, p = context["segment_ids"], context["positions"]
            out = ops.mixed_chunk_packed(*operands, chunk=C, causal=cfg.causal, segment_ids=ids, positions=p)
        if self.mode == "prefill":
            state = state | {"chunks": ops.chunk_prefill(K_quad, K_lin, V, context["lengths"], C)}
        return out, state
