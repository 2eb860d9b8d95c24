"""Setting up several processes, and what becomes of the others when one dies, fails, hangs or is asked to stop.

The runs are real: two or three processes of ``watchdog_worker`` over Gloo, one of which is killed or stopped.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

from flashjax.training import distributed
from flashjax.training.distributed import EXIT_PEER_FAILED, EXIT_PEER_LOST, EXIT_STALLED, DistributedConfig, resolve
from flashjax.training.watchdog import DONE, Beat, Ledger, Watchdog

ROOT = Path(__file__).parents[2]
LIMIT_S = 1.5
POLL_S = LIMIT_S / 10
SLACK_S = 3.0
"""A busy machine of two cores may start a thread late."""


@dataclass
class Ended:
    status: int
    output: str
    at: float


def run_processes(
    *options: str, count: int = 2, numbers: Sequence[int] | None = None, timeout_s: float = 50
) -> list[Ended]:
    """Start the workers (``numbers`` of them) and wait for all that end by themselves; the rest is killed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "JAX_PLATFORMS": "cpu",
        "FLASHJAX_COORDINATOR": f"127.0.0.1:{port}",
        "FLASHJAX_NUM_PROCESSES": str(count),
    }
    command = [sys.executable, "-u", "-m", "tests.training.watchdog_worker", "--limit_s", str(LIMIT_S), *options]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"FLASHJAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for number in numbers or range(count)
    ]
    stopped = int(options[options.index("--who") + 1]) if "stop" in options else None
    ended: dict[int, float] = {}
    deadline = time.monotonic() + timeout_s
    try:
        while len(ended) < len(processes) - (stopped is not None) and time.monotonic() < deadline:
            for number, process in enumerate(processes):
                if number not in ended and process.poll() is not None:
                    ended[number] = time.time()
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
    outputs = [process.communicate()[0] for process in processes]
    return [
        Ended(process.returncode, output, ended.get(number, float("inf")))
        for number, (process, output) in enumerate(zip(processes, outputs, strict=True))
    ]


def act_time(ended: Ended) -> float:
    return float(ended.output.split("acts at ")[1].split()[0])


def test_killed_process_ends_the_other_by_name():
    other, victim = run_processes("--act", "kill", "--who", "1")
    assert victim.status == -signal.SIGKILL
    assert other.status == EXIT_PEER_LOST, other.output
    assert f"process 1 ({socket.gethostname()}) was last seen" in other.output
    assert "limit 1.5 s" in other.output
    assert other.at - act_time(victim) < LIMIT_S + 5 * POLL_S + SLACK_S


def test_killed_coordinator_ends_the_other_by_name():
    victim, other = run_processes("--act", "kill", "--who", "0")
    assert victim.status == -signal.SIGKILL
    assert other.status == EXIT_PEER_LOST, other.output
    assert f"process 0 ({socket.gethostname()}) was last seen" in other.output
    assert "nothing answers at 127.0.0.1:" in other.output
    assert other.at - act_time(victim) < LIMIT_S + 5 * POLL_S + SLACK_S


@pytest.mark.parametrize("who", [pytest.param(1, marks=pytest.mark.slow), 0])
def test_stopped_process_ends_the_other_by_name(who: int):
    # A stopped coordinator still accepts connections and never answers: no error reaches the other, only silence.
    ended = run_processes("--act", "stop", "--who", str(who))
    other = ended[1 - who]
    assert other.status == EXIT_PEER_LOST, other.output
    assert f"process {who} ({socket.gethostname()}) was last seen" in other.output
    assert other.at - act_time(ended[who]) < LIMIT_S + 5 * POLL_S + SLACK_S


@pytest.mark.parametrize(
    ("who", "count"), [(1, 2), pytest.param(0, 2, marks=pytest.mark.slow), pytest.param(1, 3, marks=pytest.mark.slow)]
)
def test_failing_process_keeps_its_traceback_and_ends_all(who: int, count: int):
    ended = run_processes("--act", "raise", "--who", str(who), count=count)
    assert ended[who].status == 1
    assert "RuntimeError: the data are gone" in ended[who].output
    for number, other in enumerate(ended):
        if number != who:
            assert other.status == EXIT_PEER_FAILED, other.output
            expected = f"process {who} ({socket.gethostname()}) failed at step 29: RuntimeError: the data are gone"
            assert expected in other.output


def test_hanging_process_is_named_with_its_stack():
    # Alive, so that its heartbeat goes on, but its main thread sleeps before step 30.
    ended = run_processes("--act", "hang", "--who", "1", "--stall_limit_s", "2")
    for process in ended:
        assert process.status == EXIT_STALLED, process.output
        assert f"process 1 ({socket.gethostname()}) in watchdog_worker.py:" in process.output
        assert "has stood still at step 29" in process.output
    assert "in act" in ended[1].output, "the stack of the hanging process shows the function that hangs"
    assert ended[0].at - act_time(ended[1]) < 2 + 5 * POLL_S + SLACK_S


def test_stop_request_reaches_all_at_one_step():
    ended = run_processes("--act", "signal", "--who", "1", "--steps", "2000")
    stops = [process.output.split("stops at step ")[1].split()[0] for process in ended]
    assert [process.status for process in ended] == [143, 143]
    assert stops[0] == stops[1]


@pytest.mark.slow
def test_long_first_step_is_no_stall():
    # Two stall limits long: the first step has four. The silence limit is shorter still, and the heartbeat goes on.
    ended = run_processes("--first_step_s", "4", "--stall_limit_s", "2")
    assert [process.status for process in ended] == [0, 0], ended[0].output + ended[1].output


@pytest.mark.slow
@pytest.mark.parametrize("present", [0, 1])
def test_missing_process_ends_the_start(present: int):
    (ended,) = run_processes("--start_timeout_s", "4", numbers=[present])
    assert ended.status == EXIT_PEER_LOST, ended.output
    assert f"process {present} of 2 waited 4 s" in ended.output


def test_unknown_coordinator_is_named():
    with pytest.raises(ValueError, match=r"host 'no-such-host\.invalid' has no address"):
        distributed._await_coordinator("no-such-host.invalid:1", time.monotonic())


def test_watchdog_of_one_process_does_nothing():
    with Watchdog(1, 1) as watchdog:
        watchdog.beat(0)
        assert not watchdog._threads
    with pytest.raises(KeyError), Watchdog():
        raise KeyError("passes through")
    with pytest.raises(ValueError, match="limit_s 0"):
        Watchdog(limit_s=0)


def beat(process: int, tick: int = 1, beats: int = 5, **changes) -> Beat:
    values = {"host": f"host{process}", "step": beats, "patience_s": 30.0, "where": "a.py:1 f"} | changes
    return Beat(process=process, tick=tick, beats=beats, **values)


def ledger_of(*beats: Beat, limit_s: float = 10.0) -> Ledger:
    ledger = Ledger(range(len(beats)), limit_s, unseen_limit_s=100.0)
    for each in beats:
        ledger.update(each)
    return ledger


def test_ledger_counts_silence_from_the_last_new_tick():
    ledger = ledger_of(beat(0), beat(1))
    ledger.advance(9)
    ledger.update(beat(0, tick=2))
    ledger.update(beat(1, tick=1))  # the old beat, read again
    assert ledger.verdict() is None
    ledger.advance(2)
    ending = ledger.verdict()
    assert ending is not None and ending.status == EXIT_PEER_LOST
    assert ending.text == "process 1 (host1) was last seen 11.0 s ago at step 5 (limit 10 s)"


def test_ledger_waits_longer_for_a_process_that_was_never_seen():
    ledger = Ledger([0, 1], 10.0, unseen_limit_s=100.0)
    for tick in range(11):
        ledger.update(beat(0, tick=tick, beats=tick))
        assert ledger.verdict() is None
        ledger.advance(9.5)
    ledger.update(beat(0, tick=11, beats=11))
    ending = ledger.verdict()
    assert ending is not None and ending.text == "process 1 has not begun within 100 s"


def test_ledger_names_the_laggard_or_all():
    ledger = ledger_of(beat(0, beats=6), beat(1, beats=5), beat(2, beats=6), limit_s=1000)
    ledger.advance(31)
    ending = ledger.verdict()
    assert ending is not None and ending.status == EXIT_STALLED and ending.stacks
    assert "process 1 (host1) in a.py:1 f has stood still at step 5 for 31.0 s (limit 30 s)" in ending.text
    assert "process 0 (host0) waits at step 6" in ending.text
    everyone = ledger_of(beat(0), beat(1), limit_s=1000)
    everyone.advance(31)
    ending = everyone.verdict()
    assert ending is not None and ending.text.startswith("all processes are alive, but have stood still at step 5")


def test_ledger_forgives_patience_and_the_finished():
    ledger = ledger_of(beat(0, patience_s=60.0), beat(1, patience_s=60.0), limit_s=1000)
    ledger.advance(31)
    assert ledger.verdict() is None
    ledger = ledger_of(beat(0, beats=9), beat(1, ended=DONE))
    ledger.advance(9)
    ledger.update(beat(0, tick=2, beats=10))
    ledger.advance(9)
    assert ledger.verdict() is None, "a process that is done may be silent and need not step"


FLAGS = {"coordinator": "10.0.0.1:1234", "num_processes": 4, "process_id": 3}
LAUNCHER = {"FLASHJAX_COORDINATOR": "h:1", "FLASHJAX_NUM_PROCESSES": "2", "FLASHJAX_PROCESS_ID": "1"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


def test_resolve_reads_each_cluster():
    flags = {"coordinator_address": "10.0.0.1:1234", "num_processes": 4, "process_id": 3}
    assert resolve(DistributedConfig(**FLAGS), {}) == flags | {"cluster_detection_method": "deactivate"}
    assert resolve(DistributedConfig(), LAUNCHER | SLURM) == {
        "coordinator_address": "h:1",
        "num_processes": 2,
        "process_id": 1,
        "cluster_detection_method": "deactivate",
    }
    assert resolve(DistributedConfig(process_id=0), LAUNCHER)["process_id"] == 0
    assert resolve(DistributedConfig(), SLURM) == {"cluster_detection_method": "slurm"}
    whole_node = SLURM | {"SLURM_STEP_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "8"}
    assert resolve(DistributedConfig(), whole_node)["local_device_ids"] == list(range(8))
    assert resolve(DistributedConfig(), OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}) == {
        "cluster_detection_method": "ompi"
    }
    assert resolve(DistributedConfig(coordinator="h:1"), OPEN_MPI | {"FLASHJAX_X": ""} | LAUNCHER)["num_processes"] == 2
    assert resolve(DistributedConfig(cluster="mpi", coordinator="h:1"), OPEN_MPI)["process_id"] == 2
    assert resolve(DistributedConfig(cluster="tpu"), {}) == {}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        LAUNCHER | {"FLASHJAX_NUM_PROCESSES": "1", "FLASHJAX_PROCESS_ID": "0"},
        {"SLURM_JOB_ID": "7"},  # a shell of salloc
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    ],
)
def test_one_process_is_left_alone(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    assert resolve(DistributedConfig(), environ) is None
    assert resolve(DistributedConfig(cluster="none"), environ | LAUNCHER) is None
    for name in [*LAUNCHER, *SLURM, *OPEN_MPI]:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    distributed.initialize(DistributedConfig())
    assert not jax.distributed.is_initialized()
    distributed.request_stop()


@pytest.mark.parametrize(
    ("fields", "environ", "message"),
    [
        ({"num_processes": 2, "process_id": 2, "coordinator": "h:1"}, {}, "process_id 2 with num_processes 2"),
        ({"num_processes": 2, "process_id": -1, "coordinator": "h:1"}, {}, "process_id -1"),
        ({"num_processes": 2, "process_id": 0}, {}, r"not coordinator \(or FLASHJAX_COORDINATOR\)"),
        ({"cluster": "flags"}, {}, "several processes need all three"),
        (FLAGS | {"coordinator": "10.0.0.1"}, {}, "'10.0.0.1' is not host:port"),
        (FLAGS | {"coordinator": "h:0"}, {}, "'h:0' is not host:port"),
        (FLAGS | {"coordinator": "h:70000"}, {}, "'h:70000' is not host:port"),
        (FLAGS | {"cluster": "none"}, {}, "one process, but coordinator=10.0.0.1:1234, num_processes=4"),
        (FLAGS | {"cluster": "slurm"}, SLURM, "numbers the processes itself, but coordinator"),
        ({}, {"FLASHJAX_PROCESS_ID": "1"}, "FLASHJAX_PROCESS_ID=1 is given, but not coordinator"),
        ({}, LAUNCHER | {"FLASHJAX_PROCESS_ID": "one"}, "FLASHJAX_PROCESS_ID='one' is not a whole number"),
        ({}, {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, "SLURM_STEP_NODELIST missing.*srun"),
        ({"cluster": "slurm"}, {}, "half there: SLURM_JOB_ID, .* found none of the others"),
        ({}, SLURM | {"SLURM_PROCID": "4"}, "SLURM_PROCID=4 with SLURM_NTASKS=4"),
        ({}, {"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_LOCAL_RANK missing"),
        ({}, OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "4"}, "OMPI_COMM_WORLD_RANK=4 with OMPI_COMM_WORLD_SIZE=4"),
        ({}, OPEN_MPI, "Open MPI 5 no longer tells its 4 processes"),
    ],
)
def test_wrong_combinations_name_the_values(fields: dict, environ: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        resolve(DistributedConfig(**fields), environ)
