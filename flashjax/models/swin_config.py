"""The configuration of Swin Transformers: the official arguments, and how they are computed."""

import dataclasses
from typing import Literal

import jax
import numpy as np

from flashjax.layers.initializers import KERNELS
from flashjax.models.widths import at_ratio
from flashjax.ops.branch_kernels import LARGEST, LARGEST_OF_OLDER, OLDER
from flashjax.ops.platform import device_kind, traced_for
from flashjax.ops.tpu_kernel import LANES, axes


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
    attention: Literal["auto", "windows", "paired", "kernel"] = "auto"
    """How attention is laid out; the function is the same. windows: one by one, tokens before channels. paired: two by
    two in one product, channels before tokens (`flashjax.ops.paired_windows`). kernel: that as a Pallas kernel for TPUs
    (`flashjax.ops.window_kernel`). auto: the kernel where the step is for TPUs, attn_drop_rate is 0, windows have
    at most 128 tokens and channels of a head divide 128; windows elsewhere."""
    branches: Literal["auto", "apart", "fused"] = "auto"
    """How what is around attention in a block, its MLP, and the merging and embedding of patches are computed; the
    function is the same. apart: norms, layers, stochastic depth and sums, each by itself. fused: by a few Pallas
    kernels for TPUs (`flashjax.ops.branch_kernels`), where the layer beside a norm has at most 3 * 2^20 numbers (2^18
    up to v4; of float32 3/4 of it); around attention where that is the kernel and windows divide the map. auto: fused
    where the step is for TPUs, version is 1, drop_rate is 0 and the mesh does not split hidden units; apart
    elsewhere."""
    blocks: Literal["apart", "looped"] = "apart"
    """How the blocks of a stage are compiled; the function is the same. apart: each for itself. looped: by pairs, as
    turns of one loop, in stages of four or more: less to compile, but norms are computed again and parameters copied.
    Where features are dropped or watched blocks are apart in any case."""
    together: tuple[int, ...] = ()
    """Images of a device that a stage and the merging behind it compute at a time, one number for each stage; 0, and
    without numbers: all. The function is the same, what is between stays in a memory that is near, and there is as much
    more to compile. For forms without kernels, whose gradients devices would sum once for each part. Where features are
    dropped or watched all are computed at once in any case."""
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
        if self.attention not in ("auto", "windows", "paired", "kernel"):
            raise ValueError(f"attention must be auto, windows, paired or kernel, got {self.attention!r}")
        if self.branches not in ("auto", "apart", "fused"):
            raise ValueError(f"branches must be auto, apart or fused, got {self.branches!r}")
        if self.branches == "fused" and (self.drop_rate or self.version != 1):
            raise ValueError(
                f"branches='fused' has no dropout and is of version 1, got drop_rate {self.drop_rate} and version "
                f"{self.version}: use branches='apart'"
            )
        if self.blocks not in ("apart", "looped"):
            raise ValueError(f"blocks must be apart or looped, got {self.blocks!r}")
        if self.together and (len(self.together) != len(self.depths) or min(self.together) < 0):
            raise ValueError(
                f"together {self.together} must be images, 0 for all, of each of the {len(self.depths)} stages"
            )
        if self.attention in ("paired", "kernel") and self.attn_drop_rate:
            raise ValueError(
                f"attn_drop_rate {self.attn_drop_rate} needs weights that attention={self.attention!r} does not keep: "
                "use attention='windows', or 0"
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
    def attention_form(self) -> Literal["windows", "paired", "kernel"]:
        """What `attention` is on the platform that is traced for."""
        if self.attention != "auto":
            return self.attention
        fits = self.window_size**2 <= LANES and all(
            LANES % (self.dim(i) // heads) == 0 for i, heads in enumerate(self.num_heads)
        )
        return "kernel" if traced_for() == "tpu" and fits and not self.attn_drop_rate else "windows"

    def fuses(self, channels: int, features: int) -> bool:
        """Whether a branch with a norm of so many channels and a layer of so many features beside it is `fused`, on the
        platform and the mesh that are traced for.

        Raises ValueError where branches='fused' and the mesh splits hidden units.
        """
        mesh = jax.sharding.get_abstract_mesh()
        split = not mesh.empty and axes("mlp", features, mesh)
        if split and self.branches == "fused":
            raise ValueError(
                f"branches='fused' computes whole layers, and the mesh splits them over {split}: use 'apart'"
            )
        takes = self.version == 1 and not self.drop_rate and not split and traced_for() == "tpu"
        largest = LARGEST_OF_OLDER if device_kind().startswith(OLDER) else LARGEST
        # Beside each number its gradient is there in float32.
        fits = channels * features * (4 + (2 if self.dtype == "bfloat16" else 4)) <= largest * 6
        return fits and (takes if self.branches == "auto" else self.branches == "fused")

    def loops(self, stage: int, train: bool) -> bool:
        """Whether the blocks of a stage are turns of a loop."""
        depth = self.depths[stage]
        return self.blocks == "looped" and depth >= 4 and depth % 2 == 0 and not self._drops(train)

    def at_a_time(self, stage: int, train: bool) -> int:
        """Images of a device that a stage computes together, 0 for all."""
        return self.together[stage] if self.together and not self._drops(train) else 0

    def _drops(self, train: bool) -> bool:
        """Whether features or weights of attention are dropped, by draws that follow the order of what is computed."""
        return bool(train and (self.drop_rate or self.attn_drop_rate))

    def plain(self) -> "SwinConfig":
        """The same function without what a layout or recomputation adds to its FLOPs."""
        return dataclasses.replace(
            self, attention="windows", branches="apart", blocks="apart", together=(), remat=False
        )

    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of every block, first to last."""
        return tuple(float(rate) for rate in np.linspace(0, self.drop_path_rate, sum(self.depths)))
