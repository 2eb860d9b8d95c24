"""One cell of a scaling study: what a train step of an experiment costs on one mesh.

``python -m flashjax.studies.measure REQUEST`` is what a study starts, a process for each cell, since a process has one
number of virtual devices for life; REQUEST is the JSON of a `Request`, and the last line of its output the result.
"""

import dataclasses
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import jax

from flashjax import cli
from flashjax.analysis.collectives import collectives, totals
from flashjax.training.experiment import Experiment
from flashjax.training.parameters import parameter_rows
from flashjax.training.program import Program


@dataclass(frozen=True)
class Request:
    """What to measure, and how often."""

    launcher: str
    """Module with PRESETS and build(config), such as experiments.swin_imagenet."""
    arguments: tuple[str, ...]
    """Its command line."""
    devices: int
    """How many, of those that JAX sees, from the first."""
    steps: int
    """Steps that are timed together."""
    rounds: int
    """Times that this is done; the median counts."""
    batch_factor: int = 1
    """Multiplies the batch size of the launcher's configuration."""


def build(request: Request) -> Experiment:
    """The launcher's experiment under the request's flags, without its evaluation.

    Raises:
        ValueError: if the module is no launcher.
    """
    launcher, config = cli.launcher(request.launcher, request.arguments)
    if request.batch_factor != 1:
        data = dataclasses.replace(config.data, batch_size=config.data.batch_size * request.batch_factor)
        config = dataclasses.replace(config, data=data)
    return launcher.build(config).without_evaluation()


def measure(experiment: Experiment, devices: int, steps: int, rounds: int) -> dict[str, Any]:
    """Figures of the compiled train step on the first ``devices`` devices; nothing is written.

    Bytes are of one device: of the state by its shardings, of temporaries by the compiler. Collectives are read from
    the compiled program. One batch serves all steps: the data pipeline is not measured.
    """
    program = Program(experiment, jax.devices()[:devices])
    data = experiment.train_data
    step, trace_time, compile_time = compiled_step(program)
    state, batch = program.init(), program.put(data.batch(0), data.spec)
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append((time.perf_counter() - begun) / steps)

    seconds = statistics.median(times)
    held = {
        name: sum(row.bytes_per_device for row in parameter_rows(tree, places))
        for name, tree, places in (
            ("parameters", program.abstract_state.params, program.shardings.params),
            ("gradients", program.abstract_state.params, program.shardings.params),
            ("optimizer state", program.abstract_state.opt_state, program.shardings.opt_state),
        )
    }
    device = jax.devices()[0]
    return {
        "devices": devices,
        "device_kind": device.device_kind,
        "virtual": device.platform == "cpu",
        "axes": {axis: size for axis, size in program.mesh.shape.items() if size > 1},
        "parameters": sum(x.size for x in jax.tree.leaves(program.abstract_state.params)),
        "batch_size": data.batch_size,
        "step_time": seconds,
        "step_time_range": [min(times), max(times)],
        "examples_per_second": data.batch_size / seconds,
        "trace_time": trace_time,
        "compile_time": compile_time,
        "flops_per_step": program.flops(),
        "bytes_per_device": held | {"temporaries": temporaries(step)},
        "collectives": {
            kind: dataclasses.asdict(total) for kind, total in totals(collectives(step.as_text() or "")).items()
        },
        "loss": float(metrics["loss"]),
        "jax": jax.__version__,
        "machine": platform.machine(),
    }


def compiled_step(program: Program) -> tuple[jax.stages.Compiled, float, float]:
    """(the train step, seconds of tracing, seconds of compilation)."""
    started = time.perf_counter()
    lowered = program.lower_step()
    traced = time.perf_counter()
    step = lowered.compile()
    return step, traced - started, time.perf_counter() - traced


def temporaries(step: jax.stages.Compiled) -> int | None:
    """Bytes of a device that the compiler needs besides what goes in and out; None where it does not say."""
    analysis = step.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def main() -> None:
    request = Request(**json.loads(sys.argv[1]))
    with cli.friendly_errors():
        experiment = build(request)
        print(json.dumps(measure(experiment, request.devices, request.steps, request.rounds)))


if __name__ == "__main__":
    main()
