"""The read-through loop: executes what `planning` decides, tier by tier.

The life of one read, top to bottom:

1. `Reader.read` asks the cache for every series in one round trip and keeps the blocks that cover
   the window (`_from_cache`).
2. For the rest it asks the store what it covers, plans, fetches the gaps (`fetching`), and plans
   again until nothing is missing; then the bars come from the same snapshot of the store (`_fill`).
3. It derives coarser timeframes, writes the newest bars back to the cache (`stored_reading`), and
   answers.

Series that hold fewer bars than a ``limit`` asks for go round again with a wider window.

A query as of an earlier moment is a read of bars that had closed by then. It fetches what is
missing like any other, and leaves the cache alone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from marketdata import caching, planning
from marketdata.answers import Answer, SeriesAnswer, Tolerance
from marketdata.calendars import TradingCalendar
from marketdata.clock import Clock, Deadline, from_micros
from marketdata.errors import (
    BrokerError,
    BrokerResponseError,
    DataQualityError,
    DataUnavailableError,
    MarketDataError,
    StoreError,
)
from marketdata.fetching import Fetcher, Progress
from marketdata.planning import Segment, Segments
from marketdata.protocols import BarCache, BarStore, Broker, ReadRequest, SeriesState
from marketdata.queries import BarsQuery
from marketdata.spans import Span
from marketdata.stored_reading import Filled, States, StoredReader, missing_of
from marketdata.types import DAY, Bars, SeriesKey
from marketdata.verdicts import Verdicts

log = logging.getLogger("marketdata.reader")

_MOST_ROUNDS: Final = 12


@dataclass(frozen=True, slots=True)
class _Call:
    """One read under way."""

    query: BarsQuery
    now_us: int
    deadline: Deadline
    progress: Progress | None
    answer: Answer
    tolerance: Tolerance | None = None
    lost: dict[SeriesKey, MarketDataError] = field(default_factory=dict)
    """Series whose fetch has just failed, in a tolerant read."""
    short: dict[str, MarketDataError] = field(default_factory=dict)
    """Symbols whose bars are cut where the broker's reach ends, in a tolerant read."""

    def known(self, spans: Mapping[str, Span]) -> dict[str, Span]:
        """Leave out symbols found unknown meanwhile, or not to be had."""
        out = {*self.answer.unknown, *self.answer.trace.unknown, *self.answer.failed}
        return {s: span for s, span in spans.items() if s not in out}


@dataclass(slots=True)
class _Plan:
    """What the states of a moment mean for a read."""

    parts: dict[str, list[Segment]] = field(default_factory=dict)
    missing: Mapping[SeriesKey, Sequence[Span]] = field(default_factory=dict)
    requests: Sequence[ReadRequest] = ()
    """What is to be read; nothing unless all of it is covered."""
    learnt: bool = False
    """Whether the broker's settle delay was another one in the end."""
    failed: dict[str, MarketDataError] = field(default_factory=dict)
    """In a tolerant read, symbols of which the broker's reach ends too early."""
    short: dict[str, MarketDataError] = field(default_factory=dict)
    """The same where the last bars are asked for: see `_Call.short`."""


class Reader:
    """Answers `BarsQuery` from cache, store and broker; keeps what the broker gave."""

    def __init__(
        self,
        store: BarStore,
        cache: BarCache,
        broker: Broker,
        fetcher: Fetcher,
        verdicts: Verdicts,
        clock: Clock,
        calendar: Callable[[], TradingCalendar],
    ) -> None:
        self._store = store
        self._cache = cache
        self._broker = broker
        self._fetcher = fetcher
        self._verdicts = verdicts
        self._clock = clock
        self._calendar = calendar
        self._selections = caching.Selections()
        self._stored = StoredReader(store, cache, broker, calendar)

    def read(
        self,
        query: BarsQuery,
        deadline: Deadline,
        progress: Progress | None = None,
        *,
        tolerance: Tolerance | None = None,
    ) -> Answer:
        """Return the closed bars of `query`.

        Parameters
        ----------
        tolerance : Tolerance, optional
            Leave out the symbols that the broker fails to supply, and name them in
            `Answer.failed`, for somebody else to be asked.

        Raises
        ------
        BrokerError, DataUnavailableError, StoreError
            A gap could not be fetched; what finished pages proved is stored, so that a retry
            goes on from there. Only the last of them from a tolerant read.
        """
        asked, query = query, self._closed_by_then(query)
        call = _Call(query, self._clock.now_us(), deadline, progress, Answer(), tolerance)
        if lacking := self._lacks(query):
            if tolerance is None:
                raise lacking
            call.answer.failed = dict.fromkeys(query.symbols, lacking)
            return call.answer
        rest = self._from_cache(call)
        if rest:
            call.answer.unknown += self._verdicts.remembered_unknown(rest)
            self._through_store(call, rest)
        if self._closed_by_then(asked) != query:  # a longer delay was learnt meanwhile
            return self.read(asked, deadline, progress, tolerance=tolerance)
        return call.answer

    def _closed_by_then(self, query: BarsQuery) -> BarsQuery:
        """Return a query as of an earlier moment for bars that had closed by then."""
        if query.as_of_us is None or self._lacks(query):
            return query
        caps = self._broker.capabilities(query.feed)
        base = caps.bases[query.timeframe][0].base
        end = caching.newest_end(query, base, caps, self._calendar(), query.as_of_us)
        return replace(query, window=replace(query.window, end=end, explicit_end=True))

    # --------------------------------------------------------------------------------- cache

    def _from_cache(self, call: _Call) -> list[str]:
        """Take what the cache covers into the answer; return the symbols it does not."""
        query = call.query
        if query.as_of_us is not None:
            return list(query.symbols)
        calendar = self._calendar()
        caps = self._broker.capabilities(query.feed)
        base = caps.bases[query.timeframe][0].base
        end = caching.newest_end(query, base, caps, calendar, call.now_us)
        keys = [query.key(s) for s in query.symbols]
        blocks = self._cache.get(keys, None if base is query.timeframe else base)
        rest: list[str] = []
        for key in keys:
            block = blocks.get(key)
            bars = None if block is None else self._selections.bars(query, block, end, calendar)
            if block is None or bars is None:
                rest.append(key.symbol)
            else:
                call.answer.series[key.symbol] = SeriesAnswer(
                    bars, "redis", block.revision, block.fetched_us
                )
        return rest

    # --------------------------------------------------------------------------------- store

    def _through_store(self, call: _Call, symbols: Sequence[str]) -> None:
        """Fill gaps, read, and widen the window of series that hold too few bars."""
        # Before planning: another thread may be taught a longer delay at any moment.
        delay = self._settle_delay(call.query)
        spans = self.planned_spans(call.query, symbols, call.now_us)
        while spans:
            filled = self._fill(call, spans, delay)
            delay = filled.delay
            if self._stored.answer(call.query, call.now_us, filled, call.answer):
                spans = self._wider(call, filled.spans)
            else:
                spans = dict(filled.spans)
            del filled  # and its bars, before others are read

    def planned_spans(
        self, query: BarsQuery, symbols: Sequence[str], now_us: int
    ) -> dict[str, Span]:
        """Return the labels each symbol is first asked for."""
        window = query.window
        caps = self._broker.capabilities(query.feed)
        calendar = self._calendar()
        start = window.start
        if window.limit is not None:
            base = caps.bases[query.timeframe][0].base
            end = caching.newest_end(query, base, caps, calendar, now_us)
            back = planning.limit_start(query.timeframe, end, window.limit, query.session, calendar)
            start = back if start is None else max(start, back)
        assert start is not None, "a window has a start or a limit"
        start = max(start, min(self._earliest(query), window.end))
        return dict.fromkeys(symbols, Span(start, window.end))

    def _earliest(self, query: BarsQuery) -> int:
        return max(self._broker.capabilities(query.feed).earliest, self._calendar().first)

    def _wider(self, call: _Call, spans: Mapping[str, Span]) -> dict[str, Span]:
        """Return wider spans for the series that came out short of the limit; mark the ones that
        cannot be widened as truncated. Each is at least four times as long: there are few."""
        query, window = call.query, call.query.window
        if window.limit is None:
            return {}
        bound = self._earliest(query) if window.start is None else window.start
        wider: dict[str, Span] = {}
        for symbol, span in spans.items():
            found = call.answer.series[symbol]
            if len(found.bars) >= window.limit:
                continue
            if span.start == window.start:
                self._note_short(call, symbol)
                continue
            start = planning.wider_start(
                query.timeframe,
                span,
                len(found.bars),
                window.limit,
                query.session,
                query.max_lookback,
                self._calendar(),
            )
            start = max(start, bound)
            if start < span.start:
                wider[symbol] = Span(start, span.end)
            else:
                found.truncated = True
                self._note_short(call, symbol)
        return wider

    def _note_short(self, call: _Call, symbol: str) -> None:
        if symbol in call.short:
            call.answer.failed[symbol] = call.short[symbol]

    # ---------------------------------------------------------------------------- filling gaps

    def states(self, query: BarsQuery, symbols: Sequence[str]) -> dict[SeriesKey, SeriesState]:
        """Return the states of every stored series that may answer `query`."""
        return self._store.states(self._keys(query, symbols))

    def _keys(self, query: BarsQuery, symbols: Iterable[str]) -> list[SeriesKey]:
        caps = self._broker.capabilities(query.feed)
        bases = {option.base for option in caps.bases[query.timeframe]}
        return [query.key(s).with_timeframe(base) for s in symbols for base in bases]

    def covered(self, query: BarsQuery, symbols: Sequence[str]) -> list[str]:
        """Return those of `symbols` that need no broker, as far as coverage tells: a sparse series
        may still hold too few bars for a ``limit``."""
        if self._lacks(query):
            return []
        now_us = self._clock.now_us()
        states = self.states(query, symbols)
        plans = {
            symbol: self.segments(query, symbol, span, states, now_us)
            for symbol, span in self.planned_spans(query, symbols, now_us).items()
        }
        parts = {symbol: plan.parts for symbol, plan in plans.items() if not plan.too_old}
        missing = {key.symbol for key in missing_of(query, parts, states, self._calendar())}
        return [symbol for symbol in parts if symbol not in missing]

    def segments(
        self, query: BarsQuery, symbol: str, span: Span, states: States, now_us: int
    ) -> Segments:
        """Return which stored series answer `span` of one symbol."""
        key = query.key(symbol)
        return planning.segments(
            query.timeframe,
            span,
            self._broker.capabilities(query.feed),
            self._calendar(),
            now_us,
            lambda base: states[key.with_timeframe(base)].coverage,
        )

    def _fill(self, call: _Call, spans: Mapping[str, Span], delay: int) -> Filled:
        """Plan and fetch until nothing asked is missing; return the plan that then holds, with its
        bars. `delay` is the settle delay by which `spans` were planned."""
        query, trace = call.query, call.answer.trace
        rounds = 0
        while rounds < _MOST_ROUNDS:
            if delay != self._settle_delay(query):
                # Learnt meanwhile: the newest bars are older than thought, and a limit counts back
                # from those.
                delay = self._settle_delay(query)
                spans = self.planned_spans(query, list(spans), call.now_us)
            spans = call.known(spans)
            plan, states, bars = self._planned(call, spans, delay)
            if plan.learnt:
                continue  # spans and plans are to be of one delay
            call.answer.failed |= plan.failed
            call.short.update(plan.short)
            missing = plan.missing
            lost = {key.symbol: call.lost[key] for key in missing if key in call.lost}
            call.lost.clear()
            if lost:
                call.answer.failed |= lost
                continue
            if not missing:
                call.answer.unknown = sorted({*call.answer.unknown, *trace.unknown})
                return Filled(spans, plan.parts, states, plan.requests, bars, delay)
            walks = trace.walks
            self._fetch(call, missing, delay)
            # A round that only waited for other callers proves nothing: the deadline bounds those.
            rounds += trace.walks > walks
        raise StoreError(
            "coverage does not grow although the broker answers",
            asked=str(query.key(query.symbols[0])),
            cure="this is a defect: please report it with the output of marketdata explain",
        )

    def _planned(
        self, call: _Call, spans: Mapping[str, Span], delay: int
    ) -> tuple[_Plan, States, dict[SeriesKey, Bars]]:
        """Plan by what the store covers, and if nothing is missing read it in the same transaction:
        whoever drops bars afterwards is too late for this read."""
        made = _Plan()  # of no symbols

        def plan(states: States) -> Sequence[ReadRequest]:
            nonlocal made
            made = self._plan(call, spans, states, delay)
            return made.requests

        states, bars = self._store.read_planned(self._keys(call.query, spans), plan)
        return made, states, bars

    def _plan(self, call: _Call, spans: Mapping[str, Span], states: States, delay: int) -> _Plan:
        """Changes nothing of `call`: a transaction that is repeated plans anew."""
        query, plan = call.query, _Plan()
        for symbol, span in spans.items():
            found = self.segments(query, symbol, span, states, call.now_us)
            if found.too_old and (call.tolerance or query.window.limit is None):
                error = self._too_old(query, symbol, found.too_old[0])
                if call.tolerance is None:
                    raise error
                if query.window.limit is None:
                    plan.failed[symbol] = error
                    continue
                plan.short[symbol] = error
            plan.parts[symbol] = found.parts
        plan.missing = missing_of(query, plan.parts, states, self._calendar())
        plan.learnt = delay != self._settle_delay(query)
        if not plan.missing and not plan.learnt:
            plan.requests = self._stored.requests(query, plan.parts, states)
        return plan

    def _settle_delay(self, query: BarsQuery) -> int:
        return self._broker.capabilities(query.feed).settle_delay

    def _fetch(self, call: _Call, missing: Mapping[SeriesKey, Sequence[Span]], delay: int) -> None:
        deadline = call.deadline
        caps = self._broker.capabilities(call.query.feed)
        if call.tolerance is not None:
            deadline, refused = call.tolerance.before_fetch(sorted({key.symbol for key in missing}))
            if refused:
                call.answer.failed |= refused
                return
        fetches = deque(planning.fetches(missing, caps))
        while fetches:
            fetch = fetches.popleft()
            try:
                self._fetcher.fetch(fetch, deadline, call.answer.trace, call.progress)
            except (BrokerError, DataUnavailableError, DataQualityError) as error:
                if self._settle_delay(call.query) > delay:
                    # The broker has taught us a longer delay since `missing` was planned: plan
                    # again up to the new frontier.
                    log.info("planning again: %s", error)
                    return
                if call.tolerance is None:
                    raise
                call.lost.update(dict.fromkeys(fetch.keys, error))
                if isinstance(error, BrokerError) and not isinstance(error, BrokerResponseError):
                    # It would fail at the others too, and each takes its time.
                    for other in fetches:
                        call.lost.update(dict.fromkeys(other.keys, error))
                    return

    def _lacks(self, query: BarsQuery) -> DataUnavailableError | None:
        """Return the error for a timeframe that the broker does not have at all."""
        if self._broker.capabilities(query.feed).bases.get(query.timeframe):
            return None
        return DataUnavailableError(
            f"{query.provider} has no {query.timeframe} bars",
            cure="ask for another timeframe, or another broker",
        )

    def _too_old(self, query: BarsQuery, symbol: str, span: Span) -> DataUnavailableError:
        options = self._broker.capabilities(query.feed).bases[query.timeframe]
        days = max((o.max_age for o in options if o.max_age is not None), default=0) // DAY
        return DataUnavailableError(
            f"{query.provider} gives {query.timeframe} bars of the last {days} days only, and "
            f"{symbol} before {from_micros(span.end).date()} is not stored",
            asked=f"{symbol} {query.timeframe} from {from_micros(span.start).date()}",
            cure="ask for a coarser timeframe, or for a later start",
        )
