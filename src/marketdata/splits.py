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
from marketdata.errors import (
    BrokerError,
    BrokerTimeoutError,
    DataUnavailableError,
    MarketDataError,
    StoreError,
    as_other_waiter,
)
from marketdata.flights import LocalFlights, is_private
from marketdata.protocols import ActionStore, Broker
from marketdata.spans import Span
from marketdata.types import DAY, HOUR, Split

log = logging.getLogger("marketdata.splits")

RECHECK: Final = 12 * HOUR
"""Corporate actions arrive late and are corrected: what is older than this is asked again."""
_AHEAD: Final = 30 * DAY
_MEMORY_SECONDS: Final = 300.0
_COURTESY_SECONDS: Final = 5.0


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
        self._flights = LocalFlights[tuple[str, str]]()

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
        never, stale = self._due(provider, symbols, start)
        if never or stale:
            self._ask_once(provider, [*never, *stale], start, deadline)
        return self._store.splits(provider, symbols)

    def look_up(
        self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline
    ) -> None:
        """Ask for the splits of symbols never asked about, as a courtesy to raw reads: a failure
        is logged and nothing else."""
        try:
            asked = self._store.checked(provider, symbols)
            if fresh := [s for s in symbols if s not in asked]:
                self.checked(provider, fresh, start, Deadline(deadline.cap(_COURTESY_SECONDS)))
        except (BrokerError, DataUnavailableError, StoreError) as error:
            log.info("splits not looked up: %s", error)

    def _due(
        self, provider: str, symbols: Sequence[str], start: int
    ) -> tuple[list[str], list[str]]:
        """Return the symbols never asked about from `start` on, and those not asked lately."""
        now_us = self._clock.now_us()
        checks = self._store.checked(provider, symbols)
        never = [s for s in symbols if s not in checks or checks[s][0].start > start]
        stale = [
            s
            for s in symbols
            if s not in never
            and (now_us - checks[s][1] > RECHECK or checks[s][0].end <= self._today())
        ]
        return never, stale

    def _ask_once(
        self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline
    ) -> None:
        """Ask about what is due; threads that want the same symbols wait for one of them."""
        led, others = self._flights.board((provider, s) for s in symbols)
        shared: MarketDataError | None = None
        try:
            self._ask(provider, [symbol for _, symbol in led], start, deadline)
        except MarketDataError as error:
            shared = None if is_private(error, deadline) else error
            raise
        finally:
            self._flights.land(led, shared)
        for flight in {id(f): f for f in others.values()}.values():
            outcome = self._flights.wait(flight, deadline)
            if outcome is None:
                raise BrokerTimeoutError(
                    "another caller's request for splits did not end in time",
                    cure="call again, or give a longer timeout",
                )
            if outcome.error is not None:
                raise as_other_waiter(outcome.error)
        # Those we waited for may have asked about less time than we need.
        never, _ = self._due(provider, [symbol for _, symbol in others], start)
        self._ask(provider, never, start, deadline)

    def _ask(self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline) -> None:
        """Ask about those of `symbols` that are still due, and keep the answer."""
        if not symbols:
            return
        never, stale = self._due(provider, symbols, start)
        if not never and not stale:
            return
        checks = self._store.checked(provider, stale) if stale else {}
        start = min([start, *(span.start for span, _ in checks.values())])
        asked = Span(start - start % DAY, self._today() + _AHEAD)
        observed = self._clock.now_us()
        try:
            found = self._broker.splits([*never, *stale], asked, deadline)
        except (BrokerError, DataUnavailableError) as error:
            if never:
                raise
            log.warning("splits are as of the last check, the broker does not answer: %s", error)
            return
        self._store.record(provider, found, asked, observed)
        for symbol in found:
            self._known.pop((provider, symbol), None)

    def _today(self) -> int:
        calendar = self._calendar()
        return calendar.midnight_of(calendar.today(self._clock.now_us()))
