"""Share basis, dividends and aggregation, checked by hand."""

from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from marketdata.calendars import calendar_for
from marketdata.clock import FixedClock, SystemClock, to_micros
from marketdata.sandbox.generated import GeneratedMarket
from marketdata.sandbox.source import (
    Action,
    aggregate,
    basis_factors,
    clock_labels,
    date_ordinals,
    day_of,
    dividend_factors,
    month_labels,
    rebased,
    week_labels,
)
from marketdata.sandbox.view import MarketView, Period
from marketdata.spans import Span
from marketdata.types import CLOSE, HIGH, LOW, MINUTE, OPEN, VOLUME, VWAP, Bars

CALENDAR = calendar_for("XNYS", SystemClock().now_us())
TODAY = date(2024, 9, 1)


def midnights(*texts: str) -> NDArray[Any]:
    return np.array([CALENDAR.midnight_of(date.fromisoformat(t)) for t in texts], np.int64)


def bars(timestamps: NDArray[Any], close: float = 100.0) -> Bars:
    return Bars(timestamps, np.full((7, len(timestamps)), close))


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-10T04:00",
        "2024-01-10T19:59",
        "2024-07-10T00:00",
        "2024-07-10T19:59",
        "2024-01-10T00:00",
    ],
)
def test_bars_fall_on_their_exchange_date(text):
    moment = datetime.fromisoformat(text).replace(tzinfo=CALENDAR.zone)
    (number,) = date_ordinals(np.array([to_micros(moment)]))
    assert day_of(int(number)) == moment.date()


def test_split_basis_divides_what_came_before():
    actions = [Action("X", date(2024, 6, 10), new=10), Action("X", date(2024, 7, 1), new=1, old=2)]
    stamps = midnights("2024-06-07", "2024-06-10", "2024-07-01")
    factors = basis_factors(stamps, actions, "raw", "split", TODAY)
    assert factors is not None
    assert factors.tolist() == [1 / 10 / 0.5, 2.0, 1.0]
    out = rebased(bars(stamps), factors)
    assert out.values[CLOSE].tolist() == [20.0, 200.0, 100.0]
    assert out.values[VOLUME].tolist() == [500.0, 50.0, 100.0]


def test_a_split_to_come_is_not_applied_yet():
    actions = [Action("X", date(2024, 10, 1), new=2)]
    stamps = midnights("2024-06-07")
    assert basis_factors(stamps, actions, "raw", "split", TODAY) is None
    assert basis_factors(stamps, actions, "raw", "split", date(2024, 10, 1)) is not None


def test_split_basis_is_multiplied_back_to_raw():
    actions = [Action("X", date(2024, 6, 10), new=10)]
    stamps = midnights("2024-06-07", "2024-06-10")
    factors = basis_factors(stamps, actions, "split", "raw", TODAY)
    assert factors is not None
    assert factors.tolist() == [10.0, 1.0]
    assert basis_factors(stamps, actions, "split", "split", TODAY) is None


def test_dividends_compose_as_one_minus_d_over_p():
    closes = bars(midnights("2024-06-07", "2024-06-10", "2024-06-11"), 50.0)
    actions = [Action("X", date(2024, 6, 11), amount=1.0)]
    factors = dividend_factors(closes.timestamp, actions, closes)
    assert factors.tolist() == [0.98, 0.98, 1.0]


def test_aggregation_joins_by_label():
    values = np.array(
        [[1, 2, 3], [5, 9, 4], [1, 2, 0.5], [2, 3, 3.5], [10, 30, 5], [2, 4, 3], [1, 2, 3]], float
    )
    out = aggregate(Bars(np.arange(3) * MINUTE, values), np.array([0, 0, 120]))
    assert out.timestamp.tolist() == [0, 120]
    assert out.values[OPEN].tolist() == [1, 3]
    assert out.values[HIGH].tolist() == [9, 4]
    assert out.values[LOW].tolist() == [1, 0.5]
    assert out.values[CLOSE].tolist() == [3, 3.5]
    assert out.values[VOLUME].tolist() == [40, 5]
    assert out.values[VWAP].tolist() == [(20 + 120) / 40, 3]


def test_bins_sit_on_the_exchange_clock():
    opening = to_micros(datetime(2024, 3, 11, 13, 30, tzinfo=UTC))
    labels = clock_labels(bars(np.array([opening, opening + 31 * MINUTE])), CALENDAR, 60)
    hours = [datetime.fromtimestamp(t / 1e6, CALENDAR.zone).strftime("%H:%M") for t in labels]
    assert hours == ["09:00", "10:00"]


def test_weeks_begin_on_monday_and_months_on_the_first():
    stamps = midnights("2024-02-29", "2024-03-01", "2024-03-04")
    assert (
        week_labels(stamps, CALENDAR).tolist()
        == midnights("2024-02-26", "2024-02-26", "2024-03-04").tolist()
    )
    assert (
        month_labels(stamps, CALENDAR, 1).tolist()
        == midnights("2024-02-01", "2024-03-01", "2024-03-01").tolist()
    )
    assert month_labels(stamps, CALENDAR, 3).tolist() == midnights(*["2024-01-01"] * 3).tolist()


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("1Min", Period(1, "minute")),
        ("59T", Period(59, "minute")),
        ("4Hour", Period(240, "minute")),
        ("1D", Period(1, "day")),
        ("1Week", Period(1, "week")),
        ("12Month", Period(12, "month")),
        ("60Min", None),
        ("24Hour", None),
        ("2Day", None),
        ("5Month", None),
        ("0Min", None),
        ("1min", None),
        ("", None),
    ],
)
def test_timeframes_as_alpaca_has_them(text, period):
    assert Period.parse(text) == period


def view_at(*moment: int) -> tuple[MarketView, Span]:
    clock = FixedClock(datetime(*moment, tzinfo=UTC))  # type: ignore[arg-type, misc]
    day = Span(CALENDAR.midnight_of(date(2024, 3, 4)), CALENDAR.midnight_of(date(2024, 3, 6)))
    return MarketView(GeneratedMarket(), clock), day


def test_a_minute_is_seen_once_it_has_closed():
    # 10:00 in New York is 15:00 UTC.
    view, span = view_at(2024, 3, 5, 15, 0, 59)
    newest = Bars.concat(list(view.minutes("AAPL", span, "sip"))).timestamp[-1]
    assert newest == to_micros(datetime(2024, 3, 5, 14, 59, tzinfo=UTC))
    view, span = view_at(2024, 3, 5, 15, 1, 0)
    newest = Bars.concat(list(view.minutes("AAPL", span, "sip"))).timestamp[-1]
    assert newest == to_micros(datetime(2024, 3, 5, 15, 0, tzinfo=UTC))


def test_the_running_day_is_its_regular_minutes_so_far():
    view, span = view_at(2024, 3, 5, 15, 0, 30)
    daily = view.days("AAPL", span, "sip")
    assert len(daily) == 2
    regular = Span(
        to_micros(datetime(2024, 3, 5, 14, 30, tzinfo=UTC)),
        to_micros(datetime(2024, 3, 5, 15, 0, tzinfo=UTC)),
    )
    so_far = Bars.concat(list(view.minutes("AAPL", regular, "sip"))).values
    assert daily.values[OPEN, 1] == so_far[OPEN, 0]
    assert daily.values[HIGH, 1] == so_far[HIGH].max()
    assert daily.values[CLOSE, 1] == so_far[CLOSE, -1]


def test_the_day_is_whole_from_its_close_and_absent_before_its_open():
    complete = view_at(2024, 3, 6, 15)[0].days("AAPL", view_at(2024, 3, 5)[1], "sip")
    view, span = view_at(2024, 3, 5, 21, 0, 0)
    assert np.array_equal(view.days("AAPL", span, "sip").values, complete.values)
    view, span = view_at(2024, 3, 5, 14, 0, 0)
    assert len(view.days("AAPL", span, "sip")) == 1


def test_coarse_bars_do_not_depend_on_the_window():
    view, _ = view_at(2024, 9, 3, 15)
    wide = Span(CALENDAR.midnight_of(date(2024, 1, 1)), CALENDAR.midnight_of(date(2024, 9, 1)))
    narrow = Span(CALENDAR.midnight_of(date(2024, 3, 1)), CALENDAR.midnight_of(date(2024, 5, 2)))
    for period in (Period(1, "week"), Period(1, "month"), Period(3, "month"), Period(60, "minute")):
        whole = Bars.concat(list(view.bars("AAPL", period, wide, "sip")))
        part = Bars.concat(list(view.bars("AAPL", period, narrow, "sip")))
        assert np.array_equal(part.values, whole.within(narrow).values)
        assert len(part)
