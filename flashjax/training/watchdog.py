"""No silent hang: a process that dies, fails or stalls ends the others within a stated time, by name.

Every process posts a heartbeat (a tick of a thread, and the trainer's step) to the key-value store of
``jax.distributed``. Process 0 reads all of them and publishes why the run ends; the others watch process 0 alone, so
that the traffic grows with the number of processes and not with its square. Measured by each watcher's own clock.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import jax

from flashjax.training import distributed
from flashjax.training.distributed import (
    EXIT_PEER_FAILED,
    EXIT_PEER_LOST,
    EXIT_RESUMABLE,
    EXIT_STALLED,
    AbortGuard,
    Ending,
    end_process,
)

DONE = "done"
UNSEEN = -1
FIRST_STEP_PATIENCE = 4
"""The first step, which compiles, has this many stall limits."""


@dataclass(frozen=True)
class Beat:
    """What one process says about itself."""

    process: int
    host: str
    tick: int
    """Grows while the process lives, whatever its main thread does."""
    beats: int
    """How often the trainer has called ``Watchdog.beat``."""
    step: int | None
    patience_s: float
    """How long ``beats`` may stand still."""
    where: str = ""
    """Innermost Python line of its main thread."""
    ended: str = ""
    """Empty while it runs, "done", or what it failed of."""

    @property
    def name(self) -> str:
        return f"process {self.process} ({self.host})"

    @property
    def place(self) -> str:
        return "before its first step" if self.step is None else f"at step {self.step}"


@dataclass
class _Seen:
    beat: Beat
    silent_s: float = 0.0
    still_s: float = 0.0


class Ledger:
    """The last beat of each process that this one watches, and for how long nothing has changed.

    A process that has never been seen is given ``unseen_limit_s`` to appear: it may start its watchdog later.
    """

    def __init__(self, watched: Iterable[int], limit_s: float, unseen_limit_s: float):
        self.limit_s = limit_s
        self.unseen_limit_s = unseen_limit_s
        self.seen = {
            process: _Seen(Beat(process, "never seen", UNSEEN, 0, None, unseen_limit_s)) for process in watched
        }

    def update(self, beat: Beat) -> None:
        """Take note of a beat; one that was seen already changes nothing."""
        seen = self.seen[beat.process]
        if beat.tick != seen.beat.tick:
            seen.silent_s = 0.0
        if (beat.beats, beat.patience_s) != (seen.beat.beats, seen.beat.patience_s):
            seen.still_s = 0.0
        seen.beat = beat

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        for seen in self.seen.values():
            seen.silent_s += seconds
            seen.still_s += seconds

    def verdict(self) -> Ending | None:
        """Why the run must end: a process that failed, is silent, or stands still; None while all is well."""
        running = [seen for seen in self.seen.values() if seen.beat.ended != DONE]
        if failed := [seen.beat for seen in running if seen.beat.ended]:
            return Ending(EXIT_PEER_FAILED, "; ".join(f"{b.name} failed {b.place}: {b.ended}" for b in failed))
        if silent := [seen for seen in running if seen.silent_s > self._silence_limit(seen)]:
            return Ending(EXIT_PEER_LOST, "; ".join(self.describe(seen) for seen in silent))
        return self._stall(running)

    def describe(self, seen: _Seen) -> str:
        beat, limit_s = seen.beat, self._silence_limit(seen)
        if beat.tick == UNSEEN:
            return f"process {beat.process} has not begun within {limit_s:g} s"
        return f"{beat.name} was last seen {seen.silent_s:.1f} s ago {beat.place} (limit {limit_s:g} s)"

    def _silence_limit(self, seen: _Seen) -> float:
        return self.unseen_limit_s if seen.beat.tick == UNSEEN else self.limit_s

    def _stall(self, running: list[_Seen]) -> Ending | None:
        # In one program for all, those with the fewest steps are the ones that the others wait for.
        fewest = min((seen.beat.beats for seen in running), default=0)
        last = [seen for seen in running if seen.beat.beats == fewest]
        if not last or any(seen.still_s <= seen.beat.patience_s for seen in last):
            return None
        still, limit = min(seen.still_s for seen in last), max(seen.beat.patience_s for seen in last)
        names = ", ".join(f"{seen.beat.name} in {seen.beat.where or '?'}" for seen in last[:8])
        names += f" and {len(last) - 8} more" if len(last) > 8 else ""
        stood = f"stood still {last[0].beat.place} for {still:.1f} s (limit {limit:g} s)"
        if len(last) == len(running):
            text = f"all processes are alive, but have {stood}: {names}"
        else:
            ahead = max((seen.beat for seen in running), key=lambda beat: beat.beats)
            text = f"{names} has {stood} while {ahead.name} waits {ahead.place}: it is alive, but hangs"
        return Ending(EXIT_STALLED, text, stacks=True)


class Watchdog:
    """Start it right after ``distributed.initialize``; call ``beat(step)`` once a step. One process: it does nothing.

    Use it as a context manager, so that an exception in one process ends all: the failing process leaves with its own
    traceback, the others with status 78 and its name and error. Times within which the others end:
        a process that fails: ``5 * poll_s``, status 78;
        one that is dead or stopped: ``limit_s + 5 * poll_s``, status 76 (process 0 killed: at once);
        one that hangs alive: its patience + ``5 * poll_s``, status 77, with Python stacks in every log.
    """

    _generation = 0

    def __init__(self, limit_s: float = 60.0, stall_limit_s: float = 1800.0):
        if limit_s <= 0 or stall_limit_s <= 0:
            raise ValueError(f"limits must be positive, found limit_s {limit_s} and stall_limit_s {stall_limit_s}")
        self.limit_s = limit_s
        self.stall_limit_s = stall_limit_s
        self.poll_s = min(2.0, limit_s / 10)
        self._me = distributed.process_id()
        self._host = socket.gethostname()
        self._tick = self._beats = 0
        self._step: int | None = None
        self._ended = ""
        watched = range(distributed.num_processes()) if self._me == 0 else [0]
        self._ledger = Ledger(watched, limit_s, unseen_limit_s=max(limit_s, stall_limit_s))
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._guard = AbortGuard(self._explain_abort)

    def beat(self, step: int) -> None:
        """The batch of this step is here, the step is about to run. Two assignments: costs nothing, never waits.

        Called there, a process whose data hang has fewer beats than the others, and is named alone.
        """
        self._step = step
        self._beats += 1

    def start(self) -> "Watchdog":
        """Begin to watch."""
        self._client: Any = distributed.client()
        if self._client is None:
            return self
        Watchdog._generation += 1
        self._prefix = f"flashjax/watchdog/{Watchdog._generation}"
        self._guard.install()
        # A C-level handler that calls into an interpreter which is being torn down would crash it.
        atexit.register(self._guard.remove)
        self._post()
        for target in (self._talk, self._watch):
            thread = threading.Thread(target=target, name=f"flashjax-watchdog{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def stop(self) -> None:
        """This process is done: its silence means nothing from now on."""
        self._leave(DONE)
        self._guard.remove()

    def __enter__(self) -> "Watchdog":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._threads or error is None or _orderly(error):
            return self.stop()
        if _may_be_a_peers_fault(error):
            traceback.print_exception(error)
            wait_s = self.limit_s + 5 * self.poll_s
            _say(f"a collective failed: waiting up to {wait_s:.0f} s to learn which process is gone")
            with _deaf_to_sigterm():
                time.sleep(wait_s)  # The watching thread ends the process as soon as it knows.
        # The guard stays: the coordinator may leave while this process is still on its way out.
        self._leave(f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:500])
        if self._me == 0:
            with self._lock:
                self._ledger.update(self._own())
                ending = self._ledger.verdict()
            if ending:
                self._publish(ending)
                time.sleep(3 * self.poll_s)
        distributed.abandon()

    def _own(self) -> Beat:
        patience_s = self.stall_limit_s * (FIRST_STEP_PATIENCE if self._beats < 2 else 1)
        return Beat(
            process=self._me,
            host=self._host,
            tick=self._tick,
            beats=self._beats,
            step=self._step,
            patience_s=patience_s,
            where=_main_thread_line(),
            ended=self._ended,
        )

    def _post(self) -> None:
        self._tick += 1
        # Process 0 reads the beats of all, each other one only what process 0 has put at the head.
        places = [f"beats/{self._me}"] + (["head/beat"] if self._me == 0 else [])
        for place in places:
            self._client.key_value_set(f"{self._prefix}/{place}", json.dumps(asdict(self._own())), allow_overwrite=True)

    def _talk(self) -> None:
        """The store may hang as long as process 0 does; time is therefore kept in another thread."""
        while not self._stopping.wait(self.poll_s):
            try:
                self._post()
                found = self._client.key_value_dir_get(f"{self._prefix}/{'beats' if self._me == 0 else 'head'}/")
            except jax.errors.JaxRuntimeError:
                continue  # Silence: the other thread counts it.
            with self._lock:
                for key, text in found:
                    if key.endswith("/ending"):
                        end_process(Ending(**json.loads(text)))
                    self._ledger.update(Beat(**json.loads(text)))

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._stopping.wait(self.poll_s):
            now = time.monotonic()
            with self._lock:
                # If this process was itself stopped, or its machine slept, that time was not the others' silence.
                self._ledger.advance(min(now - before, 2 * self.poll_s))
                ending = self._ledger.verdict()
            before = now
            if ending is not None and (self._me == 0 or ending.status != EXIT_STALLED):
                if self._me == 0:
                    self._publish(ending)
                    time.sleep(3 * self.poll_s)
                end_process(ending)

    def _publish(self, ending: Ending) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{self._prefix}/head/ending", json.dumps(asdict(ending)), allow_overwrite=True)

    def _leave(self, how: str) -> None:
        if not self._threads:
            return
        self._ended = how
        self._stopping.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=2 * self.poll_s)
        self._threads = []
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._post()

    def _explain_abort(self) -> Ending | None:
        if self._ended not in ("", DONE):
            return Ending(1, "its coordinator left while it was ending after its own failure, shown above")
        if self._me == 0:
            return self._ledger.verdict() or self._wait_for_verdict()
        head, address = self._ledger.seen[0], distributed.coordinator() or ""
        if not _answers(address):
            return Ending(EXIT_PEER_LOST, f"{self._ledger.describe(head)}: nothing answers at {address}")
        if head.silent_s > self.limit_s / 2:
            return Ending(EXIT_PEER_LOST, self._ledger.describe(head))
        return self._wait_for_verdict()

    def _wait_for_verdict(self) -> None:
        """Gloo aborts, from a thread of its own, where a peer that is killed leaves half a message behind."""
        wait_s = self.limit_s + 8 * self.poll_s
        _say(f"the runtime aborts: waiting up to {wait_s:.0f} s to learn whether another process is gone")
        time.sleep(wait_s)  # The watching threads end the process as soon as they know.


@contextlib.contextmanager
def _deaf_to_sigterm() -> Iterator[None]:
    """A launcher sends it to those that are left as soon as one process is gone: they still have to say which."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _orderly(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0, *EXIT_RESUMABLE)


def _may_be_a_peers_fault(error: BaseException) -> bool:
    """A collective that lost its partner raises in whoever is left, as an error of the runtime."""
    text = str(error)
    return isinstance(error, jax.errors.JaxRuntimeError) or any(
        word in text for word in ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED")
    )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _main_thread_line() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return ""
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}"


def _say(text: str) -> None:
    os.write(2, f"flashjax: {text}\n".encode(errors="replace"))
