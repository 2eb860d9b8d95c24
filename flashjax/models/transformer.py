"""The Transformer as today's language models use it: a decoder or an encoder, by configuration.

Vaswani et al. 2017 with what came after: pre-normalisation (GPT-2), RMSNorm, rotary positions, gated units (Llama),
grouped key-value heads, normalised queries and keys (Qwen3). What mixes tokens is chosen by name
(`flashjax.layers.attention`): softmax attention, or any of its replacements in the same block.

Shapes: B batch, N tokens, C width, H query heads, Hk key-value heads, D width of a head, V vocabulary.
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from flashjax.layers.attention.pattern import Pattern
from flashjax.layers.attention.softmax import Softmax
from flashjax.layers.bias import AlibiBias, BucketBias
from flashjax.layers.embedding import Head, Table
from flashjax.layers.extended_attention import key_copies
from flashjax.layers.mlp import FeedForward
from flashjax.layers.norm import NORMS
from flashjax.layers.positions import Turn, alibi_slopes, positions_of, rope_frequencies, rotary_turn, sinusoidal
from flashjax.layers.residual import Residual
from flashjax.models.stack import Cache, Context, Mode, apply_layers, length_name, stack, to_logits
from flashjax.models.transformer_attention import Attention
from flashjax.models.transformer_config import TransformerConfig

__all__ = ["Block", "Transformer", "TransformerConfig"]

Tokens = Int[Array, "B N"]


def _norm(cfg: TransformerConfig, name: str) -> nn.Module:
    return NORMS[cfg.norm](epsilon=cfg.norm_epsilon, dtype=cfg.dtype, name=name)


class Block(nn.Module):
    """Attention, then a feed-forward, each a residual branch."""

    config: TransformerConfig
    mode: Mode = "full"
    train: bool = False
    last: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"], state: Any, context: Context) -> tuple[Array, Any]:
        """(stream [B, N, C], state of the mixer after it)."""
        cfg = self.config
        inner, outer = cfg.initializers
        drop = nn.Dropout(cfg.dropout_rate, deterministic=not self.train)
        attend = Attention(cfg, self.mode, self.train, self.last, name="attn")
        mlp = FeedForward(
            cfg.hidden or 4 * cfg.width,
            cfg.activation,
            cfg.mlp_bias,
            cfg.dropout_rate,
            cfg.dtype,
            inner,
            outer,
            name="mlp",
        )
        before = cfg.norm_position in ("pre", "sandwich")

        def norm(x: Array, name: str, here: bool) -> Array:
            return _norm(cfg, name)(x) if here else x

        def join(name: str, x: Array, branch: Array) -> Array:
            return Residual(cfg.residual, cfg.depth, name=name)(x, branch)

        y, state = attend(norm(x, "attn_norm", before), state, context)
        x = join("attn_residual", x, drop(norm(y, "attn_out_norm", cfg.norm_position == "sandwich")))
        x = norm(x, "attn_norm", not before)
        y = mlp(norm(x, "mlp_norm", before), self.train)
        x = join("mlp_residual", x, norm(y, "mlp_out_norm", cfg.norm_position == "sandwich"))
        x = norm(x, "mlp_norm", not before)
        return with_logical_constraint(x, ("batch", length_name(x.shape[1]), "embed")), state


class Transformer(nn.Module):
    """Tokens to logits (`__call__`), and token by token with a cache (`prefill`, `step`).

    When training, randomness comes from the stream "dropout".
    """

    config: TransformerConfig

    def __call__(self, tokens: Tokens, segment_ids: Tokens | None = None, train: bool = False) -> Float[Array, "B N V"]:
        """Float32 logits; in a decoder, those at i are of token i + 1.

        `segment_ids` numbers the documents of a packed row from 1, 0 is padding: a token sees its own document, whose
        positions begin at 0.

        Raises ValueError for more tokens than the model has positions.
        """
        positions = jnp.arange(tokens.shape[1])[None] if segment_ids is None else positions_of(segment_ids)
        return self._run(tokens, None, {"positions": positions, "segment_ids": segment_ids}, "full", train)[0]

    @nn.nowrap
    def init_cache(self, batch: int, capacity: int, length: int | None = None) -> Cache:
        """What a decoder of `batch` rows remembers before the first token; room for `capacity` tokens.

        A step beyond it is not an error, but wrong: the token is dropped, or takes the place of one that is still seen.

        Args:
            length: tokens that there will be, which angles that depend on the length (`dynamic`, `longrope`) are made
                for; default `capacity`.

        Raises ValueError for an encoder, and for a capacity beyond the model's positions.
        """
        cfg = self.config
        if not cfg.causal:
            raise ValueError("an encoder (causal=False) sees all tokens at once: it cannot decode")
        self._check_length(capacity, "a cache of capacity")
        layers = {f"layer_{i}": self._layer_state(batch, capacity, i == cfg.depth - 1) for i in range(cfg.depth)}
        cache = (stack(layers) if cfg.scan_layers else layers) | {"position": jnp.zeros((batch,), jnp.int32)}
        if cfg.position == "rope" and cfg.rope.by_length:
            cache["length"] = jnp.asarray(capacity if length is None else length, jnp.int32)
        return cache

    @nn.nowrap
    def _layer_state(self, batch: int, capacity: int, last: bool) -> Any:
        cfg, mixer = self.config, self.config.make_mixer(last)
        heads = cfg.group if mixer.grouped else cfg.heads
        # A cache of keys and values may be as large as a model: it is kept in the compute dtype, unlike sums over them.
        dtype = {"dtype": jnp.dtype(cfg.dtype)} if isinstance(mixer, Softmax | Pattern) else {}
        rope = cfg.rope if cfg.position == "rope" else None
        copies = key_copies(cfg.extension, rope) if cfg.extension.kind != "none" else 1
        state = {"mixer": mixer.initial_state(batch, heads, copies * cfg.dim, cfg.dim, capacity, **dtype)}
        for name, width in (("query_conv", cfg.heads), ("key_conv", cfg.group), ("value_conv", cfg.group)):
            if mixer.short_conv:
                state[name] = jnp.zeros((batch, mixer.short_conv - 1, width * cfg.dim), cfg.dtype)
        return state

    def prefill(self, tokens: Tokens, lengths: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Prompts of a token or more, padded behind, into an empty cache: (logits at each one's last token, cache)."""
        positions = jnp.arange(tokens.shape[1])[None]
        valid = positions < lengths[:, None]
        context = {"positions": positions, "segment_ids": None, "valid": valid, "lengths": lengths}
        logits, new = self._run(tokens, cache, context, "prefill")
        return logits, cache | new | {"position": lengths.astype(jnp.int32)}

    def step(self, tokens: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """One token more in each row, of no more than the cache has room for: (logits of the next one, cache)."""
        position = cache["position"]
        context = {"positions": position[:, None], "segment_ids": None}
        logits, new = self._run(tokens[:, None], cache, context, "step")
        return logits, cache | new | {"position": position + 1}

    @nn.nowrap
    def _check_length(self, length: int, what: str) -> None:
        cfg = self.config
        if cfg.most_positions is not None and length > cfg.most_positions:
            whose = "learned" if cfg.position == "learned" else cfg.mixer
            raise ValueError(f"{what} {length} but there are {cfg.max_length} {whose} positions: raise max_length")

    @nn.nowrap
    def _turn(self, N: int, context: Context, mode: Mode) -> Turn | None:
        """What all layers turn their queries and keys by."""
        cfg = self.config
        if cfg.position != "rope" or cfg.extension.kind != "none":
            return None
        length = N if context["length"] is None else context["length"]
        frequencies, attention_scale = rope_frequencies(cfg.rope, cfg.dim, length)
        ids = context["segment_ids"]
        positions = context["positions"] if mode == "step" or ids is not None else None
        return rotary_turn(positions, frequencies, attention_scale, None if mode == "step" else N)

    @nn.compact
    def _run(
        self, tokens: Tokens, cache: Cache | None, context: Context, mode: Mode, train: bool = False
    ) -> tuple[Float[Array, "B *N V"], Cache]:
        """Embedding, blocks, last norm, head: (logits, of one token a row when decoding, and the states after it)."""
        cfg, N = self.config, tokens.shape[1]
        self._check_length(N, "a sequence of")
        embed = Table(cfg.vocab_size, cfg.width, name="embed")()
        x = embed[tokens].astype(cfg.dtype)
        if cfg.embed_scale:
            x = x * jnp.asarray(math.sqrt(cfg.width), x.dtype)
        bias = None
        match cfg.position:
            case "learned":
                x = x + Table(cfg.max_length, cfg.width, name="position")()[context["positions"]].astype(x.dtype)
            case "sinusoidal":
                x = x + sinusoidal(context["positions"], cfg.width).astype(x.dtype)
            case "alibi":
                bias = AlibiBias(jnp.asarray(alibi_slopes(cfg.heads)))
            case "t5":
                table = Table(cfg.t5_buckets, cfg.heads, name="position")()
                bias = BucketBias(table, bidirectional=not cfg.causal, max_distance=cfg.t5_max_distance)
        x = nn.Dropout(cfg.dropout_rate, deterministic=not train)(x)
        x = with_logical_constraint(x, ("batch", length_name(N), "embed"))
        context = {"valid": None, "bias": bias, "length": None if cache is None else cache.get("length"), **context}
        context["turn"] = self._turn(N, context, mode)

        layers = [(cfg, mode, train, not cfg.scan_layers and i == cfg.depth - 1) for i in range(cfg.depth)]
        x, new = apply_layers(Block, layers, cfg.scan_layers, cfg.remat, x, cache, context)
        if cfg.norm_position != "post":
            x = _norm(cfg, "final_norm")(x)
        head = None if cfg.tie_embeddings else Head(cfg.vocab_size, cfg.initializers[0], name="head")
        return to_logits(x, embed, head, mode, context.get("lengths")), new
