"""Planning by example: moments of one week, written as a person would."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from functools import lru_cache

import pytest

from marketdata import planning
from marketdata.calendars import TradingCalendar
from marketdata.clock import from_micros, to_micros
from marketdata.protocols import BaseTimeframe, Capabilities, SeriesState
from marketdata.spans import Span
from marketdata.types import DAY, MINUTE, SECOND, SeriesKey, Timeframe

MIN_1, MIN_5, HOUR_1, DAY_1 = Timeframe.MIN_1, Timeframe.MIN_5, Timeframe.HOUR_1, Timeframe.DAY_1


@lru_cache
def calendar() -> TradingCalendar:
    return TradingCalendar.build("XNYS", date(2025, 12, 31))


def at(text: str) -> int:
    """Return a moment of 2024 in New York, ``03-14 15:00``."""
    return to_micros(datetime.fromisoformat(f"2024-{text}").replace(tzinfo=calendar().zone))


def span(start: str, end: str) -> Span:
    return Span(at(start), at(end))


def shown(spans: list[Span]) -> list[str]:
    zone = calendar().zone
    return [" to ".join(f"{from_micros(t).astimezone(zone):%m-%d %H:%M}" for t in s) for s in spans]


def caps(**bases: tuple[BaseTimeframe, ...]) -> Capabilities:
    known = {t: (BaseTimeframe(MIN_1 if t.intraday else DAY_1, None),) for t in Timeframe} | {
        Timeframe(name): ways for name, ways in bases.items()
    }
    return Capabilities(
        bases=known, max_span={}, settle_delay=3 * SECOND, daily_settle_delay=20 * MINUTE,
        feeds=(), batch_symbols=2, page_rows=10_000, latest_feeds=(), earliest=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("03-14 15:00:02", "03-14 14:59"),  # 14:59's bar is over but not settled
        ("03-14 15:00:03", "03-14 15:00"),
        ("03-14 15:00:30", "03-14 15:00"),
        ("03-16 12:00:00", "03-16 11:59"),  # Saturday
    ],
)
def test_the_frontier_of_minutes(now, expected):
    assert shown([Span(planning.frontier(calendar(), MIN_1, caps(), at(now)), at(now))])[
        0
    ].startswith(expected)


@pytest.mark.parametrize(
    ("now", "last_close"),
    [
        ("03-14 16:19:59", "03-13 16:00"),
        ("03-14 16:20:00", "03-14 16:00"),
        ("03-17 12:00:00", "03-15 16:00"),  # Sunday
        ("07-03 13:19:59", "07-02 16:00"),
        ("07-03 13:20:00", "07-03 13:00"),  # a half-day
    ],
)
def test_the_frontier_of_days(now, last_close):
    assert planning.frontier(calendar(), DAY_1, caps(), at(now)) == at(last_close)


@pytest.mark.parametrize(
    ("target", "edge", "newest"),
    [
        (MIN_5, "03-14 15:04", "03-14 15:00"),
        (MIN_5, "03-14 15:05", "03-14 15:05"),
        (HOUR_1, "03-14 10:29", "03-14 09:30"),  # anchored at 09:30
        (HOUR_1, "03-14 10:30", "03-14 10:30"),
        (HOUR_1, "03-14 16:00", "03-14 16:00"),  # 15:30 is cut at the close
        (Timeframe.HOUR_4, "03-14 13:29", "03-14 09:30"),
    ],
)
def test_derived_bars_are_closed_one_by_one(target, edge, newest):
    assert planning.closed_labels(calendar(), target, at(edge)) == at(newest)


def gaps(
    asked: Span, *covered: Span, unsettled: Sequence[Span] = (), base: Timeframe = MIN_1
) -> list[str]:
    state = SeriesState(list(covered), unsettled=list(unsettled))
    return shown(planning.gaps(asked, state, calendar(), base))


def test_nothing_covered_is_one_gap_over_nights_and_weekends():
    assert gaps(span("03-07 00:00", "03-13 00:00")) == ["03-07 04:00 to 03-12 20:00"]


def test_closed_time_is_no_gap():
    assert gaps(span("03-09 00:00", "03-11 04:00")) == []
    assert gaps(span("03-14 20:00", "03-15 04:00")) == []
    assert gaps(span("03-29 00:00", "03-30 00:00")) == [], "Good Friday"


def test_a_hole_in_the_middle_is_the_only_gap():
    asked = span("03-11 00:00", "03-15 00:00")
    assert gaps(asked, span("03-08 20:00", "03-12 04:00"), span("03-12 20:00", "03-15 04:00")) == [
        "03-12 04:00 to 03-12 20:00"
    ]


def test_unsettled_bars_are_read_again_with_the_next_request():
    covered = span("03-13 20:00", "03-14 15:00")
    asked = span("03-14 04:00", "03-14 15:01")
    assert gaps(asked, covered) == ["03-14 15:00 to 03-14 15:01"]
    early = [span("03-14 14:59", "03-14 15:00")]
    assert gaps(asked, covered, unsettled=early) == ["03-14 14:59 to 03-14 15:01"]
    many = [span("03-14 10:00", "03-14 15:00")]
    assert gaps(asked, covered, unsettled=many) == ["03-14 15:00 to 03-14 15:01"], "too many"
    apart = [span("03-14 14:57", "03-14 14:58")]
    assert gaps(asked, covered, unsettled=apart) == ["03-14 15:00 to 03-14 15:01"], "not beside it"
    inside = span("03-14 04:00", "03-14 15:00")
    assert gaps(inside, covered, unsettled=early) == [], "no reason for a request of their own"


def test_what_a_later_read_jumped_over_rides_along_with_the_gap_beside_it():
    """Read to 15:00:05, then 15:20 to 15:40, then the minutes between."""
    covered = span("03-13 20:00", "03-14 15:00"), span("03-14 15:20", "03-14 15:40")
    early = [span("03-14 14:59", "03-14 15:00")]
    asked = span("03-14 15:00", "03-14 15:40")
    assert gaps(asked, *covered, unsettled=early) == ["03-14 14:59 to 03-14 15:20"]
    after = span("03-14 15:30", "03-14 15:41")
    assert gaps(after, *covered, unsettled=early) == ["03-14 15:40 to 03-14 15:41"]


def test_unsettled_bars_right_behind_a_gap_ride_along():
    covered = span("03-14 10:00", "03-14 10:05"), span("03-14 15:00", "03-14 15:20")
    early = [covered[0], span("03-14 15:00", "03-14 15:01")]
    asked = span("03-14 09:00", "03-14 15:20")
    assert gaps(asked, *covered, unsettled=early) == ["03-14 09:00 to 03-14 15:01"], "one request"
    before = span("03-14 09:00", "03-14 10:00")
    assert gaps(before, *covered, unsettled=early) == ["03-14 09:00 to 03-14 10:05"]


def test_unsettled_bars_ride_along_over_closed_time():
    """The last minute of Thursday, read right after it, and a night read that settles nothing."""
    covered = span("03-13 20:00", "03-15 04:00")
    early = [span("03-14 19:59", "03-14 20:01"), span("03-14 20:29", "03-14 20:30")]
    asked = span("03-14 15:00", "03-15 04:01")
    assert gaps(asked, covered, unsettled=early) == ["03-14 19:59 to 03-15 04:01"]
    days = span("03-12 16:00", "03-14 17:00")
    found = gaps(
        span("03-14 00:00", "03-16 00:00"), days,
        unsettled=[span("03-13 16:00", "03-14 17:00")], base=DAY_1,
    )  # fmt: skip
    assert found == ["03-14 00:00 to 03-15 16:00"]


def test_what_is_recorded_reaches_to_the_next_opening():
    cal = calendar()
    now = at("03-18 03:00")
    found = planning.recordable(span("03-15 04:00", "03-15 20:00"), cal, MIN_1, now, now)
    assert shown([found]) == ["03-14 20:00 to 03-18 03:00"]
    later = at("03-18 09:00")
    found = planning.recordable(span("03-15 04:00", "03-15 20:00"), cal, MIN_1, later, later)
    assert shown([found]) == ["03-14 20:00 to 03-18 04:00"]


def test_a_broker_with_a_minute_horizon_gives_whole_days_of_each_base():
    limited = caps(**{
        "5min": (BaseTimeframe(MIN_1, 30 * DAY), BaseTimeframe(MIN_5, 60 * DAY)),
    })  # fmt: skip
    now = at("03-14 15:02")
    found = planning.segments(
        MIN_5, span("01-02 00:00", "03-14 16:00"), limited, calendar(), now, lambda base: []
    )
    assert [p.base for p in found.parts] == [MIN_5, MIN_1]
    assert shown([p.labels for p in found.parts]) == [
        "01-15 00:00 to 02-14 00:00",
        "02-14 00:00 to 03-14 15:00",
    ]
    assert shown(found.too_old) == ["01-02 00:00 to 01-15 00:00"]


def test_stored_minutes_beat_coarser_bars_past_the_horizon():
    limited = caps(**{
        "5min": (BaseTimeframe(MIN_1, 30 * DAY), BaseTimeframe(MIN_5, 60 * DAY)),
    })  # fmt: skip
    stored = {MIN_1: [span("01-31 20:00", "02-05 20:00")], MIN_5: []}
    found = planning.segments(
        MIN_5, span("02-01 00:00", "02-20 00:00"), limited, calendar(), at("03-14 15:02"),
        lambda base: stored[base],
    )  # fmt: skip
    assert [(p.base, shown([p.labels])[0]) for p in found.parts] == [
        (MIN_1, "02-01 00:00 to 02-05 00:00"),
        (MIN_5, "02-05 00:00 to 02-14 00:00"),
        (MIN_1, "02-14 00:00 to 02-20 00:00"),
    ]


def test_equal_gaps_share_requests_of_a_bounded_size():
    one, other = span("03-14 04:00", "03-14 05:00"), span("03-14 06:00", "03-14 07:00")
    keys = [SeriesKey("p", "f", s, MIN_1) for s in "ABC"]
    found = planning.fetches({keys[2]: [one], keys[0]: [one, other], keys[1]: [one]}, caps())
    assert [(f.span, [k.symbol for k in f.keys]) for f in found] == [
        (one, ["A", "B"]),
        (one, ["C"]),
        (other, ["A"]),
    ]


def test_expected_bars():
    assert planning.expected_bars(span("03-14 00:00", "03-15 00:00"), MIN_1, calendar()) == 960
    assert planning.expected_bars(span("07-03 00:00", "07-04 00:00"), MIN_1, calendar()) == 780
    assert planning.expected_bars(span("03-11 00:00", "03-16 00:00"), DAY_1, calendar()) == 5


@pytest.mark.parametrize(
    ("target", "end", "bars", "session", "start"),
    [
        (MIN_1, "03-14 10:00", 30, "regular", "03-14 09:30"),
        (MIN_1, "03-14 10:00", 31, "regular", "03-13 15:59"),
        (MIN_1, "03-18 09:30", 390, "regular", "03-15 09:30"),
        (MIN_1, "03-14 10:00", 31, "extended", "03-14 09:29"),
        (MIN_5, "03-14 15:00", 10, "regular", "03-14 14:10"),
        (DAY_1, "03-14 16:00", 3, "regular", "03-12 00:00"),
    ],
)
def test_a_limit_counts_trading_time(target, end, bars, session, start):
    assert planning.limit_start(target, at(end), bars, session, calendar()) == at(start)


@pytest.mark.parametrize(
    ("asked", "found", "wanted", "start"),
    [
        # a session's length at least: over the weekend to where Friday was
        (("03-18 04:04", "03-18 04:05"), 0, 1, "03-14 12:05"),
        # four times the trading time
        (("03-11 04:00", "03-15 20:00"), 0, 1, "02-16 04:00"),
        # 16 times, as a tenth was found
        (("03-14 04:00", "03-14 20:00"), 10, 100, "02-22 04:00"),
    ],
)
def test_a_sparse_series_is_asked_for_trading_time(asked, found, wanted, start):
    start_found = planning.wider_start(
        MIN_1, span(*asked), found, wanted, "extended", 3650 * DAY, calendar()
    )
    assert shown([Span(start_found, start_found)]) == [f"{start} to {start}"]


def test_a_sparse_series_is_looked_for_within_bounds():
    asked = span("03-14 10:00", "03-14 14:00")
    assert planning.wider_start(MIN_1, asked, 0, 1, "regular", DAY, calendar()) == asked.end - DAY
    assert planning.wider_start(DAY_1, asked, 0, 1, "regular", 9999 * DAY, calendar()) == at(
        "03-08 00:00"
    )
