"""Split factors against worked examples."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from marketdata.adjust import adjust_bars, split_factors, splits_within, unsplit_bars
from marketdata.calendars import TradingCalendar
from marketdata.errors import DataQualityError
from marketdata.spans import Span
from marketdata.types import HOUR, MINUTE, Bars, Split


@pytest.fixture(scope="module")
def calendar() -> TradingCalendar:
    return TradingCalendar.build("XNYS", date(2025, 12, 31))


def day(calendar: TradingCalendar, text: str) -> int:
    return calendar.midnight_of(date.fromisoformat(text))


def bars_at(*timestamps: int) -> Bars:
    columns = np.array([[100.0], [110.0], [90.0], [105.0], [1000.0], [102.0], [7.0]])
    return Bars(np.array(timestamps, np.int64), np.repeat(columns, len(timestamps), axis=1))


def test_apple_7_for_1_and_4_for_1(calendar: TradingCalendar):
    splits = [Split(day(calendar, "2020-08-31"), 4, 1), Split(day(calendar, "2014-06-09"), 7, 1)]
    stamps = [day(calendar, d) for d in ("2014-06-06", "2014-06-09", "2020-08-28", "2020-08-31")]
    price, volume = split_factors(splits, np.array(stamps))
    assert price.tolist() == [1 / 28, 1 / 4, 1 / 4, 1.0]
    assert volume.tolist() == [28.0, 4.0, 4.0, 1.0]


def test_a_reverse_split_raises_prices(calendar: TradingCalendar):
    ex = day(calendar, "2021-08-02")
    price, volume = split_factors([Split(ex, 1, 8)], np.array([ex - 1, ex]))
    assert price.tolist() == [8.0, 1.0]
    assert volume.tolist() == [0.125, 1.0]


def test_it_applies_from_the_first_extended_minute_of_the_ex_date(calendar: TradingCalendar):
    ex = day(calendar, "2014-06-09")
    last_before = day(calendar, "2014-06-06") + 20 * HOUR - MINUTE
    adjusted = adjust_bars(bars_at(last_before, ex + 4 * HOUR), [Split(ex, 7, 1)])
    assert adjusted.values[3].tolist() == [15.0, 105.0]


def test_prices_and_vwap_by_old_over_new_volume_inversely_trades_not_at_all(
    calendar: TradingCalendar,
):
    ex = day(calendar, "2024-06-10")
    raw = bars_at(ex - HOUR)
    before = raw.values.copy()
    adjusted = adjust_bars(raw, [Split(ex, 10, 1)])
    np.testing.assert_allclose(
        adjusted.values[:, 0], [10.0, 11.0, 9.0, 10.5, 10_000.0, 10.2, 7.0], rtol=1e-15
    )
    np.testing.assert_array_equal(raw.values, before)


def test_three_for_two(calendar: TradingCalendar):
    ex = day(calendar, "2024-06-10")
    adjusted = adjust_bars(bars_at(ex - HOUR), [Split(ex, 3, 2)])
    np.testing.assert_allclose(adjusted.values[[3, 4], 0], [70.0, 1500.0], rtol=1e-15)


def test_nan_stays_nan(calendar: TradingCalendar):
    ex = day(calendar, "2024-06-10")
    raw = bars_at(ex - HOUR)
    raw.values[5:] = np.nan
    adjusted = adjust_bars(raw, [Split(ex, 10, 1)])
    assert np.isnan(adjusted.values[5:]).all()


def test_bars_that_no_split_follows_are_returned_as_they_are(calendar: TradingCalendar):
    ex = day(calendar, "2024-06-10")
    bars = bars_at(ex, ex + HOUR)
    assert adjust_bars(bars, []) is bars
    assert adjust_bars(bars, [Split(ex, 10, 1)]) is bars
    empty = Bars.empty()
    assert adjust_bars(empty, [Split(ex, 10, 1)]) is empty
    assert unsplit_bars(empty, [Split(ex, 10, 1)]) is empty


def test_unsplitting_uses_splits_after_the_last_bar_too(calendar: TradingCalendar):
    # Yahoo's close of 2014-06-06 as asked for after 2020: 645.57 / 28.
    splits = [Split(day(calendar, "2014-06-09"), 7, 1), Split(day(calendar, "2020-08-31"), 4, 1)]
    given = bars_at(day(calendar, "2014-06-06"))
    given.values[3] = 645.57 / 28
    raw = unsplit_bars(given, splits)
    np.testing.assert_allclose(raw.values[3, 0], 645.57, rtol=1e-14)
    np.testing.assert_allclose(raw.values[4, 0], 1000.0 / 28, rtol=1e-14)


@pytest.mark.parametrize(
    ("new", "old"), [(0.0, 1.0), (1.0, 0.0), (-2.0, 1.0), (np.nan, 1.0), (np.inf, 1.0)]
)
def test_a_factor_that_is_none_is_refused(new: float, old: float):
    with pytest.raises(DataQualityError, match="has no factor"):
        adjust_bars(bars_at(0), [Split(10, new, old)])


def test_splits_within_is_half_open_and_sorted():
    splits = [Split(30, 2, 1), Split(10, 3, 1), Split(20, 4, 1)]
    assert splits_within(splits, Span(10, 30)) == [splits[1], splits[2]]
    assert splits_within(splits, Span(11, 20)) == []
