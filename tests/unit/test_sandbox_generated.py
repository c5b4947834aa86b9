"""The generated market: deterministic, on the real calendar, minutes true to their day."""

from datetime import date

import numpy as np
import pytest

from marketdata.calendars import calendar_for
from marketdata.clock import SystemClock
from marketdata.sandbox.generated import GeneratedMarket, simulated
from marketdata.spans import Span
from marketdata.types import CLOSE, HIGH, LOW, MINUTE, OPEN, TRADE_COUNT, VOLUME, VWAP, Bars

CALENDAR = calendar_for("XNYS", SystemClock().now_us())


def days(start: str, end: str) -> Span:
    return Span(
        CALENDAR.midnight_of(date.fromisoformat(start)),
        CALENDAR.midnight_of(date.fromisoformat(end)),
    )


def minutes(market: GeneratedMarket, symbol: str, span: Span, feed: str = "sip") -> Bars:
    return Bars.concat(list(market.minutes(symbol, span, feed)))


def same(left: Bars, right: Bars) -> bool:
    return np.array_equal(left.timestamp, right.timestamp) and np.array_equal(
        left.values, right.values
    )


@pytest.mark.parametrize("symbol", ["AAPL", "UGA", "BRK.B", "S00042"])
def test_windows_do_not_change_bars(symbol):
    span = days("2024-11-25", "2024-12-05")
    whole = minutes(GeneratedMarket(3), symbol, span)
    rng = np.random.default_rng(0)
    market = GeneratedMarket(3)
    for _ in range(20):
        low, high = np.sort(rng.integers(span.start, span.end, 2)).tolist()
        assert same(minutes(market, symbol, Span(low, high)), whole.within(Span(low, high)))


def test_windows_do_not_change_days():
    whole = GeneratedMarket(3).days("AAPL", days("1990-01-01", "2026-01-01"), "sip")
    part = days("2014-05-01", "2014-07-01")
    assert len(whole) > 9000
    assert same(GeneratedMarket(3).days("AAPL", part, "sip"), whole.within(part))


def test_newest_first_yields_the_same_pieces_backwards():
    market, span = GeneratedMarket(), days("2024-07-01", "2024-07-10")
    forwards = list(market.minutes("MSFT", span, "sip"))
    backwards = list(market.minutes("MSFT", span, "sip", newest_first=True))
    assert len(forwards) == 6
    assert all(same(a, b) for a, b in zip(forwards, backwards[::-1], strict=True))


def test_seeds_are_different_markets():
    span = days("2024-03-04", "2024-03-05")
    assert not same(
        minutes(GeneratedMarket(1), "AAPL", span), minutes(GeneratedMarket(2), "AAPL", span)
    )


@pytest.mark.parametrize("symbol", ["AAPL", "UGA", "S00042", "BRK.A"])
def test_regular_minutes_agree_with_their_day(symbol):
    # Both DST changes, a half-day and holidays lie in this year.
    market, span = GeneratedMarket(), days("2024-01-01", "2025-01-01")
    daily = market.days(symbol, span, "sip")
    sessions = list(market.minutes(symbol, span, "sip"))
    assert len(daily) == len(sessions) == 252
    for at, session in enumerate(sessions):
        regular = session.take(CALENDAR.mask(session.timestamp, "regular")).values
        assert regular[OPEN, 0] == daily.values[OPEN, at]
        assert regular[CLOSE, -1] == daily.values[CLOSE, at]
        assert regular[HIGH].max() == daily.values[HIGH, at]
        assert regular[LOW].min() == daily.values[LOW, at]


def test_bars_lie_in_extended_hours_of_sessions_only():
    bars = minutes(GeneratedMarket(), "NVDA", days("2024-06-28", "2024-07-09"))
    assert CALENDAR.mask(bars.timestamp, "extended").all()
    assert not CALENDAR.mask(bars.timestamp, "regular").all()
    assert (np.diff(bars.timestamp) > 0).all()
    assert (bars.timestamp % MINUTE == 0).all()
    half_day = days("2024-07-03", "2024-07-04")
    last = bars.within(half_day).timestamp[-1]
    assert last < CALENDAR.midnight_of(date(2024, 7, 3)) + 17 * 60 * MINUTE
    assert not len(bars.within(days("2024-07-04", "2024-07-05")))


def test_active_symbols_are_dense_and_quiet_ones_have_holes():
    span = days("2024-03-04", "2024-03-05")
    dense = minutes(GeneratedMarket(), "AAPL", span)
    sparse = minutes(GeneratedMarket(), "UGA", span)
    assert CALENDAR.mask(dense.timestamp, "regular").sum() == 390
    assert 20 < CALENDAR.mask(sparse.timestamp, "regular").sum() < 300


def test_figures_are_plausible():
    bars = minutes(GeneratedMarket(), "AAPL", days("2024-01-01", "2024-07-01")).values
    assert np.isfinite(bars).all()
    assert (bars[:4] > 0).all()
    assert (bars[LOW] <= bars[HIGH]).all()
    assert ((bars[VWAP] >= bars[LOW]) & (bars[VWAP] <= bars[HIGH])).all()
    assert (bars[TRADE_COUNT] >= 1).all()
    assert 0.005 < (bars[VOLUME] % 1 > 0).mean() < 0.05
    outside = (bars[OPEN] > bars[HIGH]) | (bars[OPEN] < bars[LOW])
    assert 0 < outside.sum() < 60
    assert (np.round(bars[VWAP], 6) == bars[VWAP]).all()


def test_daily_moves_have_the_volatility_asked_for():
    closes = GeneratedMarket().days("SPY", days("2000-01-01", "2025-01-01"), "sip").values[CLOSE]
    assert 0.007 < np.diff(np.log(closes)).std() < 0.013


def test_raw_prices_jump_at_a_split():
    market = GeneratedMarket()
    closes = market.days("NVDA", days("2024-06-07", "2024-06-11"), "sip").values[CLOSE]
    assert 0.07 < closes[1] / closes[0] < 0.14
    splits = [a for a in market.actions("NVDA") if a.is_split]
    assert [(a.ex_date, a.new, a.old) for a in splits] == [
        (date(2021, 7, 20), 4.0, 1.0),
        (date(2024, 6, 10), 10.0, 1.0),
    ]


def test_an_added_split_changes_no_earlier_bar():
    span, ex_date = days("2024-03-01", "2024-03-20"), date(2024, 3, 12)
    before = minutes(GeneratedMarket(), "MSFT", span)
    market = GeneratedMarket()
    minutes(market, "MSFT", span)
    market.add_split("MSFT", ex_date, 2)
    after = minutes(market, "MSFT", span)
    cut = CALENDAR.midnight_of(ex_date)
    assert same(before.within(Span(0, cut)), after.within(Span(0, cut)))
    ratio = after.values[CLOSE, -1] / before.values[CLOSE, -1]
    assert ratio == pytest.approx(0.5, rel=0.01)


def test_dividends_are_quarterly_and_small():
    paid = [a for a in GeneratedMarket().actions("KO") if a.amount and a.ex_date.year == 2023]
    assert [a.ex_date.month for a in paid] == [3, 6, 9, 12]
    assert all(CALENDAR.mask(np.array([CALENDAR.midnight_of(a.ex_date)]), "daily") for a in paid)
    assert all(0 < a.amount < 2 for a in paid)


def test_young_symbols_begin_on_their_listing_day():
    market = GeneratedMarket()
    daily = market.days("ARM", days("2020-01-01", "2024-01-01"), "sip")
    assert daily.timestamp[0] == CALENDAR.midnight_of(date(2023, 9, 14))
    assert not len(minutes(market, "ARM", days("2023-09-01", "2023-09-14")))
    assert len(minutes(market, "ARM", days("2023-09-14", "2023-09-15")))


def test_iex_sees_less():
    market, span = GeneratedMarket(), days("2024-03-04", "2024-03-06")
    sip, iex = minutes(market, "CSCO", span), minutes(market, "CSCO", span, "iex")
    assert 0 < len(iex) < len(sip)
    assert np.isin(iex.timestamp, sip.timestamp).all()
    assert iex.values[VOLUME].sum() < 0.1 * sip.values[VOLUME].sum()
    assert not len(minutes(market, "CSCO", span, "boats"))


def test_ten_thousand_simulated_symbols_exist():
    market = GeneratedMarket(symbols=simulated(10_000))
    assert len(market.assets()) == 10_000
    assert market.asset("SIM7") is not None
    assert market.asset("S10000") is not None
    assert market.asset("NOPE") is None
    assert "SIMULATED" in market.assets()[0].name
