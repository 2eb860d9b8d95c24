"""Swin Transformer (Liu et al. 2021, 2022) on ImageNet, or on any set of labelled images.

python -m experiments.swin_imagenet                                        a small Swin learns 4,000 real digits
python -m experiments.swin_imagenet --preset tiny_1k --data_dir DIR        the paper's run
python -m experiments.swin_imagenet --mode predict --images cat.jpg --init swin.pth --init_model NAME
"""

import dataclasses
from pathlib import Path
from typing import Any

from configs.swin_imagenet import PRESETS, RULES, SwinImagenet
from flashjax import cli, interop, models, training
from flashjax.data.imagenet import head_22k_to_1k
from flashjax.models.swin import SwinTransformer
from flashjax.models.swin_config import SwinConfig
from flashjax.models.swin_transfer import resize_parameters
from flashjax.objectives.classification import Classification
from flashjax.recipes import images
from flashjax.training import Experiment
from flashjax.training.rundir import finished_run

PROGRAM = "experiments.swin_imagenet"
PAPER = f"python -m {PROGRAM} --preset tiny_1k --data_dir DIR_OF_IMAGENET --workdir runs/tiny_1k"


def objective(config: SwinImagenet, num_classes: int) -> Classification:
    """Swin at the size of the images, with a head for the classes, under soft-target cross entropy."""
    if config.model.image_shape != (config.data.image_size,) * 2:
        raise ValueError(
            f"model.img_size is {config.model.img_size} but data.image_size is {config.data.image_size}: set both"
        )
    model = SwinTransformer(dataclasses.replace(config.model, num_classes=num_classes))
    return images.classifier(model, config.data, num_classes)


def pretrained(config: SwinImagenet, num_classes: int | None = None) -> dict[str, Any]:
    """Parameters of ``--init`` at this resolution and window, with a head for ``num_classes`` (default: their own)."""
    assert config.init is not None
    if Path(config.init).is_dir() and (run := finished_run(config.init)) is not None:
        params, source = run.variables["params"], SwinConfig(**run.config["model"])
        source = dataclasses.replace(source, num_classes=params["head"]["kernel"].shape[-1])
    elif config.init_model is None:
        raise ValueError(
            f"--init {config.init} needs --init_model: which model it is, e.g. swin_tiny_patch4_window7_224"
        )
    else:
        source = models.config(config.init_model)
        params = interop.load(config.init, config.init_model)["params"]
    target = dataclasses.replace(config.model, num_classes=num_classes or source.num_classes)
    to_1k = source.num_classes == 21841 and target.num_classes == 1000
    return resize_parameters(params, source, target, head_22k_to_1k().tolist() if to_1k else None)


def build(config: SwinImagenet) -> Experiment:
    """Data -> model -> objective -> experiment."""
    start = (lambda classes: {"params": pretrained(config, classes)}) if config.init else None
    return images.experiment(config, objective, PROGRAM, RULES, start)


def predict(config: SwinImagenet) -> None:
    """Names each of ``--images``."""
    start = (lambda: {"params": pretrained(config)}) if config.init else None
    images.predict(config, objective, PROGRAM, start)


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    with cli.friendly_errors(), training.session(config) as watchdog:
        train = lambda: images.train(build(config), watchdog, {"the paper's run": PAPER})  # noqa: E731
        training.run(config, lambda: build(config), train, lambda: predict(config))


if __name__ == "__main__":
    main()
