"""N processes on this machine, each with M virtual CPU devices: a pod to try things on."""

import contextlib
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

from flashjax.launch.common import Target, at_least, say, shell_array, shell_exports

_CONSEQUENCES = (76, 77, 78)
"""Statuses with which flashjax ends a process because of another one (flashjax.training.distributed)."""


@dataclass(frozen=True, kw_only=True)
class Local(Target):
    """Processes on this machine with virtual CPU devices.

    Their output is prefixed with [process i]; SIGTERM and Ctrl-C go to all of them, a second one kills them. When one
    fails, the others get SIGTERM, and SIGKILL after grace_s. Exit status: that of the first process that failed.
    ``python`` in the command is the one that runs this launcher.
    """

    processes: int = 2
    """How many processes."""
    devices: int = 4
    """Virtual CPU devices of each process."""
    port: int = 0
    """Port of process 0; 0: a free one."""
    grace_s: float = 90.0
    """How long the others may take to end after one has ended because it failed or was asked to stop."""

    target: ClassVar[str] = "local"

    def check(self) -> None:
        super().check()
        at_least(1, processes=self.processes, devices=self.devices)
        at_least(0, port=self.port)

    def environment(self, port: int | str) -> list[str]:
        """NAME=value pairs that all processes have."""
        flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
        return [
            "JAX_PLATFORMS=cpu",
            "XLA_FLAGS=" + " ".join([*flags, f"--xla_force_host_platform_device_count={self.devices}"]),
            "PYTHONUNBUFFERED=1",
            f"FLASHJAX_COORDINATOR=127.0.0.1:{port}",
            f"FLASHJAX_NUM_PROCESSES={self.processes}",
            *self.env,
        ]

    def script(self, command: Sequence[str]) -> str:
        """The same run for bash, to read or to change; the launcher itself also kills stragglers."""
        free = 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
        port = str(self.port) if self.port else f"$(python -c {shlex.quote(free)})"
        exports = shell_exports(self.environment("PORT")).replace("127.0.0.1:PORT", '"127.0.0.1:$port"')
        return f"""#!/bin/bash
# {self.processes} processes with {self.devices} virtual CPU devices each.
port={port}
{exports}
{shell_array("command", command)}
processes=()
trap 'kill "${{processes[@]}}"' INT TERM
for ((i = 0; i < {self.processes}; i++)); do
    FLASHJAX_PROCESS_ID=$i "${{command[@]}}" > >(sed -u "s/^/[process $i] /") 2>&1 &
    processes+=($!)
done

# The exit status is that of the first process that fails; the others are then asked to end.
status=0
left=("${{processes[@]}}")
while ((${{#left[@]}})); do
    running=()
    for process in "${{left[@]}}"; do
        if kill -0 "$process" 2>/dev/null; then
            running+=("$process")
            continue
        fi
        wait "$process"
        ended=$?
        if ((ended != 0 && status == 0)); then
            status=$ended
            kill "${{processes[@]}}" 2>/dev/null
        fi
    done
    left=("${{running[@]}}")
    sleep 0.1
done
exit "$status"
"""

    def run(self, path: Path, command: Sequence[str]) -> int:
        shared = dict(pair.split("=", 1) for pair in self.environment(self.port or _free_port()))
        here = os.path.dirname(sys.executable)
        shared = os.environ | {"PATH": os.pathsep.join([here, os.environ.get("PATH", "")])} | shared
        return Supervisor(command, shared, self.processes, self.grace_s).run()


class Supervisor:
    """Starts the processes, passes on output and signals, and sees to it that they end together."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], count: int, grace_s: float):
        self.command = list(command)
        self.environment = environment
        self.count = count
        self.grace_s = grace_s
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ended: dict[int, int] = {}
        self.status = 0
        self.deadline = float("inf")
        self.signals: list[int] = []
        self._forwarded = 0

    def run(self) -> int:
        """Exit status of the first process that failed, 0 if none did."""
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        readers: list[threading.Thread] = []
        try:
            for number in range(self.count):
                self.processes.append(self._start(number))
            readers = [reader for number in range(self.count) for reader in self._read(number)]
            while len(self.ended) < self.count:
                self._collect()
                self._forward()
                if time.monotonic() > self.deadline:
                    self._kill()
                time.sleep(0.02)
        finally:
            self._kill()
            for process in self.processes:
                process.wait()
            for reader in readers:
                reader.join(timeout=5)
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.status

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self.command,
                env={**self.environment, "FLASHJAX_PROCESS_ID": str(number)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
        except OSError as error:
            raise ValueError(f"cannot run {self.command[0]!r}: {error.strerror}") from error

    def _read(self, number: int) -> list[threading.Thread]:
        process = self.processes[number]
        threads = []
        for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert source is not None
            thread = threading.Thread(
                target=pass_on, args=(source, sink.buffer, f"[process {number}] ".encode()), daemon=True
            )
            thread.start()
            threads.append(thread)
        return threads

    def _note(self, number: int, frame: object) -> None:
        self.signals.append(number)

    def _collect(self) -> None:
        """Take note of processes that have ended; the first failure ends the others."""
        new: dict[int, int] = {}
        for number, process in enumerate(self.processes):
            if number not in self.ended and (code := process.poll()) is not None:
                new[number] = 128 - code if code < 0 else code
        self.ended |= new
        # Of two that end together, the one that only followed is not the cause.
        failed = sorted((code in _CONSEQUENCES, number, code) for number, code in new.items() if code)
        if not failed or self.status:
            return
        _, number, self.status = failed[0]
        self.deadline = time.monotonic() + self.grace_s
        if len(self.ended) == self.count:
            return
        if self.signals:
            say(f"process {number} has stopped with status {self.status}; the others have {self.grace_s:g} s")
            return
        say(f"process {number} failed with status {self.status}; ending the others within {self.grace_s:g} s")
        self._send(signal.SIGTERM)

    def _forward(self) -> None:
        while self._forwarded < len(self.signals):
            number = self.signals[self._forwarded]
            self._forwarded += 1
            if self._forwarded == 1:
                say(f"{signal.Signals(number).name}: passed on to all processes; a second one kills them")
                self._send(number)
            else:
                self.status = self.status or 128 + number
                self._kill()

    def _send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _kill(self) -> None:
        """Each process with all that it has started: the group outlives its leader."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def pass_on(source: IO[bytes], sink: IO[bytes], prefix: bytes) -> None:
    """Copy lines as they come, each with the prefix. A progress bar's carriage return ends a line too."""
    rest = b""
    while chunk := os.read(source.fileno(), 1 << 16):
        lines = (rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest = lines.pop()
        _write(sink, b"".join(prefix + line + b"\n" for line in lines if line.strip()))
    if rest:
        _write(sink, prefix + rest + b"\n")


def _write(sink: IO[bytes], data: bytes) -> None:
    # A reader that has left (a pipe into head) must not stop the run.
    with contextlib.suppress(BrokenPipeError, ValueError):
        sink.write(data)
        sink.flush()


def _die_with(parent: int):
    """For the child: SIGKILL when the launcher itself is killed, where the system can do that (Linux)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def in_child() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return in_child


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
