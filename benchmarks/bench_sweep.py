"""A sweep beside backtesting.py's own optimiser doing the same work, on all cores.

    python -m benchmarks.bench_sweep

Two moving averages that cross, at every point of a grid of a thousand, on 500 daily bars of each of
ten symbols, generated. Ours trades all ten in one account, in one sweep; backtesting.py knows one
symbol at a time, so that its optimiser (``method="grid"``, its default processes, one a core) runs
once for each. One of these ten is measured and counted ten times. It is an extra of development,
and nothing of the library imports it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from algorithms import Algorithm, Context, Param, sweep
from algorithms.frames import market_of
from algorithms.sweeping.workers import cores
from benchmarks.timing import Row

SYMBOLS = 10
BARS = 500
QUICK = range(2, 27)
STEADY = range(30, 70)
AT_LEAST = 5.0
_ROUNDS = 2


class Cross(Algorithm):
    """Buys a tenth of the account where the fast average rises through the slow one."""

    indicators = {"quick": "sma_{fast}", "steady": "sma_{slow}"}
    fast = Param(10, low=2)
    slow = Param(30, low=3)

    def on_bar(self, ctx: Context) -> None:
        for symbol in ctx.symbols:
            view = ctx[symbol]
            quick, steady = view.quick, view.steady
            if quick[-1] > steady[-1] and quick[-2] <= steady[-2]:
                ctx.order_target_percent(0.1, symbol)
            elif quick[-1] < steady[-1] and quick[-2] >= steady[-2]:
                ctx.order_target(0, symbol)


def bars(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0.0004, 0.015, BARS)))
    opened = close * (1 + rng.normal(0, 0.003, BARS))
    return pd.DataFrame(
        {
            "open": opened,
            "high": np.maximum(opened, close) * 1.004,
            "low": np.minimum(opened, close) * 0.996,
            "close": close,
            "volume": 1e6,
        },
        index=pd.bdate_range("2022-01-03", periods=BARS),
    )


def rows() -> Iterator[Row]:
    """Measure, and yield the lines of the report."""
    data = {f"S{n}": bars(n) for n in range(SYMBOLS)}
    market = market_of(data, tuple(data), "1day")
    ours: dict[int, float] = {}
    theirs = float("inf")
    optimise = _optimiser(data["S0"])
    for _ in range(_ROUNDS):
        for workers in (cores(), 1):
            began = time.perf_counter()
            found = sweep(Cross(symbols=tuple(data)), _grid(), market, workers=workers)
            taken = (time.perf_counter() - began) * 1000
            ours[workers] = min(ours.get(workers, taken), taken)
            assert found.tried == len(QUICK) * len(STEADY)
            assert found.failed.empty
        if optimise is not None:
            theirs = min(theirs, optimise() * SYMBOLS)
    size = f"{len(QUICK) * len(STEADY):,} x {SYMBOLS} x {BARS}"
    if optimise is not None:
        yield Row(
            f"sweep, {cores()} processes", size, ours[cores()], "backtesting.py optimize",
            theirs, AT_LEAST, True,
        )  # fmt: skip
    yield Row(
        f"sweep, {cores()} processes", size, ours[cores()], "in one process", ours[1], None, True
    )


def _grid() -> dict[str, Any]:
    return {"fast": QUICK, "slow": STEADY}


def _optimiser(frame: pd.DataFrame) -> Any:
    """Return what runs backtesting.py's optimiser once and returns its milliseconds."""
    try:
        # Its progress bars would be most of what is seen, and some of its time.
        os.environ.setdefault("TQDM_DISABLE", "1")
        backtesting = importlib.import_module("backtesting")
        talib = importlib.import_module("talib")
    except ImportError:
        return None

    class Theirs(backtesting.Strategy):  # type: ignore[misc, name-defined]
        fast = 10
        slow = 30

        def init(self) -> None:
            self.quick = self.I(talib.SMA, self.data.Close, self.fast)
            self.steady = self.I(talib.SMA, self.data.Close, self.slow)

        def next(self) -> None:
            if self.quick[-1] > self.steady[-1] and self.quick[-2] <= self.steady[-2]:
                self.buy()
            elif self.quick[-1] < self.steady[-1] and self.quick[-2] >= self.steady[-2]:
                self.position.close()

    # Its processes find the strategy by name.
    Theirs.__qualname__ = Theirs.__name__ = "Theirs"
    globals()["Theirs"] = Theirs
    test = backtesting.Backtest(frame.rename(columns=str.title), Theirs, cash=100_000)

    def optimise() -> float:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            began = time.perf_counter()
            test.optimize(fast=QUICK, slow=STEADY, maximize="Sharpe Ratio", method="grid")
            return (time.perf_counter() - began) * 1000

    return optimise


if __name__ == "__main__":
    for row in rows():
        print(row)
