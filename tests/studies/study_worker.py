"""A process that takes part in a study: ``python -m tests.studies.study_worker LOG CALLS SECONDS``.

It notes each cell that it measures in CALLS before it does, and takes SECONDS for a group.
"""

import os
import sys
import time
from pathlib import Path

from flashjax.studies import study

CELLS = study.grid(name=["a", "b", "c"], rate=[0.1, 0.2], seed=[0, 1])


def main(log: Path, calls: Path, seconds: float) -> None:
    def measure(cells):
        with calls.open("a") as file:
            file.write("".join(f"{os.getpid()} {c['name']} {c['rate']} {c['seed']}\n" for c in cells))
        time.sleep(seconds)
        return [{"loss": c["rate"] * (1 + c["seed"])} for c in cells]

    study.sweep(CELLS, log, measure, lambda line: f"{line['loss']}", by=("name", "rate"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
