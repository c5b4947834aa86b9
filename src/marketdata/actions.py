"""Corporate actions by symbol: known ones for warnings, checked ones for adjusted reads.

An adjusted read must know that it knows: the broker was asked for the whole span, and lately. A
raw read only looks at what is stored, and never costs a broker call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from itertools import batched
from typing import Final

from marketdata.calendars import TradingCalendar
from marketdata.clock import Clock, Deadline
from marketdata.corporate_actions import IDENTITY_CHANGES, ActionKind, CorporateAction
from marketdata.errors import (
    BrokerError,
    BrokerResponseError,
    BrokerTimeoutError,
    DataUnavailableError,
    MarketDataError,
    StoreError,
    StoreReadOnlyError,
    as_other_waiter,
)
from marketdata.flights import LocalFlights, is_private
from marketdata.protocols import ActionChange, ActionStore, Broker, Capabilities
from marketdata.spans import Span
from marketdata.types import DAY, HOUR

log = logging.getLogger("marketdata.actions")

RECHECK: Final = 12 * HOUR
"""Corporate actions arrive late and are corrected: what is older than this is asked again."""
AHEAD: Final = 45 * DAY
"""How far past today announced ex-dates are asked for."""
FEW: Final = 50
"""Symbols of one question about which everything is asked at once, whatever is needed."""
_MEMORY_SECONDS: Final = 300.0
_COURTESY_SECONDS: Final = 5.0
_MOST_NAMES: Final = 8
_BATCH: Final = 500


class Actions:
    """Corporate actions as the store and the broker know them."""

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
        self._known: dict[tuple[str, str], tuple[float, list[CorporateAction]]] = {}
        self._flights = LocalFlights[tuple[str, str]]()
        self.on_ended: Callable[[str, Sequence[str], Deadline], object] | None = None
        """Called with the symbols that an answer has just told the end of."""

    def known(self, provider: str, symbols: Sequence[str]) -> dict[str, list[CorporateAction]]:
        """Return stored actions, remembered for five minutes. No broker call."""
        now = time.monotonic()
        wanted = [s for s in symbols if self._known.get((provider, s), (0.0,))[0] < now]
        if wanted:
            found = self._store.actions(provider, wanted)
            for symbol in wanted:
                self._known[provider, symbol] = (now + _MEMORY_SECONDS, found.get(symbol, []))
        return {s: self._known[provider, s][1] for s in symbols}

    def checked(
        self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline
    ) -> dict[str, list[CorporateAction]]:
        """Return all actions that are known, with an ex-date from `start` to today for certain:
        the broker is asked where it was not asked for that span within the last twelve hours.

        Raises
        ------
        BrokerError, DataUnavailableError, StoreReadOnlyError
            The actions were never asked and cannot be had: no adjusted answer is possible.
        """
        self.ensure(provider, symbols, start, deadline)
        return self._store.actions(provider, symbols)

    def ensure(self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline) -> None:
        """Ask as `checked` does, without reading what is then known; raises what it raises."""
        never, stale = self._due(provider, symbols, start)
        if never or stale:
            self._ask_once(provider, [*never, *stale], start, deadline)
            self._follow_names(provider, symbols, start, deadline)

    def _follow_names(
        self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline
    ) -> None:
        """Ask about what the instruments were called before, where an answer has just named it."""
        for _ in range(_MOST_NAMES):
            never, _ = self._due(provider, symbols, start)
            if not never:
                return
            self._ask_once(provider, never, start, deadline)

    def look_up(
        self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline
    ) -> None:
        """Ask for the actions of symbols never asked about, as a courtesy to raw reads: a failure
        is logged and nothing else."""
        try:
            asked = self._store.checked(provider, symbols)
            if fresh := [s for s in symbols if s not in asked]:
                self.checked(provider, fresh, start, Deadline(deadline.cap(_COURTESY_SECONDS)))
        except (BrokerError, DataUnavailableError, StoreError) as error:
            log.info("corporate actions not looked up: %s", error)

    def refresh(
        self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline
    ) -> tuple[list[ActionChange], MarketDataError | None]:
        """Ask about all of `symbols` from `start` on, whenever they were asked before, in one go.

        Returns
        -------
        tuple
            What the answer changed, and the error about those symbols that the broker's answer
            cannot be read for (``facts["unreadable"]`` lists them), if there are any.

        Raises
        ------
        BrokerError, DataUnavailableError
            The broker did not answer; nothing is recorded.
        """
        return self._fetch(provider, symbols, start, deadline)

    # ------------------------------------------------------------------------------- asking

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
                    "another caller's request for corporate actions did not end in time",
                    cure="call again, or give a longer timeout",
                )
            if outcome.error is not None:
                raise as_other_waiter(outcome.error)
        # Those we waited for may have asked about less time than we need.
        never, _ = self._due(provider, [symbol for _, symbol in others], start)
        self._ask(provider, never, start, deadline)

    def _ask(self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline) -> None:
        """Ask about those of `symbols` that are still due, and keep each batch's answer."""
        for batch in batched(symbols, _BATCH):
            self._ask_batch(provider, batch, start, deadline)

    def _ask_batch(
        self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline
    ) -> None:
        never, stale = self._due(provider, symbols, start)
        if not never and not stale:
            return
        checks = self._store.checked(provider, stale) if stale else {}
        start = min([start, *(span.start for span, _ in checks.values())])
        if len(symbols) <= FEW and self._caps().batch_symbols > 1:
            # Of a few symbols all of it fits one request: a rename long ago decides what they mean.
            start = min(start, max(self._caps().earliest, self._calendar().first))
        try:
            _, unreadable = self._fetch(provider, [*never, *stale], start, deadline)
        except (BrokerError, DataUnavailableError, StoreReadOnlyError) as error:
            # Who may not write here may not ask either; what is stored can be read all the same.
            unreadable = error
            if never:
                raise
        if unreadable is not None:
            if set(never) & set(_unreadable(unreadable)):
                raise unreadable
            log.warning("corporate actions are as of the last check: %s", unreadable)

    def _fetch(
        self, provider: str, symbols: Sequence[str], start: int, deadline: Deadline
    ) -> tuple[list[ActionChange], MarketDataError | None]:
        """Ask the broker and record what it says. Symbols whose actions cannot be read are left
        out, asking once more for the others, and returned as an error."""
        asked = Span(start - start % DAY, self._today() + AHEAD)
        observed = self._clock.now_us()
        wanted = self._with_other_names(provider, symbols)
        unreadable: MarketDataError | None = None
        try:
            found = self._broker.actions(wanted, asked, deadline)
        except BrokerResponseError as error:
            rest = [s for s in wanted if s not in _unreadable(error)]
            if not _unreadable(error) or not rest:
                raise
            unreadable = error
            found = self._broker.actions(rest, asked, deadline)
        changes = self._store.record(provider, found, asked, observed)
        for symbol in found:
            self._known.pop((provider, symbol), None)
        ended = sorted({c.symbol for c in changes if c.kind in IDENTITY_CHANGES})
        if ended and self.on_ended is not None:
            self.on_ended(provider, ended, deadline)
        return changes, unreadable

    def _with_other_names(self, provider: str, symbols: Sequence[str]) -> list[str]:
        """Return `symbols` and what they were called before and after: which name a provider lists
        a change under is its own affair, and only who asks for both learns that one is gone."""
        known = self._store.actions(provider, symbols, {ActionKind.NAME_CHANGE})
        names = {
            name
            for actions in known.values()
            for a in actions
            for name in (a.symbol, a.other_symbol)
            if name
        }
        return [*symbols, *sorted(names.difference(symbols))]

    def _caps(self) -> Capabilities:
        return self._broker.capabilities(self._broker.default_feed)

    def _today(self) -> int:
        calendar = self._calendar()
        return calendar.midnight_of(calendar.today(self._clock.now_us()))


def _unreadable(error: MarketDataError) -> list[str]:
    named = error.facts.get("unreadable")
    return named if isinstance(named, list) else []
