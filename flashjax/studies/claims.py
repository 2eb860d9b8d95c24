"""Which part of a shared work a process has taken: locks that the system lets go when the process ends, however."""

import fcntl
import hashlib
from pathlib import Path
from types import TracebackType


class Claims:
    """Names taken by processes of this machine, or of all machines that share the file system of ``path``.

    A name is a byte of the file ``path`` (which stays empty) under a POSIX record lock. The kernel, or the server of
    the file system, drops the lock of a process that is killed: no claim outlives its owner, and none expires under
    an owner that is slow. Record locks belong to a process: two `Claims` in one process do not see each other.

    Raises:
        OSError: where the file cannot be made, or its file system has no locks.
    """

    def __init__(self, path: Path):
        self._file = path.open("ab")

    def take(self, name: str) -> bool:
        """Whether ``name`` is this process's now; it does not wait for another one."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(name))
        except (BlockingIOError, PermissionError):  # POSIX leaves it to the system which of the two it is
            return False
        return True

    def release(self, name: str) -> None:
        """Gives ``name`` back."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(name))

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._file.close()


def _place(name: str) -> int:
    """The byte of a name: 62 bits of its digest, so that processes with other lists of names agree."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 2
