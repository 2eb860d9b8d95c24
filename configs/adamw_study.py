"""Adam with L2 against AdamW: a walk on two parameters, and a grid of learning rate x weight decay.

    python -m experiments.adamw_study                   567 trainings of a small network on 500 real digits, and a page
    python -m experiments.adamw_study --preset quick    147 shorter ones
    python -m experiments.adamw_study --processes 2     two processes share the grid; more may be started by hand

What it took and what came out is in docs/adamw.md.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from flashjax.models.convnet import ConvNetConfig
from flashjax.recipes.optimizer_walk import Walk

Name = Literal["adam_l2", "adamw", "adamw_paper"]


@dataclass(frozen=True)
class Decays:
    """Exponents of the weight decays of each algorithm, in which the decay means another thing."""

    adam_l2: tuple[int, ...] = tuple(range(-11, -2))
    """Of the L2 term in the gradient."""
    adamw: tuple[int, ...] = tuple(range(-4, 5))
    """Times the learning rate, as in PyTorch and Optax."""
    adamw_paper: tuple[int, ...] = tuple(range(-11, -2))
    """Not times the learning rate: what a parameter loses in a step before the schedule falls."""


@dataclass(frozen=True, kw_only=True)
class AdamwStudy:
    """The walk, and the cells (algorithm, learning rate, weight decay, seed)."""

    preset: str = "full"
    """Named study; other flags change single values of it."""
    mode: Literal["study", "walk", "measure", "redraw"] = "study"
    """The walk, the grid and the page; the walk alone; the grid alone (further processes of a study); or the page again
    from the log alone."""
    workdir: str | None = None
    """Directory of the study: cells.jsonl, cells.csv, figure.html; default runs/adamw_study-<preset>."""
    processes: int = 1
    """Processes of this machine that share the grid."""
    walk: Walk = field(default_factory=Walk)
    """Two parameters."""
    algorithms: tuple[Name, ...] = ("adam_l2", "adamw", "adamw_paper")
    """Whose grids are measured."""
    learning_rates: tuple[int, ...] = tuple(range(-10, -3))
    """Exponents of the learning rates, powers of 2; each falls to 0 along a cosine."""
    decays: Decays = field(default_factory=Decays)
    """Exponents of the weight decays."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each draws parameters and the order of the images."""
    model: ConvNetConfig = field(default_factory=ConvNetConfig)
    """The network."""
    train_images: int = 500
    """Of the 5,000 embedded digits, as many of each class; all others are held out."""
    epochs: int = 60
    """Passes over them."""
    batch_size: int = 50
    """Images a step."""


FULL = AdamwStudy()
QUICK = replace(
    FULL,
    preset="quick",
    decays=Decays(adam_l2=tuple(range(-15, -2, 2)), adamw=tuple(range(-6, 7, 2)), adamw_paper=tuple(range(-15, -2, 2))),
    seeds=(0,),
    epochs=20,
)
PRESETS = {study.preset: study for study in (FULL, QUICK)}
