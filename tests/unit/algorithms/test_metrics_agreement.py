"""Our figures of a run of backtesting.py against its own.

Equal: return, CAGR, deepest drawdown and its duration, number of trades, hit rate, best and worst
trade, average return of a trade (their "Expectancy"), SQN, average holding, buy-and-hold return.

Different on purpose:

- *Volatility, Sharpe, Sortino, Calmar.* Theirs annualise a geometric mean return and compound the
  variance; ours follow Sharpe (1994) and Sortino & Price (1994): arithmetic mean over deviation,
  times the root of 252. Our Calmar is over CAGR, theirs over the geometric mean of 252 returns.
- *Alpha and beta.* Theirs are of logarithmic returns of bars, and alpha of whole-period returns;
  ours are of simple returns of sessions, and alpha is annual (Jensen 1968).
- *Exposure.* Theirs counts the bar a trade is closed in, ours the moments after which something
  was held.
- *Profit factor.* Theirs sums returns of trades, ours their money.
- *Average trade.* Theirs is the geometric mean of the trades' returns, ours the arithmetic one.
- *Average drawdown.* Theirs leaves out a drawdown that began with the last bar.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from backtesting import Backtest, Strategy  # type: ignore[import-untyped,unused-ignore]

from algorithms.metrics import metrics_of
from algorithms.orders import Fill
from algorithms.run_record import BacktestRun
from tests.algorithm_runs import random_closes, run_of

CASH = 100_000


class Reversal(Strategy):  # type: ignore[misc]
    """Always in the market, long or short, by two moving averages."""

    def init(self) -> None:
        def average(closes: Any, length: int) -> Any:
            return pd.Series(closes).rolling(length).mean().to_numpy()

        self.fast = self.I(average, self.data.Close, 10)
        self.slow = self.I(average, self.data.Close, 30)

    def next(self) -> None:
        if self.fast[-1] > self.slow[-1] and not self.position.is_long:
            self.position.close()
            self.buy(size=300)
        elif self.fast[-1] < self.slow[-1] and not self.position.is_short:
            self.position.close()
            self.sell(size=200)


def theirs(seed: int) -> tuple[pd.DataFrame, Any]:
    close = random_closes(np.random.default_rng(seed), 500)
    opened = np.r_[close[0], close[:-1]] * 1.001
    bars = pd.DataFrame(
        {
            "Open": opened,
            "High": np.maximum(opened, close) * 1.01,
            "Low": np.minimum(opened, close) * 0.99,
            "Close": close,
            "Volume": 1e6,
        },
        index=pd.bdate_range("2023-01-03", periods=500),
    )
    return bars, Backtest(bars, Reversal, cash=CASH, commission=0.001, finalize_trades=True).run()


def instants(dates: pd.DatetimeIndex) -> list[int]:
    return dates.tz_localize("America/New_York").as_unit("us").asi8.tolist()


def ours(bars: pd.DataFrame, stats: Any) -> BacktestRun:
    """The same run as our record: their fills and their equity."""
    fills = []
    for n, trade in enumerate(stats["_trades"].itertuples()):
        for time, size, price in (
            (trade.EntryTime, trade.Size, trade.EntryPrice),
            (trade.ExitTime, -trade.Size, trade.ExitPrice),
        ):
            fee = abs(size * price) * 0.001
            (at,) = instants(pd.DatetimeIndex([time]))
            fills.append(Fill(at, f"{n}", "AAPL", size, price, fee))
    times = instants(pd.DatetimeIndex(bars.index))
    run = run_of(times, {"AAPL": bars["Close"].to_numpy()}, fills, cash=CASH)
    first = 29  # their benchmark starts where the indicators do
    held = np.where(np.arange(len(bars)) < first, np.nan, bars["Close"])
    return replace(run, buy_and_hold=held, equity=stats["_equity_curve"]["Equity"].to_numpy())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_is_defined_alike_is_equal(seed: int) -> None:
    bars, stats = theirs(seed)
    run = ours(bars, stats)

    found = metrics_of(run)

    assert stats["# Trades"] >= 8
    percent = {
        "return": "Return [%]",
        "max_drawdown": "Max. Drawdown [%]",
        "hit_rate": "Win Rate [%]",
        "best_trade": "Best Trade [%]",
        "worst_trade": "Worst Trade [%]",
        "average_trade": "Expectancy [%]",
        "buy_and_hold_return": "Buy & Hold Return [%]",
    }
    for name, label in percent.items():
        assert found[name] * 100 == pytest.approx(stats[label], rel=1e-9), name
    assert found["trades"] == stats["# Trades"]
    assert found["sqn"] == pytest.approx(stats["SQN"], rel=1e-9)
    # Their day is the calendar's, ours has 23 or 25 hours when clocks change.
    assert found["cagr"] * 100 == pytest.approx(stats["CAGR [%]"], rel=1e-3)
    longest = stats["Max. Drawdown Duration"] / pd.Timedelta(days=1)
    assert found["max_drawdown_days"] == pytest.approx(longest, abs=1 / 24 + 1e-9)
    lasted = stats["_trades"]["Duration"].mean() / pd.Timedelta(days=1)
    assert found["average_holding_days"] == pytest.approx(lasted, abs=1 / 24)


def test_what_is_defined_otherwise_is_near() -> None:
    """The other definitions differ by compounding, not by kind: the same sign, a like size."""
    bars, stats = theirs(1)

    found = metrics_of(ours(bars, stats))

    for name, label in {
        "sharpe": "Sharpe Ratio",
        "sortino": "Sortino Ratio",
        "calmar": "Calmar Ratio",
    }.items():
        assert found[name] == pytest.approx(stats[label], rel=0.25, abs=0.1), name
    assert found["volatility"] * 100 == pytest.approx(stats["Volatility (Ann.) [%]"], rel=0.25)
    assert found["beta"] == pytest.approx(stats["Beta"], abs=0.05)
