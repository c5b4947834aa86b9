"""A market that changes its mind, and can be asked what it said at any time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from zlib import crc32

import numpy as np

from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import Clock
from marketdata.sandbox import Action, Asset, GeneratedMarket
from marketdata.sandbox.source import Basis
from marketdata.spans import Span
from marketdata.types import CLOSE, HOUR, MINUTE, SECOND, VOLUME, Bars, Timeframe

FEEDS = ("sip", "iex")


@dataclass(frozen=True)
class Edit:
    """What the market says differently from a moment on."""

    since: int
    symbol: str
    timeframe: Timeframe
    label: int
    close: float | None
    """The new close; None withdraws the bar."""


class ScriptedMarket:
    """A `MarketSource` whose every answer is a function of the time of asking.

    Minutes change as they do in reality: volume is half for 30 seconds, one bar in 89 comes late
    by as much, one close in 97 is corrected half an hour after the session, and one bar in 193 is
    withdrawn then. Days are rebuilt in the evening and the next morning. `edit` adds more.
    """

    basis: Basis = "raw"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.inner = GeneratedMarket()
        self.edits: dict[tuple[str, Timeframe], list[Edit]] = {}

    @property
    def calendar(self) -> TradingCalendar:
        return calendar_for(EXCHANGE, self.clock.now_us())

    def edit(self, symbol: str, timeframe: Timeframe, label: int, close: float | None) -> None:
        """Let one bar close elsewhere, or be gone, from now on, on every feed."""
        edit = Edit(self.clock.now_us(), symbol, timeframe, label, close)
        self.edits.setdefault((symbol, timeframe), []).append(edit)

    def at(self, moment: int, symbol: str, feed: str, timeframe: Timeframe, span: Span) -> Bars:
        """Return the bars labelled in `span` as they are served at `moment`, closed by then."""
        if timeframe is Timeframe.DAY_1:
            return self._days(moment, symbol, feed, span)
        closed = Span(span.start, min(span.end, moment - MINUTE + 1))
        if closed.empty:
            return Bars.empty()
        return Bars.concat(list(self._minutes(moment, symbol, feed, closed, newest_first=False)))

    # ------------------------------------------------------------------- as the sandbox asks

    def minutes(
        self, symbol: str, span: Span, feed: str, *, newest_first: bool = False
    ) -> Iterator[Bars]:
        return self._minutes(self.clock.now_us(), symbol, feed, span, newest_first=newest_first)

    def _minutes(
        self, moment: int, symbol: str, feed: str, span: Span, *, newest_first: bool
    ) -> Iterator[Bars]:
        for bars in self.inner.minutes(symbol, span, feed, newest_first=newest_first):
            yield self._edited(moment, symbol, Timeframe.MIN_1, self._aged(moment, symbol, bars))

    def _aged(self, moment: int, symbol: str, bars: Bars) -> Bars:
        """Return minutes as they are at `moment` for being so many seconds old."""
        calendar = self.calendar
        session = calendar.session_index(bars.timestamp)
        settled = moment >= calendar.extended_close[session] + 30 * MINUTE
        number = bars.timestamp // MINUTE + crc32(symbol.encode())
        fresh = moment < bars.timestamp + MINUTE + 30 * SECOND
        values = bars.values.copy()
        values[VOLUME, fresh] *= 0.5
        values[CLOSE, (number % 97 == 0) & ~settled] += 0.01
        late = (number % 89 == 2) & fresh
        withdrawn = (number % 193 == 1) & settled
        return Bars(bars.timestamp, values).take(~late & ~withdrawn)

    def days(self, symbol: str, span: Span, feed: str) -> Bars:
        return self._whole_days(self.clock.now_us(), symbol, feed, span)

    def _days(self, moment: int, symbol: str, feed: str, span: Span) -> Bars:
        calendar = self.calendar
        bars = self._whole_days(moment, symbol, feed, span)
        return bars.take(calendar.close[calendar.session_index(bars.timestamp)] <= moment)

    def _whole_days(self, moment: int, symbol: str, feed: str, span: Span) -> Bars:
        bars = self.inner.days(symbol, span, feed)
        if not len(bars):
            return bars
        calendar = self.calendar
        session = calendar.session_index(bars.timestamp)
        values = bars.values.copy()
        values[VOLUME, moment < calendar.extended_close[session] + 30 * MINUTE] *= 0.75
        values[CLOSE, moment < bars.timestamp + 32 * HOUR] += 0.01
        return self._edited(moment, symbol, Timeframe.DAY_1, Bars(bars.timestamp, values))

    def _edited(self, moment: int, symbol: str, timeframe: Timeframe, bars: Bars) -> Bars:
        edits = self.edits.get((symbol, timeframe))
        if not edits or not len(bars):
            return bars
        values = bars.values.copy()
        keep = np.ones(len(bars), np.bool_)
        for edit in edits:
            at = int(np.searchsorted(bars.timestamp, edit.label))
            if edit.since > moment or at == len(bars) or bars.timestamp[at] != edit.label:
                continue
            keep[at] = edit.close is not None
            if edit.close is not None:
                values[CLOSE, at] = edit.close
        return Bars(bars.timestamp, values).take(keep)

    # -------------------------------------------------------------------------- as it is inside

    def assets(self) -> Sequence[Asset]:
        return self.inner.assets()

    def asset(self, symbol: str) -> Asset | None:
        return self.inner.asset(symbol)

    def actions(self, symbol: str) -> Sequence[Action]:
        return self.inner.actions(symbol)

    def symbols_with_actions(self) -> Sequence[str]:
        return self.inner.symbols_with_actions()

    def first_day(self, symbol: str) -> date:
        return self.inner.first_day(symbol)
