"""Attention of a Transformer's block: projections around a mixer, in training and in decoding.

Shapes as in `transformer.py`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float

from flashjax.layers.attention import Mixer
from flashjax.layers.attention.softmax import Softmax
from flashjax.layers.extended_attention import attend, attend_cached, keys_to_keep
from flashjax.layers.extension import log_n
from flashjax.layers.norm import RMSNorm, unit
from flashjax.layers.positions import turned
from flashjax.layers.short_conv import ShortConv
from flashjax.layers.watched import show_logits
from flashjax.models.stack import Context, Mode, length_name
from flashjax.models.transformer_config import TransformerConfig
from flashjax.ops.dense import dot_general


class Attention(nn.Module):
    """Projections around a mixer, and what a mixer asks of its block."""

    config: TransformerConfig
    mode: Mode = "full"
    train: bool = False
    last: bool = False

    def setup(self):
        cfg, mixer = self.config, self.mixer
        inner, outer = cfg.initializers
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

    def __call__(self, x: Float[Array, "B N C"], state: Any, context: Context) -> tuple[Array, Any]:
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
            k = unit(k, least=1e-12) * math.sqrt(cfg.dim)
        if mixer.unit_queries:
            q, k = unit(q, least=1e-12), unit(k, least=1e-12)
        if cfg.extension.kind != "none":
            o, new_state["mixer"] = self._extended(q, k, v, state, context)
            o = o.astype(cfg.dtype).reshape(B, N, cfg.heads * cfg.dim)
            return self.out(o), (None if self.mode == "full" else new_state)
        placed = not (self.last and cfg.full_last)
        if cfg.position == "rope" and placed:
            q, k = (turned(y, context["turn"]) for y in (q, k))
        if cfg.extension.log_n != "none" and (self.last or not cfg.full_last):
            seen = _seen(cfg, getattr(mixer, "window", 0), context["positions"], context["segment_ids"])
            q = (q * log_n(cfg.extension, seen)[..., None, None]).astype(q.dtype)
        if not mixer.grouped and cfg.group != cfg.heads:
            k, v = (jnp.repeat(y, cfg.heads // cfg.group, axis=2) for y in (k, v))
        names = ("batch", length_name(N), "heads", None)
        q, k, v = (with_logical_constraint(y, names) for y in (q, k, v))
        if isinstance(mixer, Softmax):
            show_logits(self, q, k, mixer.scale or cfg.dim**-0.5)

        inputs = dict(self.inputs(x)) if self.has_inputs else {}
        if context["bias"] is not None and placed:
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

    def _extended(self, q: Array, k: Array, v: Array, state: Any, context: Context):
        """(attention by `extension`, the mixer's state after it: its keys are `keys_to_keep`)."""
        cfg, mixer, (B, N) = self.config, self.mixer, q.shape[:2]
        assert isinstance(mixer, Softmax)  # the configuration has no extension of others
        positions, ids = jnp.broadcast_to(context["positions"], (B, N)), context["segment_ids"]
        rope = cfg.rope if cfg.position == "rope" else None
        scale, new = mixer.scale or None, None
        length = N if context["length"] is None else context["length"]
        if self.mode != "full":
            kept = keys_to_keep(k, positions, rope, cfg.extension, length)
        if self.mode == "step":
            new = mixer.append(state["mixer"], kept[:, 0], v[:, 0])
            values = new["value"].astype(v.dtype)
            at = positions[:, 0]
            o = attend_cached(q[:, 0], new["key"], values, at, rope, cfg.extension, length=length, scale=scale)
            return o[:, None], new
        valid = jnp.ones((B, N), bool)
        if self.mode == "prefill":
            valid, new = context["valid"], mixer.fill(kept, v, context["valid"], state["mixer"])
        names = ("batch", length_name(N), "heads", None)
        q, k, v = (with_logical_constraint(y, names) for y in (q, k, v))
        arguments: Any = {"q_segment_ids": ids, "k_segment_ids": ids, "length": length, "scale": scale}
        return attend(q, k, v, positions, positions, valid, rope, cfg.extension, cfg.causal, **arguments), new

    def _conv(self, conv: ShortConv, x: Array, state: Any, segment_ids: Any, valid: Any) -> tuple[Array, Any]:
        y, state = conv(x, segment_ids, state, valid)
        return jax.nn.silu(y), state


def _seen(cfg: TransformerConfig, window: int, positions: Array, segment_ids: Array | None) -> Array:
    """How many keys each query sees, [B or 1, N]."""
    if cfg.causal:
        return jnp.minimum(positions + 1, window) if window else positions + 1
    ids = jnp.ones_like(positions) if segment_ids is None else segment_ids
    same = ids[:, :, None] == ids[:, None, :]
    if window:
        same &= jnp.abs(positions[:, :, None] - positions[:, None, :]) < window
    return same.sum(-1)
