"""Strategies and bars for tests of sweeps; importable by the processes these start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from algorithms import Algorithm, BarArrays, Context, Param


def bars(seed: int, count: int = 240, start: str = "2022-01-03") -> pd.DataFrame:
    """Return daily bars of a random walk, labelled by dates."""
    rng = np.random.default_rng(seed)
    close = np.round(100 * np.exp(np.cumsum(rng.normal(0.0004, 0.015, count))), 2)
    opened = np.round(close * (1 + rng.normal(0, 0.003, count)), 2)
    return pd.DataFrame(
        {
            "open": opened,
            "high": np.maximum(opened, close) * 1.004,
            "low": np.minimum(opened, close) * 0.996,
            "close": close,
            "volume": 1e6,
        },
        index=pd.bdate_range(start, periods=count),
    )


def market(symbols: int = 2, count: int = 240) -> dict[str, pd.DataFrame]:
    return {f"S{n}": bars(n, count) for n in range(symbols)}


class Cross(Algorithm):
    """Two averages that cross, on every symbol."""

    indicators = {"fast": "sma_{quick}", "slow": "sma_{steady}"}
    quick = Param(5, low=2)
    steady = Param(20, low=3)
    share = Param(0.4)

    def on_bar(self, ctx: Context) -> None:
        for symbol in ctx.symbols:
            view = ctx[symbol]
            if view.fast[-1] > view.slow[-1]:
                if not view.position:
                    ctx.order_target_percent(self.share, symbol)
            elif view.position:
                ctx.order_target(0, symbol)


class Fragile(Cross):
    """Fails at some points, each in its own way."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        if self.quick == self.steady:
            raise ValueError("quick and steady are equal")

    def on_start(self, ctx: Context) -> None:
        if self.quick == 4:
            raise ZeroDivisionError("four")
        if self.quick == 5:
            raise SystemExit("five")


class Deadly(Cross):
    """Ends its process at some points."""

    def on_start(self, ctx: Context) -> None:
        if self.quick == 4:
            os._exit(3)
        if self.quick == 6:
            os.kill(os.getpid(), 9)


def standardised(given: BarArrays) -> Any:
    """An indicator that looks ahead: it is measured against all prices there are."""
    return (given.close - given.close.mean()) / given.close.std()


class Foreseeing(Algorithm):
    """Buys below the mean of all prices, those to come included."""

    indicators = {"level": standardised}
    below = Param(0.0)

    def on_bar(self, ctx: Context) -> None:
        for symbol in ctx.symbols:
            wanted = 0.4 if ctx[symbol].level[-1] < self.below else 0.0
            ctx.order_target_percent(wanted, symbol)


class NotedFees:
    """No fees; notes in a file each time it arrives in a process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fee(self, quantity: float, price: float) -> float:
        return 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        with self.path.open("a") as file:
            file.write(f"{os.getpid()}\n")
