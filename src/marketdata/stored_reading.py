"""The last step of a read: bars of stored series, derived and filtered.

What was read fills the cache. A query as of an earlier moment leaves it alone, and what was
observed later is replaced by what the trail says was there before (`bar_history`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from marketdata import bar_history, caching, planning, resample
from marketdata.answers import Answer, SeriesAnswer
from marketdata.bar_history import Resting, Trail
from marketdata.calendars import TradingCalendar
from marketdata.pausing import STORE_READ, pause_point
from marketdata.planning import Segment
from marketdata.protocols import BarCache, BarStore, Broker, ReadRequest, SeriesState
from marketdata.queries import BarsQuery, select
from marketdata.spans import Span
from marketdata.types import Bars, SeriesKey

States = Mapping[SeriesKey, SeriesState]


@dataclass(frozen=True, slots=True)
class Filled:
    """A plan from which nothing is missing, and the bars it asked of the store."""

    spans: Mapping[str, Span]
    plans: Mapping[str, Sequence[Segment]]
    states: States
    requests: Sequence[ReadRequest]
    bars: Mapping[SeriesKey, Bars]
    """Of each request, from the snapshot that told `states`."""
    delay: int
    """The broker's settle delay in microseconds, by which `spans` were planned."""


def missing_of(
    query: BarsQuery,
    plans: Mapping[str, Sequence[Segment]],
    states: States,
    calendar: TradingCalendar,
) -> dict[SeriesKey, list[Span]]:
    """Return what a plan needs and is not covered, by stored series."""
    missing: dict[SeriesKey, list[Span]] = {}
    for symbol, parts in plans.items():
        for part in parts:
            key = query.key(symbol).with_timeframe(part.base)
            if holes := planning.gaps(part.asked, states[key], calendar, part.base):
                missing.setdefault(key, []).extend(holes)
    return missing


class StoredReader:
    """Answers with what is stored, and leaves the newest of it in the cache."""

    def __init__(
        self,
        store: BarStore,
        cache: BarCache,
        broker: Broker,
        calendar: Callable[[], TradingCalendar],
    ) -> None:
        self._store = store
        self._cache = cache
        self._broker = broker
        self._calendar = calendar

    def answer(self, query: BarsQuery, now_us: int, filled: Filled, answer: Answer) -> bool:
        """Derive every symbol's bars from its segments, filter, and fill the cache; put the series
        into `answer`.

        Return False, and answer nothing, where bars are asked for as of an earlier moment and less
        of their trail is left than was planned with: what is too old, or damaged, may be dropped
        at any time.
        """
        read = {request.key: request.span for request in filled.requests}
        found = {key: (filled.states[key], bars) for key, bars in filled.bars.items()}
        trails: dict[SeriesKey, Trail] = {}
        if query.as_of_us is not None:
            trails = self._store.trail(filled.requests, query.as_of_us)
            # Retention drops trail and bars together: what had both before still has both.
            if self._has_shrunk(query, filled, self._store.states(list(found))):
                return False
            found = {
                key: (state, bar_history.as_of(bars, trails[key].entries, query.as_of_us))
                for key, (state, bars) in found.items()
            }
        newest = caching.NewestBlocks(
            query, self._broker.capabilities(query.feed), self._calendar(), now_us
        )
        for symbol, parts in filled.plans.items():
            keys = [query.key(symbol).with_timeframe(part.base) for part in parts]
            pieces = []
            for part, key in zip(parts, keys, strict=True):
                state, bars = found[key]
                bars = self._derived(query, part, bars)
                pieces.append(newest.take(query.key(symbol), part, state, bars, read[key]))
            known = [found[k][0] for k in keys]
            bars = select(Bars.concat(pieces), query, self._calendar())
            answer.series[symbol] = SeriesAnswer(
                bars,
                "broker" if answer.trace.fetched.intersection(keys) else "postgres",
                max((s.revision for s in known), default=0),
                max((s.fetched_us for s in known if s.fetched_us), default=None),
                resting=self._resting(query, parts, keys, found, trails, bars),
            )
        pause_point(STORE_READ)
        if query.as_of_us is None:
            newest.put(self._cache)
        return True

    def _resting(
        self,
        query: BarsQuery,
        parts: Sequence[Segment],
        keys: Sequence[SeriesKey],
        found: Mapping[SeriesKey, tuple[SeriesState, Bars]],
        trails: Mapping[SeriesKey, Trail],
        answered: Bars,
    ) -> Resting | None:
        """Return what the bars of one symbol rest on, in a read as of an earlier moment."""
        moment, window = query.as_of_us, query.window
        if moment is None:
            return None
        rests = [Resting(closed_until=window.end)]
        for part, key in zip(parts, keys, strict=True):
            labels = part.asked
            if len(answered):
                labels = Span(max(labels.start, int(answered.timestamp[0])), labels.end)
            stored = found[key][1].within(labels)
            if part.base.intraday:
                shown = replace(query, timeframe=part.base, window=replace(window, limit=None))
                stored = select(stored, shown, self._calendar())
            rests.append(
                bar_history.resting(trails[key], labels, stored.timestamp, moment, window.end)
            )
        return Resting.joined(rests)

    def _has_shrunk(self, query: BarsQuery, filled: Filled, states: States) -> bool:
        """Whether something that was planned to be read is covered no longer."""
        changed = {
            symbol: parts
            for symbol, parts in filled.plans.items()
            for part in parts
            if (key := query.key(symbol).with_timeframe(part.base)) in states
            and states[key].coverage != filled.states[key].coverage
        }
        return bool(changed) and bool(
            missing_of(query, changed, {**filled.states, **states}, self._calendar())
        )

    def requests(
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
