"""What PostgreSQL and Redis have in common: start once, answer, stop, never twice."""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from marketdata.embedded.home import Home, rotate, size_of, tail
from marketdata.embedded.locks import LockFile, is_held
from marketdata.embedded.processes import send, working_in, works_in
from marketdata.errors import StoreUnavailableError

_PAUSE = 0.01


class Server(ABC):
    """One server of one home. Every call that starts or stops is made under the home's lock.

    The server holds ``lock_path`` from before its first instruction to the end of its last
    process. "Alive" means that the lock is held *and* the server answers.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]]
    """Signals from polite to rude, each with the seconds it gets; SIGKILL follows."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.log = home.log(self.name)

    @property
    @abstractmethod
    def lock_path(self) -> Path:
        """The lock file the server inherits."""

    @property
    @abstractmethod
    def directory(self) -> Path:
        """The directory the server's processes work in."""

    @property
    @abstractmethod
    def program_names(self) -> Sequence[str]:
        """What its processes are called."""

    @abstractmethod
    def recorded_pid(self) -> int | None:
        """Return what the server's pid file says, true or not."""

    @abstractmethod
    def answers(self) -> bool:
        """Return whether a client is served now."""

    @abstractmethod
    def patience(self) -> float | None:
        """Return for how many seconds silence like the present one is borne; None: for ever."""

    @abstractmethod
    def launch(self, lock: LockFile, deadline: float) -> None:
        """Spawn the server, which inherits `lock`; nothing of a former one is running."""

    def running(self) -> bool:
        """Return whether the server lives and answers. Starts nothing."""
        return is_held(self.lock_path) and self.answers()

    def pid(self) -> int | None:
        """Return the pid of the living main process, or None."""
        recorded = self.recorded_pid()
        return recorded if recorded and works_in(recorded, self.directory) else None

    def ensure(self, deadline: float) -> bool:
        """Start the server unless it answers; return whether it had to be started.

        Raises
        ------
        StoreUnavailableError
            It did not come up; the message ends with the tail of its log. A retry can help.
        """
        if is_held(self.lock_path) and self._comes_to_answer(deadline):
            return False
        self._clear_remains(deadline)
        rotate(self.log)
        mark = size_of(self.log)
        lock = LockFile(self.lock_path)
        if not lock.acquire(deadline):
            raise self._unavailable("is still held by a former server", mark)
        try:
            self.launch(lock, deadline)
        finally:
            lock.hand_over()
        while not self.answers():
            if not is_held(self.lock_path):
                raise self._unavailable("ended right after its start", mark)
            if time.monotonic() > deadline:
                raise self._unavailable("does not answer in time", mark)
            time.sleep(_PAUSE)
        return True

    def stop(self, deadline: float) -> bool:
        """Stop the server, politely while there is time; return whether it was running."""
        if not is_held(self.lock_path):
            return False
        for kind, seconds in self.stop_signals:
            pid = self.pid()
            if pid is not None:
                send([pid], kind)
                if self._ends(min(time.monotonic() + seconds, deadline)):
                    return True
        self.kill()
        self._ends(time.monotonic() + 5)
        return True

    def _comes_to_answer(self, deadline: float) -> bool:
        """Wait for a living server; False once it is dead, or stopped because it was lost."""
        mark, began = size_of(self.log), time.monotonic()
        while is_held(self.lock_path):
            if self.answers():
                return True
            now, patience = time.monotonic(), self.patience()
            if patience is None:
                began = now
            elif now - began > patience:
                self.end_lost(deadline)
                return False
            if now > deadline:
                raise self._unavailable("is running but does not answer", mark)
            time.sleep(_PAUSE)
        return False

    def end_lost(self, deadline: float) -> None:
        """End a living server that no client can reach."""
        self.stop(deadline)

    def _clear_remains(self, deadline: float) -> None:
        """Wait for the last process of a dead server to end; end it after a second."""
        if not self._ends(min(time.monotonic() + 1, deadline)):
            self.kill()
            self._ends(deadline)

    def _ends(self, deadline: float) -> bool:
        while is_held(self.lock_path):
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def kill(self) -> None:
        """End every process of this server at once."""
        send(working_in(self.directory, self.program_names), signal.SIGKILL)

    def _unavailable(self, what: str, mark: int) -> StoreUnavailableError:
        written = tail(self.log, since=mark) or "(it wrote no log)"
        return StoreUnavailableError(
            f"the embedded {self.title} of {self.home.path} {what}; {self.log} ends:\n{written}"
        )
