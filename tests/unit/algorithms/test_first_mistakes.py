"""What somebody new gets wrong: said at once, with a cure, never a run of something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import marketdata as md
from algorithms import Algorithm, AlgorithmError, Context, NoSlippage, VolumeShare, backtest
from algorithms.account import Account
from algorithms.blotter import Costs
from algorithms.engine import Engine
from algorithms.frames import market_of
from tests.scripted_runs import FLAT, Scripted, days, engine_on, minutes


class Hold(Algorithm):
    symbols = ("X",)

    def on_bar(self, ctx: Context) -> None:
        if not ctx.position():
            ctx.order(1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fees": 0.001}, "Percent(0.001)"),
        ({"slippage": 0.001}, "BasisPoints(10)"),
        ({"slippage": NoSlippage}, "NoSlippage()"),
        ({"cash": "1000"}, "cash"),
        ({"cash": float("nan")}, "cash"),
        ({"cash": float("inf")}, "cash"),
        ({"leverage": "2"}, "leverage"),
        ({"leverage": float("nan")}, "leverage"),
        ({"start": "2023-02-01", "end": "2023-01-03"}, "end"),
        ({"start": "2030-02-01"}, "no bar"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused_before_the_run(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(AlgorithmError) as raised:
        backtest(Hold, days([FLAT] * 5), **options)
    assert says in str(raised.value)


@pytest.mark.parametrize("algorithm", ["Hold", int, lambda ctx: None])
def test_what_is_no_algorithm_is_refused(algorithm: Any) -> None:
    with pytest.raises(AlgorithmError, match="Algorithm"):
        backtest(algorithm, days([FLAT] * 5))


@pytest.mark.parametrize("symbols", [None, (), []])
def test_a_strategy_without_symbols_or_data_says_so(symbols: Any) -> None:
    with pytest.raises(AlgorithmError, match="watches no symbols"):
        backtest(Hold(symbols=symbols), start="2024-01-02")


@pytest.mark.parametrize("setting", [{"session": "ext"}, {"adjustment": "spilt"}])
def test_a_word_that_no_setting_has_is_refused_on_any_data(setting: dict[str, str]) -> None:
    with pytest.raises(md.RequestError, match="use one of"):
        backtest(type("Misspelt", (Hold,), setting), days([FLAT] * 5))


@pytest.mark.parametrize("data", [[1, 2], (1,), pd.Series([1.0]), {"X": [1.0]}, 3])
def test_what_is_no_frame_is_refused(data: Any) -> None:
    with pytest.raises(AlgorithmError, match="DataFrame"):
        backtest(Hold, data)


@pytest.mark.parametrize("timeframe", ["5min", "1hour", "1day", "1week", "1month"])
def test_bars_shorter_than_the_strategys_are_refused(timeframe: str) -> None:
    with pytest.raises(AlgorithmError, match=r"timeframe = '1min'|shorter than"):
        backtest(Hold(timeframe=timeframe), minutes([FLAT] * 60))


@pytest.mark.parametrize("zone", [None, "America/New_York", "UTC"])
def test_days_are_not_taken_for_minutes(zone: str | None) -> None:
    with pytest.raises(AlgorithmError, match="1day"):
        backtest(Hold(timeframe="1min"), days([FLAT] * 60).tz_localize(zone))


def test_days_of_midnight_in_utc_are_sessions() -> None:
    frame = days([(p, p, p, p) for p in range(100, 130)])
    naive = backtest(Hold, frame, start="2023-01-10", end="2023-01-20")
    utc = backtest(Hold, frame.tz_localize("UTC"), start="2023-01-10", end="2023-01-20")
    assert utc.fingerprint == naive.fingerprint
    assert utc.equity.equals(naive.equity)
    assert str(utc.fills["timestamp"][0].tz_convert("America/New_York"))[:16] == "2023-01-11 00:00"


@pytest.mark.parametrize(
    "more", [{"timeframes": ("1week",)}, {"indicators": {"slow": "sma_2@1week"}}]
)
def test_a_frame_has_no_other_timeframe(more: dict[str, Any]) -> None:
    with pytest.raises(AlgorithmError) as raised:
        backtest(type("Two", (Hold,), more), days([FLAT] * 5))
    assert "only" in str(raised.value)
    assert "without data" in str(raised.value)


def test_an_exception_tells_the_moment_and_the_strategy() -> None:
    class Broken(Hold):
        def on_bar(self, ctx: Context) -> None:
            if ctx["X"].bars == 3:
                raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as raised:
        backtest(Broken, days([FLAT] * 5))
    assert raised.value.__notes__ == ["in Broken at 2023-01-05 16:00 New York"]


def test_a_bar_of_another_timeframe_is_new_once_whatever_trades_as_it_closes() -> None:
    """A day closes 20 minutes after the last minute: it is new at the next morning's first."""
    stamps = [
        *pd.date_range("2023-01-03 15:55", periods=5, freq="1min"),
        *pd.date_range("2023-01-04 09:30", periods=5, freq="1min"),
    ]
    index = pd.DatetimeIndex(stamps).tz_localize("America/New_York")
    market = market_of(minutes([FLAT] * 10).set_axis(index), ["X"], "1min")
    market.series |= market_of(days([FLAT] * 2), ["X"], "1day").series
    algorithm = Scripted(timeframe="1min", timeframes=("1day",))
    algorithm.look = lambda ctx: (ctx["X", "1day"].has_bar, ctx["X"].has_bar)
    engine_on(market, algorithm)
    assert [day for day, _ in algorithm.seen] == [False] * 5 + [True] + [False] * 4
    assert all(minute for _, minute in algorithm.seen)


@pytest.mark.parametrize("close", [40.0, 100.0, 160.0])
def test_what_an_account_may_reach_does_not_follow_from_closes_to_come(close: float) -> None:
    """Y fills at its open; X's close of that day cannot say how much of it."""
    frames = {
        "X": days([FLAT, FLAT, (100, max(close, 100), min(close, 100), close)]),
        "Y": days([FLAT] * 3),
    }
    script = Scripted(
        {1: lambda ctx: ctx.order(1_000, "X"), 2: lambda ctx: ctx.order(1_000, "Y")},
        symbols=("X", "Y"),
    )
    costs = Costs(slippage=NoSlippage(), leverage=1.5)
    engine = engine_on(frames, script, costs=costs)
    assert [fill.quantity for fill in engine.blotter.fills] == [1_000, 500]


def test_a_frame_of_few_bars_has_any_spacing() -> None:
    assert len(backtest(Hold, days([FLAT])).equity) == 1
    assert np.isfinite(backtest(Hold, days([FLAT] * 2)).equity).all()


def test_an_order_for_nothing_does_not_go_short_against_a_limit_that_waits() -> None:
    script = Scripted(
        {
            1: lambda ctx: ctx.order(10),
            2: lambda ctx: ctx.order(5, limit=90),
            3: lambda ctx: ctx.order_target(0),
        }
    )
    engine = engine_on(days([FLAT] * 6), script)
    assert [fill.quantity for fill in engine.blotter.fills] == [10, -10]


def test_a_target_is_not_ordered_twice_while_its_limit_waits() -> None:
    def ask(ctx: Context) -> None:
        ctx.order_target(10, limit=90)
        ctx.order_target(4, limit=90)

    engine = engine_on(days([FLAT] * 4), Scripted({1: ask, 2: ask}))
    assert [order.quantity for order in engine.blotter.orders] == [10]


@pytest.mark.parametrize(
    ("quantity", "bracket"),
    [
        (1, {"take_profit": 50.0}),
        (1, {"stop_loss": 150.0}),
        (-1, {"take_profit": 150.0}),
        (-1, {"stop_loss": 50.0}),
    ],
)
def test_a_bracket_on_the_wrong_side_of_the_market_is_refused(
    quantity: float, bracket: dict[str, Any]
) -> None:
    script = Scripted({1: lambda ctx: ctx.order(quantity, **bracket)})
    with pytest.raises(AlgorithmError, match="wrong side"):
        engine_on(days([FLAT] * 3), script)


def test_an_order_meets_a_bar_once_also_while_its_entry_is_still_filling() -> None:
    """Each order may have 25 shares of a bar; the take-profit is reached in the second one."""
    calm, high = (100, 101, 99, 100, 1_000), (100, 106, 99, 100, 1_000)
    script = Scripted({1: lambda ctx: ctx.order(50, take_profit=105, stop_loss=95)})
    costs = Costs(slippage=VolumeShare(impact=0))
    engine = engine_on(days([calm, calm, high, calm, high]), script, costs=costs)
    assert [(f.quantity, f.price) for f in engine.blotter.fills] == [
        (25, 100), (25, 100), (-25, 105), (-25, 105),
    ]  # fmt: skip
    assert [f.time for f in engine.blotter.fills][2] < [f.time for f in engine.blotter.fills][3]


@pytest.mark.parametrize("names", [("X", "Y"), ("Y", "X")])
def test_what_is_sold_later_in_a_bar_does_not_pay_at_its_open(names: tuple[str, str]) -> None:
    frames = {"X": days([FLAT, FLAT, (100, 120, 100, 120)]), "Y": days([FLAT] * 3)}
    script = Scripted(
        {
            1: lambda ctx: ctx.order(1_000, "X"),
            2: lambda ctx: (ctx.order(-1_000, "X", limit=110), ctx.order(1_000, "Y")),
        },
        symbols=names,
    )
    engine = engine_on({name: frames[name] for name in names}, script)
    assert [(f.symbol, f.quantity) for f in engine.blotter.fills] == [("X", 1_000), ("X", -1_000)]


def test_a_target_that_sells_a_part_has_no_bracket_for_it() -> None:
    script = Scripted(
        {
            1: lambda ctx: ctx.order_target(10, take_profit=120, stop_loss=80),
            2: lambda ctx: ctx.order_target(6, take_profit=120, stop_loss=80),
        }
    )
    engine = engine_on(days([FLAT] * 4), script)
    assert [order.quantity for order in engine.blotter.orders] == [10, -10, -10, -4]
    assert engine.account.positions == {"X": 6}


@pytest.mark.parametrize("moment", ["-60d", "soon", 2024, float("nan"), None])
def test_a_start_that_is_no_moment_is_refused(moment: Any) -> None:
    if moment is None:
        moment = pd.NaT
    with pytest.raises(AlgorithmError, match="is not a moment"):
        backtest(Hold, days([FLAT] * 5), start=moment)


def test_a_timeframe_is_found_by_any_of_its_names() -> None:
    script = Scripted(timeframe="1day")
    script.look = lambda ctx: (
        ctx["X", "1d"].close[-1] == ctx["X", "daily"].close[-1] == ctx.close[-1]
    )
    engine_on(days([FLAT] * 2), script)
    assert script.seen == [True, True]


def test_an_indicator_of_another_timeframe_says_where_it_is() -> None:
    class Lost(Hold):
        timeframe = "1min"
        indicators = {"slow": "sma_2@1hour"}

    market = market_of(minutes([FLAT] * 5), ["X"], "1min")
    market.series |= market_of(minutes([FLAT] * 5, every="60min"), ["X"], "1hour").series
    context = Engine(Lost(), market, Account(1.0)).context
    with pytest.raises(AttributeError, match=r"ctx\['X', '1hour'\].slow"):
        _ = context.slow


def test_an_account_that_is_worth_nothing_is_named() -> None:
    rising = [(p, p, p, p) for p in (100.0, 100.0, 150.0, 250.0)]
    script = Scripted({1: lambda ctx: ctx.order(-1_500)})
    result = backtest(script, {"X": days(rising)}, leverage=2, slippage=NoSlippage())
    assert [w for w in result.run.warnings if "worth nothing at 2023-01-06 16:00" in w]


def test_shares_of_what_trades_no_longer_are_named() -> None:
    class Both(Algorithm):
        def on_bar(self, ctx: Context) -> None:
            for symbol in ctx.symbols:
                ctx.order_target(3, symbol)

    gone, there = days([FLAT] * 10), days([FLAT] * 60)
    result = backtest(Both, {"X": there, "Y": gone})
    assert result.run.warnings == [
        "Y has no bar after 2023-01-17 00:00 New York: the 3 shares held of it are worth its last "
        "close to the end"
    ]
    assert backtest(Both, {"X": there}).run.warnings == []


def test_an_init_of_its_own_that_forgets_the_base_is_named() -> None:
    class Forgets(Hold):
        symbols = "AB"  # type: ignore[assignment]  # unread, it would be two symbols

        def __init__(self) -> None:
            self.threshold = 3

    with pytest.raises(AlgorithmError, match=r"super\(\).__init__"):
        backtest(Forgets, {"A": days([FLAT] * 3), "B": days([FLAT] * 3)})


def test_a_strategy_without_on_bar_is_told_so() -> None:
    class Next(Algorithm):
        def next(self) -> None:
            """What backtesting.py and backtrader call."""

    assert any("no on_bar" in w for w in backtest(Next(symbols="X"), days([FLAT] * 3)).run.warnings)


def test_an_order_for_the_day_does_not_fill_later_in_a_week() -> None:
    weeks = days([FLAT, (100, 101, 98, 100), FLAT])
    weeks.index = pd.DatetimeIndex(["2023-01-09", "2023-01-16", "2023-01-23"])
    limit = Scripted(
        {1: lambda ctx: (ctx.order(1, limit=99, tif="day"), ctx.order(2, tif="day"))},
        timeframe="1week",
    )
    engine = engine_on(weeks, limit)
    assert [order.filled for order in engine.blotter.orders] == [0, 2]
    assert str(engine.blotter.orders[0].state) == "expired"
