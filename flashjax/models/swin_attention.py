"""Attention in the windows of a Swin Transformer: one by one, in pairs, or by a kernel.

Shapes: B batch; C channels of a stage; M window side; N = M*M tokens of a window; L windows of a map; h heads; d = C/h
channels of a head.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float

from flashjax.layers.initializers import KERNELS, NORMAL
from flashjax.layers.norm import unit
from flashjax.layers.watched import show_logits
from flashjax.models.swin_config import SwinConfig
from flashjax.ops import branch_kernels, window_kernel
from flashjax.ops import paired_windows as paired
from flashjax.ops import windows as win
from flashjax.ops.dense import dot_general, softmax
from flashjax.ops.loop import keep


def dense(config: SwinConfig, features: int, name: str, use_bias: bool = True) -> nn.Dense:
    """A dense layer as all of Swin's are: its initializer and dtype, tokens as one dim."""
    options: Any = {"dtype": config.dtype, "kernel_init": KERNELS[config.initializer], "dot_general": dot_general}
    return nn.Dense(features, use_bias=use_bias, name=name, **options)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a bias for relative positions (paper section 3.2, equation 4)."""

    config: SwinConfig
    stage: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L N C"], mask: Float[Array, "L N N"] | None = None, train: bool = False
    ) -> Float[Array, "B L N C"]:
        cfg, heads = self.config, self.heads
        B, L, N, C = x.shape
        qkv = keep(self.project(x)).reshape(B, L, N, 3, heads, C // heads)
        q, k, v = (qkv[..., i, :, :] for i in range(3))  # [B, L, N, h, d]
        if cfg.version == 1:
            q = q * (C // heads) ** -0.5
        else:
            q, k = unit(q), unit(k)
        logits = jnp.einsum("BLnhd,BLmhd->BLhnm", q, k, preferred_element_type=jnp.float32)
        scale: Any = 1.0  # version 1 has it in q
        if cfg.version == 2:
            scale = self.logit_scale()
            logits = logits * scale
        show_logits(self, q, k, scale)
        index = win.relative_position_index(math.isqrt(N), cfg.stage_window(self.stage))
        logits = logits + self.bias_table()[index].transpose(2, 0, 1)
        if mask is not None:
            logits = logits + mask[:, None]
        weights = softmax(logits).astype(cfg.dtype)
        weights = nn.Dropout(cfg.attn_drop_rate, deterministic=not train)(weights)
        x = jnp.einsum("BLhnm,BLmhd->BLnhd", weights, v).reshape(B, L, N, C)
        x = keep(dense(cfg, C, "proj")(x))
        return nn.Dropout(cfg.drop_rate, deterministic=not train)(x)

    def project(self, x: Float[Array, "B L N C"]) -> Float[Array, "B L N three_C"]:
        """Queries, keys and values side by side."""
        cfg, C = self.config, x.shape[-1]
        if cfg.version == 1:
            return dense(cfg, 3 * C, "qkv", use_bias=cfg.qkv_bias)(x)
        qkv = dense(cfg, 3 * C, "qkv", use_bias=False)(x)
        return qkv + self.version_2_bias(C).astype(qkv.dtype) if cfg.qkv_bias else qkv

    def version_2_bias(self, C: int) -> Float[Array, "three_C"]:
        """Of queries and values; version 2 gives keys none: it would cancel in the softmax."""
        q_bias = self.param("q_bias", nn.initializers.zeros, (C,))
        v_bias = self.param("v_bias", nn.initializers.zeros, (C,))
        return jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])

    def logit_scale(self) -> Float[Array, "h 1 1"]:
        """What version 2 multiplies cosines by: learned, at most 100."""
        scale = self.param("logit_scale", nn.initializers.constant(math.log(10)), (self.heads, 1, 1))
        return jnp.exp(jnp.minimum(scale, math.log(100)))

    def bias_table(self) -> Float[Array, "offsets h"]:
        """One bias for each head and offset between two tokens of a window."""
        cfg, window = self.config, self.config.stage_window(self.stage)
        if cfg.version == 1:
            return self.param("relative_position_bias_table", NORMAL, ((2 * window - 1) ** 2, self.heads))
        coords = win.log_relative_coords(window, cfg.pretrained_window_sizes[self.stage])
        return 16 * nn.sigmoid(BiasNetwork(cfg, self.heads, name="cpb_mlp")(jnp.asarray(coords)))

    @property
    def heads(self) -> int:
        return self.config.num_heads[self.stage]


class RectangleAttention(WindowAttention):
    """`WindowAttention` with the same parameters, of windows side by side in rectangles."""

    window: int = 7
    """Side of a window."""

    def projections(self, C: int) -> list[tuple[Float[Array, "C C"], Float[Array, "C"]]]:
        """(kernel, bias) of queries, of keys and of values, in the compute dtype; without a bias, zeros."""
        cfg = self.config
        kernel, bias = Kernel(cfg, 3 * C, use_bias=cfg.qkv_bias and cfg.version == 1, name="qkv")(C)
        if cfg.version == 2 and cfg.qkv_bias:
            bias = self.version_2_bias(C)
        # Gathered where fsdp splits it: its parts end elsewhere than the devices' shares, which would be exchanged.
        kernel = with_logical_constraint(kernel.astype(cfg.dtype), (None, "heads"))
        kernels, biases = jnp.split(kernel, 3, axis=1), jnp.split(bias.astype(cfg.dtype), 3)
        return list(zip(kernels, biases, strict=True))

    def rectangle_bias(self, count: int) -> Float[Array, "1 h N N"]:
        """What is added to the logits of a rectangle of `count` windows."""
        return paired.position_bias(self.bias_table(), self.window, self.config.stage_window(self.stage), count)


class PairedAttention(RectangleAttention):
    """Of rectangles cut out of a map (`flashjax.ops.paired_windows`)."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L C N"], mask: Float[Array, "L N N"] | None = None, train: bool = False
    ) -> Float[Array, "B L C N"]:
        cfg, (B, L, C, N) = self.config, x.shape
        q, k, v = (
            keep(jnp.einsum("BLCN,Ck->BLkN", x, kernel) + bias[:, None]).reshape(B, L, self.heads, C // self.heads, N)
            for kernel, bias in self.projections(C)
        )
        scale: Any = 1.0  # version 1 has it in q
        if cfg.version == 1:
            q = q * (C // self.heads) ** -0.5
        else:
            q, k, scale = unit(q, -2), unit(k, -2), self.logit_scale()
        show_logits(self, jnp.moveaxis(q, -1, 2), jnp.moveaxis(k, -1, 2), scale)
        if cfg.version == 2:
            q = (q.astype(jnp.float32) * scale).astype(q.dtype)
        logits = self.rectangle_bias(N // self.window**2)
        logits = logits if mask is None else logits + mask[:, None]
        mixed = paired.attend(q, k, v, logits).reshape(B, L, C, N)
        kernel, bias = Kernel(cfg, C, name="proj")(C)
        out = jnp.einsum("BLkN,kC->BLCN", mixed, kernel.astype(cfg.dtype)) + bias.astype(cfg.dtype)[:, None]
        return nn.Dropout(cfg.drop_rate, deterministic=not train)(keep(out))


class Branch(NamedTuple):
    """What is around attention in a block of version 1."""

    norm: tuple[Float[Array, "C"], Float[Array, "C"]]
    """Scale and bias."""
    factor: Float[Array, "B"]
    """What the branch is multiplied by: stochastic depth's draw."""


class KernelAttention(RectangleAttention):
    """Of a whole map, whose windows begin at its corner (`flashjax.ops.window_kernel`)."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        mask: Float[Array, "L N N"] | None = None,
        train: bool = False,
        branch: Branch | None = None,
    ) -> Float[Array, "B H W C"]:
        """With a `branch` the whole of it, x + factor * attention(norm(x)) (`flashjax.ops.branch_kernels`)."""
        cfg, heads, (_, H, W, C) = self.config, self.heads, x.shape
        width, projections = C // heads, self.projections(C)
        count = paired.together((H, W), self.window)
        rectangle = self.window, count * self.window
        if cfg.version == 1:
            kernel, offset = (window_kernel.joined(*parts, heads=heads) for parts in zip(*projections, strict=True))
            if branch is None:
                qkv = x @ kernel
            else:
                x, qkv = branch_kernels.normed_product(x, branch_kernels.NormedWeights(*branch.norm, kernel))
            qkv, scale = keep(qkv), width**-0.5
        else:
            q, k, v = (keep(x @ kernel + bias) for kernel, bias in projections)
            q, k = (unit(y.reshape(*y.shape[:-1], heads, width)) for y in (q, k))
            q = (q.astype(jnp.float32) * self.logit_scale()[:, 0]).astype(q.dtype)
            qkv, scale = window_kernel.joined(q.reshape(x.shape), k.reshape(x.shape), v, heads), 1.0
            offset = jnp.zeros(qkv.shape[-1], qkv.dtype)
        logits = self.rectangle_bias(count)
        mixed: Array = keep(window_kernel.attend(qkv, offset, logits, rectangle, width, scale, mask))
        kernel, bias = Kernel(cfg, C, name="proj")(C)
        kernel = with_logical_constraint(kernel.astype(cfg.dtype), ("heads", None))
        kernel = window_kernel.tiled(kernel.T, heads).T
        if branch is not None:
            weights = branch_kernels.AddedWeights(kernel, bias)
            return keep(branch_kernels.added_product(x, mixed, branch.factor, weights))
        out = keep(mixed @ kernel + bias.astype(cfg.dtype))
        return nn.Dropout(cfg.drop_rate, deterministic=not train)(out)


class Kernel(nn.Module):
    """The parameters of a `dense` whose product is written elsewhere."""

    config: SwinConfig
    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Float[Array, "in out"], Float[Array, "out"]]:
        """Kernel and bias; without one, zeros."""
        kernel = self.param("kernel", KERNELS[self.config.initializer], (inputs, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        return kernel, jnp.zeros(self.features) if bias is None else bias


class BiasNetwork(nn.Module):
    """V2's continuous position bias: a small float32 network from log-spaced offsets to one number for each head."""

    config: SwinConfig
    heads: int

    @nn.compact
    def __call__(self, coords: Float[Array, "offsets 2"]) -> Float[Array, "offsets h"]:
        init = KERNELS[self.config.initializer]
        x = nn.relu(nn.Dense(512, kernel_init=init, name="fc1")(coords))
        return nn.Dense(self.heads, use_bias=False, kernel_init=init, name="fc2")(x)
