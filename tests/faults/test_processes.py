"""One process of two killed: the other ends within its limit and names it; the same command resumes both."""

import subprocess
import sys
import time

import numpy as np
import pytest

from tests.faults import driver
from tests.faults.driver import LIMIT_S, Run

pytestmark = pytest.mark.faults

SLACK_S = 8.0
"""For the system's own time on a machine that does other things too."""


def test_one_of_two_processes_is_killed(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    command = [sys.executable, "-m", "flashjax.launch", "local", "--processes", "2", "--devices", "4", "--"]
    command += [sys.executable, "-m", "tests.faults.driver", str(workdir)]

    first = subprocess.run(command, capture_output=True, text=True, timeout=120)
    took = time.time() - float(driver.died(workdir).read_text())
    said = first.stdout + first.stderr
    assert first.returncode == 137, f"the status of the process that was killed\n{said[-3000:]}"
    poll_s = LIMIT_S / 10
    print(f"process 0 ended {took:.1f} s after process 1 was killed; the limit is {LIMIT_S + 5 * poll_s:g} s")
    assert took < LIMIT_S + 5 * poll_s + SLACK_S
    assert "[process 0] flashjax: this process" in said and "ends with status 76: process 1 (" in said, said[-3000:]
    assert "process 1 failed with status 137" in said

    second = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert second.returncode == 0, (second.stdout + second.stderr)[-3000:]
    assert "resumed at step 4" in second.stdout + second.stderr
    assert second.stdout.count("finished at step 8") == 2

    straight = Run(tmp_path / "straight")
    assert driver.finish(straight) == 0
    wanted, found = driver.losses(straight.workdir), driver.losses(workdir)
    assert list(found) == list(wanted) == list(range(1, 9))
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-5)
