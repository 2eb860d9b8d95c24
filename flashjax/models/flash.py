"""FLASH, FLASH-Quad and the gated attention unit they are made of.

Hua, Dai, Liu and Le 2022, "Transformer Quality in Linear Time" (arXiv 2202.10447). There is no official code: what the
text leaves open follows the pseudo-code of its appendix as public transcriptions hold it, and where conventions differ
a field of the configuration names them. `lucidrains` gives those of the package flash-pytorch 0.1.9.

Shapes: B batch, N tokens, d width of the residual stream, e = expansion * d width of gate and values, s width of the
one head that queries and keys share, C tokens of a chunk, V vocabulary.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from flashjax.layers.embedding import Head, Table
from flashjax.layers.initializers import KERNELS
from flashjax.layers.norm import NORMS
from flashjax.layers.positions import Turn, positions_of, rope_frequencies, rotary_turn
from flashjax.layers.residual import Residual
from flashjax.models.flash_attention import GatedAttention
from flashjax.models.flash_config import FlashConfig, lucidrains
from flashjax.models.registry import register
from flashjax.models.stack import Cache, Context, Mode, apply_layers, length_name, stack, to_logits
from flashjax.ops.gated_attention import ChunkState

__all__ = ["Flash", "FlashConfig", "Unit", "lucidrains"]

Tokens = Int[Array, "B N"]


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
        return with_logical_constraint(x, ("batch", length_name(x.shape[1]), "embed")), state

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
    def init_cache(self, batch: int, capacity: int, length: int | None = None) -> Cache:
        """What a decoder of `batch` rows remembers before the first token.

        Of flash this does not grow: s e + C (2s + e) numbers a row and layer, and `capacity` is not used. The other
        kinds keep the keys and values of `capacity` tokens; a step beyond it is not an error, but wrong: the token is
        dropped. `length` is of Transformers, some of whose angles depend on it.

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

        def zeros(*shape: int, dtype: Any = cfg.dtype) -> Array:
            return jnp.zeros((batch, *shape), dtype)

        def layer() -> Any:
            before = {"before": zeros(cfg.width // 2)} if cfg.shift_tokens else {}
            if cfg.kind != "flash":
                return before | {"key": zeros(capacity, s), "value": zeros(capacity, e)}
            S = zeros(s, e, dtype=jnp.float32)
            return before | {"chunks": ChunkState(zeros(C, s), zeros(C, s), zeros(C, e), S)}

        layers = {f"layer_{i}": layer() for i in range(cfg.depth)}
        return (stack(layers) if cfg.scan_layers else layers) | {"position": jnp.zeros((batch,), jnp.int32)}

    def prefill(self, tokens: Tokens, lengths: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Prompts of a token or more, padded behind, into an empty cache: (logits at each one's last token, cache)."""
        context = {"positions": jnp.arange(tokens.shape[1]), "segment_ids": None, "lengths": lengths}
        logits, cache = self._run(tokens, cache, context, "prefill")
        return logits, cache | {"position": lengths.astype(jnp.int32)}

    def step(self, tokens: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """One token more in each row, of no more than the cache has room for: (logits of the next one, cache)."""
        position = cache["position"]
        logits, cache = self._run(tokens[:, None], cache, {"positions": position[:, None], "segment_ids": None}, "step")
        return logits, cache | {"position": position + 1}

    @nn.nowrap
    def _check_length(self, length: int, what: str) -> None:
        cfg = self.config
        if cfg.most_positions is not None and length > cfg.most_positions:
            raise ValueError(
                f"{what} {length} but the Toeplitz bias spans {cfg.most_positions}: raise max_length, or bias='rope'"
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

    @nn.nowrap
    def _turn(self, context: Context, N: int, mode: Mode) -> Turn | None:
        """What all units turn their queries and keys by."""
        cfg = self.config
        if not cfg.rotary_dim:
            return None
        frequencies, _ = rope_frequencies({"partial_rotary_factor": cfg.rotary}, cfg.head_dim)
        positions = context["positions"] if mode == "step" or context["segment_ids"] is not None else None
        return rotary_turn(positions, frequencies, below=None if mode == "step" else N)

    @nn.compact
    def _run(
        self, tokens: Tokens, cache: Cache | None, context: Context, mode: Mode, train: bool = False
    ) -> tuple[Float[Array, "B *N V"], Cache]:
        """Embedding, units, last norm, head: (logits, of one token a row when decoding, and the states after it)."""
        cfg, N = self.config, tokens.shape[1]
        self._check_length(N, "a sequence of")
        n = self._n(context["positions"], context["segment_ids"], tokens.shape)
        context = {**context, "n": n, "turn": self._turn(context, N, mode)}
        embed = Table(cfg.vocab_size, cfg.width, name="embed")()
        x = embed[tokens].astype(cfg.dtype)
        if cfg.sinusoidal:
            x = x + Sinusoids(cfg, name="position")(context["positions"]).astype(x.dtype)
        x = nn.Dropout(cfg.dropout_rate, deterministic=not train)(x)
        x = with_logical_constraint(x, ("batch", length_name(N), "embed"))

        layers = [(cfg, mode, train)] * cfg.depth
        x, new = apply_layers(Unit, layers, cfg.scan_layers, cfg.remat, x, cache, context)
        norm = NORMS[cfg.final_norm or cfg.norm]
        x = norm(epsilon=cfg.norm_epsilon, dtype=cfg.dtype, name="final_norm")(x)
        init = KERNELS[cfg.initializer]
        head = None if cfg.tie_embeddings else Head(cfg.vocab_size, init, cfg.head_bias, name="head")
        return to_logits(x, embed, head, mode, context.get("lengths")), new


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
