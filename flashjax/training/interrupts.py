"""SIGTERM and Ctrl-C as a wish that the loop grants between two steps."""

import signal
from types import FrameType
from typing import Any

from flashjax.training import distributed


class Interrupted(SystemExit):
    """The run was asked to stop, has saved its state, and can be resumed.

    The exit status is 128 + the signal's number (143 for SIGTERM, 130 for Ctrl-C), as schedulers expect.
    """

    def __init__(self, signum: int, step: int):
        super().__init__(128 + signum)
        self.signum = signum
        self.step = step


class InterruptGuard:
    """While entered, the first SIGTERM or SIGINT is kept in ``signum``; a second SIGINT acts as usual.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "InterruptGuard":
        try:
            for signum in self.SIGNALS:
                self._previous[signum] = signal.signal(signum, self._handle)
        except ValueError:
            self._restore()
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        distributed.request_stop()  # several processes stop at one and the same step
