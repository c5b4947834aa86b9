"""Where sealed chunks begin and end: whole days, in weeks, in months once these are complete, and in
quarters of the year once these are.

Days are those of the exchange, midnight to midnight, all days of the year, so that they join
without a seam. A chunk never crosses the end of a quarter. Pure; instants are microseconds UTC.

A chunk costs its reader some 70 microseconds beside its bars: two years of minutes decode in 3.9 ms
as months, in 2.7 as quarters, in 2.5 as half-years. A longer chunk is no longer worth what it costs
otherwise: a read of one day fetches the whole of it, and a correction writes all of it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from marketdata.spans import Span, intersect, normalise
from marketdata.types import HOUR, Int64s

_ZONE: Final = "America/New_York"
_FIRST_MONDAY: Final = "1969-12-29"
_LAST_MIDNIGHT: Final = "2200-01-06"
# Trading of a day lies within these hours, and clocks never change on a day with trading.
_TRADING_FROM: Final = 4 * HOUR
_TRADING_TO: Final = 20 * HOUR


class _Days(NamedTuple):
    midnight: Int64s
    """First microsecond of each day, and of the day after the last."""
    months: Int64s
    """Places in `midnight` where months begin."""
    quarters: Int64s
    """Places in `midnight` where quarters of the year begin."""


@cache
def _days() -> _Days:
    days = pd.date_range(_FIRST_MONDAY, _LAST_MIDNIGHT, freq="D", tz=_ZONE)
    midnight = days.tz_convert("UTC").as_unit("us").asi8.astype(np.int64)
    first = days.day == 1
    months, quarters = (np.flatnonzero(at) for at in (first, first & (days.month % 3 == 1)))
    return _Days(midnight, months.astype(np.int64), quarters.astype(np.int64))


def whole_days(spans: Iterable[Span]) -> list[Span]:
    """Return, from midnight to midnight, the days whose hours of trading lie inside `spans`.

    A holiday or a weekend counts as any other day: it is known to be quiet.
    """
    midnight = _days().midnight
    found = []
    for span in spans:
        low = int(np.searchsorted(midnight, span.start - _TRADING_FROM))
        high = int(np.searchsorted(midnight, span.end - _TRADING_TO, side="right"))
        high = min(high, len(midnight) - 1)
        if low < high:
            found.append(Span(int(midnight[low]), int(midnight[high])))
    return normalise(found)


def touched_days(span: Span) -> Span:
    """Return the days that `span` touches, from midnight to midnight; empty for an empty span."""
    if span.empty:
        return Span(0, 0)
    midnight = _days().midnight
    low = int(np.searchsorted(midnight, span.start, side="right")) - 1
    high = int(np.searchsorted(midnight, span.end))
    return Span(int(midnight[max(low, 0)]), int(midnight[min(high, len(midnight) - 1)]))


def traded_days(span: Span) -> Span:
    """Return the days some of whose hours of trading lie in `span`, from midnight to midnight."""
    midnight = _days().midnight
    low = int(np.searchsorted(midnight, span.start - _TRADING_TO, side="right"))
    high = int(np.searchsorted(midnight, span.end - _TRADING_FROM))
    if span.empty or low >= high:
        return Span(0, 0)
    return Span(int(midnight[low]), int(midnight[min(high, len(midnight) - 1)]))


def month_spans(span: Span) -> Iterator[Span]:
    """Yield the whole months, midnight to midnight, that `span` touches."""
    return _touched(span, _days().months)


def quarter_spans(span: Span) -> Iterator[Span]:
    """Yield the whole quarters of the year, midnight to midnight, that `span` touches."""
    return _touched(span, _days().quarters)


def _touched(span: Span, places: Int64s) -> Iterator[Span]:
    """Yield those of the stretches beginning at `places` that `span` touches."""
    starts = _days().midnight[places]
    low = max(int(np.searchsorted(starts, span.start, side="right")) - 1, 0)
    high = int(np.searchsorted(starts, span.end))
    for at in range(low, min(high, len(starts) - 1)):
        yield Span(int(starts[at]), int(starts[at + 1]))


def week_spans(month: Span) -> Iterator[Span]:
    """Yield the weeks of a month, Monday to Monday, cut at its ends."""
    midnight = _days().midnight
    at, end = (int(np.searchsorted(midnight, edge)) for edge in month)
    while at < end:
        following = min(at - at % 7 + 7, end)
        yield Span(int(midnight[at]), int(midnight[following]))
        at = following


def pieces(days: Sequence[Span]) -> list[Span]:
    """Cut a normal list of whole days into the spans of chunks: a complete quarter is one, of
    another quarter a complete month, and what is known of another month one for each week."""
    return [piece for run in days for quarter in quarter_spans(run) for piece in _cut(run, quarter)]


def _cut(run: Span, quarter: Span) -> Iterator[Span]:
    """Yield the pieces of a run of days in one quarter."""
    if _holds(run, quarter):
        yield quarter
        return
    for month in month_spans(run.clip(quarter)):
        if _holds(run, month):
            yield month
        else:
            yield from intersect([run], list(week_spans(month)))


def _holds(run: Span, whole: Span) -> bool:
    return run.start <= whole.start and run.end >= whole.end


class Merge(NamedTuple):
    """Chunks to be joined to one."""

    span: Span
    chunks: list[Span]


def merges(sealed: Sequence[Span], chunks: Sequence[Span]) -> list[Merge]:
    """Return which chunks to join, as disjoint spans in order of time: those of a quarter that is
    sealed completely, of another quarter those of a month that is, and of another month those of a
    week that is."""
    if not chunks:
        return []
    ordered = sorted(chunks)
    found: list[Merge] = []
    for quarter in quarter_spans(Span(ordered[0].start, ordered[-1].end)):
        found += _joined(sealed, _starting_in(quarter, ordered), [quarter], month_spans, week_spans)
    return found


def _joined(
    sealed: Sequence[Span],
    chunks: Sequence[Span],
    wholes: Iterable[Span],
    *finer: Callable[[Span], Iterable[Span]],
) -> Iterator[Merge]:
    """Yield what to join to each of `wholes`; where one is not sealed completely, to what the first
    of `finer` cuts it into."""
    for whole in wholes:
        inside = _starting_in(whole, chunks)
        if len(inside) < 2:
            continue
        if intersect(sealed, [whole]) == [whole]:
            yield Merge(whole, inside)
        elif finer:
            yield from _joined(sealed, inside, finer[0](whole), *finer[1:])


def _starting_in(span: Span, chunks: Sequence[Span]) -> list[Span]:
    return [chunk for chunk in chunks if span.start <= chunk.start < span.end]
