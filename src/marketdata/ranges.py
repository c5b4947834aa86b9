"""Reading ``start``, ``end``, ``period`` and ``limit`` the way people write them.

Pure: the calendar and the current market time are passed in. Results are microseconds UTC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

import numpy as np
import pandas as pd

from marketdata.calendars import TradingCalendar
from marketdata.clock import from_micros, to_micros
from marketdata.errors import InvalidRangeError, NaiveTimestampError
from marketdata.spans import Span
from marketdata.types import HOUR, MINUTE

Moment = str | date | datetime | pd.Timestamp | np.datetime64
DEFAULT_LIMIT: Final = 500
_PERIODS: Final = "5d 1mo 6mo 1y 2y ytd max"
_OFFSET: Final = re.compile(r"-(\d+)(min|h|d|w|mo|y)")
_PERIOD: Final = re.compile(r"(\d+)(d|w|mo|y)")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, slots=True)
class Window:
    """Which bars are asked for: those labelled in ``[start, end)``, of these the last `limit`.

    `start` None means as far back as `limit` needs; `explicit_end` says whether the caller chose
    the end (else it is now).
    """

    start: int | None
    end: int
    limit: int | None
    explicit_end: bool = False

    def span(self, earliest: int) -> Span:
        return Span(earliest if self.start is None else self.start, self.end)


def resolve_window(
    calendar: TradingCalendar,
    now_us: int,
    start: Moment | None = None,
    end: Moment | None = None,
    period: str | None = None,
    limit: int | None = None,
    *,
    as_of: bool = False,
) -> Window:
    """Return the window the four parameters describe.

    Parameters
    ----------
    as_of : bool
        Whether `now_us` is an earlier moment that was asked for: it cuts a later `end`.

    Raises
    ------
    InvalidRangeError, NaiveTimestampError
        Contradictory, reversed, empty, future or unreadable; a retry does not help.
    """
    limit = _checked_limit(limit)
    if period is not None and start is not None:
        raise InvalidRangeError(
            "period and start contradict each other", cure="give one of them, with end if needed"
        )
    until = now_us if end is None else read_moment(end, calendar, now_us, "end")
    since: int | None = None
    if start is not None:
        since = read_moment(start, calendar, now_us, "start")
    elif period is not None:
        since = _period_start(period, calendar, until)
    if as_of and since is not None and since > now_us:
        raise InvalidRangeError(
            f"start {_iso(since)} is after as_of {_iso(now_us)}",
            cure="give an earlier start, or a later as_of",
        )
    if since is not None:
        _check_order(since, until, now_us, end is None)
    elif limit is None:
        limit = DEFAULT_LIMIT
    if as_of:
        until = min(until, now_us)
    return Window(since, until, limit, end is not None)


def _checked_limit(limit: object) -> int | None:
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 1:
        raise InvalidRangeError(
            f"limit={limit!r} is not a number of bars",
            cure="give an integer of 1 or more: the last N closed bars of each symbol",
        )
    return int(limit)  # numpy's integers overflow


def _check_order(start: int, end: int, now_us: int, open_ended: bool) -> None:
    if start > now_us:
        raise InvalidRangeError(
            f"start {_iso(start)} lies in the future", cure=f"it is {_iso(now_us)} now"
        )
    if start > end:
        raise InvalidRangeError(
            f"start {_iso(start)} is after end {_iso(end)}", cure="exchange start and end"
        )
    if start == end and not open_ended:
        raise InvalidRangeError(
            f"the range is empty: start and end are both {_iso(start)} and end is exclusive",
            cure="for one day give the next day as end",
        )


def read_moment(value: Moment, calendar: TradingCalendar, now_us: int, role: str) -> int:
    """Return the instant `value` means.

    A date (``"2024-01-02"``, `datetime.date`) is midnight in the exchange's zone; ``"today"``,
    ``"now"`` and offsets such as ``"-5d"`` count from now; datetimes must carry a time zone.
    """
    if isinstance(value, str):
        return _read_text(value.strip(), calendar, now_us, role)
    if isinstance(value, np.datetime64):
        value = pd.Timestamp(value)
    if not isinstance(value, date) or pd.isna(value):
        raise InvalidRangeError(f"{role}={value!r} is not a moment", cure=_MOMENT_CURE)
    if not isinstance(value, datetime):
        return calendar.midnight_of(value)
    if value.tzinfo is None:
        raise _naive(value, calendar, role)
    return to_micros(value.to_pydatetime(warn=False) if isinstance(value, pd.Timestamp) else value)


_MOMENT_CURE: Final = (
    'write a date ("2024-01-02"), an instant with offset ("2024-01-02T09:30-05:00"), "today", '
    '"now", an offset ("-5d"), a date object or an aware datetime'
)


def _read_text(text: str, calendar: TradingCalendar, now_us: int, role: str) -> int:
    lowered = text.lower()
    if lowered == "now":
        return now_us
    if lowered == "today":
        return calendar.midnight_of(calendar.today(now_us))
    if match := _OFFSET.fullmatch(lowered):
        return _offset(int(match[1]), match[2], calendar, now_us)
    try:
        if _DATE.fullmatch(text):
            return calendar.midnight_of(date.fromisoformat(text))
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidRangeError(f"{role}={text!r} is not a moment", cure=_MOMENT_CURE) from None
    if moment.tzinfo is None:
        raise _naive(moment, calendar, role)
    return to_micros(moment)


def read_as_of(value: Moment, calendar: TradingCalendar, now_us: int) -> int:
    """Return the moment as of which something is asked for.

    Raises
    ------
    InvalidRangeError, NaiveTimestampError
        Unreadable, or in the future; a retry does not help.
    """
    moment = read_moment(value, calendar, now_us, "as_of")
    if moment > now_us:
        raise InvalidRangeError(
            f"as_of {_iso(moment)} lies in the future: nobody knows yet what is known then",
            cure=f"give a moment up to now, {_iso(now_us)}",
        )
    return moment


def _offset(count: int, unit: str, calendar: TradingCalendar, now_us: int) -> int:
    if unit == "min":
        return now_us - count * MINUTE
    if unit == "h":
        return now_us - count * HOUR
    return calendar.midnight_of(_days_back(calendar.today(now_us), count, unit))


def _days_back(day: date, count: int, unit: str) -> date:
    try:
        if unit in ("d", "w"):
            return day - timedelta(days=count * (7 if unit == "w" else 1))
        months = count * (12 if unit == "y" else 1)
        return (pd.Timestamp(day) - pd.DateOffset(months=months)).date()
    except (OverflowError, ValueError):
        return date(1980, 1, 1)


def _period_start(period: str, calendar: TradingCalendar, end: int) -> int:
    text = period.strip().lower() if isinstance(period, str) else ""
    day = calendar.today(end - 1)
    if text == "max":
        return calendar.first
    if text == "ytd":
        return calendar.midnight_of(date(day.year, 1, 1))
    match = _PERIOD.fullmatch(text)
    if not match or not int(match[1]):
        raise InvalidRangeError(
            f"period={period!r} is not a period", cure=f"use one of: {_PERIODS}"
        )
    if match[2] == "d":
        last = calendar.session_at(end - 1)
        return calendar.session_span(max(0, last - int(match[1]) + 1), "daily").start
    start = _days_back(day, int(match[1]), match[2])
    return max(calendar.first, calendar.midnight_of(start))


def _naive(moment: datetime, calendar: TradingCalendar, role: str) -> NaiveTimestampError:
    corrected = moment.replace(tzinfo=calendar.zone)
    return NaiveTimestampError(
        f"{role}={moment.isoformat()!r} has no time zone",
        cure=f'write "{corrected.isoformat()}" for {calendar.zone} time, or add your own zone',
    )


def _iso(micros: int) -> str:
    try:
        return from_micros(micros).isoformat()
    except OverflowError:
        return str(micros)
