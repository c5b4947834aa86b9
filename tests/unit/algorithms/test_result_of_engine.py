"""The engine's account and the trades made of its fills come to the same money."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from algorithms import Algorithm, Context, Param, Percent
from algorithms.backtest import run
from algorithms.blotter import Costs
from algorithms.frames import market_of
from algorithms.market import MarketData
from algorithms.result import BacktestResult
from algorithms.series import ShareAction
from tests.algorithm_runs import random_closes

DAYS = 160
SYMBOLS = ("AAPL", "KO")


class Restless(Algorithm):
    """Buys, sells, turns round and goes flat, by lot."""

    symbols = SYMBOLS
    seed = Param(0, low=0)

    def on_start(self, ctx: Context) -> None:
        self.rng = np.random.default_rng(self.seed)

    def on_bar(self, ctx: Context) -> None:
        for symbol in SYMBOLS:
            if self.rng.random() < 0.3:
                part = float(self.rng.choice([-0.4, -0.2, 0.0, 0.13, 0.3]))
                ctx.order_target_percent(part, symbol)


def market(seed: int) -> MarketData:
    """Two symbols with splits that leave fractions, a reverse split, and dividends."""
    rng = np.random.default_rng(seed)
    dates = pd.bdate_range("2023-01-03", periods=DAYS)
    frames = {}
    for symbol in SYMBOLS:
        close = random_closes(rng, DAYS)
        opened = np.r_[close[0], close[:-1]] * 1.002
        frames[symbol] = pd.DataFrame(
            {
                "open": opened,
                "high": np.maximum(opened, close) * 1.01,
                "low": np.minimum(opened, close) * 0.99,
                "close": close,
                "volume": 1e6,
            },
            index=dates,
        )
    found = market_of(frames, SYMBOLS, "1day")
    for symbol, actions in {
        "AAPL": [(40, "split", 1.5, 0.0), (90, "cash_dividend", 1.0, 0.55)],
        "KO": [(30, "cash_dividend", 1.0, 0.7), (75, "split", 0.1, 0.0), (99, "split", 4.0, 0.0)],
    }.items():
        series = found.of(symbol, "1day")
        series.actions = tuple(
            ShareAction(int(series.labels[at]), kind, ratio, cash)
            for at, kind, ratio, cash in actions
        )
        for at, _, ratio, _ in actions:
            series.raw[:4, at:] /= ratio
    return found


@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_account_gains_what_the_trades_gain(seed: int, fractional: bool) -> None:
    algorithm = Restless(seed=seed, fractional=fractional)
    record = run(algorithm, market(seed), 0, costs=Costs(fees=Percent(0.001), leverage=2.0))

    found = BacktestResult(record)

    assert found.trades["pnl"].sum() == pytest.approx(record.equity[-1] - record.cash, abs=1e-6)
    held = found.trades.loc[~found.trades["closed"]].groupby("symbol")["quantity"].sum()
    expected = {s: n for s, n in found.positions.iloc[-1].items() if n}
    assert dict(held) == pytest.approx(expected)
    assert found.metrics["fees"] == pytest.approx(found.trades["fees"].sum())
    assert found.metrics["dividends"] == pytest.approx(found.trades["dividends"].sum())
    assert found.metrics["dividends"] != 0
    assert len(found.actions) == 5
    assert not (fractional and found.actions["paid_out"].any())
    assert len(found.trades) > 60
    assert found.orders["state"].isin(["filled", "open", "canceled", "rejected"]).all()


def test_fractions_that_splits_leave_are_paid_for() -> None:
    runs = [BacktestResult(run(Restless(seed=n), market(n), 0)) for n in range(4)]

    paid = [n for found in runs for n in found.actions["paid_out"] if n]
    sold = [n for found in runs for n in found.trades.query("exit_tag == 'split'")["quantity"]]
    assert paid
    assert sum(sold) == pytest.approx(sum(paid))
