"""Swin Transformer (Liu et al. 2021, 2022) on ImageNet, or on any set of labelled images.

python -m experiments.swin_imagenet                                        a small Swin learns 4,000 real digits
python -m experiments.swin_imagenet --preset tiny_1k --data_dir DIR        the paper's run
python -m experiments.swin_imagenet --mode predict --images cat.jpg --init swin.pth --init_model NAME
"""

import dataclasses
import functools

import jax

from configs.swin_imagenet import PRESETS, RULES, SwinImagenet
from flashjax import cli, data, training
from flashjax.data.augment.device import prepare_eval, prepare_train
from flashjax.evaluation import classify
from flashjax.models.swin import SwinTransformer
from flashjax.objectives.classification import Classification
from flashjax.training import Experiment

PROGRAM = "experiments.swin_imagenet"
PAPER = f"python -m {PROGRAM} --preset tiny_1k --data_dir <directory with imagenet2012> --workdir <directory>"


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


def build(config: SwinImagenet) -> Experiment:
    """Data -> model -> objective -> experiment."""
    train_data, eval_data, info = data.classification(
        config.data, config.data_dir, config.seed, jax.process_index(), jax.process_count()
    )
    config, steps = training.scale_recipe(config, train_data.batch_size, train_data.steps_per_epoch)
    goal = objective(config, info.num_classes)
    return Experiment(
        name="swin_imagenet",
        config=config,
        objective=goal,
        train_data=train_data,
        eval_data=eval_data,
        steps=steps,
        workdir=config.workdir or f"runs/swin_imagenet-{config.preset}",
        rules=RULES,
        initial=functools.partial(pretrained, config, goal) if config.init else None,
        resume_command=cli.command(PROGRAM),
        facts={"dataset": info.name, "class_names": info.class_names},
    )


def train(config: SwinImagenet) -> None:
    """Fits, draws the report and says where everything is."""
    experiment = build(config)
    result = training.fit(experiment)
    names = classify.readable_names(experiment.facts["class_names"])
    shown = classify.examples(experiment.objective, result.state.variables(), experiment.eval_data, names, 60)
    training.finish(experiment, result, shown, {"the paper's run": PAPER})


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__, with_data="tiny_1k")
    with cli.friendly_errors():
        match config.mode:
            case _ if config.dry_run:
                training.dry_run(build(config))
            case "train":
                train(config)
            case "eval":
                training.print_metrics(training.evaluate(build(config)))
            case "replay":
                training.replay(build(config))
            case "predict":
                predict(config)


if __name__ == "__main__":
    main()
