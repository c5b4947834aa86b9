"""The rows of a Yahoo chart: bars in Yahoo's bins, with its gaps and its live row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from marketdata.calendars import Hours
from marketdata.sandbox.source import Asset, aggregate, dividend_factors, rebased
from marketdata.sandbox.view import MarketView, Period
from marketdata.spans import Span
from marketdata.types import CLOSE, DAY, MINUTE, SECOND, VOLUME, Bars, Floats, Int64s

INTRADAY: Final = {
    "1m": 1, "2m": 2, "5m": 5, "15m": 15, "30m": 30, "60m": 60, "90m": 90, "1h": 60,
}  # fmt: skip
COARSE: Final = {
    "1d": Period(1, "day"),
    "5d": Period(1, "week"),
    "1wk": Period(1, "week"),
    "1mo": Period(1, "month"),
    "3mo": Period(3, "month"),
}


@dataclass(frozen=True, slots=True)
class ChartQuery:
    """One chart request, checked: bars of `interval` labelled in `span`."""

    asset: Asset
    ticker: str
    interval: str
    span: Span
    extended: bool
    range: str
    address: str
    """What the source calls the whole history of the asset, its earlier names included."""


class ChartBars:
    """Bars of a `view` as Yahoo cuts them; raw or split basis as the source has them.

    Intraday bins count from the opening of each part of the session, not from the clock.
    """

    def __init__(self, view: MarketView) -> None:
        self.view = view

    def coarse(self, query: ChartQuery) -> Bars:
        """Return daily and longer bars, labelled with exchange midnight."""
        found = list(self.view.bars(query.address, COARSE[query.interval], query.span, "sip"))
        return Bars.concat(found)

    def opens(self, midnights: Int64s) -> Int64s:
        """Return the openings of sessions, with which Yahoo labels daily bars."""
        calendar = self.view.calendar
        return calendar.open[calendar.session_index(midnights)]

    def intraday(self, query: ChartQuery) -> Bars:
        """Return intraday bars; regular bins without a trade are rows of NaN."""
        step = INTRADAY[query.interval] * MINUTE
        hours: Hours = "extended" if query.extended else "regular"
        reach = Span(query.span.start - step, query.span.end + step)
        found = []
        for section in self._sections(reach, hours):
            pieces = list(self.view.minutes(query.address, section, "sip"))
            bars = Bars.concat(pieces)
            labels = section.start + (bars.timestamp - section.start) // step * step
            joined = aggregate(bars, labels)
            if self.view.calendar.is_open(section.start):
                joined = self._with_gaps(joined, section, step)
            else:
                # Yahoo has no volume outside regular hours.
                joined = Bars(joined.timestamp, joined.values.copy())
                joined.values[VOLUME] = 0.0
            found.append(joined)
        return Bars.concat(found).within(query.span)

    def _sections(self, span: Span, hours: Hours) -> list[Span]:
        """Return the parts of each session in which bins are counted from the part's start."""
        calendar = self.view.calendar
        low = max(calendar.session_at(span.start), 0)
        high = calendar.session_at(min(span.end, self.view.now))
        found = []
        for index in range(low, high + 1):
            regular = calendar.session_span(index, "regular")
            if hours == "extended":
                outer = calendar.session_span(index, "extended")
                found += [
                    Span(outer.start, regular.start),
                    regular,
                    Span(regular.end, outer.end),
                ]
            else:
                found.append(regular)
        return found

    def _with_gaps(self, bars: Bars, section: Span, step: int) -> Bars:
        """Put in the rows of nulls that Yahoo has for regular minutes without a trade."""
        end = min(section.end, self.view.now - MINUTE + 1)
        grid = np.arange(section.start, end, step, dtype=np.int64)
        if len(grid) == len(bars):
            return bars
        values = np.full((len(bars.values), len(grid)), np.nan)
        values[:, np.searchsorted(grid, bars.timestamp)] = bars.values
        return Bars(grid, values)

    def with_live_row(
        self, query: ChartQuery, bars: Bars, stamps: Int64s, adjusted: Floats | None
    ) -> tuple[Bars, Int64s, Floats | None]:
        """Add the row of the present second, or stamp the running day with it."""
        now = self.view.now
        hours: Hours = "extended" if query.extended else "regular"
        asked = query.span.start <= now < query.span.end
        if not asked or not self.view.calendar.is_open(now, hours):
            return bars, stamps, adjusted
        second = now // SECOND * SECOND
        if query.interval == "1d" and len(bars) and self._is_today(int(bars.timestamp[-1])):
            # The running day's row carries the time of its last trade.
            return bars, np.r_[stamps[:-1], second], adjusted
        newest = self.view.newest_minute(query.address, "sip")
        if not len(newest) or second % MINUTE == 0:
            return bars, stamps, adjusted
        newest = rebased(newest, self.view.factors(query.address, newest.timestamp, "split"))
        values = np.full((len(bars.values), 1), float(newest.values[CLOSE, 0]))
        values[VOLUME] = 0.0
        live = Bars(np.array([second]), values)
        if adjusted is not None:
            adjusted = np.concatenate([adjusted, values[CLOSE]])
        return Bars.concat([bars, live]), np.r_[stamps, second], adjusted

    def _is_today(self, midnight: int) -> bool:
        return midnight == self.view.calendar.midnight_of(self.view.today)

    def adjusted_close(self, symbol: str, bars: Bars) -> Floats:
        """Return the closes of `bars`, in split basis, less the dividends paid since."""
        closes: Floats = bars.values[CLOSE]
        if not len(bars):
            return closes
        today = self.view.today
        told = self.view.source.actions(symbol)
        paid = [a for a in told if a.type == "cash_dividend" and a.ex_date <= today]
        if not paid:
            return closes
        days = self.view.days(symbol, Span(int(bars.timestamp[0]) - 10 * DAY, self.view.now), "sip")
        raw = rebased(days, self.view.factors(symbol, days.timestamp, "raw"))
        return np.asarray(closes * dividend_factors(bars.timestamp, paid, raw))
