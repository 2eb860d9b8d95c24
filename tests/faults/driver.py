"""Whole runs of the toy experiment in processes of their own, to be killed, signalled and resumed.

The processes are forked from a server that has imported JAX but not started it: a run begins within a second.
"""

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flashjax.training import CheckpointConfig, MeshConfig, OptimizerConfig, RunConfig, ScheduleConfig, fit, session
from flashjax.training.checkpoints import Checkpoints
from flashjax.training.distributed import DistributedConfig
from tests.training.toy import BATCH, Linear, Vectors, experiment


@dataclass(frozen=True)
class Run:
    """One run; a field that is left alone changes nothing of the toy."""

    workdir: Path
    steps: int = 8
    devices: int = 8
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=-1, fsdp=2))
    save_every: int = 0
    keep: int = 2
    eval_every: int = 4
    watch: int = 0
    ballast_mb: float = 0.0
    """Further parameters, so that a save takes long."""
    signal_in: str = ""
    """The stage in which the process sends itself SIGTERM."""
    dies_at: int = -1
    """Batch at which process 1 kills itself, the first time it comes there."""
    process: int = 0
    processes: int = 1
    port: int = 0


class Heavy(Linear):
    """The toy with parameters that only make its checkpoints large."""

    ballast_mb: float = 0.0

    def __init__(self, ballast_mb: float):
        super().__init__()
        object.__setattr__(self, "ballast_mb", ballast_mb)

    def init(self, rngs: Any, batch: Any) -> Any:
        variables = super().init(rngs, batch)
        if self.ballast_mb:
            shape = (int(self.ballast_mb * 256), 1024)
            variables["params"]["ballast"] = jax.random.normal(jax.random.key(1), shape)
        return variables

    def loss(self, variables: Any, batch: Any, rngs: Any) -> Any:
        loss, metrics, collections = super().loss(variables, batch, rngs)
        if self.ballast_mb:
            loss = loss + 1e-6 * jnp.mean(variables["params"]["ballast"] ** 2)
        return loss, metrics, collections


class Share(Vectors):
    """This process's rows of each batch, and a line for each batch with the checksums of them."""

    def __init__(self, run: Run, num_batches: int | None, mask_from: int = 0):
        super().__init__(num_batches, mask_from=mask_from)
        self.run = run

    def batch(self, k: int) -> dict[str, np.ndarray]:
        rows = BATCH // self.run.processes
        mine = slice(self.run.process * rows, (self.run.process + 1) * rows)
        return {name: array[mine] for name, array in super().batch(k).items()}

    def batches(self, start: int = 0) -> Any:
        log = None if self.num_batches is not None else self.run.workdir / f"served_{self.run.process}.jsonl"
        for rows in super().batches(start):
            k = self.served[-1]
            if log is not None:
                with log.open("a") as file:
                    file.write(
                        json.dumps({"batch": k, "rows": [zlib.crc32(row.tobytes()) for row in rows["x"]]}) + "\n"
                    )
                if self.run.signal_in == "step" and k == 5:
                    _signal_after(0.002)
                if self.run.process == 1 and k == self.run.dies_at and not died(self.run.workdir).exists():
                    _await(self.run.workdir / "checkpoints" / "4")  # the save in the background, under way since
                    died(self.run.workdir).write_text(str(time.time()))
                    os.kill(os.getpid(), signal.SIGKILL)
            elif self.run.signal_in == "evaluation" and k == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield rows


def _await(path: Path, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not path.is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)


def died(workdir: Path) -> Path:
    """Where a process notes the time at which it kills itself."""
    return workdir / "died_at"


def build(run: Run) -> Any:
    """The experiment of a run."""
    built = experiment(
        run.workdir,
        steps=run.steps,
        mesh=run.mesh,
        objective=Heavy(run.ballast_mb),
        train_data=Share(run, None),
        eval_data=Share(run, 3, mask_from=5),
        checkpoint=CheckpointConfig(keep=run.keep, every=run.save_every),
        eval_every=run.eval_every,
        ema_decay=0.9,
        # A rate that does not depend on where the run is to end.
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule=ScheduleConfig(kind="constant")),
    )
    return dataclasses.replace(built, config=dataclasses.replace(built.config, watch=run.watch))


def _signal_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()


def _arm(stage: str) -> None:
    """Makes the process send itself SIGTERM in the midst of compiling or saving."""
    if stage == "compile":

        def lowered(event: str, seconds: float, **facts: Any) -> None:
            if "jaxpr_to_mlir_module" in event and "train_step" in str(facts):
                print("compilation begins", flush=True)
                _signal_after(0.01)

        jax.monitoring.register_event_duration_secs_listener(lowered)
    if stage == "save":
        save = Checkpoints.save

        def save_and_signal(self: Checkpoints, step: int, *args: Any) -> None:
            save(self, step, *args)
            unfinished = [p.name for p in self.directory.glob("*tmp*")]
            if step == 4 and unfinished:
                print(f"being written: {unfinished}", flush=True)
                os.kill(os.getpid(), signal.SIGTERM)

        Checkpoints.save = save_and_signal  # type: ignore[method-assign]


def main(run: Run) -> None:
    """Body of a process: fits, and leaves with the exit status that a launcher would leave with."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    log = os.open(run.workdir / f"log_{run.process}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    os.environ["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={run.devices}"])
    if run.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{run.port}", run.processes, run.process)
    _arm(run.signal_in)
    try:
        fit(build(run))
        if run.processes > 1:
            jax.distributed.shutdown()
    except SystemExit:
        raise
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(1)


_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.faults.driver"])


def start(run: Run) -> multiprocessing.process.BaseProcess:
    """A run that has been started."""
    process = _server.Process(target=main, args=(run,), daemon=True)
    process.start()
    return process


def finish(run: Run, seconds: float = 120) -> int:
    """Exit status of a run, as a shell would show it."""
    return status(start(run), seconds)


def status(process: multiprocessing.process.BaseProcess, seconds: float = 120) -> int:
    """Exit status of a process, as a shell would show it; one that does not end is killed, and the test fails."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"no end within {seconds} s")
    return 128 - process.exitcode if process.exitcode < 0 else process.exitcode


def log(run: Run) -> str:
    """All that the processes of a run have printed."""
    return "".join(path.read_text() for path in sorted(run.workdir.glob("log_*.txt")))


def losses(workdir: Path) -> dict[int, float]:
    """Loss by step, of metrics.jsonl."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def evaluations(workdir: Path) -> dict[int, float]:
    """Evaluated loss by step, of metrics.jsonl."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}


def served(workdir: Path, process: int = 0) -> list[tuple[int, list[int]]]:
    """(number, checksums of the rows) of each batch that a process was given, in order."""
    lines = map(json.loads, (workdir / f"served_{process}.jsonl").read_text().splitlines())
    return [(line["batch"], line["rows"]) for line in lines]


def wait_for(what: Any, seconds: float = 60) -> None:
    """Until ``what()`` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def assert_bitwise(a: Any, b: Any) -> None:
    """Every leaf of two states is the same, bit for bit."""
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    different = [jax.tree_util.keystr(path) for path, ok in jax.tree_util.tree_leaves_with_path(same) if not ok]
    assert not different, different


LIMIT_S = 5.0
"""Silence after which a process of ``launched`` takes another one for dead."""


def launched(workdir: Path) -> None:
    """One process of ``python -m flashjax.launch local -- python -m tests.faults.driver WORKDIR``."""
    limits = DistributedConfig(silence_limit_s=LIMIT_S, start_timeout_s=60)
    with session(RunConfig(distributed=limits)) as watchdog:
        run = Run(workdir, dies_at=6, process=jax.process_index(), processes=jax.process_count())
        result = fit(build(run), watchdog)
    print(f"finished at step {result.step}", flush=True)


if __name__ == "__main__":
    launched(Path(sys.argv[1]))
