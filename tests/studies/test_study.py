"""Studies: grids, logs that go on where a process was killed, processes that share the cells."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from flashjax.studies import study
from flashjax.studies.claims import Claims
from tests.studies.study_worker import CELLS


def figures(cells):
    return [{"loss": cell["rate"] + cell["seed"]} for cell in cells]


def told(line):
    return str(line["loss"])


def start(log, calls, seconds):
    words = [sys.executable, "-m", "tests.studies.study_worker", str(log), str(calls), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def until(happened, seconds=60.0):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def measured(calls):
    return [line.split(maxsplit=1) for line in calls.read_text().splitlines()] if calls.exists() else []


def test_a_grid_has_all_combinations_the_last_axis_fastest():
    cells = study.grid(name=["x"], rate=[1, 2], seed=[0, 1])
    assert [(c["rate"], c["seed"]) for c in cells] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert list(cells[0]) == ["name", "rate", "seed"]
    for axis in ([], [1, 1]):
        with pytest.raises(ValueError, match=r"the axis 'rate' of a study has \["):
            study.grid(rate=axis)


def test_a_digest_is_of_what_changes_figures():
    @dataclass(frozen=True)
    class Config:
        steps: int = 3
        workdir: str = "a"

    assert study.digest(Config(), ("workdir",)) == study.digest(Config(workdir="b"), ("workdir",))
    assert study.digest(Config(), ("workdir",)) != study.digest(Config(steps=4), ("workdir",))


def test_cells_that_agree_are_measured_together_and_once(tmp_path):
    log, asked = tmp_path / "new" / "cells.jsonl", []

    def measure(cells):
        asked.append([(c["rate"], c["seed"]) for c in cells])
        return figures(cells)

    cells = study.grid(rate=[1, 2], seed=[0, 1])
    lines = study.sweep(cells, log, measure, told, by=["seed"])
    assert asked == [[(1, 0), (2, 0)], [(1, 1), (2, 1)]] and [line["loss"] for line in lines] == [1, 2, 2, 3]
    more = study.grid(rate=[1, 2], seed=[0, 1, 2])
    assert len(study.sweep(more, log, measure, told, by=["seed"])) == 6 and asked[2:] == [[(1, 2), (2, 2)]]
    study.sweep(more, log, measure, told)
    assert len(asked) == 3
    assert study.read(log, cells) == lines
    with pytest.raises(ValueError, match=r"holds no cell of this study \(6 of other settings\)"):
        study.read(log, study.grid(rate=[7], seed=[0]))
    with pytest.raises(ValueError, match="holds no cell of this study: measure first"):
        study.read(tmp_path / "none.jsonl", cells)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.37, 0.5, 0.74, 0.999])
def test_a_log_cut_anywhere_is_completed_to_the_same_log(tmp_path, part):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    expected = study.sweep(CELLS, whole, figures, told, by=["name"])
    text = whole.read_bytes()
    cut.write_bytes(text[: int(part * len(text))])
    assert study.sweep(CELLS, cut, figures, told, by=["name"]) == expected
    assert cut.read_bytes() == text


def test_a_cell_that_failed_is_tried_again_later_and_an_error_is_no_number(tmp_path):
    log, cells, asked = tmp_path / "cells.jsonl", study.grid(rate=[1, 2], seed=[0]), []

    def measure(group):
        asked.extend(cell["rate"] for cell in group)
        return [{"error": "no luck"} if asked == [1] else {"loss": 1.0} for _ in group]

    study.sweep(cells, log, measure, lambda line: line.get("error", ""))
    assert asked == [1, 2]
    assert [line.get("loss") for line in study.sweep(cells, log, measure, told)] == [1.0, 1.0] and asked == [1, 2, 1]
    with pytest.raises(ValueError, match="a figure is named 'error'"):
        study.sweep(study.grid(rate=[3], seed=[0]), log, lambda group: [{"error": 0.1}], told)


def test_a_failure_leaves_the_cells_free(tmp_path):
    log = tmp_path / "cells.jsonl"

    def fail(cells):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        study.sweep(CELLS, log, fail, told)
    assert len(study.sweep(CELLS, log, figures, told)) == len(CELLS)


def test_two_processes_share_a_grid_and_no_cell_is_measured_twice(tmp_path):
    log, calls = tmp_path / "cells.jsonl", tmp_path / "calls"
    workers = [start(log, calls, 0.5) for _ in range(2)]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    cells = [words for _, words in measured(calls)]
    assert len(cells) == len(set(cells)) == len(CELLS)
    assert len(log.read_text().splitlines()) == len(CELLS)
    for output in outputs:  # each waited until it knew all of them
        assert sum("/12  " in line for line in output.splitlines()) == len(CELLS)


def test_the_cells_of_a_killed_process_are_taken_over(tmp_path):
    log, calls = tmp_path / "cells.jsonl", tmp_path / "calls"
    victim = start(log, calls, 600)
    try:
        until(lambda: len(measured(calls)) == 2)
        other = start(log, calls, 0.0)
        until(lambda: log.exists() and len(log.read_text().splitlines()) == len(CELLS) - 2)  # all but the victim's
        assert other.poll() is None
    finally:
        victim.kill()
        victim.communicate()
    output, _ = other.communicate(timeout=60)
    assert other.returncode == 0 and "2 cells are with other processes" in output
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == len({(x["name"], x["rate"], x["seed"]) for x in lines}) == len(CELLS)
    words = [words for _, words in measured(calls)]
    assert len(set(words)) == len(CELLS) and len(words) == len(CELLS) + 2  # the two were begun twice, logged once


def test_a_claim_is_seen_by_other_processes_only(tmp_path):
    script = (
        "import sys; from pathlib import Path; from flashjax.studies.claims import Claims\n"
        "print([Claims(Path(sys.argv[1])).take(name) for name in ('a', 'b')])"
    )

    def elsewhere():
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "c")], capture_output=True, text=True)
        return done.stdout.strip()

    with Claims(tmp_path / "c") as claims:
        assert claims.take("a") and elsewhere() == "[False, True]"
        claims.release("a")
        assert elsewhere() == "[True, True]" and claims.take("b")
    assert elsewhere() == "[True, True]"
