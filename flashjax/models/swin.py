"""Swin Transformer and Swin Transformer V2.

Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (arXiv 2103.14030),
and Liu et al. 2022, "Swin Transformer V2: Scaling Up Capacity and Resolution" (arXiv 2111.09883). Where the
papers are silent the official code decides: its classifier, and its detection backbone for what that refuses.

Shapes: B batch; H, W map of a stage; C channels of a stage; M window side; N = M*M tokens of a window; L windows of a
map; h heads; d = C/h channels of a head; K classes.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Num

from flashjax.layers.drop_path import DropPath
from flashjax.layers.initializers import KERNELS, NORMAL, torch_uniform
from flashjax.layers.mlp import Mlp
from flashjax.layers.norm import LayerNorm
from flashjax.layers.watched import is_watched, show_logits
from flashjax.models.registry import register
from flashjax.models.widths import at_ratio
from flashjax.ops import paired_windows as paired
from flashjax.ops import windows as win
from flashjax.ops.dense import dot_general
from flashjax.ops.loop import KEPT, in_turns, keep
from flashjax.ops.platform import traced_for
from flashjax.ops.resize import resize_bicubic

Images = Num[Array | np.ndarray, "B height width chans"]


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """The official arguments of Swin (version 1) and Swin V2 (version 2)."""

    img_size: int | tuple[int, int] = 224
    """Image side, or (height, width), that parameter shapes are made for; other sizes work too."""
    patch_size: int = 4
    """Side of a patch in pixels."""
    in_chans: int = 3
    """Channels of an image."""
    num_classes: int = 1000
    """Classes; 0 returns the pooled features instead of logits."""
    embed_dim: int = 96
    """Channels of the first stage; each later stage has twice as many."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage."""
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    window_size: int = 7
    """Window side in tokens. A stage whose map (at img_size) is smaller takes the map's shorter side instead."""
    mlp_ratio: float = 4.0
    """Inner width of the MLP over its outer width."""
    qkv_bias: bool = True
    """Bias on queries, keys and values (version 2: queries and values)."""
    drop_rate: float = 0.0
    """Dropout after the patch embedding, the attention projection and both layers of the MLP."""
    attn_drop_rate: float = 0.0
    """Dropout of attention weights."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block; blocks before it rise linearly from 0."""
    ape: bool = False
    """Adds a learned absolute position embedding to the patches."""
    patch_norm: bool = True
    """Normalises the patch embedding."""
    version: int = 1
    """1 for Swin, 2 for Swin V2 (post-norm, cosine attention, log-spaced continuous bias)."""
    pretrained_window_sizes: tuple[int, ...] = (0, 0, 0, 0)
    """Version 2: the window of each stage in pre-training, 0 where it is this one."""
    strict_img_size: bool = False
    """Refuses images of any other size than img_size, as the official classifier does."""
    always_partition: bool = False
    """Never shrinks a window or drops a shift on small maps but pads them, as the official detection backbone does."""
    feature_norms: bool = False
    """Makes a pyramid backbone: a norm on the features of each stage, no final norm, no head."""
    attention: Literal["auto", "windows", "paired"] = "auto"
    """How attention is laid out; the function is the same. windows: one by one, tokens before channels. paired: two by
    two in one product, channels before tokens (`flashjax.ops.paired_windows`). auto: paired where the step is for TPUs
    and attn_drop_rate is 0, windows elsewhere (on a CPU they are faster)."""
    blocks: Literal["apart", "looped"] = "apart"
    """How the blocks of a stage are compiled; the function is the same. apart: each for itself. looped: by pairs, as
    turns of one loop, in stages of four or more: less to compile, but norms are computed again and parameters copied.
    Where features are dropped or watched blocks are apart in any case."""
    remat: bool = False
    """Recomputes each block in the backward pass instead of keeping its activations."""
    dtype: str = "float32"
    """Compute dtype, float32 or bfloat16; softmax, norms and logits are float32 in any case."""
    initializer: str = "normal"
    """Kernels at the start: normal (deviation .02, the paper's) or fan_in (for narrow models)."""

    def __post_init__(self):
        if len(self.num_heads) != len(self.depths):
            raise ValueError(f"num_heads {self.num_heads} and depths {self.depths} must name the same stages")
        for i, heads in enumerate(self.num_heads):
            if self.dim(i) % heads:
                raise ValueError(f"stage {i}: {self.dim(i)} channels do not divide into {heads} heads")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
        if self.attention not in ("auto", "windows", "paired"):
            raise ValueError(f"attention must be auto, windows or paired, got {self.attention!r}")
        if self.blocks not in ("apart", "looped"):
            raise ValueError(f"blocks must be apart or looped, got {self.blocks!r}")
        if self.attention == "paired" and self.attn_drop_rate:
            raise ValueError(
                f"attn_drop_rate {self.attn_drop_rate} needs weights that paired attention does not keep: use "
                "attention='windows', or 0"
            )
        if self.version not in (1, 2):
            raise ValueError(f"version must be 1 or 2, got {self.version}")
        if self.version == 2 and len(self.pretrained_window_sizes) != len(self.depths):
            sizes = self.pretrained_window_sizes
            raise ValueError(f"pretrained_window_sizes {sizes} must name {len(self.depths)} stages")
        if self.initializer not in KERNELS:
            raise ValueError(f"unknown initializer {self.initializer!r}; choose from {sorted(KERNELS)}")

    def dim(self, stage: int) -> int:
        """Channels of a stage."""
        return self.embed_dim * 2**stage

    @property
    def image_shape(self) -> tuple[int, int]:
        """img_size as (height, width)."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    def stage_size(self, stage: int) -> tuple[int, int]:
        """Height and width of a stage's map for an image of img_size."""
        height, width = (-(-side // (self.patch_size * 2**stage)) for side in self.image_shape)
        return height, width

    def stage_window(self, stage: int) -> int:
        """The window that a stage's parameters are made for: shrunk to its map at img_size, unless always_partition."""
        if self.always_partition:
            return self.window_size
        return min(self.window_size, *self.stage_size(stage))

    @property
    def head_width(self) -> int | None:
        """Channels of a head, where all stages have as many (asked by `flashjax.training.parametrization`)."""
        widths = {self.dim(i) // heads for i, heads in enumerate(self.num_heads)}
        return widths.pop() if len(widths) == 1 else None

    @property
    def logit_power(self) -> float | None:
        """p of q.k / d^p; version 2 takes cosines."""
        return 0.5 if self.version == 1 else None

    def at_width(self, width: int, keep: Literal["head_dim", "heads"] = "head_dim") -> "SwinConfig":
        """The same model with other channels in its first stage, with heads as wide, or with as many heads.

        Raises ValueError where heads would be no whole numbers.
        """
        heads = self.num_heads
        if keep == "head_dim":
            heads = tuple(at_ratio("num_heads", count, width, self.embed_dim) for count in heads)
        return dataclasses.replace(self, embed_dim=width, num_heads=heads)

    @property
    def pairs_windows(self) -> bool:
        """Whether attention is paired, on the platform that is traced for."""
        if self.attention == "auto":
            return traced_for() == "tpu" and not self.attn_drop_rate
        return self.attention == "paired"

    def loops(self, stage: int, train: bool) -> bool:
        """Whether the blocks of a stage are turns of a loop."""
        depth = self.depths[stage]
        dropping = train and (self.drop_rate or self.attn_drop_rate)
        return self.blocks == "looped" and depth >= 4 and depth % 2 == 0 and not dropping

    def plain(self) -> "SwinConfig":
        """The same function without what a layout or recomputation adds to its FLOPs."""
        return dataclasses.replace(self, attention="windows", blocks="apart", remat=False)

    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of every block, first to last."""
        return tuple(float(rate) for rate in np.linspace(0, self.drop_path_rate, sum(self.depths)))


def _dense(config: SwinConfig, features: int, name: str, use_bias: bool = True) -> nn.Dense:
    options: Any = {"dtype": config.dtype, "kernel_init": KERNELS[config.initializer], "dot_general": dot_general}
    return nn.Dense(features, use_bias=use_bias, name=name, **options)


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: a strided convolution, written as the one matrix product that it is."""

    config: SwinConfig

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "B H W C"]:
        cfg = self.config
        p, c = cfg.patch_size, cfg.in_chans
        pixels = win.pad_to_multiple(jnp.asarray(images, cfg.dtype), p)
        B, height, width, _ = pixels.shape
        patches = pixels.reshape(B, height // p, p, width // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(B, height // p, width // p, p * p * c)
        x = PatchProjection(cfg, name="proj")(patches)
        return LayerNorm(dtype=cfg.dtype, name="norm")(x) if cfg.patch_norm else x


class PatchProjection(nn.Module):
    """The parameters of the patch convolution, kept in a convolution's layout [p, p, chans, C]."""

    config: SwinConfig

    @nn.compact
    def __call__(self, patches: Float[Array, "B H W in"]) -> Float[Array, "B H W C"]:
        cfg = self.config
        init = torch_uniform(patches.shape[-1])  # official code leaves the convolution at torch's default
        kernel = self.param("kernel", init, (cfg.patch_size, cfg.patch_size, cfg.in_chans, cfg.embed_dim))
        bias = self.param("bias", init, (cfg.embed_dim,))
        return patches @ kernel.reshape(-1, cfg.embed_dim).astype(cfg.dtype) + bias.astype(cfg.dtype)


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
            q, k = _unit(q), _unit(k)
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
        weights = jax.nn.softmax(logits, axis=-1).astype(cfg.dtype)
        weights = nn.Dropout(cfg.attn_drop_rate, deterministic=not train)(weights)
        x = jnp.einsum("BLhnm,BLmhd->BLnhd", weights, v).reshape(B, L, N, C)
        x = keep(_dense(cfg, C, "proj")(x))
        return nn.Dropout(cfg.drop_rate, deterministic=not train)(x)

    def project(self, x: Float[Array, "B L N C"]) -> Float[Array, "B L N three_C"]:
        """Queries, keys and values side by side."""
        cfg, C = self.config, x.shape[-1]
        if cfg.version == 1:
            return _dense(cfg, 3 * C, "qkv", use_bias=cfg.qkv_bias)(x)
        qkv = _dense(cfg, 3 * C, "qkv", use_bias=False)(x)
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


class PairedAttention(WindowAttention):
    """`WindowAttention` with the same parameters, of rectangles of windows (`flashjax.ops.paired_windows`)."""

    window: int = 7
    """Side of a window."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L N C"], mask: Float[Array, "L N N"] | None = None, train: bool = False
    ) -> Float[Array, "B L N C"]:
        cfg, (B, L, N, C) = self.config, x.shape
        kernel, bias = Kernel(cfg, 3 * C, use_bias=cfg.qkv_bias and cfg.version == 1, name="qkv")(C)
        if cfg.version == 2 and cfg.qkv_bias:
            bias = self.version_2_bias(C)

        def head_maps(i: int) -> Float[Array, "B L h d N"]:
            columns = slice(i * C, (i + 1) * C)
            mapped = jnp.einsum("BLNC,Ck->BLkN", x, kernel[:, columns].astype(cfg.dtype))
            mapped = keep(mapped + bias[columns, None].astype(cfg.dtype))
            return mapped.reshape(B, L, self.heads, C // self.heads, N)

        q, k, v = map(head_maps, range(3))
        scale: Any = 1.0  # version 1 has it in q
        if cfg.version == 1:
            q = q * (C // self.heads) ** -0.5
        else:
            q, k, scale = _unit(q, -2), _unit(k, -2), self.logit_scale()
        show_logits(self, jnp.moveaxis(q, -1, 2), jnp.moveaxis(k, -1, 2), scale)
        if cfg.version == 2:
            q = (q.astype(jnp.float32) * scale).astype(q.dtype)
        count = N // self.window**2
        logit_bias = paired.position_bias(self.bias_table(), self.window, cfg.stage_window(self.stage), count)
        mixed = paired.attend(q, k, v, logit_bias if mask is None else logit_bias + mask[:, None]).reshape(B, L, C, N)
        kernel, bias = Kernel(cfg, C, name="proj")(C)
        out = jnp.einsum("BLkN,kC->BLNC", mixed, kernel.astype(cfg.dtype)) + bias.astype(cfg.dtype)
        return nn.Dropout(cfg.drop_rate, deterministic=not train)(keep(out))


class Kernel(nn.Module):
    """The parameters of a `_dense` whose product is written elsewhere."""

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


def _unit(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """x over its length (at least 1e-12, as torch's normalize), in float32; a zero vector has a zero gradient."""
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))).astype(x.dtype)


class SwinBlock(nn.Module):
    """Two residual branches: attention in (shifted) windows, then an MLP.

    Version 1 normalises what enters a branch (paper equation 3), version 2 what leaves it (V2 section 3.2).
    """

    config: SwinConfig
    stage: int
    shifted: bool
    drop_path: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False, drawn: Sequence[Float[Array, "B 1 1 1"]] | None = None
    ) -> Float[Array, "B H W C"]:
        """`drawn`: what stochastic depth multiplies the two branches by, where it is not to be drawn here."""
        cfg = self.config
        # Version 2 starts with both branches at zero.
        norm = functools.partial(
            LayerNorm, dtype=cfg.dtype, scale_init=nn.initializers.ones if cfg.version == 1 else nn.initializers.zeros
        )
        norm1, norm2 = norm(name="norm1"), norm(name="norm2")
        mlp = Mlp(int(cfg.mlp_ratio * x.shape[-1]), cfg.drop_rate, cfg.dtype, KERNELS[cfg.initializer], name="mlp")
        drop_path, factors = DropPath(self.drop_path), iter(drawn or ())
        kept = lambda branch: drop_path(branch, train) if drawn is None else branch * next(factors)  # noqa: E731
        if cfg.version == 1:
            x = x + kept(self.attend(norm1(x), train))
            x = x + kept(mlp(norm2(x), train))
        else:
            x = x + kept(norm1(self.attend(x, train)))
            x = x + kept(norm2(mlp(x, train)))
        return with_logical_constraint(x, ("batch", "height", "width", "embed"))

    def attend(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        """Pad, shift, cut into windows, attend, and undo the three (official detection backbone)."""
        cfg = self.config
        H, W = x.shape[1:3]
        window = cfg.stage_window(self.stage)
        shift = window // 2 if self.shifted else 0
        if not cfg.always_partition and min(H, W) <= window:  # the whole map in one window, or a row of them
            window, shift = min(H, W), 0
        x = win.pad_to_multiple(x, window)
        size = x.shape[1], x.shape[2]
        if cfg.pairs_windows:
            return self.attend_paired(x, size, window, shift, train)[:, :H, :W]
        x = win.window_partition(win.cyclic_shift(x, shift), window)
        x = with_logical_constraint(x, ("batch", "window", "token", "embed"))
        mask = win.shift_mask(size, window, shift) if shift else None
        x = WindowAttention(cfg, self.stage, name="attn")(x, mask, train)
        x = win.cyclic_shift(win.window_reverse(x, window, size), -shift)
        return x[:, :H, :W]

    def attend_paired(
        self, x: Float[Array, "B H W C"], size: tuple[int, int], window: int, shift: int, train: bool
    ) -> Float[Array, "B H W C"]:
        """Shift, cut into rectangles of windows, attend, and undo both."""
        count = paired.together(size, window)
        x = paired.partition(x, window, count, shift)
        x = with_logical_constraint(x, ("batch", "window", "token", "embed"))
        mask = win.shift_mask(size, window, shift, count) if shift else None
        x = PairedAttention(self.config, self.stage, window, name="attn")(x, mask, train)
        return paired.reverse(x, window, count, shift, size)


class PatchMerging(nn.Module):
    """Halves a map: 2x2 neighbours side by side (4C channels), then a projection to 2C.

    Version 1 normalises before the projection, version 2 after it. Odd maps get a row or column of zeros first.
    """

    config: SwinConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w two_C"]:
        cfg, C = self.config, x.shape[-1]
        x = win.pad_to_multiple(x, 2)
        B, H, W, _ = x.shape
        # The official order of neighbours goes down the column first: (0,0), (1,0), (0,1), (1,1).
        x = x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 4, 2, 5).reshape(B, H // 2, W // 2, 4 * C)
        norm, reduction = LayerNorm(dtype=cfg.dtype, name="norm"), _dense(cfg, 2 * C, "reduction", use_bias=False)
        return reduction(norm(x)) if cfg.version == 1 else norm(reduction(x))


class SwinStage(nn.Module):
    """Blocks on one resolution, every second one shifted, then the merging that leads to the next."""

    config: SwinConfig
    stage: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B h w two_C"]]:
        """The features of this stage and what enters the next (after the last stage, the features themselves)."""
        cfg = self.config
        first = sum(cfg.depths[: self.stage])
        rates = cfg.drop_path_rates()[first : first + cfg.depths[self.stage]]
        if cfg.loops(self.stage, train) and not self.is_initializing() and not is_watched(self):
            x = self.loop(x, rates, train)
        else:
            block = nn.remat(SwinBlock, static_argnums=(2,)) if cfg.remat else SwinBlock
            for j, rate in enumerate(rates):
                x = block(cfg, self.stage, shifted=j % 2 == 1, drop_path=rate, name=f"block_{j}")(x, train)
        if self.stage == len(cfg.depths) - 1:
            return x, x
        return x, PatchMerging(cfg, name="downsample")(x)

    def loop(self, x: Float[Array, "B H W C"], rates: Sequence[float], train: bool) -> Float[Array, "B H W C"]:
        """The blocks, a pair in each turn, with the draws that they would make themselves."""
        cfg, params = self.config, self.variables["params"]
        blocks = [
            (
                params[f"block_{j}"],
                BranchFactors(rate, name=f"block_{j}")(x.shape[0], cfg.dtype) if train else None,
            )
            for j, rate in enumerate(rates)
        ]

        def pair(x: Array, own: tuple[Any, ...]) -> Array:
            for shifted, (params, drawn) in zip((False, True), own, strict=True):
                block = SwinBlock(cfg, self.stage, shifted=shifted, drop_path=0.0, parent=None)
                x = block.apply({"params": params}, x, train, drawn)  # type: ignore[assignment]
            return x

        return in_turns(pair, x, blocks, each=2, names=() if cfg.remat else (KEPT,))


class BranchFactors(nn.Module):
    """What stochastic depth multiplies the two branches of the block of the same name by."""

    rate: float

    @nn.compact
    def __call__(self, rows: int, dtype: Any) -> tuple[Float[Array, "B 1 1 1"], Float[Array, "B 1 1 1"]]:
        drop_path = DropPath(self.rate)
        return drop_path.factor(rows, 4, dtype), drop_path.factor(rows, 4, dtype)


class SwinTransformer(nn.Module):
    """Images to logits (`__call__`) or to the pyramid of features of all stages (`method="features"`).

    When training, randomness comes from the streams "drop_path" and "dropout".
    """

    config: SwinConfig

    def setup(self):
        cfg = self.config
        stages = range(len(cfg.depths))
        self.patch_embed = PatchEmbed(cfg)
        if cfg.ape:
            height, width = cfg.stage_size(0)
            self.absolute_pos_embed = self.param("absolute_pos_embed", NORMAL, (1, height * width, cfg.embed_dim))
        self.pos_drop = nn.Dropout(cfg.drop_rate)
        self.stage = [SwinStage(cfg, i) for i in stages]
        if cfg.feature_norms:
            self.feature_norm = [LayerNorm(dtype=cfg.dtype) for _ in stages]
            return
        self.norm = LayerNorm()
        if cfg.num_classes:
            self.head = nn.Dense(cfg.num_classes, kernel_init=KERNELS[cfg.initializer])

    def __call__(self, images: Images, train: bool = False) -> Float[Array, "B K"]:
        """Float32 logits, or the pooled features where num_classes is 0.

        Raises ValueError for a pyramid backbone (`feature_norms`), and for another size than img_size where
        `strict_img_size` is set.
        """
        if self.config.feature_norms:
            raise ValueError("feature_norms=True makes a backbone without a head; call it with method='features'")
        x = self.norm(self._stages(images, train)[-1]).mean((1, 2))
        return self.head(x) if self.config.num_classes else x

    def features(self, images: Images, train: bool = False) -> list[Array]:
        """The map [B, H, W, C] that leaves each stage before its merging, normalised if `feature_norms` is set."""
        pyramid = self._stages(images, train)
        if not self.config.feature_norms:
            return pyramid
        return [norm(x) for norm, x in zip(self.feature_norm, pyramid, strict=True)]

    def _stages(self, images: Images, train: bool) -> list[Array]:
        cfg = self.config
        if cfg.strict_img_size and images.shape[1:3] != cfg.image_shape:
            raise ValueError(
                f"images of {images.shape[1:3]} but img_size is {cfg.image_shape}: pass img_size, "
                "or strict_img_size=False to pad"
            )
        x = self.patch_embed(images)
        if cfg.ape:
            x = x + self._positions(x.shape[1], x.shape[2]).astype(x.dtype)
        x = self.pos_drop(x, deterministic=not train)
        x = with_logical_constraint(x, ("batch", "height", "width", "embed"))
        pyramid = []
        for stage in self.stage:
            features, x = stage(x, train)
            pyramid.append(features)
        return pyramid

    def _positions(self, H: int, W: int) -> Float[Array, "H W C"]:
        positions = self.absolute_pos_embed.reshape(*self.config.stage_size(0), -1)
        return positions if positions.shape[:2] == (H, W) else resize_bicubic(positions, (H, W))


def _variants() -> dict[str, SwinConfig]:
    """The published models (configs of the official repository), under timm's names."""
    sizes = {
        "tiny": SwinConfig(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
        "small": SwinConfig(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
        "base": SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
        "large": SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
    }
    scratch = {"tiny": 0.2, "small": 0.3, "base": 0.5, "large": 0.2}  # stochastic depth, ImageNet-1k
    pretrain = {"tiny": 0.1, "small": 0.2, "base": 0.2, "large": 0.2}  # stochastic depth, ImageNet-22k
    replace = dataclasses.replace
    table: dict[str, SwinConfig] = {}
    for size, shape in sizes.items():
        for image, window in ((224, 7), (384, 12)):
            name = f"swin_{size}_patch4_window{window}_{image}"
            v1 = replace(shape, img_size=image, window_size=window, drop_path_rate=scratch[size])
            table[name] = v1
            table[f"{name}_22k"] = replace(v1, drop_path_rate=pretrain[size], num_classes=21841)
        v2 = replace(shape, version=2, drop_path_rate=scratch[size])
        if size != "large":
            table[f"swinv2_{size}_window8_256"] = replace(v2, img_size=256, window_size=8)
            table[f"swinv2_{size}_window16_256"] = replace(v2, img_size=256, window_size=16)
        if size in ("base", "large"):
            v2 = replace(v2, drop_path_rate=pretrain[size])
            name = f"swinv2_{size}_window12"
            table[f"{name}_192_22k"] = replace(v2, img_size=192, window_size=12, num_classes=21841)
            v2 = replace(v2, pretrained_window_sizes=(12, 12, 12, 6))
            table[f"{name}to16_192to256"] = replace(v2, img_size=256, window_size=16)
            table[f"{name}to24_192to384"] = replace(v2, img_size=384, window_size=24)
    # The tiny model with narrow heads that the official repository compares with Swin-MLP.
    table["swin_tiny_c24_patch4_window8_256"] = replace(
        sizes["tiny"], img_size=256, window_size=8, num_heads=(4, 8, 16, 32), drop_path_rate=scratch["tiny"]
    )
    return table


register(SwinTransformer, _variants())
