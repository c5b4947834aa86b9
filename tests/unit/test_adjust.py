"""Factors of corporate actions against worked examples, and what is refused."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest

from marketdata.action_steps import Closes
from marketdata.adjust import (
    adjust_bars,
    doubts,
    factors,
    split_factors,
    splits_within,
    unsplit_bars,
)
from marketdata.calendars import TradingCalendar
from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.errors import DataQualityError, DataUnavailableError, MarketDataError
from marketdata.spans import Span
from marketdata.types import DAY, HOUR, MINUTE, Adjustment, Bars, Split


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


# --------------------------------------------------------------------------------- distributions


def action(kind: ActionKind, ex: int, **terms: Any) -> CorporateAction:
    return CorporateAction("KO", kind, ex, **terms)


def dividend(ex: int, cash: float | None, **terms: Any) -> CorporateAction:
    return action(ActionKind.CASH_DIVIDEND, ex, cash=cash, **terms)


def split(ex: int, new: float, old: float = 1.0, **terms: Any) -> CorporateAction:
    return action(ActionKind.SPLIT, ex, new=new, old=old, **terms)


def price_before(
    actions: list[CorporateAction], closes: Closes, adjustment: Adjustment = "all"
) -> float:
    return float(factors(actions, closes, adjustment).price[0])


def test_yahoos_worked_example():
    """A close of 48.30, a 2:1 split, then a dividend of 0.08 on a close of 24.96: 24.07.

    Source: Yahoo help, "What is the adjusted close?", SLN28256.
    """
    actions = [split(10, 2), dividend(20, 0.08)]
    closes = Closes({20: 24.96, 10: 48.30})
    factor = price_before(actions, closes)
    assert factor == pytest.approx(0.5 * 0.9968, abs=1e-5)
    assert round(48.30 * factor, 2) == 24.07
    found = factors(actions, closes, "all")
    assert found.volume.tolist() == [2.0, 1.0, 1.0]
    np.testing.assert_allclose(found.price, [0.5 * (1 - 0.08 / 24.96), 1 - 0.08 / 24.96, 1.0])
    assert factors(actions, closes, "split").price.tolist() == [0.5, 1.0]
    assert price_before(actions, closes, "dividend") == pytest.approx(1 - 0.08 / 24.96, rel=1e-15)
    assert factors(actions, closes, "dividend").volume.tolist() == [1.0, 1.0]
    assert factors(actions, closes, "raw").price.tolist() == [1.0]


def test_a_stock_dividend_is_a_split_of_what_is_added():
    found = factors([action(ActionKind.STOCK_DIVIDEND, 10, new=1, old=20)], Closes(), "split")
    assert found.price[0] == pytest.approx(1 / 1.05, rel=1e-15)
    assert found.volume[0] == pytest.approx(1.05, rel=1e-15)


def test_a_spin_off_takes_the_value_of_what_is_spun_off():
    spun = action(ActionKind.SPIN_OFF, 10, new=1, old=3, other_symbol="NEW")
    closes = Closes({10: 100.0}, {("NEW", 10): 60.0})
    assert price_before([spun], closes) == pytest.approx(1 - 20 / 100, rel=1e-15)
    assert price_before([spun], closes, "split") == 1.0
    assert factors([spun], closes, "all").volume.tolist() == [1.0, 1.0]


def test_distributions_of_one_day_are_one():
    both = [dividend(10, 0.5), dividend(10, 2.0, special=True)]
    assert price_before(both, Closes({10: 50.0})) == pytest.approx(1 - 2.5 / 50, rel=1e-15)


@pytest.mark.parametrize(
    ("orders", "expected"),
    [((0, 1), 0.5 * (1 - 1.0 / 50)), ((1, 0), 0.5 * (1 - 1.0 / 100))],
    ids=["split first", "dividend first"],
)
def test_a_stated_order_says_what_a_dividend_is_measured_by(
    orders: tuple[int, int], expected: float
):
    actions = [split(10, 2, order=orders[0]), dividend(10, 1.0, order=orders[1])]
    closes = Closes({10: 100.0})
    assert price_before(actions, closes) == pytest.approx(expected, rel=1e-15)
    assert price_before(actions[::-1], closes) == price_before(actions, closes)
    assert price_before(actions, closes, "dividend") == pytest.approx(expected * 2, rel=1e-15)


def test_prices_vwap_and_volume_of_an_all_adjusted_bar(calendar: TradingCalendar):
    ex = day(calendar, "2024-06-10")
    actions = [split(ex, 10, order=0), dividend(ex, 1.05, order=1)]
    found = factors(actions, Closes({ex: 105.0}), "all")
    raw = bars_at(ex - HOUR, ex)
    adjusted = found.apply(raw)
    kept = 0.1 * (1 - 1.05 / 10.5)
    np.testing.assert_allclose(
        adjusted.values[:, 0],
        [100 * kept, 110 * kept, 90 * kept, 105 * kept, 10_000.0, 102 * kept, 7.0],
        rtol=1e-15,
    )
    np.testing.assert_array_equal(adjusted.values[:, 1], raw.values[:, 1])
    assert found.at(raw.timestamp)[0].tolist() == [found.price[0], 1.0]


def test_identity_changes_change_no_price():
    kinds = (ActionKind.NAME_CHANGE, ActionKind.MERGER, ActionKind.DELISTING, ActionKind.OTHER)
    others = [action(k, 10, cash=3.0, new=1, old=1, other_symbol="X") for k in kinds]
    assert factors(others, Closes({10: 50.0}), "all").price.tolist() == [1.0]


DAY_10 = Closes({10 * DAY: 50.0})
DOUBTFUL: dict[str, tuple[list[CorporateAction], Closes, str, type[Exception]]] = {
    "dividend of the whole price": (
        [dividend(10 * DAY, 50.0)], DAY_10, "a dividend of 50 is no less than the close of 50",
        DataQualityError,
    ),
    "dividends that are more together": (
        [dividend(10 * DAY, 30.0), dividend(10 * DAY, 20.5)], DAY_10, "50.5 is no less",
        DataQualityError,
    ),
    "no reference close": (
        [dividend(10 * DAY, 1.0)], Closes(), "session before, which has no bar",
        DataUnavailableError,
    ),
    "split and dividend without an order": (
        [split(10 * DAY, 2), dividend(10 * DAY, 1.0)], DAY_10, "which of them comes first",
        DataQualityError,
    ),
    "split and dividend of the same order": (
        [split(10 * DAY, 2, order=1), dividend(10 * DAY, 1.0, order=1)], DAY_10,
        "which of them comes first", DataQualityError,
    ),
    "one order of two": (
        [split(10 * DAY, 2, order=1), dividend(10 * DAY, 1.0)], DAY_10,
        "which of them comes first", DataQualityError,
    ),
    "negative dividend": (
        [dividend(10 * DAY, -1.0)], DAY_10, "a dividend of -1 a share", DataQualityError,
    ),
    "dividend of nan": (
        [dividend(10 * DAY, float("nan"))], DAY_10, "a dividend of nan a share", DataQualityError,
    ),
    "dividend without an amount": (
        [dividend(10 * DAY, None)], DAY_10, "a dividend of nothing", DataQualityError,
    ),
    "split of nothing": (
        [split(10 * DAY, 0)], DAY_10, "a split of 0 shares for 1", DataQualityError,
    ),
    "split of infinity": (
        [split(10 * DAY, float("inf"))], DAY_10, "a split of inf shares", DataQualityError,
    ),
    "stock dividend without a rate": (
        [action(ActionKind.STOCK_DIVIDEND, 10 * DAY, new=1)], DAY_10,
        "a stock dividend of 1 shares for \\?", DataQualityError,
    ),
    "spin-off without a price": (
        [action(ActionKind.SPIN_OFF, 10 * DAY, new=1, old=2, other_symbol="NEW")], DAY_10,
        "spin-off of NEW has no price", DataUnavailableError,
    ),
    "spin-off of more than the price": (
        [action(ActionKind.SPIN_OFF, 10 * DAY, new=1, old=1, other_symbol="NEW")],
        Closes({10 * DAY: 50.0}, {("NEW", 10 * DAY): 51.0}),
        "a spin-off of 51 is no less than the close of 50", DataQualityError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DOUBTFUL)
def test_what_has_no_factor_is_refused_and_named(case: str):
    actions, closes, why, kind = DOUBTFUL[case]
    with pytest.raises(kind, match=why) as caught:
        factors(actions, closes, "all")
    error = caught.value
    assert isinstance(error, MarketDataError)
    assert "KO on 1970-01-11" in str(error)
    assert "adjustment=" in str(error.cure)
    assert not error.transient
    assert error.facts["symbols"] == ["KO"]
    assert error.facts["ex_dates"] == ["1970-01-11"]
    # What does not matter to the bars asked for refuses nothing.
    assert factors(actions, closes, "all", after=10 * DAY).price.tolist() == [1.0]
    assert factors(actions, closes, "raw").price.tolist() == [1.0]
    (doubt,) = doubts(actions, closes)
    assert (doubt.symbol, doubt.ex_date) == ("KO", 10 * DAY)
    assert doubt.lacking == (kind is DataUnavailableError)
    if not doubt.of_shares:
        factors(actions, closes, "split")


def test_every_doubt_is_named():
    actions = [dividend(10 * DAY, 50.0), dividend(20 * DAY, 1.0), split(30 * DAY, -1)]
    found = doubts(actions, DAY_10)
    assert [d.ex_date // DAY for d in found] == [10, 20, 30]
    with pytest.raises(DataQualityError) as caught:
        factors(actions, DAY_10, "all")
    for text in ("1970-01-11", "1970-01-21", "1970-01-31"):
        assert text in str(caught.value)
    assert str(caught.value.cure).startswith('ask for adjustment="raw"')


def test_a_dividend_of_nothing_has_no_effect_and_needs_no_close():
    assert price_before([dividend(10, 0.0)], Closes()) == 1.0


def test_a_factor_is_never_zero():
    almost = float(np.nextafter(50.0, 0))
    assert 0 < price_before([dividend(10 * DAY, almost)], DAY_10) < 1e-15
    with pytest.raises(DataQualityError, match="beyond any number"):
        factors([split(n * DAY, 1e200) for n in (1, 2)], Closes(), "split")
