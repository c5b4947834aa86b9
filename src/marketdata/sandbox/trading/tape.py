"""What a desk sees of the market: last prices, quotes, sessions, minutes and splits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Final, NamedTuple

from marketdata.calendars import Hours, TradingCalendar
from marketdata.sandbox.source import Asset
from marketdata.sandbox.view import MarketView
from marketdata.spans import Span
from marketdata.types import CLOSE, DAY, HIGH, HOUR, LOW, MINUTE, OPEN

_TICK: Final = Decimal("0.01")
_SMALL_TICK: Final = Decimal("0.0001")
_AGED: Final = 90
"""Days after which an order until cancelled is cancelled. Source: Alpaca, aged order policy."""


class Minute(NamedTuple):
    """One bar of a minute."""

    label: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal


class Tape:
    """`view` in decimals, as far as the clock has come."""

    def __init__(self, view: MarketView) -> None:
        self.view = view

    @property
    def now(self) -> int:
        return self.view.now

    @property
    def calendar(self) -> TradingCalendar:
        return self.view.calendar

    def asset(self, symbol: str) -> Asset | None:
        """Return an asset that is listed today."""
        found = self.view.source.asset(symbol)
        if found is None or self.view.source.first_day(symbol) > self.view.today:
            return None
        return found

    def is_open(self, *, extended: bool = False) -> bool:
        return self.calendar.is_open(self.now, "extended" if extended else "regular")

    # --------------------------------------------------------------------------- prices

    def last(self, symbol: str) -> Decimal | None:
        """Return the newest price: the last closed minute's, or the opening one of a session whose
        first minute is under way; a daily close where there are no minutes."""
        newest = self.view.newest_minute(symbol, "sip")
        calendar, now = self.calendar, self.now
        if calendar.is_open(now):
            opening = calendar.session_span(calendar.session_at(now), "regular").start
            if not len(newest) or int(newest.timestamp[0]) < opening:
                for minute in self.minutes(symbol, Span(opening, now + 1)):
                    return minute.open
        if len(newest):
            return decimal(float(newest.values[CLOSE, 0]))
        return self.close_before(symbol, now)

    def close_before(self, symbol: str, moment: int) -> Decimal | None:
        """Return the close of the newest daily bar labelled before `moment`."""
        days = self.view.days(symbol, Span(moment - 30 * DAY, moment), "sip")
        return decimal(float(days.values[CLOSE, -1])) if len(days) else None

    def yesterdays_close(self, symbol: str) -> Decimal | None:
        session = self.calendar.session_at(self.now)
        return self.close_before(symbol, int(self.calendar.midnight[max(session, 0)]))

    def quote(self, symbol: str) -> tuple[Decimal, Decimal] | None:
        """Return bid and ask: a cent to either side of the last price, less below a dollar."""
        price = self.last(symbol)
        if price is None:
            return None
        tick = _TICK if price >= 1 else _SMALL_TICK
        return max(price - tick, _SMALL_TICK), price + tick

    def minutes(self, symbol: str, span: Span) -> Iterator[Minute]:
        """Yield the minutes labelled in `span`, also one that is under way."""
        for bars in self.view.source.minutes(symbol, span, "sip"):
            values = bars.values
            for at, label in enumerate(bars.timestamp.tolist()):
                yield Minute(label, *(decimal(float(values[k, at])) for k in _COLUMNS))

    # ------------------------------------------------------------------------- sessions

    def expiry(self, time_in_force: str, *, extended: bool) -> int:
        """Return when an order given now is no longer good."""
        calendar, now = self.calendar, self.now
        if time_in_force == "gtc":
            day = date.fromordinal(self.view.today.toordinal() + _AGED)
            return calendar.midnight_of(day) + 16 * HOUR + 15 * MINUTE
        hours: Hours = "extended" if extended else "regular"
        session = max(calendar.session_at(now), 0)
        end = calendar.session_span(session, hours).end
        return end if now < end else calendar.session_span(session + 1, hours).end

    def splits(self, symbol: str, after: int, until: int) -> list[tuple[int, Decimal]]:
        """Return the splits of `symbol` that took effect in (after, until], and their ratios."""
        found = [
            (self.calendar.midnight_of(a.ex_date), decimal(a.new) / decimal(a.old))
            for a in self.view.source.actions(symbol)
            if a.is_split and a.type != "stock_dividend"
        ]
        return [(moment, ratio) for moment, ratio in found if after < moment <= until]


_COLUMNS: Final = (OPEN, HIGH, LOW, CLOSE)


def decimal(value: float) -> Decimal:
    """Return the shortest decimal that reads back as `value`."""
    return Decimal(repr(value))
