"""Scaling study: step time, memory, collectives and compile time of any experiment by mesh and model size.

python -m experiments.scaling_study                                        the demo's Swin on 1 to 8 virtual devices
python -m experiments.scaling_study --experiment "experiments.swin_imagenet --preset tiny_1k" --sizes "" --no_virtual
python -m experiments.scaling_study --mode redraw --runs runs/small runs/medium runs/large
"""

from pathlib import Path

from configs.scaling_study import PRESETS, ScalingStudy
from flashjax import cli
from flashjax.studies import scaling, scaling_page
from flashjax.training import rundir

PROGRAM = "experiments.scaling_study"


def cells(config: ScalingStudy) -> list[scaling.Cell]:
    """Every mesh under every size."""
    experiment = config.experiment + (f" --data_dir {config.data_dir}" if config.data_dir else "")
    return [scaling.Cell(experiment, size, mesh, config.weak) for size in config.sizes for mesh in config.meshes]


def draw(workdir: Path, config: ScalingStudy) -> None:
    """Table and figure from the logs: cells.jsonl of the study, config.json and metrics.jsonl of the runs."""
    lines = scaling.read_cells(workdir / "cells.jsonl")
    if not lines and not config.runs:
        raise ValueError(f"{workdir / 'cells.jsonl'} holds no cell: sweep first, or name another --workdir")
    runs = sorted(map(scaling.read_run, config.runs), key=lambda run: run.compute)
    law = scaling.fit_power_law([r.compute for r in runs], [r.loss for r in runs]) if len(runs) > 2 else None

    workdir.mkdir(parents=True, exist_ok=True)
    text = scaling.table(lines) if lines else ""
    if law is not None:
        text += f"\n{scaling.fit_words(law, runs)}\n"
    (workdir / "table.md").write_text(text)
    title = f"Scaling of {lines[0]['experiment'] if lines else 'runs'}"
    figure = scaling_page.write_figure(workdir / "figure.html", title, lines, runs, law)
    print(f"\n{text}\n  log     {workdir / 'cells.jsonl'}\n  table   {workdir / 'table.md'}\n  figure  {figure}")


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    workdir = Path(rundir.workdir(config, PROGRAM))
    with cli.friendly_errors():
        if config.mode == "sweep":
            scaling.sweep(cells(config), workdir / "cells.jsonl", config.steps, config.rounds, config.virtual)
        draw(workdir, config)


if __name__ == "__main__":
    main()
