"""A NaN in a batch of the real launcher: skipped, kept with its batch, and repeated alone by --mode replay."""

import json

import numpy as np
import pytest

from flashjax import data
from tests.experiments.test_swin_imagenet import SMALL, run

pytestmark = [pytest.mark.faults, pytest.mark.slow]

STEP = 2


class Poisoned:
    """A pipeline whose batch ``STEP`` mixes its images by a weight that is no number."""

    def __init__(self, pipeline):
        self._pipeline = pipeline

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def batches(self, start=0):
        for k, rows in enumerate(self._pipeline.batches(start), start):
            if k == STEP:
                rows = {**rows, "mix_lambda": np.full_like(rows["mix_lambda"], np.nan)}
            yield rows


def figures(text):
    return dict(line.split() for line in text.splitlines() if len(line.split()) == 2)


def test_replay_by_the_launcher(tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    classification = data.classification

    def poisoned(*args):
        train, evaluation, info = classification(*args)
        return Poisoned(train), evaluation, info

    monkeypatch.setattr(data, "classification", poisoned)
    mixing = ("--data.augment.mixup", 0.8, "--mesh.data", 4, "--mesh.fsdp", 2)
    run(monkeypatch, "--workdir", workdir, "--steps", 4, *SMALL, *mixing)
    said = capsys.readouterr().out
    assert f"step {STEP}: loss nan" in said and f"--mode replay --step {STEP} repeats it" in said

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("nonfinite")] == [STEP + 1]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line and not line.get("nonfinite"))
    kept = json.loads((workdir / "nonfinite" / str(STEP) / "figures.json").read_text())
    assert kept["step"] == kept["batch"] == STEP

    monkeypatch.setattr(data, "classification", classification)
    run(monkeypatch, "--workdir", workdir, "--mode", "replay", "--step", STEP)
    again = figures(capsys.readouterr().out)
    assert again["step"] == str(STEP) and again["finite"] == again["applied"] == "0" and again["loss"] == "nan"
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, "--workdir", workdir, "--mode", "replay", "--step", STEP + 1)
    assert refused.value.code == 2 and f"kept: {STEP}" in capsys.readouterr().err
