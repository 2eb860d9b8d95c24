"""The loop: resumption bit for bit, evaluation of every example once, interruption, updates that are not finite."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.training import (
    CheckpointConfig,
    MeshConfig,
    OptimizerConfig,
    Program,
    ScheduleConfig,
    evaluate,
    fit,
    nonfinite,
)
from flashjax.training.interrupts import Interrupted
from flashjax.training.nonfinite import NonFiniteError
from flashjax.training.rundir import RunDirectory, RunDirectoryError
from tests.training.toy import BATCH, Linear, Vectors, experiment


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_bitwise(a, b) -> None:
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    different = [jax.tree_util.keystr(path) for path, ok in jax.tree_util.tree_leaves_with_path(same) if not ok]
    assert not different, different


def test_resumed_run_equals_the_straight_run_bit_for_bit(tmp_path):
    whole = experiment(tmp_path / "whole", steps=8, ema_decay=0.9, accumulate=2)
    straight = fit(whole)

    class Stops(Vectors):
        def batches(self, start=0):
            for rows in super().batches(start):
                if len(self.served) == 5 and start == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield rows

    halves = Stops(None)
    with pytest.raises(Interrupted) as stopped:
        fit(experiment(tmp_path / "halves", steps=8, ema_decay=0.9, accumulate=2, train_data=halves))
    assert stopped.value.code == 143 and stopped.value.step == 5
    resumed = fit(experiment(tmp_path / "halves", steps=8, ema_decay=0.9, accumulate=2, train_data=halves))

    assert_bitwise(straight.state, resumed.state)
    assert resumed.step == 8
    assert halves.served == [*range(8)], "every batch once, in order"
    whole_lines = {line["step"]: line["loss"] for line in lines(tmp_path / "whole") if "loss" in line}
    halves_lines = {line["step"]: line["loss"] for line in lines(tmp_path / "halves") if "loss" in line}
    assert whole_lines == halves_lines and list(whole_lines) == [*range(1, 9)]


def test_a_finished_run_only_evaluates(tmp_path):
    first = fit(experiment(tmp_path, steps=4))
    data = Vectors(None)
    again = fit(experiment(tmp_path, steps=4, train_data=data))
    assert data.served == [] and again.metrics == first.metrics
    assert_bitwise(first.state, again.state)


def test_evaluation_counts_every_example_once_on_any_mesh(tmp_path):
    data = Vectors(3, mask_from=5)
    rows = [data.batch(k) for k in range(3)]
    x, y, mask = (np.concatenate([r[name] for r in rows]) for name in ("x", "y", "mask"))
    assert mask.sum() == 2 * BATCH + 5
    found = []
    for mesh in (MeshConfig(data=8), MeshConfig(data=2, fsdp=4), MeshConfig(data=1, tensor=8)):
        program = Program(experiment(tmp_path, mesh=mesh, eval_data=data))
        state = program.init()
        found.append(program.evaluate(state, data))
        dense = jax.tree.map(np.asarray, state.params["dense"])
    logits = x @ dense["kernel"] + dense["bias"]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    for metrics in found:
        np.testing.assert_allclose(metrics["loss"], losses[mask > 0].mean(), rtol=1e-5)


def test_the_speed_on_text_is_told_in_tokens(tmp_path, capfd):
    fit(dataclasses.replace(experiment(tmp_path, steps=2, progress=True), example_tokens=7))
    said = capfd.readouterr().err
    assert "tokens/s, MFU" in said and "examples/s" not in said
    speeds = [line for line in lines(tmp_path) if "tokens_per_second" in line]
    assert speeds and all(x["tokens_per_second"] == pytest.approx(7 * x["examples_per_second"]) for x in speeds)


def test_files_of_a_run(tmp_path):
    result = fit(experiment(tmp_path, steps=8, accumulate=2))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["mesh"]["fsdp"] == 4 and config["devices"]["count"] == 8
    assert config["versions"]["jax"] == jax.__version__ and config["config"]["seed"] == 0
    logged = lines(tmp_path)
    assert {"loss", "grad_norm", "learning_rate", "step_time", "data_wait", "examples_per_second"} <= logged[-2].keys()
    assert "mfu" not in logged[-2], "the peak of a CPU is unknown"
    assert [line["step"] for line in logged if "eval_top1" in line] == [4, 8]
    assert result.checkpoint is not None and result.checkpoint.is_dir()
    assert 4 in {int(p.name) for p in (tmp_path / "checkpoints").iterdir()} | {result.step}


def test_best_and_newest_are_kept(tmp_path):
    class Scored(Linear):
        def evaluate(self, variables, batch):
            # Best in the middle: the metric falls with the distance of the bias from what it is there.
            ones = jnp.ones(())
            return {"top1": (jnp.sum(variables["params"]["dense"]["bias"] ** 2), ones)}

    checkpoint = CheckpointConfig(keep=1, mode="min")
    result = fit(experiment(tmp_path, steps=6, eval_every=1, objective=Scored(), checkpoint=checkpoint))
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    scores = {line["step"]: line["eval_top1"] for line in lines(tmp_path) if "eval_top1" in line}
    best = min(scores, key=scores.__getitem__)
    assert kept == sorted({best, 6}) and result.checkpoint.name == str(best)
    assert evaluate(experiment(tmp_path, steps=6, objective=Scored(), checkpoint=checkpoint))["top1"] == scores[best]


def test_nonfinite_update_is_skipped_kept_and_replayed(tmp_path):
    constant = OptimizerConfig(learning_rate=1e-2, schedule=ScheduleConfig(kind="constant"))
    clean = fit(experiment(tmp_path / "clean", steps=3, optimizer=constant))
    poisoned = fit(experiment(tmp_path / "poisoned", steps=6, poison=(3,), optimizer=constant))
    assert poisoned.step == 6 and np.isfinite(poisoned.metrics["loss"])
    assert int(poisoned.state.step) == 6 and not bool(poisoned.state.halted)
    kept = tmp_path / "poisoned" / "nonfinite" / "3"
    assert json.loads((kept / "figures.json").read_text())["batch"] == 3

    program = Program(experiment(tmp_path / "poisoned", steps=6, optimizer=constant))
    state, rows = nonfinite.load(kept, program.abstract_state)
    assert_bitwise(state.params, clean.state.params)
    assert np.isinf(rows["x"][0, 0])
    _, metrics = program.train_step(state, program.put(rows, program.experiment.train_data.spec))
    assert not bool(metrics["finite"])
    with pytest.raises(FileNotFoundError, match="kept: 3"):
        nonfinite.load(kept.parent / "4", program.abstract_state)


def test_nonfinite_in_a_row_ends_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="2 updates in a row"):
        fit(experiment(tmp_path, steps=8, poison=(2, 3, 4), max_nonfinite=2))


def test_second_run_in_a_workdir_refuses(tmp_path):
    held = RunDirectory(tmp_path)
    try:
        with pytest.raises(RunDirectoryError, match="another run is at work"):
            fit(experiment(tmp_path))
    finally:
        held.close()


def test_another_recipe_in_the_workdir_is_refused_or_accepted_openly(tmp_path):
    fit(experiment(tmp_path, steps=4))
    with pytest.raises(RunDirectoryError, match=r"train\.accumulate: 1 then, 2 now"):
        fit(experiment(tmp_path, steps=8, accumulate=2))
    assert fit(experiment(tmp_path, steps=8, accumulate=2, accept_changes=True)).step == 8


def test_pretrained_variables_take_their_places(tmp_path):
    kernel = np.full((128, 256), 0.5, np.float32)

    def initial(shapes):
        return {
            "params": {"dense": {"kernel": kernel, "bias": shapes["params"]["dense"]["bias"]}},
            **{name: tree for name, tree in shapes.items() if name != "params"},
        }

    program = Program(dataclasses.replace(experiment(tmp_path), initial=initial))
    state = program.init()
    np.testing.assert_array_equal(np.asarray(state.params["dense"]["kernel"]), kernel)
    assert state.params["dense"]["kernel"].sharding == program.shardings.params["dense"]["kernel"]


def test_batch_that_does_not_divide(tmp_path):
    with pytest.raises(
        ValueError, match="batch size 12 does not divide into 8 batch shards; nearest that works: 8 or 16"
    ):
        fit(experiment(tmp_path, train_data=Vectors(None, batch_size=12)))


def test_evaluation_without_checkpoints(tmp_path):
    with pytest.raises(Exception, match="no checkpoints at"):
        evaluate(experiment(tmp_path / "nothing"))
