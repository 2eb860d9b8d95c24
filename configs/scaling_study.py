"""Which model sizes on which meshes: the studies of `python -m experiments.scaling_study`.

``demo``: the embedded digits' Swin at two widths on meshes of 1 to 8 devices, some twenty minutes on two cores.
``quick``: two meshes, to see that everything works, some two minutes.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScalingStudy:
    """Cells of (model size, mesh) of one experiment, and the runs whose loss is set against compute."""

    preset: str = "demo"
    """Named study; other flags change single values of it."""
    mode: Literal["sweep", "redraw"] = "sweep"
    """Measure the cells that cells.jsonl does not hold yet and draw; or draw again from the logs alone."""
    workdir: str | None = None
    """Directory of the study: cells.jsonl, table.md, figure.html; default runs/scaling_study-<preset>."""
    data_dir: str | None = None
    """Directory of the data set, for an experiment that needs one."""
    experiment: str = "experiments.swin_imagenet --preset demo"
    """The launcher and its flags."""
    sizes: tuple[str, ...] = ("model.embed_dim=32", "model.embed_dim=64")
    """Model sizes, each as launcher flags 'model.embed_dim=64 model.depths=2,2'; '' for the preset's own."""
    meshes: tuple[str, ...] = (
        *("data=1", "data=2", "data=4", "data=8", "fsdp=8", "data=2 fsdp=4"),
        *("data=4 tensor=2", "data=2 fsdp=2 tensor=2"),
    )
    """Meshes, each as 'data=2 fsdp=4'; axes that are not named have size 1, and the product is the devices."""
    weak: bool = False
    """The batch grows with the devices (weak scaling); else it is the preset's own everywhere (strong scaling)."""
    virtual: bool = True
    """Virtual devices made of this machine's CPU; else the real devices, of which a cell takes the first."""
    steps: int = 8
    """Steps that are timed together."""
    rounds: int = 5
    """Times that they are timed; the median counts."""
    runs: tuple[str, ...] = ()
    """Directories of finished runs of several sizes, for the fit of loss against compute."""


DEMO = ScalingStudy()
QUICK = replace(DEMO, preset="quick", sizes=("",), meshes=("data=1", "data=2 fsdp=2"), steps=2, rounds=3)
PRESETS = {study.preset: study for study in (DEMO, QUICK)}
