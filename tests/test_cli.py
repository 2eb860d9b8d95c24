"""The command line: presets, flags by field, typos answered, errors as sentences."""

import dataclasses
import importlib
import json

import pytest

from configs import performer_lm
from configs.swin_imagenet import PRESETS
from flashjax import cli
from flashjax.training import rundir

PROGRAM = "experiments.swin_imagenet"


@pytest.fixture(autouse=True)
def no_data_in_the_environment(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def parse(*args: str):
    return cli.parse(PRESETS, PROGRAM, "A launcher.", args=args)


def test_the_first_preset_needs_no_data():
    assert parse() == PRESETS["demo"]


def test_flags_change_single_fields():
    config = parse("--preset", "tiny_1k", "--data.batch_size", "64", "--mesh.fsdp", "4", "--train.no_progress")
    assert config.preset == "tiny_1k" and config.data.batch_size == 64 and config.mesh.fsdp == 4
    assert not config.train.progress and config.model == PRESETS["tiny_1k"].model


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_naming_data_means_the_papers_run(how, monkeypatch):
    if how == "environment":
        monkeypatch.setenv("TFDS_DATA_DIR", "/data")
    config = parse(*(["--data_dir", "/data"] if how == "flag" else []))
    assert config.preset == "tiny_1k" and config.data_dir == "/data"


def test_the_demo_by_name_leaves_the_environments_data_alone(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/data")
    assert parse("--preset", "demo").data_dir is None
    assert parse("--preset", "demo", "--data.dataset", "imagenet2012").data_dir == "/data"


@pytest.mark.parametrize(
    ("launcher", "args", "preset", "wanted"),
    [
        ("flash_lm", (), "wiki40b", "/data"),
        ("flash_lm", ("--preset", "demo_quad"), "demo_quad", None),
        ("flash_lm", ("--preset", "demo_quad", "--data_dir", "/text"), "demo_quad", "/text"),
        ("length_extrapolation", ("--preset", "trained"), "trained", None),
        ("performer_lm", (), "pg19", "/data"),
        ("random_erasing_cifar", (), "paper", "/data"),
        ("random_erasing_cifar", ("--dataset", "digits"), "paper", None),
        ("scaling_study", ("--preset", "quick"), "quick", None),
    ],
)
def test_the_environments_data_are_for_what_reads_a_directory(launcher, args, preset, wanted, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/data")
    presets = importlib.import_module(f"configs.{launcher}").PRESETS
    config = cli.parse(presets, f"experiments.{launcher}", None, args)
    assert (config.preset, config.data_dir) == (preset, wanted)
    assert getattr(config, "run", config).__dict__.get("data_dir") == wanted


def test_a_launcher_is_opened_with_flags_of_its_run():
    module, run = cli.launcher("experiments.performer_lm", ["--mesh.fsdp=2", "--train.no_progress", "--run.steps", "3"])
    assert module.build and run.mesh.fsdp == 2 and not run.train.progress and run.steps == 3
    _, run = cli.launcher("experiments.performer_lm", ["--checkpoint", "DIR", "--checkpoint.keep", "3", "--no_dry_run"])
    assert run.checkpoint.keep == 3 and not run.dry_run  # the study's own --checkpoint is a path
    _, run = cli.launcher("experiments.performer_lm", ["--data_dir", "/text", "--model.depth", "1"])
    assert run.data_dir == "/text" and run.model.depth == 1
    for name, needs in (("flashjax.cli", "build"), ("experiments.performer_lm", "contestant")):
        with pytest.raises(ValueError, match=rf"{name} is no launcher: it needs PRESETS and {needs}\(config\)"):
            cli.launcher(name, [], needs)


@pytest.mark.parametrize(
    ("launcher", "args", "answer"),
    [
        ("swin_imagenet", ("--search",), "--search belongs to a plan: say of which machine, as in --plan v5e:4x4"),
        ("performer_lm", ("--run.save", "x"), "--run.save belongs to a plan: say of which machine, as in --run.plan"),
        ("swin_imagenet", ("--plan", "cpu:2", "--compiled", "x"), "leave out --compiled x"),
        ("swin_imagenet", ("--plan", ","), "--plan ',' names no topology: want vTPU"),
        ("swin_imagenet", ("--plan", ""), "--plan '' names no topology: want vTPU"),
        ("swin_imagenet", ("--plan", "v5e:4x4,cpu:2", "--search"), "cpu:2 has no limit"),
        ("adamw_study", ("--plan", "cpu:2"), "experiments.adamw_study has no single train step to plan"),
        ("report", ("--plan", "cpu:2"), "as in python -m experiments.swin_imagenet --plan cpu:2"),
    ],
)
def test_what_a_plan_cannot_take_is_refused(launcher, args, answer, capsys):
    presets = importlib.import_module(f"configs.{launcher}").PRESETS
    with pytest.raises(SystemExit, match="2"):
        cli.parse(presets, f"experiments.{launcher}", None, args)
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "answer"),
    [
        (("--preset", "tinny_1k"), "nearest: tiny_1k"),
        (("--preset=tinny_1k",), "nearest: tiny_1k"),
        (("--preset",), "--preset needs a value"),
        (("--data.batch_sise", "3"), "--data.batch_size"),
        (("--mode", "trian"), "'train'"),
        (("--data.batch_size", "many"), "invalid literal"),
        (("--data.batch_size", "0"), "batch_size must be at least 1"),
    ],
)
def test_a_typo_is_answered_with_status_2(args, answer, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*args)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert answer in said.err + said.out
    assert "Traceback" not in said.err


def test_help_shows_every_field_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    page = capsys.readouterr().out
    for flag in ("--workdir", "--data_dir", "--preset", "--mode", "--dry_run", "--seed", "--steps", "--mesh.tensor"):
        assert flag in page
    assert "Seed of parameters, data order" in page and "(default: 16.0)" in page


def test_looking_at_a_run_takes_the_flags_that_made_it(tmp_path):
    recorded = ["--preset", "tiny_1k", "--data.batch_size", "32", "--steps", "7"]
    (tmp_path / "config.json").write_text(json.dumps({"arguments": recorded}))
    config = parse("--workdir", str(tmp_path), "--mode", "eval", "--steps", "9")
    assert (config.preset, config.data.batch_size, config.steps, config.mode) == ("tiny_1k", 32, 9, "eval")
    assert parse("--workdir", str(tmp_path)).preset == "demo"


def test_errors_become_a_message_unless_debugging(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop, cli.friendly_errors():
        raise ValueError("batch_size is 3: make it even")
    assert stop.value.code == 2 and "error: batch_size is 3: make it even" in capsys.readouterr().err
    monkeypatch.setenv("FLASHJAX_DEBUG", "1")
    with pytest.raises(ValueError, match="make it even"), cli.friendly_errors():
        raise ValueError("batch_size is 3: make it even")


def test_a_study_has_one_directory_of_data(capsys):
    def study(*args: str):
        return cli.parse(performer_lm.PRESETS, "experiments.performer_lm", "A study.", ("--preset", "demo", *args))

    config = study("--data_dir", "/text", "--workdir", "/here")
    assert (config.run.data_dir, config.run.workdir) == ("/text", "/here")
    with pytest.raises(SystemExit, match="2"):
        study("--data_dir", "/text", "--run.data_dir", "/other")
    assert "one data_dir" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["swin_imagenet", "performer_lm", "adamw_study", "scaling_study"])
def test_a_launcher_has_a_directory_by_its_name_and_preset(launcher):
    config = next(iter(importlib.import_module(f"configs.{launcher}").PRESETS.values()))
    assert rundir.workdir(config, f"experiments.{launcher}") == f"runs/{launcher}-{config.preset}"
    assert rundir.workdir(dataclasses.replace(config, workdir="here"), f"experiments.{launcher}") == "here"
