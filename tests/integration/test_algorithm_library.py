"""The catalogue: each strategy trades sensibly on the sandbox's market, and passes the check."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from algorithms import backtest, load
from algorithms.bias import check
from algorithms.library import BollingerBreakout, MacdTrend, MonthlyMomentum, Pair, RsiReversion
from algorithms.loader import catalogue
from algorithms.result import BacktestResult
from marketdata.client import Client
from tests.stack import Stack, make_stack, stack

__all__ = ["make_stack", "stack"]

START, END = "2022-01-03", "2024-03-01"
LIBRARY = Path(__file__).resolve().parents[2] / "src" / "algorithms" / "library"


@pytest.fixture
def client(stack: Stack) -> Client:
    return stack.client


def run(client: Client, name: str, **given: object) -> BacktestResult:
    return backtest(catalogue()[name](**given), start=START, end=END, client=client, progress=False)


@pytest.mark.parametrize("name", catalogue())
def test_it_trades_sensibly_the_same_every_time_and_without_bias(name: str, client: Client):
    kind = catalogue()[name]
    market, since = load(kind(), START, END, client=client)
    start = pd.Timestamp(since, unit="us", tz="UTC")
    result, again = (backtest(kind, market, start=start, progress=False) for _ in range(2))
    assert result.run.fills == again.run.fills
    assert result.run.equity.tolist() == again.run.equity.tolist()
    figures = result.metrics
    assert figures["trades"] >= 5, "an idle strategy shows nothing"
    assert figures["turnover"] < 30, "so does a frantic one"
    assert 0 < figures["exposure"] <= 1
    assert result.equity.iloc[-1] > 50_000
    assert math.isfinite(figures["sharpe"])
    # Nothing is ordered that cannot be paid for, but for the last shares of all-in orders.
    cut = result.orders["reason"].str.contains("cannot pay").mean()
    assert cut < 0.2
    report = check(kind, market, start=start, cuts=20, progress=False)
    assert report.biases == (), str(report)
    assert report.decisions > 5
    assert report.simulated


@pytest.mark.parametrize("name", catalogue())
def test_it_reads_in_a_minute(name: str):
    text = (LIBRARY / f"{name}.py").read_text("utf-8")
    assert len(text.splitlines()) < 60
    kind = catalogue()[name]
    assert kind.__doc__
    assert all(param.about for param in kind.declared().values())


def test_reversion_buys_dips_and_has_a_stop_behind_each(client: Client):
    result = run(client, "rsi_reversion")
    assert isinstance(result.run.orders[0].tag, str)
    entries = result.orders[result.orders["tag"] == "dip"]
    bought = entries[entries["quantity"] > 0]
    stops = entries[entries["stop"].notna()]
    assert len(bought) == len(stops) > 0
    assert (result.positions["MSFT"] >= 0).all()
    assert set(result.trades["entry_tag"]) == {"dip"}
    assert RsiReversion.stop.default == 0.08


def test_the_trend_is_sold_short_only_where_that_is_wanted(client: Client):
    assert (run(client, "macd_trend").positions["NVDA"] >= 0).all()
    both = run(client, "macd_trend", short=True).positions["NVDA"]
    assert (both < 0).any()
    assert (both > 0).any()
    assert MacdTrend().short is False


def test_the_breakout_trails_one_stop_and_never_has_two(client: Client):
    result = run(client, "bollinger_breakout")
    stops = result.orders[result.orders["stop"].notna()]
    assert (stops["tag"] == "trailing stop").any()
    assert result.orders["state"].isin(["filled", "canceled"]).all()
    assert (result.positions[BollingerBreakout.symbols[0]] >= 0).all()


def test_the_pair_is_long_one_and_short_the_other(client: Client):
    result = run(client, "pair", entry=1.5)
    one, two = (result.positions[symbol] for symbol in Pair.symbols)
    open_ = one != 0
    assert open_.any()
    assert (one[open_] * two[open_] < 0).all()
    assert abs(result.metrics["beta"]) < 0.5


def test_momentum_rebalances_in_the_first_session_of_a_month_only(client: Client):
    result = run(client, "monthly_momentum", invested=0.95)
    given = result.orders["created"].dt.tz_convert("America/New_York")
    months = given.dt.tz_localize(None).dt.to_period("M")
    assert (given.groupby(months.to_numpy()).nunique() == 1).all()
    assert (given.dt.day <= 5).all()
    held = (result.positions > 0).sum(axis=1)
    assert held.max() == MonthlyMomentum().top
    assert (result.positions >= 0).all().all()
    assert len(MonthlyMomentum.symbols) == 50
    # What is sold at an open pays for what is bought at it, whatever the symbols' order.
    assert not result.orders["reason"].str.contains("cannot pay").any()
