"""Random Erasing's recipe on a residual network of one block a stage: 16 fixed images, twenty steps, float32.

What makes the recipe stays: SGD and its decay of everything, erasing of normalised images, batch statistics.
"""

import dataclasses

from configs.random_erasing_cifar import PRESETS
from experiments import random_erasing_cifar as launcher
from flashjax.recipes import erasing_study
from flashjax.training import Experiment, MeshConfig
from tests.golden.tiny import CLASSES, STEPS, FixedImages


def tiny_resnet(name: str, mesh: MeshConfig) -> Experiment:
    """The experiment of the paper's recipe on `mesh`, of a model that has the blocks of the one so named."""
    study = dataclasses.replace(PRESETS["paper"], models=(name,), width=0.1 if "wrn" in name else 1.0, mesh=mesh)
    run = launcher.cell_run(study, erasing_study.cells(study)[-1])
    model = dataclasses.replace(run.model, depths=(1, 1, 1))
    # 0.1 is for batches of 128; at 0.01 rounding grows to 1e-3 in twenty steps.
    optimizer = dataclasses.replace(run.optimizer, learning_rate=0.002)
    config = dataclasses.replace(run, model=model, seed=0, optimizer=optimizer)
    data = FixedImages(mixes=False)
    return Experiment(
        name="tiny",
        config=config,
        objective=launcher.objective(config, CLASSES),
        train_data=data,
        eval_data=data,
        steps=STEPS,
        workdir="unused",
    )
