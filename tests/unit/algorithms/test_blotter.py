"""Orders from giving to their end: brackets, parts, cash, splits, days."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
import pytest

from algorithms import BasisPoints, Context, NoSlippage, OrderState, Percent, PerShare, VolumeShare
from algorithms.blotter import Costs
from algorithms.errors import OrderError
from algorithms.series import ShareAction
from tests.scripted_runs import (
    FLAT,
    FREE,
    Scripted,
    clock,
    days,
    engine_on,
    fills_of,
    midnight,
    minutes,
)


def states(engine: Any) -> list[tuple[str, str]]:
    return [(o.state.value, o.reason) for o in engine.blotter.orders]


def quantities(engine: Any) -> list[float]:
    return [fill.quantity for fill in engine.blotter.fills]


# ------------------------------------------------------------------------------------ brackets


def test_a_bracket_after_a_fill_at_the_open_sees_the_whole_bar() -> None:
    both = (100.0, 112.0, 94.0, 100.0)
    for limit in (None, 101.0):
        # The limit is above the open: it filled there, and all of the bar came later.
        order = partial(Context.order, quantity=10, limit=limit, take_profit=110)
        engine = engine_on(days([FLAT, both, FLAT]), Scripted({1: order}))
        assert [p for _, _, p in fills_of(engine)] == [100.0, 110.0], limit


def test_of_a_bracket_that_a_bar_reaches_on_both_sides_the_stop_loss_counts() -> None:
    both = (100.0, 112.0, 94.0, 100.0)
    script = Scripted({1: lambda c: c.order(10, take_profit=110, stop_loss=95)})
    engine = engine_on(days([FLAT, FLAT, both, FLAT]), script)
    assert [p for _, _, p in fills_of(engine)] == [100.0, 95.0]
    assert states(engine)[2] == ("canceled", "the other order of the bracket was filled")
    assert not engine.blotter.waiting


def test_children_of_a_cancelled_entry_end_with_it() -> None:
    def cancel(ctx: Context) -> None:
        for order in ctx.orders:
            if order.parent is None:
                assert ctx.cancel(order)
                assert not ctx.cancel(order)

    script = {1: lambda c: c.order(10, limit=50, stop_loss=40, take_profit=60), 2: cancel}
    engine = engine_on(days([FLAT] * 4), Scripted(script))
    assert [state for state, _ in states(engine)] == ["canceled"] * 3
    assert not engine.blotter.waiting
    assert not engine._main["X"].cursor.waiting


def test_an_order_given_and_cancelled_in_one_call_never_waits() -> None:
    script = Scripted({1: lambda c: c.cancel(c.order(10, stop_loss=90))})
    engine = engine_on(days([FLAT] * 3), script)
    assert [state for state, _ in states(engine)] == ["canceled", "canceled"]
    assert not engine.blotter.fills


def test_a_bracket_never_opens_a_position() -> None:
    dive = (100.0, 100.0, 80.0, 85.0)
    script = Scripted({1: lambda c: c.order(10, stop_loss=90), 2: lambda c: c.order(-25)})
    engine = engine_on(days([FLAT, FLAT, FLAT, dive, FLAT]), script)
    # The position is short by then: the stop-loss of the long one has nothing to close.
    assert quantities(engine) == [10, -25]
    assert engine.account.positions == {"X": -15}
    assert not engine.blotter.waiting


def test_the_rest_of_an_entry_ends_when_its_stop_loss_closed_what_had_filled() -> None:
    costs = Costs(slippage=VolumeShare(0.1, 0.0))
    small = (100.0, 100.0, 100.0, 100.0, 100.0)
    dive = (100.0, 100.0, 90.0, 95.0, 1_000.0)
    script = Scripted({1: lambda c: c.order(50, limit=101, stop_loss=95, take_profit=120)})
    engine = engine_on(days([small, small, small, dive, small, small]), script, costs=costs)
    # 10 and 10 of the 50 had filled when the bar that fills the rest also reached the stop.
    assert sum(quantities(engine)) == 0
    assert not engine.account.positions
    assert not engine.blotter.waiting


def test_an_unfilled_rest_of_an_entry_ends_when_its_take_profit_closed_what_had_filled() -> None:
    costs = Costs(slippage=VolumeShare(0.1, 0.0))
    small = (100.0, 100.0, 100.0, 100.0, 100.0)
    rise = (105.0, 112.0, 105.0, 106.0, 1_000.0)
    script = Scripted({1: lambda c: c.order(50, limit=100, take_profit=110, stop_loss=90)})
    engine = engine_on(days([small, small, rise, small, small]), script, costs=costs)
    # Else 40 shares without a stop would be bought as the price comes back.
    assert quantities(engine) == [10, -10]
    assert states(engine)[0] == ("canceled", "its bracket closed what had filled")
    assert not engine.blotter.waiting


# ---------------------------------------------------------------------------------- what fits


def test_a_share_of_the_volume_fills_over_several_bars_at_a_worse_price() -> None:
    costs = Costs(slippage=VolumeShare(0.1, 0.1))
    bar = (100.0, 100.0, 100.0, 100.0, 200.0)
    script = Scripted({1: lambda c: c.order(50)})
    engine = engine_on(days([bar] * 6), script, costs=costs)
    assert quantities(engine) == [20, 20, 10]
    prices = [p for _, _, p in fills_of(engine)]
    assert prices == pytest.approx([100.1, 100.1, 100.025])
    order = engine.blotter.orders[0]
    assert order.state is OrderState.FILLED
    assert order.filled == 50
    assert order.filled_price == pytest.approx(
        sum(p * q for p, q in zip(prices, (20, 20, 10), strict=True)) / 50
    )


def test_a_bar_without_volume_fills_nothing_of_a_share_of_it() -> None:
    empty = (100.0, 100.0, 100.0, 100.0, 0.0)
    script = Scripted({1: lambda c: c.order(50)})
    engine = engine_on(days([FLAT, empty, empty]), script, costs=Costs(slippage=VolumeShare()))
    assert not engine.blotter.fills
    assert len(engine.blotter.waiting) == 1


def test_what_the_cash_does_not_pay_for_is_cancelled() -> None:
    engine = engine_on(days([FLAT] * 3), Scripted({1: lambda c: c.order(1_500)}))
    assert quantities(engine) == [1_000]
    assert engine.account.cash == 0
    assert states(engine) == [("canceled", "the account cannot pay for more")]


@pytest.mark.parametrize("wanted", [1_500, 1_000_000, 10**9])
def test_the_fee_is_that_of_what_fills_not_of_what_was_asked(wanted: int) -> None:
    costs = Costs(Percent(0.001), NoSlippage())
    engine = engine_on(days([FLAT] * 3), Scripted({1: lambda c: c.order(wanted)}), costs=costs)
    assert quantities(engine) == [999]
    assert engine.account.cash == pytest.approx(100_000 - 99_900 * 1.001)


def test_a_minimum_fee_is_paid_from_the_same_cash() -> None:
    costs = Costs(PerShare(0.0, 10.0), NoSlippage())
    engine = engine_on(days([FLAT] * 3), Scripted({1: lambda c: c.order(1_000)}), costs=costs)
    assert quantities(engine) == [999]
    assert engine.account.cash >= 0


def test_leverage_counts_long_and_short_together() -> None:
    def both(ctx: Context) -> None:
        ctx.order(1_500, "X")
        ctx.order(-1_500, "Y")

    frames = {"X": days([FLAT] * 3), "Y": days([FLAT] * 3)}
    script = Scripted({1: both}, symbols=["X", "Y"])
    engine = engine_on(frames, script, costs=Costs(slippage=NoSlippage(), leverage=2.0))
    assert quantities(engine) == [1_500, -500]


def test_a_turn_round_without_room_closes_and_opens_what_may_be() -> None:
    script = Scripted({1: lambda c: c.order(500), 2: lambda c: c.order(-2_000)})
    engine = engine_on(days([FLAT] * 4), script)
    assert quantities(engine) == [500, -1_500]


def test_selling_is_never_refused_for_want_of_cash() -> None:
    fall = (20.0, 20.0, 20.0, 20.0)
    script = Scripted({1: lambda c: c.order(-1_000), 3: lambda c: c.order(1_000)})
    rise = (300.0, 300.0, 300.0, 300.0)
    engine = engine_on(days([FLAT, FLAT, rise, rise, fall]), script)
    # It owes more than it has, and closing is allowed.
    assert quantities(engine) == [-1_000, 1_000]
    assert engine.account.cash == 100_000 + 1_000 * (100 - 300)


def test_sales_at_an_open_pay_for_what_is_bought_at_it() -> None:
    def swap(ctx: Context) -> None:
        ctx.order_target(0, "Y")
        ctx.order(1_000, "X")

    frames = {"X": days([FLAT] * 5), "Y": days([FLAT] * 5)}
    script = Scripted({1: lambda c: c.order(1_000, "Y"), 2: swap}, symbols=["X", "Y"])
    engine = engine_on(frames, script)
    assert engine.account.positions == {"X": 1_000}


def test_slippage_moves_against_the_trader_and_never_a_limit() -> None:
    def give(ctx: Context) -> None:
        ctx.order(10)
        ctx.order(10, stop=100)
        ctx.order(10, limit=100)
        ctx.order(-10)

    script = Scripted({1: give})
    engine = engine_on(days([FLAT] * 3), script, costs=Costs(slippage=BasisPoints(50)))
    assert [p for _, _, p in fills_of(engine)] == [100.5, 100.5, 100.0, 99.5]


# -------------------------------------------------------------------------------------- days


def test_an_order_for_the_day_ends_with_the_next_session_of_daily_bars() -> None:
    script = Scripted({1: lambda c: c.order(10, limit=90, tif="day")})
    low = (100.0, 100.0, 80.0, 100.0)
    engine = engine_on(days([FLAT, FLAT, low]), script)
    order = engine.blotter.orders[0]
    assert order.state is OrderState.EXPIRED
    assert clock(order.expires or 0) == "2023-01-04 16:00"


def test_an_order_for_the_day_meets_the_last_minute_and_none_after() -> None:
    friday = minutes([FLAT, FLAT, (100.0, 100.0, 94.0, 100.0)], "2023-11-24 12:57")
    monday = minutes([(100.0, 100.0, 80.0, 100.0)] * 2, "2023-11-27 09:30")
    script = Scripted(
        {
            1: lambda c: (c.order(1, limit=89, tif="day"), c.order(2, limit=95, tif="day")),
            # Given as the half-day is over: it waits for Monday.
            3: lambda c: c.order(4, limit=89, tif="day"),
        },
        timeframe="1min",
    )
    engine = engine_on(pd.concat([friday, monday]), script)
    assert fills_of(engine) == [("2023-11-24 12:59", 2, 95.0), ("2023-11-27 09:30", 4, 89.0)]
    assert [clock(o.expires or 0) for o in engine.blotter.orders] == [
        "2023-11-24 13:00", "2023-11-24 13:00", "2023-11-27 16:00",
    ]  # fmt: skip
    assert [o.state.value for o in engine.blotter.orders] == ["expired", "filled", "filled"]


def test_a_day_order_of_a_symbol_that_stops_trading_ends_all_the_same() -> None:
    frames = {"X": days([FLAT] * 5), "Y": days([FLAT] * 5).iloc[[0, 1, 4]]}
    frames["Y"].loc[frames["Y"].index[-1], "low"] = 50.0
    script = Scripted({2: lambda c: c.order(1, "Y", limit=60, tif="day")}, symbols=["X", "Y"])
    engine = engine_on(frames, script)
    assert engine.blotter.orders[0].state is OrderState.EXPIRED
    assert not engine.blotter.fills


# ------------------------------------------------------------------------------------ splits


def split_run(order: Any, ratio: float, bars: list[Any], **options: Any) -> Any:
    day = str(days(bars).index[2])[:10]
    action = ShareAction(midnight(day), "split", ratio)
    return engine_on(days(bars), Scripted({2: order}), actions=[action], **options)


def test_a_waiting_order_is_set_on_the_new_basis() -> None:
    halves = (50.0, 50.0, 50.0, 50.0)
    dip = (50.0, 50.0, 44.0, 50.0)
    give = lambda c: c.order(100, limit=90, stop_loss=80, take_profit=120)  # noqa: E731
    engine = split_run(give, 2.0, [FLAT, FLAT, halves, dip, halves])
    assert fills_of(engine) == [("2023-01-06 00:00", 200, 45.0)]
    entry, loss, profit = engine.blotter.orders
    assert (entry.quantity, entry.limit) == (200, 45.0)
    assert (loss.quantity, loss.stop) == (-200, 40.0)
    assert (profit.quantity, profit.limit) == (-200, 60.0)


@pytest.mark.parametrize("quantity", [7, -7, 21, -21])
def test_whole_shares_stay_whole_whatever_the_ratio(quantity: int) -> None:
    bar = (233.0, 234.0, 232.0, 233.0)
    give = lambda c: c.order(quantity, limit=90 if quantity > 0 else 240)  # noqa: E731
    engine = split_run(give, 3 / 7, [FLAT, FLAT, bar, bar])
    assert [o.quantity for o in engine.blotter.waiting.values()] == [quantity * 3 // 7]


def test_an_order_that_a_reverse_split_leaves_no_share_of_ends() -> None:
    tens = (1000.0, 1000.0, 900.0, 1000.0)
    engine = split_run(lambda c: c.order(5, limit=95), 0.1, [FLAT, FLAT, tens, tens])
    assert states(engine) == [("canceled", "the split left no whole share of it")]
    assert not engine.blotter.fills
    engine = split_run(lambda c: c.order(5, stop_loss=50), 0.1, [FLAT, FLAT, tens, tens])
    assert [state for state, _ in states(engine)] == ["canceled", "canceled"]


def test_a_split_of_a_partly_filled_order_leaves_whole_shares() -> None:
    costs = Costs(slippage=VolumeShare(0.1, 0.0))
    small = (100.0, 100.0, 100.0, 100.0, 330.0)
    tens = (1000.0, 1000.0, 1000.0, 1000.0, 1e6)
    action = ShareAction(midnight("2023-01-05"), "split", 0.1)
    script = Scripted({1: lambda c: c.order(105, limit=110)})
    engine = engine_on(days([small, small, tens, tens]), script, costs=costs, actions=[action])
    # 33 filled; 72 wait, which become 7; the 3.3 shares held become 3 and cash.
    assert quantities(engine) == [33, 7]
    assert engine.account.positions == {"X": 10}
    assert engine.blotter.orders[0].state is OrderState.FILLED


# --------------------------------------------------------------------- targets and waiting


def test_a_target_counts_what_waits_so_that_asking_twice_buys_once() -> None:
    def twice(ctx: Context) -> None:
        assert ctx.order_target(100) is not None
        assert ctx.order_target(100) is None
        assert ctx.order_target(-50).quantity == -150

    engine = engine_on(days([FLAT] * 3), Scripted({1: twice}))
    assert engine.account.positions == {"X": -50}


def test_closing_a_position_does_not_count_its_own_protection_as_filled() -> None:
    def protect(ctx: Context) -> None:
        ctx.order(-100, stop=90)
        ctx.order(-100, limit=120)

    script = {1: lambda c: c.order(100), 2: protect, 3: lambda c: c.close_position()}
    engine = engine_on(days([FLAT] * 6), Scripted(script))
    assert quantities(engine) == [100, -100]
    assert engine.account.positions == {}


def test_what_changes_is_told_even_without_a_fill() -> None:
    rise = (100.0, 101.0, 99.0, 100.0)
    script = Scripted({1: lambda c: c.order(10, stop=100.5, limit=99.5)})
    engine = engine_on(days([FLAT, rise, FLAT]), script, run=False)
    moments = engine.market.moments(("X",), "1day", 0, 2**62).tolist()
    assert len(engine.advance(moments[0]).changed) == 1
    # The stop was reached, the order is a limit order now: a journal has to know.
    assert [o.triggered for o in engine.advance(moments[1]).changed] == [True]
    assert engine.advance(moments[2]).changed == []


def test_prices_of_any_number_type_are_plain_floats() -> None:
    import json

    import numpy as np

    from algorithms.persistence import order_record

    def give(ctx: Context) -> None:
        ctx.order(
            np.int64(10), limit=np.float32(50), stop=np.int64(51), stop_loss=np.float32(40)  # type: ignore[arg-type]
        )  # fmt: skip

    engine = engine_on(days([FLAT] * 2), Scripted({1: give}))
    for order in engine.blotter.orders:
        json.dumps(order_record(order))


def test_orders_without_end_at_one_moment_are_an_error() -> None:
    def leak(ctx: Context) -> None:
        while True:
            ctx.order(1)

    with pytest.raises(OrderError, match="10,000 orders were given at one moment"):
        engine_on(days([FLAT] * 2), Scripted({1: leak}))


def test_free_costs_are_free() -> None:
    assert FREE.leverage == 1.0
