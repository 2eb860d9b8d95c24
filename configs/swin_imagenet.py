"""Swin Transformer on ImageNet: every recipe of the two papers and their official code, and the demo.

Names: ``<size>_1k`` trains on ImageNet-1k from scratch (224), ``<size>_22k`` pre-trains on ImageNet-22k,
``<size>_22k_to_1k[_384]`` and ``base_384`` fine-tune (give --init), ``v2_...`` are Swin V2. Commands, for any of them:

    python -m experiments.swin_imagenet --preset tiny_1k --data_dir /data/tfds --mesh.data 8

Hardware and time of the official runs are not published; the V100 throughputs are (images/s, float32): T 755, S 437,
B 278, B-384 85, L-384 42. Expected ImageNet-1k top-1 of the official weights:

    tiny_1k 81.2    small_1k 83.2   base_1k 83.5    base_384 84.5   tiny_c24_1k 81.6
    tiny_22k_to_1k 80.9   small_22k_to_1k 83.2   base_22k_to_1k 85.2   large_22k_to_1k 86.3
    base_22k_to_1k_384 86.4   large_22k_to_1k_384 87.3
    v2_tiny_w8 81.8   v2_small_w8 83.7   v2_base_w8 84.2   v2_tiny_w16 82.8   v2_small_w16 84.1   v2_base_w16 84.6
    v2_base_22k_to_1k_256 86.2   v2_base_22k_to_1k_384 87.1   v2_large_22k_to_1k_256 86.9   v2_large_22k_to_1k_384 87.6

Where paper and code disagree the code is the default; ``base_22k_paper`` (decay .01, linear) and
``base_22k_to_1k_paper`` (constant 1e-5) are the paper's.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from flashjax import models
from flashjax.data import AugmentConfig, DataConfig
from flashjax.models.swin_config import SwinConfig
from flashjax.recipes.images import ImageRun
from flashjax.training import OptimizerConfig, ScheduleConfig, TrainConfig
from flashjax.training.sharding import Rule, fsdp, tensor_parallel


@dataclass(frozen=True, kw_only=True)
class SwinImagenet(ImageRun):
    """A Swin Transformer, images to classify, and the recipe of the paper."""

    epochs: float = 300.0
    """Passes over the training set, if --steps does not say."""
    warmup_epochs: float = 20.0
    """Passes in which the learning rate rises linearly; part of the epochs."""
    learning_rate_batch: int | None = 512
    """Batch for which the optimizer's three learning rates are meant; they scale linearly with the batch size."""
    init: str | None = None
    """Pretrained weights to start from: .pth, .bin or .safetensors (official, timm or Hugging Face), or the workdir of
    another run. Window, resolution and classes are adapted."""
    init_model: str | None = None
    """Name of the pretrained model in a weights file, e.g. swin_base_patch4_window7_224_22k."""
    model: SwinConfig = field(default_factory=lambda: models.config("swin_tiny_patch4_window7_224"))
    """Architecture."""


NO_DECAY = {1: ("relative_position_bias_table",), 2: ("cpb_mlp", "logit_scale")}
"""By version, besides biases and norms, which never decay. With --model.ape true, add absolute_pos_embed."""


RULES = (
    Rule(r"(attn/qkv|mlp/fc1)/kernel$", tensor_parallel(1)),
    Rule(r"(attn/proj|mlp/fc2)/kernel$", tensor_parallel(0)),
    Rule(r".*", fsdp),
)
"""Attention and MLP split over the tensor axis: columns of what enters a branch, rows of what leaves it."""


def optimizer(lr: float, warmup_init: float, min_lr: float, decay: float, version: int = 1) -> OptimizerConfig:
    """The official AdamW: per-iteration cosine, its rate set after the step, clipping at 5."""
    schedule = ScheduleConfig(kind="cosine", warmup_init_lr=warmup_init, min_lr=min_lr, late_by_one=True)
    return OptimizerConfig(
        learning_rate=lr, weight_decay=decay, no_decay=NO_DECAY[version], clip_norm=5.0, schedule=schedule
    )


def recipe(name: str, preset: str, batch: int = 1024, **fields: Any) -> SwinImagenet:
    """The parts that all recipes share: bfloat16 compute, evaluation once an epoch, images of the model's size."""
    model = dataclasses.replace(
        models.config(name), dtype="bfloat16", strict_img_size=True, **fields.pop("model_fields", {})
    )
    size = model.image_shape[0]
    augment = AugmentConfig(eval_crop=size <= 256)  # official TEST.CROP is off at 384
    dataset = fields.pop("dataset", "imagenet2012")
    data = DataConfig(dataset=dataset, image_size=size, batch_size=batch, eval_batch_size=1024, augment=augment)
    return SwinImagenet(preset=preset, model=model, data=data, **fields)


def scratch(name: str, preset: str) -> SwinImagenet:
    """ImageNet-1k, 300 epochs (paper A2.1; official default config)."""
    return recipe(name, preset, optimizer=optimizer(5e-4, 5e-7, 5e-6, 0.05))


def pretrain_22k(size: str, preset: str) -> SwinImagenet:
    """ImageNet-22k, 90 epochs; a folder of images, class by class (paper A2.1; official 22k configs)."""
    name = f"swin_{size}_patch4_window7_224_22k"
    made = optimizer(1.25e-4, 1.25e-7, 1.25e-6, 0.05)
    return recipe(name, preset, 4096, optimizer=made, dataset="folder", epochs=90.0, warmup_epochs=5.0)


def finetune(name: str, preset: str, drop_path: float, source: str) -> SwinImagenet:
    """30 epochs from pretrained weights, nearly no decay, augmented as from scratch (official finetune configs)."""
    return recipe(
        name,
        preset,
        optimizer=optimizer(2e-5, 2e-8, 2e-7, 1e-8, version=models.config(name).version),
        epochs=30.0,
        warmup_epochs=5.0,
        init_model=source,
        model_fields={"drop_path_rate": drop_path},
    )


def scratch_v2(size: str, window: int, preset: str) -> SwinImagenet:
    """Swin V2 on ImageNet-1k at 256."""
    return recipe(f"swinv2_{size}_window{window}_256", preset, optimizer=optimizer(5e-4, 5e-7, 5e-6, 0.05, version=2))


def pretrain_22k_v2(size: str, preset: str) -> SwinImagenet:
    """Swin V2 on ImageNet-22k at 192."""
    made = optimizer(1.25e-4, 1.25e-7, 1.25e-6, 0.1, version=2)
    name = f"swinv2_{size}_window12_192_22k"
    return recipe(name, preset, 4096, optimizer=made, dataset="folder", epochs=90.0, warmup_epochs=5.0)


def demo() -> SwinImagenet:
    """A Swin 64 wide on embedded digits, in minutes on two cores. Kernels scale by fan-in: .02 is too small here."""
    model = SwinConfig(
        img_size=28,
        patch_size=4,
        num_classes=10,
        embed_dim=64,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
        pretrained_window_sizes=(0, 0),
        drop_path_rate=0.05,
        initializer="fan_in",
    )
    augment = AugmentConfig(
        crop="pad",
        pad=2,
        hflip=0.0,
        auto_augment=None,
        mixup=0.0,
        cutmix=0.0,
        erase_prob=0.0,
        label_smoothing=0.1,
        mean=(0.13, 0.13, 0.13),
        std=(0.31, 0.31, 0.31),
    )
    return SwinImagenet(
        preset="demo",
        epochs=16.0,
        warmup_epochs=2.0,
        learning_rate_batch=None,
        model=model,
        data=DataConfig(dataset="digits", image_size=28, batch_size=64, eval_batch_size=200, augment=augment),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            weight_decay=0.05,
            no_decay=("relative_position_bias_table",),
            schedule=ScheduleConfig(warmup_init_lr=2e-5, min_lr=2e-5),
        ),
        train=TrainConfig(log_every=25),
    )


def _presets() -> dict[str, SwinImagenet]:
    table = {"demo": demo()}

    def add(preset: str, make: Any, *args: Any) -> None:
        table[preset] = make(*args, preset=preset)

    for size in ("tiny", "small", "base"):
        add(f"{size}_1k", scratch, f"swin_{size}_patch4_window7_224")
    add("tiny_c24_1k", scratch, "swin_tiny_c24_patch4_window8_256")
    for size in ("tiny", "small", "base", "large"):
        add(f"{size}_22k", pretrain_22k, size)
        source = f"swin_{size}_patch4_window7_224_22k"
        table[f"{size}_22k_to_1k"] = finetune(
            f"swin_{size}_patch4_window7_224", f"{size}_22k_to_1k", 0.1 if size == "tiny" else 0.2, source
        )
    for size in ("base", "large"):
        table[f"{size}_22k_to_1k_384"] = finetune(
            f"swin_{size}_patch4_window12_384", f"{size}_22k_to_1k_384", 0.2, f"swin_{size}_patch4_window12_384_22k"
        )
    table["base_384"] = finetune("swin_base_patch4_window12_384", "base_384", 0.5, "swin_base_patch4_window7_224")
    for window in (8, 16):
        for size in ("tiny", "small", "base"):
            add(f"v2_{size}_w{window}", scratch_v2, size, window)
    for size in ("base", "large"):
        add(f"v2_{size}_22k", pretrain_22k_v2, size)
        for window, image in ((16, 256), (24, 384)):
            preset = f"v2_{size}_22k_to_1k_{image}"
            name = f"swinv2_{size}_window12to{window}_192to{image}"
            table[preset] = finetune(name, preset, 0.2, f"swinv2_{size}_window12_192_22k")
    return table | _paper(table)


def _paper(table: dict[str, SwinImagenet]) -> dict[str, SwinImagenet]:
    """What the paper's appendix says where the official code does otherwise."""
    pre, fine = table["base_22k"], table["base_22k_to_1k"]
    linear = dataclasses.replace(pre.optimizer.schedule, kind="linear")
    constant = ScheduleConfig(kind="constant")
    return {
        "base_22k_paper": dataclasses.replace(
            pre,
            preset="base_22k_paper",
            optimizer=dataclasses.replace(pre.optimizer, weight_decay=0.01, schedule=linear),
        ),
        "base_22k_to_1k_paper": dataclasses.replace(
            fine,
            preset="base_22k_to_1k_paper",
            learning_rate_batch=None,
            warmup_epochs=0.0,
            optimizer=dataclasses.replace(fine.optimizer, learning_rate=1e-5, schedule=constant),
        ),
    }


PRESETS = _presets()
