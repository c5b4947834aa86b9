"""The loop: which bars are seen when, several symbols and timeframes, beginnings and ends."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest

from algorithms import Algorithm, AlgorithmError, Context, backtest
from algorithms.account import Account
from algorithms.backtest import run
from algorithms.engine import Engine
from algorithms.frames import market_of
from algorithms.hours import close_times, hours_between
from algorithms.market import MarketData
from algorithms.series import AdjustmentStep, Series, ShareAction
from tests.scripted_runs import (
    FLAT,
    FREE,
    Restless,
    Scripted,
    clock,
    days,
    engine_on,
    fills_of,
    follow,
    instant,
    midnight,
    minutes,
    random_frame,
)


def two_frames(minute: pd.DataFrame, other: pd.DataFrame, timeframe: str) -> MarketData:
    """Return a market of X's minutes and its bars of another timeframe."""
    market = market_of(minute, ["X"], "1min")
    coarse = market_of(other, ["X"], timeframe)
    series = market.series | coarse.series
    edges = [labels for s in series.values() for labels in (s.labels[0], s.labels[s.size - 1])]
    return MarketData(series, hours_between(int(min(edges)), int(max(edges))))


# ------------------------------------------------------------------------- several timeframes


def test_an_hour_is_seen_once_it_has_closed() -> None:
    minute = minutes([FLAT] * 130, "2023-11-22 09:30")
    hours = minutes([(1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)], "2023-11-22 09:30", "60min")
    algorithm = Scripted(timeframe="1min", timeframes=("1hour",))
    algorithm.look = lambda ctx: (
        str(ctx.now.tz_convert("America/New_York"))[11:16],
        ctx["X", "1hour"].close[-1],
    )
    engine_on(two_frames(minute, hours, "1hour"), algorithm)
    seen = dict(algorithm.seen)
    assert np.isnan(seen["10:29"])
    assert seen["10:30"] == 1
    assert seen["11:29"] == 1
    assert seen["11:30"] == 2


def test_a_day_is_seen_twenty_minutes_after_its_close() -> None:
    stamps = pd.date_range("2023-11-24 12:55", periods=60, freq="1min", tz="America/New_York")
    minute = minutes([FLAT] * 60).set_axis(stamps)
    daily = days([(1, 1, 1, 1), (2, 2, 2, 2)], "2023-11-23").iloc[1:]
    market = market_of(minute, ["X"], "1min", "extended")
    market.series |= market_of(daily, ["X"], "1day").series
    algorithm = Scripted(timeframe="1min", timeframes=("1day",), session="extended")
    algorithm.look = lambda ctx: (
        str(ctx.now.tz_convert("America/New_York"))[11:16], ctx["X", "1day"].bars,
        ctx["X", "1day"].has_bar,
    )  # fmt: skip
    engine_on(market, algorithm)
    seen = {moment: (bars, new) for moment, bars, new in algorithm.seen}
    assert seen["13:19"] == (0, False)
    assert seen["13:20"] == (1, True)
    assert seen["13:21"] == (1, False)


def test_a_strategy_on_days_sees_a_day_and_a_week_at_the_close() -> None:
    daily, weekly = days([FLAT] * 10, "2023-11-13"), days([FLAT] * 2, "2023-11-13")
    weekly.index = pd.DatetimeIndex(["2023-11-13", "2023-11-20"])
    market = market_of(daily, ["X"], "1day")
    market.series |= market_of(weekly, ["X"], "1week").series
    algorithm = Scripted(timeframes=("1week",))
    algorithm.look = lambda ctx: (clock(ctx.now_us), ctx["X", "1week"].bars)
    engine_on(market, algorithm)
    seen = dict(algorithm.seen)
    assert seen["2023-11-16 16:00"] == 0
    assert seen["2023-11-17 16:00"] == 1
    assert seen["2023-11-24 13:00"] == 2


def test_an_indicator_of_another_timeframe_is_of_its_closed_bars() -> None:
    minute = minutes([FLAT] * 200, "2023-11-22 09:30")
    hours = minutes([(n, n, n, n) for n in (1.0, 3.0, 8.0)], "2023-11-22 09:30", "60min")
    algorithm = Scripted(timeframe="1min")
    algorithm.indicators = {"hourly": "sma_2@1hour"}
    algorithm.look = lambda ctx: (clock(ctx.now_us)[11:], ctx["X", "1hour"].hourly[-1])
    engine_on(two_frames(minute, hours, "1hour"), algorithm)
    seen = dict(algorithm.seen)
    assert np.isnan(seen["11:29"])
    assert seen["11:30"] == 2.0
    assert seen["12:30"] == 5.5


def test_what_was_not_given_is_said() -> None:
    with pytest.raises(AlgorithmError, match="no bars of X 1week"):
        engine_on(days([FLAT] * 3), Scripted(timeframes=("1week",)))


# ------------------------------------------------------------------------------ several symbols


def test_a_symbol_without_a_bar_has_no_fill_and_keeps_its_last_price() -> None:
    frames = {"X": minutes([(n, n, n, n) for n in range(100, 106)]), "Y": minutes([FLAT] * 6)}
    frames["X"] = frames["X"].iloc[[0, 1, 4, 5]]
    script = Scripted({2: lambda ctx: ctx.order(10, "X")}, symbols=["X", "Y"], timeframe="1min")
    script.look = lambda ctx: (ctx["X"].price, ctx["X"].has_bar, ctx["Y"].has_bar)
    engine = engine_on(frames, script)
    assert fills_of(engine) == [("2023-01-03 09:34", 10, 104.0)]
    assert script.seen == [
        (100, True, True), (101, True, True), (101, False, True), (101, False, True),
        (104, True, True), (105, True, True),
    ]  # fmt: skip


def test_the_moments_are_those_of_any_symbol() -> None:
    frames = {"X": minutes([FLAT] * 6).iloc[::2], "Y": minutes([FLAT] * 6).iloc[1::3]}
    script = Scripted(symbols=["X", "Y"], timeframe="1min")
    script.look = lambda ctx: clock(ctx.now_us)[11:]
    engine_on(frames, script)
    assert script.seen == ["09:31", "09:32", "09:33", "09:35"]


# --------------------------------------------------------------------------- corporate actions


def test_prices_are_as_of_now_and_the_newest_is_as_traded() -> None:
    bars = [(n, n, n, n) for n in (100.0, 102.0, 52.0, 53.0)]
    ex = midnight("2023-01-05")
    script = Scripted()
    script.indicators = {"average": "sma_2"}
    script.look = lambda ctx: (ctx.close.values().tolist(), ctx.average[-1], ctx["X"].price)
    engine_on(
        days(bars), script, steps=[AdjustmentStep(ex, 0.5, 2.0)],
        actions=[ShareAction(ex, "split", 2.0)],
    )  # fmt: skip
    assert script.seen[1] == ([100.0, 102.0], 101.0, 102.0)
    assert script.seen[2] == ([50.0, 51.0, 52.0], 51.5, 52.0)


def test_a_fraction_of_a_share_is_paid_out_and_a_short_position_pays_it() -> None:
    for side in (1, -1):
        script = Scripted({1: partial(Context.order, quantity=7 * side)})
        action = ShareAction(midnight("2023-01-05"), "split", 1.5)
        engine = engine_on(days([FLAT] * 4), script, actions=[action])
        assert engine.account.positions == {"X": 10 * side}
        (applied,) = engine.actions
        assert applied.paid_out == pytest.approx(0.5 * side)
        # The last close is 100 on the old basis: half a share is worth 33.33.
        assert applied.cash == pytest.approx(100 / 1.5 / 2 * side)


def test_a_dividend_belongs_to_who_held_the_day_before() -> None:
    action = ShareAction(midnight("2023-01-05"), "cash_dividend", cash=1.0)
    before = Scripted({1: lambda ctx: ctx.order(10), 2: lambda ctx: ctx.order(-10)})
    engine = engine_on(days([FLAT] * 4), before, actions=[action])
    assert engine.account.cash == 100_010
    after = Scripted({2: lambda ctx: ctx.order(10)})
    engine = engine_on(days([FLAT] * 4), after, actions=[action])
    assert engine.account.cash == 99_000


def test_actions_of_a_symbol_that_does_not_trade_that_day_are_booked_all_the_same() -> None:
    frames = {"X": days([FLAT] * 6).iloc[[0, 1, 5]], "Y": days([FLAT] * 6)}
    frames["X"].iloc[2] = (50.0, 50.0, 50.0, 50.0, 1e6)
    ex = midnight("2023-01-05")
    script = Scripted({1: lambda ctx: ctx.order(10, "X")}, symbols=["X", "Y"])
    engine = engine_on(
        frames, script, actions=[ShareAction(ex, "split", 2.0)], run=False
    )  # fmt: skip
    worth = [equity for _, equity in follow(engine)]
    assert worth == [100_000] * 6
    assert engine.account.positions == {"X": 20}


# ------------------------------------------------------------------------- beginning and end


def test_the_first_call_is_once_every_indicator_has_a_value() -> None:
    script = Scripted()
    script.indicators = {"slow": "sma_4", "fast": "sma_2"}
    script.look = lambda ctx: ctx["X"].bars
    frame = days([FLAT] * 8)
    result = backtest(script, frame, progress=False)
    assert len(result.run.times) == 5
    assert backtest(script, frame, start="2023-01-11", progress=False).run.times.size == 2


def test_warm_up_is_bars_beyond_what_the_indicators_need() -> None:
    class Patient(Algorithm):
        symbols = ("X",)
        indicators = {"slow": "sma_4"}
        warm_up = 3

        def on_bar(self, ctx: Context) -> None:
            self.first = min(getattr(self, "first", 99), ctx["X"].bars)

    market = market_of(days([FLAT] * 10), ["X"], "1day")
    assert len(run(Patient(), market, 0).times) == 10 - 6


def test_a_run_without_enough_bars_calls_nothing_and_says_so() -> None:
    class Never(Algorithm):
        symbols = ("X",)
        indicators = {"slow": "sma_40"}

        def on_bar(self, ctx: Context) -> None:
            raise AssertionError

    result = backtest(Never, days([FLAT] * 10), progress=False)
    assert len(result.run.times) == 0
    assert result.run.warnings == ["there is no bar at which every indicator has a value"]
    assert "0 bars" in str(result)


def test_a_symbol_that_stopped_trading_is_not_waited_for_for_ever() -> None:
    frames = {"X": days([FLAT] * 60), "Y": days([FLAT] * 5)}

    class Slow(Algorithm):
        symbols = ("X", "Y")
        indicators = {"slow": "sma_20"}

    market = market_of(frames, ["X", "Y"], "1day")
    times = run(Slow(), market, 0).times
    # 20 sessions of X; Y stopped ten days after its fifth.
    assert clock(int(times[0])) == "2023-01-30 16:00"
    # Not known before its time: had the data ended on its last bar, nothing would have begun.
    assert len(run(Slow(), market.until(instant("2023-01-12 16:00")), 0).times) == 0


def test_the_window_is_of_labels_and_half_open() -> None:
    frame = minutes([FLAT] * 10)
    script = Scripted(timeframe="1min")
    zone = "America/New_York"
    result = backtest(
        script, frame, start=pd.Timestamp("2023-01-03 09:32", tz=zone),
        end=pd.Timestamp("2023-01-03 09:35", tz=zone), progress=False,
    )  # fmt: skip
    # Bars 9:32, 9:33 and 9:34, at their closes.
    assert [clock(int(t))[11:] for t in result.run.times] == ["09:33", "09:34", "09:35"]


def test_orders_of_the_last_call_are_dropped_and_those_of_the_first_wait() -> None:
    class Edges(Scripted):
        def on_start(self, ctx: Context) -> None:
            ctx.order(1)

        def on_stop(self, ctx: Context) -> None:
            ctx.order(2)

    result = backtest(Edges(), days([FLAT] * 3), progress=False)
    assert [o.quantity for o in result.run.orders] == [1]
    assert len(result.run.fills) == 1


def test_fills_are_heard_before_the_call_of_their_bar() -> None:
    script = Scripted({1: lambda ctx: ctx.order(5)})
    script.look = lambda ctx: len(script.heard)
    engine_on(days([FLAT] * 3), script)
    assert script.seen == [0, 1, 1]


def test_the_instance_given_is_not_changed() -> None:
    script = Scripted({1: lambda ctx: ctx.algorithm_state if False else None})
    backtest(script, days([FLAT] * 3), progress=False)
    assert script.calls == 0


# -------------------------------------------------------------------------------------- curves


@pytest.mark.parametrize("seed", range(6))
def test_the_curves_are_the_account_after_each_moment(seed: int) -> None:
    frames = {"X": random_frame(seed, 300, 0.1), "Y": random_frame(seed + 50, 300, 0.3)}
    algorithm = Restless(seed, timeframe="1min")
    market = market_of(frames, ["X", "Y"], "1min")
    ex = instant("2023-01-03 11:00")
    market.set_actions(
        "X", [], [ShareAction(ex, "split", 1.5), ShareAction(ex + 1, "cash_dividend", cash=0.3)]
    )
    record = run(algorithm, market, 0, costs=FREE)
    engine = Engine(Restless(seed, timeframe="1min"), market, Account(100_000.0), FREE)
    first = engine.ready(0)
    engine.begin(first - 1)
    stepped = follow(engine)
    assert len(record.fills) > 30
    np.testing.assert_allclose(record.cash_curve, [cash for cash, _ in stepped], atol=1e-6)
    np.testing.assert_allclose(record.equity, [equity for _, equity in stepped], atol=1e-6)
    # One step after the other is the same as all at once, to the last bit.
    assert engine.blotter.fills == record.fills
    assert record.positions["X"][-1] == engine.account.positions.get("X", 0.0)


def test_a_market_grown_bar_by_bar_gives_the_same_run() -> None:
    frames = {"X": random_frame(5, 200, 0.2), "Y": random_frame(6, 200, 0.2)}
    whole = market_of(frames, ["X", "Y"], "1min")
    record = run(Restless(9, timeframe="1min"), whole, 0, costs=FREE)
    first = int(record.times[0])
    live = MarketData(
        {name: _head(series, first) for name, series in whole.series.items()}, whole.hours
    )
    engine = Engine(Restless(9, timeframe="1min"), live, Account(100_000.0), FREE)
    engine.begin(first - 1)
    for moment in record.times.tolist():
        live.extend({name: _between(s, live.of(*name), moment) for name, s in whole.series.items()})
        engine.advance(moment)
    assert engine.blotter.fills == record.fills
    assert [o.state for o in engine.blotter.orders] == [o.state for o in record.orders]


def _head(series: Series, before: int) -> Series:
    size = int(np.searchsorted(series.closes[: series.size], before))
    return Series(
        series.symbol, series.timeframe, series.labels[:size].copy(), series.closes[:size].copy(),
        series.raw[:, :size].copy(),
    )  # fmt: skip


def _between(series: Series, held: Series, until: int) -> tuple[Any, Any]:
    last = int(np.searchsorted(series.closes[: series.size], until, side="right"))
    return series.labels[held.size : last], series.raw[:, held.size : last]


def test_closes_of_a_frame_are_those_of_its_hours() -> None:
    market = market_of(days([FLAT] * 3), ["X"], "1day")
    series = market.of("X", "1day")
    found = close_times(series.labels, "1day", market.hours, "regular")
    np.testing.assert_array_equal(found, series.closes[:3])


# ------------------------------------------------------- bars that an ex-date falls into


def test_a_split_inside_a_month_makes_and_loses_nothing() -> None:
    months = days([FLAT, FLAT, (100.0, 104.0, 49.0, 52.0), (52.0, 54.0, 50.0, 54.0)])
    months.index = pd.DatetimeIndex(["2023-01-01", "2023-02-01", "2023-03-01", "2023-04-01"])
    ex = midnight("2023-03-15")
    script = Scripted({2: lambda ctx: ctx.order(10)}, timeframe="1month")
    script.look = lambda ctx: (ctx["X"].price, ctx.close[-1], ctx.equity, ctx["X"].position)
    engine = engine_on(
        months, script, steps=[AdjustmentStep(ex, 0.5, 2.0)],
        actions=[ShareAction(ex, "split", 2.0), ShareAction(ex, "cash_dividend", cash=0.1)],
    )  # fmt: skip
    # Bought at the open of March, before the split: 10 at 100 are 20, which close at 52.
    assert fills_of(engine)[0][1:] == (10, 100.0)
    dividend = sum(action.cash for action in engine.actions)
    assert dividend in (1.0, 2.0)
    assert script.seen[2] == (52.0, 52.0, 100_000 - 1_000 + 20 * 52 + dividend, 20)
    assert script.seen[3] == (54.0, 54.0, 100_000 - 1_000 + 20 * 54 + dividend, 20)
    script.calls = 0
    record = run(script, engine.market, 0, costs=FREE)
    np.testing.assert_allclose(record.equity, [equity for *_, equity, _ in script.seen])
