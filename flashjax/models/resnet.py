"""Residual networks: ResNet, pre-activation ResNet, Wide ResNet and ResNeXt, for ImageNet and for CIFAR.

He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385) and "Identity Mappings in Deep
Residual Networks" (1603.05027); Zagoruyko and Komodakis 2016, "Wide Residual Networks" (1605.07146); Xie et al. 2017,
"Aggregated Residual Transformations for Deep Neural Networks" (1611.05431). Without normalisation: Zhang et al. 2019,
"Fixup Initialization" (1901.09321). Their named forms: `resnet_variants.py`.

Shapes: B batch; H, W map; C channels; K classes.
"""

import dataclasses
from typing import ClassVar, Literal, get_args, get_origin

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Num

from flashjax.layers.gains import fixup
from flashjax.layers.initializers import torch_uniform
from flashjax.layers.norm import BatchNorm, Shift
from flashjax.models.widths import at_ratio

Images = Num[Array | np.ndarray, "B height width chans"]
CONV = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""N(0, 2 / (k k C_out)), whatever the groups: torchvision's and that of Random Erasing's code."""


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """One residual network; stages after the first begin with a stride of 2."""

    num_classes: int = 1000
    """Classes; 0 returns the pooled features instead of logits."""
    in_chans: int = 3
    """Channels of an image."""
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks of each stage."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage; a bottleneck's output has four times as many."""
    block: Literal["basic", "bottleneck"] = "basic"
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1."""
    groups: int = 1
    """Groups of a bottleneck's 3x3 convolution (ResNeXt's cardinality)."""
    width_per_group: int = 64
    """Channels of a group in a bottleneck, in a stage of width 64; other stages in proportion."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """7x7 convolution of stride 2 and 3x3 max pooling of stride 2, or one 3x3 convolution."""
    stem_width: int = 64
    """Channels that leave the stem."""
    stem_norm: bool = True
    """Normalises and rectifies what leaves the stem's convolution."""
    preact: bool = False
    """Normalises and rectifies before each convolution of a block instead of after it."""
    preact_projection: Literal["activated", "raw"] = "activated"
    """What a pre-activation block projects where shapes change: its normalised and rectified input (Identity Mappings,
    Wide ResNet), or what comes in. Identities are of what comes in."""
    final_norm: bool = False
    """Normalises and rectifies the last map."""
    norm: Literal["batch", "none"] = "batch"
    """What normalises; none: learned numbers stand in its place and before each convolution, and kernels begin as Fixup
    has them. With the last scale of each block at zero besides it is SkipInit."""
    shortcut: Literal["projection", "padding"] = "projection"
    """Where shapes change: a 1x1 convolution (with its norm unless preact), or every second pixel and channels of
    zeros behind (He et al.: B and A)."""
    drop_rate: float = 0.0
    """Dropout before the second convolution of a pre-activation basic block (Wide ResNet)."""
    zero_init_residual: bool = False
    """Starts the last norm of each block at zero, so that a block begins as its shortcut; not for preact."""
    head_init: Literal["uniform", "zero_bias", "normal"] = "uniform"
    """The head at the start: torch's default, the same with a bias of zero, or N(0, 2 / C) with a bias of zero."""
    remat: bool = False
    """Recomputes each block in the backward pass instead of keeping its activations."""
    dtype: str = "float32"
    """Compute dtype, float32 or bfloat16; statistics, norms, pooling and logits are float32 in any case."""

    def __post_init__(self):
        if len(self.widths) != len(self.depths):
            raise ValueError(f"widths {self.widths} and depths {self.depths} must name the same stages")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
        for field in dataclasses.fields(self):
            choices = get_args(field.type) if get_origin(field.type) is Literal else ()
            if choices and getattr(self, field.name) not in choices:
                raise ValueError(f"{field.name} must be one of {', '.join(choices)}, got {getattr(self, field.name)!r}")
        if self.block == "basic" and (self.groups, self.width_per_group) != (1, 64):
            raise ValueError(
                f"groups {self.groups} and width_per_group {self.width_per_group} are a bottleneck's: "
                "pass block='bottleneck'"
            )
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate must be at least 0 and below 1, got {self.drop_rate}")
        if self.drop_rate and not (self.preact and self.block == "basic"):
            raise ValueError(f"drop_rate {self.drop_rate} is of pre-activation basic blocks: set it to 0 here")
        if self.zero_init_residual and self.preact:
            raise ValueError("zero_init_residual is for blocks that end with a norm: not with preact=True")
        if self.norm == "none" and (self.preact or self.final_norm or not self.stem_norm or self.zero_init_residual):
            raise ValueError(
                "norm 'none' is Fixup's network: leave preact, final_norm, stem_norm and zero_init_residual as they are"
            )

    @property
    def expansion(self) -> int:
        """Output channels of a block over its stage's width."""
        return 4 if self.block == "bottleneck" else 1

    head_width: ClassVar[None] = None
    """No attention (asked by `flashjax.training.parametrization`)."""
    logit_power: ClassVar[None] = None
    """As `head_width`."""

    def at_width(self, width: int, keep: Literal["head_dim", "heads"] = "head_dim") -> "ResNetConfig":
        """The same network with `width` channels in its first stage, and all others in proportion.

        Raises ValueError where they would be no whole numbers.
        """
        del keep  # there are no heads
        first = self.widths[0]
        widths = tuple(at_ratio("widths", count, width, first) for count in self.widths)
        return dataclasses.replace(
            self, widths=widths, stem_width=at_ratio("stem_width", self.stem_width, width, first)
        )

    def inner_width(self, stage: int) -> int:
        """Channels inside a block (Xie et al.; torchvision's `width_per_group`)."""
        return int(self.widths[stage] * (self.width_per_group / 64)) * self.groups


def _conv(
    cfg: ResNetConfig,
    features: int,
    size: int,
    stride: int,
    name: str,
    groups: int = 1,
    kernel_init: nn.initializers.Initializer = CONV,
) -> nn.Conv:
    """A convolution without bias, padded on both sides as torch does."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=False,
        dtype=cfg.dtype,
        kernel_init=kernel_init,
        name=name,
    )


class Block(nn.Module):
    """A residual block: convolutions beside a shortcut, summed.

    After activation (He et al. 2016a): conv, norm, relu, ..., conv, norm, plus shortcut, relu. Before it (2016b): norm,
    relu, conv, ..., norm, relu, conv, plus shortcut. Without norms: shift, conv, shift, relu, ..., shift, conv, scale,
    shift, plus shortcut, relu.
    """

    config: ResNetConfig
    stage: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w D"]:
        cfg = self.config
        out = cfg.widths[self.stage] * cfg.expansion
        inner = cfg.inner_width(self.stage)
        if cfg.block == "basic":
            convs = [(out, 3, self.stride, 1), (out, 3, 1, 1)]
        else:
            convs = [(inner, 1, 1, 1), (inner, 3, self.stride, cfg.groups), (out, 1, 1, 1)]
        changes = self.stride != 1 or x.shape[-1] != out
        y, shortcut = x, x
        for i, (features, size, stride, groups) in enumerate(convs, start=1):
            if cfg.preact:
                y = nn.relu(BatchNorm(dtype=cfg.dtype, name=f"norm{i}")(y, train))
                if i == 1 and changes and cfg.preact_projection == "activated":
                    shortcut = y
                if i == 2:
                    y = nn.Dropout(cfg.drop_rate, deterministic=not train)(y)
            last = i == len(convs)
            if cfg.norm == "none":
                y = Shift(name=f"shift{i}")(y)
                if i == 1 and changes:
                    shortcut = y
            kernel_init = CONV if cfg.norm == "batch" else _fixup(cfg, len(convs), last)
            y = _conv(cfg, features, size, stride, f"conv{i}", groups, kernel_init)(y)
            if not last:  # channels inside a block are split over the tensor axis
                y = with_logical_constraint(y, ("batch", "height", "width", "mlp"))
            if not cfg.preact:
                y = self.after(f"norm{i}", last)(y, train)
                y = y if last else nn.relu(y)
        if changes:
            shortcut = self.change(shortcut, out, train)
        y = y + shortcut
        y = y if cfg.preact else nn.relu(y)
        return with_logical_constraint(y, ("batch", "height", "width", "embed"))

    def after(self, name: str, last: bool) -> BatchNorm | Shift:
        """What follows a convolution that no norm precedes."""
        cfg = self.config
        if cfg.norm == "none":
            return Shift(scaled=last, name=name)
        zero = last and cfg.zero_init_residual
        scale_init = nn.initializers.zeros if zero else nn.initializers.ones
        return BatchNorm(dtype=cfg.dtype, scale_init=scale_init, name=name)

    def change(self, x: Float[Array, "B H W C"], out: int, train: bool) -> Float[Array, "B h w D"]:
        """The shortcut where height, width or channels change."""
        cfg = self.config
        if cfg.shortcut == "padding":
            if x.shape[-1] > out:
                raise ValueError(f"a shortcut of padding cannot make {x.shape[-1]} channels {out}: use projection")
            x = x[:, :: self.stride, :: self.stride]
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, out - x.shape[-1])))
        x = _conv(cfg, out, 1, self.stride, "shortcut_conv")(x)
        normal = cfg.norm == "batch" and not cfg.preact
        return BatchNorm(dtype=cfg.dtype, name="shortcut_norm")(x, train) if normal else x


def _fixup(cfg: ResNetConfig, convs: int, last: bool) -> nn.initializers.Initializer:
    """Of the convolutions of a branch: `CONV` times L^(-1 / (2 m - 2)), and zeros for the last."""
    if last:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(2.0 * fixup(sum(cfg.depths), convs) ** 2, "fan_out", "normal")


class Stage(nn.Module):
    """Blocks of one resolution; the first one gets there."""

    config: ResNetConfig
    stage: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w D"]:
        cfg = self.config
        block = nn.remat(Block, static_argnums=(2,)) if cfg.remat else Block
        for j in range(cfg.depths[self.stage]):
            stride = 2 if self.stage and not j else 1
            x = block(cfg, self.stage, stride, name=f"block_{j}")(x, train)
        return x


class ResNet(nn.Module):
    """Images to logits (`__call__`) or to the maps of all stages (`method="features"`); any size will do.

    Running statistics are in the collection "batch_stats", which training changes; dropout, if there is any, draws from
    the stream "dropout".
    """

    config: ResNetConfig

    def setup(self):
        cfg = self.config
        size, stride = (7, 2) if cfg.stem == "imagenet" else (3, 1)
        self.stem_conv = _conv(cfg, cfg.stem_width, size, stride, "stem_conv")
        if cfg.stem_norm:
            self.stem_norm = BatchNorm(dtype=cfg.dtype) if cfg.norm == "batch" else Shift()
        self.stage = [Stage(cfg, i) for i in range(len(cfg.depths))]
        if cfg.final_norm:
            self.final_norm = BatchNorm(dtype=cfg.dtype)
        if cfg.num_classes:
            features = cfg.widths[-1] * cfg.expansion
            bias = torch_uniform(features) if cfg.head_init == "uniform" else nn.initializers.zeros
            kernel = nn.initializers.normal((2 / features) ** 0.5)
            kernel = kernel if cfg.head_init == "normal" else torch_uniform(features)
            if cfg.norm == "none":
                kernel = bias = nn.initializers.zeros
                self.head_shift = Shift()
            self.head = nn.Dense(cfg.num_classes, kernel_init=kernel, bias_init=bias)

    def __call__(self, images: Images, train: bool = False) -> Float[Array, "B K"]:
        """Float32 logits, or the pooled features where num_classes is 0."""
        x = self.features(images, train)[-1].astype(jnp.float32).mean((1, 2))
        if not self.config.num_classes:
            return x
        return self.head(self.head_shift(x) if self.config.norm == "none" else x)

    def features(self, images: Images, train: bool = False) -> list[Array]:
        """The map [B, H, W, C] that leaves each stage; the last one normalised where the model ends so.

        Raises ValueError for images of another number of channels than in_chans.
        """
        cfg = self.config
        if images.shape[-1] != cfg.in_chans:
            raise ValueError(f"images of {images.shape[-1]} channels, but in_chans is {cfg.in_chans}")
        x = self.stem_conv(jnp.asarray(images, cfg.dtype))
        if cfg.stem_norm:
            x = nn.relu(self.stem_norm(x, train))
        if cfg.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        x = with_logical_constraint(x, ("batch", "height", "width", "embed"))
        pyramid = []
        for stage in self.stage:
            x = stage(x, train)
            pyramid.append(x)
        if cfg.final_norm:
            pyramid[-1] = nn.relu(self.final_norm(x, train))
        return pyramid
