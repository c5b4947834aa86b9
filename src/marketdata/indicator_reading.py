"""Reads bars with the history that indicators need before them.

A value must not depend on the window it was asked in. So each read reaches back before its first
bar by what the indicators declare: look-back, and the bars after which an average has forgotten
where it began. A sparse series is walked back like a ``limit``. Where the provider, or what is
stored, reaches no further, values are marked as unstabilised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from marketdata import planning
from marketdata.answers import Answer, SeriesAnswer
from marketdata.bar_history import Resting
from marketdata.clock import Deadline
from marketdata.errors import DataUnavailableError
from marketdata.indicators import Indicator, history
from marketdata.queries import BarsQuery
from marketdata.ranges import Window
from marketdata.types import DAY, HOUR, MINUTE, Bars, Session, Timeframe

if TYPE_CHECKING:
    from marketdata.links import Link

Ask = Callable[[BarsQuery], Answer]

_NEAR: Final = 7 * DAY
"""A series whose first bar lies this close to the provider's reach may have begun before it."""
_PARTS: Final[dict[Session, tuple[int, ...]]] = {
    "regular": (390 * MINUTE,),
    "extended": (330 * MINUTE, 390 * MINUTE, 4 * HOUR),
}
"""The parts of a full session, in which bars are laid."""


@dataclass(slots=True)
class Warmed:
    """Bars of one read, each series with what precedes the bars asked for."""

    answer: Answer
    first: dict[str, int] = field(default_factory=dict)
    """For each symbol the index of the first bar asked for."""
    unstabilised: set[str] = field(default_factory=set)
    """Symbols with less history than declared although the series may have begun earlier."""


def bars_needed(indicators: Sequence[Indicator], timeframe: Timeframe, session: Session) -> int:
    """Return how many bars must precede the first one asked for.

    Sessions count as full ones, so that half-days and sparse series reach further back.
    """
    needed = history(indicators, timeframe)
    if not timeframe.intraday or not needed.sessions:
        return needed.bars
    return max(needed.bars, (needed.sessions + 1) * _bars_a_session(timeframe, session))


@lru_cache(maxsize=32)
def _bars_a_session(timeframe: Timeframe, session: Session) -> int:
    return sum(-(-part // timeframe.step) for part in _PARTS[session])


class WarmReader:
    """Reads a query's bars and enough bars before them, all through one link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def read(self, query: BarsQuery, needed: int, ask: Ask, deadline: Deadline) -> Warmed:
        """Return the bars of `query`, with `needed` bars before the first where there are so many.

        Parameters
        ----------
        ask : callable
            Reads a query, as a call for bars does.

        Raises
        ------
        MarketDataError
            What `ask` raises of the query itself; history that cannot be had raises nothing.
        """
        wide = self._widened(query, needed)
        whole: Answer | None = None
        try:
            whole = ask(wide)
        except DataUnavailableError:
            if wide == query:
                raise
        found = Warmed(ask(query) if whole is None else whole)
        self._place(query, found)
        if whole is None:
            self._reach_back(query, needed, found, deadline)
        else:
            self._go_on(wide, needed, found, deadline)
        self._judge(query, needed, found)
        return found

    def _widened(self, query: BarsQuery, needed: int) -> BarsQuery:
        window = query.window
        start, limit = window.start, window.limit
        if start is not None and needed:
            calendar = self._link.calendar()
            start = planning.limit_start(query.timeframe, start, needed, query.session, calendar)
        if limit is not None:
            limit += needed
        return replace(query, window=replace(window, start=start, limit=limit))

    def _place(self, query: BarsQuery, found: Warmed) -> None:
        """Note where the bars asked for begin, and which series have too few of those."""
        window = query.window
        for symbol, series in found.answer.series.items():
            stamps = series.bars.timestamp
            first = 0 if window.start is None else int(np.searchsorted(stamps, window.start))
            if window.limit is not None:
                first = max(first, len(stamps) - window.limit)
                series.truncated = series.truncated and len(stamps) - first < window.limit
            found.first[symbol] = first

    def _go_on(self, wide: BarsQuery, needed: int, found: Warmed, deadline: Deadline) -> None:
        """Walk back further for series that are too sparse for the widened window."""
        start = wide.window.start
        link = self._link
        earliest = max(link.broker.capabilities(wide.feed).earliest, link.calendar().first)
        if start is None or start <= earliest:  # a limit has walked back already
            return
        missing = {
            symbol: needed - first
            for symbol, first in found.first.items()
            if first < min(needed, len(found.answer.series[symbol].bars))
        }
        if not missing:
            return
        window = Window(None, start, max(missing.values()), explicit_end=True)
        query = replace(wide, symbols=tuple(missing), window=window)
        try:
            earlier = link.reader.read(query, deadline)
        except DataUnavailableError:
            found.unstabilised.update(missing)
            return
        for symbol in missing:
            _prepend(found, symbol, earlier)

    def _reach_back(self, query: BarsQuery, needed: int, found: Warmed, deadline: Deadline) -> None:
        """Take what history there is for each series: the whole of it cannot be had."""
        for symbol, series in found.answer.series.items():
            if not len(series.bars):
                continue
            begin = int(series.bars.timestamp[0])
            for window in self._earlier_windows(query, symbol, begin, needed):
                asked = replace(query, symbols=(symbol,), window=window)
                try:
                    earlier = self._link.reader.read(asked, deadline)
                except DataUnavailableError:
                    continue
                _prepend(found, symbol, earlier)
                break
            if found.first[symbol] < needed:
                found.unstabilised.add(symbol)

    def _earlier_windows(
        self, query: BarsQuery, symbol: str, begin: int, needed: int
    ) -> list[Window]:
        """Return the windows before `begin` to try: as far back as needed, then what is stored."""
        windows = [Window(None, begin, needed, explicit_end=True)]
        link = self._link
        base = link.broker.capabilities(query.feed).bases[query.timeframe][0].base
        state = link.reader.states(query, [symbol])[query.key(symbol).with_timeframe(base)]
        held = [span.start for span in state.coverage if span.start < begin <= span.end]
        if held:
            calendar = link.calendar()
            # A week or month that is stored in part is left out, and a day likewise.
            whole = held[0] + (31 * DAY if not query.timeframe.intraday else DAY)
            if query.timeframe in (Timeframe.MIN_1, Timeframe.DAY_1):
                whole = held[0]
            start = planning.limit_start(query.timeframe, begin, needed, query.session, calendar)
            if max(start, whole) < begin:
                windows.append(Window(max(start, whole), begin, None, explicit_end=True))
        return windows

    def _judge(self, query: BarsQuery, needed: int, found: Warmed) -> None:
        """Mark series that begin where the provider's reach does."""
        link = self._link
        ages = [o.max_age for o in link.broker.capabilities(query.feed).bases[query.timeframe]]
        known = [age for age in ages if age is not None]
        if len(known) < len(ages):
            return
        reach = link.clock.now_us() - max(known) + _NEAR
        for symbol, series in found.answer.series.items():
            short = found.first[symbol] < min(needed, len(series.bars))
            if short and int(series.bars.timestamp[0]) < reach:
                found.unstabilised.add(symbol)


def _prepend(found: Warmed, symbol: str, earlier: Answer) -> None:
    """Put the bars of an earlier window before those of `symbol`."""
    series, more = found.answer.series[symbol], earlier.series.get(symbol)
    trace, other = found.answer.trace, earlier.trace
    if other.pages:
        trace.pages += other.pages
        trace.bars += other.bars
        trace.flagged += other.flagged
        trace.rejected.update(other.rejected)
        other.pages = other.bars = other.flagged = 0
        other.rejected.clear()
    if more is None or not len(more.bars):
        return
    found.first[symbol] += len(more.bars)
    tier = max(series.tier, more.tier, key=("redis", "postgres", "broker").index)
    found.answer.series[symbol] = SeriesAnswer(
        Bars.concat([more.bars, series.bars]),
        tier,
        # What is computed from both is no newer than the older of the two.
        min(series.revision, more.revision),
        series.fetched_us,
        series.truncated,
        resting=Resting.joined([more.resting, series.resting]),
    )
