"""Tables of runs: what differs, seeds together, intervals by hand, half-written files, errors that help."""

import csv
import json
import math
import re
import sys

import pytest

from experiments import report
from flashjax.recipes import runs, runs_page
from flashjax.training.writers import JsonLinesWriter


def make(root, name, seed, values, launcher="experiments.flash_lm", half=False, **settings):
    """A run directory whose eval_loss at steps 10, 20, ... are the values."""
    path = root / name
    path.mkdir(parents=True)
    config = {"preset": name, "seed": seed, "workdir": str(path), "mesh": {"data": seed + 1}, **settings}
    (path / "config.json").write_text(json.dumps({"name": launcher, "config": config}))
    writer = JsonLinesWriter(path / "metrics.jsonl")
    for i, value in enumerate(values, start=1):
        writer.write(10 * i - 5, {"loss": value + 1})
        writer.write(10 * i, {"loss": value + 1, "eval_loss": value, "eval_top1": 1 - value / 10})
    writer.close()
    if half:
        with (path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 990, "eval_lo')
    return path


@pytest.fixture
def directory(tmp_path):
    for lr, lasts in ((0.1, (1.0, 2.0, 6.0)), (0.01, (5.0, 5.5, 6.0))):
        for seed, last in enumerate(lasts):
            optimizer = {"name": "adamw", "learning_rate": lr, "schedule": {"learning_rate": lr / 10, "warmup": 3}}
            make(tmp_path / "runs", f"{lr}-{seed}", seed, [9.0, 0.5, last], optimizer=optimizer, half=seed == 1)
    return tmp_path / "runs"


def launch(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report.main()


def test_runs_are_grouped_by_what_differs_and_seeds_by_their_mean(directory):
    found = [runs.read(path) for path in runs.find([directory])]
    groups = runs.grouped(found)
    assert [list(group.settings) for group in groups] == [
        ["optimizer.learning_rate", "optimizer.schedule.learning_rate"]
    ] * 2
    short = runs.short_names(groups)
    assert list(short.values()) == ["optimizer.learning_rate", "schedule.learning_rate"]  # else they would be one name
    rows = runs.ranked(groups, "eval_loss", "min", "last")
    first = rows[0]
    # 1, 2, 6: mean 3, variance 7; t of 2 degrees of freedom at 97.5 % is 4.302653
    assert first.group.settings["optimizer.learning_rate"] == 0.1 and list(first.values) == [1, 2, 6]
    assert first.mean.value == 3 and first.mean.half == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)
    heads, body = runs_page.cells(rows, "eval_loss")
    line = dict(zip(heads, body[0], strict=True))
    assert line["seeds"] == "3" and line["eval_loss"] == "3" and line["95 % interval"] == "-3.5724 to 9.5724"
    assert line["at step"] == "30" and (line["least"], line["most"]) == ("1", "6")
    assert "which of the two is better is not told" in runs_page.best(rows, "eval_loss", "min")
    points = dict(runs.curve(first.group, "eval_loss"))
    assert [m.value for m in points.values()] == [9, 0.5, 3] and points[30].half == first.mean.half


def test_best_of_a_run_and_metrics_that_should_be_high(directory):
    groups = runs.grouped([runs.read(path) for path in runs.find([directory])])
    assert {row.mean.value for row in runs.ranked(groups, "eval_loss", "min", "best")} == {0.5}
    assert runs.ranked(groups, "eval_loss", "min", "best")[0].steps == [20, 20, 20]
    way = runs.direction("eval_top1")
    assert (
        way == "max"
        and runs.ranked(groups, "eval_top1", way, "last")[0].group.settings["optimizer.learning_rate"] == 0.1
    )
    assert runs.direction("loss") == runs.direction("eval_bits_per_byte") == "min"
    assert runs.direction("temperature", "max") == "max"
    with pytest.raises(ValueError, match="whether a low or a high 'temperature' is good is not known: say --direction"):
        runs.direction("temperature")


def test_runs_that_diverged_come_last_and_have_no_interval(tmp_path):
    make(tmp_path, "a", 0, [1.0, math.nan], width=8)
    make(tmp_path, "b", 0, [2.0, 2.0], width=16)
    groups = runs.grouped([runs.read(path) for path in runs.find([tmp_path])])
    rows = runs.ranked(groups, "eval_loss", "min", "last")
    assert [row.group.settings["width"] for row in rows] == [16, 8]
    assert math.isnan(rows[1].mean.value) and rows[1].mean.half is None
    assert runs.curve(rows[1].group, "eval_loss") == [(10, runs.mean([1.0]))]
    assert runs.ranked(groups, "eval_loss", "min", "best")[0].values == [1.0]


def test_the_launcher_writes_table_csv_and_page(monkeypatch, capsys, tmp_path, directory):
    make(
        directory,
        "twin",
        0,
        [1.0],
        optimizer=json.loads((directory / "0.1-0" / "config.json").read_text())["config"]["optimizer"],
    )
    make(directory, "young", 7, [])
    launch(monkeypatch, directory / "0.1-0", directory, "--output", tmp_path / "out")
    out = capsys.readouterr().out
    assert out.index("| 0.1 ") < out.index("| 0.01 ") and "-3.5724 to 9.5724" in out
    assert "twin is left out: it has the settings and the seed of" in out
    assert "young is left out: no eval_loss in its 0 lines" in out
    with (tmp_path / "out" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["eval_loss"]) for row in rows] == [1, 2, 6, 5, 5.5, 6] and rows[0]["step"] == "30"
    assert {row["group_mean"] for row in rows[:3]} == {"3.0"} and rows[0]["group_n"] == "3"
    html = (tmp_path / "out" / "figure.html").read_text()
    assert html.count("<svg") == 2 and html.count("<polygon") == 4 and not re.search(r"https?://|<script", html)
    assert "twin is left out" in html


def test_what_is_empty_is_called_none():
    assert runs.shown("") == runs.shown(None) == runs.shown([]) == "none" and runs.shown(0) == "0"


def test_one_group_alone_has_a_table(monkeypatch, capsys, tmp_path):
    make(tmp_path, "only", 0, [1.0, 2.0])
    launch(monkeypatch, tmp_path, "--output", tmp_path / "out", "--metric", "eval_top1", "--at", "best")
    out = capsys.readouterr().out
    assert "| all " in out and "n/a" in out and "0.9, all runs (n = 1)" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "which runs? python -m experiments.report DIR..."),
        (
            ("DIR", "--metric", "eval_los"),
            "no run has the metric 'eval_los'; nearest: eval_loss. There are: eval_loss, eval",
        ),
        (("DIR", "EMPTY"), "no run in"),
        (("DIR", "--metric", "oddity"), "There are: eval_loss, eval_top1, loss"),
        (("BROKEN",), "line 1 is not a line of metrics"),
        (("OTHER",), "is no config of a run: 'name'"),
    ],
)
def test_errors_say_what_is_there(monkeypatch, capsys, tmp_path, directory, arguments, message):
    (tmp_path / "empty").mkdir()
    (make(tmp_path, "broken", 0, []) / "metrics.jsonl").write_text("nonsense\n")
    (make(tmp_path, "other", 0, [1.0]) / "config.json").write_text("{}")
    places = {name.upper(): tmp_path / name for name in ("empty", "broken", "other")} | {"DIR": directory}
    with pytest.raises(SystemExit) as stopped:
        launch(monkeypatch, *(places.get(word, word) for word in arguments))
    assert stopped.value.code == 2 and message in capsys.readouterr().err
