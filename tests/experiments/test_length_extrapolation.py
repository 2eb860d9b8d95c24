"""The launcher of length extrapolation as its users run it, at the tiniest size; each by ``main``."""

import json
import sys

import numpy as np
import pytest

from configs.length_extrapolation import PRESETS
from experiments import length_extrapolation
from flashjax.evaluation import length_methods

TEXT = "".join(chr(97 + (i * i) % 23) for i in range(3000))
SMALL = (
    *("--run.steps", "1", "--run.train.no_progress", "--run.data.dataset", "text", "--run.data.length", "32"),
    *("--run.data.batch_size", "8", "--run.data.eval_batch_size", "8", "--run.data.eval_batches", "1"),
    *("--run.model.width", "16", "--run.model.depth", "2", "--run.model.heads", "2", "--run.model.hidden", "16"),
    *("--probes.multiples", "2", "--probes.rows", "2", "--probes.depths", "2", "--probes.needle", "\nkey {key}\n"),
    *("--probes.question", "\nkey ", "--probes.key_length", "2"),
)


def run(monkeypatch, *args) -> None:
    monkeypatch.setattr(sys, "argv", ["length_extrapolation", *map(str, args)])
    length_extrapolation.main()


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(TEXT)
    return tmp_path / "text"


@pytest.mark.slow
def test_trains_one_step_and_tries_a_method(tmp_path, text, monkeypatch, capsys):
    workdir = tmp_path / "run"
    run(monkeypatch, "--workdir", workdir, "--data_dir", text, "--methods", "rerope", *SMALL)
    said = capsys.readouterr().out
    assert (
        "| rerope" in said
        and "this model hardly copies" in said
        and "finds no keys" in said
        and str(workdir / "figure.html") in said
    )
    found = json.loads((workdir / "results.json").read_text())
    assert found["trained_length"] == 32 and [line["length"] for line in found["lines"]] == [64]
    assert all(np.isfinite(line["loss"]) and 2 < line["loss"] < 8 for line in found["lines"])
    assert "<svg" in (workdir / "figure.html").read_text() and (workdir / "results.csv").is_file()


@pytest.mark.slow
def test_trained_models_a_checkpoint_and_longbench(tmp_path, text, monkeypatch, capsys):
    workdir, bench = tmp_path / "run", tmp_path / "bench"
    run(
        monkeypatch,
        "--workdir",
        workdir,
        "--data_dir",
        text,
        *SMALL,
        "--methods",
        "hwfa",
        "key_norm/rerope",
    )
    names = {line["name"] for line in json.loads((workdir / "results.json").read_text())["lines"]}
    assert names == {"hwfa", "key_norm/rerope"}
    assert {path.name for path in (workdir / "models").iterdir()} == {"hwfa", "key_norm"}

    # The model that was trained, tested as a checkpoint, also by LongBench's questions.
    bench.mkdir()
    question = {"context": "a b c", "input": "d", "answers": ["x"], "length": 3}
    (bench / "lcc.jsonl").write_text(json.dumps(question) + "\n")
    again = tmp_path / "again"
    options = ("--workdir", again, "--data_dir", text, "--checkpoint", workdir / "models" / "key_norm")
    options += ("--methods", "baseline", "--longbench", bench, "--trained_length", 40)
    capsys.readouterr()
    run(monkeypatch, *options, *SMALL)
    found = json.loads((again / "results.json").read_text())
    assert found["trained_length"] == 40 and set(found["longbench"]["baseline"]) == {"lcc"}
    assert [line["length"] for line in found["lines"]] == [80]


def test_a_study_says_what_it_does_not_do_and_which_flags_it_has(tmp_path, text, monkeypatch, capsys):
    for options, words in (
        (("--run.mode", "predict", "--run.prompt", "hello"), ("--run.mode predict", "trains and measures")),
        (("--run.prompt", "hello"), ("--run.prompt", "--mode predict")),
        (("--run.init", "a", "--checkpoint", "b"), ("--run.init a", "--checkpoint b")),
        (("--data_dir", text, "--run.data.dataset", "kjv"), ("--run.data.dataset text or jsonl",)),
        (("--checkpoint", tmp_path / "none"), (f"{tmp_path / 'none'}: no such file",)),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, "--workdir", tmp_path / "run", *SMALL, *options)
        captured = capsys.readouterr()
        said = " ".join((captured.out + captured.err).replace("│", " ").split())
        assert all(word in said for word in words) and " --data.d" not in said


def test_what_cannot_be_asked_for_is_an_error(tmp_path, text, monkeypatch, capsys):
    for options, message in (
        (("--methods", "rerop"), "unknown method 'rerop'; nearest: rerope"),
        (("--methods", "alibi", "--checkpoint", tmp_path), "leave out --checkpoint"),
        (("--checkpoint", tmp_path / "none"), "no such file"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, "--workdir", tmp_path / "run", "--data_dir", text, *SMALL, *options)
        assert message in capsys.readouterr().err


def test_presets_name_what_there_is():
    for preset in PRESETS.values():
        for name in preset.methods:
            model, method = length_methods.parse(name)
            made = length_methods.trained(preset.run.model, model, preset.run.data.length)
            length_methods.changed(made, method, preset.run.data.length, max(preset.probes.multiples))


def test_dry_run_shows_the_model(tmp_path, text, monkeypatch, capsys):
    run(monkeypatch, "--workdir", tmp_path / "run", "--data_dir", text, "--run.dry_run", *SMALL)
    assert "embed/embedding" in capsys.readouterr().out and not (tmp_path / "run" / "checkpoints").exists()
