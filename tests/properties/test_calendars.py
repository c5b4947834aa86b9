"""The calendar against its source's recorded answers, and its questions against slow ones."""

from __future__ import annotations

from datetime import date
from functools import lru_cache

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.calendars import Hours, TradingCalendar
from marketdata.spans import Span, normalise
from marketdata.types import DAY, HOUR, MINUTE
from tests.interval_sets import covers, total
from tests.shared_data import SHARED, needs_shared_data


@lru_cache
def calendar() -> TradingCalendar:
    return TradingCalendar.build("XNYS", date(2025, 12, 31))


hours = st.sampled_from(["regular", "extended", "daily"])
# 2012 with its storm, 2018 with its mourning, 2024 with three half-days.
starts = st.sampled_from(["2012-10-15", "2018-11-20", "2024-01-01", "2024-06-20", "2024-10-20"])
minutes = st.integers(0, 60 * 1440)


def instant(day: str, minute: int) -> int:
    return calendar().midnight_of(date.fromisoformat(day)) + minute * MINUTE


instants = st.builds(instant, starts, minutes)
spans = st.builds(lambda d, a, b: Span(instant(d, a), instant(d, b)), starts, minutes, minutes)


@lru_cache
def all_spans(kind: Hours) -> list[Span]:
    return [calendar().session_span(i, kind) for i in range(len(calendar().midnight))]


def is_open(moment: int, kind: Hours) -> bool:
    """Answer by looking at the sessions around, one by one."""
    at = calendar().session_at(moment)
    near = [calendar().session_span(i, kind) for i in range(max(at - 1, 0), at + 2)]
    return any(s.start <= moment < s.end for s in near)


@needs_shared_data
def test_invariant_28_sessions_equal_the_recorded_ones():
    table = pd.read_csv(SHARED / "calendars" / "xnys_1990-2023.csv.gz", index_col=0)
    recorded = pd.DatetimeIndex(table.index).tz_localize(None)
    opens = pd.DatetimeIndex(table["open"]).as_unit("us").asi8
    closes = pd.DatetimeIndex(table["close"]).as_unit("us").asi8
    ours = calendar()
    first, last = recorded[0].date(), recorded[-1].date()
    low, high = np.searchsorted(
        ours.midnight, [ours.midnight_of(first), ours.midnight_of(last) + 1]
    )
    assert high - low > 8000
    ours_dates = [ours.session_date(i) for i in range(low, high)]
    assert ours_dates == [t.date() for t in recorded]
    np.testing.assert_array_equal(ours.open[low:high], opens)
    np.testing.assert_array_equal(ours.close[low:high], closes)


def test_every_session_has_its_hours_in_order():
    ours = calendar()
    edges = np.stack(
        [ours.midnight, ours.extended_open, ours.open, ours.close, ours.extended_close]
    )
    assert (np.diff(edges, axis=0) > 0).all()
    assert (ours.midnight[1:] - ours.midnight[:-1] >= 23 * HOUR).all()
    assert (ours.extended_close < ours.midnight + DAY).all()


@settings(max_examples=150, deadline=None)
@given(spans, hours)
def test_trading_spans_are_all_sessions_intersected(span: Span, kind: Hours):
    found = calendar().trading_spans(span, kind)
    expected = [s.clip(span) for s in all_spans(kind) if not s.clip(span).empty]
    assert found == ([] if span.empty else expected)
    assert calendar().trading_time(span, kind) == total(found)


@settings(max_examples=200, deadline=None)
@given(st.lists(instants, max_size=30), hours)
def test_masks_and_single_answers_agree(moments: list[int], kind: Hours):
    mask = calendar().mask(np.array(moments, np.int64), kind).tolist()
    assert mask == [is_open(m, kind) for m in moments]
    assert mask == [calendar().is_open(m, kind) for m in moments]


@settings(max_examples=200, deadline=None)
@given(spans.filter(lambda s: not s.empty), hours, st.integers(0, 10 * 1440))
def test_extending_over_closed_hours_adds_no_trading_time(span: Span, kind: Hours, more: int):
    limit = span.end + more * MINUTE
    wide = calendar().extend_over_closed(span, kind, limit)
    assert covers(wide, span)
    assert wide.end <= max(limit, span.end)
    assert calendar().trading_spans(wide, kind) == calendar().trading_spans(span, kind)
    # It goes as far as it may: the next microsecond on either side trades, or is past the limit.
    assert is_open(wide.start - 1, kind)
    assert wide.end >= limit or is_open(wide.end, kind)


@settings(max_examples=100, deadline=None)
@given(spans, hours)
def test_sessions_known_one_by_one_are_one_range(span: Span, kind: Hours):
    sessions = calendar().trading_spans(span, kind)
    wide = [calendar().extend_over_closed(s, kind, calendar().horizon) for s in sessions]
    assert len(normalise(wide)) == min(len(sessions), 1)


@settings(max_examples=100, deadline=None)
@given(instants, st.integers(1, 2000), st.sampled_from([1, 5, 30, 240]), hours)
def test_walking_back_holds_the_bars_asked_for(end: int, bars: int, minutes: int, kind: Hours):
    step = DAY if kind == "daily" else minutes * MINUTE
    start = calendar().back(end, bars, step, kind)

    def count(span: Span) -> int:
        return sum(-(-(s.end - s.start) // step) for s in calendar().trading_spans(span, kind))

    assert count(Span(start, end)) >= bars
    assert count(Span(start + step, end)) < bars
