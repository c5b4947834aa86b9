"""Fetches gaps: claims the flights, walks the broker's pages, commits each page as it comes.

::

    Fetch -> local flight -> flight in the store -> look again at coverage
          -> broker pages -> quality gates -> bars + coverage in one commit (floor raised before)
          -> land; then wait for what others were already fetching

What a page proves stays committed whatever happens later; the outcome of a flight (landed, or its
error) reaches everybody who waited for it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache as remembered
from itertools import count
from typing import Final

from marketdata import planning
from marketdata.calendars import TradingCalendar
from marketdata.clock import Clock, Deadline, from_micros
from marketdata.errors import (
    BrokerTimeoutError,
    DataUnavailableError,
    MarketDataError,
    RateLimitError,
    as_other_waiter,
)
from marketdata.flights import LocalFlight, LocalFlights, is_private
from marketdata.keeping import FetchTrace, OnStored, PageKeeper, Tiers
from marketdata.pausing import (
    BEFORE_LANDING,
    FLIGHT_CLAIMED,
    LANDED,
    PAGE_KEPT,
    pause_point,
)
from marketdata.planning import Fetch
from marketdata.protocols import (
    BarCache,
    BarsRequest,
    BarStore,
    Broker,
    FlightLog,
    FlightOutcome,
    FlightTicket,
    SeriesState,
)
from marketdata.spans import Span, intersect, subtract
from marketdata.types import SeriesKey
from marketdata.verdicts import Verdicts

log = logging.getLogger("marketdata.fetching")

LEASE: Final = 10.0
"""Seconds a flight's lease lasts; renewed three times as often while its walk lives. Others wait
this long for a process that was killed."""
_POLL_FIRST: Final = 0.02
_POLL_MOST: Final = 0.25
_LANDING: Final = 1.0
"""Seconds within which landing a flight is tried again."""


Progress = Callable[[FetchTrace], None]


class Fetcher:
    """Brings the broker's answer for a list of gaps into the store."""

    def __init__(
        self,
        store: BarStore,
        flights: FlightLog,
        cache: BarCache,
        broker: Broker,
        verdicts: Verdicts,
        clock: Clock,
        calendar: Callable[[], TradingCalendar],
    ) -> None:
        self._tiers = Tiers(store, cache, broker, verdicts, clock, calendar)
        self._flights = flights
        self._local = LocalFlights[SeriesKey]()

    def fetch(
        self,
        fetch: Fetch,
        deadline: Deadline,
        trace: FetchTrace,
        progress: Progress | None = None,
        on_stored: OnStored | None = None,
    ) -> None:
        """Fetch one gap of several series, or wait for whoever is fetching them already.

        `progress` and `on_stored` are called after each page that was committed; what they raise
        ends the walk there.

        On return every series of the fetch was either fetched by us, or somebody else's flight
        for it has ended: the caller looks at coverage again and plans what is left.

        Raises
        ------
        MarketDataError
            Our walk failed, or the flight we waited for did; finished pages stay stored.
        """
        led, others = self._local.board(fetch.keys, fetch.span)
        if led:
            self._lead(fetch, led, deadline, trace, progress, on_stored)
        self._wait_locally(fetch, others, deadline, trace)

    # ------------------------------------------------------------------------------- leading

    def _lead(
        self,
        fetch: Fetch,
        led: dict[SeriesKey, LocalFlight],
        deadline: Deadline,
        trace: FetchTrace,
        progress: Progress | None,
        on_stored: OnStored | None,
    ) -> None:
        """Claim the led series in the store, walk those we got, wait for the others' processes.

        Threads of this process that want the same series wait for us all the while, so that one
        of them polls the store and not all.
        """
        shared: MarketDataError | None = None
        try:
            ticket = self._flights.board(list(led), fetch.span, LEASE)
            pause_point(FLIGHT_CLAIMED)
            try:
                mine = self._still_missing(fetch, ticket.led)
                if mine:
                    trace.walks += 1
                    self._walk(fetch, mine, ticket, deadline, trace, progress, on_stored)
            except MarketDataError as error:
                shared = None if _is_private(error, deadline) else error
                raise
            finally:
                pause_point(BEFORE_LANDING)
                land(self._flights, ticket, shared)
                pause_point(LANDED)
                self._local.land({k: led[k] for k in ticket.led}, shared)
            self._wait_elsewhere(fetch, dict(ticket.others), deadline, trace)
        except MarketDataError as error:
            shared = None if _is_private(error, deadline) else error
            raise
        finally:
            self._local.land(led, shared)

    def _still_missing(
        self, fetch: Fetch, keys: Sequence[SeriesKey]
    ) -> dict[SeriesKey, SeriesState]:
        """Look again now that the flight is ours: somebody may have landed just before."""
        if not keys:
            return {}
        states = self._tiers.store.states(keys)
        if fetch.again:
            return {key: states[key] for key in keys}
        calendar = self._tiers.calendar()
        hours = planning.stored_hours(fetch.base)

        @remembered
        def any_trading(holes: tuple[Span, ...]) -> bool:
            return any(calendar.trading_spans(hole, hours) for hole in holes)

        return {
            key: states[key]
            for key in keys
            if any_trading(tuple(subtract([fetch.span], states[key].coverage)))
        }

    # ------------------------------------------------------------------------------- walking

    def _walk(
        self,
        fetch: Fetch,
        states: Mapping[SeriesKey, SeriesState],
        ticket: FlightTicket,
        deadline: Deadline,
        trace: FetchTrace,
        progress: Progress | None,
        on_stored: OnStored | None,
    ) -> None:
        keeper = PageKeeper(self._tiers, fetch, states, deadline, trace, on_stored)
        symbols = tuple(sorted(key.symbol for key in states))
        request = BarsRequest(symbols, fetch.base, fetch.span, next(iter(states)).feed)
        pages = kept = 0
        try:
            with KeptAlive(self._flights, ticket):
                for page in self._tiers.broker.pages(request, deadline):
                    kept += keeper.keep(page)
                    pause_point(PAGE_KEPT)
                    pages += 1
                    trace.pages += 1
                    if progress is not None:
                        progress(trace)
                    if deadline.expired and not keeper.finished:
                        raise BrokerTimeoutError(f"the call's {deadline.seconds:g} s are over")
        except BrokerTimeoutError as error:
            raise _say_what_was_kept(error, fetch, pages, kept) from error
        trace.fetched.update(states)
        trace.longest = max(trace.longest, fetch.span.end - fetch.span.start)

    # ------------------------------------------------------------------------------- waiting

    def _wait_locally(
        self,
        fetch: Fetch,
        others: Mapping[SeriesKey, LocalFlight],
        deadline: Deadline,
        trace: FetchTrace,
    ) -> None:
        for flight in {id(f): f for f in others.values()}.values():
            trace.waited += 1
            outcome = self._local.wait(flight, deadline)
            if outcome is None:
                raise _waited_too_long(fetch, deadline)
            _raise_if_ours(outcome, fetch, deadline)

    def _wait_elsewhere(
        self, fetch: Fetch, flights: dict[SeriesKey, str], deadline: Deadline, trace: FetchTrace
    ) -> None:
        pause = _POLL_FIRST
        while flights:
            ended = self._flights.outcome(flights)
            for key, outcome in ended.items():
                trace.waited += 1
                del flights[key]
                if not outcome.lost:
                    _raise_if_ours(outcome, fetch, deadline)
            if not flights:
                return
            if deadline.expired:
                raise _waited_too_long(fetch, deadline)
            time.sleep(deadline.cap(pause * random.uniform(0.8, 1.2)))
            pause = min(_POLL_MOST, pause * 1.5)


class KeptAlive:
    """Renews a flight's lease while its walk lasts: one request may wait for a rate limit longer
    than a lease, and a shorter lease lets others take over sooner from a process that died."""

    def __init__(self, flights: FlightLog, ticket: FlightTicket) -> None:
        self._flights = flights
        self._ticket = ticket
        self._over = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._renew, name="marketdata-flight", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _renew(self) -> None:
        while not self._over.wait(LEASE / 3):
            try:
                self._flights.renew(self._ticket, LEASE)
            except MarketDataError as failure:
                log.warning("flight %s not renewed: %s", self._ticket.id, failure)


def land(flights: FlightLog, ticket: FlightTicket, error: MarketDataError | None = None) -> None:
    """End a flight, whatever becomes of that: left alone, its lease runs out.

    Others, and our own next fetch, would wait for that: so a lost connection is met with another
    try or two, as long as these fail at once.
    """
    ends = time.monotonic() + _LANDING
    for attempt in count():
        try:
            flights.land(ticket, error)
        except MarketDataError as failure:
            pause = _POLL_FIRST * 4**attempt
            if failure.transient and time.monotonic() + pause < ends:
                time.sleep(pause)
                continue
            log.warning("flight %s not landed, its lease will run out: %s", ticket.id, failure)
        return


# --------------------------------------------------------------------------------------- errors


def _is_private(error: MarketDataError, deadline: Deadline) -> bool:
    """Whether those who waited start anew: the caller's own deadline cut the walk short, or the
    broker has just taught this process a longer delay."""
    learnt = isinstance(error, DataUnavailableError) and "settle_delay" in error.facts
    return learnt or is_private(error, deadline)


def _say_what_was_kept(
    error: BrokerTimeoutError, fetch: Fetch, pages: int, kept: int
) -> BrokerTimeoutError:
    told = BrokerTimeoutError(
        f"{error.message}; kept {pages} finished pages with {kept} bars",
        asked=_describe(fetch),
        cure="call again to go on from there, or give a longer timeout",
    )
    told.facts = {**error.facts, "pages_kept": pages, "bars_kept": kept}
    return told


def _waited_too_long(fetch: Fetch, deadline: Deadline) -> BrokerTimeoutError:
    return BrokerTimeoutError(
        f"another caller's fetch did not end within {deadline.seconds or 0:g} s",
        asked=_describe(fetch),
        cure="call again, or give a longer timeout",
        deadline=True,
    )


def _raise_if_ours(outcome: FlightOutcome, fetch: Fetch, deadline: Deadline) -> None:
    """Raise the error of the flight we waited for, where it concerns the span we wanted."""
    if outcome.error is None or _has_time_to_wait(outcome.error, deadline):
        return
    if outcome.span is None or intersect([outcome.span], [fetch.span]):
        raise as_other_waiter(outcome.error)


def _has_time_to_wait(error: MarketDataError, deadline: Deadline) -> bool:
    """Whether a spent budget, for which the other caller had no time, is worth our waiting."""
    if not isinstance(error, RateLimitError) or "status" in error.facts:
        return False
    wait = error.facts.get("retry_after")
    return isinstance(wait, int | float) and wait < deadline.remaining()


def _describe(fetch: Fetch) -> str:
    symbols = ", ".join(k.symbol for k in fetch.keys[:5])
    more = f" and {len(fetch.keys) - 5} more" if len(fetch.keys) > 5 else ""
    start, end = (from_micros(t).isoformat() for t in fetch.span)
    return f"{symbols}{more} {fetch.base} {start} to {end}"
