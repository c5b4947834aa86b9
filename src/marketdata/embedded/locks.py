"""Lock files whose holder is alive by definition: the kernel lets go when the holder dies.

Everything here rests on ``flock``: a user of a home, a start or stop in progress, the supervisor
and each server hold a lock file for as long as they live. A server inherits its lock from the
process that starts it, so the lock is free exactly when the last process of that server is gone,
whatever became of pid files, pid numbers or zombies.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

_PAUSE = 0.01
_live: weakref.WeakSet[LockFile] = weakref.WeakSet()


class LockFile:
    """An exclusive ``flock`` on one file, released by `release`, exit or death.

    A forked child does not keep its parent's locks: its copies are closed at the fork.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        _live.add(self)

    @property
    def held(self) -> bool:
        """Whether this object (not just anybody) holds the lock."""
        return self._fd is not None

    @property
    def fd(self) -> int:
        """The descriptor that holds the lock, to be inherited by a server."""
        if self._fd is None:
            raise RuntimeError(f"{self.path} is not locked by this process")
        return self._fd

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it, without waiting; True if it is ours."""
        if self._fd is not None:
            return True
        fd = _open(self.path)
        try:
            while not _flock(fd, fcntl.LOCK_EX):
                # A probe (`is_held`) keeps a shared lock for a microsecond; only an exclusive
                # holder means that somebody lives.
                if not _flock(fd, fcntl.LOCK_SH):
                    os.close(fd)
                    return False
                fcntl.flock(fd, fcntl.LOCK_UN)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def acquire(self, deadline: float) -> bool:
        """Wait for the lock until `deadline` (monotonic seconds); False if it stayed taken."""
        while not self.try_acquire():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def adopt(self, fd: int) -> None:
        """Take over a descriptor, inherited at exec, that already holds the lock."""
        os.set_inheritable(fd, False)
        self._fd = fd

    def hand_over(self) -> None:
        """Close our descriptor only: a process that inherited it goes on holding the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def release(self) -> None:
        """Let go of the lock, also for processes that inherited the descriptor."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self.hand_over()

    def write(self, text: str) -> None:
        """Replace the content of the held lock file."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text.encode(), 0)


def is_held(path: Path) -> bool:
    """Return whether a living process holds the lock at `path`; a missing file is not held."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not _flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _forget_in_child() -> None:
    for lock in list(_live):
        lock.hand_over()


os.register_at_fork(after_in_child=_forget_in_child)
