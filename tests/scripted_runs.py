"""Small markets and strategies that follow a script, for tests of the engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from algorithms import Algorithm, Context, Fill, NoSlippage
from algorithms.account import Account
from algorithms.blotter import Costs
from algorithms.engine import Engine
from algorithms.frames import market_of
from algorithms.market import MarketData
from algorithms.series import AdjustmentStep, ShareAction

PlainBar = tuple[float, float, float, float]
FLAT: PlainBar = (100.0, 100.0, 100.0, 100.0)
FREE = Costs(slippage=NoSlippage())


def days(bars: Sequence[Sequence[float]], start: str = "2023-01-03") -> pd.DataFrame:
    """Return daily bars on weekdays; a fifth number is the volume."""
    index = pd.bdate_range(start, periods=len(bars))
    rows = [(*bar, 1e6) if len(bar) == 4 else tuple(bar) for bar in bars]
    return pd.DataFrame(rows, columns=["open", "high", "low", "close", "volume"], index=index)


def minutes(
    bars: Sequence[Sequence[float]], start: str = "2023-01-03 09:30", every: str = "1min"
) -> pd.DataFrame:
    frame = days(bars)
    frame.index = pd.date_range(start, periods=len(bars), freq=every, tz="America/New_York")
    return frame


def midnight(day: str) -> int:
    return int(pd.Timestamp(day, tz="America/New_York").value // 1000)


def instant(moment: str) -> int:
    """Return New York time as microseconds UTC."""
    return midnight(moment)


def clock(us: int) -> str:
    return str(pd.Timestamp(us, unit="us", tz="UTC").tz_convert("America/New_York"))[:16]


class Scripted(Algorithm):
    """Does at the bar of each number what the script says; notes what it saw."""

    symbols = ("X",)

    def __init__(
        self, script: Mapping[int, Callable[[Context], Any]] | None = None, **given: Any
    ) -> None:
        super().__init__(**given)
        self.script = dict(script or {})
        self.calls = 0
        self.seen: list[Any] = []
        self.heard: list[Fill] = []
        self.look: Callable[[Context], Any] | None = None

    def on_bar(self, ctx: Context) -> None:
        self.calls += 1
        if self.look is not None:
            self.seen.append(self.look(ctx))
        do = self.script.get(self.calls)
        if do is not None:
            do(ctx)

    def on_fill(self, ctx: Context, fill: Fill) -> None:
        self.heard.append(fill)


def engine_on(
    market: MarketData | pd.DataFrame | Mapping[str, pd.DataFrame],
    algorithm: Algorithm,
    *,
    cash: float = 100_000.0,
    costs: Costs = FREE,
    steps: Sequence[AdjustmentStep] = (),
    actions: Sequence[ShareAction] = (),
    run: bool = True,
) -> Engine:
    """Return an engine that has gone through all of a market; actions are those of X."""
    if not isinstance(market, MarketData):
        frames = market if isinstance(market, Mapping) else {"X": market}
        market = market_of(frames, list(algorithm.symbols), algorithm.timeframe, algorithm.session)
    if steps or actions:
        market.set_actions("X", steps, actions)
    engine = Engine(algorithm, market, Account(cash), costs)
    moments = market.moments(tuple(algorithm.symbols), engine.timeframe, 0, 2**62)
    engine.begin(int(moments[0]) - 1)
    if run:
        engine.advance(2**62)
    return engine


def follow(engine: Engine) -> list[tuple[float, float]]:
    """Advance moment by moment; return cash and equity after each."""
    symbols = tuple(engine.algorithm.symbols)
    found = []
    for moment in engine.market.moments(symbols, engine.timeframe, engine.now, 2**62).tolist():
        engine.advance(moment)
        found.append((engine.account.cash, engine.equity()))
    return found


def fills_of(engine: Engine) -> list[tuple[str, float, float]]:
    """Return day or minute in New York, quantity and price of each fill."""
    return [(clock(f.time), f.quantity, f.price) for f in engine.blotter.fills]


class Restless(Algorithm):
    """Trades at random from a seed and what it sees: every kind of order, on every symbol."""

    symbols = ("X", "Y")
    indicators = {"average": "sma_3", "strength": "rsi_4"}
    fractional = False

    def __init__(self, seed: int = 0, **given: Any) -> None:
        super().__init__(**given)
        self.state["draws"] = 0
        self.seed = seed

    def draw(self) -> float:
        """Return a number in [0, 1) that follows from the seed and how many were drawn."""
        self.state["draws"] += 1
        return float(np.random.default_rng([self.seed, self.state["draws"]]).random())

    def on_bar(self, ctx: Context) -> None:
        for symbol in ctx.symbols:
            view = ctx[symbol]
            if not view.bars:
                continue
            if self.draw() < 0.1:
                ctx.cancel_all(symbol)
            if self.draw() < 0.5:
                continue
            price, side = view.price, 1 if self.draw() < 0.5 else -1
            if view.close[-1] > view.average[-1]:
                side = -side
            size = side * (1 + int(self.draw() * 300))
            tif = "day" if self.draw() < 0.3 else "gtc"
            near = 1 - side * self.draw() * 0.01
            far = 1 + side * self.draw() * 0.01
            kind = int(self.draw() * 6)
            if kind == 0:
                ctx.order(size, symbol, tif=tif)
            elif kind == 1:
                ctx.order(size, symbol, limit=price * near, tif=tif)
            elif kind == 2:
                ctx.order(size, symbol, stop=price * far, tif=tif)
            elif kind == 3:
                ctx.order(size, symbol, stop=price * far, limit=price * far * near, tif=tif)
            elif kind == 4:
                ctx.order(
                    size, symbol, stop_loss=price * (1 - side * 0.01),
                    take_profit=price * (1 + side * 0.01),
                )  # fmt: skip
            else:
                ctx.order_target_percent(self.draw() - 0.5, symbol)


def random_frame(seed: int, count: int, missing: float = 0.0, every: str = "1min") -> pd.DataFrame:
    """Return bars of a random walk in cents over one day and more, some of them missing."""
    rng = np.random.default_rng(seed)
    close = np.round(100 * np.exp(np.cumsum(rng.normal(0, 0.004, count))), 2)
    opened = np.round(np.r_[100.0, close[:-1]] * np.exp(rng.normal(0, 0.001, count)), 2)
    high = np.maximum(opened, close) + np.round(rng.exponential(0.2, count), 2)
    low = np.minimum(opened, close) - np.round(rng.exponential(0.2, count), 2)
    volume = rng.integers(0, 5_000, count).astype(float)
    frame = minutes(list(zip(opened, high, low, close, volume, strict=True)), every=every)
    return frame[rng.random(count) >= missing]


def clone(algorithm: Algorithm) -> Algorithm:
    return copy.deepcopy(algorithm)
