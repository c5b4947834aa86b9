"""Splits by symbol: known ones for warnings, checked ones for adjusted reads.

An adjusted read must know that it knows: the broker was asked for the whole span, and lately. A
raw read only looks at what is stored, and never costs a broker call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from marketdata.calendars import TradingCalendar
from marketdata.clock import Clock, Deadline
from marketdata.errors import BrokerError, DataUnavailableError
from marketdata.protocols import ActionStore, Broker
from marketdata.spans import Span
from marketdata.types import DAY, HOUR, Split

log = logging.getLogger("marketdata.splits")

RECHECK: Final = 12 * HOUR
"""Corporate actions arrive late and are corrected: what is older than this is asked again."""
_AHEAD: Final = 30 * DAY
_MEMORY_SECONDS: Final = 300.0


class Splits:
    """Splits as the store and the broker know them."""

    def __init__(
        self,
        store: ActionStore,
        broker: Broker,
        clock: Clock,
        calendar: Callable[[], TradingCalendar],
    ) -> None:
        self._store = store
        self._broker = broker
        self._clock = clock
        self._calendar = calendar
        self._known: dict[tuple[str, str], tuple[float, list[Split]]] = {}

    def known(self, provider: str, symbols: Sequence[str]) -> dict[str, list[Split]]:
        """Return stored splits, remembered for five minutes. No broker call."""
        now = time.monotonic()
        wanted = [s for s in symbols if self._known.get((provider, s), (0.0,))[0] < now]
        if wanted:
            found = self._store.splits(provider, wanted)
            for symbol in wanted:
                self._known[provider, symbol] = (now + _MEMORY_SECONDS, found.get(symbol, []))
        return {s: self._known[provider, s][1] for s in symbols}

    def checked(
        self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline
    ) -> dict[str, list[Split]]:
        """Return all splits with an ex-date from `start` to today, asking the broker where the
        store was not asked for that span within the last twelve hours.

        Raises
        ------
        BrokerError, DataUnavailableError
            The splits were never asked and cannot be had: no adjusted answer is possible.
        """
        now_us = self._clock.now_us()
        today = self._calendar().midnight_of(self._calendar().today(now_us))
        checks = self._store.checked(provider, symbols)
        never = [s for s in symbols if s not in checks or checks[s][0].start > start]
        stale = [
            s
            for s in symbols
            if s not in never and (now_us - checks[s][1] > RECHECK or checks[s][0].end <= today)
        ]
        if never or stale:
            start = min([start, *(checks[s][0].start for s in stale)])
            self._ask(provider, never, stale, start, today, now_us, deadline)
        return self._store.splits(provider, symbols)

    def _ask(
        self,
        provider: str,
        never: Sequence[str],
        stale: Sequence[str],
        start: int,
        today: int,
        now_us: int,
        deadline: Deadline,
    ) -> None:
        asked = Span(start - start % DAY, today + _AHEAD)
        try:
            found = self._broker.splits([*never, *stale], asked, deadline)
        except (BrokerError, DataUnavailableError) as error:
            if never:
                raise
            log.warning("splits are as of the last check, the broker does not answer: %s", error)
            return
        self._store.record(provider, found, asked, now_us)
        for symbol in found:
            self._known.pop((provider, symbol), None)
