"""Chunks tile what is sealed: no bar in two of them, none in none, never across a month."""

from __future__ import annotations

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.clock import from_micros
from marketdata.spans import Span, intersect, normalise, subtract
from marketdata.tiling import (
    merges,
    month_spans,
    pieces,
    touched_days,
    traded_days,
    week_spans,
    whole_days,
)
from marketdata.types import HOUR, MINUTE

CALENDAR = calendar_for(EXCHANGE, 1_704_205_800_000_000)
FIRST = date(2023, 12, 20)
MIDNIGHTS = [CALENDAR.midnight_of(FIRST + timedelta(n)) for n in range(120)]
"""Over two ends of month in winter, a leap day and the night the clocks change."""
HOURS = st.integers(0, 118 * 24 * 4).map(lambda quarter: MIDNIGHTS[0] + quarter * 15 * MINUTE)
SPANS = st.lists(st.tuples(HOURS, HOURS), max_size=5).map(
    lambda ends: normalise(Span(min(pair), max(pair)) for pair in ends)
)
DAYS = st.lists(st.tuples(st.integers(0, 118), st.integers(1, 40)), max_size=5).map(
    lambda runs: normalise(
        Span(MIDNIGHTS[first], MIDNIGHTS[min(first + count, 119)]) for first, count in runs
    )
)


def days_of(spans: list[Span]) -> list[int]:
    return [n for n in range(119) if intersect(spans, [Span(MIDNIGHTS[n], MIDNIGHTS[n + 1])])]


@given(SPANS)
def test_whole_days_are_those_whose_trading_hours_are_inside(spans: list[Span]):
    found = whole_days(spans)
    assert all(edge in MIDNIGHTS for span in found for edge in span)
    for n, midnight in enumerate(MIDNIGHTS[:-1]):
        trading = Span(midnight + 4 * HOUR, midnight + 20 * HOUR)
        assert (intersect(spans, [trading]) == [trading]) == (n in days_of(found))


@given(SPANS)
def test_a_day_is_touched_with_its_first_microsecond_and_traded_with_its_first_hour(
    spans: list[Span],
):
    for span in spans:
        touched, traded = touched_days(span), traded_days(span)
        assert touched.start <= span.start < span.end <= touched.end
        assert days_of([touched]) == days_of([span])
        for n, midnight in enumerate(MIDNIGHTS[:-1]):
            trading = Span(midnight + 4 * HOUR, midnight + 20 * HOUR)
            inside = [] if traded.empty else days_of([traded])
            assert bool(intersect([span], [trading])) == (n in inside)


@given(DAYS)
def test_pieces_tile_the_days_and_are_months_or_parts_of_weeks(days: list[Span]):
    found = pieces(days)
    assert normalise(found) == days
    assert sum(span.end - span.start for span in found) == sum(s.end - s.start for s in days)
    for span in found:
        first, last = (from_micros(t).astimezone(CALENDAR.zone) for t in (span.start, span.end - 1))
        assert (first.year, first.month) == (last.year, last.month)
        (month,) = month_spans(span)
        if span != month:
            assert first.isocalendar().week == last.isocalendar().week


@given(DAYS, st.lists(st.integers(1, 118), max_size=30))
def test_merging_leaves_months_and_weeks_where_these_are_complete(
    days: list[Span], cuts: list[int]
):
    """However the days came to be sealed one after the other."""
    chunks = pieces(days)
    for cut in cuts:
        at = MIDNIGHTS[cut]
        chunks = [
            part
            for span in chunks
            for part in (span.clip(Span(0, at)), span.clip(Span(at, 1 << 60)))
            if not part.empty
        ]
    todo = merges(days, chunks)
    merged = {span for merge in todo for span in merge.chunks}
    after = sorted([*(c for c in chunks if c not in merged), *(merge.span for merge in todo)])
    assert normalise(after) == days
    assert sum(span.end - span.start for span in after) == sum(s.end - s.start for s in days)
    assert merges(days, after) == []
    for month in month_spans(Span(MIDNIGHTS[0], MIDNIGHTS[-1])):
        if not subtract([month], days):
            assert month in after
        else:
            whole = [week for week in week_spans(month) if not subtract([week], days)]
            assert all(week in after for week in whole)
