"""A batch script for SLURM that saves before the time limit and requeues itself."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flashjax.launch.common import Target, at_least, one_word, shell_array, shell_exports


@dataclass(frozen=True, kw_only=True)
class Slurm(Target):
    """A SLURM batch job (sbatch), one task a GPU, requeued when preempted.

    SIGTERM comes signal_s before the time limit and at preemption: the run saves and ends with status 143. With that
    status, or 76 (another process was lost), the job is requeued and resumes; any other status ends it.
    """

    nodes: int = 1
    """Nodes."""
    gpus_per_node: int = 8
    """GPUs of each node; 0 for a CPU job."""
    tasks_per_node: int | None = None
    """Processes on each node: as many as GPUs (the default), or 1."""
    cpus_per_task: int | None = None
    """CPU cores of each process."""
    time: str = "24:00:00"
    """Time limit, [days-]hours:minutes:seconds."""
    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account that is charged."""
    signal_s: int = 300
    """Seconds before the time limit at which the run is told to save."""
    grace_s: int = 120
    """How long the other processes may take to end after the first one has ended."""
    max_requeues: int = 20
    """The job requeues itself at most so many times."""
    requeue_on: tuple[int, ...] = (143, 76)
    """Exit statuses after which it is requeued."""
    log: str = "%x-%j.log"
    """Log file; %x is the job's name, %j its number."""
    sbatch: tuple[str, ...] = ()
    """Further sbatch options without their dashes, such as constraint=a100 exclusive."""

    target: ClassVar[str] = "slurm"
    client: ClassVar[str | None] = "sbatch"

    @property
    def tasks(self) -> int:
        return self.tasks_per_node or self.gpus_per_node or 1

    def check(self) -> None:
        super().check()
        at_least(1, nodes=self.nodes, signal_s=self.signal_s, grace_s=self.grace_s)
        at_least(0, gpus_per_node=self.gpus_per_node, max_requeues=self.max_requeues)
        if self.gpus_per_node and self.tasks not in (1, self.gpus_per_node):
            raise ValueError(
                f"tasks_per_node {self.tasks} with gpus_per_node {self.gpus_per_node}: JAX gives each task one GPU, or "
                f"all to a single task; use {self.gpus_per_node} or 1"
            )
        if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", self.time):
            raise ValueError(f"time {self.time!r} is not [days-]hours:minutes:seconds, such as 24:00:00")

    def script(self, command: Sequence[str]) -> str:
        directives = [
            f"--job-name={self.name}",
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={self.tasks}",
            # Not by task: a task that sees a single GPU would have it under a number that JAX does not expect.
            f"--gpus-per-node={self.gpus_per_node}" if self.gpus_per_node else "",
            f"--cpus-per-task={self.cpus_per_task}" if self.cpus_per_task else "",
            f"--time={self.time}",
            f"--partition={one_word('partition', self.partition)}" if self.partition else "",
            f"--account={one_word('account', self.account)}" if self.account else "",
            f"--output={one_word('log', self.log)}",
            "--open-mode=append",
            "--requeue",
            f"--signal=TERM@{self.signal_s}",
            *(f"--{one_word('sbatch', option)}" for option in self.sbatch),
        ]
        header = "".join(f"#SBATCH {directive}\n" for directive in directives if directive)
        exports = shell_exports(self.env)
        # srun does not take this one over from the job.
        cores = f" --cpus-per-task={self.cpus_per_task}" if self.cpus_per_task else ""
        again = " | ".join(map(str, self.requeue_on)) or "none"
        return f"""#!/bin/bash
{header}
set -uo pipefail
{exports}
{shell_array("command", command)}
# SLURM sends SIGTERM to the tasks {self.signal_s} s before the time limit, and at preemption. They save their state and
# end with status 143; this shell only waits for them.
trap ':' TERM

# Each task may end in its own time, at most {self.grace_s} s after the first one.
srun --label --kill-on-bad-exit=0 --wait={self.grace_s}{cores} "${{command[@]}}"
status=$?

# 143: saved on request. 76: another process was lost. 77: stalled. 78: another process failed. Otherwise: see the log.
case "$status" in
{again})
    restarts=${{SLURM_RESTART_COUNT:-0}}
    if ((restarts < {self.max_requeues})); then
        echo "status $status: requeued (restart $((restarts + 1)) of {self.max_requeues}); the run resumes" >&2
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "status $status: not requeued, {self.max_requeues} restarts are used up" >&2
    fi
    ;;
esac
exit "$status"
"""

    def run(self, path: Path, command: Sequence[str]) -> int:
        return subprocess.call(["sbatch", str(path)])
