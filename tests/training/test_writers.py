"""Writers: the file of metrics across resumption and kills, optional ones, and what is said when one is missing."""

import json
import math
import sys
import types
from dataclasses import dataclass

import jax
import pytest

from flashjax.training.writers import JsonLinesWriter, make_writers, read_json_lines


@dataclass(frozen=True)
class Config:
    seed: int = 3


def test_lines_are_on_disk_before_the_writer_is_closed(tmp_path):
    writer = JsonLinesWriter(tmp_path / "metrics.jsonl")
    writer.write(1, {"loss": 2.5})
    writer.write(2, {"loss": 1.25, "accuracy": 0.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 2.5},
        {"step": 2, "loss": 1.25, "accuracy": 0.5},
    ]
    writer.close()
    writer.close()


def test_numbers_that_json_has_not_survive(tmp_path):
    writer = JsonLinesWriter(tmp_path / "metrics.jsonl")
    writer.write(1, {"loss": math.nan, "norm": math.inf, "low": -math.inf})
    writer.close()
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    (values,) = read_json_lines(tmp_path / "metrics.jsonl")
    assert math.isnan(values["loss"]) and values["norm"] == math.inf and values["low"] == -math.inf


def test_resumption_drops_what_will_be_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLinesWriter(path)
    for step in (10, 20, 20, 30):
        first.write(step, {"loss": 100.0 - step})
    first.close()
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')  # killed in the middle of a line

    second = JsonLinesWriter(path, resume_step=20)
    second.write(30, {"loss": 7.0})
    second.close()
    assert [(line["step"], line["loss"]) for line in read_json_lines(path)] == [
        (10, 90.0),
        (20, 80.0),
        (20, 80.0),
        (30, 7.0),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_new_run_replaces_an_old_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n')
    JsonLinesWriter(path).close()
    assert path.read_text() == ""


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"line 2 is not a line of metrics: 'nonsense'"):
        JsonLinesWriter(path, resume_step=1)
    assert read_json_lines(tmp_path / "absent.jsonl") == []


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra: pip install 'flashjax[tensorboard]'")
    from tensorboardX.proto import event_pb2

    writer = make_writers(("tensorboard",), tmp_path, None, Config())
    writer.write(5, {"loss": 0.75})
    writer.flush()
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    data, found = events.read_bytes(), []
    while data:  # TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[12 + size + 4 :]
    assert found == [(5, "loss", 0.75)]
    assert [line["loss"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [0.75]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_writer_that_is_not_installed_says_how_to_install_it(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf"'{name}' is asked for but not installed: pip install 'flashjax\[{name}\]'"
    ):
        make_writers((name,), tmp_path, None, Config())
    assert not (tmp_path / "metrics.jsonl").exists()


def test_an_unknown_writer_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="unknown writer 'tensorbord'; nearest: tensorboard"):
        make_writers(("tensorbord",), tmp_path, None, Config())


def test_wandb_gets_config_and_resumes_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append(("log", step, values))

        def finish(self):
            calls.append(("finish",))

    def init(**options):
        calls.append(("init", options["id"], options["config"]))
        return Run()

    ids = iter(["first", "second"])
    fake = types.SimpleNamespace(init=init, util=types.SimpleNamespace(generate_id=lambda: next(ids)))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for resume_step in (None, 10, None):
        writer = make_writers(("wandb",), tmp_path, resume_step, Config())
        writer.write(11, {"loss": 1})
        writer.close()
    runs = [call[1:] for call in calls if call[0] == "init"]
    assert runs == [("first", {"seed": 3}), ("first", {"seed": 3}), ("second", {"seed": 3})]
    assert calls[1:3] == [("log", 11, {"loss": 1.0}), ("finish",)]


def test_only_process_zero_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = make_writers(("tensorboard",), tmp_path, None, Config())
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []
