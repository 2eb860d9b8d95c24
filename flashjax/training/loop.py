"""``fit``: from an experiment to a trained state, in the order evaluate, save, next batch, step, write.

Evaluation and saving come first so that what is saved at step k has been measured at step k, and so that a run that
resumes at k does neither twice. Metrics are read one step late: the host never waits for the step it just gave away.
"""

import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from flashjax.analysis.chips import peak_flops
from flashjax.ops.platform import in_words
from flashjax.training import nonfinite
from flashjax.training.checkpoints import Checkpoints
from flashjax.training.experiment import Batch, Experiment
from flashjax.training.interrupts import Interrupted, InterruptGuard
from flashjax.training.optimizers import learning_rate_at
from flashjax.training.program import Program
from flashjax.training.rundir import RunDirectory
from flashjax.training.step import TrainState
from flashjax.training.watch import Figures, Watch
from flashjax.training.watchdog import Watchdog
from flashjax.training.writers import make_writers


@dataclass
class Result:
    """What is left of a run."""

    program: Program
    state: TrainState
    metrics: dict[str, float]
    """The last evaluation."""
    step: int
    examples_per_second: float
    workdir: Path
    checkpoint: Path | None
    """The best checkpoint."""
    best: dict[str, float] = field(default_factory=dict)
    """The evaluation that belongs to it."""

    def variables(self) -> dict[str, Any]:
        """The last (averaged) variables, as the model takes them."""
        return self.program.objective.of_model(self.state.variables())


@dataclass
class _Clock:
    """Sums over the steps since the last line of metrics."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    waited: float = 0.0

    def rates(self, batch_size: int) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        steps = max(self.steps, 1)
        return {
            "step_time": seconds / steps,
            "data_wait": self.waited / steps,
            "examples_per_second": batch_size * self.steps / max(seconds, 1e-9),
        }


def fit(experiment: Experiment, watchdog: Watchdog | None = None) -> Result:
    """Trains ``experiment``, resuming what its workdir holds; tells ``watchdog`` of each step.

    Returns the final state and the figures of the run.

    Raises:
        Interrupted: after SIGTERM or Ctrl-C, once the state is saved; the resume command is printed.
        CheckpointError, RunDirectoryError, ShardingError, NonFiniteError, ValueError: each names the value and the fix.
    """
    run = RunDirectory(experiment.workdir)
    try:
        with InterruptGuard() as guard:
            return _fit(experiment, run, guard, watchdog or Watchdog())
    finally:
        run.close()


def _fit(experiment: Experiment, run: RunDirectory, guard: InterruptGuard, watchdog: Watchdog) -> Result:
    config = experiment.config
    program = Program(experiment)
    checkpoints = Checkpoints(run.checkpoints, config.checkpoint)
    resumed = checkpoints.latest()
    if resumed is not None:
        run.check_same(config, config.train.accept_changes)
    if resumed is None:
        state, step = program.init(), 0
    else:
        state, step = checkpoints.restore(resumed, program.abstract_state), resumed
        _say(f"resumed at step {step} from {checkpoints.path(step)}")
    flops = program.flops()
    if program.choices:
        _say(f"chosen for {program.mesh.devices.flat[0].platform}: {in_words(program.choices)}")
    run.write_config(
        experiment.name,
        config,
        program.mesh,
        steps=experiment.steps,
        parameters=sum(x.size for x in jax.tree.leaves(program.abstract_state.params)),
        flops_per_step=flops,
        multipliers=program.objective.multipliers,
        choices=program.choices,
        **experiment.facts,
    )
    writer = make_writers(config.train.writers, run.path, step if resumed is not None else None, config)

    watch = Watch.of(program, run, writer, resumed)
    started = time.perf_counter()
    train_step = program.compile_step()
    compile_time = time.perf_counter() - started
    writer.write(step, {"compile_time": compile_time})

    loop = _Loop(program, run, checkpoints, writer, guard, watchdog, train_step, flops, watch)
    try:
        return loop.run_from(state, step, fresh=resumed is None)
    finally:
        loop.close()


class _Loop:
    """The moving parts of one run."""

    def __init__(self, program, run, checkpoints, writer, guard, watchdog, train_step, flops, watch=None):
        self.program: Program = program
        self.experiment: Experiment = program.experiment
        self.config = program.experiment.config
        self.run: RunDirectory = run
        self.checkpoints: Checkpoints = checkpoints
        self.writer = writer
        self.guard: InterruptGuard = guard
        self.watchdog: Watchdog = watchdog
        self.train_step = train_step
        self.watch: Watch | None = watch
        self.data = program.experiment.train_data
        peak = peak_flops(program.mesh.devices.flat[0].device_kind)
        self.flops, self.peak = flops, None if peak is None else peak * program.mesh.size
        self.pending: tuple[int, Batch, Any, Figures | None] | None = None
        self.nonfinite_in_a_row = 0
        self.clock = _Clock()
        self.train_seconds, self.train_steps = 0.0, 0
        self.bar: Any = None
        self.batches: Generator[dict[str, np.ndarray], None, None] | None = None

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.batches is not None:
            self.batches.close()  # ends worker processes
        if self.watch is not None:
            self.watch.close()
        self.writer.close()
        self.checkpoints.close()

    def run_from(self, state: TrainState, step: int, fresh: bool) -> Result:
        total, every = self.experiment.steps, self.experiment.eval_every
        save_every = self.config.checkpoint.every or every
        self.batches = self.data.batches(step)
        self.bar = tqdm(
            total=total,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 15.0,  # a log file wants few lines
            disable=not self.config.train.progress or jax.process_index() != 0,
        )
        metrics: dict[str, float] = {}
        first = step
        self.clock = _Clock()
        with jax.transfer_guard("disallow"):
            while True:
                at_start = step == first and not (fresh and step == 0 and total > 0)
                due = step == total or (step % every == 0 and step > 0)
                measured: dict[str, float] = {}
                # A run that was stopped in its evaluation makes it up; the step's checkpoint then has no metrics.
                if due and not (at_start and step < total and self.checkpoints.metrics(step)):
                    state = self.drain(state)
                    measured = self.evaluate(state, step)
                    metrics = measured or metrics
                if (due or (step % save_every == 0 and step > 0)) and not at_start:
                    state = self.drain(state)
                    self.save(state, step, measured or None)
                if self.interrupted(step):
                    state = self.drain(state)
                    self.stop(state, step)
                if step == total:
                    break
                state = self.step(state, step)
                step += 1
        self.checkpoints.wait()
        best = self.checkpoints.best()
        self.writer.flush()
        return Result(
            program=self.program,
            state=state,
            metrics=metrics,
            step=step,
            examples_per_second=self.data.batch_size * self.train_steps / self.train_seconds
            if self.train_seconds
            else 0.0,
            workdir=self.run.path,
            checkpoint=None if best is None else self.checkpoints.path(best),
            best=self.checkpoints.metrics(best) if best is not None else {},
        )

    def step(self, state: TrainState, step: int) -> TrainState:
        """Gives away step ``step``, then reads the metrics of the one before."""
        waited = time.perf_counter()
        assert self.batches is not None
        rows = next(self.batches)
        self.watchdog.beat(step)
        self.clock.waited += time.perf_counter() - waited
        batch = self.program.put(rows, self.data.spec)
        previous = self.pending
        state = self.give(state, step, batch)
        if previous is not None:
            state = self.read(previous, state)
        return state

    def give(self, state: TrainState, step: int, batch: Batch) -> TrainState:
        """Gives away a step, and a look at its layers where one is due: that first, since the step takes the state."""
        figures = self.watch(state, batch) if self.watch is not None and self.watch.due(step) else None
        state, metrics = self.train_step(state, batch)
        self.pending = (step, batch, metrics, figures)
        return state

    def drain(self, state: TrainState) -> TrainState:
        """Reads the metrics of the last step; afterwards ``state`` is final for that step."""
        previous, self.pending = self.pending, None
        return state if previous is None else self.read(previous, state)

    def read(self, pending: tuple[int, Batch, Any, Figures | None], state: TrainState) -> TrainState:
        step, batch, metrics, figures = pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.clock.steps += 1
        self.bar.update(1)
        applied = values.pop("applied") > 0.5
        values.pop("finite")
        if self.watch is not None and figures is not None:
            self.watch.write(step + 1, figures)
        if applied:
            self.nonfinite_in_a_row = 0
            if (step + 1) % self.config.train.log_every == 0 or step == 0:
                self.write(step + 1, values)
            return state
        return self.skip(step, batch, values, state)

    def skip(self, step: int, batch: Batch, values: dict[str, float], state: TrainState) -> TrainState:
        """Keeps what is needed to repeat a step whose update was not finite, and goes on without it."""
        self.nonfinite_in_a_row += 1
        where = self.run.dump(step)
        with jax.transfer_guard("allow"):
            nonfinite.dump(where, state, batch, values)
        self.writer.write(step + 1, {"nonfinite": 1.0, "loss": values["loss"], "grad_norm": values["grad_norm"]})
        _say(
            f"step {step}: loss {values['loss']:.6g}, gradient norm {values['grad_norm']:.6g}: "
            f"the update was not applied; state and batch are kept in {where}, --mode replay --step {step} repeats it"
        )
        if self.nonfinite_in_a_row >= self.config.train.max_nonfinite:
            raise nonfinite.NonFiniteError(
                f"{self.nonfinite_in_a_row} updates in a row were NaN or Inf (train.max_nonfinite), the last at "
                f"step {step}: lower the learning rate, or repeat the first with --mode replay"
            )
        state = self.program.release(state)
        if self.pending is not None:  # the step given away meanwhile met a halted state: give it away again
            later, later_batch, *_ = self.pending
            state = self.give(state, later, later_batch)
        return state

    def write(self, step: int, values: dict[str, float]) -> None:
        rates = self.clock.rates(self.data.batch_size)
        self.train_seconds += time.perf_counter() - self.clock.started
        self.train_steps += self.clock.steps
        rate = self.flops / rates["step_time"] if self.clock.steps else 0.0
        line = {
            **values,
            "learning_rate": learning_rate_at(self.config.optimizer, self.experiment.steps, step - 1),
            **rates,
            "flops_per_second": rate,
        }
        if self.peak is not None:
            line["mfu"] = rate / self.peak
        if self.data.skipped:
            line["skipped_examples"] = float(self.data.skipped)
        unit, speed = self.experiment.speed(rates["examples_per_second"])
        if unit == "tokens/s":
            line["tokens_per_second"] = speed
        self.writer.write(step, line)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.4f}, {speed:,.0f} {unit}, "
            f"MFU {'n/a' if self.peak is None else format(line['mfu'], '.1%')}"
        )
        self.clock = _Clock()

    def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        self.pause()
        started = time.perf_counter()
        metrics = self.program.evaluate(
            state, self.experiment.eval_data, each_batch=lambda: self.watchdog.beat(step), stop=self.stop_evaluating
        )
        if metrics:
            line = {f"eval_{name}": value for name, value in metrics.items()}
            self.writer.write(step, {**line, "eval_time": time.perf_counter() - started})
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            _say(f"step {step}: evaluation {shown}")
        self.clock = _Clock()
        return metrics

    def stop_evaluating(self) -> bool:
        """An evaluation is given up on a signal; with several processes it runs to its end, so that all agree."""
        return self.guard.signum is not None and jax.process_count() == 1

    def save(self, state: TrainState, step: int, metrics: dict[str, float] | None) -> None:
        self.pause()
        self.checkpoints.save(step, state, metrics)
        self.clock = _Clock()

    def pause(self) -> None:
        """Time from here on is not the steps'."""
        self.train_seconds += time.perf_counter() - self.clock.started if self.clock.steps else 0.0
        self.train_steps += self.clock.steps
        self.clock = _Clock()

    def interrupted(self, step: int) -> bool:
        """Whether to stop at ``step``; all processes of a job answer the same."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.guard.signum is not None

    def stop(self, state: TrainState, step: int) -> None:
        signum = self.guard.signum or 15
        _say(f"stopping on signal {signum} at step {step}: saving")
        self.checkpoints.save(step, state)
        self.checkpoints.wait()
        _say(f"saved {self.checkpoints.path(step)}; resume with:\n  {self.experiment.resume_command}")
        raise Interrupted(signum, step)


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(text)
