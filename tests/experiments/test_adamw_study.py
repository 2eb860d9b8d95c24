"""The launcher: a tiny grid, killed and gone on with, drawn again from its log; the walk alone."""

import functools
import json
import re
import sys

import pytest

from configs.adamw_study import PRESETS
from experiments import adamw_study

TINY = (
    *("--algorithms", "adam_l2", "adamw", "--learning_rates", "-8", "-6", "--seeds", "0", "1", "--epochs", "1"),
    *("--decays.adam_l2", "-6", "-4", "--decays.adamw", "-2", "0", "--train_images", "40", "--batch_size", "20"),
    *("--model.widths", "4", "--model.kernels", "9", "--model.strides", "7"),
)


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["adamw_study", *map(str, args)])
    adamw_study.main()


def test_a_grid_cut_off_goes_on_to_the_same_log_and_page(monkeypatch, capsys, tmp_path):
    compiled = functools.cache(adamw_study.digit_trainings)
    monkeypatch.setattr(adamw_study, "digit_trainings", compiled)
    run(monkeypatch, *TINY, "--workdir", tmp_path)
    out = capsys.readouterr().out
    assert "16 trainings, " in out and "16/16  adamw, seed 1, rate 2⁻⁶, decay 2⁰: error" in out
    assert "In step 1 Adam with L2 decays x₂ 8.7 times" in out and "log of best decay" in out
    log, page = tmp_path / "cells.jsonl", tmp_path / "figure.html"
    whole, first = log.read_bytes(), page.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert len(lines) == 16 and all(0 <= line["eval_error"] <= 1 and line["train_loss"] > 0 for line in lines)
    assert not re.search(r"https?://|<script", first) and "16 of 16 trainings" in first

    log.write_bytes(whole[: int(0.6 * len(whole))])  # killed while it wrote
    run(monkeypatch, *TINY, "--workdir", tmp_path, "--mode", "measure")
    assert log.read_bytes() == whole
    capsys.readouterr()

    page.unlink()
    monkeypatch.setattr(adamw_study, "trainings", lambda config: pytest.fail("the log is enough"))
    run(monkeypatch, *TINY, "--workdir", tmp_path, "--mode", "redraw")
    assert page.read_text() == first


def test_other_settings_are_other_cells(monkeypatch, capsys, tmp_path):
    (tmp_path / "cells.jsonl").write_text("")
    with pytest.raises(SystemExit):
        run(monkeypatch, *TINY, "--workdir", tmp_path, "--mode", "redraw")
    assert "holds no cell of this study: measure first" in capsys.readouterr().err
    full, quick = PRESETS["full"], PRESETS["quick"]
    assert len(adamw_study.cells(full)) == 567 and len(adamw_study.cells(quick)) == 147
    assert adamw_study.cells(full)[0]["settings"] != adamw_study.cells(quick)[0]["settings"]  # other epochs


def test_the_walk_alone_needs_no_grid(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "--mode", "walk", "--workdir", tmp_path, "--walk.steps", "5", "--walk.shown", "2")
    out = capsys.readouterr().out
    assert out.count("| 2, x₁ |") == 2 and "| 3, x₁" not in out
    html = (tmp_path / "figure.html").read_text()
    assert "Two ways" in html and "Learning rate and weight decay" not in html


def test_two_processes_share_the_grid(monkeypatch, capsys, tmp_path):
    run(monkeypatch, *TINY, "--algorithms", "adamw", "--workdir", tmp_path, "--processes", "2", "--mode", "measure")
    assert "a process ended with status" not in capsys.readouterr().out
    told = (tmp_path / "process-1.log").read_text()
    assert "8/8" in told and "Adam with L2" not in told
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    cells = {(x["learning_rate"], x["weight_decay"], x["seed"]) for x in lines}
    assert len(lines) == len(cells) == 8
