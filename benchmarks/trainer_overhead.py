"""What flashjax's trainer costs on one device, against the same update as a plain ``jax.jit`` loop.

    python -m benchmarks.trainer_overhead [--rounds 12] [--steps 8] [--batch 32] [--json FILE]

Five ways take turns, round by round, on the demo's Swin in float32; a ratio is the median over rounds of the ratio
within the round, of wall-clock and of CPU time of all threads (which other processes of a shared machine disturb less):

- plain: value_and_grad, Optax, apply_updates, donated; batches by device_put, the loss read one step late;
- plain, checked: the same with the gradient's norm and the select that leaves a NaN update out (nonfinite);
- program: `Program.train_step` with its shardings on the mesh of one device;
- loop: a step of `fit`'s loop: batch, transfer, step, watchdog, metrics read one step late;
- look: what `--watch N` adds to each N-th step, alone: the figures of every layer, read one look late.

Host time is what a step of the loop takes when its compiled step is replaced by one that returns at once.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.swin_imagenet import PRESETS
from experiments.swin_imagenet import build
from flashjax.ops.platform import jit_here
from flashjax.training.checkpoints import Checkpoints
from flashjax.training.experiment import Experiment
from flashjax.training.interrupts import InterruptGuard
from flashjax.training.loop import _Loop
from flashjax.training.program import Program
from flashjax.training.rundir import RunDirectory
from flashjax.training.step import step_rngs
from flashjax.training.watch import Watch
from flashjax.training.watchdog import Watchdog
from flashjax.training.writers import MultiWriter, make_writers


class Recorded:
    """The first batches of a pipeline, from memory: what is compared is not the making of batches."""

    def __init__(self, data: Any, count: int):
        self.kept = [data.batch(k) for k in range(count)]
        self.batch_size, self.steps_per_epoch, self.num_batches = data.batch_size, data.steps_per_epoch, None
        self.spec, self.skipped = data.spec, 0

    def batch(self, k: int) -> dict[str, np.ndarray]:
        return self.kept[k % len(self.kept)]

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        while True:
            yield self.batch(start)
            start += 1


def plain_step(program: Program, checked: bool) -> Callable[[Any, Any], Any]:
    """The update as one would write it without a trainer."""
    objective, optimizer = program.experiment.objective, program.optimizer
    seed = program.experiment.config.seed

    def step(state: tuple[Any, Any, Any], batch: Any) -> tuple[Any, Any]:
        number, params, opt_state = state
        data_key, model_key = step_rngs(seed, number)
        dropout, drop_path = jax.random.split(model_key)
        prepared = objective.prepare(batch, data_key)

        def loss_fn(params):
            loss, metrics, _ = objective.loss(
                {"params": params}, prepared, {"dropout": dropout, "drop_path": drop_path}
            )
            return loss, metrics

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, new_opt_state = optimizer.update(grads, opt_state, params)
        new = (number + 1, optax.apply_updates(params, updates), new_opt_state)
        if checked:
            norm = optax.global_norm(grads)
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)
            metrics = {**metrics, "grad_norm": norm}
        return new, {**metrics, "loss": loss}

    return jit_here(step, backward=True, donate_argnums=0)


class Plain:
    """Steps of `plain_step` with the metrics read one step late."""

    def __init__(self, program: Program, data: Recorded, checked: bool):
        state = program.init()
        self.state = (state.step, state.params, state.opt_state)
        self.compiled, self.data, self.pending, self.k = plain_step(program, checked), data, None, 0

    def step(self) -> None:
        batch = jax.device_put(self.data.batch(self.k))
        self.state, metrics = self.compiled(self.state, batch)
        previous, self.pending = self.pending, metrics
        if previous is not None:
            jax.device_get(previous)
        self.k += 1

    def wait(self) -> None:
        jax.block_until_ready(self.state)


class ByProgram(Plain):
    """Steps of `Program.train_step`."""

    def __init__(self, program: Program, data: Recorded):
        self.program, self.state, self.data, self.pending, self.k = program, program.init(), data, None, 0
        self.compiled = lambda state, batch: program.train_step(state, program.put(batch, data.spec))

    def step(self) -> None:
        self.state, metrics = self.compiled(self.state, self.data.batch(self.k))
        previous, self.pending = self.pending, metrics
        if previous is not None:
            jax.device_get(previous)
        self.k += 1


class ByLook(Plain):
    """Looks at the layers, without steps."""

    def __init__(self, program: Program, data: Recorded, directory: Path):
        self.program, self.state, self.data, self.pending, self.k = program, program.init(), data, None, 0
        self.watch = Watch(program, 1, MultiWriter(()), directory / "watch.jsonl", None)

    def step(self) -> None:
        figures = self.watch(self.state, self.program.put(self.data.batch(self.k), self.data.spec))
        previous, self.pending = self.pending, figures
        if previous is not None:
            self.watch.write(self.k, previous)
        self.k += 1

    def wait(self) -> None:
        jax.block_until_ready(self.pending)


class ByLoop:
    """Steps of the loop of `fit`, without evaluations and checkpoints; with `idle` the compiled step does nothing."""

    def __init__(self, program: Program, workdir: Path, guard: InterruptGuard, idle: bool):
        experiment = program.experiment
        self.run = RunDirectory(workdir)
        checkpoints = Checkpoints(self.run.checkpoints, experiment.config.checkpoint)
        writer = make_writers((), self.run.path, None, experiment.config)
        step = program.train_step
        if idle:
            ready = {"loss": 1.0, "grad_norm": 1.0, "accuracy": 0.5, "finite": 1.0, "applied": 1.0}
            held = jax.block_until_ready({name: jnp.float32(value) for name, value in ready.items()})
            step = lambda state, batch: (state, held)  # noqa: E731
        self.loop = _Loop(program, self.run, checkpoints, writer, guard, Watchdog(), step, program.flops())
        self.loop.batches = iter(experiment.train_data.batches(0))
        self.loop.bar = _NoBar()
        self.state, self.k = program.init(), 0

    def step(self) -> None:
        with jax.transfer_guard("disallow"):
            self.state = self.loop.step(self.state, self.k)
        self.k += 1

    def wait(self) -> None:
        jax.block_until_ready(self.state)

    def close(self) -> None:
        self.loop.close()
        self.run.close()


class _NoBar:
    """Instead of the progress bar."""

    def update(self, steps: int) -> None: ...
    def set_postfix_str(self, text: str) -> None: ...
    def close(self) -> None: ...


def experiment(batch: int, steps: int) -> Experiment:
    """The demo on one device, from recorded batches, without a log line in the way more often than every 50 steps."""
    demo = PRESETS["demo"]
    config = dataclasses.replace(demo, data=dataclasses.replace(demo.data, batch_size=batch, workers=0))
    made = build(config)
    return dataclasses.replace(made, train_data=Recorded(made.train_data, steps))


def measure(rounds: int, steps: int, batch: int) -> dict[str, Any]:
    """Seconds a step by way and round, and of the host alone."""
    made = experiment(batch, steps)
    program = Program(made, jax.devices()[:1])
    with tempfile.TemporaryDirectory() as directory, InterruptGuard() as guard:
        loop = ByLoop(program, Path(directory) / "loop", guard, idle=False)
        idle = ByLoop(program, Path(directory) / "idle", guard, idle=True)
        ways: dict[str, Any] = {
            "plain": Plain(program, made.train_data, checked=False),
            "plain, checked": Plain(program, made.train_data, checked=True),
            "program": ByProgram(program, made.train_data),
            "loop": loop,
            "look": ByLook(program, made.train_data, Path(directory)),
        }
        wall: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):  # the first round compiles
            # Every other round in the opposite order, so that a drift of the machine's speed meets all alike.
            for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
                seconds, busy = _time(way, steps)
                if number:
                    wall[name].append(seconds)
                    cpu[name].append(busy)
        host, host_cpu = zip(*(_time(idle, 50) for _ in range(rounds)), strict=True)
        loop.close()
        idle.close()
    return {
        "step_time": {name: statistics.median(of) for name, of in wall.items()},
        "ratio_to_plain": _ratios(wall, "plain"),
        "cpu_ratio_to_plain": _ratios(cpu, "plain"),
        "ratio_to_checked": _ratios(wall, "plain, checked"),
        "cpu_ratio_to_checked": _ratios(cpu, "plain, checked"),
        "host_time_of_a_step": statistics.median(host),
        "host_cpu_time_of_a_step": statistics.median(host_cpu),
        "wall_rounds": wall,
        "cpu_rounds": cpu,
        "batch_size": batch,
        "steps_a_round": steps,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _time(way: Any, steps: int) -> tuple[float, float]:
    """(seconds, CPU seconds) of a step."""
    way.step()
    way.wait()
    started, busy = time.perf_counter(), time.process_time()
    for _ in range(steps):
        way.step()
    way.wait()
    return (time.perf_counter() - started) / steps, (time.process_time() - busy) / steps


def _ratios(times: dict[str, list[float]], base: str) -> dict[str, float]:
    return {name: statistics.median(a / b for a, b in zip(of, times[base], strict=True)) for name, of in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="times that each way has its turn")
    parser.add_argument("--steps", type=int, default=8, help="steps of a turn")
    parser.add_argument("--batch", type=int, default=32, help="examples of a step")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    figures = measure(options.rounds, options.steps, options.batch)
    print(f"{'way':16}  {'ms a step':>10}  {'of plain':>9}  {'CPU time':>9}")
    for name, seconds in figures["step_time"].items():
        ratio, busy = figures["ratio_to_plain"][name], figures["cpu_ratio_to_plain"][name]
        print(f"{name:16}  {1e3 * seconds:10.2f}  {ratio:8.3f}x  {busy:8.3f}x")
    host, busy = figures["host_time_of_a_step"], figures["host_cpu_time_of_a_step"]
    print(
        f"\nselect and gradient norm: {figures['ratio_to_plain']['plain, checked'] - 1:+.1%} of a plain step "
        f"(CPU time {figures['cpu_ratio_to_plain']['plain, checked'] - 1:+.1%})\n"
        f"program and loop against the checked step: {figures['ratio_to_checked']['program']:.3f}x and "
        f"{figures['ratio_to_checked']['loop']:.3f}x (CPU time {figures['cpu_ratio_to_checked']['program']:.3f}x and "
        f"{figures['cpu_ratio_to_checked']['loop']:.3f}x)\n"
        f"host time of a step outside the device step: {1e3 * host:.3f} ms, {1e3 * busy:.3f} ms of it on the CPU"
    )
    look, busy = figures["ratio_to_checked"]["look"], figures["cpu_ratio_to_checked"]["look"]
    print(
        f"a look at every layer is {look:.2f} of a checked step ({busy:.2f} of its CPU time): --watch 50 adds "
        f"{look / 50:.1%} to a run"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
