"""Corporate actions that become known late: everything derived follows at once, nothing stored moves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest

from marketdata.client import Client
from marketdata.clock import Deadline
from marketdata.indicator_updates import IndicatorUpdater
from marketdata.sandbox import GeneratedMarket
from marketdata.sandbox.source import Action
from marketdata.types import Timeframe
from tests.stack import BARS, Stack, runtime, same, tiers

pytestmark = pytest.mark.filterwarnings("ignore:raw prices of KO jump")

SPLIT_DAY = date(2024, 3, 6)  # the Wednesday of last week
DIVIDEND_DAY = date(2024, 3, 8)
SYMBOL = "KO"
DAILY: dict[str, Any] = {"timeframe": "1day", "limit": 200}
MINUTES: dict[str, Any] = {"timeframe": "1min", "start": "2024-03-05", "end": "2024-03-14"}


@pytest.fixture
def warm(make_stack: Callable[..., Stack]) -> Stack:
    """Bars and indicators of every adjustment, in Redis and PostgreSQL."""
    stack = make_stack(source=GeneratedMarket(seed=3))
    read_all(stack)
    read_all(stack)
    return stack


def read_all(stack: Stack, other: Client | None = None) -> dict[tuple[str, str], pd.DataFrame]:
    client = other or stack.client
    found = {}
    for adjustment in ("raw", "split", "dividend", "all"):
        asked: dict[str, Any] = {"adjustment": adjustment}
        found["days", adjustment] = client.get_bars(SYMBOL, **DAILY, **asked)
        found["minutes", adjustment] = client.get_bars(SYMBOL, **MINUTES, **asked)
        found["default", adjustment] = client.get_indicators(SYMBOL, limit=40, **asked)
        found["sma", adjustment] = client.get_indicators(SYMBOL, "sma_50", limit=100, **asked)
    return found


def rows(stack: Stack, table: str) -> list[Any]:
    with psycopg.connect(stack.settings["database_url"]) as connection:
        connection.execute("SET search_path TO marketdata, public")
        return connection.execute(f"SELECT t::text FROM {table} AS t ORDER BY 1").fetchall()


def kept_versions(stack: Stack) -> set[str]:
    with psycopg.connect(stack.settings["database_url"]) as connection:
        connection.execute("SET search_path TO marketdata, public")
        told = connection.execute("SELECT DISTINCT action_version FROM market_data_indicators")
        return {version for (version,) in told.fetchall()}


def learn(stack: Stack, *actions: Action) -> None:
    """Let the market tell of actions that nobody was told of before, and ask it again."""
    market = stack.sandbox.source
    assert isinstance(market, GeneratedMarket)
    for action in actions:
        market.add_action(action, happens=False)
    known = runtime(stack.client)
    start = int(pd.Timestamp("2023-01-01", tz="UTC").value // 1000)
    known.actions.refresh(known.provider, [SYMBOL], start, Deadline(30))


def test_fault_25_late_actions_change_every_adjusted_read_at_once(
    warm: Stack,
) -> None:
    before = read_all(warm)
    stored, versions = rows(warm, "market_data_bars"), kept_versions(warm)
    warm.forget_calls()
    learn(
        warm,
        Action(SYMBOL, SPLIT_DAY, new=3.0),
        Action(SYMBOL, DIVIDEND_DAY, amount=2.0),
    )
    assert warm.calls() == 0

    from_redis = read_all(warm)
    again = read_all(warm)
    warm.flush_redis()
    from_store = read_all(warm)
    assert warm.calls(BARS) == 0
    assert rows(warm, "market_data_bars") == stored
    assert kept_versions(warm).isdisjoint(versions)
    assert "redis" in tiers(from_redis["days", "all"])
    assert "postgres" in tiers(from_store["days", "raw"])

    warm.flush_redis()
    with psycopg.connect(warm.settings["database_url"], autocommit=True) as connection:
        connection.execute("TRUNCATE marketdata.market_data_bars, marketdata.series")
    with warm.connect() as client:
        from_broker = read_all(warm, client)
    assert "broker" in tiers(from_broker["days", "raw"])
    for what, found in from_redis.items():
        for elsewhere in (again, from_store, from_broker):
            left, right = found.copy(), elsewhere[what].copy()
            left.attrs, right.attrs = {}, {}
            pd.testing.assert_frame_equal(left, right, rtol=1e-12, check_freq=False)

    check(before, from_redis, 3.0, 2.0)


def check(
    before: dict[tuple[str, str], pd.DataFrame],
    after: dict[tuple[str, str], pd.DataFrame],
    ratio: float,
    cash: float,
) -> None:
    """Compare with the arithmetic on what was read before."""
    days = before["days", "raw"]
    reference = float(days["close"][days.index < str(DIVIDEND_DAY)].iloc[-1])
    kept = 1 - cash / reference
    price = {"raw": (1.0, 1.0), "split": (1 / ratio, 1.0)}
    price |= {"dividend": (1.0, kept), "all": (1 / ratio, kept)}
    for what in ("days", "minutes"):
        for adjustment, (of_split, of_dividend) in price.items():
            old, new = before[what, adjustment], after[what, adjustment]
            factor = np.where(old.index < str(SPLIT_DAY), of_split, 1.0)
            factor = factor * np.where(old.index < str(DIVIDEND_DAY), of_dividend, 1.0)
            for column in ("open", "high", "low", "close", "vwap"):
                np.testing.assert_allclose(new[column], old[column] * factor, rtol=1e-12)
            moved = (old.index < str(SPLIT_DAY)) & (of_split != 1)
            np.testing.assert_allclose(
                new["volume"], old["volume"] * np.where(moved, ratio, 1), rtol=1e-12
            )
    for adjustment in price:
        closes = after["days", adjustment]["close"]
        expected = closes.rolling(50).mean()[after["sma", adjustment].index]
        np.testing.assert_allclose(after["sma", adjustment]["sma_50"], expected, rtol=1e-9)
        found = after["default", adjustment]["sma_50"]
        np.testing.assert_allclose(found, expected[found.index], rtol=1e-9)


def test_a_correction_and_a_withdrawal_count_at_once_too(warm: Stack) -> None:
    before = read_all(warm)
    market = warm.sandbox.source
    assert isinstance(market, GeneratedMarket)
    split = Action(SYMBOL, SPLIT_DAY, new=3.0)
    dividend = Action(SYMBOL, DIVIDEND_DAY, amount=2.0)
    learn(warm, split, dividend)
    first = read_all(warm)
    market.correct_action(split, new=4.0)
    market.correct_action(dividend, amount=1.5)
    learn(warm)
    second = read_all(warm)
    check(before, second, 4.0, 1.5)
    prints = [f["days", "all"].attrs["marketdata"]["fingerprint"] for f in (before, first, second)]
    assert len(set(prints)) == 3
    market.withdraw_action(split)
    market.withdraw_action(dividend)
    learn(warm)
    for what, frame in read_all(warm).items():
        same(frame, before[what])


def test_the_next_cycle_replaces_what_is_kept_of_a_subscribed_symbol(
    make_stack: Callable[..., Stack],
) -> None:
    """Although no new bar has come: night, and values of days."""
    stack = make_stack("2024-03-14T18:30:00-04:00", source=GeneratedMarket(seed=3))
    stack.client.get_bars(SYMBOL, "1day", limit=500)
    updater = IndicatorUpdater(
        runtime(stack.client),
        wanted=lambda: [(SYMBOL, Timeframe.DAY_1, 0), ("AAPL", Timeframe.DAY_1, 0)],
    )
    stop = threading.Event()
    updater.fill(stop)
    first = stored(stack)
    stack.clock.advance(minutes=1)
    assert updater.fill(stop) == 0, "nothing has changed"
    learn(stack, Action(SYMBOL, SPLIT_DAY, new=3.0), Action(SYMBOL, DIVIDEND_DAY, amount=2.0))
    stack.clock.advance(minutes=1)
    assert updater.fill(stop) == 1
    second = stored(stack)
    assert second["action_version"] != first["action_version"]
    stack.flush_redis()
    expected = stack.client.get_indicators(SYMBOL, "sma_50", limit=1)["sma_50"].iloc[0]
    assert second["sma_50"] == pytest.approx(expected, rel=1e-9)
    assert second["sma_50"] < 0.6 * first["sma_50"]
    stack.clock.advance(minutes=1)
    assert updater.fill(stop) == 0


def test_a_split_that_was_announced_counts_from_its_day_on(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack("2024-03-14T18:30:00-04:00", source=GeneratedMarket(seed=3))
    stack.client.get_bars(SYMBOL, "1day", limit=500)
    wanted = [(SYMBOL, Timeframe.DAY_1, 0)]
    updater = IndicatorUpdater(runtime(stack.client), wanted=lambda: wanted)
    stop = threading.Event()
    updater.fill(stop)
    first = stored(stack)
    learn(stack, Action(SYMBOL, date(2024, 3, 15), new=3.0))
    stack.clock.advance(minutes=1)
    assert updater.fill(stop) == 0
    stack.set_time("2024-03-15T00:00:01-04:00")
    assert updater.fill(stop) == 1
    assert stored(stack)["sma_50"] == pytest.approx(first["sma_50"] / 3, rel=1e-9)


def stored(stack: Stack) -> dict[str, Any]:
    """Return the stored values of days, and their version."""
    with psycopg.connect(stack.settings["database_url"]) as connection:
        found = connection.execute(
            "SELECT indicator_name, indicator_value, action_version FROM "
            "marketdata.market_data_indicators WHERE symbol = %s AND timeframe = '1day'",
            (SYMBOL,),
        ).fetchall()
    assert len(found) == 15
    return {name: value for name, value, _ in found} | {"action_version": found[0][2]}


def test_what_was_known_then_adjusts_what_is_read_as_of_then(warm: Stack) -> None:
    market = warm.sandbox.source
    assert isinstance(market, GeneratedMarket)
    then = "2024-03-14T15:05:00-04:00"
    split = Action(SYMBOL, SPLIT_DAY, new=3.0)
    dividend = Action(SYMBOL, DIVIDEND_DAY, amount=2.0)
    learn(warm, split, dividend)
    warm.set_time(then)
    asked: dict[str, Any] = {"start": "2024-02-01", "end": "2024-03-14"}
    timeframes = ("1day", "1hour", "1week")

    def read(as_of: str | None = None) -> list[pd.DataFrame]:
        return [
            warm.client.get_bars(SYMBOL, t, adjustment=a, as_of=as_of, **asked)
            for t in timeframes
            for a in ("split", "dividend", "all")
        ]

    seen = read()
    warm.set_time("2024-03-20T12:00:00-04:00")
    market.correct_action(split, new=4.0)
    market.correct_action(dividend, amount=1.5)
    learn(warm, Action(SYMBOL, date(2024, 3, 18), amount=1.0))
    for now, before in zip(read(), seen, strict=True):
        assert now["close"].iloc[0] != before["close"].iloc[0]
    for as_of, before in zip(read(then), seen, strict=True):
        same(as_of, before)
    for as_of in read("2024-03-05T12:00:00-05:00"):
        assert as_of.index[-1] < pd.Timestamp(SPLIT_DAY, tz="UTC")
        raw = warm.client.get_bars(
            SYMBOL,
            str(as_of.attrs["marketdata"]["timeframe"]),
            **asked,
            as_of="2024-03-05T12:00-05:00",
        )
        # The market's own dividend of February counts, the later ones do not.
        ratio = as_of["close"] / raw["close"]
        assert ratio.iloc[-1] == 1.0
