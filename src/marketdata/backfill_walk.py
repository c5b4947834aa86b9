"""One chunk of a backfill: claimed, walked a page ahead, gathered, committed.

::

    Chunk -> flights in a lane of their own -> look again at coverage
          -> pages, asked for on a thread one page ahead of what is being stored
          -> quality gates -> whole series-months -> commits of bars and coverage
          -> land

A series' part of a chunk is committed once it is complete, so that sealed chunks are written once
and not merged page by page. Where a walk ends early, the whole sessions of what its pages proved
are committed too.

Live reads never wait for a backfill: its flights are in a lane of their own, which other backfills
see and reads do not. At worst both ask for the same month; what is stored is the same.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from marketdata import planning
from marketdata.backfill_pages import PagesAhead, WhileWanted
from marketdata.backfill_plan import Chunk, in_lanes
from marketdata.calendars import TradingCalendar
from marketdata.clock import Clock, Deadline
from marketdata.errors import DataQualityError, MarketDataError
from marketdata.fetching import LEASE, KeptAlive, land
from marketdata.planning import Fetch
from marketdata.protocols import (
    BarCache,
    BarsPage,
    BarsRequest,
    BarStore,
    Broker,
    Commit,
    FlightLog,
    FlightTicket,
)
from marketdata.quality import gate
from marketdata.spans import Span
from marketdata.types import Bars, SeriesKey
from marketdata.verdicts import Verdicts

log = logging.getLogger("marketdata.backfill")

SEALED_COMMIT: Final = 60_000
"""Bars a commit of sealed chunks gathers: three months of a busy series."""
ROW_COMMIT: Final = 25_000
"""Bars a commit of rows gathers: live commits of the same series wait for it."""
_LANE: Final = "#backfill"


@dataclass(slots=True)
class Tally:
    """What was stored of one series, beside what the calendar would have."""

    bars: int = 0
    sessions: int = 0
    """Sessions with a bar."""
    expected: int = 0
    """Sessions from the first bar of each part to the part's end."""
    first: int | None = None
    last: int | None = None
    empty: list[tuple[int, int]] = field(default_factory=list)
    """Parts without a bar: start, and number of sessions."""

    def add(self, bars: Bars, span: Span, calendar: TradingCalendar) -> None:
        """Count `bars`, all there are in `span`."""
        end = calendar.session_at(span.end - 1)
        if not len(bars):
            self.empty.append((span.start, end - calendar.session_at(span.start) + 1))
            return
        first, last = int(bars.timestamp[0]), int(bars.timestamp[-1])
        self.bars += len(bars)
        self.sessions += len(np.unique(calendar.session_index(bars.timestamp)))
        self.expected += end - calendar.session_at(first) + 1
        self._reach(first, last)

    def merge(self, other: Tally) -> None:
        """Add other parts of the same series."""
        self.bars += other.bars
        self.sessions += other.sessions
        self.expected += other.expected
        self.empty += other.empty
        if other.first is not None and other.last is not None:
            self._reach(other.first, other.last)

    def expected_sessions(self) -> int:
        """Return the sessions in which a bar would be expected: those of parts without any count
        after the first bar, for before it the symbol may not have been listed."""
        first = self.first
        if first is None:
            return 0
        return self.expected + sum(count for start, count in self.empty if start > first)

    def _reach(self, first: int, last: int) -> None:
        self.first = first if self.first is None else min(self.first, first)
        self.last = last if self.last is None else max(self.last, last)


@dataclass(slots=True)
class Walked:
    """What became of one chunk."""

    chunk: Chunk
    done: dict[SeriesKey, Tally] = field(default_factory=dict)
    """Series whose part is stored completely."""
    partly: dict[SeriesKey, Tally] = field(default_factory=dict)
    """Series of which whole sessions were stored before the walk ended."""
    already: list[SeriesKey] = field(default_factory=list)
    """Covered meanwhile by somebody else."""
    elsewhere: list[SeriesKey] = field(default_factory=list)
    """In flight in another backfill."""
    unknown: list[SeriesKey] = field(default_factory=list)
    """The broker says that there is no such symbol."""
    refused: dict[SeriesKey, str] = field(default_factory=dict)
    """The broker does not parse the symbol; its words."""
    rejected: Counter[str] = field(default_factory=Counter)
    pages: int = 0
    bars: int = 0
    cut: bool = False
    """Ended by a limit or a stop before its last page."""
    error: MarketDataError | None = None

    @property
    def left(self) -> list[SeriesKey]:
        """Return the series that still lack something of this chunk and can be asked again."""
        over = {*self.done, *self.already, *self.elsewhere, *self.unknown, *self.refused}
        return [key for key in self.chunk.fetch.keys if key not in over]


OnPage = Callable[[Walked], None]


class ChunkWalk:
    """Fetches chunks, one after the other.

    Parameters
    ----------
    store, flights, cache : ports
        Where bars go, who else is fetching, and whose blocks become stale.
    broker : Broker
        The one for background work.
    may_ask : callable
        Whether another page may be asked for: False ends the walk with what it has.
    in_haste : callable
        Whether that is not to wait for an answer which is under way.
    """

    def __init__(
        self,
        store: BarStore,
        flights: FlightLog,
        cache: BarCache,
        broker: Broker,
        verdicts: Verdicts,
        clock: Clock,
        calendar: Callable[[], TradingCalendar],
        may_ask: Callable[[], bool],
        in_haste: Callable[[], bool],
    ) -> None:
        self.store = store
        self.cache = cache
        self.broker = broker
        self.verdicts = verdicts
        self.clock = clock
        self.calendar = calendar
        self.known: set[str] = set()
        """Symbols that have had a bar: there is no need to ask whether they exist."""
        self._flights = flights
        self._may_ask = may_ask
        self._in_haste = in_haste

    def walk(self, chunk: Chunk, on_page: OnPage | None = None) -> Walked:
        """Fetch and store one chunk. A broker's error is returned with what was stored before it.

        Raises
        ------
        StoreError, ConfigurationError
            Nothing can be stored; a retry helps where the error is transient.
        """
        walked = Walked(chunk)
        ticket = self._flights.board(
            [_in_lane(key) for key in chunk.fetch.keys], chunk.fetch.span, LEASE
        )
        try:
            walked.elsewhere = [_out_of_lane(key) for key in ticket.others]
            mine = self._still_missing(chunk.fetch, [_out_of_lane(k) for k in ticket.led], walked)
            if mine:
                self._fetch(mine, ticket, walked, on_page)
        finally:
            if ticket.led:
                land(self._flights, ticket)
        return walked

    def _still_missing(
        self, fetch: Fetch, keys: Sequence[SeriesKey], walked: Walked
    ) -> list[SeriesKey]:
        """Look again now that the flight is ours: a read may have fetched some of it."""
        if not keys:
            return []
        calendar = self.calendar()
        states = self.store.states(keys)
        self.known |= {k.symbol for k, state in states.items() if state.first_bar is not None}
        missing = [k for k in keys if planning.gaps(fetch.span, states[k], calendar, fetch.base)]
        walked.already = [key for key in keys if key not in set(missing)]
        return missing

    def _fetch(
        self,
        keys: Sequence[SeriesKey],
        ticket: FlightTicket,
        walked: Walked,
        on_page: OnPage | None,
    ) -> None:
        fetch = walked.chunk.fetch
        gatherer = _Gatherer(self, walked, keys)
        over = threading.Event()
        symbols = sorted(key.symbol for key in keys)
        requests = [
            BarsRequest(tuple(part), fetch.base, fetch.span, keys[0].feed)
            for part in in_lanes(symbols, walked.chunk.lanes)
        ]
        walks = [self.broker.pages(request, WhileWanted(over)) for request in requests]
        pages = PagesAhead(walks, self._may_ask, self._in_haste, over)
        with KeptAlive(self._flights, ticket):
            try:
                for page in pages:
                    walked.pages += 1
                    gatherer.take(page)
                    if on_page is not None:
                        on_page(walked)
            except MarketDataError as error:
                # A store that refuses the bars of one series takes those of others.
                if not pages.failed and not isinstance(error, DataQualityError):
                    raise
                walked.error = error
            finally:
                over.set()
            walked.cut = pages.cut
            try:
                gatherer.finish()
            except DataQualityError as error:
                walked.error = walked.error or error
            if on_page is not None:
                on_page(walked)


class _Gatherer:
    """Gates pages, gathers whole series of a chunk, and commits them."""

    def __init__(self, walk: ChunkWalk, walked: Walked, keys: Sequence[SeriesKey]) -> None:
        self._walk = walk
        self._walked = walked
        self._fetch = walked.chunk.fetch
        self._keys = {key.symbol: key for key in keys}
        self._calendar = walk.calendar()
        self._observed = walk.clock.now_us()
        caps = walk.broker.capabilities(keys[0].feed)
        base = self._fetch.base
        self._edge = planning.frontier(self._calendar, base, caps, self._observed)
        delay = caps.settle_delay if base.intraday else caps.daily_settle_delay
        self._settled_now = self._observed - delay
        self._settling = planning.settling(self._calendar, base, self._observed)
        self._parts: dict[str, list[Bars]] = {}
        self._until: dict[str, int] = {}
        self._ready: list[tuple[Commit, Span, bool]] = []
        self._ready_bars = 0

    def take(self, page: BarsPage) -> None:
        """Gate a page; commit the series it completes, once they are enough."""
        walked, fetch = self._walked, self._fetch
        walked.rejected.update(page.rejected)
        for symbol, words in page.refused.items():
            if symbol in self._keys:
                walked.refused[self._keys[symbol]] = words
        for symbol, bars in page.bars.items():
            if symbol in self._keys:
                self._hold(symbol, bars)
        complete = []
        for symbol, proven in page.proven.items():
            if symbol in self._keys:
                self._until[symbol] = proven.end
                if proven.end >= fetch.span.end:
                    complete.append(symbol)
        unknown = self._unknown(complete)
        for symbol in complete:
            if symbol in unknown:
                walked.unknown.append(self._keys[symbol])
            else:
                self._add(symbol, fetch.span.end, whole=True)
        if self._ready_bars >= (SEALED_COMMIT if fetch.sealed else ROW_COMMIT):
            self._commit()

    def finish(self) -> None:
        """Commit what is complete, and the whole sessions of what is not."""
        for symbol, until in list(self._until.items()):
            if symbol in self._parts or until < self._fetch.span.end:
                self._add(symbol, self._whole_sessions(until), whole=False)
        self._commit()

    def _hold(self, symbol: str, bars: Bars) -> None:
        report = gate(
            bars,
            span=self._fetch.span,
            timeframe=self._fetch.base,
            calendar=self._calendar,
            now_us=self._edge,
        )
        if report.rejected:
            self._walked.rejected.update(report.rejected)
            log.warning("%s: rejected bars %s", self._keys[symbol], dict(report.rejected))
        if len(report.bars):
            self._parts.setdefault(symbol, []).append(report.bars)

    def _unknown(self, symbols: Sequence[str]) -> set[str]:
        """Ask about those that never had a bar; return what does not exist."""
        known = self._walk.known
        known |= self._parts.keys()
        doubtful = [s for s in symbols if s not in known]
        if not doubtful:
            return set()
        found = self._walk.verdicts.of(doubtful, Deadline(None))
        return {s for s, exists in found.items() if exists is False}

    def _whole_sessions(self, until: int) -> int:
        """Return the end of the last session that is wholly proven by `until`; for what is not
        sealed, `until`."""
        if not self._fetch.sealed:
            return until
        at = self._calendar.session_at(until)
        if at >= 0 and self._calendar.session_span(at, "extended").end > until:
            at -= 1
        return self._calendar.session_span(at, "extended").end if at >= 0 else until

    def _add(self, symbol: str, until: int, *, whole: bool) -> None:
        parts = self._parts.pop(symbol, [])
        self._until.pop(symbol, None)
        proven = Span(self._fetch.span.start, min(until, self._edge))
        if proven.empty:
            return
        covered = planning.recordable(
            proven, self._calendar, self._fetch.base, self._edge, self._settled_now
        )
        bars = Bars.concat(parts).within(proven)
        commit = Commit(
            key=self._keys[symbol],
            bars=bars,
            covered=covered,
            observed_us=self._observed,
            settled_until=self._settling.settled_until,
            final_until=self._settling.final_until,
            sealed=self._fetch.sealed,
        )
        self._ready.append((commit, proven, whole))
        self._ready_bars += len(bars)

    def _commit(self) -> None:
        if not self._ready:
            return
        ready, self._ready, self._ready_bars = self._ready, [], 0
        self._walk.store.commit(
            [commit for commit, _, _ in ready], before_commit=self._walk.cache.raise_floor
        )
        for commit, proven, whole in ready:
            tallies = self._walked.done if whole else self._walked.partly
            tallies.setdefault(commit.key, Tally()).add(commit.bars, proven, self._calendar)
            self._walked.bars += len(commit.bars)


def _in_lane(key: SeriesKey) -> SeriesKey:
    return key._replace(feed=key.feed + _LANE)


def _out_of_lane(key: SeriesKey) -> SeriesKey:
    return key._replace(feed=key.feed.removesuffix(_LANE))
