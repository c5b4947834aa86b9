"""Quality gates: what a broker sent, cut down to what may be kept. Pure.

Rejected, one reason a bar (the first that applies)::

    unreadable      no timestamp could be made out
    out_of_window   labelled outside the span asked
    off_grid        not on the timeframe's grid (daily and coarser: not a session's midnight)
    forming         its interval was not over yet
    price           open, high, low or close is NaN, infinite or <= 0
    range           high < low
    volume          NaN, infinite or negative
    duplicate       a later row of the same answer carries the same timestamp

Kept and flagged: open or close outside [low, high]. Alpaca's bars do that rightly, because some
trade conditions set the open or close but not the high or low (source: Alpaca staff, forum topics
10118 and 7054). Kept and cleared to NaN: vwap or trade count that is infinite or negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from marketdata.calendars import TradingCalendar
from marketdata.spans import Span
from marketdata.types import (
    CLOSE,
    HIGH,
    LOW,
    MINUTE,
    OPEN,
    TRADE_COUNT,
    VOLUME,
    VWAP,
    Bars,
    Bools,
    Floats,
    Int64s,
    Timeframe,
)

NO_TIMESTAMP: Final = int(np.iinfo(np.int64).min)
"""Stands for a timestamp that could not be read (the integer behind numpy's NaT)."""

_HALF_HOUR: Final = 30 * MINUTE


@dataclass(frozen=True, slots=True)
class GateReport:
    """What passed the gates, and what did not.

    Attributes
    ----------
    bars : Bars
        Strictly ascending by timestamp. The very object that was given where nothing was wrong.
    rejected : mapping of str to int
        Rows left out, by reason; no entry is 0.
    flagged : int
        Bars kept although open or close lies outside [low, high].
    cleared : int
        Values of vwap or trade count replaced by NaN.
    """

    bars: Bars
    rejected: Mapping[str, int] = field(default_factory=dict)
    flagged: int = 0
    cleared: int = 0


def on_grid(timestamps: Int64s, timeframe: Timeframe, calendar: TradingCalendar) -> Bools:
    """Return which timestamps can label a bar of `timeframe`.

    Intraday bars sit on multiples of their length; hours may also be anchored at 09:30, so their
    grid is half an hour. Daily, weekly and monthly bars are labelled by a session's midnight in
    the exchange's zone, whichever side of a DST change it lies on.
    """
    if timeframe.intraday:
        return np.asarray(timestamps % min(timeframe.step, _HALF_HOUR) == 0, np.bool_)
    at = calendar.session_index(timestamps)
    return np.asarray((at >= 0) & (calendar.midnight[at] == timestamps), np.bool_)


def gate(
    bars: Bars,
    *,
    span: Span,
    timeframe: Timeframe,
    calendar: TradingCalendar,
    now_us: int | None,
) -> GateReport:
    """Return the bars that may be kept, sorted and unique, with counts of the rest.

    Parameters
    ----------
    bars : Bars
        One series as the broker sent it: any order, repeats and dirt allowed. Not changed.
    span : Span
        The span asked, half-open, microseconds UTC.
    timeframe : Timeframe
        Of these bars.
    calendar : TradingCalendar
        Of the series' exchange.
    now_us : int or None
        Market time of the answer, microseconds UTC: bars whose interval ends later are still
        forming (a daily bar forms until its session's close). None keeps them.
    """
    if not len(bars):
        return GateReport(bars)
    rejected: dict[str, int] = {}
    checks = _timely(bars.timestamp, timeframe, calendar, span)
    if now_us is not None:
        checks["forming"] = _over(bars.timestamp, timeframe, calendar, now_us)
    keep = _first_failures(checks, None, rejected)
    keep = _plausible(bars.values, keep, rejected)
    if keep is not None:
        bars = bars.take(keep)
    bars = _ascending(bars, rejected)
    bars, cleared = _cleared(bars)
    return GateReport(bars, rejected, _flagged(bars.values), cleared)


def _timely(
    timestamps: Int64s, timeframe: Timeframe, calendar: TradingCalendar, span: Span
) -> dict[str, Bools]:
    return {
        "unreadable": timestamps != NO_TIMESTAMP,
        "out_of_window": (timestamps >= span.start) & (timestamps < span.end),
        "off_grid": on_grid(timestamps, timeframe, calendar),
    }


def _over(
    timestamps: Int64s, timeframe: Timeframe, calendar: TradingCalendar, now_us: int
) -> Bools:
    if timeframe.intraday:
        return np.asarray(timestamps <= now_us - timeframe.step, np.bool_)
    return np.asarray(calendar.close[calendar.session_index(timestamps)] <= now_us, np.bool_)


def _plausible(values: Floats, keep: Bools | None, rejected: dict[str, int]) -> Bools | None:
    """Narrow `keep` to the rows whose prices and volume can be true."""
    prices, volume = values[OPEN : CLOSE + 1], values[VOLUME]
    low, high = values[LOW], values[HIGH]
    if (
        prices.min() > 0  # False for NaN, as every comparison below
        and prices.max() < np.inf
        and volume.min() >= 0
        and volume.max() < np.inf
        and bool((high >= low).all())
    ):
        return keep
    with np.errstate(invalid="ignore"):
        checks = {
            "price": ((prices > 0) & (prices < np.inf)).all(axis=0),
            "range": high >= low,
            "volume": (volume >= 0) & (volume < np.inf),
        }
    return _first_failures(checks, keep, rejected)


def _first_failures(
    checks: Mapping[str, Bools], keep: Bools | None, rejected: dict[str, int]
) -> Bools | None:
    for reason, passed in checks.items():
        if keep is None and passed.all():
            continue
        standing = passed if keep is None else keep & passed
        before = len(passed) if keep is None else int(np.count_nonzero(keep))
        lost = before - int(np.count_nonzero(standing))
        if lost:
            rejected[reason] = lost
        keep = standing
    return keep


def _ascending(bars: Bars, rejected: dict[str, int]) -> Bars:
    """Sort by time; of equal timestamps keep the row that came last."""
    timestamps = bars.timestamp
    if len(timestamps) < 2 or bool((timestamps[1:] > timestamps[:-1]).all()):
        return bars
    order = np.argsort(timestamps, kind="stable")
    arranged = timestamps[order]
    last = np.append(arranged[1:] != arranged[:-1], True)
    repeats = len(arranged) - int(np.count_nonzero(last))
    if repeats:
        rejected["duplicate"] = repeats
    return bars.take(order[last])


def _cleared(bars: Bars) -> tuple[Bars, int]:
    extra = bars.values[VWAP : TRADE_COUNT + 1]
    with np.errstate(invalid="ignore"):
        bad = (extra < 0) | (extra == np.inf)
    count = int(np.count_nonzero(bad))
    if not count:
        return bars, 0
    values = bars.values.copy()
    values[VWAP : TRADE_COUNT + 1][bad] = np.nan
    return Bars(bars.timestamp, values), count


def _flagged(values: Floats) -> int:
    low, high = values[LOW], values[HIGH]
    ends = values[[OPEN, CLOSE]]
    return int(np.count_nonzero(((ends < low) | (ends > high)).any(axis=0)))
