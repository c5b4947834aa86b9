"""A market as it can be seen at the clock's time: nothing that has not closed, nothing to come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal

from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import Clock
from marketdata.sandbox.source import (
    Action,
    Basis,
    MarketSource,
    aggregate,
    basis_factors,
    clock_labels,
    month_labels,
    week_labels,
)
from marketdata.spans import Span
from marketdata.types import DAY, MINUTE, Bars, Floats, Int64s

Unit = Literal["minute", "day", "week", "month"]

_TIMEFRAME: Final = re.compile(r"(\d{1,2})(Min|T|Hour|H|Day|D|Week|W|Month|M)")


@dataclass(frozen=True, slots=True)
class Period:
    """The length of a bar: `count` of `unit`. Hours are minutes."""

    count: int
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Period | None:
        """Return the period Alpaca's ``timeframe`` names, or None if it is none.

        Source: Alpaca market-data OpenAPI, parameter ``timeframe``.
        """
        match = _TIMEFRAME.fullmatch(text)
        if match is None:
            return None
        count, unit = int(match[1]), match[2]
        if unit in ("Min", "T"):
            return cls(count, "minute") if 1 <= count <= 59 else None
        if unit in ("Hour", "H"):
            return cls(60 * count, "minute") if 1 <= count <= 23 else None
        if unit in ("Month", "M"):
            return cls(count, "month") if count in (1, 2, 3, 4, 6, 12) else None
        if count != 1:
            return None
        return cls(1, "day" if unit in ("Day", "D") else "week")


class MarketView:
    """`source` at the time of `clock`.

    Both may be replaced while the server runs.
    """

    def __init__(self, source: MarketSource, clock: Clock) -> None:
        self.source = source
        self.clock = clock

    @property
    def now(self) -> int:
        """Market time in microseconds UTC."""
        return self.clock.now_us()

    @property
    def calendar(self) -> TradingCalendar:
        return calendar_for(EXCHANGE, self.now)

    @property
    def today(self) -> date:
        return self.calendar.today(self.now)

    # ------------------------------------------------------------------------------- bars

    def minutes(
        self, symbol: str, span: Span, feed: str, *, newest_first: bool = False
    ) -> Iterator[Bars]:
        """Yield the closed one-minute bars labelled in `span`, in pieces of a session."""
        closed = Span(span.start, min(span.end, self.now - MINUTE + 1))
        return self.source.minutes(symbol, closed, feed, newest_first=newest_first)

    def days(self, symbol: str, span: Span, feed: str) -> Bars:
        """Return the daily bars labelled in `span`; the running session's bar is its minutes so far."""
        calendar, now = self.calendar, self.now
        session = calendar.session_at(now)
        if session < 0:
            return Bars.empty()
        today = calendar.session_span(session, "regular")
        label = int(calendar.midnight[session])
        if now >= today.end:
            return self.source.days(symbol, Span(span.start, min(span.end, label + 1)), feed)
        past = self.source.days(symbol, Span(span.start, min(span.end, label)), feed)
        if now < today.start + MINUTE or not span.start <= label < span.end:
            return past
        so_far = Bars.concat(list(self.minutes(symbol, today, feed)))
        labels = so_far.timestamp * 0 + label
        return Bars.concat([past, aggregate(so_far, labels)])

    def bars(
        self, symbol: str, period: Period, span: Span, feed: str, *, newest_first: bool = False
    ) -> Iterator[Bars]:
        """Yield the bars of `period` labelled in `span`, in pieces ascending inside.

        Alpaca's bins sit on multiples of the clock from exchange midnight; the running bin is
        served as far as it has come, one-minute bars only once they have closed.
        """
        if period == Period(1, "minute"):
            yield from self.minutes(symbol, span, feed, newest_first=newest_first)
            return
        if period.unit == "minute":
            calendar = self.calendar
            at = max(calendar.session_at(span.start), 0)
            reach = Span(
                min(span.start, int(calendar.midnight[at])), span.end + period.count * MINUTE
            )
            for piece in self.minutes(symbol, reach, feed, newest_first=newest_first):
                labels = clock_labels(piece, calendar, period.count)
                yield aggregate(piece, labels).within(span)
            return
        yield self._coarse(symbol, period, span, feed)

    def _coarse(self, symbol: str, period: Period, span: Span, feed: str) -> Bars:
        if period.unit == "day":
            return self.days(symbol, span, feed)
        reach = (8 if period.unit == "week" else 31 * (period.count + 1)) * DAY
        days = self.days(symbol, Span(span.start - reach, span.end + reach), feed)
        if period.unit == "week":
            labels = week_labels(days.timestamp, self.calendar)
        else:
            labels = month_labels(days.timestamp, self.calendar, period.count)
        # The first bin may have begun before the reach, and lies before the span.
        return aggregate(days, labels).within(span)

    def newest_minute(self, symbol: str, feed: str, *, before: int | None = None) -> Bars:
        """Return the newest closed one-minute bar, of the last ten days; empty if there is none."""
        end = self.now if before is None else before
        span = Span(self.now - 10 * DAY, end)
        for piece in self.minutes(symbol, span, feed, newest_first=True):
            if len(piece):
                return piece.last(1)
        return Bars.empty()

    # ---------------------------------------------------------------------------- actions

    def known_actions(self, symbol: str) -> list[Action]:
        """Return the actions that have been announced by now."""
        today, now = self.today, self.now
        return [
            a
            for a in self.source.actions(symbol)
            if a.known_from <= today and (a.listed_at is None or a.listed_at <= now)
        ]

    def whole(self, symbol: str, day: date) -> str:
        """Return what the source calls the whole history of the instrument that `symbol` names on
        `day`, its earlier names included; `symbol` itself where the source knows no names."""
        address = getattr(self.source, "whole", None)
        return symbol if address is None else str(address(symbol, day))

    def factors(self, symbol: str, timestamps: Int64s, wanted: Basis) -> Floats | None:
        """Return price multipliers from the source's share basis to `wanted`, as of today.

        Announced late or not, a split is in force from its ex-date on.
        """
        actions = self.source.actions(symbol)
        return basis_factors(timestamps, actions, self.source.basis, wanted, self.today)
