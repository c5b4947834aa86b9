"""Trades of a run: every closing fill matched with the shares it closes, first in, first out. Pure.

A position is a queue of lots, one per opening fill. A closing fill takes shares from the oldest
lot on, and every pair of lot and fill is one trade; what a fill has left once the position is
closed opens a lot of the other side. This is the FIFO method of US tax rules (26 CFR 1.1012-1(c)).

What the account gained is what its trades gained: with all fills and actions of a run,
``equity - cash at the start == sum(trade.pnl for trade in trades)``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from algorithms.orders import Fill
from algorithms.run_record import AppliedAction

# Shares: what is left below it is an error of floating point, as in `Account.apply`.
_DUST: Final = 1e-9


class Trade(NamedTuple):
    """Shares that were bought and sold, or sold short and bought back.

    Attributes
    ----------
    symbol : str
    quantity : float
        Shares on the basis of the exit, below 0 if sold short.
    entry_time : int
    exit_time : int or None
        Microseconds UTC; None while open.
    entry_price : float
        On the share basis of the exit: splits in between divide it.
    exit_price : float
        The last known price while open.
    fees : float
        Of both sides, by quantity where a fill belongs to several trades; never below 0.
    dividends : float
        Cash the shares brought while they were held; below 0 if sold short.
    pnl : float
        ``(exit_price - entry_price) * quantity - fees + dividends``.
    entry_tag, exit_tag : str
        Of the orders; the action's kind where an action closed the trade.
    closed : bool
    """

    symbol: str
    quantity: float
    entry_time: int
    exit_time: int | None
    entry_price: float
    exit_price: float
    fees: float
    dividends: float
    pnl: float
    entry_tag: str = ""
    exit_tag: str = ""
    closed: bool = True

    @property
    def return_on_entry(self) -> float:
        """`pnl` as a share of what the entry cost, or brought; NaN at an entry price of 0."""
        cost = abs(self.entry_price * self.quantity)
        return self.pnl / cost if cost else math.nan


class _Lot:
    """Shares of one fill that are still held."""

    __slots__ = ("dividends", "fee", "price", "quantity", "tag", "time")

    def __init__(self, quantity: float, fill: Fill, fee: float) -> None:
        self.quantity = quantity
        self.price = fill.price
        self.time = fill.time
        self.fee = fee
        self.dividends = 0.0
        self.tag = fill.tag


def trades_of(
    fills: Iterable[Fill],
    *,
    actions: Iterable[AppliedAction] = (),
    last_prices: Mapping[str, float] | None = None,
) -> list[Trade]:
    """Return the trades that `fills` make, from an account without positions.

    Parameters
    ----------
    fills : iterable of Fill
        In order of time.
    actions : iterable of AppliedAction
        In order of time; one at the instant of a fill comes before it. A ratio multiplies the
        shares of the lots and divides their prices; cash is shared by the lots, or closes
        `paid_out` shares of the oldest.
    last_prices : mapping of str to float, optional
        What open shares are worth; by default the price of the symbol's last fill.

    Returns
    -------
    list of Trade
        Closed ones in order of their exits, then open ones by symbol and entry.
    """
    lots: dict[str, deque[_Lot]] = {}
    trades: list[Trade] = []
    prices: dict[str, float] = {}
    waiting = deque(actions)
    for fill in fills:
        while waiting and waiting[0].time <= fill.time:
            _apply(waiting.popleft(), lots, prices, trades)
        queue = lots.get(fill.symbol)
        if queue is None:
            queue = lots[fill.symbol] = deque()
        prices[fill.symbol] = fill.price
        _fill(queue, fill, trades)
    for action in waiting:
        _apply(action, lots, prices, trades)
    for symbol in sorted(lots):
        price = (last_prices or {}).get(symbol, math.nan)
        if math.isnan(price):
            price = prices[symbol]
        trades += [_trade(symbol, lot, lot.quantity, None, price, 0.0, "") for lot in lots[symbol]]
    return trades


def _fill(queue: deque[_Lot], fill: Fill, trades: list[Trade]) -> None:
    rest, fee = fill.quantity, fill.fee
    while queue and rest * queue[0].quantity < 0:
        taken = _take(queue, rest)
        used_up = abs(rest - taken) < _DUST
        paid = fee if used_up else fee * taken / rest
        _close(queue, fill, -taken, paid, trades)
        rest, fee = (0.0, 0.0) if used_up else (rest - taken, fee - paid)
    if rest:
        queue.append(_Lot(rest, fill, fee))


def _take(queue: deque[_Lot], quantity: float) -> float:
    """Return how much of `quantity` the oldest lot closes, signed like `quantity`."""
    held = -queue[0].quantity
    nearly = abs(held - quantity) < _DUST
    return quantity if nearly or abs(quantity) < abs(held) else held


def _close(
    queue: deque[_Lot], fill: Fill, quantity: float, fee: float, trades: list[Trade]
) -> None:
    """Close `quantity` shares of the oldest lot, signed like it, at the fill's price and time."""
    lot = queue[0]
    trades.append(_trade(fill.symbol, lot, quantity, fill.time, fill.price, fee, fill.tag))
    rest = lot.quantity - quantity
    if abs(rest) < _DUST:
        queue.popleft()
        return
    kept = rest / lot.quantity
    lot.quantity, lot.fee, lot.dividends = rest, lot.fee * kept, lot.dividends * kept


def _trade(
    symbol: str, lot: _Lot, quantity: float, time: int | None, price: float, fee: float, tag: str
) -> Trade:
    share = quantity / lot.quantity
    fees, dividends = lot.fee * share + fee, lot.dividends * share
    pnl = (price - lot.price) * quantity - fees + dividends
    return Trade(
        symbol, quantity, lot.time, time, lot.price, price, fees, dividends, pnl,
        lot.tag, tag, time is not None,
    )  # fmt: skip


def _apply(
    action: AppliedAction,
    lots: dict[str, deque[_Lot]],
    prices: dict[str, float],
    trades: list[Trade],
) -> None:
    queue = lots.get(action.symbol)
    if not queue:
        return
    if action.ratio != 1.0 and action.ratio > 0:
        prices[action.symbol] /= action.ratio
        for lot in queue:
            lot.quantity *= action.ratio
            lot.price /= action.ratio
    if action.paid_out:
        price = action.cash / action.paid_out
        closing = Fill(action.time, "", action.symbol, -action.paid_out, price, 0.0, action.kind)
        _fill(queue, closing, trades)
    elif action.cash:
        held = sum(lot.quantity for lot in queue)
        for lot in queue:
            lot.dividends += action.cash * lot.quantity / held
