"""Reads the history that the live state of many series begins with, in bulk.

A series needs as much history as its indicators declare, without a hole in what is covered. One
that has less in the store is left out until it has: its values would depend on where the store happens
to begin.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import batched
from typing import TYPE_CHECKING, Final

import numpy as np

from marketdata import caching, planning, resample
from marketdata.adjust import adjust_bars
from marketdata.clock import Deadline
from marketdata.corporate_actions import splits_of
from marketdata.errors import BrokerError, DataUnavailableError
from marketdata.indicator_codec import CAPACITY
from marketdata.indicator_reading import WarmReader
from marketdata.protocols import ReadRequest, SeriesState
from marketdata.queries import BarsQuery
from marketdata.ranges import Window
from marketdata.spans import Span
from marketdata.types import DAY, Bars, SeriesKey, Split, Timeframe

if TYPE_CHECKING:
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.indicators")

_BARS_AT_ONCE: Final = 1_000_000
"""Stored bars of one batch: 64 MB."""
_ROUNDS: Final = 4


@dataclass(frozen=True, slots=True)
class Seed:
    """The history of one series, from the store at one revision."""

    key: SeriesKey
    bars: Bars
    """Closed bars of regular hours, split-adjusted, without a hole."""
    first: int
    """Index of the first bar with enough history before it."""
    revision: int
    covered_until: int
    fetched_us: int | None


class Seeder:
    """Reads the history that live state begins with."""

    def __init__(self, runtime: Runtime, needed: Mapping[Timeframe, int]) -> None:
        self._runtime = runtime
        self._needed = needed
        self._bases: dict[tuple[str, Timeframe], Timeframe] = {}

    def seeds(
        self,
        keys: Sequence[SeriesKey],
        splits: Mapping[str, Sequence[Split]],
        whole: frozenset[SeriesKey] = frozenset(),
    ) -> Iterator[Seed]:
        """Yield the history of each of `keys` that has enough of it.

        Parameters
        ----------
        keys : sequence of SeriesKey
            In the timeframe of the values, which may derive from the stored one.
        splits : mapping
            Of each symbol.
        whole : set of SeriesKey
            Series of which every stored bar is wanted.

        Raises
        ------
        StoreError
            PostgreSQL failed; a retry can help.
        """
        keys = [key for key in keys if not self._reaches_back(key)]
        batches = [
            list(batch)
            for timeframe in sorted({k.timeframe for k in keys})
            for wanted in (False, True)
            for batch in batched(
                [k for k in keys if k.timeframe is timeframe and (k in whole) is wanted],
                self._batch_size(timeframe, wanted),
            )
        ]
        if not batches:
            return
        # The next batch is read while this one is computed.
        with ThreadPoolExecutor(1, "marketdata-seeding") as ahead:
            coming = ahead.submit(self._read, batches[0], splits, whole)
            for following in [*batches[1:], None]:
                found = coming.result()
                if following is not None:
                    coming = ahead.submit(self._read, following, splits, whole)
                yield from found

    def read_through(
        self, keys: Sequence[SeriesKey], splits: Mapping[str, Sequence[Split]]
    ) -> list[Seed]:
        """Return the history of `keys`, all of one timeframe, as a call for bars reads it: what is
        not stored is fetched. Left out is what the broker does not give, and what knows other
        splits meanwhile.

        Raises
        ------
        StoreError
            PostgreSQL failed; a retry can help.
        """
        runtime, key = self._runtime, keys[0]
        caps = runtime.broker.capabilities(key.feed)
        if len(caps.bases[key.timeframe]) > 1:
            return []  # no single revision stands for values from several stored series
        window = Window(None, runtime.clock.now_us(), CAPACITY)
        query = BarsQuery(
            key.provider,
            key.feed,
            tuple(each.symbol for each in keys),
            key.timeframe,
            window,
            "regular",
            runtime.settings.max_lookback * DAY,
        )
        needed, deadline = self._needed[key.timeframe], Deadline(runtime.settings.timeout)
        try:
            warmed = WarmReader(runtime.links[0]).read(
                query, needed, lambda asked: runtime.reader.read(asked, deadline), deadline
            )
            applied = runtime.adjuster.adjust(query, warmed.answer, window.end, deadline, "split")
        except (BrokerError, DataUnavailableError) as error:
            log.warning("no history for indicators of %d series: %s", len(keys), error)
            return []
        base = self.base_of(key).timeframe
        end = caching.newest_end(query, base, caps, runtime.calendar(), window.end)
        seeds = []
        for symbol, series in warmed.answer.series.items():
            bars = series.bars.within(Span(-(2**62), end))
            settled = len(bars) > 0 and symbol not in warmed.unstabilised
            if settled and splits_of(applied.in_effect[symbol]) == list(splits[symbol]):
                # With less before it than needed, the first bar is the series' own.
                first = needed if warmed.first[symbol] >= needed else 0
                seeds.append(
                    Seed(query.key(symbol), bars, first, series.revision, end, series.fetched_us)
                )
        return seeds

    def base_of(self, key: SeriesKey) -> SeriesKey:
        """Return the stored series that bars of `key` come from."""
        base = self._bases.get((key.feed, key.timeframe))
        if base is None:
            caps = self._runtime.broker.capabilities(key.feed)
            base = self._bases[key.feed, key.timeframe] = caps.bases[key.timeframe][0].base
        return key if base is key.timeframe else key.with_timeframe(base)

    def began_within(self, key: SeriesKey, label: int) -> bool:
        """Whether a renamed instrument got its symbol inside the bar labelled `label`, or after it:
        days before that are under another symbol."""
        begins = self._symbol_begins(key)
        if begins is None:
            return False
        return resample.bar_span(label, key.timeframe, self._runtime.calendar()).start < begins

    def _reaches_back(self, key: SeriesKey) -> bool:
        """Whether the history that values rest on began under another symbol: then it is read as a
        call for bars reads it."""
        begins = self._symbol_begins(key)
        if begins is None:
            return False
        calendar, now_us = self._runtime.calendar(), self._runtime.clock.now_us()
        bars = self._needed[key.timeframe] + CAPACITY
        return planning.limit_start(key.timeframe, now_us, bars, "regular", calendar) < begins

    def _symbol_begins(self, key: SeriesKey) -> int | None:
        """Return since when a symbol means what it means, if that has ever changed."""
        lineage = self._runtime.identities.changed(key.provider, [key.symbol]).get(key.symbol)
        if lineage is None:
            return None
        mine = [piece for piece in lineage.pieces if piece.symbol == key.symbol]
        return mine[-1].span.start if mine else None

    def _batch_size(self, timeframe: Timeframe, whole: bool) -> int:
        if whole:
            return 50
        bars = self._needed[timeframe] + CAPACITY
        if timeframe.intraday:
            # Stored with extended hours: 960 minutes for 390 regular ones.
            bars = bars * max(1, timeframe.step // (60 * 1_000_000)) * 5 // 2
        return max(1, _BARS_AT_ONCE // bars)

    def _read(
        self,
        keys: Sequence[SeriesKey],
        splits: Mapping[str, Sequence[Split]],
        whole: frozenset[SeriesKey],
    ) -> list[Seed]:
        """Read a batch of one timeframe; those too sparse for the window again, further back."""
        calendar = self._runtime.calendar()
        timeframe = keys[0].timeframe
        base = self.base_of(keys[0]).timeframe
        caps = self._runtime.broker.capabilities(keys[0].feed)
        edge = planning.frontier(calendar, base, caps, self._runtime.clock.now_us())
        closed = edge
        if base is not timeframe:
            closed = planning.closed_labels(calendar, timeframe, edge)
        bars = self._needed[timeframe] + CAPACITY
        start = planning.limit_start(timeframe, closed, bars, "regular", calendar)
        if keys[0] in whole:
            start = calendar.first
        found: list[Seed] = []
        rest = list(keys)
        for _ in range(_ROUNDS):
            span = Span(start, edge)
            if base is not timeframe:
                needed = resample.base_span(Span(start, closed), timeframe, calendar)
                span = Span(needed.start, edge)
            read = self._runtime.store.read([ReadRequest(self.base_of(k), span) for k in rest])
            short: list[SeriesKey] = []
            fewest = bars
            for key in rest:
                state, stored = read[self.base_of(key)]
                seed = self._seed(key, state, stored, span, splits.get(key.symbol, ()))
                if seed is not None and len(seed.bars) > seed.first:
                    found.append(seed)
                elif state.coverage and state.coverage[-1].start < span.start:
                    short.append(key)
                    fewest = min(fewest, 0 if seed is None else len(seed.bars))
            if not short or start <= calendar.first:
                break
            rest = short
            start = planning.wider_start(
                timeframe,
                Span(start, closed),
                fewest,
                bars,
                "regular",
                self._runtime.settings.max_lookback * DAY,
                calendar,
            )
        return found

    def _seed(
        self, key: SeriesKey, state: SeriesState, stored: Bars, span: Span, splits: Sequence[Split]
    ) -> Seed | None:
        """Return the history after the last hole in what is covered, as bars of the timeframe."""
        if not state.coverage:
            return None
        calendar = self._runtime.calendar()
        base = self.base_of(key).timeframe
        held = state.coverage[-1]
        edge = min(span.end, held.end)
        begin = max(span.start, held.start)
        bars = adjust_bars(stored.within(Span(begin, edge)), splits)
        closed = edge
        if base is not key.timeframe:
            closed = planning.closed_labels(calendar, key.timeframe, edge)
            bars = resample.resample(bars, base, key.timeframe, calendar, "regular")
            bars = _whole_bins(bars, begin, closed)
        elif base.intraday and len(bars):
            runs = calendar.runs(bars.timestamp, "regular")
            bars = Bars.concat([bars_between(bars, a, b) for a, b in runs if a < b])
        first = self._needed[key.timeframe]
        if self._begins(held.start, span.start):
            first = 0
        return Seed(key, bars, first, state.revision, closed, state.fetched_us)

    def _begins(self, covered: int, read: int) -> bool:
        """Whether what is covered and read reaches back to where any series begins."""
        runtime = self._runtime
        caps = runtime.broker.capabilities(runtime.source.feed)
        calendar = runtime.calendar()
        bound = max(caps.earliest, calendar.first)
        lookback = runtime.clock.now_us() - runtime.settings.max_lookback * DAY
        return max(covered, read) <= max(bound, lookback)


def bars_between(bars: Bars, low: int, high: int) -> Bars:
    """Return the bars at positions ``[low, high)``, as views."""
    return Bars(bars.timestamp[low:high], bars.values[:, low:high])


def _whole_bins(bars: Bars, begin: int, closed: int) -> Bars:
    """Leave out a first bin that began before what was read, and those that are not closed."""
    low = int(len(bars) > 0 and int(bars.timestamp[0]) < begin)
    return bars_between(bars, low, int(np.searchsorted(bars.timestamp, closed)))
