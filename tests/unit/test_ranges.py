"""Every spelling of start, end, period and limit."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from marketdata.calendars import TradingCalendar
from marketdata.clock import from_micros, to_micros
from marketdata.errors import InvalidRangeError, NaiveTimestampError
from marketdata.ranges import DEFAULT_LIMIT, Window, read_moment, resolve_window
from marketdata.spans import Span

NEW_YORK = ZoneInfo("America/New_York")


@lru_cache
def calendar() -> TradingCalendar:
    return TradingCalendar.build("XNYS", date(2025, 12, 31))


def micros(text: str) -> int:
    """Return a moment written with offset, or in New York without one."""
    moment = datetime.fromisoformat(text)
    return to_micros(moment if moment.tzinfo else moment.replace(tzinfo=NEW_YORK))


NOW = micros("2024-03-14T15:00:30")


def shown(moment: int | None) -> str:
    assert moment is not None
    return from_micros(moment).astimezone(NEW_YORK).strftime("%Y-%m-%d %H:%M:%S")


def window(**given: object) -> Window:
    return resolve_window(calendar(), NOW, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2024-03-01", "2024-03-01 00:00:00"),
        (" 2024-03-01 ", "2024-03-01 00:00:00"),
        ("2024-07-01", "2024-07-01 00:00:00"),  # summer time
        (date(2024, 3, 1), "2024-03-01 00:00:00"),
        (datetime(2024, 3, 1, 9, 30, tzinfo=NEW_YORK), "2024-03-01 09:30:00"),
        (datetime(2024, 3, 1, 14, 30, tzinfo=UTC), "2024-03-01 09:30:00"),
        (datetime(2024, 3, 1, 15, 30, tzinfo=timezone(timedelta(hours=1))), "2024-03-01 09:30:00"),
        (pd.Timestamp("2024-03-01 09:30", tz="America/New_York"), "2024-03-01 09:30:00"),
        (pd.Timestamp("2024-03-01T14:30Z"), "2024-03-01 09:30:00"),
        ("2024-03-01T09:30-05:00", "2024-03-01 09:30:00"),
        ("2024-03-01 09:30:15-05:00", "2024-03-01 09:30:15"),
        ("2024-03-01T14:30:00Z", "2024-03-01 09:30:00"),
        ("2024-03-01T14:30:00.000000+00:00", "2024-03-01 09:30:00"),
        ("20240301T143000Z", "2024-03-01 09:30:00"),
        ("now", "2024-03-14 15:00:30"),
        ("NOW", "2024-03-14 15:00:30"),
        ("today", "2024-03-14 00:00:00"),
        ("-0d", "2024-03-14 00:00:00"),
        ("-5d", "2024-03-09 00:00:00"),
        ("-2w", "2024-02-29 00:00:00"),
        ("-1mo", "2024-02-14 00:00:00"),
        ("-1y", "2023-03-14 00:00:00"),
        ("-2h", "2024-03-14 13:00:30"),
        ("-90min", "2024-03-14 13:30:30"),
    ],
)
def test_a_moment_can_be_written_in_many_ways(written, meant):
    assert shown(read_moment(written, calendar(), NOW, "start")) == meant


def test_nanoseconds_are_cut_without_a_warning():
    moment = pd.Timestamp("2024-03-01T14:30:00.123456789Z")
    assert read_moment(moment, calendar(), NOW, "start") % 1_000_000 == 123_456


@pytest.mark.parametrize(
    ("written", "corrected"),
    [
        (datetime(2024, 3, 1, 9, 30), "2024-03-01T09:30:00-05:00"),
        (datetime(2024, 7, 1, 9, 30), "2024-07-01T09:30:00-04:00"),
        ("2024-07-01T09:30", "2024-07-01T09:30:00-04:00"),
        ("2024-07-01 09:30:15", "2024-07-01T09:30:15-04:00"),
        (pd.Timestamp("2024-07-01"), "2024-07-01T00:00:00-04:00"),
        (np.datetime64("2024-07-01T09:30"), "2024-07-01T09:30:00-04:00"),
    ],
)
def test_a_naive_moment_comes_back_corrected(written, corrected):
    with pytest.raises(NaiveTimestampError) as caught:
        read_moment(written, calendar(), NOW, "start")
    assert corrected in str(caught.value)
    assert read_moment(corrected, calendar(), NOW, "start")


@pytest.mark.parametrize(
    "written",
    [
        "", "yesterday", "5d", "-5", "-d", "-5q", "--5d", "2024-13-01", "2024-02-30", "03/01/2024",
        "2024", "24-03-01", "0000-01-01", "10000-01-01", 0, 1.5, True, None, b"2024-03-01", [],
        pd.NaT, np.datetime64("NaT"), float("nan"), timedelta(days=1), pd.Timedelta("1d"),
    ],
)  # fmt: skip
def test_what_is_no_moment_is_refused(written):
    with pytest.raises(InvalidRangeError) as caught:
        read_moment(written, calendar(), NOW, "start")
    assert "start" in str(caught.value)
    assert caught.value.cure


def test_nothing_given_is_the_last_500():
    assert window() == Window(None, NOW, DEFAULT_LIMIT)


def test_a_limit_alone_reaches_back_as_far_as_it_needs():
    assert window(limit=7) == Window(None, NOW, 7)
    assert window(limit=np.int16(7)) == Window(None, NOW, 7)
    assert type(window(limit=np.int16(7)).limit) is int


def test_an_end_alone_is_the_last_500_before_it():
    found = window(end="2024-03-01")
    assert (found.start, found.limit, found.explicit_end) == (None, 500, True)
    assert shown(found.end) == "2024-03-01 00:00:00"


def test_start_and_limit_hold_both():
    found = window(start="2024-03-01", limit=5)
    assert shown(found.start) == "2024-03-01 00:00:00"
    assert (found.end, found.limit, found.explicit_end) == (NOW, 5, False)


def test_the_end_is_exclusive_and_may_lie_ahead():
    found = window(start="2024-03-01", end="2024-12-31")
    assert shown(found.end) == "2024-12-31 00:00:00"
    assert found.span(0) == Span(micros("2024-03-01"), micros("2024-12-31"))
    assert window(limit=1).span(5) == Span(5, NOW)


@pytest.mark.parametrize(
    ("period", "start"),
    [
        ("1d", "2024-03-14 00:00:00"),
        ("5d", "2024-03-08 00:00:00"),  # five sessions: the weekend does not count
        (" 5D ", "2024-03-08 00:00:00"),
        ("1w", "2024-03-07 00:00:00"),
        ("1mo", "2024-02-14 00:00:00"),
        ("6mo", "2023-09-14 00:00:00"),
        ("1y", "2023-03-14 00:00:00"),
        ("2y", "2022-03-14 00:00:00"),
        ("ytd", "2024-01-01 00:00:00"),
        ("999y", "1980-01-02 00:00:00"),
        ("99999999d", "1980-01-02 00:00:00"),
        ("max", "1980-01-02 00:00:00"),
    ],
)
def test_periods_count_back_from_now(period, start):
    assert shown(window(period=period).start) == start


def test_periods_count_back_from_the_end_where_there_is_one():
    assert shown(window(period="1mo", end="2024-03-01").start) == "2024-01-29 00:00:00"
    assert shown(window(period="5d", end="2024-03-09").start) == "2024-03-04 00:00:00"
    assert shown(window(period="ytd", end="2023-07-01").start) == "2023-01-01 00:00:00"


@pytest.mark.parametrize(
    "period", ["", "0d", "1q", "d", "-1d", "1.5y", "1 y", 5, "1mon", "forever"]
)
def test_what_is_no_period_is_refused(period):
    with pytest.raises(InvalidRangeError, match="5d 1mo 6mo 1y 2y ytd max"):
        window(period=period)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"start": "2024-03-05", "end": "2024-03-01"}, "exchange start and end"),
        ({"start": "2024-03-01", "end": "2024-03-01"}, "next day"),
        ({"start": "2024-03-15"}, "future"),
        ({"start": "2024-03-15", "end": "2024-03-16"}, "future"),
        ({"start": "2024-03-14T15:00:31-04:00"}, "future"),
        ({"period": "1y", "start": "2024-01-01"}, "contradict"),
    ],
)
def test_ranges_that_cannot_be(given, words):
    with pytest.raises(InvalidRangeError, match=words):
        window(**given)


def test_a_start_of_now_is_an_empty_window_and_no_mistake():
    assert window(start="now") == Window(NOW, NOW, None)


@pytest.mark.parametrize(
    "limit", [0, -1, True, False, 1.0, 1.5, "5", float("nan"), [5], np.float64(5)]
)
def test_what_is_no_limit_is_refused(limit):
    with pytest.raises(InvalidRangeError, match="1 or more"):
        window(limit=limit)


@pytest.mark.parametrize("year", ["0001-01-01", "9999-12-31"])
def test_the_ends_of_time_can_be_written(year):
    moment = read_moment(year, calendar(), NOW, "end")
    assert isinstance(moment, int)
