"""What is known and what a call would cost: coverage, gaps, plans, fingerprints, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from marketdata import planning
from marketdata.calendars import TradingCalendar
from marketdata.clock import from_micros
from marketdata.ranges import Window
from marketdata.spans import Span
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


_SECONDS_A_CALL = 0.35


def explain(runtime: Runtime, query: BarsQuery, now_us: int) -> Plan:
    """Return the plan of `query`, from stored coverage only."""
    calendar = runtime.calendar()
    caps = runtime.broker.capabilities(query.feed)
    spans = runtime.reader.planned_spans(query, query.symbols, now_us)
    states = runtime.reader.states(query, list(spans))
    planned: list[PlannedSpan] = []
    missing: dict[SeriesKey, list[Span]] = {}
    for symbol, span in spans.items():
        plan = runtime.reader.segments(query, symbol, span, states, now_us)
        for part in plan.parts:
            key = query.key(symbol).with_timeframe(part.base)
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


def _planned(
    symbol: str, tier: str, base: Timeframe, span: Span, calendar: TradingCalendar
) -> PlannedSpan:
    start, end = (from_micros(t).isoformat() for t in span)
    expected = planning.expected_bars(span, base, calendar)
    return PlannedSpan(symbol, tier, base.value, start, end, expected)


def known_spans(
    runtime: Runtime,
    symbols: Sequence[str],
    timeframe: Timeframe,
    feed: str,
    window: Window | None,
) -> dict[str, list[Span]]:
    """Return coverage of the stored series by symbol; with a window, the gaps inside it."""
    caps = runtime.broker.capabilities(feed)
    base = caps.bases[timeframe][0].base
    keys = {s: SeriesKey(runtime.provider, feed, s, base) for s in symbols}
    states = runtime.store.states(list(keys.values()))
    if window is None:
        return {s: list(states[k].coverage) for s, k in keys.items()}
    calendar = runtime.calendar()
    edge = planning.frontier(calendar, base, caps, runtime.clock.now_us())
    asked = Span(max(window.span(calendar.first).start, caps.earliest), min(window.end, edge))
    return {s: planning.gaps(asked, states[k], calendar, base) for s, k in keys.items()}


def spans_frame(found: Mapping[str, Sequence[Span]], state: str | None) -> pd.DataFrame:
    """Return spans of many symbols as a frame, one row each."""
    import pandas as pd

    rows = [(symbol, span) for symbol, spans in found.items() for span in spans]
    data: dict[str, object] = {
        "symbol": pd.array([r[0] for r in rows], dtype="str"),
        "start": pd.to_datetime([r[1].start for r in rows], unit="us", utc=True).as_unit("us"),
        "end": pd.to_datetime([r[1].end for r in rows], unit="us", utc=True).as_unit("us"),
    }
    if state is not None:
        data["state"] = pd.array([state] * len(rows), dtype="str")
    return pd.DataFrame(data)
