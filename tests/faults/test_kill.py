"""``kill -9`` at random moments of asynchronous saves: what is taken for whole is whole, and the run goes on."""

import os
import random
import time

import numpy as np
import pytest

from flashjax.training import CheckpointConfig, Program, fit
from flashjax.training.checkpoints import Checkpoints
from tests.faults import driver
from tests.faults.driver import Run

pytestmark = pytest.mark.faults

BALLAST_MB = 4.0  # a state of 16 MiB, which takes about as long to save as ten steps take


@pytest.mark.parametrize("kills", [3, pytest.param(22, marks=pytest.mark.slow)])
def test_a_kill_within_a_save_loses_at_most_that_save(kills, tmp_path, record_property):
    """Each process saves after every step, so that nearly every moment is within a save."""
    seed = int(os.environ.get("FLASHJAX_FAULT_SEED", time.time_ns() % 2**32))
    print(f"FLASHJAX_FAULT_SEED={seed}")
    draw = random.Random(seed)
    run = Run(tmp_path / "killed", steps=10**6, save_every=1, eval_every=10**6, ballast_mb=BALLAST_MB)
    kept = CheckpointConfig(keep=run.keep)
    program = Program(driver.build(run))
    directory = run.workdir / "checkpoints"
    landed, made, newest = 0, 0, 0

    while landed < kills:
        assert made < 3 * kills, f"only {landed} of {made} kills fell into a save"
        process = driver.start(run)
        driver.wait_for(lambda newest=newest: directory.is_dir() and max(_steps(directory), default=0) > newest)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        assert driver.status(process) == 137, driver.log(run)[-2000:]
        made += 1
        landed += any("tmp" in path.name for path in directory.iterdir())

        found = Checkpoints(directory, kept, read_only=True)
        assert found.steps() == found.whole() and found.steps(), "only what is whole counts as a step"
        newest = found.latest()
        state = found.restore(newest, program.abstract_state)
        assert int(state.step) == newest
        found.close()
    print(f"{made} kills, {landed} of them within a save; the run is at step {newest}")
    record_property("kills", made)
    record_property("kills_within_a_save", landed)

    total = newest + 3
    end = Run(run.workdir, steps=total, eval_every=10**6, ballast_mb=BALLAST_MB)
    assert driver.finish(end) == 0, driver.log(run)[-2000:]
    assert not [p for p in directory.iterdir() if not p.name.isdigit()], "what was half-written is cleared away"
    straight = Run(tmp_path / "straight", steps=total, eval_every=10**6, ballast_mb=BALLAST_MB)
    whole = fit(driver.build(straight)).state
    found = Checkpoints(directory, kept, read_only=True)
    driver.assert_bitwise(whole, found.restore(total, program.abstract_state))
    found.close()
    assert driver.losses(run.workdir) == driver.losses(straight.workdir)
    assert np.array_equal(sorted(driver.losses(run.workdir)), np.arange(1, total + 1))


def _steps(directory):
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit()]
