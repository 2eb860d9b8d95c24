"""What the launchers of image classifiers share: settings, the experiment, the modes, names of images."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax

from flashjax import cli, data, training
from flashjax.data import DataConfig
from flashjax.data.augment.device import prepare_eval, prepare_train
from flashjax.evaluation import classify
from flashjax.objectives.classification import Classification
from flashjax.training import Experiment, Result, RunConfig
from flashjax.training.rundir import finished_run, workdir
from flashjax.training.sharding import FSDP_RULES, Rules
from flashjax.training.watchdog import Watchdog

Variables = dict[str, Any]
Objective = Callable[[Any, int], Classification]
"""(the launcher's configuration, classes) -> what is minimised and measured."""


@dataclass(frozen=True, kw_only=True)
class ImageRun(RunConfig):
    """Images to classify; a launcher adds `model`."""

    milestone_epochs: tuple[float, ...] = ()
    """Epochs after which the learning rate falls by optimizer.schedule.decay_rate, instead of the schedule's kind."""
    images: tuple[str, ...] = ()
    """Images to name in --mode predict."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images and what is done to them."""


def classifier(model: nn.Module, config: DataConfig, num_classes: int) -> Classification:
    """Soft-target cross entropy on the house pipeline's images, which it erases and mixes as `config` says."""
    return Classification(
        model=model,
        num_classes=num_classes,
        prepare_train=functools.partial(prepare_train, config=config, num_classes=num_classes),
        prepare_eval=functools.partial(prepare_eval, config=config),
    )


def experiment(
    config: Any,
    objective: Objective,
    program: str,
    rules: Rules = FSDP_RULES,
    pretrained: Callable[[int], Variables] | None = None,
) -> Experiment:
    """Data -> model -> objective -> experiment.

    Args:
        pretrained: from the number of classes to the variables to start from, host arrays.
    """
    train_data, eval_data, info = data.classification(
        config.data, config.data_dir, config.seed, jax.process_index(), jax.process_count()
    )
    config, steps = training.scale_recipe(config, train_data.batch_size, train_data.steps_per_epoch)
    config = _with_milestones(config, train_data.steps_per_epoch)
    return Experiment(
        name=program.split(".")[-1],
        config=config,
        objective=objective(config, info.num_classes),
        train_data=train_data,
        eval_data=eval_data,
        steps=steps,
        workdir=workdir(config, program),
        rules=rules,
        initial=None if pretrained is None else (lambda _: pretrained(info.num_classes)),
        resume_command=cli.command(program),
        facts={"dataset": info.name, "class_names": info.class_names},
    )


def _with_milestones(config: Any, steps_per_epoch: int) -> Any:
    """The configuration with the updates that its epochs are."""
    if not config.milestone_epochs:
        return config
    milestones = tuple(round(epochs * steps_per_epoch) for epochs in config.milestone_epochs)
    schedule = dataclasses.replace(config.optimizer.schedule, kind="multistep", milestones=milestones)
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, schedule=schedule))


def train(built: Experiment, watchdog: Watchdog, further: Mapping[str, str] | None = None) -> Result:
    """Fits, draws the report and says where everything is."""
    result = training.fit(built, watchdog)
    goal, names = built.objective, classify.readable_names(built.facts["class_names"])
    assert isinstance(goal, Classification)
    shown = classify.examples(result.program, goal, result.variables(), built.eval_data, names, 60)
    training.finish(built, result, shown, further)
    return result


def predict(config: Any, objective: Objective, program: str, pretrained: Callable[[], Variables] | None = None) -> None:
    """Names each of ``--images`` by the run's best checkpoint, or by pretrained weights where there is no run."""
    where = workdir(config, program)
    run = finished_run(where, config.checkpoint)
    if run is not None:
        variables = run.variables
    elif pretrained is not None:
        variables = pretrained()
    else:
        raise ValueError(f"no finished run in {where}: train first, name one with --workdir, or give --init")
    num_classes = variables["params"]["head"]["kernel"].shape[-1]
    names = run.class_names if run is not None else classify.default_names(num_classes)
    goal = objective(config, num_classes)
    classify.print_predictions(classify.predict_files(goal, variables, config.images, config.data, names))
