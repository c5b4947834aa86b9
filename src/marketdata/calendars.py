"""Trading time: sessions of an exchange as sorted arrays, and questions asked of them.

Sessions and half-days come from ``exchange_calendars``; extended hours are added here. Pure: the
calendar is built once from shipped rules, and the caller passes the time.

Hours of an XNYS session, exchange time: extended 04:00 to 20:00, regular 09:30 to 16:00. On an
early-close day regular ends at 13:00 and extended at 17:00 (source: NYSE "Holidays & Trading
Hours"; the end of the late session on such days has been announced differently over the years).
"""

from __future__ import annotations

import threading
import warnings
from bisect import bisect_left, bisect_right
from datetime import date, datetime, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from marketdata.clock import from_micros, to_micros
from marketdata.spans import Span
from marketdata.types import DAY, HOUR, Bools, Int64s

Hours = Literal["regular", "extended", "daily"]
"""Which part of a session counts as trading time: ``daily`` is exchange midnight to the close."""

EXCHANGE: Final = "XNYS"
"""The exchange of every symbol served today."""
FIRST_YEAR: Final = 1980
_EXTENDED_OPEN: Final = 4 * HOUR
_EXTENDED_CLOSE: Final = 20 * HOUR
_EARLY_EXTENDED_CLOSE: Final = 17 * HOUR
_FULL_CLOSE: Final = 16 * HOUR


class TradingCalendar:
    """Sessions of one exchange.

    Attributes
    ----------
    name : str
        ISO 10383 market code, ``XNYS``.
    zone : ZoneInfo
        The exchange's time zone.
    midnight, open, close, extended_open, extended_close : ndarray of int64, shape (sessions,)
        Microseconds UTC. ``midnight`` is the exchange midnight that labels the session's daily
        bar; intervals are half-open.
    early : ndarray of bool, shape (sessions,)
        Whether the session closes earlier than usual: a half-day.
    """

    def __init__(
        self,
        name: str,
        zone: ZoneInfo,
        opens: Int64s,
        closes: Int64s,
        midnights: Int64s,
        early: Bools | None = None,
    ):
        self.name = name
        self.zone = zone
        self.midnight = midnights
        self.open = opens
        self.close = closes
        if early is None:
            early = closes - midnights < _FULL_CLOSE
        self.early = early
        # Wall-clock hours equal elapsed hours here: clocks change on Sundays, never on a session.
        self.extended_open = midnights + _EXTENDED_OPEN
        self.extended_close = midnights + np.where(early, _EARLY_EXTENDED_CLOSE, _EXTENDED_CLOSE)
        self._starts: dict[Hours, list[int]] = {
            "regular": self.open.tolist(),
            "extended": self.extended_open.tolist(),
            "daily": self.midnight.tolist(),
        }
        self._ends: dict[Hours, list[int]] = {
            "regular": self.close.tolist(),
            "extended": self.extended_close.tolist(),
            "daily": self.close.tolist(),
        }

    @classmethod
    def build(cls, name: str, end: date) -> TradingCalendar:
        """Build the calendar of `name` from 1980 to `end`."""
        import exchange_calendars

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pandas, about exchange_calendars' own code
            source = exchange_calendars.get_calendar(
                name, start=f"{FIRST_YEAR}-01-01", end=str(end)
            )
        zone = ZoneInfo(str(source.tz))
        midnights = pd.DatetimeIndex(source.sessions).tz_localize(zone).tz_convert("UTC")
        return cls(
            name,
            zone,
            np.asarray(source.opens_nanos, np.int64) // 1000,
            np.asarray(source.closes_nanos, np.int64) // 1000,
            midnights.as_unit("us").asi8.astype(np.int64),
            np.asarray(source.sessions.isin(source.early_closes), np.bool_),
        )

    # ---------------------------------------------------------------- spans of trading time

    @property
    def first(self) -> int:
        """Midnight of the first session known, microseconds UTC."""
        return self._starts["daily"][0]

    @property
    def horizon(self) -> int:
        """End of the last session's day, microseconds UTC: nothing is known beyond."""
        return self._starts["daily"][-1] + DAY

    def trading_spans(self, span: Span, hours: Hours) -> list[Span]:
        """Return the trading time inside `span`, one span a session, clipped to `span`."""
        if span.empty:
            return []
        starts, ends = self._starts[hours], self._ends[hours]
        low = bisect_right(ends, span.start)
        high = bisect_left(starts, span.end)
        found = [Span(a, b) for a, b in zip(starts[low:high], ends[low:high], strict=True)]
        if found:
            found[0] = found[0].clip(span)
            found[-1] = found[-1].clip(span)
        return found

    def trading_time(self, span: Span, hours: Hours) -> int:
        """Return the microseconds of trading time inside `span`."""
        return sum(s.end - s.start for s in self.trading_spans(span, hours))

    def extend_over_closed(self, span: Span, hours: Hours, limit: int) -> Span:
        """Widen `span` over the closed hours beside it, its end to `limit` at most.

        What is known at 20:00 is known until trading begins again: recorded like this, a healthy
        series is one range.
        """
        starts, ends = self._starts[hours], self._ends[hours]
        before = bisect_left(ends, span.start + 1) - 1
        start = span.start
        at = bisect_right(starts, start) - 1
        if at < 0:
            pass
        elif start >= ends[at]:
            start = ends[at]
        elif start == starts[at] and before >= 0:
            start = ends[before]
        end = span.end
        at = bisect_right(starts, end - 1) - 1
        if at < 0:
            end = starts[0]
        elif end >= ends[at]:
            end = starts[at + 1] if at + 1 < len(starts) else end
        return Span(start, max(span.end, min(end, limit)))

    # ---------------------------------------------------------------------------- sessions

    def session_at(self, moment: int) -> int:
        """Return the index of the last session whose exchange day has begun by `moment`, or -1."""
        return bisect_right(self._starts["daily"], moment) - 1

    def session_span(self, index: int, hours: Hours) -> Span:
        """Return the span of the session at `index`."""
        return Span(self._starts[hours][index], self._ends[hours][index])

    def session_date(self, index: int) -> date:
        """Return the session's date in the exchange's zone."""
        return from_micros(self._starts["daily"][index]).astimezone(self.zone).date()

    def is_open(self, moment: int, hours: Hours = "regular") -> bool:
        at = bisect_right(self._starts[hours], moment) - 1
        return at >= 0 and moment < self._ends[hours][at]

    def next_open(self, moment: int, hours: Hours = "regular") -> int:
        """Return the first opening at or after `moment`."""
        starts = self._starts[hours]
        return starts[min(bisect_left(starts, moment), len(starts) - 1)]

    def session_index(self, timestamps: Int64s) -> Int64s:
        """Return for each timestamp the index of the exchange day it falls into (-1 if none before)."""
        return np.searchsorted(self.midnight, timestamps, side="right") - 1

    def mask(self, timestamps: Int64s, hours: Hours) -> Bools:
        """Return which timestamps lie inside the given hours of a session; any order."""
        if not len(timestamps):
            return np.zeros(0, np.bool_)
        index = self.session_index(timestamps)
        starts = {"regular": self.open, "extended": self.extended_open, "daily": self.midnight}[
            hours
        ]
        ends = {
            "regular": self.close,
            "extended": self.extended_close,
            "daily": self.close,
        }[hours]
        inside = (timestamps >= starts[index]) & (timestamps < ends[index])
        return np.asarray(inside & (index >= 0), np.bool_)

    def runs(self, timestamps: Int64s, hours: Hours) -> list[tuple[int, int]]:
        """Return the index ranges of ascending `timestamps` that lie inside the given hours, one
        a session; cheaper than `mask` because only the sessions' edges are searched."""
        starts, ends = self._starts[hours], self._ends[hours]
        low = bisect_right(ends, int(timestamps[0]))
        high = bisect_right(starts, int(timestamps[-1]))
        edges = [
            edge for pair in zip(starts[low:high], ends[low:high], strict=True) for edge in pair
        ]
        found = timestamps.searchsorted(edges).tolist()
        return list(zip(found[::2], found[1::2], strict=True))

    # --------------------------------------------------------------------- walking backwards

    def back(self, end: int, bars: int, step: int, hours: Hours) -> int:
        """Return the start of a window before `end` that holds `bars` bars of a dense series.

        Parameters
        ----------
        end : int
            Exclusive end of the window, microseconds UTC.
        bars : int
            Number of bars of `step` microseconds inside `hours` (sessions for ``daily``).
        """
        starts, ends = self._starts[hours], self._ends[hours]
        at = bisect_left(starts, end) - 1
        missing = bars
        while at >= 0:
            stop = min(ends[at], end)
            here = -(-(stop - starts[at]) // step)
            if here >= missing:
                return max(starts[at], starts[at] + (here - missing) * step)
            missing -= here
            at -= 1
        return starts[0]

    # ------------------------------------------------------------------------------- dates

    def midnight_of(self, day: date) -> int:
        """Return exchange midnight of `day` in microseconds UTC."""
        return to_micros(datetime(day.year, day.month, day.day, tzinfo=self.zone))

    def today(self, moment: int) -> date:
        """Return the exchange's date at `moment`."""
        return from_micros(moment).astimezone(self.zone).date()


_lock = threading.Lock()
_built: dict[str, TradingCalendar] = {}
_MARGIN: Final = 400 * DAY


def calendar_for(exchange: str, now_us: int) -> TradingCalendar:
    """Return the calendar of `exchange`, reaching at least 400 days past `now_us`.

    A process that lives for years gets a new one in time: the rules know no end, the arrays do.
    """
    found = _built.get(exchange)
    if found is not None and found.horizon - now_us > _MARGIN - 60 * DAY:
        return found
    with _lock:
        found = _built.get(exchange)
        if found is None or found.horizon - now_us <= _MARGIN - 60 * DAY:
            latest = from_micros(now_us)
            found = TradingCalendar.build(exchange, (latest + timedelta(days=400)).date())
            _built[exchange] = found
        return found
