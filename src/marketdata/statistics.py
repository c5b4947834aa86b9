"""Counters of one process: what `md.stats()` returns."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from marketdata.reader import Answer


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

    def snapshot(self) -> dict[str, int]:
        """Return all counters; reasons of rejection only where bars were rejected."""
        with self._lock:
            return {**dict.fromkeys(_ALWAYS, 0), **self._counts}
