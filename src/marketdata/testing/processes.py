"""Processes of a test: started, frozen, let go on, killed at a named point or at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Literal, Self

from marketdata.testing.pauses import environment

_POLL: Final = 0.01


class Process:
    """A Python process of a test's own; a context manager that leaves nothing behind.

    Parameters
    ----------
    arguments : sequence of str
        What follows the interpreter: ``("-m", "package.module", "argument")``.
    pause : tuple, optional
        ``(point, action)`` or ``(point, action, nth)``: where the process is killed, stopped or
        failed, see `marketdata.pausing`.
    env : mapping, optional
        Variables beside those of this process.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        pause: tuple[str, Literal["kill", "stop", "raise"]]
        | tuple[str, Literal["kill", "stop", "raise"], int]
        | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        chosen = {**os.environ, **(env or {}), **(environment(*pause) if pause else {})}
        self._process = subprocess.Popen(  # noqa: S603  a test's own process
            [sys.executable, *arguments],
            env=chosen,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def stop(self) -> None:
        """Freeze it (SIGSTOP), and wait until it is."""
        self._process.send_signal(signal.SIGSTOP)
        if not self.wait_stopped():
            raise TimeoutError(f"process {self.pid} was not frozen")

    def go_on(self) -> None:
        """Let it go on where it was frozen (SIGCONT)."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL), and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def wait_stopped(self, timeout: float = 30.0) -> bool:
        """Wait until it is frozen, by us or at its pause point; False where it ended instead."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            state = stopped_state(self.pid)
            if state is not None:
                return state
            time.sleep(_POLL)
        return False

    def wait_killed(self, timeout: float = 60.0) -> bool:
        """Wait until it has ended; return whether a SIGKILL ended it."""
        return self._process.wait(timeout) == -signal.SIGKILL

    def finish(self, timeout: float = 60.0) -> tuple[int, str, str]:
        """Wait until it ends; return its exit code, output and errors."""
        output, errors = self._process.communicate(timeout=timeout)
        return self._process.returncode, output, errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def stopped_state(pid: int) -> bool | None:
    """Return True for a child that is frozen, False for one that has ended, None for one that
    runs. The child stays to be waited for."""
    options = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
    try:
        found = os.waitid(os.P_PID, pid, options)
    except ChildProcessError:
        return False
    if found is None:
        return None
    return found.si_code in (os.CLD_STOPPED, os.CLD_TRAPPED)
