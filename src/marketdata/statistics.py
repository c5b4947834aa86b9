"""Counters of one process: what `md.stats()` returns, and their way into the totals of all."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from marketdata.errors import MarketDataError, StoreReadOnlyError

if TYPE_CHECKING:
    from marketdata.answers import Answer

log = logging.getLogger("marketdata.statistics")

_ALWAYS: Final = (
    "reads",
    "series_from_redis",
    "series_from_postgres",
    "series_from_broker",
    "broker_pages",
    "bars_fetched",
    "bars_flagged",
)


class Statistics:
    """Reads by tier, and what fetching did; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._on_first: Callable[[], None] | None = None

    def on_first(self, call: Callable[[], None]) -> None:
        """Have `call` called once, after the first count."""
        self._on_first = call

    def count(self, answer: Answer) -> None:
        """Add one answered read."""
        trace = answer.trace
        with self._lock:
            self._counts["reads"] += 1
            for found in answer.series.values():
                self._counts[f"series_from_{found.tier}"] += 1
            if trace.pages:
                self._counts["broker_pages"] += trace.pages
                self._counts["bars_fetched"] += trace.bars
            if trace.flagged:
                self._counts["bars_flagged"] += trace.flagged
            for reason, number in trace.rejected.items():
                self._counts[f"bars_rejected_{reason}"] += number
        if self._on_first is not None:
            self._begin()

    def add(self, numbers: Mapping[str, int]) -> None:
        """Add what was counted elsewhere, such as by a job."""
        with self._lock:
            self._counts.update(numbers)
        if self._on_first is not None:
            self._begin()

    def _begin(self) -> None:
        with self._lock:
            call, self._on_first = self._on_first, None
        if call is not None:
            call()

    def snapshot(self) -> dict[str, int]:
        """Return all counters; reasons of rejection only where bars were rejected."""
        with self._lock:
            return {**dict.fromkeys(_ALWAYS, 0), **self._counts}


class Flusher:
    """Adds what this process counts to the totals of all processes: once a minute, and at its end.

    Nothing runs before `start`. A process that ends without `close` is served at its exit, for a
    second at most. Losing a few counts loses no bar: failures are logged at level debug.

    Parameters
    ----------
    read : callable
        Returns the counters, which only grow.
    send : callable
        Adds differences to the totals; may raise `MarketDataError`.
    every : float
        Seconds between two flushes at least.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, int]],
        send: Callable[[Mapping[str, int]], None],
        every: float = 60.0,
    ) -> None:
        self._read = read
        self._send = send
        self._every = every
        self._sent: Counter[str] = Counter()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def start(self) -> None:
        """Begin, on a thread of its own. Idempotent."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="marketdata-statistics", daemon=True
            )
            self._thread.start()
            atexit.register(self.close)

    def close(self, timeout: float = 1.0) -> None:
        """Flush once more, waiting `timeout` seconds at most. Idempotent, never raises."""
        thread, self._thread = self._thread, None
        if thread is None or self._pid != os.getpid():
            return  # what a forked child has inherited is its parent's to send
        atexit.unregister(self.close)
        self._end.set()
        thread.join(timeout)

    def _run(self) -> None:
        while not self._end.wait(self._every):
            if not self._flush():
                return
        self._flush()

    def _flush(self) -> bool:
        """Send the differences; return whether trying again makes sense."""
        now = Counter(self._read())
        delta = {name: n for name, n in (now - self._sent).items() if n > 0}
        try:
            if delta:
                self._send(delta)
                self._sent = now
        except StoreReadOnlyError as error:
            log.debug("counters are not added up: %s", error)
            return False
        except MarketDataError as error:
            log.debug("counters are not added up now: %s", error)
        return True
