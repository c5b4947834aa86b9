"""Coarser bars from finer ones, and where the bars of a timeframe begin and end.

A session has three parts: before the open, regular hours, after the close. Intraday bins are
anchored at the start of their part (04:00, 09:30 and 16:00 on a full day in New York) and end with
it: no bin crosses the open or the close, and half-days are cut. So the regular bars of a
timeframe are exactly the extended ones that lie inside regular hours. Weeks (Monday to Sunday)
and months are made of daily bars and labelled by the exchange midnight of their first session,
whether or not that session has a bar.

Bins without bars are absent, never filled. Pure: the calendar is passed in.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from marketdata.calendars import TradingCalendar
from marketdata.errors import UnsupportedRequestError
from marketdata.spans import Span
from marketdata.types import (
    CLOSE,
    COLUMNS,
    DAY,
    HIGH,
    LOW,
    OPEN,
    TRADE_COUNT,
    VOLUME,
    VWAP,
    Bars,
    Floats,
    Int64s,
    Session,
    Timeframe,
)

_HALF_DAY: Final = DAY // 2


class Parts(NamedTuple):
    """Stretches of time inside which bins are laid: ascending, disjoint, shape (parts,)."""

    start: Int64s
    end: Int64s


# ------------------------------------------------------------------------------------ resample


def resample(
    bars: Bars,
    base: Timeframe,
    target: Timeframe,
    calendar: TradingCalendar,
    session: Session,
) -> Bars:
    """Return `bars` of timeframe `base` as bars of timeframe `target`.

    Parameters
    ----------
    bars : Bars
        Ascending, unique timestamps. Bars outside the session's hours are left out.
    base, target : Timeframe
        Intraday to intraday, of which `target` is a multiple, or days to weeks and months.
    session : {"regular", "extended"}
        Which hours to keep; without meaning for days and coarser.

    Returns
    -------
    Bars
        open first, high maximum, low minimum, close last, volume and trade_count sums (NaN where
        no bar has one), vwap weighted by volume over the bars that have one (their plain mean
        where these traded nothing, NaN where there is none). A bin at either end holds what bars
        of it were given: ask for `base_span` to get whole ones.

    Raises
    ------
    UnsupportedRequestError
        `target` cannot be made of `base`; a retry does not help.
    """
    check_derivable(base, target)
    if not len(bars):
        return Bars.empty()
    window = Span(int(bars.timestamp[0]), int(bars.timestamp[-1]) + 1)
    inside, origin = _members(bars.timestamp, _parts(window, target, calendar, session))
    kept = bars if len(inside) == len(bars) else bars.take(inside)
    if base == target or not len(kept):
        return kept
    labels = origin
    if target.intraday:
        labels = origin + (kept.timestamp - origin) // target.step * target.step
    begin = np.flatnonzero(np.concatenate(([True], labels[1:] != labels[:-1])))
    return Bars(labels[begin], _aggregate(kept.values, begin))


def check_derivable(base: Timeframe, target: Timeframe) -> None:
    """Raise `UnsupportedRequestError` unless bars of `target` can be made of bars of `base`.

    Days are never made of minutes: the tape counts other trades into a day's open, close and
    volume than into its minutes.
    """
    if base.intraday and target.intraday:
        possible = target.step % base.step == 0
    else:
        possible = base == target or (base is Timeframe.DAY_1 and not target.intraday)
    if not possible:
        raise UnsupportedRequestError(f"{target} bars cannot be made of {base} bars")


def _members(timestamp: Int64s, parts: Parts) -> tuple[Int64s, Int64s]:
    """Return the positions of the bars inside `parts`, and for each the start of its part."""
    low = np.searchsorted(timestamp, parts.start)
    counts = np.searchsorted(timestamp, parts.end) - low
    return np.repeat(low, counts) + _ranks(counts), np.repeat(parts.start, counts)


def _aggregate(values: Floats, begin: Int64s) -> Floats:
    """Fold the columns ``values[:, begin[i]:begin[i + 1]]`` into one column each."""
    end = np.append(begin[1:], values.shape[1])
    folded = np.empty((len(COLUMNS), len(begin)), np.float64)
    folded[OPEN] = values[OPEN, begin]
    folded[HIGH] = np.maximum.reduceat(values[HIGH], begin)
    folded[LOW] = np.minimum.reduceat(values[LOW], begin)
    folded[CLOSE] = values[CLOSE, end - 1]
    folded[VOLUME] = _sum_known(values[VOLUME], begin)
    folded[VWAP] = _mean_price(values[VWAP], values[VOLUME], begin)
    folded[TRADE_COUNT] = _sum_known(values[TRADE_COUNT], begin)
    return folded


def _sum_known(column: Floats, begin: Int64s) -> Floats:
    """Sum what is not NaN; NaN where nothing is."""
    unknown = np.isnan(column)
    if not unknown.any():
        return np.add.reduceat(column, begin)
    total = np.add.reduceat(np.where(unknown, 0.0, column), begin)
    total[np.logical_and.reduceat(unknown, begin)] = np.nan
    return total


def _mean_price(price: Floats, volume: Floats, begin: Int64s) -> Floats:
    """Return the volume-weighted mean of the known prices, their plain mean where none traded."""
    known = ~np.isnan(price)
    if not known.any():
        return np.full(len(begin), np.nan)
    price = np.where(known, price, 0.0)
    weight = np.where(known & ~np.isnan(volume), volume, 0.0)
    traded = np.add.reduceat(weight, begin)
    count = np.add.reduceat(known.astype(np.float64), begin)
    weighed = traded > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(
            weighed,
            np.add.reduceat(price * weight, begin) / traded,
            np.add.reduceat(price, begin) / count,
        )


# ---------------------------------------------------------------------- where bars begin and end


def bar_span(moment: int, timeframe: Timeframe, calendar: TradingCalendar) -> Span:
    """Return the span of the bar that holds `moment`; its start is the bar's label.

    The same in both sessions: a 4hour bar at 13:30 ends at 16:00. Daily bars and coarser end with
    the exchange day of their last session, 24 hours after its midnight. Where no bar holds
    `moment` (closed hours) the span is empty, at `moment`.
    """
    parts = _parts(Span(moment, moment + 1), timeframe, calendar, "extended")
    if not len(parts.start):
        return Span(moment, moment)
    start, end = int(parts.start[0]), int(parts.end[0])
    if not timeframe.intraday:
        return Span(start, end)
    label = start + (moment - start) // timeframe.step * timeframe.step
    return Span(label, min(label + timeframe.step, end))


def bar_labels(
    span: Span, timeframe: Timeframe, calendar: TradingCalendar, session: Session
) -> Int64s:
    """Return the labels inside ``[span.start, span.end)`` of all bars the calendar has room for."""
    first, last = _label_ranges(span, timeframe, calendar, session)
    counts = (last - first) // timeframe.step + 1
    return np.repeat(first, counts) + _ranks(counts) * timeframe.step


def base_span(
    span: Span, timeframe: Timeframe, calendar: TradingCalendar, session: Session = "extended"
) -> Span:
    """Return the time covered by the bars of `timeframe` that are labelled inside `span`.

    Bars of a finer base inside it make exactly these bars, all of them whole. Empty, at
    ``span.start``, where there are none; closed hours at either end are left out.
    """
    first, last = _label_ranges(span, timeframe, calendar, session)
    if not len(first):
        return Span(span.start, span.start)
    return Span(int(first[0]), bar_span(int(last[-1]), timeframe, calendar).end)


def closed_until(
    timeframe: Timeframe, calendar: TradingCalendar, frontier: int, session: Session
) -> int:
    """Return the label before which every bar has ended by `frontier`.

    Parameters
    ----------
    frontier : int
        Microseconds UTC up to which the base is complete. For days, weeks and months a session
        counts as complete 24 hours after its midnight: pass that instant once its bar is final.

    Returns
    -------
    int
        Label of the first bar that ends after `frontier`: the bar that holds it, or the first one
        after it where it lies in closed hours; `frontier` itself beyond the calendar.
    """
    start, end = _all_parts(calendar, _kind(timeframe, session))
    at = int(np.searchsorted(end, frontier, side="right"))
    if at == len(end):
        return frontier
    begin = int(start[at])
    if not timeframe.intraday or frontier <= begin:
        return begin
    return begin + (frontier - begin) // timeframe.step * timeframe.step


def _label_ranges(
    span: Span, timeframe: Timeframe, calendar: TradingCalendar, session: Session
) -> tuple[Int64s, Int64s]:
    """Return the first and the last label inside `span` of each part that has one."""
    parts, step = _parts(span, timeframe, calendar, session), timeframe.step
    if not timeframe.intraday:
        inside = parts.start[parts.start >= span.start]
        return inside, inside
    skipped = np.maximum(span.start - parts.start, 0)
    first = parts.start - (-skipped // step) * step
    last = parts.start + (np.minimum(parts.end, span.end) - 1 - parts.start) // step * step
    held = first <= last
    return first[held], last[held]


def _ranks(counts: Int64s) -> Int64s:
    """Return 0, 1, ... anew for each count: ``[2, 3]`` gives ``[0, 1, 0, 1, 2]``."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _parts(span: Span, timeframe: Timeframe, calendar: TradingCalendar, session: Session) -> Parts:
    """Return the parts that have time in common with `span`, whole."""
    start, end = _all_parts(calendar, _kind(timeframe, session))
    if span.empty:
        return Parts(start[:0], end[:0])
    low = np.searchsorted(end, span.start, side="right")
    high = np.searchsorted(start, span.end, side="left")
    return Parts(start[low:high], end[low:high])


def _kind(timeframe: Timeframe, session: Session) -> Session | Timeframe:
    return session if timeframe.intraday else timeframe


@lru_cache(maxsize=16)
def _all_parts(calendar: TradingCalendar, kind: Session | Timeframe) -> Parts:
    """Return every part of the calendar; for days, weeks and months each part is one bar."""
    if kind == "regular":
        return Parts(calendar.open, calendar.close)
    if kind == "extended":
        edges = (calendar.extended_open, calendar.open, calendar.close, calendar.extended_close)
        return Parts(np.column_stack(edges[:3]).ravel(), np.column_stack(edges[1:]).ravel())
    # Half a day after an exchange's midnight UTC shows the same date, whatever the zone.
    dates = (calendar.midnight + _HALF_DAY) // DAY
    if kind == Timeframe.WEEK_1:
        periods = (dates + 3) // 7  # 1970-01-01 was a Thursday, the fourth day of its week
    elif kind == Timeframe.MONTH_1:
        periods = dates.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    else:
        periods = dates
    turns = np.flatnonzero(periods[1:] != periods[:-1]) + 1
    first = np.concatenate(([0], turns))
    last = np.concatenate((turns - 1, [len(dates) - 1]))
    return Parts(calendar.midnight[first], calendar.midnight[last] + DAY)
