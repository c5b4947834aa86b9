"""Where we differ from backtesting.py on purpose, one small test each that shows both.

1.  The first `on_bar` is at the first bar at which every indicator has a value; theirs one later.
2.  An order that cannot be paid for in full is filled as far as it can; theirs is cancelled.
3.  A share of equity is turned into shares at the close it was decided on; theirs at the fill.
4.  Slippage is paid on every fill; their spread on what opens a trade.
5.  A stop-limit order whose stop is jumped over fills at the open, which traded; theirs at the
    stop, which did not.
6.  A stop-limit order with one price for both fills as the stop is reached; theirs waits.
7.  A stop-loss counts in the bar in which its entry filled by a limit or a stop; theirs waits for
    the next bar, and warns.
8.  A take-profit waits for the next bar after such an entry; theirs fills at once after a stop.
9.  A bracket closes what there is of the position; theirs belongs to the trade it came with.
10. What is open at the end is valued at the last close; theirs is closed at the last open if asked.
11. A run goes on with what is left below 0; theirs ends, with an equity of 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from backtesting import Strategy

from algorithms import Algorithm, BasisPoints, Context, OrderState
from algorithms.result import BacktestResult
from tests.backtesting_twins import Peer, ours, peer

Bars = list[tuple[float, float, float, float]]
FLAT = (100.0, 100.0, 100.0, 100.0)


def frame_of(bars: Bars) -> pd.DataFrame:
    index = pd.bdate_range("2023-01-03", periods=len(bars))
    frame = pd.DataFrame(bars, columns=["open", "high", "low", "close"], index=index)
    return frame.assign(volume=1e6)


def both(
    bars: Bars,
    mine: Callable[[Context], Any],
    theirs: Callable[[Any], Any],
    at: int = 2,
    *,
    cash: float = 100_000.0,
    slippage: Any = None,
    **options: Any,
) -> tuple[BacktestResult, Peer]:
    """Run one call at the bar of number `at` on both sides; flat bars stand before."""

    class Mine(Algorithm):
        symbols = ("X",)

        def on_bar(self, ctx: Context) -> None:
            if ctx["X"].bars == at:
                mine(ctx)

    class Theirs(Strategy):  # type: ignore[misc]
        def init(self) -> None: ...

        def next(self) -> None:
            if len(self.data) == at:
                theirs(self)

    frame = frame_of([FLAT, FLAT, *bars])
    extra = {} if slippage is None else {"slippage": slippage}
    return ours(frame, Mine(), cash, **extra), peer(frame, Theirs, cash, **options)


def prices(result: BacktestResult) -> list[float]:
    return [fill.price for fill in result.run.fills]


def test_1_the_first_call_is_a_bar_earlier() -> None:
    seen: dict[str, int] = {}

    class Mine(Algorithm):
        symbols = ("X",)
        indicators = {"average": "sma_3"}

        def on_bar(self, ctx: Context) -> None:
            seen.setdefault("ours", ctx["X"].bars)

    class Theirs(Strategy):  # type: ignore[misc]
        def init(self) -> None:
            self.average = self.I(lambda x: pd.Series(x).rolling(3).mean(), self.data.Close)

        def next(self) -> None:
            seen.setdefault("theirs", len(self.data))

    frame = frame_of([FLAT] * 6)
    ours(frame, Mine())
    peer(frame, Theirs)
    assert seen == {"ours": 3, "theirs": 4}


def test_2_what_cannot_be_paid_for_is_left_out() -> None:
    mine, theirs = both([FLAT, FLAT], lambda ctx: ctx.order(1_500), lambda s: s.buy(size=1_500))
    assert [fill.quantity for fill in mine.run.fills] == [1_000]
    order = mine.run.orders[0]
    assert (order.state, order.reason) == (
        OrderState.CANCELED, "the account cannot pay for more"
    )  # fmt: skip
    assert theirs.equity.eq(100_000).all()
    assert any("insufficient margin" in text for text in theirs.warnings)


def test_3_a_share_of_equity_is_sized_at_the_close_it_was_decided_on() -> None:
    jump = (80.0, 80.0, 80.0, 80.0)
    mine, theirs = both(
        [jump, jump, FLAT], lambda ctx: ctx.order_target_percent(0.5), lambda s: s.buy(size=0.5)
    )
    assert mine.run.fills[0].quantity == 500
    assert theirs.equity.iloc[-1] == 100_000 + 625 * 20


def test_4_slippage_is_paid_on_both_sides() -> None:
    def mine(ctx: Context) -> None:
        ctx.order(100)
        ctx.order(-100)

    def theirs(s: Any) -> None:
        s.buy(size=100)
        s.sell(size=100)

    found, wanted = both([FLAT, FLAT], mine, theirs, slippage=BasisPoints(100), spread=0.01)
    assert prices(found) == [101.0, 99.0]
    assert found.equity.iloc[-1] == 100_000 - 200
    assert wanted.trades[["entry_price", "exit_price"]].to_numpy().tolist() == [[101.0, 100.0]]
    assert wanted.equity.iloc[-1] == 100_000 - 100


def test_5_a_stop_limit_that_is_jumped_over_fills_at_the_open() -> None:
    gap = (105.0, 108.0, 104.0, 106.0)
    mine, theirs = both(
        [gap, gap],
        lambda ctx: ctx.order(100, stop=102, limit=110),
        lambda s: s.buy(size=100, stop=102, limit=110),
    )
    assert prices(mine) == [105.0]
    # 102 is below all that was traded on that day.
    assert theirs.equity.iloc[-1] == 100_000 + 100 * (106 - 102)


def test_6_a_stop_limit_with_one_price_fills_as_it_is_reached() -> None:
    rise = (100.0, 104.0, 99.0, 103.0)
    after = (103.0, 105.0, 103.0, 104.0)
    mine, theirs = both(
        [rise, after],
        lambda ctx: ctx.order(100, stop=102, limit=102),
        lambda s: s.buy(size=100, stop=102, limit=102),
    )
    assert prices(mine) == [102.0]
    assert theirs.equity.eq(100_000).all()


def test_7_a_stop_loss_counts_in_the_bar_its_entry_filled_in() -> None:
    dive = (100.0, 101.0, 90.0, 97.0)
    calm = (97.0, 98.0, 96.0, 97.0)
    mine, theirs = both(
        [dive, calm, calm],
        lambda ctx: ctx.order(100, limit=98, stop_loss=95),
        lambda s: s.buy(size=100, limit=98, sl=95),
    )
    assert prices(mine) == [98.0, 95.0]
    assert mine.run.fills[0].time == mine.run.fills[1].time
    # Theirs is still in the market, and says that this is dubious.
    assert theirs.trades.empty
    assert theirs.equity.iloc[-1] == 100_000 - 100 * (98 - 97)
    assert any("dubious" in text for text in theirs.warnings)


def test_8_a_take_profit_waits_for_the_bar_after_a_stop_entry() -> None:
    rise = (100.0, 110.0, 99.0, 104.0)
    after = (104.0, 105.0, 103.0, 104.0)
    mine, theirs = both(
        [rise, after],
        lambda ctx: ctx.order(100, stop=102, take_profit=106),
        lambda s: s.buy(size=100, stop=102, tp=106),
    )
    assert prices(mine) == [102.0]
    assert theirs.trades[["entry_price", "exit_price"]].to_numpy().tolist() == [[102.0, 106.0]]


def test_9_a_bracket_closes_the_position_not_a_trade() -> None:
    dive = (100.0, 100.0, 90.0, 92.0)

    def mine(ctx: Context) -> None:
        ctx.order(100, stop_loss=95)
        ctx.order(-40)

    def theirs(s: Any) -> None:
        s.buy(size=100, sl=95)
        s.sell(size=40)

    found, wanted = both([FLAT, dive, FLAT], mine, theirs)
    # The same here: 40 of the 100 are gone as the stop comes, so it sells 60.
    assert [fill.quantity for fill in found.run.fills] == [100, -40, -60]
    assert sorted(wanted.trades["quantity"]) == [40, 60]

    def two(ctx: Context) -> None:
        ctx.order(100)
        ctx.order(100, stop_loss=95)
        ctx.order(-100)

    def their_two(s: Any) -> None:
        s.buy(size=100)
        s.buy(size=100, sl=95)
        s.sell(size=100)

    found, wanted = both([FLAT, dive, FLAT], two, their_two)
    # First in, first out on both sides: what is left is the trade with the bracket.
    assert prices(found)[-1] == 95.0
    assert len(wanted.trades) == 2

    def other(ctx: Context) -> None:
        ctx.order(100, stop_loss=95)
        ctx.order(100)
        ctx.order(-100)

    def their_other(s: Any) -> None:
        s.buy(size=100, sl=95)
        s.buy(size=100)
        s.sell(size=100)

    found, wanted = both([FLAT, dive, FLAT], other, their_other)
    # Theirs went with the trade that was sold; ours still guards what is left of the position.
    assert [fill.quantity for fill in found.run.fills] == [100, 100, -100, -100]
    assert prices(found)[-1] == 95.0
    assert len(wanted.trades) == 1


def test_10_what_is_open_at_the_end_is_valued_at_the_last_close() -> None:
    last = (104.0, 110.0, 103.0, 108.0)
    mine, theirs = both(
        [FLAT, last],
        lambda ctx: ctx.order(100),
        lambda s: s.buy(size=100),
        finalize_trades=True,
    )
    assert mine.trades["closed"].tolist() == [False]
    assert mine.equity.iloc[-1] == 100_000 + 100 * 8
    assert theirs.trades["exit_price"].tolist() == [104.0]


def test_11_a_run_goes_on_below_nothing() -> None:
    up = (250.0, 250.0, 250.0, 250.0)
    mine, theirs = both([FLAT, up, FLAT], lambda ctx: ctx.order(-1_000), lambda s: s.sell(size=999))
    np.testing.assert_array_equal(mine.equity.to_numpy()[-2:], [-50_000.0, 100_000.0])
    assert theirs.equity.iloc[-1] == 0
