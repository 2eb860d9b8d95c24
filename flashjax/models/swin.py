"""Swin Transformer and Swin Transformer V2.

Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (arXiv 2103.14030),
and Liu et al. 2022, "Swin Transformer V2: Scaling Up Capacity and Resolution" (arXiv 2111.09883). Where the
papers are silent the official code decides: its classifier, and its detection backbone for what that refuses.

Shapes: B batch; H, W map of a stage; C channels of a stage; M window side; N = M*M tokens of a window; L windows of a
map; h heads; d = C/h channels of a head; K classes.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Num

from flashjax.layers.drop_path import drop_path
from flashjax.layers.initializers import KERNELS, NORMAL, torch_uniform
from flashjax.layers.mlp import Mlp
from flashjax.layers.norm import LayerNorm, NormWeights
from flashjax.layers.watched import is_watched
from flashjax.models.swin_attention import Branch, Kernel, KernelAttention, PairedAttention, WindowAttention, dense
from flashjax.models.swin_config import SwinConfig
from flashjax.ops import branch_kernels, window_kernel
from flashjax.ops import paired_windows as paired
from flashjax.ops import windows as win
from flashjax.ops.loop import KEPT, in_turns, keep
from flashjax.ops.parts import joined, parts
from flashjax.ops.platform import chosen
from flashjax.ops.resize import resize_bicubic

Images = Num[Array | np.ndarray, "B height width chans"]
WINDOWS, RECTANGLES = ("batch", "window", "token", "embed"), ("batch", "window", "embed", "token")
"""Names of the dims of a map that is cut into them."""


def _fused(module: Any, channels: int, features: int) -> bool:
    """Whether a branch of a module is `fused` (`SwinConfig.fuses`); what is watched is not there in a kernel."""
    fused = module.config.fuses(channels, features) and not is_watched(module)
    chosen("branches", "fused" if fused else "apart")
    return fused


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
        kernel, bias = PatchProjection(cfg, name="proj")(p * p * c)
        if cfg.patch_norm and _fused(self, p * p * c, cfg.embed_dim):
            weights = branch_kernels.EmbeddedWeights(
                kernel.astype(cfg.dtype), bias, *NormWeights(name="norm")(cfg.embed_dim)
            )
            return keep(branch_kernels.product_normed(patches, weights))
        x = patches @ kernel.astype(cfg.dtype) + bias.astype(cfg.dtype)
        return LayerNorm(dtype=cfg.dtype, name="norm")(x) if cfg.patch_norm else x


class PatchProjection(nn.Module):
    """The parameters of the patch convolution, kept in a convolution's layout [p, p, chans, C]."""

    config: SwinConfig

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Float[Array, "in C"], Float[Array, "C"]]:
        cfg = self.config
        init = torch_uniform(inputs)  # official code leaves the convolution at torch's default
        kernel = self.param("kernel", init, (cfg.patch_size, cfg.patch_size, cfg.in_chans, cfg.embed_dim))
        return kernel.reshape(inputs, cfg.embed_dim), self.param("bias", init, (cfg.embed_dim,))


class SwinBlock(nn.Module):
    """Two residual branches: attention in (shifted) windows, then an MLP.

    Version 1 normalises what enters a branch (paper equation 3), version 2 what leaves it (V2 section 3.2).
    """

    config: SwinConfig
    stage: int
    shifted: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False, factors: Float[Array, "2 B"] | None = None
    ) -> Float[Array, "B H W C"]:
        """`factors`: what stochastic depth multiplies the two branches by; None: nothing."""
        cfg, C = self.config, x.shape[-1]
        hidden = int(cfg.mlp_ratio * C)
        fused = _fused(self, C, hidden)
        # Version 2 starts with both branches at zero.
        norm = functools.partial(
            LayerNorm, dtype=cfg.dtype, scale_init=nn.initializers.ones if cfg.version == 1 else nn.initializers.zeros
        )

        def kept(i: int, branch: Array) -> Array:
            return branch if factors is None else branch * factors[i][:, None, None, None]

        def factor(i: int) -> Float[Array, "B"]:
            return jnp.ones(len(x), x.dtype) if factors is None else factors[i]

        if fused and self.attention == "kernel" and not any(side % self.cut(x)[0] for side in x.shape[1:3]):
            x = self.attend(x, train, Branch(NormWeights(name="norm1")(C), factor(0)))
        elif cfg.version == 1:
            x = x + kept(0, self.attend(norm(name="norm1")(x), train))
        else:
            x = x + kept(0, norm(name="norm1")(self.attend(x, train)))
        if fused:
            weights = (*NormWeights(name="norm2")(C), *MlpWeights(cfg, hidden, name="mlp")(C))
            x = keep(branch_kernels.mlp_branch(x, factor(1), branch_kernels.MlpWeights(*weights)))
        else:
            norm2 = norm(name="norm2")
            mlp = Mlp(hidden, cfg.drop_rate, cfg.dtype, KERNELS[cfg.initializer], name="mlp")
            x = x + kept(1, mlp(norm2(x), train) if cfg.version == 1 else norm2(mlp(x, train)))
        return with_logical_constraint(x, ("batch", "height", "width", "embed"))

    @property
    def attention(self) -> str:
        """What is watched is not there in other forms than windows."""
        return "windows" if is_watched(self) else self.config.attention_form

    def cut(self, x: Float[Array, "B H W C"]) -> tuple[int, int]:
        """Side of a window, and how far windows are shifted."""
        cfg, smallest = self.config, min(x.shape[1:3])
        window = cfg.stage_window(self.stage)
        if not cfg.always_partition and smallest <= window:  # the whole map in one window, or a row of them
            return smallest, 0
        return window, window // 2 if self.shifted else 0

    def attend(self, x: Float[Array, "B H W C"], train: bool, branch: Branch | None = None) -> Float[Array, "B H W C"]:
        """Pad, shift, cut into windows, attend, and undo the three (official detection backbone).

        With a `branch` all of it, of a map that windows divide.
        """
        cfg, form, (H, W) = self.config, self.attention, x.shape[1:3]
        window, shift = self.cut(x)
        x = win.pad_to_multiple(x, window)
        size = x.shape[1], x.shape[2]
        chosen("attention", form)
        count = 1 if form == "windows" else paired.together(size, window)
        mask = win.shift_mask(size, window, shift, count) if shift else None
        if form == "kernel":
            attention = KernelAttention(cfg, self.stage, window, name="attn")
            x = attention(window_kernel.cyclic_shift(x, shift), mask, train, branch)
            x = window_kernel.cyclic_shift(x, -shift)
        elif form == "paired":
            attention = PairedAttention(cfg, self.stage, window, name="attn")
            x = with_logical_constraint(paired.partition(x, window, count, shift), RECTANGLES)
            x = paired.reverse(attention(x, mask, train), window, count, shift, size)
        else:
            attention = WindowAttention(cfg, self.stage, name="attn")
            x = with_logical_constraint(win.window_partition(win.cyclic_shift(x, shift), window), WINDOWS)
            x = win.cyclic_shift(win.window_reverse(attention(x, mask, train), window, size), -shift)
        return x[:, :H, :W]


class MlpWeights(nn.Module):
    """The parameters of an `Mlp` whose products are written elsewhere."""

    config: SwinConfig
    hidden: int

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Array, ...]:
        """Kernel and bias of the first layer, and of the second."""
        dtype = self.config.dtype
        kernel_in, bias_in = Kernel(self.config, self.hidden, name="fc1")(inputs)
        kernel_out, bias_out = Kernel(self.config, inputs, name="fc2")(self.hidden)
        return kernel_in.astype(dtype), bias_in, kernel_out.astype(dtype), bias_out


class PatchMerging(nn.Module):
    """Halves a map: 2x2 neighbours side by side (4C channels), then a projection to 2C.

    Version 1 normalises before the projection, version 2 after it. Odd maps get a row or column of zeros first.
    """

    config: SwinConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w two_C"]:
        cfg, C = self.config, x.shape[-1]
        x = win.pad_to_multiple(x, 2)
        if _fused(self, 4 * C, 2 * C):
            kernel, _ = Kernel(cfg, 2 * C, use_bias=False, name="reduction")(4 * C)
            weights = branch_kernels.NormedWeights(*NormWeights(name="norm")(4 * C), kernel.astype(cfg.dtype))
            return keep(branch_kernels.merged_product(x, weights))
        x = win.merge_neighbours(x)
        norm, reduction = LayerNorm(dtype=cfg.dtype, name="norm"), dense(cfg, 2 * C, "reduction", use_bias=False)
        return reduction(norm(x)) if cfg.version == 1 else norm(reduction(x))


class SwinStage(nn.Module):
    """Blocks on one resolution, every second one shifted, then the merging that leads to the next."""

    config: SwinConfig
    stage: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False, factors: Float[Array, "blocks 2 B"] | None = None
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B h w two_C"]]:
        """The features of this stage and what enters the next (after the last stage, the features themselves).

        `factors`: of each block what stochastic depth multiplies its branches by; None: nothing.
        """
        cfg, single = self.config, self.is_initializing() or is_watched(self)
        block = nn.remat(SwinBlock, static_argnums=(2,)) if cfg.remat else SwinBlock
        depth, last = cfg.depths[self.stage], self.stage == len(cfg.depths) - 1
        blocks = [block(cfg, self.stage, shifted=j % 2 == 1, name=f"block_{j}") for j in range(depth)]
        merge = (lambda x: x) if last else PatchMerging(cfg, name="downsample")

        def compute(x: Array, factors: Array | None) -> tuple[Array, Array]:
            own = [None] * depth if factors is None else list(factors)
            if cfg.loops(self.stage, train) and not single:
                x = self.loop(x, own, train)
            else:
                for block, factor in zip(blocks, own, strict=True):
                    x = block(x, train, factor)
            return x, merge(x)

        together = cfg.at_a_time(self.stage, train)
        if not together or single:
            return compute(x, factors)
        images = parts(x, together)
        of_parts = [None] * len(images) if factors is None else parts(factors, together, axis=2)
        computed = [compute(*part) for part in zip(images, of_parts, strict=True)]
        features, entering = (joined(cut, len(x)) for cut in zip(*computed, strict=True))
        return features, entering

    def loop(self, x: Float[Array, "B H W C"], factors: Sequence[Array | None], train: bool) -> Float[Array, "B H W C"]:
        """The blocks, a pair in each turn."""
        cfg, params = self.config, self.variables["params"]
        blocks = [(params[f"block_{j}"], own) for j, own in enumerate(factors)]

        def pair(x: Array, both: tuple[Any, ...]) -> Array:
            for shifted, (params, own) in zip((False, True), both, strict=True):
                block = SwinBlock(cfg, self.stage, shifted=shifted, parent=None)
                x = block.apply({"params": params}, x, train, own)  # type: ignore[assignment]
            return x

        return in_turns(pair, x, blocks, each=2, names=() if cfg.remat else (KEPT,))


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
        pyramid, factors, first = [], self._factors(len(images), train), 0
        for stage, depth in zip(self.stage, cfg.depths, strict=True):
            features, x = stage(x, train, None if factors is None else factors[first : first + depth])
            pyramid.append(features)
            first += depth
        return pyramid

    def _factors(self, rows: int, train: bool) -> Float[Array, "blocks 2 B"] | None:
        """What stochastic depth multiplies the branches of all blocks by, first to last; None where it drops none."""
        rates = self.config.drop_path_rates()
        if not train or not any(rates):
            return None
        drawn = drop_path(self.make_rng("drop_path"), np.repeat(rates, 2).tolist(), rows, self.config.dtype)
        return drawn.reshape(len(rates), 2, rows)

    def _positions(self, H: int, W: int) -> Float[Array, "H W C"]:
        positions = self.absolute_pos_embed.reshape(*self.config.stage_size(0), -1)
        return positions if positions.shape[:2] == (H, W) else resize_bicubic(positions, (H, W))
