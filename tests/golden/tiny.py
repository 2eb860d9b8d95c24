"""Any preset of Swin made tiny: the same recipe on 16 fixed images of 32 pixels, in float32, twenty steps.

What makes a preset itself stays: version, schedule, decay, clipping, mixing, erasing, smoothing, stochastic depth.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from configs.swin_imagenet import RULES, SwinImagenet
from experiments.swin_imagenet import objective
from flashjax.training import Experiment, MeshConfig

STEPS, BATCH, CLASSES, SIZE = 20, 16, 10, 32
LEAVES = ("image", "label", "mix_lambda", "mix_box", "erase_box")


@dataclasses.dataclass(frozen=True)
class FixedImages:
    """Batch k is a function of k alone: noise around one pattern a class, drawn by NumPy."""

    erase_count: int = 1
    mixes: bool = True
    batch_size: int = BATCH
    steps_per_epoch: int = STEPS
    num_batches: int | None = None
    skipped: int = 0

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in self.batch(0).items()}

    def batch(self, k: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((7, k))
        patterns = np.random.default_rng(7).integers(0, 200, (CLASSES, SIZE, SIZE, 3))
        label = rng.integers(0, CLASSES, BATCH).astype(np.int32)
        image = (patterns[label] + rng.integers(0, 56, (BATCH, SIZE, SIZE, 3))).astype(np.uint8)
        cut = self.mixes and k % 2 == 1  # CutMix on odd steps, Mixup on even ones
        area = (SIZE // 2) ** 2 / SIZE**2
        weight = (1 - area if cut else rng.beta(0.8, 0.8)) if self.mixes else 1.0
        mix_box = np.tile(np.int32([4, 4 + SIZE // 2, 8, 8 + SIZE // 2] if cut else [0, 0, 0, 0]), (BATCH, 1))
        erase_box = np.zeros((BATCH, self.erase_count, 4), np.int32)
        erase_box[::4, :, :] = (3, 5, 10, 12)
        drawn = (image, label, np.full(BATCH, weight, np.float32), mix_box, erase_box)
        return dict(zip(LEAVES, drawn, strict=True))

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        while True:
            yield self.batch(start)
            start += 1


def shrink(preset: SwinImagenet) -> SwinImagenet:
    """The preset with a model of two short stages, images of 32 pixels, and its schedule squeezed into 20 steps."""
    model = dataclasses.replace(
        preset.model,
        img_size=SIZE,
        num_classes=CLASSES,
        embed_dim=16,
        depths=(2, 1),
        num_heads=(2, 4),
        window_size=4,
        pretrained_window_sizes=tuple(min(size, 2) for size in preset.model.pretrained_window_sizes[:2]),
        dtype="float32",
    )
    schedule = dataclasses.replace(
        preset.optimizer.schedule, warmup_steps=round(STEPS * preset.warmup_epochs / preset.epochs)
    )
    return dataclasses.replace(
        preset,
        model=model,
        data=dataclasses.replace(preset.data, image_size=SIZE, batch_size=BATCH, eval_batch_size=BATCH),
        optimizer=dataclasses.replace(preset.optimizer, schedule=schedule),
    )


def tiny(preset: SwinImagenet, mesh: MeshConfig) -> Experiment:
    """The experiment of `shrink(preset)` on `mesh`."""
    config = dataclasses.replace(shrink(preset), mesh=mesh)
    augment = config.data.augment
    data = FixedImages(erase_count=augment.erase_count, mixes=augment.mixes)
    return Experiment(
        name="tiny",
        config=config,
        objective=objective(config, CLASSES),
        train_data=data,
        eval_data=data,
        steps=STEPS,
        workdir="unused",
        rules=RULES,
    )
