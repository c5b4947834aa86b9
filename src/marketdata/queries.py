"""A request for bars in the library's own terms, and what of some bars answers it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from marketdata.calendars import TradingCalendar
from marketdata.ranges import Window
from marketdata.types import DAY, Bars, SeriesKey, Session, Timeframe


@dataclass(frozen=True, slots=True)
class BarsQuery:
    """Which bars of which series are asked for."""

    provider: str
    feed: str
    symbols: tuple[str, ...]
    timeframe: Timeframe
    window: Window
    session: Session = "regular"
    max_lookback: int = 3650 * DAY
    as_of_us: int | None = None
    """Bars as they were known at this moment; None: as they are known now."""
    ends_us: int | None = None
    """The instant from which on nothing trades under these symbols any more, where there is one:
    the newest bars are those before it."""

    def key(self, symbol: str) -> SeriesKey:
        return SeriesKey(self.provider, self.feed, symbol, self.timeframe)


def select(bars: Bars, query: BarsQuery, calendar: TradingCalendar) -> Bars:
    """Return the bars of the query's session, and of these the last `limit`; may be views."""
    if query.timeframe.intraday and query.session == "regular" and len(bars):
        runs = _joined(calendar.runs(bars.timestamp, "regular"))
        if runs != [(0, len(bars))]:
            bars = Bars.concat([Bars(bars.timestamp[a:b], bars.values[:, a:b]) for a, b in runs])
    if query.window.limit is not None:
        bars = bars.last(query.window.limit)
    return bars


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join runs that touch: a series without extended hours is one, and need not be copied."""
    joined: list[tuple[int, int]] = []
    for start, end in runs:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        elif start < end:
            joined.append((start, end))
    return joined
