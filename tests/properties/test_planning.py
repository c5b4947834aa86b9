"""Planning against the plain meaning of its words: covered, missing, closed, enough."""

from __future__ import annotations

from datetime import date
from functools import lru_cache
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata import planning
from marketdata.calendars import Hours, TradingCalendar
from marketdata.protocols import BaseTimeframe, Capabilities, SeriesState
from marketdata.resample import bar_labels, bar_span
from marketdata.spans import Span, intersect, normalise, subtract
from marketdata.types import DAY, MINUTE, SECOND, SeriesKey, Timeframe
from tests.interval_sets import covers, total

# 2012 with its storm, both clock changes, half-days, holidays.
STRETCHES = ["2012-10-22", "2024-03-04", "2024-06-28", "2024-10-28", "2024-11-25", "2024-12-20"]
LENGTH = 12 * 1440


@lru_cache
def calendar() -> TradingCalendar:
    return TradingCalendar.build("XNYS", date(2026, 12, 31))


def instant(day: str, minute: int) -> int:
    return calendar().midnight_of(date.fromisoformat(day)) + minute * MINUTE


def _spans(day: str, edges: list[tuple[int, int]]) -> list[Span]:
    return normalise([Span(instant(day, a), instant(day, a + n)) for a, n in edges])


days = st.sampled_from(STRETCHES)
minutes = st.integers(0, LENGTH)
edges = st.lists(st.tuples(minutes, st.integers(1, 3000)), max_size=5)
bases = st.sampled_from([Timeframe.MIN_1, Timeframe.DAY_1])


@st.composite
def situations(draw: st.DrawFn) -> tuple[Span, list[Span], Timeframe]:
    """An asked span, what is covered, and the stored timeframe."""
    day = draw(days)
    first, last = sorted((draw(minutes), draw(minutes)))
    return Span(instant(day, first), instant(day, last)), _spans(day, draw(edges)), draw(bases)


def trading(span: Span, base: Timeframe) -> list[Span]:
    return normalise(calendar().trading_spans(span, planning.stored_hours(base)))


def in_trading(spans: list[Span], asked: Span, base: Timeframe) -> list[Span]:
    return intersect(trading(asked, base), spans)


# ------------------------------------------------------------------------------------------- gaps


@given(situations())
def test_gaps_and_coverage_are_what_was_asked_in_trading_time(situation):
    asked, coverage, base = situation
    found = planning.gaps(asked, SeriesState(coverage), calendar(), base)
    assert found == normalise(found)
    open_time = trading(asked, base)
    missing = subtract(open_time, coverage)
    assert in_trading(found, asked, base) == missing, "every gap and nothing but gaps"
    together = normalise([*in_trading(found, asked, base), *intersect(open_time, coverage)])
    assert total(together) == total(open_time)


@given(situations())
def test_gaps_begin_and_end_in_trading_time_and_lie_inside_what_was_asked(situation):
    asked, coverage, base = situation
    for gap in planning.gaps(asked, SeriesState(coverage), calendar(), base):
        assert covers(asked, gap)
        assert trading(Span(gap.start, gap.start + SECOND), base)
        assert trading(Span(gap.end - SECOND, gap.end), base)


@given(situations())
def test_gaps_parted_only_by_closed_time_are_one(situation):
    asked, coverage, base = situation
    found = planning.gaps(asked, SeriesState(coverage), calendar(), base)
    for before, after in pairwise(found):
        assert trading(Span(before.end, after.start), base)


@given(situations())
def test_invariant_01_what_was_fetched_leaves_no_gap_and_one_range(situation):
    asked, coverage, base = situation
    cal = calendar()
    later = asked.end + 30 * DAY
    fetched = [
        planning.recordable(gap, cal, base, later, later)
        for gap in planning.gaps(asked, SeriesState(coverage), cal, base)
    ]
    after = normalise([*coverage, *fetched])
    assert planning.gaps(asked, SeriesState(after), cal, base) == []
    if not coverage and fetched:
        assert len(after) == 1, "a healthy series is one range"


@given(situations(), days, edges, st.integers(0, 20))
def test_unsettled_bars_ride_along_but_only_few_of_them(situation, day, more, back):
    asked, coverage, base = situation
    ends = [Span(s.end - back * MINUTE, s.end + back * MINUTE) for s in coverage]
    starts = [Span(s.start, s.start + back * MINUTE) for s in coverage]
    unsettled = intersect(coverage, normalise([*ends, *starts, *_spans(day, more)]))
    plain = planning.gaps(asked, SeriesState(coverage), calendar(), base)
    wider = planning.gaps(asked, SeriesState(coverage, unsettled=unsettled), calendar(), base)
    assert wider == normalise(wider)
    assert subtract(plain, wider) == [], "nothing missing is left out"
    assert len(wider) <= len(plain), "no request of their own"
    extra = [t for s in subtract(wider, plain) for t in trading(s, base)]
    assert subtract(normalise(extra), unsettled) == [], "and nothing settled is read again"
    sides = 2 * planning.RESETTLE_BARS * len(plain)
    assert sum(planning.expected_bars(s, base, calendar()) for s in extra) <= sides


@given(situations())
def test_a_few_unsettled_bars_beside_a_gap_are_never_left_out(situation):
    asked, coverage, base = situation
    hours = planning.stored_hours(base)
    few = 3 * (MINUTE if base.intraday else DAY)
    beside = [Span(s.end - few, s.end) for s in coverage] + [
        Span(s.start, s.start + few) for s in coverage
    ]
    unsettled = intersect(coverage, normalise(beside))
    found = planning.gaps(asked, SeriesState(coverage, unsettled=unsettled), calendar(), base)
    for gap in found:
        for span in unsettled:
            touching = span.end == gap.start or span.start == gap.end
            assert not (touching and calendar().trading_spans(span, hours))


# -------------------------------------------------------------------------------- closed hours


@given(days, minutes, st.integers(1, 6000), st.integers(-3000, 9000), bases)
def test_coverage_grows_over_closed_time_only(day, first, length, until, base):
    span = Span(instant(day, first), instant(day, first + length))
    hours = planning.stored_hours(base)
    limit = span.end + until * MINUTE
    grown = calendar().extend_over_closed(span, hours, limit)
    assert grown.start <= span.start
    assert grown.end >= span.end
    assert grown.end <= max(span.end, limit)
    assert calendar().trading_spans(Span(grown.start, span.start), hours) == []
    assert calendar().trading_spans(Span(span.end, grown.end), hours) == []
    assert calendar().extend_over_closed(grown, hours, limit) == grown


@given(situations(), st.integers(0, LENGTH))
def test_invariant_06_nothing_is_recorded_past_what_is_settled(situation, ago):
    asked, _, base = situation
    edge = asked.end - ago * MINUTE
    found = planning.recordable(asked, calendar(), base, edge, edge)
    if edge <= asked.start:
        assert found.empty
    else:
        assert found.end <= max(edge, asked.start)
        assert covers(found, Span(asked.start, min(asked.end, edge)))


# ------------------------------------------------------------------------------------ segments

_MINUTES = BaseTimeframe(Timeframe.MIN_1, None)
_MONTH = BaseTimeframe(Timeframe.MIN_1, 30 * DAY)


def _capabilities(limited: bool) -> Capabilities:
    bases: dict[Timeframe, tuple[BaseTimeframe, ...]] = {
        t: (_MINUTES if t.intraday else BaseTimeframe(Timeframe.DAY_1, None),) for t in Timeframe
    }
    if limited:  # as Yahoo is: minutes of a month, coarser bars of two years
        bases[Timeframe.MIN_1] = (_MONTH,)
        bases[Timeframe.MIN_5] = (_MONTH, BaseTimeframe(Timeframe.MIN_5, 60 * DAY))
        bases[Timeframe.HOUR_1] = (_MONTH, BaseTimeframe(Timeframe.HOUR_1, 730 * DAY))
    return Capabilities(
        bases=bases, max_span={}, settle_delay=3 * SECOND, daily_settle_delay=20 * MINUTE,
        feeds=("sip",), batch_symbols=3, page_rows=10_000, latest_feeds=(), earliest=0,
    )  # fmt: skip


@given(
    st.sampled_from([Timeframe.MIN_1, Timeframe.MIN_5, Timeframe.HOUR_1, Timeframe.DAY_1]),
    st.booleans(),
    days,
    minutes,
    st.integers(0, 800 * 1440),
    st.integers(-2000, 2000),
    edges,
)
def test_segments_part_the_labels(target, limited, day, first, back, ahead, stored):
    cal, caps = calendar(), _capabilities(limited)
    now = instant(day, first)
    labels = Span(now - back * MINUTE, now + ahead * MINUTE)
    coverage = _spans(day, stored)
    found = planning.segments(target, labels, caps, cal, now, lambda base: coverage)
    parts = [p.labels for p in found.parts if not p.labels.empty]
    together = normalise([*parts, *found.too_old])
    assert total(parts) + total(found.too_old) == total(together), "no label twice"
    for option in caps.bases[target]:
        edge = planning.frontier(cal, option.base, caps, now)
        for part in (p for p in found.parts if p.base is option.base):
            assert part.asked.end <= max(edge, part.asked.start)
    if not labels.empty:
        base = caps.bases[target][0].base
        edge = planning.frontier(cal, base, caps, now)
        newest = edge if base is target else planning.closed_labels(cal, target, edge)
        wanted = Span(labels.start, min(labels.end, newest))
        assert subtract([] if wanted.empty else [wanted], together) == [], "no label lost"
    if not limited:
        assert found.too_old == []
        assert len(found.parts) <= 1


@given(st.sampled_from([Timeframe.MIN_5, Timeframe.HOUR_1, Timeframe.HOUR_4]), days, minutes)
def test_invariant_09_derived_labels_end_before_the_bar_that_forms(target, day, minute):
    cal, caps = calendar(), _capabilities(limited=False)
    now = instant(day, minute)
    edge = planning.frontier(cal, Timeframe.MIN_1, caps, now)
    newest = planning.closed_labels(cal, target, edge)
    around = Span(now - 7 * DAY, now + 7 * DAY)
    for label in bar_labels(around, target, cal, "extended"):
        closed = bar_span(int(label), target, cal).end <= edge
        assert (int(label) < newest) == closed


# --------------------------------------------------------------------------------- walking back


@settings(max_examples=150)
@given(
    st.sampled_from(list(Timeframe)),
    days,
    minutes,
    st.integers(1, 1500),
    st.sampled_from(["regular", "extended"]),
)
def test_a_limit_reaches_back_far_enough_on_a_dense_series(target, day, minute, bars, session):
    cal = calendar()
    end = instant(day, minute)
    start = planning.limit_start(target, end, bars, session, cal)
    if not target.intraday and target is not Timeframe.DAY_1:
        bars = min(bars, 200)
        start = planning.limit_start(target, end, bars, session, cal)
    held = bar_labels(Span(start, end), target, cal, session)
    assert len(held) >= bars
    if target in (Timeframe.MIN_1, Timeframe.DAY_1):
        assert len(held) == bars, "and no further"


@given(
    st.sampled_from(list(Timeframe)),
    minutes,
    st.integers(1, 10_000),
    st.integers(0, 5000),
    st.integers(1, 5000),
    st.integers(1, 3650),
    st.sampled_from(["regular", "extended"]),
)
def test_widening_goes_back_fast_and_stays_in_bounds(
    target, minute, length, found, wanted, most, session
):
    end = instant("2024-03-04", minute)
    span = Span(end - length * MINUTE, end)
    cal = calendar()
    start = planning.wider_start(target, span, found, wanted, session, most * DAY, cal)
    assert start <= span.start
    assert start >= min(span.start, end - most * DAY)
    if start > end - most * DAY and start > cal.first:
        hours: Hours = session if target.intraday else "daily"
        before, after = (total(cal.trading_spans(Span(t, end), hours)) for t in (span.start, start))
        assert after >= 4 * before - DAY
        assert after > before


# ----------------------------------------------------------------------------------------- hours


@given(days, minutes, minutes, bases)
def test_expected_bars_are_the_labels_in_trading_time(day, a, b, base):
    span = Span(instant(day, min(a, b)), instant(day, max(a, b)))
    hours: Hours = planning.stored_hours(base)
    expected = planning.expected_bars(span, base, calendar())
    if base is Timeframe.MIN_1:
        assert expected == total(calendar().trading_spans(span, hours)) // MINUTE
    else:
        assert abs(expected - len(bar_labels(span, base, calendar(), "extended"))) <= 1


# -------------------------------------------------------------------------------------- requests

symbols = st.sampled_from(["A", "B", "C", "D", "E", "F", "G"])


@given(st.dictionaries(symbols, st.lists(st.tuples(minutes, st.integers(1, 99)), max_size=3)))
def test_every_gap_is_asked_once_in_groups_no_larger_than_allowed(gaps):
    caps = _capabilities(limited=False)
    missing = {
        SeriesKey("p", "f", s, Timeframe.MIN_1): _spans("2024-03-04", given_edges)
        for s, given_edges in gaps.items()
    }
    found = planning.fetches(missing, caps)
    asked = [(key, fetch.span) for fetch in found for key in fetch.keys]
    assert sorted(asked) == sorted((k, s) for k, spans in missing.items() for s in spans)
    assert all(1 <= len(f.keys) <= caps.batch_symbols for f in found)
    assert all(list(f.keys) == sorted(f.keys) for f in found)
