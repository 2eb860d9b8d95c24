"""Any set of runs as one table and figure: grouped by the settings that differ, seeds together, best first.

python -m experiments.report runs/                                            all runs below, by their last eval_loss
python -m experiments.report runs/a runs/b --metric eval_top1 --at best       two runs, by the best accuracy they had
"""

from pathlib import Path

from configs.report import PRESETS, Report
from flashjax import cli
from flashjax.drawing import text_table
from flashjax.recipes import runs, runs_page

PROGRAM = "experiments.report"


def report(config: Report) -> None:
    """Directories -> runs -> groups -> table, CSV, page."""
    if not config.directories:
        raise ValueError(f"which runs? python -m {PROGRAM} DIR...")
    found = [runs.read(path) for path in runs.find(config.directories)]
    found, missing = runs.with_metric(found, config.metric)
    way = runs.direction(config.metric, config.direction)
    found, twins = runs.without_twins(found)
    rows = runs.ranked(runs.grouped(found), config.metric, way, config.at)
    notes, output = [*missing, *twins], Path(config.output)
    print(text_table(*runs_page.cells(rows, config.metric)))
    print("\n".join(["", runs_page.best(rows, config.metric, way), *notes, ""]))
    print(f"  table   {runs_page.write_csv(output / 'runs.csv', rows, config.metric)}")
    print(f"  figure  {runs_page.write(output / 'figure.html', rows, config.metric, way, notes)}")


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    with cli.friendly_errors():
        report(config)


if __name__ == "__main__":
    main()
