"""Calls into many authors' code, of which none can hold up or bring down the others.

A few worker threads take the calls of a cycle one after the other. A worker whose call lasts is
relieved: a new one takes what waits behind it, and the old one ends with its call. A call that lasts
too long is interrupted by an exception raised inside of it (``PyThreadState_SetAsyncExc`` of
Python's C API), which reaches Python code at its next instruction; a call that sits in C code, such
as a sleep, gets it on coming back. Until then its algorithm is not called again.

What threads cannot help against is C code that neither returns nor lets go of the interpreter's
lock: it stops the process, whose leases then run out.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final

from algorithms.live.life import Pace, Policy, pace

log = logging.getLogger("algorithms.live")

_TRACEBACK_CHARACTERS: Final = 4_000
_INSIST_SECONDS: Final = 1.0
"""A call that swallowed its interruption is interrupted again this often."""


class CallInterrupted(BaseException):
    """Raised inside a call that lasted too long. Not an `Exception`: ``except Exception`` in an
    author's code lets it through."""


@dataclass(frozen=True)
class Outcome[K: Hashable, T]:
    """How a call ended.

    Attributes
    ----------
    key
        Whose call.
    result
        What it returned; None where it failed.
    error : BaseException or None
    trace : str or None
        The error's traceback, its end where it is long.
    seconds : float
        How long it lasted.
    slow : bool
        Whether that was longer than the soft limit.
    """

    key: K
    result: T | None
    error: BaseException | None
    trace: str | None
    seconds: float
    slow: bool


class _Call[K: Hashable]:
    __slots__ = ("began", "ident", "insisted", "interrupted", "key", "relieved")

    def __init__(self, key: K, began: float) -> None:
        self.key = key
        self.began = began
        self.ident = threading.get_ident()
        self.relieved = False
        self.interrupted = False
        self.insisted = -math.inf


class Supervisor[K: Hashable, T]:
    """Runs the calls of a cycle side by side, within the policy's patience.

    Parameters
    ----------
    policy : Policy
    workers : int
        Calls at once, stuck ones not counted. More than one helps where calls wait or compute
        outside the interpreter's lock.
    monotonic : callable
        Real time in seconds.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        workers: int = 2,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy or Policy()
        self._workers = workers
        self._monotonic = monotonic
        # Held by ``with self._lock``, which no interruption can come between; `Condition` is Python.
        self._lock = threading.RLock()
        self._work_there = threading.Condition(self._lock)
        self._settled = threading.Condition(self._lock)
        self._waiting: deque[tuple[K, Callable[[], T]]] = deque()
        self._calls: dict[K, _Call[K]] = {}
        self._ended: list[Outcome[K, T]] = []
        self._idle = 0
        self._threads = 0
        self._closed = False
        self._lasted: dict[K, float] = {}

    # ------------------------------------------------------------------------------- a cycle

    def run(self, calls: Mapping[K, Callable[[], T]]) -> list[Outcome[K, T]]:
        """Make these calls; return those that have ended, others' late ones among them.

        Returns when every call has ended or lasts longer than the soft limit; what comes later is
        in a later answer of `run` or `look`. Who is `busy` must not be given.

        Parameters
        ----------
        calls : mapping
            By whose call it is. The quick ones of earlier cycles come first.
        """
        order = sorted(calls, key=lambda key: self._lasted.get(key, 0.0) >= self.policy.relief)
        with self._lock:
            assert not any(key in self._calls for key in calls), "a call of this key still lasts"
            self._waiting.extend((key, calls[key]) for key in order)
            self._staff()
            while self._unfinished():
                self._settled.wait(self.policy.relief / 2)
                self._relieve()
            return self._take()

    def look(self) -> list[Outcome[K, T]]:
        """Interrupt what lasts too long; return the calls that have ended since the last answer."""
        with self._lock:
            self._relieve()
            return self._take()

    @property
    def busy(self) -> frozenset[K]:
        """Whose calls still last."""
        with self._lock:
            return frozenset(self._calls)

    def forget(self, key: K) -> None:
        """Remember no longer how long `key`'s calls last."""
        with self._lock:
            self._lasted.pop(key, None)

    def close(self, patience: float = 0.0) -> frozenset[K]:
        """Let the workers end; interrupt what still lasts after `patience` seconds and return it."""
        end = self._monotonic() + patience
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._work_there.notify_all()
            while self._calls and (left := end - self._monotonic()) > 0:
                self._settled.wait(left)
            for call in self._calls.values():
                self._interrupt(call)
            return frozenset(self._calls)

    # ----------------------------------------------------------------------------- judging

    def _unfinished(self) -> bool:
        if self._waiting:
            return True
        now = self._monotonic()
        return any(now - call.began < self.policy.soft for call in self._calls.values())

    def _relieve(self) -> None:
        now = self._monotonic()
        for call in self._calls.values():
            verdict = pace(now - call.began, self.policy)
            if verdict is not Pace.FINE:
                call.relieved = True
            if verdict is Pace.INTERRUPT and now - call.insisted >= _INSIST_SECONDS:
                call.insisted = now
                self._interrupt(call)
        self._staff()

    def _interrupt(self, call: _Call[K]) -> None:
        call.interrupted = True
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(call.ident), ctypes.py_object(CallInterrupted)
        )

    def _staff(self) -> None:
        """Have as many workers as wanted besides the relieved ones, where there is work."""
        fit = self._threads - sum(call.relieved for call in self._calls.values())
        wanted = min(self._workers - fit, len(self._waiting) - self._idle)
        for _ in range(wanted):
            self._threads += 1
            threading.Thread(target=self._work, name="algorithm-worker", daemon=True).start()
        if self._waiting and self._idle:
            self._work_there.notify_all()

    def _take(self) -> list[Outcome[K, T]]:
        ended, self._ended = self._ended, []
        return ended

    # ----------------------------------------------------------------------------- workers

    def _work(self) -> None:
        try:
            while self._one():
                pass
        finally:
            with self._lock:
                self._threads -= 1

    def _one(self) -> bool:
        """Make the next call; return whether this worker is to go on."""
        with self._lock:
            while not self._waiting:
                if self._closed:
                    return False
                self._idle += 1
                try:
                    self._work_there.wait()
                finally:
                    self._idle -= 1
            key, work = self._waiting.popleft()
            call: _Call[K] = _Call(key, self._monotonic())
            self._calls[key] = call
        result: T | None = None
        error: BaseException | None = None
        try:
            try:
                result = work()
            except BaseException as raised:
                error = raised
        except CallInterrupted as raised:  # while the first one was being noted
            error = raised
        while True:
            try:
                return self._end(call, result, error)
            except CallInterrupted as raised:  # just too late for the call
                error = raised

    def _end(self, call: _Call[K], result: T | None, error: BaseException | None) -> bool:
        with self._lock:
            if call.interrupted:
                # None is sent without the lock: from here on nothing arrives any more.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(call.ident), None)
                error = error or CallInterrupted()
            seconds = self._monotonic() - call.began
            self._lasted[call.key] = seconds
            self._ended.append(
                Outcome(
                    call.key,
                    None if error is not None else result,
                    error,
                    None if error is None else _trace(error, seconds),
                    seconds,
                    seconds >= self.policy.soft,
                )
            )
            del self._calls[call.key]
            if not self._waiting:
                self._settled.notify_all()
            return not call.relieved


def trace_of(error: BaseException) -> str:
    """Return an error's traceback as text, its end where it is long."""
    return "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]


def _trace(error: BaseException, seconds: float) -> str:
    told = trace_of(error)
    if isinstance(error, CallInterrupted):
        told += f"interrupted after {seconds:.1f} s: a call must end sooner"
    return told
