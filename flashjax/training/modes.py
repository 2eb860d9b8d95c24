"""What a launcher does: its modes, dry run, replay, and the words at the end of a run."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flashjax.training import distributed, nonfinite
from flashjax.training.experiment import Experiment, RunConfig
from flashjax.training.layout_page import write_layout
from flashjax.training.loop import Result
from flashjax.training.optimizers import rate_columns
from flashjax.training.parameters import parameter_table
from flashjax.training.parametrization.table import columns
from flashjax.training.program import Program, evaluate
from flashjax.training.report import write_report
from flashjax.training.sharding import reasons
from flashjax.training.watchdog import Watchdog
from flashjax.training.writers import read_json_lines


@contextlib.contextmanager
def session(config: RunConfig) -> Iterator[Watchdog]:
    """Joins the other processes of the job, if there are any, and watches over them until the block ends."""
    distributed.initialize(config.distributed)
    with Watchdog(config.distributed.silence_limit_s, config.distributed.stall_limit_s) as watchdog:
        yield watchdog


def run(
    config: RunConfig,
    build: Callable[[], Experiment],
    train: Callable[[], Any],
    predict: Callable[[], None],
    figures: Callable[[Mapping[str, float]], Mapping[str, float]] | None = None,
) -> None:
    """Does what ``config.mode`` says, or a dry run; ``figures`` follow the metrics of an evaluation, from them."""
    match config.mode:
        case _ if config.dry_run:
            dry_run(build())
        case "train":
            train()
        case "eval":
            metrics = evaluate(build())
            print_metrics({**metrics, **(figures(metrics) if figures else {})})
        case "replay":
            replay(build())
        case "predict":
            predict()


def dry_run(experiment: Experiment) -> None:
    """Prints mesh, parameters with their places and why, and what each device holds; draws it in layout.html.

    Compiles and allocates nothing.
    """
    program = Program(experiment)
    axes = ", ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items() if size > 1) or "one device"
    if jax.process_index() != 0:
        return
    state, where = program.abstract_state, program.shardings
    print(f"{experiment.name}: {experiment.steps} steps of {experiment.train_data.batch_size} examples; mesh: {axes}")
    names = {"parameters": "params", "gradients": "params", "optimizer state": "opt_state"}
    if state.ema is not None:
        names["average"] = "ema"
    trees, places = ({name: getattr(tree, part) for name, part in names.items()} for tree in (state, where))
    why = reasons(state.params, experiment.rules, program.mesh)
    factors = columns(program.objective.table) | rate_columns(program.rates)
    print(parameter_table(trees, places, why, factors))
    title = f"{experiment.name}-{experiment.config.preset}: who holds what"
    print("layout:", write_layout(Path(experiment.workdir) / "layout.html", title, program.mesh, trees, places, why))


def replay(experiment: Experiment) -> None:
    """Repeats alone the step under ``nonfinite/`` that ``--step`` names (default: the first); prints its figures.

    Raises:
        FileNotFoundError: naming the steps that were kept.
    """
    where = Path(experiment.workdir) / "nonfinite"
    kept = sorted(int(p.name) for p in where.glob("*")) if where.is_dir() else []
    step = experiment.config.step if experiment.config.step is not None else (kept[0] if kept else 0)
    program = Program(experiment)
    state, rows = nonfinite.load(where / str(step), program.abstract_state)
    _, metrics = program.train_step(state, program.put(rows, experiment.train_data.spec))
    print_metrics({"step": step} | {name: float(value) for name, value in jax.device_get(metrics).items()})


def print_metrics(metrics: Mapping[str, float]) -> None:
    """One line a figure."""
    for name, value in metrics.items():
        print(f"{name:16} {value:.6g}")


def finish(
    experiment: Experiment,
    result: Result,
    predictions: Sequence[tuple[np.ndarray, str, list[tuple[str, float]]]] = (),
    further: Mapping[str, str] | None = None,
    figures: Mapping[str, str] | None = None,
    samples: Sequence[tuple[str, str]] = (),
) -> None:
    """Draws report.html and prints the summary of a run.

    Args:
        predictions: images for the report, and what they were taken for.
        further: lines that end the printed summary.
        figures: lines for summary and report, after what was held out.
        samples: texts for the report: what was given, what the model made of it. The first is printed too.
    """
    if jax.process_index() != 0:
        return
    workdir = Path(experiment.workdir)
    shown = {name: f"{value:.4f}" for name, value in result.metrics.items()}
    unit, speed = experiment.speed(result.examples_per_second)
    lines = {
        **{f"held-out {name}": value for name, value in shown.items()},
        **(figures or {}),
        unit: f"{speed:,.0f}" if speed else "not trained in this call",
        "steps": str(result.step),
        "best checkpoint": str(workdir / "checkpoints" / result.checkpoint.name) if result.checkpoint else "none",
        "report": str(workdir / "report.html"),
    }
    metrics = read_json_lines(workdir / "metrics.jsonl")
    watched = read_json_lines(workdir / "watch.jsonl")
    write_report(workdir / "report.html", experiment.name, metrics, predictions, lines, samples, watched)
    if samples:
        given, made = samples[0]
        print(f"\n  what was given\n{given}\n\n  what the model made of it\n{made}\n")
    width = max(map(len, [*lines, *(further or {})]))
    print("\n".join(f"  {name:{width}}  {text}" for name, text in {**lines, **(further or {})}.items()))
