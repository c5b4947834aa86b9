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

from collections.abc import Mapping, Sequence
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
    SeriesKey,
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


def gate_all(
    series: Mapping[str, Bars],
    *,
    span: Span,
    timeframe: Timeframe,
    calendar: TradingCalendar,
    now_us: int | None,
) -> dict[str, GateReport]:
    """Return what `gate` returns of each series, all looked at together.

    Where nothing is wrong with any of them, which is nearly always so, ten thousand series cost
    as much as a few large ones.
    """
    filled = {name: bars for name, bars in series.items() if len(bars)}
    flagged = _flagged_of_spotless(list(filled.values()), span, timeframe, calendar, now_us)
    if flagged is None:
        return {
            name: gate(bars, span=span, timeframe=timeframe, calendar=calendar, now_us=now_us)
            for name, bars in series.items()
        }
    counts = dict(zip(filled, flagged, strict=True))
    return {name: GateReport(bars, {}, counts.get(name, 0)) for name, bars in series.items()}


def _flagged_of_spotless(
    parts: Sequence[Bars],
    span: Span,
    timeframe: Timeframe,
    calendar: TradingCalendar,
    now_us: int | None,
) -> list[int] | None:
    """Return how many bars of each series are flagged; None where a gate has more to do."""
    if not parts:
        return []
    bars = Bars.concat(parts)
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    checks = _timely(bars.timestamp, timeframe, calendar, span)
    if now_us is not None:
        checks["forming"] = _over(bars.timestamp, timeframe, calendar, now_us)
    rising = np.append(True, bars.timestamp[1:] > bars.timestamp[:-1])
    rising[starts] = True
    checks["ascending"] = rising
    if not all(passed.all() for passed in checks.values()):
        return None
    if _plausible(bars.values, None, {}) is not None or _cleared(bars)[1]:
        return None
    counts: list[int] = np.add.reduceat(_outside(bars.values), starts, dtype=np.int64).tolist()
    return counts


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
    return int(np.count_nonzero(_outside(values)))


def _outside(values: Floats) -> Bools:
    """Return which bars open or close outside [low, high]."""
    low, high = values[LOW], values[HIGH]
    ends = values[[OPEN, CLOSE]]
    return np.asarray(((ends < low) | (ends > high)).any(axis=0), np.bool_)


# ------------------------------------------------------------------------------------ withdrawn

_FEW: Final = 5
_SHARE: Final = 0.02


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What the provider's final answers no longer have."""

    sure: Mapping[SeriesKey, Int64s]
    """Labels to take out of the store, by series."""
    suspicious: Sequence[SeriesKey]
    """Series that lack more than is believed."""
    kept: int
    """Bars of these, which stay."""


def withdrawn_labels(
    stored: Mapping[SeriesKey, Bars], given: Mapping[SeriesKey, Int64s], calendar: TradingCalendar
) -> Withdrawn:
    """Return which stored bars the provider has withdrawn, going by its final answers.

    A provider withdraws single bars, when the trades in them are cancelled. Where more than five
    bars and more than 2 % of a session are missing, or of all series together, the answer is not
    believed: it is rather the answer that is incomplete.

    Parameters
    ----------
    stored : mapping
        What the store has of each series, in spans that the answer covers completely.
    given : mapping
        The labels of the answer, ascending.
    """
    missing: dict[SeriesKey, Int64s] = {}
    suspicious: list[SeriesKey] = []
    kept = held = 0
    for key, bars in stored.items():
        held += len(bars)
        gone = np.setdiff1d(bars.timestamp, given[key], assume_unique=True)
        if not len(gone):
            continue
        sessions, counts = np.unique(calendar.session_index(gone), return_counts=True)
        of = np.bincount(calendar.session_index(bars.timestamp), minlength=sessions[-1] + 1)
        if (counts > np.maximum(_FEW, _SHARE * of[sessions])).any():
            suspicious.append(key)
            kept += len(gone)
        else:
            missing[key] = gone
    total = sum(len(gone) for gone in missing.values())
    if total > max(_FEW, _SHARE * held):
        return Withdrawn({}, [*suspicious, *missing], kept + total)
    return Withdrawn(missing, suspicious, kept)
