"""Adam with L2 against AdamW (Loshchilov and Hutter 2017): what differs in a step, and what it does to a grid.

python -m experiments.adamw_study                                   both, and a page; goes on where it was stopped
python -m experiments.adamw_study --preset quick --processes 2      a smaller grid, shared by two processes
python -m experiments.adamw_study --mode redraw                     the page again, from the log alone
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.adamw_study import PRESETS, AdamwStudy
from flashjax import cli
from flashjax.drawing import text_table
from flashjax.models.convnet import ConvNet
from flashjax.recipes import optimizer_grid, optimizer_page, optimizer_walk
from flashjax.recipes.mapped import MappedTraining, digit_trainings
from flashjax.studies import study
from flashjax.studies.cells import Line
from flashjax.studies.study import Cell
from flashjax.training import rundir

PROGRAM = "experiments.adamw_study"
OWN = ("preset", "mode", "workdir", "processes", "walk", "algorithms", "learning_rates", "decays", "seeds")
"""Settings that are axes of the grid, or do not change its figures."""
TOGETHER = ("algorithm", "seed", "learning_rate")
"""Cells that agree in these are one call of a compiled program."""


def cells(config: AdamwStudy) -> list[Cell]:
    """Every algorithm, seed, learning rate and weight decay."""
    return [
        cell
        for name in config.algorithms
        for cell in study.grid(
            settings=[study.digest(config, OWN)],
            algorithm=[name],
            seed=config.seeds,
            learning_rate=[2.0**exponent for exponent in config.learning_rates],
            weight_decay=[2.0**exponent for exponent in getattr(config.decays, name)],
        )
    ]


def trainings(config: AdamwStudy) -> dict[str, MappedTraining]:
    """The compiled trainings, by algorithm."""
    model = ConvNet(config.model)
    return digit_trainings(model, config.algorithms, config.train_images, config.epochs, config.batch_size)


def measure(made: Mapping[str, MappedTraining], group: Sequence[Cell]) -> list[dict[str, Any]]:
    """The figures of cells that differ in their weight decay."""
    rates, decays = ([cell[name] for cell in group] for name in ("learning_rate", "weight_decay"))
    return study.figures(made[group[0]["algorithm"]](group[0]["seed"], rates, decays))


def told(line: Line) -> str:
    """A cell for the terminal."""
    rate, decay = optimizer_grid.power(line["learning_rate"]), optimizer_grid.power(line["weight_decay"])
    return f"{line['algorithm']}, seed {line['seed']}, rate {rate}, decay {decay}: error {line['eval_error']:.2%}"


def facts(config: AdamwStudy, lines: Sequence[Line]) -> str:
    """What was trained, in words."""
    steps = config.epochs * (config.train_images // config.batch_size)
    return (
        f"{len(lines)} of {len(cells(config))} trainings of a convolutional network on {config.train_images} digits, "
        f"{steps} steps of {config.batch_size}, cosine schedule; {5000 - config.train_images} others are held out. The "
        f"best cells are chosen by the same held-out images that judge them."
    )


def walk(config: AdamwStudy) -> list[str]:
    """Both algorithms on two parameters: tables here, and what goes on the page."""
    walks = {name: optimizer_walk.walk(config.walk, name) for name in optimizer_walk.ALGORITHMS}
    for name, steps in walks.items():
        print(f"{optimizer_walk.ALGORITHMS[name]}\n{text_table(*optimizer_walk.cells(steps[: config.walk.shown]))}\n")
    print(optimizer_walk.verdict(config.walk, walks), flush=True)
    return optimizer_page.walk_parts(config.walk, walks)


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    workdir = Path(rundir.workdir(config, PROGRAM))
    log, wanted = workdir / "cells.jsonl", cells(config)
    with cli.friendly_errors():
        if config.mode in ("study", "measure"):
            made = trainings(config)
            print(f"{len(wanted)} trainings, {next(iter(made.values())).flops() / 1e9:.1f} GFLOP each", flush=True)
            with study.helpers(PROGRAM, config.processes - 1, workdir):
                study.sweep(wanted, log, functools.partial(measure, made), told, TOGETHER)
        if config.mode == "measure":
            return
        lines = [] if config.mode == "walk" else study.read(log, wanted)
        parts = walk(config)
        if lines:
            parts += optimizer_page.grid_parts(lines, facts(config, lines))
            found = optimizer_grid.surfaces(lines)
            print("\n".join(["", text_table(*optimizer_grid.table(found)), "", *optimizer_grid.verdicts(found), ""]))
            print(f"  log     {log}\n  table   {study.write_csv(workdir / 'cells.csv', lines)}")
        print(f"  figure  {optimizer_page.write(workdir / 'figure.html', parts)}")


if __name__ == "__main__":
    main()
