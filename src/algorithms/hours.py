"""When bars close, and when sessions end. Pure over a table of sessions; instants are microseconds.

A bar labelled t can be known when it has closed: a minute at t + 1 min, a bar cut by the end of its
session then, a daily bar at its session's close, a weekly one at that of its last session.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
import pandas as pd

import marketdata as md
from algorithms.lines import NEVER, Bools, Int64s

_DAY: Final = 86_400_000_000
_HOUR: Final = 3_600_000_000
EXCHANGE_ZONE: Final = "America/New_York"
_FIRST_KNOWN: Final = pd.Timestamp("1980-01-02", tz="UTC")
"""Earlier sessions no calendar has."""
_FULL_SESSION: Final = 6 * _HOUR + _HOUR // 2
BEFORE_OPEN: Final = 5 * _HOUR + _HOUR // 2
AFTER_CLOSE: Final = 4 * _HOUR
DAILY_DELAY: Final = _HOUR // 3
"""What lies between a session's close and its daily bar: auctions and late prints are in it. A
strategy on shorter bars sees the daily bar from then on, in back-tests as live."""


@dataclass(frozen=True, eq=False)
class Hours:
    """Sessions of an exchange.

    Attributes
    ----------
    midnight, open, close : ndarray of int64, shape (sessions,)
        The exchange's midnight before each session, and its regular hours; ascending.
    """

    midnight: Int64s
    open: Int64s
    close: Int64s

    @cached_property
    def early(self) -> frozenset[int]:
        """The indices of the sessions that close early."""
        return frozenset(np.flatnonzero(self.close - self.open < _FULL_SESSION).tolist())

    def session_of(self, labels: Int64s) -> Int64s:
        """Return the index of the session each label falls into or follows; -1 before the first.

        Labels ascend: the few sessions are looked for among them, not each of them among sessions.
        """
        if not len(labels):
            return np.empty(0, np.int64)
        first, last = self.midnight.searchsorted(labels[[0, -1]], side="right").tolist()
        edges = labels.searchsorted(self.midnight[first:last])
        counts = np.diff(edges, prepend=0, append=len(labels))
        return np.repeat(np.arange(first - 1, last), counts)

    def ends(self, session: str) -> Int64s:
        """Return when trading ends in each session."""
        return self.close + AFTER_CLOSE if session == "extended" else self.close


def hours_between(first: int, last: int) -> Hours:
    """Return the sessions from 40 days before one instant to 40 days after another."""
    start = pd.Timestamp(first, unit="us", tz="UTC").floor("D") - timedelta(days=40)
    start = max(start, _FIRST_KNOWN)
    end = pd.Timestamp(last, unit="us", tz="UTC").floor("D") + timedelta(days=40)
    return _hours(start.date().isoformat(), end.date().isoformat())


def reaching(hours: Hours, instant: int) -> Hours:
    """Return the sessions with those up to 40 days after an instant; their numbers stay."""
    more = hours_between(int(hours.midnight[-1]), instant)
    new = more.midnight > hours.midnight[-1]
    return Hours(
        np.append(hours.midnight, more.midnight[new]),
        np.append(hours.open, more.open[new]),
        np.append(hours.close, more.close[new]),
    )


@lru_cache(maxsize=32)
def _hours(start: str, end: str) -> Hours:
    try:
        table = md.sessions(start, end)
    except md.InvalidRangeError:
        # Outside the calendar's years: bars close after their length, and orders have no last day.
        nothing = np.empty(0, np.int64)
        return Hours(nothing, nothing, nothing)
    midnight = pd.DatetimeIndex(table.index).tz_localize(EXCHANGE_ZONE).tz_convert("UTC")
    return Hours(micros(midnight), micros(table["open"]), micros(table["close"]))


def micros(stamps: pd.DatetimeIndex | pd.Series[pd.Timestamp]) -> Int64s:
    """Return aware stamps as microseconds UTC."""
    index = pd.DatetimeIndex(stamps).tz_convert("UTC").as_unit("us")
    return np.asarray(index.asi8, np.int64)


def delay_of(timeframe: str, main: str) -> int:
    """Return how long after its close a bar is seen by a strategy on bars of `main`."""
    daily = not md.Timeframe.parse(timeframe).intraday
    return DAILY_DELAY if daily and md.Timeframe.parse(main).intraday else 0


def close_times(labels: Int64s, timeframe: str, hours: Hours, session: str) -> Int64s:
    """Return when the bars of these labels close.

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
        Bar opens.
    timeframe : str
    hours : Hours
        Reaching beyond the labels. A day outside of it closes at its end.
    session : str
        ``regular`` bars are cut at the close, ``extended`` ones also at the open and at the end of
        trading after hours.
    """
    frame = md.Timeframe.parse(timeframe)
    if not len(hours.midnight):
        return labels + frame.step
    at = hours.session_of(labels)
    known = at >= 0
    place = np.maximum(at, 0)
    if frame.intraday:
        return _intraday(labels, frame.step, hours, place, known, session)
    if frame is md.Timeframe.DAY_1:
        same = known & (labels - hours.midnight[place] < _DAY // 2)
        return np.asarray(np.where(same, hours.close[place], labels + _DAY), np.int64)
    return _last_session(labels, "W" if frame is md.Timeframe.WEEK_1 else "M", hours)


def _last_session(labels: Int64s, unit: str, hours: Hours) -> Int64s:
    """Return when the last session of each label's week or month closes.

    The label may be a day without a session, or in UTC a day that has not begun at the exchange:
    never is it a session that is over by then.
    """
    sessions, own = _periods(hours.midnight, unit), _periods(labels, unit)
    closes: Int64s = np.zeros(len(labels), np.int64)
    for later in (0, 1):
        last = np.searchsorted(sessions, own + later, side="right") - 1
        closes = np.asarray(np.where(closes > labels, closes, hours.close[last]), np.int64)
    beyond = (closes <= labels) | (own < sessions[0])
    return np.asarray(
        np.where(beyond, labels + (7 if unit == "W" else 31) * _DAY, closes), np.int64
    )


def _periods(instants: Int64s, unit: str) -> Int64s:
    """Return the number of the week or month each instant falls into at the exchange."""
    stamps = pd.to_datetime(instants, unit="us", utc=True).tz_convert(EXCHANGE_ZONE)
    return np.asarray(stamps.tz_localize(None).to_period(unit).asi8, np.int64)


def _intraday(
    labels: Int64s, step: int, hours: Hours, place: Int64s, known: Bools, session: str
) -> Int64s:
    closes = labels + step
    opened, closed = hours.open[place], hours.close[place]
    if session == "extended":
        edge = np.where(labels < opened, opened, np.where(labels < closed, closed, NEVER))
        late = (labels >= closed) & (labels < closed + AFTER_CLOSE)
        edge = np.where(late, closed + AFTER_CLOSE, edge)
    else:
        edge = np.where((labels >= opened) & (labels < closed), closed, NEVER)
    return np.asarray(np.where(known, np.minimum(closes, edge), closes), np.int64)
