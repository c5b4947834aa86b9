"""Chunks tile what is sealed: no bar in two of them, none in none, never across a quarter."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.clock import from_micros
from marketdata.spans import Span, intersect, normalise, subtract
from marketdata.tiling import (
    merges,
    month_spans,
    pieces,
    quarter_spans,
    touched_days,
    traded_days,
    week_spans,
    whole_days,
)
from marketdata.types import HOUR, MINUTE

CALENDAR = calendar_for(EXCHANGE, 1_704_205_800_000_000)
FIRST = date(2023, 12, 20)
MIDNIGHTS = [CALENDAR.midnight_of(FIRST + timedelta(n)) for n in range(120)]
"""Over a whole quarter in winter, its ends, a leap day and the night the clocks change."""
HOURS = st.integers(0, 118 * 24 * 4).map(lambda quarter: MIDNIGHTS[0] + quarter * 15 * MINUTE)
SPANS = st.lists(st.tuples(HOURS, HOURS), max_size=5).map(
    lambda ends: normalise(Span(min(pair), max(pair)) for pair in ends)
)
LENGTHS = st.integers(1, 40) | st.integers(88, 119)
DAYS = st.lists(st.tuples(st.integers(0, 118), LENGTHS), max_size=5).map(
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


def test_quarters_are_three_months_of_the_year():
    span = Span(CALENDAR.midnight_of(date(2023, 2, 10)), CALENDAR.midnight_of(date(2023, 7, 1)) + 1)
    quarters = list(quarter_spans(span))
    edges = [date(2023, 1, 1), date(2023, 4, 1), date(2023, 7, 1), date(2023, 10, 1)]
    assert [q.start for q in quarters] == [CALENDAR.midnight_of(day) for day in edges[:3]]
    assert [q.end for q in quarters] == [CALENDAR.midnight_of(day) for day in edges[1:]]
    for quarter in quarters:
        months = list(month_spans(quarter))
        assert len(months) == 3
        assert normalise(months) == [quarter]


def tiles(chunks: list[Span], days: list[Span]) -> bool:
    """Whether the chunks are disjoint and cover the days and nothing else."""
    total = sum(span.end - span.start for span in chunks)
    return normalise(chunks) == days and total == sum(span.end - span.start for span in days)


def largest_wholes(days: list[Span]) -> list[Span]:
    """The quarters that are complete, the months that are outside these, and so the weeks."""
    found: list[Span] = []
    for quarter in quarter_spans(Span(MIDNIGHTS[0], MIDNIGHTS[-1])):
        if not subtract([quarter], days):
            found.append(quarter)
            continue
        for month in month_spans(quarter):
            if not subtract([month], days):
                found.append(month)
            else:
                found += [week for week in week_spans(month) if not subtract([week], days)]
    return found


def test_a_whole_quarter_is_one_chunk_and_a_day_less_is_months_and_weeks():
    first, end = (CALENDAR.midnight_of(day) for day in (date(2024, 1, 1), date(2024, 4, 1)))
    quarter = Span(first, end)
    assert pieces([quarter]) == [quarter]
    january, february, march = month_spans(quarter)
    less = Span(first, end - 24 * HOUR)
    assert pieces([less]) == [january, february, *intersect([less], list(week_spans(march)))]
    assert merges([less], pieces([less])) == []
    parts = [*pieces([less]), Span(less.end, end)]
    (merge,) = merges([quarter], parts)
    assert merge == (quarter, parts)


@given(DAYS)
def test_pieces_tile_the_days_and_are_quarters_or_months_or_parts_of_weeks(days: list[Span]):
    found = pieces(days)
    assert tiles(found, days)
    wholes = largest_wholes(days)
    assert set(wholes) <= set(found)
    for span in set(found) - set(wholes):
        first, last = (from_micros(t).astimezone(CALENDAR.zone) for t in (span.start, span.end - 1))
        assert (first.year, first.month) == (last.year, last.month)
        assert first.isocalendar().week == last.isocalendar().week
    assert merges(days, found) == [], "what has just been written is not written again"


def cut(chunks: list[Span], at: int) -> list[Span]:
    return [
        part
        for span in chunks
        for part in (span.clip(Span(0, at)), span.clip(Span(at, 1 << 60)))
        if not part.empty
    ]


@given(DAYS, st.lists(st.integers(1, 118), max_size=30))
def test_merging_leaves_quarters_months_and_weeks_where_these_are_complete(
    days: list[Span], cuts: list[int]
):
    """However the days came to be sealed one after the other."""
    chunks = pieces(days)
    for place in cuts:
        chunks = cut(chunks, MIDNIGHTS[place])
    todo = merges(days, chunks)
    merged = [span for merge in todo for span in merge.chunks]
    assert len(set(merged)) == len(merged), "no chunk is merged twice"
    assert [m.span for m in todo] == sorted(m.span for m in todo)
    for merge in todo:
        assert len(merge.chunks) > 1
        (quarter,) = quarter_spans(merge.span)
        assert tiles(merge.chunks, [merge.span]), quarter
    after = sorted([*(set(chunks) - set(merged)), *(merge.span for merge in todo)])
    assert tiles(after, days)
    assert merges(days, after) == []
    assert set(largest_wholes(days)) <= set(after)


@given(DAYS, st.integers(0, 118), LENGTHS)
def test_days_that_are_missing_keep_only_their_own_quarter_from_being_joined(
    days: list[Span], missing: int, count: int
):
    """Days unsealed by hand leave the chunks of every other quarter to be joined."""
    gap = Span(MIDNIGHTS[missing], MIDNIGHTS[min(missing + count, 119)])
    left = subtract(days, [gap])
    months = [
        part for run in days for month in month_spans(run) for part in intersect([run], [month])
    ]
    chunks = subtract_each(months, gap)
    touched = list(quarter_spans(gap))
    for merge in merges(days, months):
        (quarter,) = quarter_spans(merge.span)
        if quarter not in touched:
            assert merge in merges(left, chunks)
    for merge in merges(left, chunks):
        assert not intersect([gap], [merge.span])


def subtract_each(spans: list[Span], gap: Span) -> list[Span]:
    return [part for span in spans for part in subtract([span], [gap])]


def test_a_chunk_that_retention_has_cut_is_left_alone():
    """The first days of a quarter are dropped: its chunk stays, and nothing is to be joined."""
    first, end = (CALENDAR.midnight_of(day) for day in (date(2024, 1, 1), date(2024, 4, 1)))
    for kept in (first + 24 * HOUR, first + 17 * 24 * HOUR, first + 60 * 24 * HOUR):
        assert merges([Span(kept, end)], [Span(first, end)]) == []


def test_a_life_of_nights_writes_each_day_four_times_at_most():
    """Sealed a day at a time: as a day, in its week, in its month, in its quarter."""
    written: dict[int, int] = {}
    chunks: list[Span] = []
    for number, (start, end) in enumerate(pairwise(MIDNIGHTS)):
        chunks.append(Span(start, end))
        written[number] = 1
        for merge in merges([Span(MIDNIGHTS[0], end)], chunks):
            chunks = sorted([*(set(chunks) - set(merge.chunks)), merge.span])
            for day in days_of([merge.span]):
                written[day] += 1
        assert merges([Span(MIDNIGHTS[0], end)], chunks) == []
    assert max(written.values()) == 4
