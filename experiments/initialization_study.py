"""Initialization, parametrization and normalization: signals by depth, logit scale, what trains, muP's transfer.

python -m experiments.initialization_study --processes 2            all parts and a page; goes on where it was stopped
python -m experiments.initialization_study --preset quick           fewer cells
python -m experiments.initialization_study --mode redraw            the page again, from the logs alone
python -m experiments.initialization_study --look_at gpt2           signals by layer of any model by name
"""

import functools
from pathlib import Path

from configs.initialization_study import PRESETS, InitializationStudy
from flashjax import cli
from flashjax.recipes import initialization, initialization_page, named_look
from flashjax.recipes.initialization import Part
from flashjax.studies import study
from flashjax.studies.cells import Line
from flashjax.training import rundir

PROGRAM = "experiments.initialization_study"


def sweep(config: InitializationStudy, workdir: Path) -> None:
    """Measures what the logs of the parts do not hold."""
    for part in config.parts:
        measure = functools.partial(initialization.measure, config, part)
        print(f"{part}:", flush=True)
        told = functools.partial(initialization_page.told, part)
        study.sweep(initialization.cells(config, part), workdir / f"{part}.jsonl", measure, told)


def read(config: InitializationStudy, workdir: Path) -> dict[Part, list[Line]]:
    """The lines of the parts that were measured.

    Raises:
        ValueError: if none were.
    """
    logs: dict[Part, Path] = {part: workdir / f"{part}.jsonl" for part in config.parts}
    if not any(log.is_file() for log in logs.values()):
        raise ValueError(
            f"{workdir} holds no log of {', '.join(config.parts)}: measure first, or name another --workdir"
        )
    return {part: study.read(log, initialization.cells(config, part)) for part, log in logs.items() if log.is_file()}


def look_at(config: InitializationStudy, workdir: Path) -> None:
    """Signals by layer of a model by name, before and after some steps."""
    assert config.look_at is not None
    rate = 2.0**config.look_rate
    lines = named_look.looks(config.look_at, config.look_steps, rate, config.look_batch, config.seeds[0])
    print(initialization_page.look_text(lines))
    print(f"  figure  {initialization_page.write_look(workdir / f'{config.look_at}.html', config.look_at, lines)}")


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    workdir = Path(rundir.workdir(config, PROGRAM))
    with cli.friendly_errors():
        if config.look_at is not None:
            return look_at(config, workdir)
        if config.mode != "redraw":
            with study.helpers(PROGRAM, config.processes - 1, workdir):
                sweep(config, workdir)
        if config.mode == "measure":
            return
        lines = read(config, workdir)
        print("\n" + "\n".join(initialization_page.verdicts(lines)) + "\n")
        print(f"  figure  {initialization_page.write(workdir / 'figure.html', lines)}")


if __name__ == "__main__":
    main()
