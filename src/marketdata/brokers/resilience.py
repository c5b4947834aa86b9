"""Whether and when a request may go out: rate budget, circuit breaker, retry.

`Caller.call` puts one request through all three, in this order::

    for each attempt (transient errors only, with jitter, inside the deadline)
        breaker open?      -> BrokerUnavailableError at once
        budget spent?      -> wait if that fits the deadline, else RateLimitError
        send
        429?               -> nobody sends before the moment the broker named; then once more

Every wait respects the caller's deadline. Locks survive a fork.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from tenacity import RetryCallState, Retrying, retry_if_exception

from marketdata.clock import Deadline
from marketdata.errors import (
    BrokerError,
    BrokerTimeoutError,
    BrokerUnavailableError,
    MarketDataError,
    RateLimitError,
)
from marketdata.pausing import BUDGET_TAKEN, pause_point
from marketdata.protocols import Priority, RateBudget

MAX_PAUSE: Final = 120.0
"""Seconds. Limits are counted per minute: a longer pause asked by a header is a mistake."""
_REFUSALS: Final = 6
_SPREAD: Final = 0.05
_NAP: Final = 2.0
"""Seconds that background work sleeps at most before it looks whether it still should wait."""

Monotonic = Callable[[], float]
Sleep = Callable[[float], None]


class _ForkSafe(Protocol):
    def after_fork(self) -> None: ...


_fork_safe: weakref.WeakSet[_ForkSafe] = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(_fork_safe):
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork)


# -------------------------------------------------------------------------------------- answers


class Answers:
    """How the requests of this process ended, over all brokers: by HTTP status, or ``timeout``,
    ``unreachable`` and ``unreadable`` where there was none."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.after_fork()
        _fork_safe.add(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def count(self, error: MarketDataError | None) -> None:
        """Count one request that succeeded (None) or failed."""
        status = "200" if error is None else str(error.facts.get("status") or _kind(error))
        with self._lock:
            self._counts[status] += 1

    def snapshot(self) -> dict[str, int]:
        """Return the counts by status."""
        with self._lock:
            return dict(self._counts)


def _kind(error: MarketDataError) -> str:
    if isinstance(error, BrokerTimeoutError):
        return "timeout"
    return "unreachable" if isinstance(error, BrokerUnavailableError) else "unreadable"


answers: Final = Answers()


# -------------------------------------------------------------------------------------- breaker


class CircuitBreaker:
    """Fails fast while a broker is down.

    After `threshold` failures in a row it opens for `open_seconds`; then one caller at a time may
    probe: success closes it, failure opens it again.

    Parameters
    ----------
    name : str
        Of the broker, for the error.
    threshold : int
        Failures in a row that open it.
    open_seconds : float
        Seconds without requests.
    monotonic : callable, optional
        Seconds on a clock that never goes back.
    """

    def __init__(
        self,
        name: str,
        *,
        threshold: int = 5,
        open_seconds: float = 5.0,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        self._name = name
        self._threshold = threshold
        self._open_seconds = open_seconds
        self._monotonic = monotonic
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False
        self.after_fork()
        _fork_safe.add(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._probing = False

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "open" if self._open_for() > 0 else "half-open"

    def check(self) -> None:
        """Raise `BrokerUnavailableError` where a request would not be admitted."""
        with self._lock:
            self._refuse_if_open()

    def admit(self) -> None:
        """Admit a request, which must then be reported; raise `BrokerUnavailableError` if open."""
        with self._lock:
            self._refuse_if_open()
            self._probing = self._opened_at is not None

    def succeeded(self) -> None:
        """Report that the broker answered."""
        with self._lock:
            self._failures, self._opened_at, self._probing = 0, None, False

    def failed(self) -> None:
        """Report that the broker failed as one that is down would."""
        with self._lock:
            self._failures += 1
            if self._probing or self._failures >= self._threshold:
                self._opened_at = self._monotonic()
            self._probing = False

    def abandoned(self) -> None:
        """Report that the request ended without telling anything about the broker."""
        with self._lock:
            self._probing = False

    def _open_for(self) -> float:
        assert self._opened_at is not None
        return self._opened_at + self._open_seconds - self._monotonic()

    def _refuse_if_open(self) -> None:
        if self._opened_at is None:
            return
        left = self._open_for()
        if left <= 0 and not self._probing:
            return
        raise BrokerUnavailableError(
            f"{self._name} failed {self._failures} times in a row; not asked again for now",
            cure=f"try again in {max(left, 1.0):.0f} s",
            retry_after=round(max(left, 0.1), 3),
            circuit_open=True,
        )


# --------------------------------------------------------------------------------------- budget


class RequestGate:
    """Lets requests of one credential through at the rate its broker allows.

    Parameters
    ----------
    credential : str
        Names the budget; a digest, never the key itself.
    limit : int
        Requests a minute until the broker's own headers say otherwise.
    budget : RateBudget or None
        Shared by every process on the same store; None counts nothing and only honours pauses.
    priority : Priority
        Whom the requests are for.
    """

    def __init__(
        self,
        credential: str,
        limit: int,
        budget: RateBudget | None,
        *,
        priority: Priority = Priority.READ,
        monotonic: Monotonic = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.credential = credential
        self.limit = limit
        self.granted = 0
        """Requests this process let through."""
        self._budget = budget
        self._priority = priority
        self._monotonic = monotonic
        self._sleep = sleep
        self._paused_until = float("-inf")
        self.after_fork()
        _fork_safe.add(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    @property
    def allowance(self) -> int:
        """Requests a minute that this gate may let through where nobody else wants any: background
        work leaves a twentieth of the limit (2 at least, half of a small limit at most)."""
        if not self._priority.background:
            return self.limit
        return self.limit - min(max(-(-self.limit // 20), 2), self.limit // 2)

    def learn(self, limit: int, left: int | None = None) -> None:
        """Use the requests a minute that the broker states; `left` is what it says is left."""
        if limit > 0:
            self.limit = limit
            if self._budget is not None:
                self._budget.told(self.credential, limit, left)

    def pause(self, seconds: float) -> None:
        """Let nothing through for `seconds` (at most `MAX_PAUSE`), in any process."""
        seconds = min(max(seconds, 0.0), MAX_PAUSE)
        with self._lock:
            self._paused_until = max(self._paused_until, self._monotonic() + seconds)
        if self._budget is not None:
            self._budget.pause(self.credential, seconds)

    def acquire(self, deadline: Deadline) -> None:
        """Take one request from the budget, waiting for it inside the deadline.

        Raises
        ------
        RateLimitError
            The wait would pass the deadline; ``facts["retry_after"]`` says how long it is.
        """
        while True:
            wait = self._paused_until - self._monotonic()
            if wait <= 0 and self._budget is not None:
                wait = self._budget.take(self.credential, self.limit, self._priority)
            if wait <= 0:
                with self._lock:
                    self.granted += 1
                pause_point(BUDGET_TAKEN)
                return
            if wait >= deadline.remaining():
                raise RateLimitError(
                    f"the budget of {self.limit} requests a minute is spent",
                    cure=f"try again in {wait:.0f} s, or allow more time with timeout=",
                    retry_after=round(wait, 3),
                )
            # All who wait for one moment would otherwise ask again in the same instant.
            nap = min(wait + random.uniform(0, _SPREAD), deadline.remaining())
            self._sleep(min(nap, _NAP) if self._priority.background else nap)


# ---------------------------------------------------------------------------------------- retry


class Caller:
    """Sends requests of one endpoint through budget, breaker and retry.

    Retries are tenacity's. (stamina, which wraps it, reports each retry through structlog wherever
    that is installed, by default on stdout, and only a process-wide setting turns that off.)
    """

    def __init__(
        self,
        breaker: CircuitBreaker,
        gate: RequestGate,
        *,
        attempts: int = 3,
        first_wait: float = 0.25,
        longest_wait: float = 2.0,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.breaker = breaker
        self.gate = gate
        self._attempts = attempts
        self._first_wait = first_wait
        self._longest_wait = longest_wait
        self._sleep = sleep

    def call[T](self, send: Callable[[], T], deadline: Deadline) -> T:
        """Return what `send` returns, trying again after transient errors.

        Parameters
        ----------
        send : callable
            Sends one request; raises `MarketDataError` and nothing else for a failed one.
        deadline : Deadline
            For all attempts and waits together.

        Raises
        ------
        BrokerError, DataUnavailableError
            The last attempt's error, with the number of attempts in ``facts["attempts"]``.
        StoreError
            The shared budget cannot be reached.
        """

        def out_of_attempts_or_time(state: RetryCallState) -> bool:
            too_late = state.upcoming_sleep >= deadline.remaining()
            return state.attempt_number >= self._attempts or too_late

        attempts = 0
        answered: BrokerError | None = None

        def attempt() -> T:
            nonlocal attempts, answered
            attempts += 1
            try:
                return self._attempt(send, deadline)
            except BrokerError as error:
                if not error.facts.get("circuit_open"):
                    answered = error
                raise

        retrying = Retrying(
            retry=retry_if_exception(_worth_another_try),
            wait=self._wait,
            stop=out_of_attempts_or_time,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except MarketDataError as error:
            if answered is not None and error.facts.get("circuit_open"):
                # This call has opened the breaker: what it saw says more than that it is open.
                answered.facts |= error.facts
                answered.cure, error = error.cure, answered
            error.facts.setdefault("attempts", attempts)
            raise error from None

    def _wait(self, state: RetryCallState) -> float:
        full = self._first_wait * 2.0 ** (state.attempt_number - 1)
        return min(full, self._longest_wait) * random.uniform(0.5, 1.0)

    def _attempt[T](self, send: Callable[[], T], deadline: Deadline) -> T:
        refusal: RateLimitError | None = None
        for _ in range(_REFUSALS):
            self.breaker.check()
            self.gate.acquire(deadline)
            if deadline.expired:
                raise BrokerTimeoutError(
                    "the deadline passed before the request could be sent",
                    cure="allow more time with timeout=",
                    cut_by_deadline=True,
                )
            try:
                return self._send(send)
            except RateLimitError as error:
                refusal = error
                self.gate.pause(_seconds(error.facts.get("retry_after")))
        assert refusal is not None
        raise refusal

    def _send[T](self, send: Callable[[], T]) -> T:
        self.breaker.admit()
        try:
            result = send()
        except MarketDataError as error:
            answers.count(error)
            if not error.transient or isinstance(error, RateLimitError):
                self.breaker.succeeded()
            elif error.facts.get("cut_by_deadline"):
                self.breaker.abandoned()  # the caller's haste says nothing about the broker
            else:
                self.breaker.failed()
            raise
        except BaseException:
            self.breaker.abandoned()
            raise
        answers.count(None)
        self.breaker.succeeded()
        return result


def _worth_another_try(error: BaseException) -> bool:
    """A refused rate was waited for already, an open breaker is there to save the time, and an
    error of the budget's store is not the broker's."""
    if not isinstance(error, BrokerError) or isinstance(error, RateLimitError):
        return False
    return error.transient and not error.facts.get("circuit_open")


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 1.0
