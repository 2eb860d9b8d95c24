"""Swin Transformer (Liu et al. 2021, 2022) on ImageNet, or on any set of labelled images.

python -m experiments.swin_imagenet                                        a small Swin learns 4,000 real digits
python -m experiments.swin_imagenet --preset tiny_1k --data_dir DIR        the paper's run
python -m experiments.swin_imagenet --mode predict --images cat.jpg --init swin.pth --init_model NAME
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from configs.swin_imagenet import PRESETS, RULES, SwinImagenet
from flashjax import cli, data, interop, models, training
from flashjax.data.augment.device import prepare_eval, prepare_train
from flashjax.data.imagenet import head_22k_to_1k
from flashjax.evaluation import classify
from flashjax.models.swin import SwinConfig, SwinTransformer
from flashjax.models.swin_transfer import resize_parameters
from flashjax.objectives.classification import Classification
from flashjax.training import Experiment
from flashjax.training.rundir import finished_run
from flashjax.training.watchdog import Watchdog

PROGRAM = "experiments.swin_imagenet"
PAPER = f"python -m {PROGRAM} --preset tiny_1k --data_dir DIR_OF_IMAGENET --workdir runs/tiny_1k"


def objective(config: SwinImagenet, num_classes: int) -> Classification:
    """Swin at the size of the images, with a head for the classes, under soft-target cross entropy."""
    if config.model.image_shape != (config.data.image_size,) * 2:
        raise ValueError(
            f"model.img_size is {config.model.img_size} but data.image_size is {config.data.image_size}: set both"
        )
    return Classification(
        model=SwinTransformer(dataclasses.replace(config.model, num_classes=num_classes)),
        num_classes=num_classes,
        prepare_train=functools.partial(prepare_train, config=config.data, num_classes=num_classes),
        prepare_eval=functools.partial(prepare_eval, config=config.data),
    )


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
    train_data, eval_data, info = data.classification(
        config.data, config.data_dir, config.seed, jax.process_index(), jax.process_count()
    )
    config, steps = training.scale_recipe(config, train_data.batch_size, train_data.steps_per_epoch)
    return Experiment(
        name="swin_imagenet",
        config=config,
        objective=objective(config, info.num_classes),
        train_data=train_data,
        eval_data=eval_data,
        steps=steps,
        workdir=workdir(config),
        rules=RULES,
        initial=(lambda _: {"params": pretrained(config, info.num_classes)}) if config.init else None,
        resume_command=cli.command(PROGRAM),
        facts={"dataset": info.name, "class_names": info.class_names},
    )


def workdir(config: SwinImagenet) -> str:
    return config.workdir or f"runs/swin_imagenet-{config.preset}"


def train(config: SwinImagenet, watchdog: Watchdog) -> None:
    """Fits, draws the report and says where everything is."""
    experiment = build(config)
    result = training.fit(experiment, watchdog)
    goal, names = experiment.objective, classify.readable_names(experiment.facts["class_names"])
    assert isinstance(goal, Classification)
    shown = classify.examples(result.program, goal, result.state.variables(), experiment.eval_data, names, 60)
    training.finish(experiment, result, shown, {"the paper's run": PAPER})


def predict(config: SwinImagenet) -> None:
    """Names each of ``--images`` by the run's best checkpoint, or by ``--init`` where there is no run."""
    run = finished_run(workdir(config), config.checkpoint)
    if run is None and config.init is None:
        raise ValueError(f"no finished run in {workdir(config)}: train first, name one with --workdir, or give --init")
    variables = run.variables if run is not None else {"params": pretrained(config)}
    num_classes = variables["params"]["head"]["kernel"].shape[-1]
    names = run.class_names if run is not None else classify.default_names(num_classes)
    goal = objective(config, num_classes)
    classify.print_predictions(classify.predict_files(goal, variables, config.images, config.data, names))


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__, with_data="tiny_1k")
    with cli.friendly_errors(), training.session(config) as watchdog:
        match config.mode:
            case _ if config.dry_run:
                training.dry_run(build(config))
            case "train":
                train(config, watchdog)
            case "eval":
                training.print_metrics(training.evaluate(build(config)))
            case "replay":
                training.replay(build(config))
            case "predict":
                predict(config)


if __name__ == "__main__":
    main()
