"""Language models side by side: each trained under one budget, evaluated and timed in a process of its own.

``python -m flashjax.studies.comparison REQUEST`` is one cell of it; REQUEST is the JSON of a `Request`, and the last
line of its output the result. A launcher that can be compared has PRESETS and `contestant(config, name, causal, seed)`,
which makes an experiment with `flashjax.objectives.language.LanguageModelling`.
"""

import contextlib
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flashjax import cli
from flashjax.models.decode import for_decoding
from flashjax.processes import in_process
from flashjax.studies import cells
from flashjax.studies.cells import Line
from flashjax.studies.measure import compiled_step, temporaries
from flashjax.training.experiment import Experiment
from flashjax.training.program import Program

TABLES = {"causal": "Next tokens", "masked": "Hidden tokens"}
"""What the models of a table predict."""


@dataclass(frozen=True)
class Contestant:
    """One model with one seed."""

    table: str
    """One of TABLES."""
    name: str
    family: str
    """Models that are drawn in one colour."""
    options: str
    """Of its mixer."""
    seed: int
    budget: str
    """Digest of everything that all models of a comparison have in common: lines of another one are others."""
    reason: str = ""
    """Why it cannot take part."""


@dataclass(frozen=True)
class Request:
    """What to train and measure."""

    launcher: str
    """Module with PRESETS and contestant(config, name, causal, seed)."""
    arguments: tuple[str, ...]
    """Its command line."""
    name: str
    causal: bool
    seed: int
    decode_lengths: tuple[int, ...]
    """Tokens that the caches have room for in which decoding is timed."""


def sweep(
    contestants: Sequence[Contestant], log: Path, launcher: str, arguments: Sequence[str], lengths: Sequence[int]
) -> list[Line]:
    """Trains and measures those that ``log`` does not hold yet; returns the lines of all of them.

    ``arguments`` are the launcher's command line. Who cannot take part gets a line with the reason, without a process.
    """

    def measure(i: int) -> dict[str, Any]:
        who = contestants[i]
        if who.reason:
            return {"error": who.reason}
        request = Request(launcher, tuple(arguments), who.name, who.table == "causal", who.seed, tuple(lengths))
        return in_process("flashjax.studies.comparison", json.dumps(asdict(request)), timeout=24 * 3600.0)

    return cells.sweep([asdict(who) for who in contestants], log, key, measure, _told)


def read(log: Path) -> list[Line]:
    """The cells of a log."""
    return cells.read(log, key)


def key(line: Line) -> tuple[Any, ...]:
    """What tells cells apart."""
    return line["table"], line["name"], line["options"], line["seed"], line["budget"]


def _told(line: Line) -> str:
    words = f"{line['name']}, {TABLES[line['table']].lower()}, seed {line['seed']}: "
    if "error" in line:
        return words + line["error"]
    return words + f"loss {line['loss']:.4f}, {line['tokens_per_second']:,.0f} tokens/s"


def measure(experiment: Experiment, decode_lengths: Sequence[int]) -> dict[str, Any]:
    """Trains the experiment to its end, and says how well and how fast; nothing is written.

    Returns: parameters; loss, accuracy and bits_per_byte on the held-out text; train_losses, means of up to 50
    stretches; tokens_per_second of the median step (the data pipeline is not in it); step_bytes, what the compiled step
    takes beside its inputs, and state_bytes; process_bytes, the most that this process held until the end of training,
    with Python and the compiler; decode_seconds, by length, where the model decodes.

    Raises:
        ValueError: if the loss becomes NaN or infinite.
    """
    program = Program(experiment)
    data = experiment.train_data
    step, _, compile_time = compiled_step(program)
    state = program.init()
    losses, times = [], []
    with contextlib.closing(data.batches()) as batches:
        for _, rows in zip(range(experiment.steps), batches, strict=False):
            begun = time.perf_counter()
            state, metrics = step(state, program.put(rows, data.spec))
            losses.append(float(metrics["loss"]))  # waits for the step
            times.append(time.perf_counter() - begun)
            if not np.isfinite(losses[-1]):
                raise ValueError(f"the loss is {losses[-1]} at step {len(losses)}")
    process_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    metrics = program.evaluate(state, experiment.eval_data)
    goal: Any = experiment.objective
    length = data.spec["tokens"].shape[1] - goal.causal
    device = jax.devices()[0]
    return {
        **metrics,
        "train_losses": [round(float(x.mean()), 5) for x in np.array_split(losses, min(50, len(losses)))],
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "steps": experiment.steps,
        "batch_size": data.batch_size,
        "length": length,
        "tokens_per_second": data.batch_size * length / statistics.median(times),
        "step_times": [statistics.median(times), min(times)],
        "compile_time": compile_time,
        "step_bytes": temporaries(step),
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
        "process_bytes": process_bytes,
        "decode_seconds": decode_times(goal.model, state.variables(), decode_lengths) if goal.causal else {},
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
    }


def decode_times(
    model: nn.Module, variables: Mapping[str, Any], lengths: Sequence[int], steps: int = 32
) -> dict[str, float | None]:
    """Seconds a token of one row, by the tokens that its cache has room for: the median of ``steps`` steps.

    A compiled step does the same work at each position, so a cache is measured from its start. None: the model has not
    so many positions.
    """
    model, variables = for_decoding(model, variables)
    apply = jax.jit(lambda v, t, c: model.apply(v, t, c, method="step"), donate_argnums=2)
    token, found = jnp.zeros((1,), jnp.int32), {}
    for length in lengths:
        try:
            cache = model.init_cache(1, length)
        except ValueError:
            found[str(length)] = None
            continue
        times = []
        for _ in range(min(steps, length - 1) + 1):
            begun = time.perf_counter()
            logits, cache = apply(variables, token, cache)
            jax.block_until_ready(logits)
            times.append(time.perf_counter() - begun)
        found[str(length)] = statistics.median(times[1:] or times)
    return found


def main() -> None:
    request = Request(**json.loads(sys.argv[1]))
    with cli.friendly_errors():
        launcher, config = cli.launcher(request.launcher, request.arguments, needs="contestant")
        experiment = launcher.contestant(config, request.name, request.causal, request.seed)
        print(json.dumps(measure(experiment, request.decode_lengths)))


if __name__ == "__main__":
    main()
