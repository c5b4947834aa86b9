"""Decides which bars are new to somebody who follows them, and when the next ones are due. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from marketdata.calendars import TradingCalendar
from marketdata.protocols import Capabilities
from marketdata.queries import BarsQuery
from marketdata.spans import Span
from marketdata.types import Bars, Session, Timeframe

PIECE_BARS: Final = 200_000
"""Most bars of the past to read at once, about."""


def next_due(
    timeframe: Timeframe,
    session: Session,
    caps: Capabilities,
    calendar: TradingCalendar,
    now_us: int,
) -> int:
    """Return the first moment after `now_us` at which another bar may have closed and settled.

    Parameters
    ----------
    session : {"regular", "extended"}
        Of intraday bars: those of other hours are not waited for.

    Returns
    -------
    int
        Market time, microseconds UTC. Weeks and months are looked for after every session.
    """
    if not caps.bases[timeframe][0].base.intraday:
        delay = caps.daily_settle_delay
        for at in range(max(calendar.session_at(now_us - delay), 0), len(calendar.close)):
            due = calendar.session_span(at, "daily").end + delay
            if due > now_us:
                return due
        return calendar.horizon
    settled = now_us - caps.settle_delay
    for at in range(max(calendar.session_at(settled), 0), len(calendar.close)):
        for part in _parts(calendar, at, session):
            if settled < part.end:
                begun = max(0, settled - part.start) // timeframe.step
                end = min(part.start + (begun + 1) * timeframe.step, part.end)
                return end + caps.settle_delay
    return calendar.horizon


def _parts(calendar: TradingCalendar, at: int, session: Session) -> list[Span]:
    """Return the stretches of a session that bars of these hours are laid in."""
    regular = calendar.session_span(at, "regular")
    if session == "regular":
        return [regular]
    whole = calendar.session_span(at, "extended")
    return [Span(whole.start, regular.start), regular, Span(regular.end, whole.end)]


def piece_end(query: BarsQuery, start: int, calendar: TradingCalendar) -> int:
    """Return where a read from `start` ends that holds about `PIECE_BARS` bars at most."""
    left = max(1, PIECE_BARS // len(query.symbols))
    at = max(calendar.session_at(start), 0)
    if not query.timeframe.intraday:
        beyond = at + left >= len(calendar.midnight)
        return calendar.horizon if beyond else int(calendar.midnight[at + left])
    for session in range(at, len(calendar.midnight)):
        span = calendar.session_span(session, query.session)
        begin = max(start, span.start)
        here = max(0, -((begin - span.end) // query.timeframe.step))
        if here >= left:
            return begin + left * query.timeframe.step
        left -= here
    return calendar.horizon


def new_bars(found: Mapping[str, Bars], given: Mapping[str, int]) -> dict[str, Bars]:
    """Return for each symbol the bars later than the last one given; none for a symbol without."""
    fresh: dict[str, Bars] = {}
    for symbol, bars in found.items():
        at = int(np.searchsorted(bars.timestamp, given[symbol], side="right"))
        if at < len(bars):
            fresh[symbol] = Bars(bars.timestamp[at:], bars.values[:, at:])
    return fresh


def by_time(bars: Mapping[str, Bars]) -> Iterator[tuple[int, dict[str, Bars]]]:
    """Yield each bar time, ascending, with the bars of the symbols that have one."""
    names = sorted(name for name in bars if len(bars[name]))
    if not names:
        return
    lengths = [len(bars[name]) for name in names]
    stamps = np.concatenate([bars[name].timestamp for name in names])
    whose = np.repeat(np.arange(len(names)), lengths)
    place = np.concatenate([np.arange(length) for length in lengths])
    order = np.lexsort((whose, stamps))
    turns = np.flatnonzero(np.diff(stamps[order])) + 1
    for part in np.split(order, turns):
        found: dict[str, Bars] = {}
        for which, at in zip(whose[part].tolist(), place[part].tolist(), strict=True):
            one = bars[names[which]]
            found[names[which]] = Bars(one.timestamp[at : at + 1], one.values[:, at : at + 1])
        yield int(stamps[part[0]]), found
