"""A small convolutional network for studies that train many copies of it at once.

Shapes: B batch, H height, W width, C channels, K kernel, F features, n classes.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class ConvNetConfig:
    """Convolutions without padding, each followed by ReLU, then one linear layer. The default has 8,330 parameters."""

    num_classes: int = 10
    """Logits."""
    widths: tuple[int, ...] = (16, 32)
    """Features of each convolution."""
    kernels: tuple[int, ...] = (7, 3)
    """Side of each kernel."""
    strides: tuple[int, ...] = (3, 2)
    """Stride of each convolution."""

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.kernels) == len(self.strides):
            raise ValueError(
                f"widths {self.widths}, kernels {self.kernels} and strides {self.strides} need a value for each layer"
            )


class ConvNet(nn.Module):
    """Logits of images; kernels are drawn as He does (normal, variance 2 / fan in), biases start at 0.

    A convolution is a product of patches and a matrix. Mapped over its weights (`jax.vmap`) that stays one product
    after another, where a convolution becomes a grouped one: on CPU, with 8 sets of weights, some thirty times slower.
    """

    config: ConvNetConfig

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B n"]:
        del train  # there is nothing that differs
        config, x = self.config, images
        for i, (width, kernel, stride) in enumerate(zip(config.widths, config.kernels, config.strides, strict=True)):
            x = patches(x, kernel, stride)  # [B, h, w, K K C]
            x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal(), name=f"conv{i}")(x))  # [B, h, w, F]
        return nn.Dense(config.num_classes, name="head")(x.reshape(len(x), -1))


def patches(x: Float[Array, "B H W C"], kernel: int, stride: int) -> Float[Array, "B h w K"]:
    """What each position of a convolution without padding reads: rows of the kernel first, then columns, then channels.

    Raises:
        ValueError: if the image is smaller than the kernel.
    """
    high, wide = ((size - kernel) // stride + 1 for size in x.shape[1:3])
    if min(high, wide) < 1:
        raise ValueError(f"a kernel of {kernel} does not fit into {x.shape[1]} x {x.shape[2]}")
    # Columns, then rows: 2 K slices instead of K^2, which compile in a fraction of the time.
    x = jnp.stack([x[:, :, j : j + stride * (wide - 1) + 1 : stride] for j in range(kernel)], axis=-2)
    x = jnp.stack([x[:, i : i + stride * (high - 1) + 1 : stride] for i in range(kernel)], axis=-3)
    return x.reshape(*x.shape[:3], -1)
