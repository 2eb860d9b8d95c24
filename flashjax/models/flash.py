"""FLASH, FLASH-Quad and the gated attention unit they are made of.

Hua, Dai, Liu and Le 2022, "Transformer Quality in Linear Time" (arXiv 2202.10447). There is no official code: what the
text leaves open follows the pseudo-code of its appendix as public transcriptions hold it, and where conventions differ
a field of the configuration names them. `lucidrains` gives those of the package flash-pytorch 0.1.9.

Shapes: B batch, N tokens, d width of the residual stream, e = expansion * d width of gate and values, s width of the
one head that queries and keys share, C tokens of a chunk, V vocabulary.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from flashjax.layers.initializers import KERNELS, NORMAL
from flashjax.layers.norm import NORMS
from flashjax.layers.positions import positions_of, rope_frequencies, rotate, t5_bucket
from flashjax.layers.residual import Residual
from flashjax.layers.watched import show_logits
from flashjax.models.registry import register
from flashjax.models.transformer import Table, project
from flashjax.models.widths import at_ratio
from flashjax.ops import gated_attention as ops
from flashjax.ops.cache import write
from flashjax.ops.dense import dot_general

Tokens = Int[Array, "B N"]
Cache = dict[str, Any]
Context = dict[str, Any]
Mode = Literal["full", "prefill", "step"]

TOEPLITZ_SPAN = 512
"""Up to this many tokens the paper learns a bias for each distance; beyond, one formed by rotations."""
_POLICIES = {"none": None, "full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
_SCALINGS = {"flash": ("paper", "sum", "mean"), "quad": ("paper", "sum", "mean"), "gau": ("paper", "log_n")}


@dataclasses.dataclass(frozen=True)
class FlashConfig:
    """A language model of gated attention units alone. The defaults are FLASH at base size, causal."""

    kind: Literal["flash", "quad", "gau"] = "flash"
    """Attention of the units: flash (mixed chunk: squared ReLU inside chunks, linear across them), quad (FLASH-Quad:
    squared ReLU over the whole length), gau (softmax over the whole length)."""
    vocab_size: int = 32000
    """V, tokens of the vocabulary."""
    width: int = 768
    """d, channels of the residual stream."""
    depth: int = 24
    """Units; two of them hold about the parameters of one Transformer block."""
    expansion: float = 2.0
    """e / d, width of gate and values."""
    head_dim: int = 128
    """s, width of the one head."""
    chunk: int = 256
    """C, tokens of a chunk of flash."""
    causal: bool = True
    """A decoder; False: each token sees all."""
    max_length: int = 8192
    """Tokens that the model is made for: n of `count` "context", and the span of a Toeplitz bias of quad and gau."""
    scaling: Literal["paper", "sum", "mean", "log_n"] = "paper"
    """Weights: paper, relu(Q K^T / n + b)^2; sum, relu((Q K^T + b) / n)^2; mean, relu(Q K^T / sqrt(s) + b)^2 / n;
    inside chunks C for n. Of gau: paper, softmax(Q K^T / sqrt(s) + b); log_n, the same with Q K^T log(n) / log(512)."""
    count: Literal["context", "visible", "row"] = "context"
    """What n is, outside chunks: context, max_length whatever the row (what training at that length divides by);
    visible, the keys that a query sees; row, tokens of the row and its padding (the pseudo-code to the letter, which
    cannot decode)."""
    bias: Literal["paper", "toeplitz", "rope", "t5", "none"] = "paper"
    """b: toeplitz, a number for each distance; rope, <R_i a, R_j c>; t5, one for each of 32 buckets; none; paper,
    toeplitz where C (of flash; of quad and gau: max_length) is 512 or less and rope beyond."""
    bias_scale: float = 1.0
    """Multiplies the t5 bias."""
    rotary: float = 1.0
    """Part of the s dims of queries and keys that turns with position; 0: none."""
    rotary_interleaved: bool = False
    """Turn neighbouring dims together instead of halves of the rotated part."""
    sinusoidal: bool = True
    """Adds a sinusoidal embedding with one learned scale."""
    sinusoidal_scale: float | None = None
    """That scale at the start; None: 1 / sqrt(d)."""
    norm: Literal["layernorm", "rmsnorm", "scalenorm", "groupnorm", "none"] = "layernorm"
    """Before each unit; the paper has scalenorm for masked and layernorm for causal language models."""
    final_norm: Literal["layernorm", "rmsnorm", "scalenorm", "groupnorm", "none"] | None = None
    """Before the head; None: as norm."""
    norm_epsilon: float = 1e-5
    """Added to the variance."""
    residual: Literal["plain", "rezero", "layerscale"] = "plain"
    """How a unit joins the stream: plain, x + f(x); rezero, x + a f(x) from a = 0; layerscale, x + g f(x) with a g for
    each channel."""
    shift_tokens: bool = False
    """The first half of what enters a unit comes from the token before (flash-pytorch, not the paper)."""
    tie_embeddings: bool = True
    """The head is the embedding."""
    head_bias: bool = False
    """Bias of a head of its own."""
    dropout_rate: float = 0.0
    """Dropout of embeddings and of what leaves each unit."""
    initializer: Literal["normal", "fan_in"] = "normal"
    """Kernels at the start: normal (deviation .02) or fan_in (1 / sqrt(inputs): for narrow models)."""
    query_block: int = 1024
    """Queries that quad and gau take at a time; 0: all, as a row split over the sequence axis wants."""
    scan_layers: bool = False
    """One compiled unit for all layers; parameters have a leading dim of layers."""
    remat: Literal["none", "full", "dots"] = "none"
    """Recompute each unit in the backward pass: all of it (full), or all but matrix products (dots)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; weights of attention, states, norms and logits are float32 in any case."""

    def __post_init__(self):
        for name in ("vocab_size", "width", "depth", "head_dim", "chunk", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name, choices in (
            ("kind", tuple(_SCALINGS)),
            ("count", ("context", "visible", "row")),
            ("bias", ("paper", "toeplitz", "rope", "t5", "none")),
            ("norm", NORMS),
            ("residual", ("plain", "rezero", "layerscale")),
            ("initializer", KERNELS),
            ("remat", _POLICIES),
            ("dtype", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(choices)}")
        if self.scaling not in _SCALINGS[self.kind]:
            raise ValueError(
                f"kind {self.kind!r} has no scaling {self.scaling!r}; choose from {', '.join(_SCALINGS[self.kind])}"
            )
        if self.final_norm is not None and self.final_norm not in NORMS:
            raise ValueError(f"unknown final_norm {self.final_norm!r}; choose from {', '.join(NORMS)}")
        if self.width % 2 and (self.sinusoidal or self.shift_tokens):
            raise ValueError(f"sinusoidal and shift_tokens need an even width, found {self.width}")
        if not 0 <= self.rotary <= 1 or self.rotary_dim % 2:
            raise ValueError(
                f"rotary {self.rotary} of head_dim {self.head_dim} turns {self.rotary_dim} dims: want an even number"
            )
        if self.bias_kind == "rope" and self.head_dim % 2:
            raise ValueError(f"a bias formed by rotations needs an even head_dim, found {self.head_dim}")
        if self.head_bias and self.tie_embeddings:
            raise ValueError("head_bias is of a head of its own: set tie_embeddings=False")

    @property
    def inner(self) -> int:
        """e."""
        return int(self.expansion * self.width)

    @property
    def rotary_dim(self) -> int:
        """Dims of queries and keys that turn."""
        return int(self.rotary * self.head_dim)

    @property
    def span(self) -> int:
        """Tokens within which b is asked for."""
        return self.chunk if self.kind == "flash" else self.max_length

    @property
    def bias_kind(self) -> str:
        """The bias behind "paper"."""
        return self.bias if self.bias != "paper" else "toeplitz" if self.span <= TOEPLITZ_SPAN else "rope"

    @property
    def projections(self) -> int:
        """Queries and keys made of Z: a pair, of flash two pairs."""
        return 4 if self.kind == "flash" else 2

    @property
    def head_width(self) -> int:
        """s (asked by `flashjax.training.parametrization`)."""
        return self.head_dim

    logit_power: ClassVar[None] = None
    """Weights are no softmax of q.k / s^p."""

    def at_width(self, width: int, keep: Literal["head_dim", "heads"] = "head_dim") -> "FlashConfig":
        """The same model narrower or wider, with s as it is, or in proportion."""
        s = self.head_dim if keep == "head_dim" else at_ratio("head_dim", self.head_dim, width, self.width)
        return dataclasses.replace(self, width=width, head_dim=s)


def lucidrains(config: FlashConfig) -> FlashConfig:
    """`config` in the conventions of flash-pytorch 0.1.9, whose `FLASHTransformer` (kind flash) or `GAU` (kind quad).

    Not the paper's: T5 buckets, scaled by sqrt(s), of GAU by sqrt(d); the bias of GAU inside the division by n, and no
    rotation there; rotations of the first 32 dims, interleaved; token shift; a LayerNorm before a head with a bias; n
    counts padding.
    """
    gau = config.kind == "quad"
    return dataclasses.replace(
        config,
        scaling="sum" if gau else "paper",
        count="row",
        bias="t5",
        bias_scale=(config.width if gau else config.head_dim) ** 0.5,
        rotary=0.0 if gau else min(32, config.head_dim) / config.head_dim,
        rotary_interleaved=True,
        sinusoidal_scale=1.0,
        norm="scalenorm",
        final_norm="layernorm",
        shift_tokens=not gau,
        tie_embeddings=False,
        head_bias=True,
    )


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
        names = ("batch", _length(X.shape[1]), "mlp")
        U = with_logical_constraint(jax.nn.silu(dense(cfg.inner, name="gate")(X)), names)
        V = with_logical_constraint(jax.nn.silu(dense(cfg.inner, name="value")(X)), names)
        Z = jax.nn.silu(dense(cfg.head_dim, name="shared")(X))
        # A softmax wants logits that tell keys apart from the start; squared ReLU begins with its bias.
        gamma_init = nn.initializers.ones if cfg.kind == "gau" else NORMAL
        gamma = self.param("gamma", gamma_init, (cfg.projections, cfg.head_dim)).astype(Z.dtype)
        beta = self.param("beta", nn.initializers.zeros, (cfg.projections, cfg.head_dim)).astype(Z.dtype)
        heads = [self.turn(gamma[i] * Z + beta[i], context["positions"]) for i in range(cfg.projections)]
        bias = RelativeBias(cfg, name="relative") if cfg.bias_kind != "none" else None
        # Of pairs inside chunks, too, where kind is flash; squared ReLU has other factors in place of 1 / sqrt(s).
        show_logits(self, heads[0][:, :, None], heads[1][:, :, None], cfg.head_dim**-0.5)
        attend = self.mixed_chunk if cfg.kind == "flash" else self.quadratic
        AV, state = attend(heads, V, bias, state, context)
        return dense(cfg.width, name="out")(U * AV), state

    def turn(self, x: Float[Array, "B N s"], positions: Int[Array, "*b N"]) -> Float[Array, "B N s"]:
        cfg = self.config
        if not cfg.rotary_dim:
            return x
        frequencies, _ = rope_frequencies({"partial_rotary_factor": cfg.rotary}, cfg.head_dim)
        return rotate(x[:, :, None], positions, frequencies, interleaved=cfg.rotary_interleaved)[:, :, 0]

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
        A = jax.nn.softmax(jnp.where(seen, A, ops.HIDDEN)) if cfg.kind == "gau" else jnp.where(seen, A, 0)
        out = jnp.einsum("bj,bje->be", A.astype(V.dtype), values)
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


def _length(tokens: int) -> str | None:
    """Name of the dim of tokens; that of a single one is not split."""
    return "length" if tokens > 1 else None


class Unit(nn.Module):
    """x + GAU(norm(x)): all there is to a layer."""

    config: FlashConfig
    mode: Mode = "full"
    train: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B N d"], state: Any, context: Context) -> tuple[Float[Array, "B N d"], Any]:
        """(stream, state after it)."""
        cfg = self.config
        y = NORMS[cfg.norm](epsilon=cfg.norm_epsilon, dtype=cfg.dtype, name="norm")(x)
        if cfg.shift_tokens:
            y, state = self.shift(y, state, context)
        y, state = GatedAttention(cfg, self.mode, name="gau")(y, state, context)
        y = nn.Dropout(cfg.dropout_rate, deterministic=not self.train)(y)
        x = Residual(cfg.residual, cfg.depth, name="residual")(x, y)
        return with_logical_constraint(x, ("batch", _length(x.shape[1]), "embed")), state

    def shift(self, y: Float[Array, "B N d"], state: Any, context: Context) -> tuple[Float[Array, "B N d"], Any]:
        """The first half of the dims from the token before, zeros at the start of a segment."""
        half, rest = jnp.split(y, 2, -1)
        if self.mode == "step":
            return jnp.concatenate([state["before"][:, None], rest], -1), state | {"before": half[:, 0]}
        before = jnp.where(context["positions"][..., None] > 0, jnp.pad(half[:, :-1], ((0, 0), (1, 0), (0, 0))), 0)
        if self.mode == "prefill":
            state = state | {"before": half[jnp.arange(y.shape[0]), context["lengths"] - 1]}
        return jnp.concatenate([before, rest], -1), state


class Sinusoids(nn.Module):
    """g (sin(m / 10000^(2i/d)) for i < d/2, then the cosines), with one learned scale g."""

    config: FlashConfig

    @nn.compact
    def __call__(self, positions: Int[Array, "*b N"]) -> Float[Array, "*b N d"]:
        d, scale = self.config.width, self.config.sinusoidal_scale
        g = self.param("scale", nn.initializers.constant(d**-0.5 if scale is None else scale), ())
        frequencies = (10000.0 ** -(np.arange(0, d, 2) / d)).astype(np.float32)
        angles = positions.astype(jnp.float32)[..., None] * frequencies
        return g * jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class Head(nn.Module):
    """Logits of the vocabulary by a kernel of its own, float32."""

    config: FlashConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b V"]:
        cfg = self.config
        logits = project(x, self.param("kernel", KERNELS[cfg.initializer], (cfg.width, cfg.vocab_size)))
        return logits + self.param("bias", nn.initializers.zeros, (cfg.vocab_size,)) if cfg.head_bias else logits


class Flash(nn.Module):
    """Tokens to logits (`__call__`), and token by token with a cache (`prefill`, `step`).

    Packed rows: each segment is computed as if it were alone, exactly, wherever it starts: positions, chunks and sums
    begin with it. The only exception is `count` "row", where n is the length of the row.

    When training, randomness comes from the stream "dropout".
    """

    config: FlashConfig

    def __call__(self, tokens: Tokens, segment_ids: Tokens | None = None, train: bool = False) -> Float[Array, "B N V"]:
        """Float32 logits; in a decoder, those at i are of token i + 1.

        `segment_ids` numbers the documents of a packed row from 1, each in one piece; 0 is padding.

        Raises ValueError for a row longer than a Toeplitz bias over the whole row.
        """
        positions = jnp.arange(tokens.shape[1]) if segment_ids is None else positions_of(segment_ids)
        return self._run(tokens, None, {"positions": positions, "segment_ids": segment_ids}, "full", train)[0]

    @nn.nowrap
    def init_cache(self, batch: int, capacity: int) -> Cache:
        """What a decoder of `batch` rows remembers before the first token.

        Of flash this does not grow: s e + C (2s + e) numbers a row and layer, and `capacity` is not used. The other
        kinds keep the keys and values of `capacity` tokens.

        Raises ValueError for an encoder, for n counted by rows, and for a capacity beyond a Toeplitz bias.
        """
        cfg = self.config
        if not cfg.causal:
            raise ValueError("an encoder (causal=False) sees all tokens at once: it cannot decode")
        divides = cfg.kind == "quad" or cfg.scaling == "log_n"
        if divides and cfg.count == "row":
            raise ValueError('count "row" divides by a length that a decoder cannot know: use "context" or "visible"')
        self._check_length(capacity, "a cache of capacity")
        s, e, C = cfg.head_dim, cfg.inner, cfg.chunk
        lead = (cfg.depth, batch) if cfg.scan_layers else (batch,)

        def zeros(*shape: int, dtype: Any = cfg.dtype) -> Array:
            return jnp.zeros((*lead, *shape), dtype)

        def layer() -> Any:
            before = {"before": zeros(cfg.width // 2)} if cfg.shift_tokens else {}
            if cfg.kind != "flash":
                return before | {"key": zeros(capacity, s), "value": zeros(capacity, e)}
            S = zeros(s, e, dtype=jnp.float32)
            return before | {"chunks": ops.ChunkState(zeros(C, s), zeros(C, s), zeros(C, e), S)}

        layers = {"layers": layer()} if cfg.scan_layers else {f"layer_{i}": layer() for i in range(cfg.depth)}
        return layers | {"position": jnp.zeros((batch,), jnp.int32)}

    def prefill(self, tokens: Tokens, lengths: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Prompts, padded behind to one length, into an empty cache: (logits at each one's last token, cache)."""
        context = {"positions": jnp.arange(tokens.shape[1]), "segment_ids": None, "lengths": lengths}
        logits, cache = self._run(tokens, cache, context, "prefill")
        return logits, cache | {"position": lengths.astype(jnp.int32)}

    def step(self, tokens: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """One token more in each row: (logits of the next one, cache)."""
        position = cache["position"]
        logits, cache = self._run(tokens[:, None], cache, {"positions": position[:, None], "segment_ids": None}, "step")
        return logits, cache | {"position": position + 1}

    @nn.nowrap
    def _check_length(self, length: int, what: str) -> None:
        cfg = self.config
        if cfg.kind != "flash" and cfg.bias_kind == "toeplitz" and length > cfg.span:
            raise ValueError(
                f"{what} {length} but the Toeplitz bias spans {cfg.span}: raise max_length, or bias='rope'"
            )

    @nn.nowrap
    def _n(self, positions: Array, segment_ids: Array | None, shape: tuple[int, ...]) -> Any:
        """n of each query [B, N], or of all."""
        cfg = self.config
        if cfg.count == "context":
            return float(cfg.max_length)
        if cfg.count == "row":
            return float(shape[1])
        if cfg.causal:
            return jnp.broadcast_to(positions + 1, shape).astype(jnp.float32)
        if segment_ids is None:
            return float(shape[1])
        behind = positions_of(segment_ids[:, ::-1])[:, ::-1]
        return (positions + 1 + behind).astype(jnp.float32)

    @nn.compact
    def _run(
        self, tokens: Tokens, cache: Cache | None, context: Context, mode: Mode, train: bool = False
    ) -> tuple[Float[Array, "B *N V"], Cache]:
        """Embedding, units, last norm, head: (logits, of one token a row when decoding, and the states after it)."""
        cfg, N = self.config, tokens.shape[1]
        self._check_length(N, "a sequence of")
        context = {**context, "n": self._n(context["positions"], context["segment_ids"], tokens.shape)}
        embed = Table(cfg.vocab_size, cfg.width, name="embed")()
        x = embed[tokens].astype(cfg.dtype)
        if cfg.sinusoidal:
            x = x + Sinusoids(cfg, name="position")(context["positions"]).astype(x.dtype)
        x = nn.Dropout(cfg.dropout_rate, deterministic=not train)(x)
        x = with_logical_constraint(x, ("batch", _length(N), "embed"))

        unit = Unit
        if cfg.remat != "none":
            unit = nn.remat(Unit, policy=_POLICIES[cfg.remat], prevent_cse=not cfg.scan_layers)
        new: Cache = {}
        if cfg.scan_layers:
            layers = nn.scan(
                unit,
                variable_axes={True: 0},
                split_rngs={True: True},
                in_axes=(0, nn.broadcast),  # type: ignore[arg-type]
                length=cfg.depth,
            )
            x, new["layers"] = layers(cfg, mode, train, name="layers")(x, (cache or {}).get("layers"), context)
        else:
            for i in range(cfg.depth):
                layer = unit(cfg, mode, train, name=f"layer_{i}")
                x, new[f"layer_{i}"] = layer(x, (cache or {}).get(f"layer_{i}"), context)
        norm = NORMS[cfg.final_norm or cfg.norm]
        x = norm(epsilon=cfg.norm_epsilon, dtype=cfg.dtype, name="final_norm")(x)
        if mode == "prefill":
            x = x[jnp.arange(x.shape[0]), context["lengths"] - 1]
        elif mode == "step":
            x = x[:, 0]
        logits = project(x, embed.T) if cfg.tie_embeddings else Head(cfg, name="head")(x)
        return with_logical_constraint(logits, ("batch", *(_length(N),) * (x.ndim - 2), "vocab")), new


def _variants() -> dict[str, FlashConfig]:
    """The models that the paper compares, at base size (24 units of 768), by task."""
    flash = FlashConfig()
    quad = dataclasses.replace(flash, kind="quad")
    gau = dataclasses.replace(flash, kind="gau", scaling="log_n", count="visible", bias="none")
    masked = {"causal": False, "norm": "scalenorm", "count": "visible"}
    return {
        "flash_base": flash,
        "flash_quad_base": quad,
        "gau_base": gau,
        "flash_base_mlm": dataclasses.replace(flash, **masked),
        "flash_quad_base_mlm": dataclasses.replace(quad, **masked),
        "gau_base_mlm": dataclasses.replace(gau, **masked),
    }


register(Flash, _variants())
