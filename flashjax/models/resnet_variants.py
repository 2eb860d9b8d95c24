"""The named residual networks: torchvision's, and those of Random Erasing's table (Zhong et al., arXiv 1708.04896).

For ImageNet (names of torchvision, whose bottlenecks stride in their 3x3 convolution): `resnet18` to `resnet152`,
`resnext50_32x4d` and so on.

For CIFAR and Fashion-MNIST, with D of 20, 32, 44, 56, 110: `resnetD_cifar_basic` are He et al.'s, basic blocks and no
parameters in the shortcuts. Random Erasing's code differs: its shortcuts are projections, and from depth 44 on its
blocks are bottlenecks, (D - 2) / 6 a stage, so that "ResNet-110" has 164 layers. Those are `resnet20_cifar`,
`resnet32_cifar` and `resnet{44,56,110}_cifar_bottleneck`; `preact_resnet...` have their shape in pre-activation form.
`fixup_resnetD_cifar_basic` are He et al.'s without normalisation, as Zhang et al. 2019 train them.
"""

import dataclasses
from typing import Any, Literal

from flashjax.models.registry import register
from flashjax.models.resnet import ResNet, ResNetConfig

DEPTHS = (20, 32, 44, 56, 110)
"""Of the nets for CIFAR in Random Erasing's table."""


def cifar(depth: int, block: Literal["basic", "bottleneck"] = "basic", **fields: Any) -> ResNetConfig:
    """A net of three stages for small images, (depth - 2) / 6 blocks in each, whatever the block.

    Raises ValueError for a depth that is not 6 n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6 n + 2 (8, 14, 20, 26, 32, ...), got {depth}")
    shape: dict[str, Any] = {"depths": ((depth - 2) // 6,) * 3, "widths": (16, 32, 64), "stem_width": 16}
    return ResNetConfig(**{**shape, "num_classes": 10, "stem": "cifar", "block": block, **fields})


def wide(depth: int, factor: int, **fields: Any) -> ResNetConfig:
    """WRN-depth-factor: three stages of (depth - 4) / 6 pre-activation basic blocks, `factor` times as wide.

    Raises ValueError for a depth that is not 6 n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6 n + 4 (10, 16, 22, 28, 40, ...), got {depth}")
    widths = (16 * factor, 32 * factor, 64 * factor)
    shape: dict[str, Any] = {"depths": ((depth - 4) // 6,) * 3, "widths": widths, "stem_width": 16}
    return ResNetConfig(**{**shape, "num_classes": 10, **PREACT, "head_init": "zero_bias", **fields})


PREACT: dict[str, Any] = {"stem": "cifar", "stem_norm": False, "preact": True, "final_norm": True}


def _imagenet() -> dict[str, ResNetConfig]:
    r50 = ResNetConfig(depths=(3, 4, 6, 3), block="bottleneck")
    r101, replace = dataclasses.replace(r50, depths=(3, 4, 23, 3)), dataclasses.replace
    return {
        "resnet18": ResNetConfig(depths=(2, 2, 2, 2)),
        "resnet34": ResNetConfig(depths=(3, 4, 6, 3)),
        "resnet50": r50,
        "resnet101": r101,
        "resnet152": replace(r50, depths=(3, 8, 36, 3)),
        "resnext50_32x4d": replace(r50, groups=32, width_per_group=4),
        "resnext101_32x8d": replace(r101, groups=32, width_per_group=8),
        "resnext101_64x4d": replace(r101, groups=64, width_per_group=4),
        "wide_resnet50_2": replace(r50, width_per_group=128),
        "wide_resnet101_2": replace(r101, width_per_group=128),
    }


def _cifar() -> dict[str, ResNetConfig]:
    table = {"resnet8_cifar": cifar(8)}  # the smallest, for tests and demos
    for depth in DEPTHS:
        block = "bottleneck" if depth >= 44 else "basic"
        name = f"resnet{depth}_cifar" + ("_bottleneck" if depth >= 44 else "")
        table[name] = cifar(depth, block)
        table[f"preact_{name}"] = cifar(depth, block, **PREACT, preact_projection="raw")
        table[f"resnet{depth}_cifar_basic"] = cifar(depth, shortcut="padding")
        table[f"fixup_resnet{depth}_cifar_basic"] = cifar(depth, shortcut="padding", norm="none")
    # As in the pytorch-cifar repository, without the last norm of Identity Mappings.
    preact18 = ResNetConfig(num_classes=10, **PREACT)
    table["preact_resnet18_cifar"] = dataclasses.replace(preact18, final_norm=False)
    table["wrn_28_10"] = wide(28, 10)
    table["resnext29_8x64d_cifar"] = ResNetConfig(
        num_classes=10,
        stem="cifar",
        depths=(3, 3, 3),
        widths=(64, 128, 256),
        block="bottleneck",
        groups=8,
        head_init="normal",
    )
    return table


register(ResNet, {**_imagenet(), **_cifar()})
