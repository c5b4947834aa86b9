"""Limits on what an algorithm may do: pure checks, and the same in a back-test."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms import Algorithm, Context, backtest
from algorithms.costs import NoSlippage
from algorithms.errors import OrderError, ParameterError
from algorithms.live.risk import (
    AccountView,
    Halt,
    RiskGuard,
    RiskLimits,
    broken_limit,
    reduces,
)
from algorithms.orders import Order

UNLIMITED = {"max_orders_per_bar": None, "max_open_orders": None}


def view(**more: Any) -> AccountView:
    return AccountView(
        **{
            "equity": 10_000.0,
            "cash": 10_000.0,
            "position": 0.0,
            "price": 100.0,
            "gross": 0.0,
            "open_orders": 0,
            "orders_this_bar": 0,
            **more,
        }
    )


def order(quantity: float, **more: Any) -> Order:
    return Order("1", "AAPL", quantity, **more)


@pytest.mark.parametrize(
    ("limits", "given", "seen", "reason"),
    [
        ({"max_position_shares": 10}, order(11), view(), "would be 11 shares"),
        ({"max_position_shares": 10}, order(5), view(position=6), "would be 11 shares"),
        ({"max_position_shares": 10}, order(5), view(pending_buys=6), "would be 11 shares"),
        ({"max_position_shares": 10}, order(-5), view(position=-6), "would be -11 shares"),
        ({"max_position_shares": 10}, order(10), view(), None),
        ({"max_position_value": 1000}, order(11), view(), "worth 1,100.00"),
        ({"max_position_value": 1000}, order(11, limit=90.0), view(), None),
        ({"max_position_value": 1000}, order(-11, limit=90.0), view(), "worth 1,100.00"),
        ({"max_order_value": 500}, order(6), view(position=-100), None),
        ({"max_order_value": 500}, order(6), view(), "the order is worth 600.00"),
        ({"max_order_value": 500}, order(6), view(price=math.nan), "no price yet"),
        ({"max_gross_exposure": 1.0}, order(10), view(gross=9_500), "10,500.00"),
        ({"max_gross_exposure": 2.0}, order(10), view(gross=9_500), None),
        ({"max_open_orders": 3}, order(1), view(open_orders=3), "max_open_orders is 3"),
        ({"max_orders_per_bar": 3}, order(1), view(orders_this_bar=3), "max_orders_per_bar is 3"),
        ({}, order(1e9), view(), None),
    ],
)
def test_each_limit(limits: dict[str, Any], given: Order, seen: AccountView, reason: str | None):
    guard = RiskGuard(RiskLimits(**{**UNLIMITED, **limits}))
    found = guard.check(given, seen)
    assert found is None if reason is None else reason in str(found)


@given(
    position=st.floats(-1e6, 1e6),
    asked=st.floats(-1e6, 1e6).filter(bool),
    buys=st.floats(0, 1e6),
    sells=st.floats(0, 1e6),
)
def test_what_reduces_never_enlarges_nor_turns_whatever_else_fills(
    position: float, asked: float, buys: float, sells: float
):
    seen = view(position=position, pending_buys=buys, pending_sells=sells)
    if reduces(order(asked), seen):
        other = buys if asked > 0 else -sells
        after = position + asked + other
        assert abs(after) <= abs(position)
        assert after * position >= -1e-6 * abs(position)


def test_reducing_orders_pass_every_limit_and_the_switch():
    tight = RiskLimits(max_order_value=1, max_orders_per_bar=1, max_position_shares=1)
    guard = RiskGuard(tight)
    guard.kill("news")
    seen = view(position=10, orders_this_bar=5)
    assert guard.check(order(-10), seen) is None
    assert guard.check(order(-11), seen) == "news"
    assert guard.check(order(-10), seen._replace(pending_sells=1.0)) == "news"


def test_a_daily_loss_trips_until_the_next_session():
    guard = RiskGuard(RiskLimits(max_daily_loss=100, flatten=True))
    guard.observe(1, 10_000.0)
    guard.observe(1, 9_901.0)
    assert guard.take_halt() is None
    guard.observe(1, 9_900.0)
    halt = guard.take_halt()
    assert isinstance(halt, Halt)
    assert halt.flatten
    guard.observe(1, 10_500.0)
    assert guard.take_halt() is None
    assert "until the next session" in str(guard.check(order(1), view()))
    guard.observe(2, 10_450.0)
    assert str(guard.halted) == "None"
    assert guard.day_start_equity == 10_500.0
    guard.observe(2, 10_400.0)
    assert guard.halted is not None
    guard.reset()
    assert str(guard.halted) == "None"
    assert guard.day_start_equity == 10_400.0


def test_what_it_remembers_survives_a_restart_as_json():
    guard = RiskGuard(RiskLimits(max_daily_loss=100))
    guard.observe(1, 1000.0)
    guard.observe(1, 800.0)
    other = RiskGuard(guard.limits)
    other.restore(json.loads(json.dumps(guard.snapshot())))
    assert other.halted == guard.halted
    other.observe(2, 800.0)
    assert (other.halted, other.day_start_equity) == (None, 800.0)
    fresh = RiskGuard()
    fresh.restore(json.loads(json.dumps(RiskGuard().snapshot())))
    assert math.isnan(fresh.day_start_equity)


def test_the_switch_holds_until_it_is_released():
    guard = RiskGuard()
    guard.kill("news", flatten=True)
    assert guard.take_halt() == Halt("news", True)
    guard.kill("news", flatten=True)
    assert guard.take_halt() is None
    guard.observe(1, 1.0)
    guard.observe(2, 1.0)
    assert guard.halted == "news"
    guard.release()
    assert guard.check(order(1), view()) is None


@pytest.mark.parametrize("wrong", [0, -1, math.nan, "many"])
def test_a_limit_that_is_none_is_refused(wrong: Any):
    with pytest.raises(ParameterError, match="above 0"):
        RiskLimits(max_order_value=wrong)


def test_limits_are_read_by_name():
    assert RiskLimits.of({"max_daily_loss": 5}) == RiskLimits(max_daily_loss=5)
    with pytest.raises(ParameterError, match=r"no risk limit 'max_loss'.*max_daily_loss"):
        RiskLimits.of({"max_loss": 5})


# -------------------------------------------------------------------------------- in a back-test


class Greedy(Algorithm):
    """Buys more at each bar."""

    symbols = ("AAPL", "MSFT")

    def on_bar(self, ctx: Context) -> None:
        for symbol in ctx.symbols:
            ctx.order(10, symbol)


class Endless(Algorithm):
    """Gives orders that are refused, as many as it may."""

    symbols = ("AAPL",)

    def on_bar(self, ctx: Context) -> None:
        for _ in range(2_000):
            ctx.order(1)


def frames(days: int = 8) -> dict[str, pd.DataFrame]:
    index = pd.bdate_range("2024-03-01", periods=days)
    prices = np.linspace(100.0, 107.0, days)
    frame = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), prices), index=index)
    return {"AAPL": frame, "MSFT": frame.copy()}


def test_limits_hold_in_a_back_test_and_say_why():
    limits = RiskLimits(max_position_shares=30, max_gross_exposure=0.55)
    result = backtest(
        Greedy(), frames(), cash=10_000, limits=RiskGuard(limits), slippage=NoSlippage()
    )
    assert {s: p.max() for s, p in result.run.positions.items()} == {"AAPL": 30.0, "MSFT": 20.0}
    reasons = {o.reason.partition(",")[0] for o in result.run.orders if o.reason}
    assert "the position would be 40 shares" in reasons
    assert any(reason.startswith("gross exposure would be") for reason in reasons)


def test_orders_that_are_refused_without_end_stop_the_algorithm():
    with pytest.raises(OrderError, match="1,000 orders of one bar were refused"):
        backtest(Endless(), frames(), limits=RiskGuard(RiskLimits(max_orders_per_bar=5)))


def test_a_broken_limit_names_it():
    reason = broken_limit(RiskLimits(max_order_value=5), order(1), view())
    assert reason == "the order is worth 100.00, and max_order_value is 5.00"
