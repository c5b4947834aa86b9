"""A run whose decisions are written down as they are made, to be compared with another's."""

from __future__ import annotations

import copy
from typing import NamedTuple

from algorithms.account import Account
from algorithms.algorithm import Algorithm
from algorithms.blotter import Costs
from algorithms.engine import Engine
from algorithms.lines import NEVER, Int64s
from algorithms.market import MarketData
from algorithms.orders import Order, TimeInForce


class Decision(NamedTuple):
    """What a strategy asked for, as it asked: later fills, splits and brackets do not change it.

    Attributes
    ----------
    time : int
        The moment, microseconds UTC.
    kind : str
        ``order`` or ``cancel``.
    """

    time: int
    kind: str
    symbol: str
    quantity: float
    limit: float | None = None
    stop: float | None = None
    take_profit: float | None = None
    stop_loss: float | None = None
    tif: str = "gtc"
    tag: str = ""

    def __str__(self) -> str:
        if self.kind == "cancel":
            return f"cancel an order for {abs(self.quantity):g} {self.symbol}"
        said = [f"{'buy' if self.quantity > 0 else 'sell'} {abs(self.quantity):g} {self.symbol}"]
        for name in ("limit", "stop", "take_profit", "stop_loss"):
            price = getattr(self, name)
            if price is not None:
                said.append(f"{name.replace('_', '-')} {price:.6g}")
        return " ".join(said)


class Recorder(Engine):
    """An engine that keeps what its strategy decided."""

    def __init__(self, algorithm: Algorithm, market: MarketData, cash: float, costs: Costs) -> None:
        self.decisions: list[Decision] = []
        self.listening = True
        super().__init__(algorithm, market, Account(cash), costs)

    def give(
        self,
        symbol: str,
        quantity: float,
        limit: float | None,
        stop: float | None,
        force: TimeInForce,
        tag: str,
        take_profit: float | None,
        stop_loss: float | None,
    ) -> Order:
        if self.listening:
            asked = (quantity, limit, stop, take_profit, stop_loss, str(force), tag)
            self.decisions.append(Decision(self.now, "order", symbol, *asked))
        return super().give(symbol, quantity, limit, stop, force, tag, take_profit, stop_loss)

    def cancel(self, order: Order, reason: str) -> bool:
        done = super().cancel(order, reason)
        if done and self.listening:
            self.decisions.append(Decision(self.now, "cancel", order.symbol, order.quantity))
        return done


def first_moment(algorithm: Algorithm, market: MarketData, since: int, costs: Costs) -> int:
    """Return when a run from an instant on calls `on_bar` first."""
    return Engine(copy.deepcopy(algorithm), market, Account(1.0), costs).ready(since)


def recorded(
    algorithm: Algorithm,
    market: MarketData,
    first: int,
    until: int = NEVER - 1,
    *,
    cash: float,
    costs: Costs,
) -> tuple[Recorder, Int64s]:
    """Run a copy of a strategy over the moments in ``[first, until]``; return it and these."""
    engine = Recorder(copy.deepcopy(algorithm), market, cash, costs)
    times = market.moments(tuple(algorithm.symbols), engine.timeframe, first - 1, until)
    engine.begin(first - 1)
    engine.advance(NEVER - 1, times)
    engine.listening = False
    engine.end()
    return engine, times
