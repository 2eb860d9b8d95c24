"""Random Erasing (Zhong et al. 2020) on CIFAR-10, CIFAR-100, Fashion-MNIST: the paper's table and its sweeps.

    python -m experiments.random_erasing_cifar --preset paper --data_dir /data/tfds --dataset cifar100
    python -m experiments.random_erasing_cifar --preset fashion      small networks on 5,000 images, two cores

``paper`` is the official recipe: SGD, momentum 0.9, L2 of 5e-4 on every parameter, a rate of 0.1 that falls tenfold at
epochs 150 and 225 of 300, batches of 128, shifts of up to 4 pixels, flips, then erasing of the normalised image. Top-1
error of the paper without and with erasing, means of five runs:

    CIFAR-10    resnet20_cifar 7.21, 6.73      resnet110_cifar_bottleneck 5.10, 4.61     wrn_28_10 3.80, 3.08
    CIFAR-100   resnet20_cifar 30.84, 29.97    resnet110_cifar_bottleneck 23.73, 22.10   wrn_28_10 18.49, 17.73

Where paper and code disagree the code is the default. It fills with the raw mean of CIFAR-10 in the normalised image,
which is not the mean there; the paper fills with random pixels: --erasing.fill pixel (with erasing.mean and erasing.std
as data.augment has them). The paper does not say whether it reports the last epoch or the best one, which looks at the
test set: the table is of the last, cells.csv has both. Here an epoch leaves out its last, incomplete batch.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from flashjax import models
from flashjax.data import AugmentConfig, DataConfig, augment
from flashjax.data.augment.erasing import RandomErasing
from flashjax.models.resnet import ResNetConfig
from flashjax.recipes.images import ImageRun
from flashjax.training import OptimizerConfig, ScheduleConfig, TrainConfig

OFFICIAL: RandomErasing = augment.create("random_erasing", "official")


def images(dataset: str, batch: int = 128) -> DataConfig:
    """A data set with the size, statistics and flips that the official code has for it (digits: no flips)."""
    gray, digits = dataset in ("digits", "fashion_mnist"), dataset == "digits"
    augmentation = AugmentConfig(
        crop="pad",
        pad=2 if digits else 4,
        hflip=0.0 if digits else 0.5,
        auto_augment=None,
        mixup=0.0,
        cutmix=0.0,
        erase_prob=0.0,  # of the house pipeline, whose erasing is timm's
        label_smoothing=0.0,
        mean=(0.1307, 0.1307, 0.1307) if gray else (0.4914, 0.4822, 0.4465),
        std=(0.3081, 0.3081, 0.3081) if gray else (0.2023, 0.1994, 0.2010),
    )
    return DataConfig(
        dataset=dataset,
        image_size=28 if gray else 32,
        channels=1 if gray else 3,
        batch_size=batch,
        eval_batch_size=1000,
        augment=augmentation,
    )


@dataclass(frozen=True, kw_only=True)
class ErasingRun(ImageRun):
    """One run: a network, images, and what is erased of them."""

    model: ResNetConfig = field(default_factory=lambda: models.config("resnet20_cifar"))
    """Architecture."""
    erasing: RandomErasing = OFFICIAL
    """What is erased of training images once they are normalised."""


@dataclass(frozen=True, kw_only=True)
class RandomErasingCifar(ImageRun):
    """Runs without and with Random Erasing, of several networks and seeds."""

    dataset: Literal["digits", "fashion_mnist", "cifar10", "cifar100"] | None = None
    """Other images than the preset's, with the size, channels, statistics, shifts and flips that belong to them."""
    models: tuple[str, ...] = ("resnet20_cifar",)
    """Networks by name, a row each."""
    width: float = 1.0
    """Factor of their channels."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each cell is trained with each of them; the modes that look at one run take --seed and --models."""
    erasing: RandomErasing = OFFICIAL
    """What is erased of training images once they are normalised; of a sweep, all but its value."""
    sweep: Literal["table", "probability", "area", "aspect"] = "table"
    """Without and with erasing; or over values of the probability, the largest area (the least stays) or the least
    aspect (the largest is one over it)."""
    values: tuple[float, ...] = ()
    """Values of the sweep; default: 0.1, 0.3, 0.5, 0.7, 0.9."""
    redraw: bool = False
    """Draw table and page again from the log alone."""


def with_dataset(config: RandomErasingCifar) -> RandomErasingCifar:
    """The configuration with the images that ``--dataset`` names; what else data.* says stays."""
    if config.dataset in (None, config.data.dataset):
        return config
    theirs = images(config.dataset)
    data = dataclasses.replace(
        config.data,
        dataset=theirs.dataset,
        image_size=theirs.image_size,
        channels=theirs.channels,
        augment=theirs.augment,
    )
    return dataclasses.replace(config, data=data)


def recipe(preset: str, dataset: str, epochs: float, batch: int = 128, rate: float = 0.1) -> RandomErasingCifar:
    """The official recipe; its rate falls after half and three quarters of the epochs."""
    optimizer = OptimizerConfig(
        name="sgd",
        learning_rate=rate,
        momentum=0.9,
        weight_decay=5e-4,
        decay_vectors=True,
        clip_norm=None,
        schedule=ScheduleConfig(kind="constant"),
    )
    return RandomErasingCifar(
        preset=preset,
        epochs=epochs,
        milestone_epochs=(epochs / 2, 3 * epochs / 4),
        data=images(dataset, batch),
        optimizer=optimizer,
    )


def _small(config: RandomErasingCifar, eval_every: int = 0, **data: int) -> RandomErasingCifar:
    """A network of 8 layers at half its width (19,810 parameters), and three seeds, for two cores."""
    return dataclasses.replace(
        config,
        models=("resnet8_cifar",),
        width=0.5,
        seeds=(0, 1, 2),
        data=dataclasses.replace(config.data, **data),
        train=TrainConfig(log_every=26, eval_every=eval_every),
    )


PRESETS = {
    config.preset: config
    for config in (
        _small(recipe("demo", "digits", epochs=8.0, batch=64, rate=0.05)),
        recipe("paper", "cifar10", epochs=300.0),
        _small(recipe("fashion", "fashion_mnist", epochs=24.0, batch=64, rate=0.05), 312, train_examples=5000),
    )
}
