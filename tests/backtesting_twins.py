"""The same strategies written for backtesting.py and for us, and a comparison of what they did.

backtesting.py fills without slippage at the bar's prices as we do; the strategies trade whole
shares that both can pay for. Their indicators are the same arrays.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import talib
from backtesting import Backtest, Strategy

from algorithms import Algorithm, Context, NoFees, NoSlippage, Param, Percent, backtest
from algorithms.result import BacktestResult

CASH = 1_000_000.0


@dataclass
class Peer:
    """What backtesting.py did."""

    trades: pd.DataFrame
    """entry_time, exit_time, quantity, entry_price, exit_price; closed ones, by exit and entry."""
    equity: pd.Series[float]
    warnings: list[str] = field(default_factory=list)


class SmaCross(Algorithm):
    indicators = {"fast": "sma_{fast}", "slow": "sma_{slow}"}
    fast = Param(10)
    slow = Param(30)
    lot = Param(100)

    def on_bar(self, ctx: Context) -> None:
        fast, slow = ctx.fast, ctx.slow
        if fast[-1] > slow[-1] and fast[-2] <= slow[-2]:
            ctx.order_target(self.lot)
        elif fast[-1] < slow[-1] and fast[-2] >= slow[-2]:
            ctx.order_target(-self.lot)


class PeerSmaCross(Strategy):  # type: ignore[misc]
    fast, slow, lot = 10, 30, 100

    def init(self) -> None:
        self.quick = self.I(talib.SMA, self.data.Close.astype(float), self.fast)
        self.tardy = self.I(talib.SMA, self.data.Close.astype(float), self.slow)

    def next(self) -> None:
        quick, tardy = self.quick, self.tardy
        if quick[-1] > tardy[-1] and quick[-2] <= tardy[-2]:
            self.buy(size=self.lot - self.position.size)
        elif quick[-1] < tardy[-1] and quick[-2] >= tardy[-2]:
            self.sell(size=self.lot + self.position.size)


class RsiReversion(Algorithm):
    indicators = {"rsi": "rsi_14"}
    low = Param(35)
    high = Param(60)

    def on_bar(self, ctx: Context) -> None:
        # The first bar with an RSI is one that backtesting.py does not show.
        if ctx[ctx.symbols[0]].bars < 16:
            return
        held = ctx.position(ctx.symbols[0])
        if not held and ctx.rsi[-1] < self.low:
            ctx.order(int(ctx.equity * 0.5 / ctx.close[-1]))
        elif held and ctx.rsi[-1] > self.high:
            ctx.close_position()


class PeerRsiReversion(Strategy):  # type: ignore[misc]
    low, high = 35, 60

    def init(self) -> None:
        self.rsi = self.I(talib.RSI, self.data.Close.astype(float), 14)

    def next(self) -> None:
        if not self.position and self.rsi[-1] < self.low:
            self.buy(size=int(self.equity * 0.5 / self.data.Close[-1]))
        elif self.position and self.rsi[-1] > self.high:
            self.position.close()


class Dips(Algorithm):
    """Buys below the market and sells above it, by limit orders that it moves every few bars."""

    share = Param(0.004)

    def on_bar(self, ctx: Context) -> None:
        if ctx[ctx.symbols[0]].bars < 2:
            return
        if ctx[ctx.symbols[0]].bars % 5 == 0:
            ctx.cancel_all()
        if ctx.orders:
            return
        if ctx.position(ctx.symbols[0]) > 0:
            ctx.order(-100, limit=ctx.close[-1] * (1 + self.share))
        else:
            ctx.order(100, limit=ctx.close[-1] * (1 - self.share))


class PeerDips(Strategy):  # type: ignore[misc]
    share = 0.004

    def init(self) -> None: ...

    def next(self) -> None:
        if len(self.data) % 5 == 0:
            for order in list(self.orders):
                order.cancel()
        if self.orders:
            return
        if self.position.size > 0:
            self.sell(size=100, limit=self.data.Close[-1] * (1 + self.share))
        else:
            self.buy(size=100, limit=self.data.Close[-1] * (1 - self.share))


class Breakouts(Algorithm):
    """Turns round by stop orders above and below the market."""

    share = Param(0.005)

    def on_bar(self, ctx: Context) -> None:
        if ctx[ctx.symbols[0]].bars < 2:
            return
        if ctx[ctx.symbols[0]].bars % 7 == 0:
            ctx.cancel_all()
        if ctx.orders:
            return
        if ctx.position(ctx.symbols[0]) > 0:
            ctx.order(-200, stop=ctx.low[-1] * (1 - self.share))
        else:
            held = ctx.position(ctx.symbols[0])
            ctx.order(100 - held, stop=ctx.high[-1] * (1 + self.share))


class PeerBreakouts(Strategy):  # type: ignore[misc]
    share = 0.005

    def init(self) -> None: ...

    def next(self) -> None:
        if len(self.data) % 7 == 0:
            for order in list(self.orders):
                order.cancel()
        if self.orders:
            return
        if self.position.size > 0:
            self.sell(size=200, stop=self.data.Low[-1] * (1 - self.share))
        else:
            self.buy(size=100 - self.position.size, stop=self.data.High[-1] * (1 + self.share))


class Brackets(Algorithm):
    """Buys and sells short at the market in turn, each with a stop-loss and a take-profit."""

    share = Param(0.01)

    def on_start(self, ctx: Context) -> None:
        self.side = 1

    def on_bar(self, ctx: Context) -> None:
        if ctx[ctx.symbols[0]].bars < 2 or ctx.position(ctx.symbols[0]) or ctx.orders:
            return
        price, away = ctx.close[-1], self.side * self.share
        ctx.order(
            100 * self.side, stop_loss=price * (1 - away), take_profit=price * (1 + 1.5 * away)
        )
        self.side = -self.side


class PeerBrackets(Strategy):  # type: ignore[misc]
    share = 0.01

    def init(self) -> None:
        self.side = 1

    def next(self) -> None:
        if self.position or self.orders:
            return
        price, away = self.data.Close[-1], self.side * self.share
        order = self.buy if self.side > 0 else self.sell
        order(size=100, sl=price * (1 - away), tp=price * (1 + 1.5 * away))
        self.side = -self.side


TWINS: dict[str, tuple[type[Algorithm], type[Strategy]]] = {
    "SMA cross": (SmaCross, PeerSmaCross),
    "RSI reversion": (RsiReversion, PeerRsiReversion),
    "limit orders": (Dips, PeerDips),
    "stop orders": (Breakouts, PeerBreakouts),
    "brackets": (Brackets, PeerBrackets),
}


def peer(
    frame: pd.DataFrame,
    strategy: type[Strategy],
    cash: float = CASH,
    commission: Any = 0.0,
    **options: Any,
) -> Peer:
    """Run backtesting.py on a frame of bars; the trades that are still open are left open."""
    params = options.pop("params", {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        test = Backtest(
            frame.rename(columns=str.title), strategy, cash=cash, commission=commission, **options
        )
        with patch("backtesting.backtesting._tqdm", lambda bars, **_: bars):
            stats: Any = test.run(**params)
    broker = stats["_strategy"]._broker
    rows = [
        (frame.index[t.entry_bar], frame.index[t.exit_bar], t.size, t.entry_price, t.exit_price)
        for t in broker.closed_trades
    ]
    columns = ["entry_time", "exit_time", "quantity", "entry_price", "exit_price"]
    trades = pd.DataFrame(rows, columns=columns).sort_values(columns, ignore_index=True)
    curve = pd.Series(broker._equity, index=frame.index).dropna()
    return Peer(trades, curve, [str(w.message) for w in caught])


def ours(
    frame: pd.DataFrame,
    algorithm: Algorithm,
    cash: float = CASH,
    commission: float = 0.0,
    **options: Any,
) -> BacktestResult:
    """Run our engine with backtesting.py's fill settings."""
    fees = Percent(commission) if commission else NoFees()
    options.setdefault("slippage", NoSlippage())
    return backtest(algorithm, frame, cash=cash, fees=fees, progress=False, **options)


def assert_equal(found: BacktestResult, wanted: Peer, frame: pd.DataFrame) -> int:
    """Assert the same trades, price by price, and the same equity after each bar, to the cent."""
    columns = list(wanted.trades.columns)
    closed = found.trades[found.trades["closed"]][columns].sort_values(columns, ignore_index=True)
    assert len(closed) == len(wanted.trades)
    for name in ("entry_time", "exit_time"):
        assert (pd.DatetimeIndex(closed[name]) == pd.DatetimeIndex(wanted.trades[name])).all()
    for name in ("quantity", "entry_price", "exit_price"):
        np.testing.assert_allclose(
            closed[name].to_numpy(float), wanted.trades[name].to_numpy(float), rtol=1e-12
        )
    # Ours has a value at each bar from the first `on_bar` on; theirs begins a bar later.
    mine = pd.Series(found.equity.to_numpy(), index=frame.index[-len(found.equity) :])
    both = mine.reindex(wanted.equity.index)
    assert both.notna().all()
    np.testing.assert_allclose(both.to_numpy(), wanted.equity.to_numpy(), rtol=0, atol=0.005)
    return len(closed)
