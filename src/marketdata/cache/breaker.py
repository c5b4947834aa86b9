"""A circuit breaker: after a failure nobody waits for the server until one probe has found it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Breaker:
    """Open after the first failure; one probe each interval, which doubles from `first` to `most`.

    A time-out of the cache costs its caller as much as the read from the store it was to save, so
    a single failure is enough to open.

    Parameters
    ----------
    first, most : float
        Seconds before the first probe, and the longest wait between probes.
    monotonic : callable
        Real time in seconds; replaced in tests.
    """

    def __init__(
        self,
        first: float = 1.0,
        most: float = 5.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first = first
        self._most = most
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._wait = first
        self._next_probe: float | None = None

    def is_closed(self) -> bool:
        """Whether calls may go through."""
        return self._next_probe is None

    def open(self) -> bool:
        """Note a failure; return whether it opened the breaker.

        Failures of calls that were under way when it opened do not make the wait longer.
        """
        with self._lock:
            if self._next_probe is not None:
                return False
            self._wait = self._first
            self._next_probe = self._monotonic() + self._wait
            return True

    def claim_probe(self) -> bool:
        """Return True to one caller each interval: it must try, and `close` on success."""
        due = self._next_probe
        if due is None or self._monotonic() < due:
            return False
        with self._lock:
            now = self._monotonic()
            if self._next_probe is None or now < self._next_probe:
                return False
            self._wait = min(self._wait * 2, self._most)
            self._next_probe = now + self._wait
            return True

    def close(self) -> None:
        """Let calls through again."""
        with self._lock:
            self._next_probe = None

    def renew(self) -> Breaker:
        """Return a closed breaker with the same settings, for a forked child."""
        return Breaker(self._first, self._most, self._monotonic)
