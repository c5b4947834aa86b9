"""Twelve daily bars, eight orders, one half-day, one split, one dividend: every number by hand.

10,000 to begin with, whole shares, 1.00 a fill, no slippage. Decisions fall at a bar's close and
meet the next bar. After each bar: cash, shares, equity.

== =========== ===== ===== ===== ===== ================================================ ===========
 n session      open  high   low close what happens in the bar; what is decided at its close   cash
== =========== ===== ===== ===== ===== ================================================ ===========
 1 2023-11-15  50.00 51.00 49.00 50.00 -; A: buy 100 limit 49.50                          10,000.00
                                                             0 sh, equity 10,000.00
 2 2023-11-16  50.20 50.60 49.40 50.00 low 49.40 <= 49.50: A fills at 49.50
                                       10,000 - 4,950 - 1; B: sell 100 stop 48.00          5,049.00
                                                             100 sh, 5,049 + 5,000 = 10,049.00
 3 2023-11-17  50.00 51.00 48.50 50.50 low 48.50 > 48: B waits; C: buy 50 stop 51.50       5,049.00
                                                             100 sh, 5,049 + 5,050 = 10,099.00
 4 2023-11-20  51.00 52.00 50.80 51.80 high 52 >= 51.50, open below: C fills at 51.50
                                       5,049 - 2,575 - 1                                   2,473.00
                                                             150 sh, 2,473 + 7,770 = 10,243.00
 5 2023-11-21  26.00 26.40 25.60 26.20 split 2 for 1: 300 sh, B is sell 200 stop 24.00;
                                       D: sell 100 limit 27.00                             2,473.00
                                                             300 sh, 2,473 + 7,860 = 10,333.00
 6 2023-11-22  26.20 27.50 26.00 27.00 high 27.50 >= 27: D fills at 27.00
                                       2,473 + 2,700 - 1; E: buy 50 limit 26.00, day       5,172.00
                                                             200 sh, 5,172 + 5,400 = 10,572.00
 7 2023-11-24  27.00 27.20 26.50 26.80 half-day: E is not reached and ends at 13:00        5,172.00
                                                             200 sh, 5,172 + 5,360 = 10,532.00
 8 2023-11-27  23.00 24.50 22.50 24.00 opens below 24.00: B fills at the open, 23.00
                                       5,172 + 4,600 - 1 (E would have filled);
                                       F: sell 150 short at the market                     9,771.00
                                                             0 sh, equity 9,771.00
 9 2023-11-28  24.20 24.80 23.90 24.50 F fills at the open, 24.20
                                       9,771 + 3,630 - 1                                  13,400.00
                                                             -150 sh, 13,400 - 3,675 = 9,725.00
10 2023-11-29  24.10 24.30 23.60 23.80 dividend of 0.40: the short pays 60;
                                       G: buy 150 stop 25.00 limit 25.20                  13,340.00
                                                             -150 sh, 13,340 - 3,570 = 9,770.00
11 2023-11-30  24.00 25.10 23.90 25.00 high 25.10 >= 25: G fills at 25.00 <= 25.20
                                       13,340 - 3,750 - 1; H: buy 100 at the market,
                                       stop-loss 24.00, take-profit 26.00                  9,589.00
                                                             0 sh, equity 9,589.00
12 2023-12-01  25.20 26.30 23.80 25.50 H fills at 25.20; the bar reaches both prices, so
                                       the stop-loss counts: 24.00
                                       9,589 - 2,520 - 1 + 2,400 - 1                       9,467.00
                                                             0 sh, equity 9,467.00
== =========== ===== ===== ===== ===== ================================================ ===========
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from algorithms import NoSlippage, OrderState, PerShare
from algorithms.backtest import run
from algorithms.blotter import Costs
from algorithms.frames import market_of
from algorithms.result import BacktestResult
from algorithms.series import AdjustmentStep, ShareAction
from tests.scripted_runs import Scripted, clock, midnight

BARS = [
    ("2023-11-15", 50.00, 51.00, 49.00, 50.00),
    ("2023-11-16", 50.20, 50.60, 49.40, 50.00),
    ("2023-11-17", 50.00, 51.00, 48.50, 50.50),
    ("2023-11-20", 51.00, 52.00, 50.80, 51.80),
    ("2023-11-21", 26.00, 26.40, 25.60, 26.20),
    ("2023-11-22", 26.20, 27.50, 26.00, 27.00),
    ("2023-11-24", 27.00, 27.20, 26.50, 26.80),
    ("2023-11-27", 23.00, 24.50, 22.50, 24.00),
    ("2023-11-28", 24.20, 24.80, 23.90, 24.50),
    ("2023-11-29", 24.10, 24.30, 23.60, 23.80),
    ("2023-11-30", 24.00, 25.10, 23.90, 25.00),
    ("2023-12-01", 25.20, 26.30, 23.80, 25.50),
]
CASH = [10_000, 5_049, 5_049, 2_473, 2_473, 5_172, 5_172, 9_771, 13_400, 13_340, 9_589, 9_467]
SHARES = [0, 100, 100, 150, 300, 200, 200, 0, -150, -150, 0, 0]
EQUITY = [
    10_000, 10_049, 10_099, 10_243, 10_333, 10_572, 10_532, 9_771, 9_725, 9_770, 9_589, 9_467
]  # fmt: skip


class Table(Scripted):
    """Gives the eight orders."""

    def __init__(self) -> None:
        super().__init__(
            {
                1: lambda ctx: ctx.order(100, limit=49.50, tag="A"),
                2: lambda ctx: ctx.order(-100, stop=48.00, tag="B"),
                3: lambda ctx: ctx.order(50, stop=51.50, tag="C"),
                5: lambda ctx: ctx.order(-100, limit=27.00, tag="D"),
                6: lambda ctx: ctx.order(50, limit=26.00, tif="day", tag="E"),
                8: lambda ctx: ctx.order(-150, tag="F"),
                10: lambda ctx: ctx.order(150, stop=25.00, limit=25.20, tag="G"),
                11: lambda ctx: ctx.order(100, stop_loss=24.00, take_profit=26.00, tag="H"),
            }
        )


@pytest.fixture(scope="module")
def result() -> BacktestResult:
    frame = pd.DataFrame(
        [bar[1:] for bar in BARS],
        columns=["open", "high", "low", "close"],
        index=pd.DatetimeIndex([bar[0] for bar in BARS]),
    )
    market = market_of(frame, ["X"], "1day")
    market.set_actions(
        "X",
        [AdjustmentStep(midnight("2023-11-21"), 0.5, 2.0)],
        [
            ShareAction(midnight("2023-11-21"), "split", 2.0),
            ShareAction(midnight("2023-11-29"), "cash_dividend", cash=0.40),
        ],
    )
    costs = Costs(PerShare(0.0, 1.0), NoSlippage())
    return BacktestResult(run(Table(), market, 0, cash=10_000.0, costs=costs))


def test_cash_shares_and_equity_after_each_bar(result: BacktestResult) -> None:
    record = result.run
    np.testing.assert_allclose(record.cash_curve, CASH, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(record.positions["X"], SHARES)
    np.testing.assert_allclose(record.equity, EQUITY, rtol=0, atol=1e-9)


def test_fills(result: BacktestResult) -> None:
    assert [(clock(f.time)[:10], f.tag, f.quantity, f.price, f.fee) for f in result.run.fills] == [
        ("2023-11-16", "A", 100, 49.50, 1.0),
        ("2023-11-20", "C", 50, 51.50, 1.0),
        ("2023-11-22", "D", -100, 27.00, 1.0),
        ("2023-11-27", "B", -200, 23.00, 1.0),
        ("2023-11-28", "F", -150, 24.20, 1.0),
        ("2023-11-30", "G", 150, 25.00, 1.0),
        ("2023-12-01", "H", 100, 25.20, 1.0),
        ("2023-12-01", "H", -100, 24.00, 1.0),
    ]


def test_orders(result: BacktestResult) -> None:
    orders = {(o.tag, o.parent is not None, o.stop): o for o in result.run.orders}
    day = orders["E", False, None]
    assert day.state is OrderState.EXPIRED
    assert day.expires is not None
    assert clock(day.expires) == "2023-11-24 13:00"
    assert orders["B", False, 24.0].quantity == -200
    assert orders["H", True, 24.0].state is OrderState.FILLED
    assert orders["H", True, None].state is OrderState.CANCELED


def test_trades(result: BacktestResult) -> None:
    # First in, first out; the split makes of A 200 at 24.75 and of C 100 at 25.75. A lot carries
    # its fill's fee by quantity.
    #   D: 100 of A: (27.00 - 24.75) * 100 = 225, less 0.50 and 1.00
    #   B: 100 of A: (23.00 - 24.75) * 100 = -175, less 0.50 and 0.50
    #      100 of C: (23.00 - 25.75) * 100 = -275, less 1.00 and 0.50
    #   G: 150 short: (24.20 - 25.00) * 150 = -120, less 2.00, less the dividend of 60
    #   H: (24.00 - 25.20) * 100 = -120, less 2.00
    found = result.trades[["entry_tag", "quantity", "entry_price", "exit_price", "pnl"]]
    expected = [
        ("A", 100, 24.75, 27.00, 223.50),
        ("A", 100, 24.75, 23.00, -176.00),
        ("C", 100, 25.75, 23.00, -276.50),
        ("F", -150, 24.20, 25.00, -182.00),
        ("H", 100, 25.20, 24.00, -122.00),
    ]
    for row, wanted in zip(found.itertuples(index=False), expected, strict=True):
        assert tuple(row) == pytest.approx(wanted)
    assert result.trades["pnl"].sum() == pytest.approx(9_467 - 10_000)


def test_what_the_strategy_saw(result: BacktestResult) -> None:
    assert [str(o.created) for o in result.run.orders] == sorted(
        str(o.created) for o in result.run.orders
    )
    # The half-day's bar is there at 13:00, the others at 16:00.
    closes = [clock(t)[11:] for t in result.run.times.tolist()]
    assert closes == ["16:00"] * 6 + ["13:00"] + ["16:00"] * 5
