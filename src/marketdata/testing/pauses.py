"""Pause points seen from a test: stop a thread there, let it fail, or have a child process killed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Literal, Self

from marketdata import pausing

ENVIRONMENT: Final = pausing.ENVIRONMENT


class Pause:
    """A pause point at which the `nth` thread to pass it stops until it is released.

    A context manager; on leaving, whoever waits is released and the point is passed unhindered.

    Parameters
    ----------
    name : str
        A constant of `marketdata.pausing`.
    nth : int
        Which passing stops, from 1; the others go on.

    Examples
    --------
    >>> with Pause(STORE_READ) as pause:       # doctest: +SKIP
    ...     reading = Thread(target=read)
    ...     reading.start()
    ...     assert pause.wait_reached()        # it holds the old value now
    ...     commit_a_new_one()
    ...     pause.release()
    """

    def __init__(self, name: str, nth: int = 1) -> None:
        self.name = name
        self._nth = nth
        self._passed = 0
        self._lock = threading.Lock()
        self._reached = threading.Event()
        self._released = threading.Event()

    @property
    def passed(self) -> int:
        """How many have come by so far, the one that was stopped among them."""
        return self._passed

    def wait_reached(self, timeout: float = 10.0) -> bool:
        """Wait until a thread stands at the point; return whether one does."""
        return self._reached.wait(timeout)

    def release(self) -> None:
        """Let the thread go on."""
        self._released.set()

    def __enter__(self) -> Self:
        pausing.arm(self.name, self._pass)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pausing.disarm(self.name)
        self.release()

    def _pass(self) -> None:
        with self._lock:
            self._passed += 1
            stopped = self._passed == self._nth
        if stopped:
            self._reached.set()
            self._released.wait()


@contextmanager
def acting_at(name: str, action: Callable[[], Any], nth: int | None = 1) -> Iterator[None]:
    """Do `action`, in the thread that passes, at the `nth` passing of a point; None for all.

    What the action raises is raised there.
    """
    pausing.arm(name, action if nth is None else pausing.nth_time(nth, action))
    try:
        yield
    finally:
        pausing.disarm(name)


@contextmanager
def raising_at(name: str, error: BaseException, nth: int | None = 1) -> Iterator[None]:
    """Raise `error` at the `nth` passing of a point; None for all."""

    def fail() -> None:
        raise error

    with acting_at(name, fail, nth):
        yield


def environment(
    name: str, action: Literal["kill", "stop", "raise"] = "kill", nth: int = 1
) -> dict[str, str]:
    """Return the environment with which a child process is killed, stopped or failed at a point."""
    if name not in pausing.POINTS:
        raise ValueError(f"no pause point {name!r}")
    return {ENVIRONMENT: f"{name}={action}:{nth}"}
