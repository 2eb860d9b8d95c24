"""Models in processes of their own, which do what they are told and are ended where they take too long.

A process that the system kills for its memory takes no other with it, and what one package does to the allocator, the
threads or the modules of Python is not seen by the next.
"""

import contextlib
import gc
import json
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.sequence_models import DEPTH, Contender, make
from benchmarks.turns import Step


def peak_of_a_step(contender: Contender) -> int:
    """Bytes that a training step adds at most to what the process holds before it (Linux)."""
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    contender.train()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return 1024 * int(line.split()[1])


def serve(name: str, length: int, rows: int, depth: int) -> None:
    """Does what it is told, line by line, and answers each with a line of JSON: parameters, bytes or seconds."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, this goes and nothing else
    answer, sys.stdout = sys.stdout, sys.stderr  # what packages print is no answer
    contender = make(name, length, rows, depth)
    steps: dict[str, Step] = {"forward": contender.forward, "train": contender.train}
    print(json.dumps([contender.parameters, contender.decode is not None]), file=answer, flush=True)
    for line in sys.stdin:
        what = line.strip()
        if what == "peak":
            print(peak_of_a_step(contender), file=answer, flush=True)
            continue
        if what == "decode" and what not in steps:
            steps[what] = contender.decode() if contender.decode else make(name, length, 1).forward
        started = time.perf_counter()
        steps[what]()
        print(time.perf_counter() - started, file=answer, flush=True)


class LostError(Exception):
    """A process has no more to say; why."""


class Worker:
    """A model in a process of its own, or why there is none any more."""

    def __init__(self, name: str, length: int, rows: int, limit: float, depth: int = DEPTH):
        self.name, self.limit, self.lost = name, limit, ""
        command = [sys.executable, "-m", "benchmarks.sequence_workers", name, *map(str, (length, rows, depth))]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (a pipe that nobody reads would fill up)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, text=True, bufsize=1, **pipes)

    def ask(self, what: str = "") -> Any:
        """The answer. Raises LostError, now and from then on, where none comes."""
        if self.lost:
            raise LostError(self.lost)
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        try:
            if what:
                print(what, file=process.stdin, flush=True)
            if not select.select([process.stdout], [], [], self.limit)[0]:
                self.lost = f"killed: over {self.limit:.0f} s"
            elif line := process.stdout.readline():
                return json.loads(line)
        except BrokenPipeError:  # it has died before it was asked
            pass
        self.lost = self.lost or self._reason()
        self.close()
        raise LostError(self.lost)

    def _reason(self) -> str:
        self.errors.seek(0)
        last = (self.errors.read().strip().splitlines() or ["no word"])[-1]
        if self.process.wait() == -signal.SIGKILL or "can't allocate memory" in last or "MemoryError" in last:
            return "killed: memory"
        return f"failed: {last[:80]}"

    def close(self) -> None:
        if not self.errors.closed:
            self.process.kill()
            self.process.communicate()
            self.errors.close()


def take_turns(workers: Sequence[Worker], what: str, turns: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each in each turn after the first `warm_up`; fewer than `turns` where its limit is used up before."""
    times: dict[str, list[float]] = {worker.name: [] for worker in workers}
    used = dict.fromkeys(times, 0.0)
    for turn in range(-warm_up, turns):
        for worker in workers:
            own = times[worker.name]
            if used[worker.name] > worker.limit and own:
                continue
            with contextlib.suppress(LostError):
                seconds = worker.ask(what)
                used[worker.name] += seconds
                own += [seconds] if turn >= 0 else []
    return times


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))
