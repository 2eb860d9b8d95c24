"""Launches on this machine: real processes, their places, their signals and their ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from flashjax.launch.local import Local, Supervisor
from tests.launch.helpers import AWKWARD, ROOT, launch


def local(*options: str, code: str, arguments: Sequence[str] = (), cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flashjax.launch", "local", *options, "--", "python", "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


ME = "import json, os, signal, sys, time; me = int(os.environ['FLASHJAX_PROCESS_ID']); "


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is dead: nobody here may be its parent to collect it.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_local_gives_each_process_its_place(tmp_path: Path):
    code = ME + "print(json.dumps([me, os.environ['FLASHJAX_NUM_PROCESSES'], os.environ['XLA_FLAGS'], sys.argv[1:]]))"
    code += "; print('to stderr', file=sys.stderr)"
    process = local("--processes", "3", "--devices", "2", code=code, arguments=AWKWARD, cwd=tmp_path)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    lines = sorted(output.splitlines())
    for number, line in enumerate(lines):
        prefix, _, rest = line.partition("] ")
        assert prefix == f"[process {number}"
        assert json.loads(rest) == [number, "3", "--xla_force_host_platform_device_count=2", AWKWARD]
        assert f"[process {number}] to stderr" in errors
    assert "wrote launches/flashjax-local.sh" in errors


def test_local_script_does_the_same():
    code = ME + "print(json.dumps([me, sys.argv[1:]])); sys.exit(3 * me)"
    script = Local(processes=2, devices=1).script([sys.executable, "-c", code, *AWKWARD])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 3
    assert sorted(done.stdout.splitlines())[-1] == "[process 1] " + json.dumps([1, AWKWARD])


@pytest.mark.parametrize(("dies", "status"), [("sys.exit(5)", 5), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_local_ends_the_others_when_one_fails(tmp_path: Path, dies: str, status: int):
    # Process 0 ignores SIGTERM and has a child; it must go all the same, within the limit. A line is written in one
    # piece, else those of the two may mix.
    code = ME + (
        f"\nif me: time.sleep(.5); {dies}\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); child = os.fork(); "
        "os.write(1, b'pid %d\\n' % os.getpid()); time.sleep(600)"
    )
    started = time.monotonic()
    process = local("--grace_s", "1", code=code, cwd=tmp_path)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert f"process 1 failed with status {status}" in errors
    assert time.monotonic() - started < 10
    pids = [int(line.split()[-1]) for line in output.splitlines()]
    assert len(pids) == 2 and not any(alive(pid) for pid in pids)


def test_local_reports_the_cause_and_not_the_consequence(tmp_path: Path):
    # As when process 1 is killed and the watchdog ends process 0 before the launcher has looked.
    code = ME + "sys.exit(9 if me else 76)"
    process = local(code=code, cwd=tmp_path)
    process.communicate(timeout=30)
    assert process.returncode in (9, 76)
    supervisor = Supervisor(["true"], {}, 2, 1.0)
    supervisor.processes = [subprocess.Popen(["sh", "-c", f"exit {status}"]) for status in (76, 9)]
    for each in supervisor.processes:
        each.wait()
    supervisor._collect()
    assert supervisor.status == 9


def start_and_wait_for(process: subprocess.Popen[str], lines: int) -> list[int]:
    assert process.stdout is not None
    return [int(process.stdout.readline().split()[-1]) for _ in range(lines)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on(tmp_path: Path, number: signal.Signals):
    code = ME + (
        "\ndef stop(number, frame): print('saved', flush=True); sys.exit(128 + number)\n"
        f"signal.signal({int(number)}, stop); print(os.getpid(), flush=True); time.sleep(600)"
    )
    process = local(code=code, cwd=tmp_path)
    pids = start_and_wait_for(process, 2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    assert sorted(output.splitlines()) == ["[process 0] saved", "[process 1] saved"]
    assert not any(alive(pid) for pid in pids)


def test_local_second_signal_kills(tmp_path: Path):
    code = ME + "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    process = local(code=code, cwd=tmp_path)
    pids = start_and_wait_for(process, 2)
    process.terminate()
    time.sleep(0.3)
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 143
    assert not any(alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_local_processes_die_with_the_launcher(tmp_path: Path):
    process = local(code=ME + "print(os.getpid(), flush=True); time.sleep(600)", cwd=tmp_path)
    pids = start_and_wait_for(process, 2)
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


def test_local_runs_jax_over_all_processes(tmp_path: Path):
    done = launch(
        [
            "local",
            "--processes",
            "2",
            "--devices",
            "2",
            "--",
            "python",
            "-m",
            "tests.training.watchdog_worker",
            "--steps",
            "3",
        ],
        tmp_path,
        dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert "[process 0] process 0 sees 4 devices" in done.stdout
    assert "[process 1] process 1 sees 4 devices" in done.stdout
