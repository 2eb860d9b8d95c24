"""Random Erasing (Zhong et al. 2020): networks trained without and with it, over several seeds; the paper's table.

python -m experiments.random_erasing_cifar                                 a small network on 4,000 real digits
python -m experiments.random_erasing_cifar --dataset fashion_mnist         the same on Debian's Fashion-MNIST
python -m experiments.random_erasing_cifar --sweep probability             error by probability (or area, aspect)
python -m experiments.random_erasing_cifar --data_dir DIR --models resnet20_cifar wrn_28_10   the paper's runs
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax

from configs.random_erasing_cifar import PRESETS, ErasingRun, RandomErasingCifar, with_dataset
from flashjax import cli, training
from flashjax.models.resnet import ResNet
from flashjax.objectives.classification import Classification
from flashjax.recipes import erasing_study, images
from flashjax.studies import study
from flashjax.training import Experiment, rundir
from flashjax.training.watchdog import Watchdog

PROGRAM = "experiments.random_erasing_cifar"


def objective(config: ErasingRun, num_classes: int) -> Classification:
    """A residual network under cross entropy; training images are normalised, then erased."""
    model = ResNet(dataclasses.replace(config.model, num_classes=num_classes))
    plain = images.classifier(model, config.data, num_classes)

    def prepare_train(batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        made = plain.prepare_train(batch, key)
        return {**made, "image": config.erasing(jax.random.fold_in(key, 1), made["image"])}

    return dataclasses.replace(plain, prepare_train=prepare_train)


def cell_run(config: RandomErasingCifar, cell: study.Cell) -> ErasingRun:
    """The run of one cell; its directory lies below the study's."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(ErasingRun) if f.name != "model"}
    where = f"{rundir.workdir(config, PROGRAM)}/runs/{cell['model']}-{cell['sweep']}-{cell['value']:g}-{cell['seed']}"
    return ErasingRun(
        **shared
        | {
            "workdir": where,
            "seed": cell["seed"],
            "model": erasing_study.network(cell["model"], config.width, config.data),
            "erasing": erasing_study.erasing(config.erasing, cell, config.data.channels),
        }
    )


def build(config: RandomErasingCifar) -> Experiment:
    """One run, with erasing, in the directory of the study: the first of the models, the seed of ``--seed``."""
    config = with_dataset(config)
    cell = {**erasing_study.cells(config)[-1], "model": config.models[0], "seed": config.seed}
    run = dataclasses.replace(cell_run(config, cell), workdir=rundir.workdir(config, PROGRAM))
    return images.experiment(run, objective, PROGRAM)


def measure(config: RandomErasingCifar, cell: study.Cell, watchdog: Watchdog) -> dict[str, Any]:
    """Trains the run of a cell, or goes on with it; its test errors."""
    built, started = images.experiment(cell_run(config, cell), objective, PROGRAM), time.perf_counter()
    result = training.fit(built, watchdog)
    return erasing_study.figures(built, result, time.perf_counter() - started)


def run_study(config: RandomErasingCifar, watchdog: Watchdog) -> None:
    """Cells -> log -> table, csv, page."""
    where, cells = Path(rundir.workdir(config, PROGRAM)), erasing_study.cells(config)
    log = where / "cells.jsonl"
    if config.redraw:
        lines = study.read(log, cells)
    else:
        measured = lambda some: [measure(config, cell, watchdog) for cell in some]  # noqa: E731
        lines = study.sweep(cells, log, measured, erasing_study.told)
    text, files = erasing_study.write(where, lines)
    print(f"\n{text}\n\n" + "\n".join(f"  {path}" for path in (log, *files)))


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    with cli.friendly_errors(), training.session(config) as watchdog:
        config = with_dataset(config)
        predict = lambda: images.predict(build(config).config, objective, PROGRAM)  # noqa: E731
        training.run(config, lambda: build(config), lambda: run_study(config, watchdog), predict)


if __name__ == "__main__":
    main()
