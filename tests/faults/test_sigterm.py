"""SIGTERM in the midst of compiling, a step, an evaluation and a save: one checkpoint, status 143, nothing lost."""

import pytest

from flashjax.training import CheckpointConfig, fit
from flashjax.training.checkpoints import Checkpoints
from tests.faults import driver
from tests.faults.driver import Run

pytestmark = pytest.mark.faults

STOPPED_AT = {"compile": 0, "step": 6, "evaluation": 4, "save": 4}
"""The step of the one checkpoint: the state that was there when the stage ended. Steps end whole."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("straight"), ballast_mb=2.0)
    return run, fit(driver.build(run)).state


@pytest.fixture(scope="module")
def stopped(request, tmp_path_factory):
    """The runs of the tests that were asked for, all at once, each stopped in its stage."""
    chosen = {item.callspec.params["stage"] for item in request.session.items if item.path == request.path}
    runs = {
        stage: Run(tmp_path_factory.mktemp(stage), ballast_mb=2.0, signal_in=stage, keep=1) for stage in sorted(chosen)
    }
    processes = {stage: driver.start(run) for stage, run in runs.items()}
    return {stage: (runs[stage], driver.status(process)) for stage, process in processes.items()}


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("compile", marks=pytest.mark.slow),
        pytest.param("step", marks=pytest.mark.slow),
        "evaluation",
        "save",
    ],
)
def test_sigterm(stage, straight, stopped):
    whole, state = straight
    run, status = stopped[stage]
    said = driver.log(run)
    assert status == 143, said[-2000:]
    step = STOPPED_AT[stage]
    assert said.count("stopping on signal 15") == 1 and "resume with:\n  python -m toy" in said
    assert f"at step {step}: saving" in said
    if stage == "compile":
        assert "compilation begins" in said
    if stage == "save":
        assert "being written" in said

    directory = run.workdir / "checkpoints"
    found = Checkpoints(directory, CheckpointConfig(keep=1), read_only=True)
    newest = [s for s in found.whole() if s >= step]
    assert found.latest() == step and newest == [step], "one checkpoint is made for the signal, and it is whole"
    if stage == "evaluation":
        assert not found.metrics(step), "no figures of an evaluation that was given up, nor of an older one"
    found.close()

    again = Run(run.workdir, ballast_mb=2.0)
    resumed = fit(driver.build(again))
    driver.assert_bitwise(state, resumed.state)
    assert driver.losses(run.workdir) == driver.losses(whole.workdir)
    assert driver.evaluations(run.workdir) == driver.evaluations(whole.workdir), "every evaluation, once"
    assert driver.served(run.workdir)[:step] + driver.served(run.workdir)[-(8 - step) :] == driver.served(whole.workdir)
