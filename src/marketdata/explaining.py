"""What is known and what a call would cost: coverage, gaps, plans. Asks the store, no broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from marketdata import planning
from marketdata.calendars import TradingCalendar
from marketdata.clock import from_micros
from marketdata.identity import ALWAYS, Piece
from marketdata.spans import Span, intersect, normalise
from marketdata.types import SeriesKey, Timeframe

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.queries import BarsQuery
    from marketdata.wiring import Runtime


@dataclass(frozen=True, slots=True)
class PlannedSpan:
    """One stretch of one symbol's plan."""

    symbol: str
    tier: str
    """``postgres`` (Redis may answer the newest part of it faster), ``broker`` or ``unavailable``."""
    timeframe: str
    start: str
    end: str
    bars: int
    """Expected for a series that trades every minute; sparse series have fewer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call would do."""

    spans: tuple[PlannedSpan, ...]
    calls: int
    """Broker requests."""
    bars: int
    """Bars to fetch, at most."""
    seconds: float
    """Rough time the broker needs, the rate limit included."""

    def __str__(self) -> str:
        lines = [
            f"{s.symbol:<8} {s.tier:<11} {s.timeframe:<6} {s.start} .. {s.end}  <= {s.bars:,} bars"
            for s in self.spans
        ]
        cost = f"broker calls: {self.calls:,}   bars: <= {self.bars:,}   about {self.seconds:.1f} s"
        return "\n".join([*lines, cost])


NEVER_ASKED: Final = "never asked"
UNAVAILABLE: Final = "unavailable"
_SECONDS_A_CALL: Final = 0.35


def explain(runtime: Runtime, query: BarsQuery, now_us: int) -> Plan:
    """Return the plan of `query`, from stored coverage only."""
    calendar = runtime.calendar()
    caps = runtime.broker.capabilities(query.feed)
    stretches = _stretches(runtime, query, now_us)
    states = runtime.series_reader.states(query, _names(stretches))
    planned: list[PlannedSpan] = []
    missing: dict[SeriesKey, list[Span]] = {}
    for symbol, (name, span) in stretches:
        plan = runtime.series_reader.segments(query, name, span, states, now_us)
        for part in plan.parts:
            key = query.key(name).with_timeframe(part.base)
            holes = planning.gaps(part.asked, states[key], calendar, part.base)
            if not part.asked.empty:
                held = planning.held(part.asked, holes)
                planned += [_planned(symbol, "postgres", part.base, s, calendar) for s in held]
            planned += [_planned(symbol, "broker", part.base, s, calendar) for s in holes]
            missing.setdefault(key, []).extend(holes)
        planned += [
            _planned(symbol, "unavailable", query.timeframe, s, calendar) for s in plan.too_old
        ]
    calls = bars = 0
    for fetch in planning.fetches(missing, caps):
        expected = planning.expected_bars(fetch.span, fetch.base, calendar) * len(fetch.keys)
        bars += expected
        calls += max(1, -(-expected // caps.page_rows))
    # Covered closed hours hold no bars: nobody wants to see them.
    shown = tuple(s for s in planned if s.bars)
    return Plan(shown, calls, bars, calls * _SECONDS_A_CALL)


def _stretches(runtime: Runtime, query: BarsQuery, now_us: int) -> list[tuple[str, Piece]]:
    """Return what each symbol is first asked for, by the symbols under which it traded."""
    changed = runtime.identities.changed(query.provider, query.symbols, query.as_of_us)
    found: list[tuple[str, Piece]] = []
    for symbol in query.symbols:
        lineage, asked = changed.get(symbol), query
        if lineage is not None and lineage.end is not None and lineage.end < query.window.end:
            asked = replace(query, window=replace(query.window, end=lineage.end))
        (span,) = runtime.series_reader.planned_spans(asked, [symbol], now_us).values()
        pieces = [Piece(symbol, span)] if lineage is None else lineage.within(span)
        found += [(symbol, piece) for piece in pieces]
    return found


def _names(stretches: Sequence[tuple[str, Piece]]) -> list[str]:
    return list(dict.fromkeys(piece.symbol for _, piece in stretches))


def _planned(
    symbol: str, tier: str, base: Timeframe, span: Span, calendar: TradingCalendar
) -> PlannedSpan:
    start, end = (from_micros(t).isoformat() for t in span)
    expected = planning.expected_bars(span, base, calendar)
    return PlannedSpan(symbol, tier, base.value, start, end, expected)


def coverage(runtime: Runtime, query: BarsQuery) -> dict[str, list[Span]]:
    """Return by symbol the time for which bars of the query's timeframe need no broker.

    Where several stored series can answer (Yahoo's minutes, and its own hours further back), each
    counts where a read would take it from.
    """
    calendar = runtime.calendar()
    caps = runtime.broker.capabilities(query.feed)
    now_us = query.window.end
    whole = Span(min(max(caps.earliest, calendar.first), now_us), now_us)
    changed = runtime.identities.changed(query.provider, query.symbols)
    pieces = {s: changed[s].pieces if s in changed else (Piece(s, ALWAYS),) for s in query.symbols}
    names = dict.fromkeys(piece.symbol for each in pieces.values() for piece in each)
    states = runtime.series_reader.states(query, list(names))
    found: dict[str, list[Span]] = {}
    for symbol in query.symbols:
        spans: list[Span] = []
        for piece in pieces[symbol]:
            parts = runtime.series_reader.segments(query, piece.symbol, whole, states, now_us).parts
            for at, part in enumerate(parts):
                key = query.key(piece.symbol).with_timeframe(part.base)
                # Coverage reaches over closed hours, beyond the first and the last label.
                start = part.labels.start if at else ALWAYS.start
                end = part.labels.end if at + 1 < len(parts) else ALWAYS.end
                spans += intersect(states[key].coverage, [Span(start, end).clip(piece.span)])
        found[symbol] = normalise(spans)
    return found


@dataclass(slots=True)
class KnownParts:
    """What of a window is stored of one symbol, how settled, and what is not. Spans may reach over
    closed hours; what counts of them is trading time."""

    expected: list[Span] = field(default_factory=list)
    """Where closed bars can be: all of the window, as far as the instrument lived."""
    never_asked: list[Span] = field(default_factory=list)
    unavailable: list[Span] = field(default_factory=list)
    final: list[Span] = field(default_factory=list)
    """Stored, and past the provider's corrections; the rest of what is stored is provisional."""


def known_parts(runtime: Runtime, query: BarsQuery, now_us: int) -> dict[str, KnownParts]:
    """Return by symbol what of the query's window is stored, and what is not."""
    calendar = runtime.calendar()
    hours = planning.stored_hours(query.timeframe)
    stretches = _stretches(runtime, query, now_us)
    states = runtime.series_reader.states(query, _names(stretches))
    found = {symbol: KnownParts() for symbol in query.symbols}
    for symbol, (name, span) in stretches:
        plan = runtime.series_reader.segments(query, name, span, states, now_us)
        held = found[symbol]
        asked: list[Span] = []
        for part in plan.parts:
            state = states[query.key(name).with_timeframe(part.base)]
            # Bars to be read again for corrections are stored: a request brings them, no gap.
            asked += planning.gaps(part.asked, replace(state, unsettled=[]), calendar, part.base)
            held.expected.append(part.asked)
            held.final += intersect(state.final, normalise([part.asked]))
        trading = [calendar.trading_spans(s, hours) for s in plan.too_old]
        held.never_asked = normalise([*held.never_asked, *asked])
        held.unavailable += [Span(t[0].start, t[-1].end) for t in trading if t]
    for held in found.values():
        held.expected = normalise([*held.expected, *held.unavailable])
        held.final = normalise(held.final)
    return found


def gaps(runtime: Runtime, query: BarsQuery, now_us: int) -> dict[str, dict[str, list[Span]]]:
    """Return by symbol and state what of the query's window is not stored, in trading time.

    ``never asked`` is what a read would fetch; ``unavailable`` is older than the broker gives.
    """
    return {
        symbol: {NEVER_ASKED: held.never_asked, UNAVAILABLE: held.unavailable}
        for symbol, held in known_parts(runtime, query, now_us).items()
    }


def gaps_frame(found: Mapping[str, Mapping[str, Sequence[Span]]]) -> pd.DataFrame:
    """Return gaps of many symbols as a frame, one row each, with their state."""
    import pandas as pd

    rows = sorted(
        (symbol, span, state)
        for symbol, by_state in found.items()
        for state, spans in by_state.items()
        for span in spans
    )
    frame = _frame([(symbol, span) for symbol, span, _ in rows])
    frame["state"] = pd.array([state for _, _, state in rows], dtype="str")
    return frame


def spans_frame(found: Mapping[str, Sequence[Span]]) -> pd.DataFrame:
    """Return spans of many symbols as a frame, one row each."""
    return _frame([(symbol, span) for symbol, spans in found.items() for span in spans])


def _frame(rows: Sequence[tuple[str, Span]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "symbol": pd.array([r[0] for r in rows], dtype="str"),
            "start": pd.to_datetime([r[1].start for r in rows], unit="us", utc=True).as_unit("us"),
            "end": pd.to_datetime([r[1].end for r in rows], unit="us", utc=True).as_unit("us"),
        }
    )
