"""The launcher as its users run it, small: the table, a sweep, resuming, drawing again, single runs, errors."""

import csv
import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from configs.random_erasing_cifar import PRESETS, ErasingRun, with_dataset
from experiments import random_erasing_cifar as launcher
from flashjax import models
from flashjax.recipes import erasing_study
from flashjax.training.optimizers import learning_rate_at
from tests.data.helpers import write_cifar

SMALL = (
    *("--data.batch_size", "16", "--data.eval_batch_size", "200", "--data.train_examples", "64", "--width", "0.25"),
    *("--steps", "4", "--train.eval_every", "2", "--train.no_progress", "--train.log_every", "1"),
)


def run(monkeypatch, *args) -> None:
    monkeypatch.setattr(sys, "argv", ["random_erasing_cifar", *map(str, args)])
    launcher.main()


@pytest.mark.slow
def test_the_table(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "--workdir", tmp_path, "--seeds", 0, *SMALL)
    said = capsys.readouterr().out
    assert "| model " in said and "baseline |" in said and "with erasing |" in said and said.count("(1)") == 2
    log = tmp_path / "cells.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["value"], line["seed"]) for line in lines] == [(0.0, 0), (0.5, 0)]
    assert all(len(line["curve"]) == 2 and 0 < line["best_error"] <= line["test_error"] <= 100 for line in lines)
    with (tmp_path / "cells.csv").open() as file:
        assert [float(row["test_error"]) for row in csv.DictReader(file)] == [line["test_error"] for line in lines]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 1 and "mean ± standard deviation" in page

    # What the log holds is neither measured again nor needed for the drawing; seeds stand together.
    monkeypatch.setattr(launcher.training, "fit", None)
    others = [line | {"seed": 1, "test_error": line["test_error"] + 2} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines + others))
    run(monkeypatch, "--workdir", tmp_path, "--seeds", 0, 1, *SMALL)
    assert f"{lines[0]['test_error'] + 1:.2f} ± 1.41 (2)" in capsys.readouterr().out
    (tmp_path / "page.html").unlink()
    run(monkeypatch, "--workdir", tmp_path, "--seeds", 1, "--redraw", *SMALL)
    assert "(1)" in capsys.readouterr().out and (tmp_path / "page.html").exists()
    with pytest.raises(SystemExit):  # other settings are other cells
        run(monkeypatch, "--workdir", tmp_path, "--redraw", *SMALL, "--width", 1)
    assert "holds no cell of this study" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_and_one_of_its_runs(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "--workdir", tmp_path, "--seeds", 0, "--sweep", "aspect", "--values", 0.5, *SMALL)
    assert "0.5" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().count("<svg") == 2
    one = tmp_path / "runs" / "resnet8_cifar-aspect-0.5-0"
    config = json.loads((one / "config.json").read_text())["config"]
    assert config["erasing"]["aspect"] == [0.5, 2.0] and config["erasing"]["value"] == [0.4914]
    run(monkeypatch, "--workdir", one, "--mode", "eval")
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("top1", "loss")))
    (line,) = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert 100 * (1 - float(shown["top1"])) == pytest.approx(line["best_error"], abs=1e-3)


@pytest.mark.slow
def test_the_papers_preset_on_cifar(tmp_path, monkeypatch, capsys):
    """A set as TFDS has it, in place of CIFAR; a few steps of a narrow network."""
    write_cifar(tmp_path / "tfds", 100, train=40, test=20)
    small = ("--models", "resnet8_cifar", "--width", 0.25, "--seeds", 0, "--steps", 2, "--train.no_progress")
    small += ("--data.batch_size", 16, "--data.eval_batch_size", 8)  # one of 128 would be more than there is
    where = ("--data_dir", tmp_path / "tfds", "--workdir", tmp_path / "run")
    run(monkeypatch, "--preset", "paper", "--dataset", "cifar100", *where, *small)
    assert "with erasing |" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "cells.jsonl").read_text().splitlines()]
    assert [line["value"] for line in lines] == [0.0, 0.5]
    assert {line["dataset"] for line in lines} == {"cifar100:3.0.2 train / cifar100:3.0.2 test"}


def test_what_a_cell_erases():
    base = PRESETS["paper"].erasing
    cell = {"model": "resnet20_cifar", "sweep": "area", "value": 0.1, "seed": 0}
    assert erasing_study.erasing(base, cell, 3).area == (0.02, 0.1)
    assert erasing_study.erasing(base, cell | {"value": 0.01}, 3).area == (0.01, 0.01)
    assert erasing_study.erasing(base, cell | {"sweep": "aspect", "value": 0.25}, 3).aspect == (0.25, 4.0)
    off = erasing_study.erasing(base, cell | {"sweep": "table", "value": 0.0}, 3)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(off)(jax.random.key(1), images), images)


def test_the_papers_recipe():
    config = PRESETS["paper"]
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum, optimizer.decay) == ("sgd", 0.1, 0.9, 5e-4)
    assert optimizer.decay_vectors and optimizer.clip_norm is None and config.epochs == 300
    falls = launcher.images._with_milestones(config, 390).optimizer
    assert falls.schedule.milestones == (58_500, 87_750)
    rates = [learning_rate_at(falls, 117_000, step) for step in (58_499, 58_500, 87_750, 116_999)]
    np.testing.assert_allclose(rates, [0.1, 0.01, 0.001, 0.001], rtol=1e-6)
    erasing = config.erasing
    assert (erasing.prob, erasing.area, erasing.aspect_law, erasing.value[0]) == (0.5, (0.02, 0.4), "linear", 0.4914)


def test_images_are_erased_after_normalisation():
    config = with_dataset(dataclasses.replace(PRESETS["demo"], dataset="fashion_mnist"))
    assert (config.data.augment.hflip, config.data.augment.pad, config.data.train_examples) == (0.5, 4, None)
    cell = erasing_study.cells(config)[-1]
    one = launcher.cell_run(config, cell)
    one = dataclasses.replace(one, erasing=dataclasses.replace(one.erasing, prob=1.0))
    goal = launcher.objective(one, 10)
    batch = {
        "image": np.full((8, 28, 28, 1), 255, np.uint8),
        "label": np.arange(8, dtype=np.int32),
        "mix_lambda": np.ones(8, np.float32),
        "mix_box": np.zeros((8, 4), np.int32),
        "erase_box": np.zeros((8, 1, 4), np.int32),
    }
    made = np.asarray(jax.jit(goal.prepare)(batch, jax.random.key(0))["image"])
    white = np.float32((1 - 0.1307) / 0.3081)
    erased = np.isclose(made, 0.4914)
    assert (erased | np.isclose(made, white)).all()
    assert (erased.mean((1, 2, 3)) > 0.015).all() and (erased.mean((1, 2, 3)) < 0.45).all()
    assert one.model == dataclasses.replace(
        models.config("resnet8_cifar"), in_chans=1, widths=(8, 16, 32), stem_width=8
    )
    assert type(one) is ErasingRun


def test_dry_run_and_errors(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "--dry_run", "--workdir", tmp_path / "dry")
    assert "stage_2/block_0/shortcut_norm/scale" in capsys.readouterr().out
    for args, text in (
        (("--preset", "paper"), "data set 'cifar10' needs --data_dir"),
        (("--models", "swin_tiny_patch4_window7_224"), "is no residual network; known: wrn_28_10"),
        (("--models", "resnet44_cifar"), "nearest: resnet44_cifar_basic, resnet44_cifar_bottleneck"),
        (("--sead", 3), "--seed"),
        (("--sweep", "area", "--values", 1.5), "area"),
        (("--mode", "predict", "--workdir", tmp_path / "empty"), "no finished run"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, *args, "--workdir", tmp_path / "none")
        assert stop.value.code == 2 and text in capsys.readouterr().err, args
