"""The check of a run directory: what it says of a whole one, of each kind of damage, and with which status."""

import fcntl
import os
import shutil

import pytest

from flashjax.training import OptimizerConfig, ScheduleConfig, check, fit
from tests.training.toy import experiment


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    constant = OptimizerConfig(learning_rate=1e-2, schedule=ScheduleConfig(kind="constant"))
    fit(experiment(workdir, steps=8, poison=(5,), optimizer=constant))
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def said(directory, capsys, *options):
    status = check.main([str(directory), *options])
    return status, capsys.readouterr()


def test_a_whole_run(finished, capsys):
    before = sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*"))
    status, out = said(finished, capsys, "--restore")
    assert status == check.WHOLE and out.out.endswith("whole\n")
    assert "toy, preset toy: 8 steps, 33,024 parameters; mesh data 2 x fsdp 4" in out.out
    assert "up to step 8" in out.out and "lock             free" in out.out
    for step in (4, 8):
        assert f"step {step}           whole, every array read; " in out.out
    assert "params 129 KiB" in out.out and "; loss " in out.out and ", top1 " in out.out
    assert "nonfinite/5      loss" in out.out and "x [16, 128], y [16]; --mode replay --step 5 repeats it" in out.out
    assert sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*")) == before, "nothing is touched"


def largest(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 4
    path.write_bytes(broken)


DAMAGES = {
    "step 8": lambda run: flip(largest(run / "checkpoints" / "8")),
    "step 4": lambda run: (run / "checkpoints" / "4" / "digests.json").unlink(),
    "config.json": lambda run: os.truncate(run / "config.json", 100),
    "metrics.jsonl": lambda run: (run / "metrics.jsonl").write_text("{}\n"),
    "nonfinite/5": lambda run: os.truncate(run / "nonfinite" / "5" / "batch_0.npz", 500),
}


@pytest.mark.parametrize("part", DAMAGES)
def test_damage_is_named(part, run, capsys):
    DAMAGES[part](run)
    status, out = said(run, capsys)
    assert status == check.DAMAGED and f"{part:16} DAMAGED: " in out.out
    assert f"\nDAMAGED: {part}\n" in out.out, "and nothing else"
    assert ("to resume at step 4, move away: " in out.out) == (part == "step 8")


def test_a_run_without_a_step_that_loads(run, capsys):
    for step in ("4", "8"):
        flip(largest(run / "checkpoints" / step))
    status, out = said(run, capsys)
    assert status == check.DAMAGED and "no step can be loaded" in out.out


def test_what_a_killed_run_leaves_is_no_damage(run, capsys):
    shutil.copytree(run / "checkpoints" / "8", run / "checkpoints" / "9.orbax-checkpoint-tmp")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    with (run / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, out = said(run, capsys)
    assert status == check.WHOLE
    assert "9.orbax-checkpoint-tmp: counts for nothing" in out.out and "the last line is incomplete" in out.out
    assert "held: a run is at work here (process " in out.out


def test_not_a_run(tmp_path, capsys):
    assert said(tmp_path, capsys)[0] == check.NO_RUN
    status, out = said(tmp_path / "nothing", capsys)
    assert status == check.NO_RUN and "is not a directory: name the --workdir of a run" in out.err


def test_help(capsys):
    with pytest.raises(SystemExit):
        check.main(["--help"])
    assert "Exit status: 0 whole, 1 damaged" in capsys.readouterr().out
