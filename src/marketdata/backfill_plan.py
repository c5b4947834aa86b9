"""Decides what a backfill fetches, and in which order. Pure: no server, no clock.

::

    scope + states -> audit    every gap with its state, from stored coverage alone
    audit          -> chunks   days of all symbols first, then minutes, newest month first

A chunk is what is lost when a run is killed: one month (all of it for days) of a batch of symbols.
Settled sessions are cut from the newest ones, so that whole chunks can be stored sealed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Final, Literal

import numpy as np

from marketdata import planning
from marketdata.calendars import TradingCalendar
from marketdata.planning import Fetch
from marketdata.protocols import Capabilities, SeriesState
from marketdata.spans import Span, intersect, normalise, subtract
from marketdata.types import HOUR, Int64s, SeriesKey, Timeframe

CHUNK_BARS: Final = 250_000
"""Bars a chunk may hold: 25 pages of Alpaca's, a second or two of a quick broker."""
PAGES_A_LANE: Final = 3
"""Full pages that a part of a chunk holds at least, if it is asked for beside others."""
FIRST_RETRY: Final = HOUR
LONGEST_RETRY: Final = 7 * 24 * HOUR
_SPREAD: Final = 0.2

GapState = Literal["never asked", "failed", "quiet", "vendor has none"]
NEVER_ASKED: Final = "never asked"
FAILED: Final = "failed"
QUIET: Final = "quiet"
VENDOR_HAS_NONE: Final = "vendor has none"


@dataclass(frozen=True, slots=True)
class Scope:
    """What is to be filled: `series` in the order of their priority, by the timeframe wanted."""

    series: tuple[SeriesKey, ...]
    span: Span
    """Bars labelled in ``[start, end)``, microseconds UTC."""
    intraday_from: int
    """Intraday bars before this instant are not kept for long, and not fetched."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A stretch of one stored series that could not be fetched, and when to try again."""

    key: SeriesKey
    span: Span
    error: str
    attempts: int
    failed_us: int
    """Market time of the last attempt."""
    retry_us: int
    """Market time before which it is left alone."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of a stored series without bars, and why there are none."""

    key: SeriesKey
    span: Span
    state: GapState
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Audit:
    """Every gap of a scope, found without a broker call."""

    missing: Mapping[SeriesKey, Sequence[Span]]
    """What a run would fetch now, by stored series, in the order of priority."""
    waiting: Sequence[Gap] = ()
    """Failed, and not to be tried again yet."""
    older: Sequence[Gap] = ()
    """Older than the broker gives."""
    quiet: Sequence[Gap] = ()
    """Answered without a bar, before the first stored one or where there is none at all."""

    def gaps(self) -> list[Gap]:
        """Return all gaps, those a run would fetch first."""
        missing = [
            Gap(key, span, NEVER_ASKED) for key, spans in self.missing.items() for span in spans
        ]
        return [*missing, *self.waiting, *self.older, *self.quiet]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One walk of a backfill, with what it costs at most."""

    fetch: Fetch
    bars: int
    calls: int
    lanes: int = 1
    """In how many parts its symbols are asked for at once; each has a last page that is not full."""


# --------------------------------------------------------------------------------------- audit


def stored_keys(scope: Scope, caps: Capabilities) -> list[SeriesKey]:
    """Return every stored series that can answer the series of `scope`."""
    found = {
        key.with_timeframe(option.base): None
        for key in scope.series
        for option in caps.bases[key.timeframe]
    }
    return list(found)


def audit(
    scope: Scope,
    states: Mapping[SeriesKey, SeriesState],
    caps: Capabilities,
    calendar: TradingCalendar,
    now_us: int,
    failures: Iterable[Failure] = (),
) -> Audit:
    """Return the gaps of `scope` by state.

    Parameters
    ----------
    states : mapping
        Of every key of `stored_keys`.
    failures : iterable of Failure
        What earlier runs could not fetch; those whose time has come count as never asked.
    """
    missing: dict[SeriesKey, list[Span]] = {}
    asked: dict[SeriesKey, list[Span]] = {}
    older: list[Gap] = []
    find_gaps = _remembering_gaps(calendar)
    for key in scope.series:
        span = _kept(scope, key.timeframe)
        parts = planning.segments(
            key.timeframe,
            span,
            caps,
            calendar,
            now_us,
            lambda base, key=key: states[key.with_timeframe(base)].coverage,  # type: ignore[misc]
        )
        for part in parts.parts:
            stored = key.with_timeframe(part.base)
            asked.setdefault(stored, []).append(part.asked)
            holes = find_gaps(part.asked, states[stored], part.base)
            if holes:
                missing[stored] = normalise([*missing.get(stored, ()), *holes])
        hours = planning.stored_hours(key.timeframe)
        for beyond in parts.too_old:
            if trading := calendar.trading_spans(beyond, hours):
                stretch = Span(trading[0].start, trading[-1].end)
                older.append(Gap(key, stretch, VENDOR_HAS_NONE))
    waiting = _hold_back(missing, failures, now_us)
    return Audit(
        {key: spans for key, spans in missing.items() if spans},
        waiting,
        older,
        _quiet(asked, states, calendar),
    )


def _kept(scope: Scope, timeframe: Timeframe) -> Span:
    if not timeframe.intraday:
        return scope.span
    start = max(scope.span.start, scope.intraday_from)
    return Span(start, max(start, scope.span.end))


def _remembering_gaps(
    calendar: TradingCalendar,
) -> Callable[[Span, SeriesState, Timeframe], list[Span]]:
    """Return `planning.gaps` with a memory: of ten thousand series most have the same coverage."""
    known: dict[tuple[object, ...], list[Span]] = {}

    def find(asked: Span, state: SeriesState, base: Timeframe) -> list[Span]:
        address = (asked, base, tuple(state.coverage))
        found = known.get(address)
        if found is None:
            # Without those that ride along for corrections: a backfill takes out nothing that is
            # withdrawn, so it must not make final what somebody else has stored.
            alone = SeriesState(state.coverage)
            found = known[address] = planning.gaps(asked, alone, calendar, base)
        return found

    return find


def _hold_back(
    missing: dict[SeriesKey, list[Span]], failures: Iterable[Failure], now_us: int
) -> list[Gap]:
    """Take from `missing` what failed and is not to be tried again yet."""
    held: list[Gap] = []
    for failure in failures:
        if failure.retry_us <= now_us or failure.key not in missing:
            continue
        mine = intersect(missing[failure.key], [failure.span])
        held += [Gap(failure.key, span, FAILED, failure) for span in mine]
        missing[failure.key] = subtract(missing[failure.key], mine)
    return held


def _quiet(
    asked: Mapping[SeriesKey, Sequence[Span]],
    states: Mapping[SeriesKey, SeriesState],
    calendar: TradingCalendar,
) -> list[Gap]:
    """Return what was answered without a bar: whole sessions before a series' first bar, or all
    of it."""
    found: list[Gap] = []
    for key, spans in asked.items():
        state = states[key]
        hours = planning.stored_hours(key.timeframe)
        until = calendar.horizon
        if state.first_bar is not None:
            until = calendar.session_span(calendar.session_at(state.first_bar), hours).start
        for span in intersect(normalise(spans), state.coverage):
            trading = calendar.trading_spans(
                Span(span.start, max(span.start, min(span.end, until))), hours
            )
            if trading:
                found.append(Gap(key, Span(trading[0].start, trading[-1].end), QUIET))
    return found


# ------------------------------------------------------------------------------------- failures


def next_retry(
    attempts: int, now_us: int, spread: Callable[[float, float], float] = random.uniform
) -> int:
    """Return when to try again after the `attempts`-th failure: an hour, twice as long each time,
    a week at most, and a fifth more or less, so that not everything comes back in one night."""
    wait = min(FIRST_RETRY << (min(attempts, 16) - 1), LONGEST_RETRY)
    return now_us + round(wait * spread(1 - _SPREAD, 1 + _SPREAD))


# --------------------------------------------------------------------------------------- chunks


def limited(
    found: Audit, max_symbols: int
) -> tuple[dict[SeriesKey, Sequence[Span]], dict[SeriesKey, Sequence[Span]]]:
    """Return what this run fetches, and what it leaves to later ones.

    `max_symbols` counts the symbols whose intraday bars are filled, the first ones by priority; 0
    is all. Daily bars are cheap, and taken for all symbols; where nothing else is missing, they
    are what is counted.
    """
    counted = {k.symbol: None for k in found.missing if k.timeframe.intraday}
    only_days = not counted
    if only_days:
        counted = {k.symbol: None for k in found.missing}
    chosen = set(list(counted)[:max_symbols]) if max_symbols else set(counted)
    taken = {
        key: spans
        for key, spans in found.missing.items()
        if key.symbol in chosen or (not only_days and not key.timeframe.intraday)
    }
    return taken, {k: spans for k, spans in found.missing.items() if k not in taken}


def chunks(
    missing: Mapping[SeriesKey, Sequence[Span]],
    caps: Capabilities,
    calendar: TradingCalendar,
    seal_edge: int | None,
    lanes: int = 1,
) -> list[Chunk]:
    """Return the walks that fetch `missing`: coarser bars first, then newest month first.

    Parameters
    ----------
    missing : mapping
        By stored series, in the order of priority.
    seal_edge : int or None
        Whole intraday sessions that end by this instant are stored sealed; None seals nothing.
    lanes : int
        Most parts of a chunk to walk at once, where they are long enough to be worth it.
    """
    groups: dict[tuple[Timeframe, Span, bool], list[SeriesKey]] = {}
    cut = _Cutter(calendar, seal_edge)
    for key, spans in missing.items():
        for span in spans:
            for piece, sealed in cut.pieces(key.timeframe, span):
                groups.setdefault((key.timeframe, piece, sealed), []).append(key)
    found: list[Chunk] = []
    for (base, span, sealed), keys in groups.items():
        each = planning.expected_bars(span, base, calendar)
        most = max(1, min(caps.batch_symbols, CHUNK_BARS // max(each, 1)))
        for at in range(0, len(keys), most):
            batch = tuple(sorted(keys[at : at + most], key=lambda k: k.symbol))
            fetch = Fetch(base, span, batch, sealed=sealed)
            found.append(_priced(fetch, caps, each, lanes))
    return sorted(found, key=lambda c: _order(c.fetch, calendar))


def narrowed(
    chunk: Chunk,
    keys: Sequence[SeriesKey],
    caps: Capabilities,
    calendar: TradingCalendar,
    lanes: int = 1,
) -> Chunk:
    """Return `chunk` for some of its series only."""
    fetch = replace(chunk.fetch, keys=tuple(keys))
    each = planning.expected_bars(fetch.span, fetch.base, calendar)
    return _priced(fetch, caps, each, lanes)


def in_lanes[Item](items: Sequence[Item], lanes: int) -> list[Sequence[Item]]:
    """Return `items` in at most `lanes` parts that follow each other and are about as long."""
    count = max(1, min(lanes, len(items)))
    edges = [len(items) * n // count for n in range(count + 1)]
    return [items[low:high] for low, high in pairwise(edges)]


def _priced(fetch: Fetch, caps: Capabilities, each: int, lanes: int) -> Chunk:
    bars = each * len(fetch.keys)
    lanes = max(1, min(lanes, bars // (PAGES_A_LANE * caps.page_rows)))
    parts = in_lanes(fetch.keys, lanes)
    calls = sum(_calls(fetch.span, fetch.base, len(part), each, caps) for part in parts)
    return Chunk(fetch, bars, calls, len(parts))


def _order(fetch: Fetch, calendar: TradingCalendar) -> tuple[bool, int, int]:
    month = int(_months(calendar)[calendar.session_at(fetch.span.start)])
    return fetch.base.intraday, -month, -fetch.span.start


def _calls(span: Span, base: Timeframe, series: int, bars_each: int, caps: Capabilities) -> int:
    longest = caps.max_span.get(base)
    spans = 1 if longest is None else -(-(span.end - span.start) // longest)
    if caps.batch_symbols == 1:
        return spans * series
    return max(spans, -(-bars_each * series // caps.page_rows), 1)


class _Cutter:
    """Cuts gaps of intraday series where the exchange's month changes, and where whole settled
    sessions end; daily gaps stay whole. Remembers: many series have the same gap."""

    def __init__(self, calendar: TradingCalendar, seal_edge: int | None) -> None:
        self._calendar = calendar
        self._edge = seal_edge
        self._known: dict[tuple[Timeframe, Span], list[tuple[Span, bool]]] = {}

    def pieces(self, base: Timeframe, gap: Span) -> list[tuple[Span, bool]]:
        """Return the parts of `gap`, each with whether it can be stored sealed."""
        if not base.intraday:
            return [(gap, False)]
        found = self._known.get((base, gap))
        if found is None:
            found = self._known[base, gap] = self._cut(gap)
        return found

    def _cut(self, gap: Span) -> list[tuple[Span, bool]]:
        calendar, months = self._calendar, _months(self._calendar)
        sessions = calendar.trading_spans(gap, "extended")
        first = calendar.session_at(gap.start)
        found: list[tuple[Span, bool, int]] = []
        for at, session in enumerate(sessions, start=first):
            whole = session == calendar.session_span(at, "extended")
            sealed = whole and self._edge is not None and session.end <= self._edge
            month = int(months[at])
            if found and found[-1][1:] == (sealed, month):
                found[-1] = (Span(found[-1][0].start, session.end), sealed, month)
            else:
                found.append((session, sealed, month))
        return [(span, sealed) for span, sealed, _ in found]


@lru_cache(maxsize=4)
def _months(calendar: TradingCalendar) -> Int64s:
    """Return for each session the number of its month since January 1970."""
    noon = calendar.midnight + 12 * HOUR
    return np.asarray(noon.astype("M8[us]").astype("M8[M]"), np.int64)


def seal_edge(calendar: TradingCalendar, now_us: int, keep_sessions: int | None) -> int | None:
    """Return the instant by which sessions that are stored sealed have ended.

    Parameters
    ----------
    keep_sessions : int or None
        How many of the newest sessions stay rows, today's included; None never seals.
    """
    at = -1 if keep_sessions is None else calendar.session_at(now_us) - keep_sessions
    return calendar.session_span(at, "extended").end if at >= 0 else None
