"""Dividend-adjusted reads: against another vendor's adjusted closes, and through every tier."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

from marketdata.corporate_actions import ActionKind
from marketdata.sandbox import FileMarket
from tests.shared_data import SHARED, needs_shared_data
from tests.stack import Stack, runtime, same, tiers
from tests.yahoo_server import Asked, YahooServer

DAILY = SHARED / "daily"
YEARS: dict[str, Any] = {"start": "2012-01-01", "end": "2015-01-01"}
TOLERANCE = 5e-5


@lru_cache
def adjusted_closes() -> pd.DataFrame:
    """Return Yahoo's adjusted closes, symbol by symbol."""
    table = pd.read_csv(DAILY / "us88_2012-2017.csv.gz", float_precision="round_trip")
    table["timestamp"] = pd.to_datetime(table["timestamp"], utc=True)
    return table.pivot(index="timestamp", columns="symbol", values="adj_close")


def relative(closes: pd.Series, last: pd.Timestamp) -> pd.Series:
    return closes / closes[last]


@pytest.fixture
def four(make_stack: Callable[..., Stack]) -> Stack:
    """AAPL, IBM, KO and MSFT as traded, with their dividends and splits."""
    market = FileMarket(DAILY / "actions4_2012-2014.csv.gz", basis="split")
    return make_stack(at="2015-01-05T12:00:00-05:00", source=market)


@needs_shared_data
def test_dividends_and_splits_reproduce_another_vendors_adjusted_close(four: Stack) -> None:
    symbols = ["AAPL", "KO", "MSFT"]

    def check() -> pd.DataFrame:
        found = four.client.get_bars(symbols, "1day", adjustment="all", **YEARS)
        for symbol in symbols:
            ours = found.xs(symbol)["close"]
            theirs = adjusted_closes()[symbol].dropna()
            days = ours.index.intersection(theirs.index)
            assert len(days) == 585
            last = days[-1]
            difference = relative(ours[days], last) / relative(theirs[days], last) - 1
            assert difference.abs().max() < TOLERANCE, symbol
        return found

    from_broker = check()
    assert tiers(from_broker) == "broker:3"
    calls = len(four.sandbox.requests)
    four.flush_redis()
    from_store = check()
    assert tiers(from_store) == "postgres:3"
    same(from_broker, from_store)
    assert len(four.sandbox.requests) == calls


@needs_shared_data
def test_a_window_long_before_the_dividends_is_adjusted_for_all_of_them(four: Stack) -> None:
    """Its closes are known from nowhere but daily bars after it: one request brings them."""
    whole = four.client.get_bars("KO", "1day", adjustment="all", **YEARS)
    with four.connect() as other:
        part = other.get_bars("KO", "1day", start="2012-02-01", end="2012-03-01", adjustment="all")
    same(part, whole[whole.index.isin(part.index)])


@needs_shared_data
def test_closes_that_are_not_stored_cost_one_request(four: Stack) -> None:
    asked: dict[str, Any] = {"start": "2012-02-01", "end": "2012-03-01"}
    four.client.get_bars("KO", "1day", **asked)
    four.forget_calls()
    part = four.client.get_bars("KO", "1day", adjustment="all", **asked)
    assert four.calls() == 1
    four.forget_calls()
    four.flush_redis()
    same(part, four.client.get_bars("KO", "1day", adjustment="all", **asked))
    assert len(four.sandbox.requests) == 0
    whole = four.client.get_bars("KO", "1day", adjustment="all", **YEARS)
    same(part, whole[whole.index.isin(part.index)])


@needs_shared_data
@pytest.mark.parametrize("adjustment", ["split", "dividend", "all"])
@pytest.mark.parametrize("timeframe", ["1week", "1month"])
def test_weeks_and_months_are_made_of_adjusted_days(
    four: Stack, timeframe: str, adjustment: Any
) -> None:
    asked: dict[str, Any] = {"adjustment": adjustment, "tz": "exchange", **YEARS}
    coarse = four.client.get_bars("AAPL", timeframe, **asked)
    days = four.client.get_bars("AAPL", "1day", **asked)
    places = np.searchsorted(coarse.index, days.index, side="right") - 1
    groups = days.groupby(coarse.index[places])
    expected = groups.agg(
        {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    )
    np.testing.assert_allclose(coarse[expected.columns], expected, rtol=1e-12)


@needs_shared_data
def test_a_dividend_moves_no_volume_and_a_split_moves_it(four: Stack) -> None:
    def volumes(adjustment: Any) -> pd.Series:
        asked: dict[str, Any] = {"adjustment": adjustment, **YEARS}
        return four.client.get_bars("AAPL", "1day", **asked)["volume"]

    with pytest.warns(UserWarning, match="7:1 on 2014-06-09"):
        raw = volumes("raw")
    pd.testing.assert_series_equal(volumes("dividend"), raw, check_exact=True)
    pd.testing.assert_series_equal(volumes("all"), volumes("split"), check_exact=True)
    before = raw.index < "2014-06-09"
    np.testing.assert_array_equal(volumes("split")[before], raw[before] * 7)


@needs_shared_data
def test_indicators_under_every_adjustment_are_those_of_its_bars(four: Stack) -> None:
    window: dict[str, Any] = {"start": "2014-05-01", "end": "2014-09-01"}
    for adjustment in ("split", "dividend", "all"):
        bars = four.client.get_bars("AAPL", "1day", adjustment=adjustment, **YEARS)
        found = four.client.get_indicators(
            "AAPL",
            ["sma_20", "rsi_14"],
            "1day",
            adjustment=adjustment,
            **window,
        )
        expected = bars["close"].rolling(20).mean()[found.index]
        np.testing.assert_allclose(found["sma_20"], expected, rtol=1e-12)


@needs_shared_data
def test_a_setting_makes_it_the_default(four: Stack) -> None:
    asked: dict[str, Any] = {"start": "2014-05-01", "end": "2014-07-01"}
    expected = four.client.get_bars("AAPL", "1day", adjustment="all", **asked)
    with four.connect(adjustment="all") as client:
        found = client.get_bars("AAPL", "1day", **asked)
        same(found, expected)
        assert found.attrs["marketdata"]["adjustment"] == "all"


@needs_shared_data
def test_a_read_that_no_dividend_follows_costs_no_daily_bars(
    make_stack: Callable[..., Stack],
) -> None:
    market = FileMarket(DAILY / "actions4_2012-2014.csv.gz", basis="split")
    stack = make_stack(at="2014-12-24T15:00:00-05:00", source=market)
    asked: dict[str, Any] = {"start": "2014-12-01", "session": "extended"}
    stack.client.get_bars("KO", "1hour", **asked)
    calls = stack.calls()
    raw = stack.client.get_bars("KO", "1hour", **asked)
    same(stack.client.get_bars("KO", "1hour", adjustment="all", **asked), raw)
    assert stack.calls() == calls


# ------------------------------------------------------------------------------- recorded Yahoo


def replaying(name: str) -> YahooServer:
    """Return a Yahoo that gives of one recorded answer what is asked for."""
    text = (SHARED / "yahoo" / name).read_text()

    def answer(asked: Asked) -> bytes:
        told = json.loads(text)
        (chart,) = told["chart"]["result"]
        kept = [n for n, t in enumerate(chart["timestamp"]) if asked.start <= t < asked.end]
        chart["timestamp"] = [chart["timestamp"][n] for n in kept]
        for block in chart["indicators"].values():
            for column, values in block[0].items():
                block[0][column] = [values[n] for n in kept]
        for kind, events in chart.get("events", {}).items():
            chart["events"][kind] = {
                key: event
                for key, event in events.items()
                if asked.start <= event["date"] < asked.end
            }
        return json.dumps(told).encode()

    return YahooServer(answer)


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "now", "dividends"),
    [
        ("AAPL-1d-split-dividend-2020.json", "2020-11-07T12:00:00-05:00", 1),
        ("MSFT-1d-dividend.json", "2025-10-29T20:00:00-04:00", 2),
        ("MSFT-1d-dividends-2021.json", "2022-01-29T12:00:00-05:00", 4),
    ],
)
def test_recorded_yahoo_answers_give_yahoos_adjusted_close(
    make_stack: Callable[..., Stack], name: str, now: str, dividends: int
) -> None:
    """On every date, up to the two roundings of its 32-bit prices.

    Yahoo's adjusted closes carry the dividends until the day of recording, those after the last
    bar too: they are a constant here.
    """
    recorded = json.loads((SHARED / "yahoo" / name).read_text())["chart"]["result"][0]
    theirs = np.array(recorded["indicators"]["adjclose"][0]["adjclose"])
    (quote,) = recorded["indicators"]["quote"]
    later = theirs[-1] / quote["close"][-1]
    stack = make_stack(at=now)
    symbol = name[:4]
    with (
        replaying(name).running() as yahoo,
        stack.connect(broker="yahoo", yahoo_url=yahoo.url) as client,
    ):
        start = pd.Timestamp(recorded["timestamp"][0], unit="s", tz="America/New_York").normalize()
        asked: dict[str, Any] = {"start": start, "adjustment": "all"}
        for tier in ("broker:1", "redis:1", "postgres:1"):
            if tier == "postgres:1":
                stack.flush_redis()
            found = client.get_bars(symbol, "1day", **asked)
            assert tiers(found) == tier
            assert len(found) == len(theirs)
            difference = found["close"].to_numpy() * later / theirs - 1
            assert np.abs(difference).max() < 4e-7
            steps = np.abs(np.diff(found["close"].to_numpy() / quote["close"])) > 1e-4
            assert steps.sum() == dividends


def test_both_brokers_of_one_market_agree_on_adjusted_prices(stack: Stack) -> None:
    """Yahoo divides its prices and dividends for a split that came later; the other one does not.

    Yahoo's prices are 32-bit, and raw ones worked out from them are rounded to four decimals.
    """
    asked: dict[str, Any] = {"start": "2023-04-03", "end": "2024-03-14", "timeframe": "1day"}
    with stack.connect(broker="yahoo", yahoo_url=stack.sandbox.url) as client:
        for adjustment in ("split", "dividend", "all"):
            ours = stack.client.get_bars("WMT", adjustment=adjustment, **asked)["close"]
            theirs = client.get_bars("WMT", adjustment=adjustment, **asked)["close"]
            np.testing.assert_allclose(theirs, ours, rtol=1e-6)
    known = runtime(stack.client).action_store.actions("sandbox", ["WMT"])["WMT"]
    assert {a.kind for a in known} >= {ActionKind.SPLIT, ActionKind.CASH_DIVIDEND}
