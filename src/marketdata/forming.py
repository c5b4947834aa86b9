"""The bar that is still forming: fetched live on request, marked, never stored."""

from __future__ import annotations

from collections.abc import Mapping

from marketdata import planning, resample
from marketdata.applied import Applied
from marketdata.calendars import TradingCalendar
from marketdata.clock import Deadline
from marketdata.errors import DataUnavailableError
from marketdata.protocols import BarsRequest, Broker
from marketdata.quality import gate
from marketdata.queries import BarsQuery
from marketdata.spans import Span
from marketdata.types import DAY, Bars


def forming_bar(
    broker: Broker,
    calendar: TradingCalendar,
    query: BarsQuery,
    names: Mapping[str, str],
    applied: Applied,
    now_us: int,
    deadline: Deadline,
) -> dict[str, Bars]:
    """Return for each symbol the one bar of the query's timeframe that `now_us` lies in, from
    what the broker has of it so far, adjusted like the answer; symbols without trades are absent.

    Parameters
    ----------
    names : mapping
        The symbols, each with the one under which it trades now.
    """
    caps = broker.capabilities(query.feed)
    base = caps.bases[query.timeframe][0].base
    edge = planning.frontier(calendar, base, caps, now_us)
    start = edge
    if base is not query.timeframe:
        closed = planning.closed_labels(calendar, query.timeframe, edge)
        start = resample.base_span(Span(closed, now_us), query.timeframe, calendar).start
    span = Span(start, now_us if base.intraday else max(now_us, edge + DAY))
    hours = planning.stored_hours(base)
    if not names or span.empty or not calendar.trading_spans(Span(start, now_us), hours):
        return {}
    found: dict[str, list[Bars]] = {}
    request = BarsRequest(tuple(sorted(set(names.values()))), base, span, query.feed)
    try:
        for page in broker.pages(request, deadline):
            for symbol, bars in page.bars.items():
                kept = gate(bars, span=span, timeframe=base, calendar=calendar, now_us=None).bars
                found.setdefault(symbol, []).append(kept)
    except DataUnavailableError:
        # A key that may not see the last minutes has no forming bar; the closed ones stand.
        return {}
    answers: dict[str, Bars] = {}
    for symbol, name in names.items():
        bars = applied.adjusted(symbol, Bars.concat(found.get(name, [])))
        if base is not query.timeframe:
            bars = resample.resample(bars, base, query.timeframe, calendar, query.session)
        elif query.timeframe.intraday and query.session == "regular":
            bars = bars.take(calendar.mask(bars.timestamp, "regular"))
        if len(bars):
            answers[symbol] = bars.last(1)
    return answers
