"""Real prices through all three tiers, bar for bar what the file says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest

from marketdata.sandbox import FileMarket
from tests.shared_data import SHARED, needs_shared_data
from tests.stack import Stack, same, tiers

pytestmark = needs_shared_data

MINUTES = SHARED / "minute" / "us24_2019-02.csv.gz"
DAYS = SHARED / "daily" / "us88_2012-2017.csv.gz"
PRICES = ["open", "high", "low", "close", "volume"]
WEEK: dict[str, Any] = {"start": "2019-02-11", "end": "2019-02-16"}


@lru_cache
def market(path: Path) -> FileMarket:
    return FileMarket(path)


@lru_cache
def table(path: Path) -> pd.DataFrame:
    """Return the file by (symbol, timestamp), read independently of the sandbox."""
    frame = pd.read_csv(
        path, usecols=["symbol", "timestamp", *PRICES],
        float_precision="round_trip", keep_default_na=False,
        na_values={name: ["", "NaN", "nan"] for name in PRICES},
    )  # fmt: skip
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True).dt.as_unit("us")
    return frame.set_index(["symbol", "timestamp"])[PRICES].sort_index().astype(np.float64)


def truth(path: Path, symbol: str) -> pd.DataFrame:
    return pd.DataFrame(table(path).xs(symbol))


def equal(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Assert the same bars, bit for bit; the file has neither vwap nor trade counts."""
    assert found[["vwap", "trade_count"]].isna().all(axis=None)
    same(found[PRICES], expected)


@pytest.fixture
def week(make_stack: Callable[..., Stack]) -> Stack:
    """The Saturday after the recorded week."""
    return make_stack(at="2019-02-16T12:00:00-05:00", source=market(MINUTES))


def through_three_tiers(stack: Stack, symbols: Any, timeframe: str, **window: Any) -> Iterator[Any]:
    """Yield the answer of broker, PostgreSQL and Redis to one question, the latter two without a
    broker call."""
    yield stack.client.get_bars(symbols, timeframe, **window)
    stack.forget_calls()
    stack.flush_redis()
    yield stack.client.get_bars(symbols, timeframe, **window)
    yield stack.client.get_bars(symbols, timeframe, **window)
    assert len(stack.sandbox.requests) == 0, "a covered read asked the broker"


SYMBOLS = ["AAPL", "AMT", "GLD", "PPLT", "SPY", "UGA", "VIX"]
"""Liquid and sparse ones, and one without volume."""


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_whole_week_of_minutes(week: Stack, symbol: str) -> None:
    expected = truth(MINUTES, symbol)
    for frame in through_three_tiers(week, symbol, "1min", **WEEK):
        equal(frame, expected)
    assert "rejected_bars" not in frame.attrs["marketdata"]
    assert len(week.client.coverage(symbol, "1min")) == 1


def test_24_symbols_in_one_frame(week: Stack) -> None:
    expected = table(MINUTES)
    symbols = list(expected.index.unique("symbol"))
    assert len(symbols) == 24
    for frame in through_three_tiers(week, symbols, "1min", **WEEK):
        same(frame[PRICES].reset_index(), expected.reset_index())
    closes = week.client.get_bars(symbols, "1min", field="close", **WEEK)
    wide = expected["close"].unstack("symbol")
    assert list(closes.columns) == symbols
    same(closes.rename_axis(columns="symbol"), wide)


def test_random_windows_and_limits(week: Stack) -> None:
    source = random.Random(20190211)
    for symbol in ("AAPL", "UGA"):
        expected = truth(MINUTES, symbol)
        # The first windows fetch, later ones find more and more of the week already there.
        moments = pd.date_range("2019-02-11T14:00Z", "2019-02-15T22:00Z", freq="min")
        for turn in range(40):
            start, end = sorted(source.sample(range(len(moments)), 2))
            window: dict[str, Any] = {"start": moments[start], "end": moments[end]}
            inside = expected[(expected.index >= moments[start]) & (expected.index < moments[end])]
            equal(week.client.get_bars(symbol, "1min", **window), inside)
            limit = source.randrange(1, 900)
            cut = week.client.get_bars(symbol, "1min", limit=limit, **window)
            equal(cut, inside.iloc[-limit:])
            if turn % 8 == 0:
                week.flush_redis()
        assert len(week.client.coverage(symbol, "1min")) <= 3
    assert week.calls() < 40, "most windows found something there already"


@pytest.mark.parametrize("limit", [1, 10, 390, 391, 500, 1000, 1948])
def test_limits_count_bars(week: Stack, limit: int) -> None:
    expected = truth(MINUTES, "AAPL").iloc[-limit:]
    for frame in through_three_tiers(week, "AAPL", "1min", limit=limit):
        equal(frame, expected)
    if limit <= 500:
        assert tiers(frame) == "redis:1"


def test_a_sparse_symbol_has_its_last_500_where_the_file_has_fewer(week: Stack) -> None:
    frame = week.client.get_bars("UGA", "1min", limit=300)
    equal(frame, truth(MINUTES, "UGA").iloc[-300:])


def test_five_minutes_are_the_minutes_joined(week: Stack) -> None:
    minutes = truth(MINUTES, "MSFT")
    for frame in through_three_tiers(week, "MSFT", "5min", **WEEK):
        groups = minutes.groupby(pd.DatetimeIndex(minutes.index).floor("5min"))
        expected = groups.agg({"open": "first", "high": "max", "low": "min", "close": "last"})
        same(frame[PRICES[:4]], expected.rename_axis("timestamp"))
        np.testing.assert_allclose(frame["volume"], groups["volume"].sum(), rtol=1e-12)


# ------------------------------------------------------------------------------------------ daily

FIVE_YEARS: dict[str, Any] = {"start": "2012-09-01", "end": "2017-09-02"}


@pytest.fixture
def years(make_stack: Callable[..., Stack]) -> Stack:
    return make_stack(at="2017-09-10T12:00:00-04:00", source=market(DAYS))


def clean(symbol: str) -> pd.DataFrame:
    return truth(DAYS, symbol).dropna()


@pytest.mark.parametrize("symbol", ["AAPL", "REX", "PTR", "BABA", "ABBV"])
def test_five_years_of_days(years: Stack, symbol: str) -> None:
    raw, expected = truth(DAYS, symbol), clean(symbol)
    answers = []
    for frame in through_three_tiers(years, symbol, "1day", **FIVE_YEARS):
        equal(frame, expected)
        answers.append(frame)
    dirty = len(raw) - len(expected)
    assert dirty == (1 if symbol in ("PTR", "REX") else 0)
    assert answers[0].attrs["marketdata"].get("rejected_bars", 0) == dirty
    assert years.client.stats().get("bars_rejected_price", 0) == dirty
    assert len(years.client.coverage(symbol, "1day")) == 1


def test_88_symbols_of_days_keep_zero_volume_and_drop_nan(years: Stack) -> None:
    symbols = list(table(DAYS).index.unique("symbol"))
    assert len(symbols) == 88
    frame = years.client.get_bars(symbols, "1day", **FIVE_YEARS)
    expected = table(DAYS).dropna()
    expected = expected.rename(index=lambda s: s.replace("-", "."), level="symbol")
    same(frame[PRICES].reset_index(), expected.sort_index().reset_index())
    assert frame.attrs["marketdata"]["rejected_bars"] == 3
    assert (frame["volume"] == 0).sum() == (expected["volume"] == 0).sum() > 100
    years.forget_calls()
    same(years.client.get_bars(symbols, "1day", **FIVE_YEARS), frame)
    assert years.calls() == 0
    with psycopg.connect(years.settings["database_url"]) as connection:
        row = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE volume = 0) FROM marketdata.market_data_bars"
        ).fetchone()
    assert row == (len(expected), int((expected["volume"] == 0).sum()))


def test_random_windows_of_days(years: Stack) -> None:
    source = random.Random(2012)
    expected = clean("SNP")
    days = pd.date_range("2012-09-01", "2017-09-01", freq="D")
    for _ in range(25):
        start, end = (days[i] for i in sorted(source.sample(range(len(days)), 2)))
        low, high = (d.tz_localize("America/New_York") for d in (start, end))
        inside = expected[(expected.index >= low) & (expected.index < high)]
        window: dict[str, Any] = {"start": str(start.date()), "end": str(end.date())}
        equal(years.client.get_bars("SNP", "1day", **window), inside)
        limit = source.randrange(1, 700)
        found = years.client.get_bars("SNP", "1day", end=window["end"], limit=limit)
        equal(found, expected[expected.index < high].iloc[-limit:])
