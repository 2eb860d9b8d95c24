"""A launcher's train step, traced for devices that are not there and data that need not be: as it is configured, and
under each remat policy."""

import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jax.extend import core

from flashjax.analysis import activations, modules
from flashjax.analysis.flops import flops_by
from flashjax.analysis.topology import Topology
from flashjax.data import described
from flashjax.training.experiment import Experiment, RunConfig
from flashjax.training.program import Program

Build = Callable[[Any], Experiment]
"""A launcher's: configuration to experiment."""


def build(launcher_build: Build, config: Any) -> Experiment:
    """The launcher's experiment; data that are not there are described by the model's sizes."""
    model = getattr(config, "model", None)
    sizes = {"classes": getattr(model, "num_classes", None), "vocab_size": getattr(model, "vocab_size", None)}
    with described.allowed(**sizes):
        return launcher_build(config)


def flops_by_pass(traced: core.ClosedJaxpr) -> dict[str, int]:
    """Of a step, all devices together, by pass; matrix products and convolutions, exact."""
    found = flops_by(traced, lambda equation, stack: modules.place(stack).part)
    return {part: int(found[part]) for part in modules.PASSES} | {"all": int(sum(found.values()))}


def useful_flops(launcher_build: Build, config: Any, program: Program, flops: dict[str, int]) -> int:
    """What utilisation is of: nothing that is computed again, and of a model that can be laid out in ways that multiply
    by ones and zeros, the FLOPs of its plain one."""
    model: Any = getattr(config, "model", None)
    if not hasattr(model, "plain") or _is_plain(model, program.choices):
        return flops["all"] - flops["recomputed"]
    plain = dataclasses.replace(config, model=model.plain())
    return flops_by_pass(Program(build(launcher_build, plain), list(program.mesh.devices.flat)).traced_step.jaxpr)[
        "all"
    ]


def _is_plain(model: Any, choices: Mapping[str, Collection[str]]) -> bool:
    """Whether the plain form is what runs, by the model's settings or by what `auto` has been chosen as."""
    plain, settings = model.plain(), (f.name for f in dataclasses.fields(model))
    return all(
        getattr(plain, s) == getattr(model, s) or set(choices.get(s, ())) == {getattr(plain, s)} for s in settings
    )


@dataclasses.dataclass(frozen=True)
class Policy:
    """A value of the model's `remat`, and the step that is traced under it."""

    remat: Any
    config: Any
    flops: dict[str, int]
    kept: int
    """Bytes that the forward pass hands to the backward pass."""
    block: int
    """Those of the block that keeps most."""


def remat_values(config: RunConfig) -> list[Any]:
    """The values that the model's `remat` can have, the configuration's own first; none where it has no such field."""
    model: Any = getattr(config, "model", None)
    if model is None or not hasattr(model, "remat"):
        return []
    kind = typing.get_type_hints(type(model))["remat"]
    values = [False, True] if kind is bool else list(typing.get_args(kind))
    return sorted(values, key=lambda value: value != model.remat)


def policies(launcher_build: Build, config: Any, topology: Topology, traced: core.ClosedJaxpr) -> list[Policy]:
    """All of them, the configuration's own, whose step is `traced` already, first."""
    found = []
    for remat in remat_values(config) or [None]:
        changed, jaxpr = config, traced
        if found:
            changed = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
            jaxpr = Program(build(launcher_build, changed), topology.devices).traced_step.jaxpr
        kept = activations.kept(jaxpr).total()
        found.append(Policy(remat, changed, flops_by_pass(jaxpr), kept, activations.of_one_block(jaxpr)))
    return found
