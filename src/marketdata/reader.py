"""The read-through loop: executes what `planning` decides, tier by tier.

The life of one read, top to bottom:

1. `Reader.read` asks the cache for every series in one round trip and keeps the blocks that cover
   the window (`_from_cache`).
2. For the rest it asks the store what it covers, plans, fetches the gaps (`fetching`), and plans
   again until nothing is missing (`_fill`).
3. It reads bars and coverage from one snapshot of the store (`_from_store`), derives coarser
   timeframes, writes the newest bars back to the cache (`caching`), and answers.

Series that hold fewer bars than a ``limit`` asks for go round again with a wider window.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from marketdata import caching, planning, resample
from marketdata.calendars import TradingCalendar
from marketdata.clock import Clock, Deadline, from_micros
from marketdata.errors import DataUnavailableError, StoreError
from marketdata.fetching import Fetcher, Progress
from marketdata.keeping import FetchTrace
from marketdata.planning import Segment, Segments
from marketdata.protocols import BarCache, BarStore, Broker, ReadRequest, SeriesState
from marketdata.queries import BarsQuery, select
from marketdata.spans import Span
from marketdata.types import DAY, Bars, SeriesKey
from marketdata.verdicts import Verdicts

log = logging.getLogger("marketdata.reader")

_MOST_ROUNDS: Final = 12

States = Mapping[SeriesKey, SeriesState]


@dataclass(slots=True)
class SeriesAnswer:
    """Closed bars of one symbol, with where they came from."""

    bars: Bars
    tier: str
    """``redis``, ``postgres`` or ``broker``: the lowest tier that had to be asked."""
    revision: int
    fetched_us: int | None = None
    """Market time at which the broker last answered for this series, where that is known."""
    truncated: bool = False


@dataclass(slots=True)
class Answer:
    """What one read found."""

    series: dict[str, SeriesAnswer] = field(default_factory=dict)
    trace: FetchTrace = field(default_factory=FetchTrace)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Call:
    """One read under way."""

    query: BarsQuery
    now_us: int
    deadline: Deadline
    progress: Progress | None
    answer: Answer

    def known(self, spans: Mapping[str, Span]) -> dict[str, Span]:
        """Leave out symbols found unknown meanwhile."""
        unknown = {*self.answer.unknown, *self.answer.trace.unknown}
        return {s: span for s, span in spans.items() if s not in unknown}


@dataclass(frozen=True, slots=True)
class _Filled:
    """What is asked of the store once nothing is missing from it."""

    spans: Mapping[str, Span]
    plans: Mapping[str, Sequence[Segment]]
    states: States


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

    def read(
        self, query: BarsQuery, deadline: Deadline, progress: Progress | None = None
    ) -> Answer:
        """Return the closed bars of `query`.

        Raises
        ------
        BrokerError, DataUnavailableError, StoreError
            A gap could not be fetched; what finished pages proved is stored, so that a retry
            goes on from there.
        """
        call = _Call(query, self._clock.now_us(), deadline, progress, Answer())
        rest = self._from_cache(call)
        if rest:
            call.answer.unknown += self._verdicts.remembered_unknown(rest)
            self._through_store(call, rest)
        return call.answer

    # --------------------------------------------------------------------------------- cache

    def _from_cache(self, call: _Call) -> list[str]:
        """Take what the cache covers into the answer; return the symbols it does not."""
        query = call.query
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
        spans = self.planned_spans(call.query, symbols, call.now_us)
        while spans:
            filled = self._fill(call, spans)
            if self._from_store(call, filled):
                spans = self._wider(call, filled.spans)
            else:
                spans = dict(filled.spans)

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
            if len(found.bars) >= window.limit or span.start == window.start:
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
        return wider

    # ---------------------------------------------------------------------------- filling gaps

    def states(self, query: BarsQuery, symbols: Sequence[str]) -> dict[SeriesKey, SeriesState]:
        """Return the states of every stored series that may answer `query`."""
        caps = self._broker.capabilities(query.feed)
        bases = {option.base for option in caps.bases[query.timeframe]}
        return self._store.states(
            [query.key(s).with_timeframe(base) for s in symbols for base in bases]
        )

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

    def _fill(self, call: _Call, spans: Mapping[str, Span]) -> _Filled:
        """Plan and fetch until nothing asked is missing; return the plan that then holds."""
        query, trace = call.query, call.answer.trace
        delay = self._settle_delay(query)
        rounds = 0
        while rounds < _MOST_ROUNDS:
            if delay != self._settle_delay(query):
                # Learnt meanwhile: the newest bars are older than thought, and a limit counts back
                # from those.
                delay = self._settle_delay(query)
                spans = self.planned_spans(query, list(spans), call.now_us)
            spans = call.known(spans)
            states = self.states(query, list(spans))
            plans = self._plans(call, spans, states)
            missing = self._missing(query, plans, states)
            if not missing:
                call.answer.unknown = sorted({*call.answer.unknown, *trace.unknown})
                return _Filled(spans, plans, states)
            walks = trace.walks
            self._fetch(call, missing)
            # A round that only waited for other callers proves nothing: the deadline bounds those.
            rounds += trace.walks > walks
        raise StoreError(
            "coverage does not grow although the broker answers",
            asked=str(query.key(query.symbols[0])),
            cure="this is a defect: please report it with the output of marketdata explain",
        )

    def _settle_delay(self, query: BarsQuery) -> int:
        return self._broker.capabilities(query.feed).settle_delay

    def _plans(
        self, call: _Call, spans: Mapping[str, Span], states: States
    ) -> dict[str, list[Segment]]:
        query = call.query
        plans: dict[str, list[Segment]] = {}
        for symbol, span in spans.items():
            plan = self.segments(query, symbol, span, states, call.now_us)
            if plan.too_old and query.window.limit is None:
                raise self._too_old(query, symbol, plan.too_old[0])
            plans[symbol] = plan.parts
        return plans

    def _missing(
        self, query: BarsQuery, plans: Mapping[str, Sequence[Segment]], states: States
    ) -> dict[SeriesKey, list[Span]]:
        calendar = self._calendar()
        missing: dict[SeriesKey, list[Span]] = {}
        for symbol, parts in plans.items():
            for part in parts:
                key = query.key(symbol).with_timeframe(part.base)
                if holes := planning.gaps(part.asked, states[key], calendar, part.base):
                    missing.setdefault(key, []).extend(holes)
        return missing

    def _fetch(self, call: _Call, missing: Mapping[SeriesKey, Sequence[Span]]) -> None:
        feed = call.query.feed
        caps = self._broker.capabilities(feed)
        try:
            for fetch in planning.fetches(missing, caps):
                self._fetcher.fetch(fetch, call.deadline, call.answer.trace, call.progress)
        except DataUnavailableError as error:
            # The broker has just taught us a longer delay: plan again up to the new frontier.
            if self._broker.capabilities(feed).settle_delay <= caps.settle_delay:
                raise
            log.info("planning again: %s", error)

    def _too_old(self, query: BarsQuery, symbol: str, span: Span) -> DataUnavailableError:
        options = self._broker.capabilities(query.feed).bases[query.timeframe]
        days = max((o.max_age for o in options if o.max_age is not None), default=0) // DAY
        return DataUnavailableError(
            f"{query.provider} gives {query.timeframe} bars of the last {days} days only, and "
            f"{symbol} before {from_micros(span.end).date()} is not stored",
            asked=f"{symbol} {query.timeframe} from {from_micros(span.start).date()}",
            cure="ask for a coarser timeframe, or for a later start",
        )

    # ------------------------------------------------------------------------- reading stored

    def _from_store(self, call: _Call, filled: _Filled) -> bool:
        """Read every symbol's segments from one snapshot, derive, filter, and fill the cache.

        Return False, and answer nothing, where that snapshot covers less than was planned with:
        what is too old, or damaged, may be dropped at any time.
        """
        query = call.query
        requests = self._read_requests(query, filled.plans, filled.states)
        read = {request.key: request.span for request in requests}
        found = self._store.read(requests)
        if self._has_shrunk(query, filled, {key: state for key, (state, _) in found.items()}):
            return False
        newest = caching.NewestBlocks(
            query, self._broker.capabilities(query.feed), self._calendar(), call.now_us
        )
        for symbol, parts in filled.plans.items():
            keys = [query.key(symbol).with_timeframe(part.base) for part in parts]
            pieces = []
            for part, key in zip(parts, keys, strict=True):
                state, bars = found[key]
                bars = self._derived(query, part, bars)
                pieces.append(newest.take(query.key(symbol), part, state, bars, read[key]))
            known = [found[k][0] for k in keys]
            call.answer.series[symbol] = SeriesAnswer(
                select(Bars.concat(pieces), query, self._calendar()),
                "broker" if call.answer.trace.fetched.intersection(keys) else "postgres",
                max((s.revision for s in known), default=0),
                max((s.fetched_us for s in known if s.fetched_us), default=None),
            )
        newest.put(self._cache)
        return True

    def _has_shrunk(self, query: BarsQuery, filled: _Filled, states: States) -> bool:
        """Whether something that was planned to be read is covered no longer."""
        changed = {
            symbol: parts
            for symbol, parts in filled.plans.items()
            for part in parts
            if (key := query.key(symbol).with_timeframe(part.base)) in states
            and states[key].coverage != filled.states[key].coverage
        }
        return bool(changed) and bool(self._missing(query, changed, {**filled.states, **states}))

    def _read_requests(
        self, query: BarsQuery, plans: Mapping[str, Sequence[Segment]], states: States
    ) -> list[ReadRequest]:
        """Return one request a stored series: all its segments, widened to a whole cache block
        where they are the newest."""
        wanted: dict[SeriesKey, Span] = {}
        for symbol, parts in plans.items():
            for part in parts:
                key = query.key(symbol).with_timeframe(part.base)
                span = caching.block_span(query, part, states[key], self._calendar())
                held = wanted.get(key, span)
                wanted[key] = Span(min(span.start, held.start), max(span.end, held.end))
        return [ReadRequest(key, span) for key, span in wanted.items()]

    def _derived(self, query: BarsQuery, part: Segment, bars: Bars) -> Bars:
        if part.base is query.timeframe:
            return bars
        # Regular bins are among the extended ones, so one cached block serves both sessions.
        return resample.resample(bars, part.base, query.timeframe, self._calendar(), "extended")
