"""The published Swin Transformers, under timm's names."""

import dataclasses

from flashjax.models.registry import register
from flashjax.models.swin import SwinTransformer
from flashjax.models.swin_config import SwinConfig


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
