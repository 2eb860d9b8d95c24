"""Plans as commands: several topologies, what cannot be planned, a step that is saved."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest

from flashjax.planning import __main__ as command
from flashjax.training import MeshConfig
from flashjax.training.program import Program
from tests.training import toy


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """`show` of a launcher of the toy, whose batch of 16 and whose evaluation batch of 20 have few divisors."""
    made = toy.experiment(tmp_path, mesh=MeshConfig(), eval_data=toy.Vectors(3, batch_size=20))
    launcher = SimpleNamespace(build=lambda config: dataclasses.replace(made, config=config))
    monkeypatch.setitem(sys.modules, "experiments.toy", launcher)
    monkeypatch.setenv("FLASHJAX_PLAN_CACHE", str(tmp_path / "cache"))
    return lambda **changes: command.show("experiments.toy", dataclasses.replace(made.config, **changes))


def test_a_topology_that_cannot_be_planned_leaves_the_others(plan, tmp_path, capsys):
    assert plan(plan="cpu:3, cpu:2,cpu:8") == 2  # 8 does not divide the evaluation batch
    said = capsys.readouterr()
    assert "error: cpu:3: batch size 16 does not divide into 3 batch shards" in said.err and "error" not in said.out
    assert said.out.count("toy on cpu:2") == said.out.count("toy on cpu:8") == 2  # alone and side by side
    assert (tmp_path / "plan-cpu-2.json").is_file() and not (tmp_path / "plan-cpu-3.json").exists()
    with pytest.raises(ValueError, match="does not divide into 3"):
        plan(plan="cpu:3")


def test_a_plan_saves_the_step_that_a_run_loads(plan, tmp_path):
    file = tmp_path / "step.bin"
    with pytest.raises(ValueError, match="--save is of one topology, --plan names 2"):
        plan(plan="cpu:2,cpu:8", save=str(file))
    assert plan(plan="cpu:8", save=str(file)) == 0
    made = toy.experiment(tmp_path, mesh=MeshConfig())
    made = dataclasses.replace(made, config=dataclasses.replace(made.config, compiled=str(file)))
    program = Program(made)
    state, metrics = program.compile_step()(program.init(), program.put(made.train_data.batch(0), made.train_data.spec))
    assert int(state.step) == 1 and float(metrics["loss"]) > 0


@pytest.mark.parametrize(("data_dir", "preset"), [(None, "demo"), ("/data", "pg19")])
def test_the_command_plans_the_run_of_a_study_and_of_the_launchers_own_preset(data_dir, preset, monkeypatch):
    shown = []
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    if data_dir:
        monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    monkeypatch.setattr(command, "show", lambda program, run: shown.append((program, run)) or 0)
    monkeypatch.setattr(sys, "argv", ["planning", "experiments.performer_lm", "cpu:2", "cpu:4", "--mesh.fsdp", "2"])
    with pytest.raises(SystemExit, match="0"):
        command.main()
    ((program, run),) = shown
    assert (program, run.plan, run.mesh.fsdp) == ("experiments.performer_lm", "cpu:2,cpu:4", 2)
    assert run.data_dir == data_dir and run.data.dataset == {"demo": "kjv"}.get(preset, preset)
