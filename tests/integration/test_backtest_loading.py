"""A back-test over the tiers: what is read, what it costs, what is booked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import marketdata as md
from algorithms import Algorithm, AlgorithmError, Context, NoSlippage, Param, backtest, load
from algorithms.result import BacktestResult
from marketdata.sandbox import Action, FileMarket, GeneratedMarket
from tests.scripted_runs import Scripted, engine_on, midnight
from tests.stack import Stack

WINDOW: dict[str, Any] = {"start": "2024-02-01", "end": "2024-03-14"}
EVENTS = [
    Action("AMD", date(2024, 2, 14), 2.0, 1.0),
    Action("AMD", date(2024, 2, 21), amount=0.5),
    Action("KO", date(2024, 2, 28), 1.0, 4.0),
]


class Cross(Algorithm):
    symbols = ("AMD", "KO")
    indicators = {"fast": "sma_{fast}", "slow": "sma_{slow}"}
    fast = Param(3)
    slow = Param(8)

    def on_bar(self, ctx: Context) -> None:
        for symbol in ctx.symbols:
            view = ctx[symbol]
            # A running sum's last bits depend on where it began: averages that are equal are not.
            ahead = view.fast[-1] > view.slow[-1] + 1e-6
            ctx.order_target(100 if ahead else 0, symbol)


@pytest.fixture
def eventful(make_stack: Callable[..., Stack]) -> Stack:
    market = GeneratedMarket(seed=3)
    for action in EVENTS:
        market.add_action(action)
    return make_stack(source=market)


def on_tiers(stack: Stack, algorithm: Algorithm, **options: Any) -> BacktestResult:
    chosen = {**WINDOW, "slippage": NoSlippage(), "progress": False, **options}
    return backtest(algorithm, client=stack.client, **chosen)


def record_of(result: BacktestResult) -> Any:
    run = result.run
    return run.fills, run.times.tolist(), run.equity.tolist()


def test_the_tiers_and_a_frame_give_the_same_run(stack: Stack) -> None:
    found = on_tiers(stack, Cross())
    # Warm-up is bars before the window: the first call is at its first bar.
    daily = stack.client.get_bars(["AMD", "KO"], "1day", adjustment="raw", **WINDOW)
    assert len(found.run.times) == len(daily.loc["AMD"])
    early = stack.client.get_bars(
        ["AMD", "KO"], "1day", adjustment="raw", start="2024-01-02", end=WINDOW["end"]
    )
    same = backtest(Cross(), early, start=WINDOW["start"], slippage=NoSlippage(), progress=False)
    assert found.run.fills
    assert record_of(found) == record_of(same)
    assert found.run.simulated
    assert same.run.simulated


@pytest.mark.parametrize("timeframe", ["1min", "15min", "1day"])
def test_an_end_means_the_same_for_tiers_and_frames(stack: Stack, timeframe: str) -> None:
    zone = "America/New_York"
    window: dict[str, Any] = {
        "start": pd.Timestamp("2024-03-12 10:07", tz=zone),
        "end": pd.Timestamp("2024-03-13 11:22", tz=zone),
    }
    algorithm = Cross(timeframe=timeframe)
    found = on_tiers(stack, algorithm, **window)
    frame = stack.client.get_bars(
        ["AMD", "KO"], timeframe, adjustment="raw", start="2024-02-20", end="2024-03-14"
    )
    same = backtest(algorithm, frame, **window, slippage=NoSlippage(), progress=False)
    assert record_of(found) == record_of(same)
    labels = stack.client.get_bars(["AMD"], timeframe, adjustment="raw", **window)
    assert len(found.run.times) == len(labels)


def test_a_second_run_asks_no_broker(stack: Stack) -> None:
    first = on_tiers(stack, Cross())
    stack.forget_calls()
    second = on_tiers(stack, Cross())
    assert stack.calls() == 0
    assert record_of(first) == record_of(second)
    assert first.fingerprint == second.fingerprint
    # Another parameter needs no more than it says, and what was read serves it.
    on_tiers(stack, Cross(slow=7))
    assert stack.calls() == 0


def test_splits_and_dividends_are_booked_on_positions(eventful: Stack) -> None:
    script = Scripted(
        {1: lambda ctx: (ctx.order(101, "AMD"), ctx.order(10, "KO"))}, symbols=["AMD", "KO"]
    )
    run = on_tiers(eventful, script).run
    held = {symbol: np.unique(run.positions[symbol]).tolist() for symbol in ("AMD", "KO")}
    # 2 for 1 of 101; 1 for 4 of 10 is 2 and a half, which is paid out.
    assert held == {"AMD": [0, 101, 202], "KO": [0, 2, 10]}
    booked = {(a.symbol, a.kind): a for a in run.actions}
    assert {("AMD", "split"), ("AMD", "cash_dividend"), ("KO", "split")} <= set(booked)
    assert booked["AMD", "split"].time == midnight("2024-02-14")
    assert booked["AMD", "split"].ratio == 2.0
    assert booked["AMD", "cash_dividend"].cash == pytest.approx(202 * 0.5)
    assert booked["KO", "split"].paid_out == pytest.approx(0.5)


def test_equity_over_a_split_moves_as_the_adjusted_prices_do(eventful: Stack) -> None:
    script = Scripted({1: lambda ctx: ctx.order(100)}, symbols=["AMD"])
    run = on_tiers(eventful, script).run
    assert np.abs(np.diff(np.log(run.closes["AMD"]))).max() > 0.5
    adjusted = eventful.client.get_bars("AMD", "1day", adjustment="split", **WINDOW)
    dividends = [sum(a.cash for a in run.actions if a.time < t) for t in run.times.tolist()]
    worth = 100_000 + 200 * (adjusted["close"] - adjusted["open"].iloc[1]) + dividends
    np.testing.assert_allclose(run.equity[1:], worth.to_numpy()[1:], rtol=1e-9)


def test_signals_are_as_of_now_and_the_newest_price_is_as_traded(eventful: Stack) -> None:
    script = Scripted(symbols=["AMD"])
    script.indicators = {"average": "sma_5"}
    script.look = lambda ctx: (
        ctx.now_us, ctx["AMD"].price, ctx.close[-1], ctx.average[-1], ctx.close[-5:].mean()
    )  # fmt: skip
    # `backtest` runs a copy: look by an engine of our own.
    market, since = load(script, client=eventful.client, **WINDOW)
    engine = engine_on(market, script)
    assert engine.now > since
    assert len(script.seen) > 25
    ex = midnight("2024-02-14")
    for _, price, newest, average, mean in script.seen:
        assert newest == price
        if not np.isnan(average):
            assert average == pytest.approx(mean, rel=1e-12)
    prices = {now: price for now, price, *_ in script.seen}
    before = max(now for now in prices if now < ex)
    after = min(now for now in prices if now > ex)
    assert prices[after] / prices[before] == pytest.approx(0.5, rel=0.2)


def test_a_symbol_without_bars_is_named_and_the_others_run(
    make_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    days = pd.bdate_range("2024-01-02", "2024-03-13", tz="America/New_York").tz_convert("UTC")
    prices = 100 + np.sin(np.arange(len(days)))
    whole = pd.DataFrame({"symbol": "AMD", "timestamp": days.strftime("%Y-%m-%dT%H:%M:%SZ")})
    for name in ("open", "high", "low", "close"):
        whole[name] = prices
    whole["volume"] = 1_000
    gone = whole.iloc[:10].assign(symbol="KO")
    pd.concat([whole, gone]).to_csv(tmp_path / "bars.csv", index=False)
    stack = make_stack(source=FileMarket(tmp_path / "bars.csv"))
    result = on_tiers(stack, Cross())
    assert {fill.symbol for fill in result.run.fills} == {"AMD"}
    assert "KO has no 1day bar in the window" in result.run.warnings
    with pytest.raises(AlgorithmError, match="no bars of KO"):
        on_tiers(stack, Cross(symbols=["KO"]))
    with pytest.raises(md.UnknownSymbolError):
        on_tiers(stack, Cross(symbols=["AMD", "ZZZZ"]))


def test_what_was_known_at_an_earlier_moment(eventful: Stack) -> None:
    first = on_tiers(eventful, Cross())
    known = eventful.clock.now_us()
    eventful.set_time("2024-03-15T12:00:00-04:00")
    as_of = pd.Timestamp(known, unit="us", tz="UTC")
    assert record_of(on_tiers(eventful, Cross(), as_of=as_of)) == record_of(first)


def test_several_timeframes_are_read_and_seen_by_their_close(stack: Stack) -> None:
    class Two(Algorithm):
        symbols = ("AMD",)
        timeframe = "1hour"
        indicators = {"daily": "sma_5@1day"}

        def on_bar(self, ctx: Context) -> None:
            day = ctx["AMD", "1day"]
            assert (
                day.time.tz_convert("America/New_York").date()
                < ctx.now.tz_convert("America/New_York").date()
            )
            assert not np.isnan(day.daily[-1])
            ctx.order_target(100 if ctx.close[-1] > day.daily[-1] else 0)

    window = {"start": "2024-03-04", "end": "2024-03-14"}
    result = on_tiers(stack, Two(), **window)
    assert len(result.run.times) == 8 * 7
    stack.forget_calls()
    assert record_of(on_tiers(stack, Two(), **window)) == record_of(result)
    assert stack.calls() == 0


def test_lower_case_symbols_are_the_same_symbols(stack: Stack) -> None:
    upper = on_tiers(stack, Cross())
    lower = on_tiers(stack, Cross(symbols=["amd", "ko"]))
    assert lower.run.equity.tolist() == upper.run.equity.tolist()
    assert {fill.symbol for fill in lower.run.fills} == {"amd", "ko"}
