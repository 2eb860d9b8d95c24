"""The launcher of Performer as its users run it, at the tiniest size; by ``main``."""

import json
import sys

import numpy as np
import pytest

from experiments import performer_lm
from flashjax.evaluation import approximation
from flashjax.evaluation.approximation import ErrorConfig

TEXT = "".join(chr(97 + (i * i) % 23) for i in range(3000))
SMALL = (
    *("--run.steps", "2", "--run.train.no_progress", "--run.data.dataset", "text", "--run.data.length", "32"),
    *("--run.data.batch_size", "8", "--run.data.eval_batch_size", "8", "--run.data.eval_batches", "1"),
    *("--run.model.width", "16", "--run.model.depth", "2", "--run.model.heads", "2", "--run.model.hidden", "16"),
    *("--tune_steps", "2", "--errors.features", "8", "16", "--errors.length", "32", "--errors.draws", "2"),
)


@pytest.mark.slow
def test_a_model_changes_over(tmp_path, monkeypatch, capsys):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(TEXT)
    arguments = ("--workdir", tmp_path / "run", "--data_dir", tmp_path / "text", *SMALL)
    arguments = (*map(str, arguments), "--conversions", "features=4", "features=4, kernel=relu")
    monkeypatch.setattr(sys, "argv", ["performer_lm", *arguments])
    performer_lm.main()
    said = capsys.readouterr().out
    assert "features=4, kernel=relu" in said and str(tmp_path / "run" / "figure.html") in said
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    curves = {name: model["curve"] for name, model in found["conversions"].items()}
    assert list(curves) == ["softmax", "features=4", "features=4, kernel=relu"]
    assert all([step for step, _ in curve] == [0, 1, 2] for curve in curves.values())
    assert np.isfinite([loss for curve in curves.values() for _, loss in curve]).all()
    trained = [json.loads(line) for line in (tmp_path / "run" / "softmax" / "metrics.jsonl").read_text().splitlines()]
    last = [line["eval_loss"] for line in trained if "eval_loss" in line][-1]
    np.testing.assert_allclose(curves["softmax"][0][1], last, rtol=1e-5)  # its weights came over
    assert len({curve[0][1] for curve in curves.values()}) == 3
    assert (tmp_path / "run" / "figure.html").read_text().count("<svg") == 3


@pytest.mark.slow
def test_error_falls_with_rows():
    lines = approximation.errors(ErrorConfig(features=(8, 128), kernels=("positive",), draws=8, length=16, dim=8))
    by = {(line["rows"], line["features"]): line["error"] for line in lines}
    assert len(lines) == 4
    for rows in ("orthogonal", "independent"):
        assert by[rows, 128] < 0.5 * by[rows, 8]
    with pytest.raises(ValueError, match="do not stand for the softmax"):
        approximation.errors(ErrorConfig(kernels=("relu",)))


def test_dry_run_shows_the_softmax_model(tmp_path, monkeypatch, capsys):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(TEXT)
    arguments = ("--data_dir", str(tmp_path / "text"), "--workdir", str(tmp_path / "run"), "--run.dry_run", *SMALL)
    monkeypatch.setattr(sys, "argv", ["performer_lm", *arguments])
    performer_lm.main()
    assert "embed/embedding" in capsys.readouterr().out and not (tmp_path / "run" / "checkpoints").exists()
