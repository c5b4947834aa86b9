"""The quality gates: what is rejected, what is kept and flagged, and what it costs."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime

import numpy as np
import pytest

from marketdata.calendars import TradingCalendar, calendar_for
from marketdata.clock import to_micros
from marketdata.quality import NO_TIMESTAMP, GateReport, gate, on_grid
from marketdata.spans import Span
from marketdata.types import (
    CLOSE,
    DAY,
    HIGH,
    LOW,
    MINUTE,
    OPEN,
    TRADE_COUNT,
    VOLUME,
    VWAP,
    Bars,
    Timeframe,
)

OPENING = to_micros(datetime(2024, 3, 8, 14, 30, tzinfo=UTC))
LATER = OPENING + 10 * DAY
SPAN = Span(OPENING, OPENING + 390 * MINUTE)


@pytest.fixture(scope="module")
def calendar() -> TradingCalendar:
    return calendar_for("XNYS", LATER)


def minutes(count: int) -> Bars:
    values = np.empty((7, count))
    values[OPEN], values[HIGH], values[LOW], values[CLOSE] = 10.0, 10.5, 9.5, 10.25
    values[VOLUME], values[VWAP], values[TRADE_COUNT] = 1000.5, 10.1, 12
    return Bars(OPENING + MINUTE * np.arange(count, dtype=np.int64), values)


def passed(
    bars: Bars,
    calendar: TradingCalendar,
    *,
    span: Span = SPAN,
    timeframe: Timeframe = Timeframe.MIN_1,
    now_us: int | None = LATER,
) -> GateReport:
    return gate(bars, span=span, timeframe=timeframe, calendar=calendar, now_us=now_us)


def test_clean_bars_pass_untouched(calendar: TradingCalendar) -> None:
    bars = minutes(390)
    report = passed(bars, calendar)
    assert report.bars is bars
    assert (report.rejected, report.flagged, report.cleared) == ({}, 0, 0)


def test_no_bars_are_no_bars(calendar: TradingCalendar) -> None:
    assert len(passed(Bars.empty(), calendar).bars) == 0


@pytest.mark.parametrize("row", [OPEN, HIGH, LOW, CLOSE])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_invariant_25_impossible_prices_are_rejected(
    calendar: TradingCalendar, row: int, value: float
) -> None:
    bars = minutes(5)
    bars.values[row, 2] = value
    report = passed(bars, calendar)
    assert report.rejected == {"price": 1}
    assert report.bars.timestamp.tolist() == np.delete(bars.timestamp, 2).tolist()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_invariant_25_impossible_volume_is_rejected(
    calendar: TradingCalendar, value: float
) -> None:
    bars = minutes(5)
    bars.values[VOLUME, 0] = value
    assert passed(bars, calendar).rejected == {"volume": 1}


def test_invariant_25_high_below_low_is_rejected(calendar: TradingCalendar) -> None:
    bars = minutes(5)
    bars.values[HIGH, 4] = 9.0
    assert passed(bars, calendar).rejected == {"range": 1}


@pytest.mark.parametrize("shift", [1, 23_000_000, MINUTE // 2])
def test_invariant_25_off_grid_is_rejected(calendar: TradingCalendar, shift: int) -> None:
    bars = minutes(5)
    bars.timestamp[4] += shift
    assert passed(bars, calendar).rejected == {"off_grid": 1}


def test_invariant_25_out_of_window_is_rejected_at_both_ends(calendar: TradingCalendar) -> None:
    report = passed(minutes(10), calendar, span=Span(OPENING + 2 * MINUTE, OPENING + 7 * MINUTE))
    assert report.rejected == {"out_of_window": 5}
    assert report.bars.timestamp[0] == OPENING + 2 * MINUTE
    assert report.bars.timestamp[-1] == OPENING + 6 * MINUTE


def test_invariant_09_forming_bars_are_rejected(calendar: TradingCalendar) -> None:
    at = OPENING + 5 * MINUTE
    assert len(passed(minutes(10), calendar, now_us=at).bars) == 5
    assert len(passed(minutes(10), calendar, now_us=at - 1).bars) == 4
    assert len(passed(minutes(10), calendar, now_us=None).bars) == 10


def test_unreadable_timestamps_are_rejected(calendar: TradingCalendar) -> None:
    bars = minutes(3)
    bars.timestamp[1] = NO_TIMESTAMP
    assert passed(bars, calendar).rejected == {"unreadable": 1}


def test_rows_are_sorted_and_of_repeats_the_last_stays(calendar: TradingCalendar) -> None:
    order = np.array([3, 1, 1, 0, 2, 1])
    bars = minutes(4).take(order)
    bars.values[CLOSE] = np.arange(6.0) / 100 + 10
    report = passed(bars, calendar)
    assert report.rejected == {"duplicate": 2}
    assert report.bars.timestamp.tolist() == minutes(4).timestamp.tolist()
    assert report.bars.values[CLOSE].tolist() == [10.03, 10.05, 10.04, 10.0]


def test_a_broken_repeat_does_not_displace_a_good_row(calendar: TradingCalendar) -> None:
    bars = minutes(2).take(np.array([0, 1, 1]))
    bars.values[CLOSE, 2] = np.nan
    report = passed(bars, calendar)
    assert report.rejected == {"price": 1}
    assert len(report.bars) == 2


def test_fault_08_open_or_close_outside_the_range_is_kept_and_flagged(
    calendar: TradingCalendar,
) -> None:
    bars = minutes(5)
    bars.values[OPEN, 1] = 11.0
    bars.values[CLOSE, 3] = 9.0
    report = passed(bars, calendar)
    assert report.flagged == 2
    assert report.bars is bars


def test_vwap_and_trade_count_may_be_absent_but_not_impossible(calendar: TradingCalendar) -> None:
    bars = minutes(4)
    bars.values[VWAP] = [np.nan, -1.0, np.inf, 10.0]
    bars.values[TRADE_COUNT, 3] = -5
    before = bars.values.copy()
    report = passed(bars, calendar)
    assert report.cleared == 3
    assert np.isnan(report.bars.values[VWAP, :3]).all()
    assert np.isnan(report.bars.values[TRADE_COUNT, 3])
    assert report.rejected == {}
    np.testing.assert_array_equal(bars.values, before)


def test_a_row_is_counted_once_with_its_first_reason(calendar: TradingCalendar) -> None:
    bars = minutes(3)
    bars.timestamp[0] += 1
    bars.values[:, 0] = -1.0
    assert passed(bars, calendar).rejected == {"off_grid": 1}


def test_good_rows_beside_all_kinds_of_dirt_are_kept(calendar: TradingCalendar) -> None:
    bars = minutes(8)
    bars.values[OPEN, 0] = np.nan
    bars.values[VOLUME, 1] = -1
    bars.timestamp[2] += 17
    bars.timestamp[3] = bars.timestamp[4]
    bars.values[HIGH, 5] = 1.0
    report = passed(bars.take(np.arange(8)[::-1]), calendar)
    assert report.rejected == {"price": 1, "volume": 1, "off_grid": 1, "duplicate": 1, "range": 1}
    assert report.bars.timestamp.tolist() == [OPENING + m * MINUTE for m in (4, 6, 7)]


@pytest.mark.parametrize(
    ("day", "label"),
    [
        (date(2024, 3, 8), datetime(2024, 3, 8, 5, tzinfo=UTC)),
        (date(2024, 3, 11), datetime(2024, 3, 11, 4, tzinfo=UTC)),
        (date(2024, 11, 1), datetime(2024, 11, 1, 4, tzinfo=UTC)),
        (date(2024, 11, 4), datetime(2024, 11, 4, 5, tzinfo=UTC)),
    ],
)
def test_invariant_27_daily_labels_are_exchange_midnights_across_dst(
    calendar: TradingCalendar, day: date, label: datetime
) -> None:
    right = to_micros(label)
    assert calendar.midnight_of(day) == right
    labels = np.array([right, right - 60 * MINUTE, right + 60 * MINUTE])
    assert on_grid(labels, Timeframe.DAY_1, calendar).tolist() == [True, False, False]


def test_daily_bars_off_session_are_off_grid_and_form_until_the_close(
    calendar: TradingCalendar,
) -> None:
    friday = calendar.midnight_of(date(2024, 3, 8))
    labels = np.array([friday, friday + DAY])  # a Friday and a Saturday
    bars = Bars(labels, minutes(2).values)
    span = Span(friday, friday + 5 * DAY)
    close = to_micros(datetime(2024, 3, 8, 21, tzinfo=UTC))
    report = passed(bars, calendar, span=span, timeframe=Timeframe.DAY_1, now_us=close)
    assert report.rejected == {"off_grid": 1}
    report = passed(bars, calendar, span=span, timeframe=Timeframe.DAY_1, now_us=close - 1)
    assert report.rejected == {"off_grid": 1, "forming": 1}


def test_hourly_bars_may_be_anchored_at_the_open(calendar: TradingCalendar) -> None:
    labels = np.array([OPENING, OPENING + 30 * MINUTE, OPENING + 15 * MINUTE])
    assert on_grid(labels, Timeframe.HOUR_1, calendar).tolist() == [True, True, False]


def test_clean_bars_cost_less_than_a_millisecond_per_ten_thousand(
    calendar: TradingCalendar,
) -> None:
    bars = minutes(10_000)
    span = Span(OPENING, OPENING + 10_000 * MINUTE)
    best = min(_seconds_of(bars, calendar, span) for _ in range(20))
    assert best < 0.001


def _seconds_of(bars: Bars, calendar: TradingCalendar, span: Span) -> float:
    begun = time.perf_counter()
    assert passed(bars, calendar, span=span, now_us=LATER + 30 * DAY).bars is bars
    return time.perf_counter() - begun
