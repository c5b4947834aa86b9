"""Where sealed chunks begin and end: whole days, in weeks, and in months once these are complete.

Days are those of the exchange, midnight to midnight, all days of the year, so that they join
without a seam. A chunk never crosses a month. Pure; instants are microseconds UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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


@cache
def _days() -> _Days:
    days = pd.date_range(_FIRST_MONDAY, _LAST_MIDNIGHT, freq="D", tz=_ZONE)
    midnight = days.tz_convert("UTC").as_unit("us").asi8.astype(np.int64)
    return _Days(midnight, np.flatnonzero(days.day == 1).astype(np.int64))


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
    midnight, months = _days()
    starts = midnight[months]
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
    """Cut a normal list of whole days into the spans of chunks: a complete month is one, what is
    known of another month one for each week."""
    found = []
    for run in days:
        for month in month_spans(run):
            if run.start <= month.start and run.end >= month.end:
                found.append(month)
            else:
                found += intersect([run], list(week_spans(month)))
    return found


class Merge(NamedTuple):
    """Chunks to be joined to one."""

    span: Span
    chunks: list[Span]


def merges(sealed: Sequence[Span], chunks: Sequence[Span]) -> list[Merge]:
    """Return which chunks to join, as disjoint spans: those of a month that is sealed completely,
    and those of a week where its month is not."""
    found: list[Merge] = []
    if not chunks:
        return found
    ordered = sorted(chunks)
    for month in month_spans(Span(ordered[0].start, ordered[-1].end)):
        inside = [c for c in ordered if month.start <= c.start < month.end]
        if intersect(sealed, [month]) == [month]:
            if len(inside) > 1:
                found.append(Merge(month, inside))
            continue
        for week in week_spans(month):
            parts = [c for c in inside if week.start <= c.start < week.end]
            if len(parts) > 1 and intersect(sealed, [week]) == [week]:
                found.append(Merge(week, parts))
    return found
