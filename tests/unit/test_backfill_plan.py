"""What a backfill would fetch, in which order, for how much: pure, on the real calendar."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketdata import backfill_plan as planner
from marketdata import planning
from marketdata.backfill_plan import (
    FAILED,
    FIRST_RETRY,
    LONGEST_RETRY,
    QUIET,
    VENDOR_HAS_NONE,
    Audit,
    Chunk,
    Failure,
    Scope,
)
from marketdata.backfill_price import Nightly, Price, forecast, next_wall_time, price
from marketdata.calendars import TradingCalendar
from marketdata.clock import from_micros, to_micros
from marketdata.errors import RequestError
from marketdata.protocols import BaseTimeframe, Capabilities, SeriesState
from marketdata.spans import Span, intersect, normalise, subtract
from marketdata.types import DAY, MINUTE, SECOND, SeriesKey, Timeframe
from tests.interval_sets import total

MIN_1, MIN_5, DAY_1 = Timeframe.MIN_1, Timeframe.MIN_5, Timeframe.DAY_1


@lru_cache
def calendar() -> TradingCalendar:
    return TradingCalendar.build("XNYS", date(2025, 12, 31))


def at(text: str) -> int:
    """Return a moment in New York, ``2024-03-14 15:00``."""
    return to_micros(datetime.fromisoformat(text).replace(tzinfo=calendar().zone))


def span(start: str, end: str) -> Span:
    return Span(at(start), at(end))


NOW = "2024-03-14 15:00:30"
"""A Thursday in session."""


def caps(
    batch: int = 500, minutes_for: int | None = None, max_span: int | None = None
) -> Capabilities:
    bases = {t: (BaseTimeframe(MIN_1 if t.intraday else DAY_1, None),) for t in Timeframe}
    if minutes_for is not None:
        bases[MIN_1] = (BaseTimeframe(MIN_1, minutes_for),)
    return Capabilities(
        bases=bases, max_span={MIN_1: max_span}, settle_delay=3 * SECOND,
        daily_settle_delay=20 * MINUTE, feeds=(), batch_symbols=batch, page_rows=10_000,
        latest_feeds=(), earliest=0,
    )  # fmt: skip


def key(symbol: str, timeframe: Timeframe = MIN_1) -> SeriesKey:
    return SeriesKey("alpaca", "sip", symbol, timeframe)


def scope(
    *series: SeriesKey, start: str = "2024-01-01", end: str = NOW, intraday_from: str = "2022-01-01"
) -> Scope:
    return Scope(series, span(start, end), at(intraday_from))


def audit(
    asked: Scope, given_caps: Capabilities | None = None, failures: tuple[Failure, ...] = (),
    **states: SeriesState,
) -> Audit:  # fmt: skip
    """Audit with the given states by symbol; all others were never asked."""
    return audit_of(asked, states, given_caps or caps(), failures)


def audit_of(
    asked: Scope,
    states: Mapping[str, SeriesState],
    given_caps: Capabilities,
    failures: tuple[Failure, ...] = (),
) -> Audit:
    keys = planner.stored_keys(asked, given_caps)
    known = {k: states.get(k.symbol, SeriesState()) for k in keys}
    return planner.audit(asked, known, given_caps, calendar(), at(NOW), failures)


def chunks(found: Audit, edge: str | None = "2024-03-01 20:00", **options: int) -> list[Chunk]:
    edge_us = None if edge is None else at(edge)
    return planner.chunks(found.missing, caps(**options), calendar(), edge_us)


def days(chunk: Chunk) -> str:
    zone = calendar().zone
    first, last = chunk.fetch.span.start, chunk.fetch.span.end - 1
    ends = [f"{from_micros(t).astimezone(zone):%m-%d}" for t in (first, last)]
    return " ".join([chunk.fetch.base.value, *ends, "sealed" if chunk.fetch.sealed else "rows"])


# -------------------------------------------------------------------------------------- order


def test_days_come_first_then_minutes_newest_month_first():
    asked = scope(*(key(s, t) for t in (MIN_1, DAY_1) for s in ("AAPL", "KO")))
    assert [days(c) for c in chunks(audit(asked))] == [
        "1day 01-02 03-13 rows",
        "1min 03-04 03-14 rows",
        "1min 03-01 03-01 sealed",
        "1min 02-01 02-29 sealed",
        "1min 01-02 01-31 sealed",
    ]


def test_both_ends_and_the_middle_are_filled():
    held = SeriesState(
        coverage=[span("2024-01-20", "2024-02-05"), span("2024-02-12", "2024-02-20")]
    )
    found = audit(scope(key("AAPL"), end="2024-03-01"), AAPL=held)
    assert [days(c) for c in chunks(found)] == [
        "1min 02-20 02-29 sealed",
        "1min 02-05 02-09 sealed",
        "1min 01-02 01-19 sealed",
    ]


def test_a_session_that_is_stored_in_part_is_not_sealed():
    held = SeriesState(coverage=[span("2024-02-13 12:00", "2024-02-16 12:00")])
    found = audit(scope(key("AAPL"), start="2024-02-12", end="2024-02-20"), AAPL=held)
    assert [days(c) for c in chunks(found)] == [
        "1min 02-16 02-16 rows",
        "1min 02-13 02-13 rows",
        "1min 02-12 02-12 sealed",
    ]


def test_nothing_is_sealed_without_an_edge():
    found = audit(scope(key("AAPL"), start="2024-02-01"))
    assert not any(c.fetch.sealed for c in chunks(found, edge=None))


def test_the_edge_leaves_the_newest_sessions_as_rows():
    # Ten sessions from Friday the 1st to today.
    edge = planner.seal_edge(calendar(), at(NOW), 10)
    assert edge == at("2024-02-29 20:00")
    assert planner.seal_edge(calendar(), at(NOW), None) is None


def test_batches_keep_to_the_request_and_to_the_size_of_a_chunk():
    symbols = [f"S{n:04d}" for n in range(1200)]
    found = audit(scope(*(key(s, DAY_1) for s in symbols), start="2024-01-01"))
    assert [len(c.fetch.keys) for c in chunks(found)] == [500, 500, 200]
    found = audit(scope(*(key(s) for s in symbols[:30]), start="2024-02-01", end="2024-03-01"))
    sizes = [(len(c.fetch.keys), c.bars) for c in chunks(found)]
    assert sizes == [(13, 249_600), (13, 249_600), (4, 76_800)]


def test_a_chunk_names_the_first_symbols_by_priority():
    found = audit(scope(*(key(f"S{n:04d}") for n in (9, 3, 7)), start="2024-02-01"))
    first = chunks(found, batch=2)[0]
    assert [k.symbol for k in first.fetch.keys] == ["S0003", "S0009"]


def test_derived_timeframes_are_filled_by_their_base_once():
    found = audit(scope(key("AAPL", MIN_5), key("AAPL", MIN_1), start="2024-03-01"))
    assert list(found.missing) == [key("AAPL")]
    assert len(found.missing[key("AAPL")]) == 1


# ------------------------------------------------------------------------------------- states


def test_a_covered_series_has_nothing_missing():
    held = SeriesState(
        coverage=[span("2023-12-01", "2024-03-14 15:00")], first_bar=at("2024-01-02")
    )
    found = audit(scope(key("AAPL")), AAPL=held)
    assert not found.missing
    assert not found.gaps()


def test_before_the_first_bar_it_was_quiet():
    held = SeriesState(
        coverage=[span("2023-12-01", "2024-03-14 15:00")], first_bar=at("2024-02-05 10:31")
    )
    (gap,) = audit(scope(key("YOUNG")), YOUNG=held).gaps()
    assert (gap.state, gap.span) == (QUIET, span("2024-01-02 04:00", "2024-02-02 20:00"))


def test_what_is_older_than_the_vendor_gives_is_not_asked_for():
    found = audit(scope(key("AAPL")), caps(minutes_for=29 * DAY))
    (gap,) = found.older
    assert gap.state == VENDOR_HAS_NONE
    assert gap.span.start == at("2024-01-02 04:00")
    assert found.missing[key("AAPL")][0].start == at("2024-02-15 04:00")
    assert gap.span.end == at("2024-02-14 20:00")


def test_intraday_bars_that_would_not_be_kept_are_not_asked_for():
    asked = scope(key("AAPL"), key("AAPL", DAY_1), intraday_from="2024-03-01")
    found = audit(asked)
    assert found.missing[key("AAPL")][0].start == at("2024-03-01 04:00")
    assert found.missing[key("AAPL", DAY_1)][0].start == at("2024-01-02")


def failure(start: str, end: str, retry: str) -> Failure:
    return Failure(key("AAPL"), span(start, end), "broken", 2, at("2024-03-14 01:00"), at(retry))


def test_what_failed_waits_for_its_next_retry():
    waiting = failure("2024-02-01", "2024-03-01", retry="2024-03-15 02:00")
    found = audit(scope(key("AAPL")), failures=(waiting,))
    assert [g.state for g in found.waiting] == [FAILED]
    assert found.waiting[0].failure is waiting
    assert [days(c) for c in chunks(found)] == [
        "1min 03-04 03-14 rows",
        "1min 03-01 03-01 sealed",
        "1min 01-02 01-31 sealed",
    ]


def test_what_failed_is_missing_again_when_its_time_has_come():
    due = failure("2024-02-01", "2024-03-01", retry="2024-03-14 14:00")
    found = audit(scope(key("AAPL")), failures=(due,))
    assert not found.waiting
    assert found.missing == audit(scope(key("AAPL"))).missing


@pytest.mark.parametrize(
    ("attempts", "hours"), [(1, 1), (2, 2), (3, 4), (8, 128), (9, 168), (500, 168)]
)
def test_the_wait_doubles_up_to_a_week(attempts: int, hours: int):
    assert planner.next_retry(attempts, 0, lambda low, high: 1.0) == hours * FIRST_RETRY
    assert 0.8 * FIRST_RETRY <= planner.next_retry(1, 0) <= 1.2 * FIRST_RETRY
    assert planner.next_retry(500, 0) <= 1.2 * LONGEST_RETRY


# ------------------------------------------------------------------------------------- limits


def test_the_limit_counts_symbols_with_minutes_and_takes_all_days():
    symbols = ("A", "B", "C")
    found = audit(scope(*(key(s, t) for t in (DAY_1, MIN_1) for s in symbols)))
    taken, later = planner.limited(found, 2)
    assert list(taken) == [*(key(s, DAY_1) for s in symbols), key("A"), key("B")]
    assert list(later) == [key("C")]
    assert planner.limited(found, 0) == (dict(found.missing), {})


def test_the_limit_counts_days_where_nothing_else_is_missing():
    found = audit(scope(*(key(s, DAY_1) for s in ("A", "B", "C"))))
    taken, later = planner.limited(found, 1)
    assert (list(taken), list(later)) == ([key("A", DAY_1)], [key("B", DAY_1), key("C", DAY_1)])


# -------------------------------------------------------------------------------------- price


def test_calls_are_full_pages_over_all_symbols_of_a_part():
    found = audit(scope(key("A"), key("B"), key("C"), start="2024-02-01", end="2024-03-01"))
    (chunk,) = chunks(found)
    assert (chunk.bars, chunk.calls, chunk.lanes) == (3 * 20 * 960, 6, 1)
    found = audit(scope(*(key(s) for s in "ABCDE"), start="2024-02-01", end="2024-03-01"))
    (chunk,) = planner.chunks(found.missing, caps(), calendar(), None, lanes=3)
    # Two symbols of 19,200 bars each fill four pages, three of them six.
    assert (chunk.bars, chunk.calls, chunk.lanes) == (5 * 20 * 960, 4 + 4 + 2, 3)


def test_calls_are_counted_by_symbol_and_span_where_a_request_names_one():
    found = audit(scope(key("A"), key("B"), start="2024-02-01", end="2024-03-01"))
    weekly = chunks(found, batch=1, max_span=7 * DAY)
    assert [c.calls for c in weekly] == [5, 5]


def test_the_price_adds_up():
    found = audit(scope(key("A"), key("A", DAY_1), start="2024-02-01"))
    cost = price(chunks(found), 150)
    assert cost.symbols == 1
    assert cost.calls == sum(c.calls for c in chunks(found))
    assert cost.minutes == cost.calls / 150
    assert price(chunks(found), 10**6).minutes == pytest.approx(cost.bars / 150_000 / 60)
    assert cost.bytes < cost.bars * 190


@pytest.mark.parametrize(
    ("symbols", "calls", "nightly", "nights", "way"),
    [
        (50, 100, Nightly(50, None, 300), 1, ""),
        (51, 100, Nightly(50, None, 300), 2, "--max-symbols"),
        (51, 100, Nightly(0, None, 300), 1, ""),
        (10, 9_000, Nightly(50, 1000, 300), 9, "--max-calls"),
        (10, 150 * 700, Nightly(50, None, 300), 3, "--until"),
    ],
)
def test_the_last_night_and_what_brings_it_forward(symbols, calls, nightly, nights, way):
    whole = Price(1, symbols, calls, 0, 0, calls / 150)
    found = forecast(whole, symbols, nightly, date(2024, 3, 15))
    assert found.nights == nights
    assert found.finished == date(2024, 3, 14 + nights)
    assert found.brought_forward_by.startswith(way)
    assert bool(found.brought_forward_by) == (nights > 1)


@pytest.mark.parametrize(
    ("text", "now", "expected"),
    [
        ("06:00", "2024-03-14 15:00", "2024-03-15T10:00"),
        ("06:00", "2024-03-14 05:59", "2024-03-14T10:00"),
        ("06:00", "2024-03-14 06:00", "2024-03-15T10:00"),
        ("06:00", "2024-03-10 01:00", "2024-03-10T10:00"),  # clocks go forward that night
        ("01:30", "2024-11-02 12:00", "2024-11-03T05:30"),  # the first of the two
        ("02:30", "2024-03-09 12:00", "2024-03-10T07:30"),  # skipped: an hour later
    ],
)
def test_wall_time_is_new_yorks(text: str, now: str, expected: str):
    assert from_micros(next_wall_time(text, calendar(), at(now))) == datetime.fromisoformat(
        expected
    ).replace(tzinfo=UTC)


@pytest.mark.parametrize("text", ["6", "24:00", "06:60", "six", ""])
def test_what_is_no_time_of_day_is_refused(text: str):
    with pytest.raises(RequestError, match="HH:MM"):
        next_wall_time(text, calendar(), at(NOW))


# ---------------------------------------------------------------------------------- properties

FIRST, LAST = at("2024-01-02"), at(NOW)


@st.composite
def coverage(draw: st.DrawFn) -> list[Span]:
    edges = draw(st.lists(st.integers(FIRST // MINUTE, LAST // MINUTE), max_size=8, unique=True))
    edges = sorted(edge * MINUTE for edge in edges)
    return normalise(Span(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False))


@given(st.lists(coverage(), min_size=1, max_size=4), st.booleans(), st.integers(1, 3))
def test_chunks_are_exactly_what_is_missing(held: list[list[Span]], sealing: bool, batch: int):
    states = {f"S{n}": SeriesState(coverage=spans) for n, spans in enumerate(held)}
    asked = scope(*(key(s) for s in states))
    found = audit_of(asked, states, caps())
    made = planner.chunks(
        found.missing, caps(batch), calendar(), at("2024-03-01 20:00") if sealing else None
    )
    edge = planning.frontier(calendar(), MIN_1, caps(), at(NOW))
    trading = calendar().trading_spans(Span(asked.span.start, edge), "extended")
    for symbol, state in states.items():
        mine = [c.fetch.span for c in made if key(symbol) in c.fetch.keys]
        fetched = intersect(trading, normalise(mine))
        assert fetched == normalise(fetched)
        assert total(intersect(trading, normalise(mine))) == sum(
            calendar().trading_time(s, "extended") for s in mine
        ), "nothing is fetched twice"
        assert normalise(fetched) == normalise(subtract(trading, state.coverage))


@given(coverage())
def test_only_whole_settled_sessions_are_sealed(held: list[Span]):
    edge = at("2024-03-01 20:00")
    found = audit(scope(key("AAPL")), AAPL=SeriesState(coverage=held))
    sessions = set(calendar().trading_spans(Span(FIRST, LAST), "extended")[:-1])
    for chunk in planner.chunks(found.missing, caps(), calendar(), edge):
        inside = calendar().trading_spans(chunk.fetch.span, "extended")
        whole = sessions.issuperset(inside)
        assert chunk.fetch.sealed == (whole and chunk.fetch.span.end <= edge)
        months = {from_micros(s.start).astimezone(calendar().zone).month for s in inside}
        assert len(months) == 1


@given(st.integers(0, 40), st.integers(1, 7))
def test_lanes_are_all_of_it_in_order(count: int, lanes: int):
    parts = planner.in_lanes(range(count), lanes)
    assert [n for part in parts for n in part] == list(range(count))
    assert len(parts) <= lanes
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
