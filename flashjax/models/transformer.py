"""The Transformer as today's language models use it: a decoder or an encoder, by configuration.

Vaswani et al. 2017 with what came after: pre-normalisation (GPT-2), RMSNorm, rotary positions, gated units (Llama),
grouped key-value heads, normalised queries and keys (Qwen3). What mixes tokens is chosen by name
(`flashjax.layers.attention`): softmax attention, or any of its replacements in the same block.

Shapes: B batch, N tokens, C width, H query heads, Hk key-value heads, D width of a head, V vocabulary.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from flashjax.layers import attention
from flashjax.layers.attention import Mixer
from flashjax.layers.attention.softmax import Softmax
from flashjax.layers.bias import AlibiBias, BucketBias
from flashjax.layers.extension import Extension, attend, log_n
from flashjax.layers.initializers import NORMAL
from flashjax.layers.mlp import ACTIVATIONS, FeedForward
from flashjax.layers.norm import NORMS, RMSNorm
from flashjax.layers.positions import RopeParameters, alibi_slopes, positions_of, rope_frequencies, rotate
from flashjax.layers.short_conv import ShortConv
from flashjax.layers.watched import show_logits
from flashjax.models.registry import register
from flashjax.ops.dense import dot_general

Position = Literal["rope", "alibi", "t5", "sinusoidal", "learned", "none"]
Tokens = Int[Array, "B N"]
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A language model of one stack of blocks. The defaults are GPT-2's."""

    vocab_size: int = 50257
    """V, tokens of the vocabulary."""
    width: int = 768
    """C, channels of the residual stream."""
    depth: int = 12
    """Blocks."""
    heads: int = 12
    """H, query heads."""
    kv_heads: int = 0
    """Hk, key-value heads, each read by heads / kv_heads query heads; 0: as many as heads."""
    head_dim: int = 0
    """D, width of a head; 0: width / heads."""
    hidden: int = 0
    """Inner width of the feed-forward; 0: 4 x width."""
    activation: str = "gelu_tanh"
    """Of the feed-forward: gelu (erf), gelu_tanh, relu, relu2, silu; gated: swiglu, geglu, geglu_tanh, reglu."""
    norm: Literal["layernorm", "rmsnorm", "scalenorm"] = "layernorm"
    """Kind of normalisation."""
    norm_position: Literal["pre", "post", "sandwich"] = "pre"
    """pre: x + f(norm(x)), and a last norm before the head; post: norm(x + f(x)); sandwich: x + norm(f(norm(x))), and a
    last norm."""
    norm_epsilon: float = 1e-5
    """Added to the variance."""
    qkv_bias: bool = True
    """Biases on queries, keys and values."""
    out_bias: bool = True
    """Bias on the projection that leaves attention."""
    mlp_bias: bool = True
    """Biases in the feed-forward."""
    qk_norm: Literal["none", "both", "keys"] = "none"
    """both: RMSNorm of each head's queries and keys, before rotation; keys: k sqrt(D) / |k|, without gains, so that
    logits are q.k / |k| (Su, kexue.fm 9859)."""
    position: Position = "learned"
    """rope (rotary), alibi, t5 (learned relative bias), sinusoidal or learned (added to the embedding), or none."""
    rope: RopeParameters = dataclasses.field(default_factory=RopeParameters)
    """Rotary frequencies, as Hugging Face's rope_parameters."""
    t5_buckets: int = 32
    """Buckets of the t5 bias."""
    t5_max_distance: int = 128
    """Distance from which on all share a bucket."""
    max_length: int = 1024
    """Longest sequence: of learned positions, and of mixers whose parameters depend on it."""
    mixer: str = "softmax"
    """What mixes tokens; see flashjax.layers.attention.names()."""
    mixer_options: str = ""
    """Its options: NAME=VALUE, NAME=VALUE."""
    full_last: bool = False
    """The last block sees all tokens, without positions, and extension.log_n is its alone; the mixer's window is for
    the others (HWFA: Su, kexue.fm 9603)."""
    extension: Extension = dataclasses.field(default_factory=Extension)
    """What softmax attention does beyond the length trained at: other distances, other keys, logits by log n."""
    causal: bool = True
    """A decoder; False: an encoder, in which each token sees all."""
    tie_embeddings: bool = True
    """The head is the embedding."""
    embed_scale: bool = False
    """Embeddings times sqrt(width)."""
    dropout_rate: float = 0.0
    """Dropout of embeddings and of what leaves attention and feed-forward."""
    initializer: Literal["gpt2", "normal", "fan_in"] = "gpt2"
    """Kernels at the start: gpt2 (deviation .02, what leaves a branch over sqrt(2 depth)), normal (.02), or fan_in
    (1 / sqrt(inputs), what leaves a branch over sqrt(2 depth): for narrow models)."""
    scan_layers: bool = False
    """One compiled block for all layers; parameters have a leading dim of layers."""
    remat: Literal["none", "full", "dots"] = "none"
    """Recompute each block in the backward pass: all of it (full), or all but matrix products (dots)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; softmax, norms and logits are float32 in any case."""

    def __post_init__(self):
        for name in ("vocab_size", "width", "depth", "heads", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.width % self.heads and not self.head_dim:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads: set head_dim, or change one")
        if self.heads % self.group:
            raise ValueError(f"{self.heads} heads do not divide into {self.group} key-value heads: change kv_heads")
        self._choose("activation", ACTIVATIONS)
        self._choose("norm", NORMS)
        self._choose("norm_position", ("pre", "post", "sandwich"))
        self._choose("qk_norm", ("none", "both", "keys"))
        self._choose("position", ("rope", "alibi", "t5", "sinusoidal", "learned", "none"))
        self._choose("initializer", _INITIALIZERS)
        self._choose("remat", _POLICIES)
        self._choose("dtype", ("float32", "bfloat16"))
        mixer = self.make_mixer()
        mixer.check(causal=self.causal, position=self.position)
        if self.position == "rope":
            self.rope.rotary_dim(self.dim)
            if self.rope.by_length and self.mixer != "softmax":
                raise ValueError(
                    f"rope_type {self.rope.rope_type!r} depends on the length, which a decoder with mixer "
                    f"{self.mixer!r} does not know: use mixer 'softmax' or another rope_type"
                )
        if self.position in ("sinusoidal",) and self.width % 2:
            raise ValueError(f"sinusoidal positions need an even width, found {self.width}")
        if (self.extension.active or self.full_last) and self.mixer != "softmax":
            raise ValueError(f"extension and full_last are about softmax attention: mixer is {self.mixer!r}")
        if self.extension.kind != "none":
            if self.position not in ("rope", "none"):
                raise ValueError(
                    f"extension {self.extension.kind!r} is a rule for rotary positions: position is {self.position!r}"
                )
            if self.full_last or getattr(mixer, "window", 0):
                raise ValueError(
                    f"extension {self.extension.kind!r} says itself which keys are seen: leave out full_last and the "
                    "mixer's window"
                )
        if self.full_last and self.scan_layers:
            raise ValueError("full_last makes the last block another one: set scan_layers=False")

    def _choose(self, name: str, choices: Any) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(choices)}")

    @property
    def group(self) -> int:
        """Hk."""
        return self.kv_heads or self.heads

    @property
    def dim(self) -> int:
        """D."""
        return self.head_dim or self.width // self.heads

    def make_mixer(self, last: bool = False) -> Mixer:
        """The mixer of every block, or of the last."""
        mixer = attention.parse(self.mixer, self.mixer_options)
        return dataclasses.replace(mixer, window=0) if last and self.full_last else mixer  # type: ignore[call-arg]


_POLICIES = {"none": None, "full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
_INITIALIZERS = {
    # name: (kernels, kernels that leave a branch, as a function of the depth)
    "gpt2": (NORMAL, lambda depth: nn.initializers.normal(0.02 / math.sqrt(2 * depth))),
    "normal": (NORMAL, lambda depth: NORMAL),
    "fan_in": (
        nn.initializers.lecun_normal(),
        lambda depth: nn.initializers.variance_scaling(0.5 / depth, "fan_in", "truncated_normal"),
    ),
}

Mode = Literal["full", "prefill", "step"]


def _inits(cfg: TransformerConfig) -> tuple[Any, Any]:
    inner, outer = _INITIALIZERS[cfg.initializer]
    return inner, outer(cfg.depth)


def _norm(cfg: TransformerConfig, name: str) -> nn.Module:
    return NORMS[cfg.norm](epsilon=cfg.norm_epsilon, dtype=cfg.dtype, name=name)  # type: ignore[call-arg]


class Attention(nn.Module):
    """Projections around a mixer, and what a mixer asks of its block."""

    config: TransformerConfig
    mode: Mode = "full"
    train: bool = False
    last: bool = False

    def setup(self):
        cfg, mixer = self.config, self.mixer
        inner, outer = _inits(cfg)
        dense = functools.partial(nn.Dense, dtype=cfg.dtype, kernel_init=inner, dot_general=dot_general)
        self.query = dense(cfg.heads * cfg.dim, use_bias=cfg.qkv_bias)
        self.key = dense(cfg.group * cfg.dim, use_bias=cfg.qkv_bias)
        self.value = dense(cfg.group * cfg.dim, use_bias=cfg.qkv_bias)
        self.out = dense(cfg.width, use_bias=cfg.out_bias, kernel_init=outer)
        head_norm = functools.partial(RMSNorm, epsilon=cfg.norm_epsilon, dtype=cfg.dtype)
        if cfg.qk_norm == "both":
            self.query_norm, self.key_norm = head_norm(), head_norm()
        if mixer.short_conv:
            conv = functools.partial(ShortConv, mixer.short_conv, dtype=cfg.dtype)
            self.query_conv, self.key_conv, self.value_conv = conv(), conv(), conv()
        inputs = mixer.inputs(cfg.heads, cfg.dim, cfg.max_length, jnp.dtype(cfg.dtype))
        if inputs is not None:
            self.inputs = inputs
        self.has_inputs = inputs is not None
        if mixer.output_norm:
            self.out_norm = head_norm()
        if mixer.output_gate:
            self.gate = dense(cfg.heads * cfg.dim, use_bias=False)

    @property
    def mixer(self) -> Mixer:
        return self.config.make_mixer(self.last)

    def __call__(self, x: Float[Array, "B N C"], state: Any, context: dict[str, Any]) -> tuple[Array, Any]:
        """(what is added to the stream [B, N, C], the state after it)."""
        cfg, mixer = self.config, self.mixer
        B, N, _ = x.shape
        q, k, v = self.query(x), self.key(x), self.value(x)
        new_state = {}
        if mixer.short_conv:
            past = state or {}
            arguments = (context["segment_ids"], context["valid"])
            q, new_state["query_conv"] = self._conv(self.query_conv, q, past.get("query_conv"), *arguments)
            k, new_state["key_conv"] = self._conv(self.key_conv, k, past.get("key_conv"), *arguments)
            v, new_state["value_conv"] = self._conv(self.value_conv, v, past.get("value_conv"), *arguments)
        q = q.reshape(B, N, cfg.heads, cfg.dim)
        k, v = (y.reshape(B, N, cfg.group, cfg.dim) for y in (k, v))
        if cfg.qk_norm == "both":
            q, k = self.query_norm(q), self.key_norm(k)
        elif cfg.qk_norm == "keys":
            k = _unit(k) * math.sqrt(cfg.dim)
        if mixer.unit_queries:
            q, k = _unit(q), _unit(k)
        # Angles that depend on the length are made for all that a cache has room for: the same at every step.
        length = N if self.mode == "full" or mixer.name != "softmax" else state["mixer"]["key"].shape[2]
        if cfg.extension.kind != "none":
            o, new_state["mixer"] = self._extended(q, k, v, state, context, length)
            o = o.astype(cfg.dtype).reshape(B, N, cfg.heads * cfg.dim)
            return self.out(o), (None if self.mode == "full" else new_state)
        if cfg.position == "rope" and not (self.last and cfg.full_last):
            frequencies, attention_scale = rope_frequencies(cfg.rope, cfg.dim, length)
            q, k = (rotate(y, context["positions"], frequencies, attention_scale) for y in (q, k))
        if cfg.extension.log_n != "none" and (self.last or not cfg.full_last):
            seen = _seen(cfg, getattr(mixer, "window", 0), context["positions"], context["segment_ids"])
            q = (q * log_n(cfg.extension, seen)[..., None, None]).astype(q.dtype)
        if not mixer.grouped and cfg.group != cfg.heads:
            k, v = (jnp.repeat(y, cfg.heads // cfg.group, axis=2) for y in (k, v))
        names = ("batch", _length(N), "heads", None)
        q, k, v = (with_logical_constraint(y, names) for y in (q, k, v))
        if isinstance(mixer, Softmax):
            show_logits(self, q, k, mixer.scale or cfg.dim**-0.5)

        inputs = dict(self.inputs(x)) if self.has_inputs else {}
        if context["bias"] is not None:
            inputs["bias"] = context["bias"]
        if self.mode == "full":
            o = mixer.parallel(q, k, v, causal=cfg.causal, segment_ids=context["segment_ids"], **inputs)
        elif self.mode == "prefill":
            new_state["mixer"], o = mixer.prefill(q, k, v, context["valid"], state["mixer"], **inputs)
        else:
            inputs = {n: y if n in mixer.shared_inputs else y[:, 0] for n, y in inputs.items()}
            new_state["mixer"], o = mixer.step(state["mixer"], q[:, 0], k[:, 0], v[:, 0], **inputs)
            o = o[:, None]
        if mixer.output_norm:
            o = self.out_norm(o)
        o = o.astype(cfg.dtype).reshape(B, N, cfg.heads * cfg.dim)
        if mixer.output_gate:
            o = jax.nn.silu(self.gate(x)) * o
        return self.out(o), (None if self.mode == "full" else new_state)

    def _extended(self, q: Array, k: Array, v: Array, state: Any, context: dict[str, Any], length: int):
        """(attention by `extension`, the mixer's state after it: its keys are not rotated)."""
        cfg, mixer, (B, N) = self.config, self.mixer, q.shape[:2]
        positions, ids = jnp.broadcast_to(context["positions"], (B, N)), context["segment_ids"]
        k_positions, valid, new = positions, jnp.ones((B, N), bool), None
        if self.mode == "prefill":
            valid, new = context["valid"], mixer.fill(k, v, context["valid"], state["mixer"])  # type: ignore[attr-defined]
        elif self.mode == "step":
            new = mixer.append(state["mixer"], k[:, 0], v[:, 0])  # type: ignore[attr-defined]
            k, v = new["key"].swapaxes(1, 2).astype(q.dtype), new["value"].swapaxes(1, 2).astype(v.dtype)
            k_positions = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
            valid = k_positions <= positions
        names = ("batch", _length(N), "heads", None)
        q, k, v = (with_logical_constraint(y, names) for y in (q, k, v)) if self.mode != "step" else (q, k, v)
        rope = cfg.rope if cfg.position == "rope" else None
        arguments = {"q_segment_ids": ids, "k_segment_ids": ids, "length": length}
        return attend(q, k, v, positions, k_positions, valid, rope, cfg.extension, cfg.causal, **arguments), new

    def _conv(self, conv: ShortConv, x: Array, state: Any, segment_ids: Any, valid: Any) -> tuple[Array, Any]:
        y, state = conv(x, segment_ids, state, valid)
        return jax.nn.silu(y), state


def _unit(x: Float[Array, "B N H D"]) -> Float[Array, "B N H D"]:
    """x over its length, in float32; a zero vector stays one and has a zero gradient."""
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))).astype(x.dtype)


def _seen(cfg: TransformerConfig, window: int, positions: Array, segment_ids: Array | None) -> Array:
    """How many keys each query sees, [B or 1, N]."""
    if cfg.causal:
        return jnp.minimum(positions + 1, window) if window else positions + 1
    ids = jnp.ones_like(positions) if segment_ids is None else segment_ids
    same = ids[:, :, None] == ids[:, None, :]
    if window:
        same &= jnp.abs(positions[:, :, None] - positions[:, None, :]) < window
    return same.sum(-1)


def _length(tokens: int) -> str | None:
    """Name of the dim of tokens; that of a single one is not split."""
    return "length" if tokens > 1 else None


class Block(nn.Module):
    """Attention, then a feed-forward, each a residual branch."""

    config: TransformerConfig
    mode: Mode = "full"
    train: bool = False
    last: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"], state: Any, context: dict[str, Any]) -> tuple[Array, Any]:
        """(stream [B, N, C], state of the mixer after it)."""
        cfg = self.config
        inner, outer = _inits(cfg)
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

        y, state = attend(norm(x, "attn_norm", before), state, context)
        x = x + drop(norm(y, "attn_out_norm", cfg.norm_position == "sandwich"))
        x = norm(x, "attn_norm", not before)
        y = mlp(norm(x, "mlp_norm", before), self.train)
        x = x + norm(y, "mlp_out_norm", cfg.norm_position == "sandwich")
        x = norm(x, "mlp_norm", not before)
        return with_logical_constraint(x, ("batch", _length(x.shape[1]), "embed")), state


class Table(nn.Module):
    """An embedding [rows, channels] to be looked up, or multiplied with."""

    rows: int
    channels: int

    @nn.compact
    def __call__(self) -> Float[Array, "rows channels"]:
        # Loaded weights may be numpy's, which a traced index cannot look up.
        return jnp.asarray(self.param("embedding", NORMAL, (self.rows, self.channels)))


class Head(nn.Module):
    """Logits of the vocabulary, float32."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b C"]) -> Float[Array, "*b V"]:
        inner, _ = _inits(self.config)
        return project(x, jnp.asarray(self.param("kernel", inner, (self.config.width, self.config.vocab_size))))


def project(x: Float[Array, "*b C"], kernel: Float[Array, "C V"]) -> Float[Array, "*b V"]:
    """x kernel, multiplied in x's dtype, added up in float32."""
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    return dot_general(x, kernel.astype(x.dtype), numbers, preferred_element_type=jnp.float32)


def sinusoids(positions: Int[Array, "B N"], width: int) -> Float[Array, "B N C"]:
    """`flashjax.layers.positions.sinusoidal` at given positions."""
    angles = positions.astype(jnp.float32)[..., None] * 10000.0 ** -(jnp.arange(0, width, 2) / width)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(*positions.shape, width)


class Transformer(nn.Module):
    """Tokens to logits (`__call__`), and token by token with a cache (`prefill`, `step`).

    When training, randomness comes from the stream "dropout".
    """

    config: TransformerConfig

    def __call__(self, tokens: Tokens, segment_ids: Tokens | None = None, train: bool = False) -> Float[Array, "B N V"]:
        """Float32 logits; in a decoder, those at i are of token i + 1.

        `segment_ids` numbers the documents of a packed row from 1, 0 is padding: a token sees its own document, whose
        positions begin at 0.

        Raises ValueError for more tokens than learned positions.
        """
        positions = jnp.arange(tokens.shape[1])[None] if segment_ids is None else positions_of(segment_ids)
        return self._run(tokens, None, {"positions": positions, "segment_ids": segment_ids}, "full", train)[0]

    @nn.nowrap
    def init_cache(self, batch: int, capacity: int) -> Cache:
        """What a decoder of `batch` rows remembers before the first token; room for `capacity` tokens.

        Raises ValueError for an encoder, and for a capacity beyond learned positions.
        """
        cfg = self.config
        if not cfg.causal:
            raise ValueError("an encoder (causal=False) sees all tokens at once: it cannot decode")
        self._check_length(capacity, "a cache of capacity")
        layers = [self._layer_state(batch, capacity, last=i == cfg.depth - 1) for i in range(cfg.depth)]
        position = jnp.zeros((batch,), jnp.int32)
        if cfg.scan_layers:
            return {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers), "position": position}
        return {f"layer_{i}": state for i, state in enumerate(layers)} | {"position": position}

    @nn.nowrap
    def _layer_state(self, batch: int, capacity: int, last: bool) -> Any:
        cfg, mixer = self.config, self.config.make_mixer(last)
        heads = cfg.group if mixer.grouped else cfg.heads
        # The cache of keys and values is as large as a model: it is kept in the compute dtype.
        dtype = {"dtype": jnp.dtype(cfg.dtype)} if mixer.name == "softmax" else {}
        state = {"mixer": mixer.initial_state(batch, heads, cfg.dim, cfg.dim, capacity, **dtype)}
        for name, width in (("query_conv", cfg.heads), ("key_conv", cfg.group), ("value_conv", cfg.group)):
            if mixer.short_conv:
                state[name] = jnp.zeros((batch, mixer.short_conv - 1, width * cfg.dim), cfg.dtype)
        return state

    def prefill(self, tokens: Tokens, lengths: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Prompts, padded behind to one length, into an empty cache: (logits at each one's last token, cache)."""
        positions = jnp.arange(tokens.shape[1])[None]
        valid = positions < lengths[:, None]
        context = {"positions": positions, "segment_ids": None, "valid": valid}
        logits, cache = self._run(tokens, cache, context, "prefill")
        return logits, cache | {"position": lengths.astype(jnp.int32)}

    def step(self, tokens: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """One token more in each row: (logits of the next one, cache)."""
        position = cache["position"]
        context = {"positions": position[:, None], "segment_ids": None}
        logits, cache = self._run(tokens[:, None], cache, context, "step")
        return logits, cache | {"position": position + 1}

    @nn.nowrap
    def _check_length(self, length: int, what: str) -> None:
        cfg = self.config
        if cfg.position == "learned" and length > cfg.max_length:
            raise ValueError(f"{what} {length} but there are {cfg.max_length} learned positions: raise max_length")

    @nn.compact
    def _run(
        self, tokens: Tokens, cache: Cache | None, context: dict[str, Any], mode: Mode, train: bool = False
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
                x = x + sinusoids(context["positions"], cfg.width).astype(x.dtype)
            case "alibi":
                bias = AlibiBias(jnp.asarray(alibi_slopes(cfg.heads)))
            case "t5":
                table = Table(cfg.t5_buckets, cfg.heads, name="position")()
                bias = BucketBias(table, bidirectional=not cfg.causal, max_distance=cfg.t5_max_distance)
        x = nn.Dropout(cfg.dropout_rate, deterministic=not train)(x)
        x = with_logical_constraint(x, ("batch", _length(N), "embed"))
        context = {"valid": None, "bias": bias, **context}

        block = Block
        if cfg.remat != "none":
            block = nn.remat(Block, policy=_POLICIES[cfg.remat], prevent_cse=not cfg.scan_layers)
        new: Cache = {}
        if cfg.scan_layers:
            layers = nn.scan(
                block,
                variable_axes={True: 0},
                split_rngs={True: True},
                in_axes=(0, nn.broadcast),  # type: ignore[arg-type]
                length=cfg.depth,
            )
            x, new["layers"] = layers(cfg, mode, train, name="layers")(x, (cache or {}).get("layers"), context)
        else:
            for i in range(cfg.depth):
                layer = block(cfg, mode, train, i == cfg.depth - 1, name=f"layer_{i}")
                x, new[f"layer_{i}"] = layer(x, (cache or {}).get(f"layer_{i}"), context)
        if cfg.norm_position != "post":
            x = _norm(cfg, "final_norm")(x)
        if mode == "prefill":
            x = x[jnp.arange(x.shape[0]), jnp.maximum(context["valid"].sum(1), 1) - 1]
        elif mode == "step":
            x = x[:, 0]
        logits = project(x, embed.T) if cfg.tie_embeddings else Head(cfg, name="head")(x)
        return with_logical_constraint(logits, ("batch", *(_length(N),) * (x.ndim - 2), "vocab")), new


def _variants() -> dict[str, TransformerConfig]:
    """Public models, under the names that their authors gave them."""
    replace = dataclasses.replace
    gpt2 = TransformerConfig()
    llama = TransformerConfig(
        activation="swiglu",
        norm="rmsnorm",
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        position="rope",
        tie_embeddings=False,
        initializer="normal",
    )
    smollm2 = replace(
        llama, vocab_size=49152, rope=RopeParameters(rope_theta=1e5), max_length=8192, tie_embeddings=True
    )
    qwen2 = replace(llama, vocab_size=151936, norm_epsilon=1e-6, qkv_bias=True, rope=RopeParameters(rope_theta=1e6))
    qwen3 = replace(qwen2, qkv_bias=False, qk_norm="both", head_dim=128, max_length=40960)
    base = TransformerConfig(vocab_size=32000, activation="gelu", position="sinusoidal", max_length=8192)
    return {
        "gpt2": gpt2,
        "gpt2_medium": replace(gpt2, width=1024, depth=24, heads=16),
        "gpt2_large": replace(gpt2, width=1280, depth=36, heads=20),
        "gpt2_xl": replace(gpt2, width=1600, depth=48, heads=25),
        # The baselines of FLASH (Hua et al. 2022).
        "transformer_base": base,
        "transformer_pp_base": replace(base, position="rope", activation="geglu", hidden=2048),
        "llama2_7b": replace(llama, vocab_size=32000, width=4096, depth=32, heads=32, hidden=11008, max_length=4096),
        "llama3_2_1b": replace(
            llama,
            vocab_size=128256,
            width=2048,
            depth=16,
            heads=32,
            kv_heads=8,
            hidden=8192,
            max_length=131072,
            tie_embeddings=True,
            rope=RopeParameters(
                rope_type="llama3",
                rope_theta=5e5,
                factor=32.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
        ),
        "tinyllama_1b": replace(
            llama, vocab_size=32000, width=2048, depth=22, heads=32, kv_heads=4, hidden=5632, max_length=2048
        ),
        "smollm2_135m": replace(smollm2, width=576, depth=30, heads=9, kv_heads=3, hidden=1536),
        "smollm2_360m": replace(smollm2, width=960, depth=32, heads=15, kv_heads=5, hidden=2560),
        "qwen2_0_5b": replace(
            qwen2, width=896, depth=24, heads=14, kv_heads=2, hidden=4864, max_length=131072, tie_embeddings=True
        ),
        "qwen3_0_6b": replace(qwen3, width=1024, depth=28, heads=16, kv_heads=8, hidden=3072, tie_embeddings=True),
        "qwen3_1_7b": replace(qwen3, width=2048, depth=28, heads=16, kv_heads=8, hidden=6144, tie_embeddings=True),
    }


register(Transformer, _variants())
