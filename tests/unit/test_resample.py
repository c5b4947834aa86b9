"""Where coarser bars begin and end, and what they are made of, by example."""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from marketdata.calendars import TradingCalendar
from marketdata.clock import to_micros
from marketdata.errors import UnsupportedRequestError
from marketdata.resample import (
    bar_labels,
    bar_span,
    base_span,
    check_derivable,
    closed_until,
    resample,
)
from marketdata.spans import Span
from marketdata.types import DAY, MINUTE, Bars, Int64s, Session, Timeframe

NEW_YORK = ZoneInfo("America/New_York")
MIN_1, MIN_5, MIN_15, MIN_30, HOUR_1, HOUR_4, DAY_1, WEEK_1, MONTH_1 = Timeframe
NAN = float("nan")


@pytest.fixture(scope="module")
def calendar() -> TradingCalendar:
    return TradingCalendar.build("XNYS", date(2025, 12, 31))


def at(text: str) -> int:
    """Return the instant that New York clocks show as `text`."""
    return to_micros(datetime.fromisoformat(text).replace(tzinfo=NEW_YORK))


def shown(labels: Int64s) -> list[str]:
    return [datetime.fromtimestamp(t / 1e6, NEW_YORK).strftime("%H:%M") for t in labels.tolist()]


def days(labels: Int64s) -> list[str]:
    found = [datetime.fromtimestamp(t / 1e6, NEW_YORK) for t in labels.tolist()]
    assert all((d.hour, d.minute) == (0, 0) for d in found)
    return [str(d.date()) for d in found]


def minutes(*rows: tuple[str, float, float, float, float, float, float, float]) -> Bars:
    return Bars(
        np.array([at(r[0]) for r in rows]),
        np.ascontiguousarray(np.array([r[1:] for r in rows], np.float64).T),
    )


def flat(labels: Int64s) -> Bars:
    return Bars(labels, np.ones((7, len(labels))))


# ---------------------------------------------------------------------------------------- values


def test_the_seven_columns(calendar: TradingCalendar):
    bars = minutes(
        ("2024-03-08 09:30", 10, 12, 9, 11, 100, 10.5, 3),
        ("2024-03-08 09:32", 11, 15, 11, 14, 300, 12.5, 5),
        ("2024-03-08 09:35", 14, 14, 13, 13, 50, 13.5, 2),
    )
    five = resample(bars, MIN_1, MIN_5, calendar, "regular")
    assert shown(five.timestamp) == ["09:30", "09:35"]
    assert five.values[:, 0].tolist() == [10, 15, 9, 14, 400, 12.0, 8]
    assert five.values[:, 1].tolist() == [14, 14, 13, 13, 50, 13.5, 2]


def test_vwap_and_trade_count_are_of_the_bars_that_have_them(calendar: TradingCalendar):
    bars = minutes(
        ("2024-03-08 09:30", 1, 1, 1, 1, 100, NAN, NAN),
        ("2024-03-08 09:31", 1, 1, 1, 1, 300, 12.0, 5),
        ("2024-03-08 09:35", 1, 1, 1, 1, 7, NAN, NAN),
        ("2024-03-08 09:40", 1, 1, 1, 1, 0, 4.0, 0),
        ("2024-03-08 09:41", 1, 1, 1, 1, 0, 6.0, 0),
        ("2024-03-08 09:45", 1, 1, 1, 1, NAN, 8.0, 1),
        ("2024-03-08 09:50", 1, 1, 1, 1, NAN, 8.0, 1),
        ("2024-03-08 09:51", 1, 1, 1, 1, 10, 6.0, 1),
    )
    five = resample(bars, MIN_1, MIN_5, calendar, "regular")
    np.testing.assert_array_equal(five.values[4], [400, 7, 0, NAN, 10])
    np.testing.assert_array_equal(five.values[5], [12.0, NAN, 5.0, 8.0, 6.0])
    np.testing.assert_array_equal(five.values[6], [5, NAN, 0, 1, 2])


def test_quiet_bins_are_absent(calendar: TradingCalendar):
    bars = flat(np.array([at("2024-03-08 09:31"), at("2024-03-08 15:59")]))
    assert shown(resample(bars, MIN_1, MIN_15, calendar, "regular").timestamp) == ["09:30", "15:45"]


def test_nothing_in_nothing_out(calendar: TradingCalendar):
    assert len(resample(Bars.empty(), MIN_1, HOUR_1, calendar, "extended")) == 0
    night = flat(np.array([at("2024-03-08 03:59"), at("2024-03-08 20:00"), at("2024-03-09 10:00")]))
    assert len(resample(night, MIN_1, HOUR_1, calendar, "extended")) == 0


def test_the_input_is_not_changed(calendar: TradingCalendar):
    labels = bar_labels(Span(at("2024-03-08"), at("2024-03-09")), MIN_1, calendar, "regular")
    bars = flat(labels)
    result = resample(bars, MIN_1, HOUR_1, calendar, "regular")
    result.values[:] = -1
    assert (bars.values == 1).all()


# ------------------------------------------------------------------------------------------ bins


@pytest.mark.parametrize(
    ("timeframe", "session", "day", "expected"),
    [
        (HOUR_1, "regular", "2024-03-08", "09:30 10:30 11:30 12:30 13:30 14:30 15:30"),
        (HOUR_4, "regular", "2024-03-08", "09:30 13:30"),
        (HOUR_4, "extended", "2024-03-08", "04:00 08:00 09:30 13:30 16:00"),
        (
            HOUR_1,
            "extended",
            "2024-03-08",
            "04:00 05:00 06:00 07:00 08:00 09:00 09:30 10:30 11:30 12:30 13:30 14:30 15:30 "
            "16:00 17:00 18:00 19:00",
        ),
        # Half-days: regular hours end at 13:00, the late session at 17:00.
        (HOUR_1, "regular", "2024-11-29", "09:30 10:30 11:30 12:30"),
        (HOUR_4, "regular", "2024-11-29", "09:30"),
        (HOUR_4, "extended", "2024-11-29", "04:00 08:00 09:30 13:00"),
        (HOUR_1, "regular", "2024-03-09", ""),
        (HOUR_1, "regular", "2024-07-04", ""),
    ],
)
def test_labels_of_a_day(
    calendar: TradingCalendar, timeframe: Timeframe, session: Session, day: str, expected: str
):
    span = Span(at(day), at(day) + DAY)
    labels = bar_labels(span, timeframe, calendar, session)
    assert shown(labels) == expected.split()
    dense = flat(bar_labels(span, MIN_1, calendar, "extended"))
    made = resample(dense, MIN_1, timeframe, calendar, session)
    np.testing.assert_array_equal(made.timestamp, labels)


def test_minutes_of_full_and_half_days(calendar: TradingCalendar):
    def count(day: str, session: Session) -> int:
        return len(bar_labels(Span(at(day), at(day) + DAY), MIN_1, calendar, session))

    assert [count(d, "regular") for d in ("2024-03-08", "2024-11-29", "2024-12-25")] == [
        390,
        210,
        0,
    ]
    assert [count(d, "extended") for d in ("2024-03-08", "2024-11-29", "2025-01-09")] == [
        960,
        780,
        0,
    ]


def test_regular_bars_are_those_of_extended_hours_inside_regular_hours(calendar: TradingCalendar):
    span = Span(at("2024-11-25"), at("2024-12-02"))
    random = np.random.default_rng(3)
    labels = bar_labels(span, MIN_1, calendar, "extended")
    bars = Bars(labels, random.uniform(1, 2, (7, len(labels))))
    for timeframe in (MIN_5, MIN_15, MIN_30, HOUR_1, HOUR_4):
        regular = resample(bars, MIN_1, timeframe, calendar, "regular")
        extended = resample(bars, MIN_1, timeframe, calendar, "extended")
        kept = extended.take(calendar.mask(extended.timestamp, "regular"))
        np.testing.assert_array_equal(kept.timestamp, regular.timestamp)
        # The same additions in the same order.
        np.testing.assert_allclose(kept.values, regular.values, rtol=1e-15)


def test_weeks_and_months_are_labelled_by_their_first_session(calendar: TradingCalendar):
    span = Span(at("2023-12-29"), at("2024-02-07"))
    daily = flat(bar_labels(span, DAY_1, calendar, "regular"))
    weeks = resample(daily, DAY_1, WEEK_1, calendar, "regular")
    # New Year and Martin Luther King days are Mondays without a session; so is the last Friday's
    # week, of which only the last day was given.
    assert days(weeks.timestamp) == [
        "2023-12-26",
        "2024-01-02",
        "2024-01-08",
        "2024-01-16",
        "2024-01-22",
        "2024-01-29",
        "2024-02-05",
    ]
    assert weeks.values[4].tolist() == [1, 4, 5, 4, 5, 5, 2]
    months = resample(daily, DAY_1, MONTH_1, calendar, "regular")
    assert days(months.timestamp) == ["2023-12-01", "2024-01-02", "2024-02-01"]
    assert months.values[4].tolist() == [1, 21, 4]


def test_a_month_without_its_first_bars_keeps_its_label(calendar: TradingCalendar):
    daily = flat(np.array([at("2024-01-17"), at("2024-01-18")]))
    month = resample(daily, DAY_1, MONTH_1, calendar, "regular")
    assert days(month.timestamp) == ["2024-01-02"]


def test_invariant_27_daily_labels_on_both_sides_of_both_clock_changes(calendar: TradingCalendar):
    for span in (
        Span(at("2024-03-07"), at("2024-03-14")),
        Span(at("2024-10-31"), at("2024-11-07")),
    ):
        labels = bar_labels(span, DAY_1, calendar, "regular")
        assert len(days(labels)) == 5
        hours = {datetime.fromtimestamp(t / 1e6, ZoneInfo("UTC")).hour for t in labels.tolist()}
        assert hours == {4, 5}


@pytest.mark.parametrize(
    ("base", "target"),
    [(MIN_1, DAY_1), (HOUR_1, MIN_5), (WEEK_1, MONTH_1), (DAY_1, HOUR_1), (MIN_30, MIN_15)],
)
def test_what_cannot_be_derived_is_refused(base: Timeframe, target: Timeframe):
    with pytest.raises(UnsupportedRequestError, match="cannot be made"):
        check_derivable(base, target)


@pytest.mark.parametrize(
    ("base", "target"), [(MIN_1, MIN_1), (MIN_15, HOUR_4), (DAY_1, DAY_1), (DAY_1, WEEK_1)]
)
def test_what_can_be_derived(base: Timeframe, target: Timeframe):
    check_derivable(base, target)


# ------------------------------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("moment", "timeframe", "expected"),
    [
        ("2024-03-08 13:30", HOUR_4, ("2024-03-08 13:30", "2024-03-08 16:00")),
        ("2024-03-08 15:59", HOUR_4, ("2024-03-08 13:30", "2024-03-08 16:00")),
        ("2024-03-08 08:10", HOUR_4, ("2024-03-08 08:00", "2024-03-08 09:30")),
        ("2024-11-29 12:45", HOUR_1, ("2024-11-29 12:30", "2024-11-29 13:00")),
        ("2024-03-08 09:33", MIN_5, ("2024-03-08 09:30", "2024-03-08 09:35")),
        ("2024-03-08 00:00", DAY_1, ("2024-03-08 00:00", "2024-03-09 00:00")),
        ("2024-01-17 00:00", WEEK_1, ("2024-01-16 00:00", "2024-01-20 00:00")),
        ("2024-03-28 00:00", MONTH_1, ("2024-03-01 00:00", "2024-03-29 00:00")),
    ],
)
def test_bar_span(
    calendar: TradingCalendar, moment: str, timeframe: Timeframe, expected: tuple[str, str]
):
    assert bar_span(at(moment), timeframe, calendar) == Span(at(expected[0]), at(expected[1]))


@pytest.mark.parametrize(
    ("moment", "timeframe"),
    [("2024-03-08 20:00", MIN_5), ("2024-03-09 12:00", HOUR_1), ("2024-03-09 12:00", DAY_1)],
)
def test_bar_span_is_empty_in_closed_hours(
    calendar: TradingCalendar, moment: str, timeframe: Timeframe
):
    assert bar_span(at(moment), timeframe, calendar) == Span(at(moment), at(moment))


@pytest.mark.parametrize(
    ("asked", "timeframe", "session", "expected"),
    [
        # Starts inside a bar: that bar is labelled before, so it is not asked for.
        (
            ("2024-03-08 09:31", "2024-03-08 13:31"),
            HOUR_4,
            "regular",
            ("2024-03-08 13:30", "2024-03-08 16:00"),
        ),
        (
            ("2024-03-08 09:30", "2024-03-08 09:36"),
            MIN_5,
            "extended",
            ("2024-03-08 09:30", "2024-03-08 09:40"),
        ),
        (("2024-03-09", "2024-03-12"), MIN_5, "regular", ("2024-03-11 09:30", "2024-03-11 16:00")),
        (("2024-01-17", "2024-01-23"), WEEK_1, "regular", ("2024-01-22", "2024-01-27")),
        (("2024-02-01", "2024-02-02"), MONTH_1, "regular", ("2024-02-01", "2024-03-01")),
    ],
)
def test_base_span(
    calendar: TradingCalendar,
    asked: tuple[str, str],
    timeframe: Timeframe,
    session: Session,
    expected: tuple[str, str],
):
    span = Span(at(asked[0]), at(asked[1]))
    assert base_span(span, timeframe, calendar, session) == Span(at(expected[0]), at(expected[1]))


def test_base_span_of_nothing_is_empty(calendar: TradingCalendar):
    weekend = Span(at("2024-03-09"), at("2024-03-10"))
    assert base_span(weekend, MIN_5, calendar).empty
    assert base_span(Span(weekend.end, weekend.start), MIN_5, calendar).empty


@pytest.mark.parametrize(
    ("frontier", "timeframe", "session", "expected"),
    [
        ("2024-03-08 09:34", MIN_5, "regular", "2024-03-08 09:30"),
        ("2024-03-08 09:35", MIN_5, "regular", "2024-03-08 09:35"),
        ("2024-03-08 15:59", HOUR_4, "regular", "2024-03-08 13:30"),
        ("2024-03-08 16:00", HOUR_4, "regular", "2024-03-11 09:30"),
        ("2024-03-08 16:00", HOUR_4, "extended", "2024-03-08 16:00"),
        ("2024-03-09 12:00", MIN_5, "extended", "2024-03-11 04:00"),
        ("2024-03-08 00:00", WEEK_1, "regular", "2024-03-04 00:00"),
        ("2024-03-09 00:00", WEEK_1, "regular", "2024-03-11 00:00"),
        ("2024-03-28 00:00", MONTH_1, "regular", "2024-03-01 00:00"),
        ("2024-03-29 00:00", MONTH_1, "regular", "2024-04-01 00:00"),
    ],
)
def test_closed_until(
    calendar: TradingCalendar, frontier: str, timeframe: Timeframe, session: Session, expected: str
):
    assert closed_until(timeframe, calendar, at(frontier), session) == at(expected)


def test_closed_until_beyond_the_calendar(calendar: TradingCalendar):
    late = calendar.horizon + 5 * MINUTE
    assert closed_until(MIN_5, calendar, late, "extended") == late
