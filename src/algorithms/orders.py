"""Orders and fills: the words of trading, without a market or an account. Pure.

Quantities are in shares, signed: above 0 buys, below 0 sells. Prices are raw prices as traded, in
the currency of the listing; instants are microseconds UTC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from algorithms.errors import OrderError


class OrderType(StrEnum):
    """What makes an order fill; the names are those of FIX and of Alpaca's trading API."""

    MARKET = "market"
    LIMIT = "limit"
    STOP = "stop"
    STOP_LIMIT = "stop_limit"


class TimeInForce(StrEnum):
    """How long an order waits: to the end of its session, or until it is filled or cancelled."""

    DAY = "day"
    GTC = "gtc"


class OrderState(StrEnum):
    """Where an order stands; the last four are final."""

    HELD = "held"
    """A child of a bracket whose parent has not filled yet."""
    OPEN = "open"
    FILLED = "filled"
    CANCELED = "canceled"
    EXPIRED = "expired"
    REJECTED = "rejected"

    @property
    def final(self) -> bool:
        return self is not OrderState.OPEN and self is not OrderState.HELD


@dataclass(slots=True, eq=False)
class Order:
    """One order. Give it through `Context.order` and its kin; read its state here.

    Attributes
    ----------
    id : str
        Unique in its run and the same in every repetition of it; the client order id at a broker.
    symbol : str
    quantity : float
        Shares, signed. Changed by splits while the order waits.
    limit, stop : float or None
        Trigger prices; none for a market order, both for a stop-limit.
    time_in_force : TimeInForce
    created : int
        When it was given: the close of the bar it was decided on.
    expires : int or None
        A day order's last instant: the end of its session. Found by whoever accepts the order.
    parent : str or None
        The order whose fill brings this one to life: it is a bracket's stop-loss or take-profit.
    twin : str or None
        The other child of the bracket: when one of both fills, the other is cancelled.
    tag : str
        The author's own word for it.
    state : OrderState
    filled : float
        Shares filled so far, signed.
    filled_price : float
        Their mean price; NaN before the first.
    triggered : bool
        A stop-limit order whose stop was reached: from then on a limit order.
    reason : str
        Why it was cancelled, rejected or reduced.
    """

    id: str
    symbol: str
    quantity: float
    limit: float | None = None
    stop: float | None = None
    time_in_force: TimeInForce = TimeInForce.GTC
    created: int = 0
    expires: int | None = None
    parent: str | None = None
    twin: str | None = None
    tag: str = ""
    state: OrderState = OrderState.OPEN
    filled: float = 0.0
    filled_price: float = math.nan
    triggered: bool = False
    reason: str = ""

    @property
    def type(self) -> OrderType:
        if self.limit is not None:
            return OrderType.LIMIT if self.stop is None else OrderType.STOP_LIMIT
        return OrderType.MARKET if self.stop is None else OrderType.STOP

    @property
    def remaining(self) -> float:
        """Shares still to be filled, signed."""
        return self.quantity - self.filled

    @property
    def buys(self) -> bool:
        return self.quantity > 0

    @property
    def is_open(self) -> bool:
        return not self.state.final


class Fill(NamedTuple):
    """A part of an order, or all of it, that was traded.

    Attributes
    ----------
    time : int
        The open of the bar it happened in, microseconds UTC; at a broker the moment it reports.
    order_id, symbol : str
    quantity : float
        Shares, signed.
    price : float
        Paid or received for a share, slippage included.
    fee : float
        Paid beside it, never below 0.
    tag : str
        The order's.
    """

    time: int
    order_id: str
    symbol: str
    quantity: float
    price: float
    fee: float = 0.0
    tag: str = ""


def check_order(
    symbol: str, quantity: float, limit: float | None, stop: float | None, fractional: bool
) -> None:
    """Refuse what cannot be meant.

    Raises
    ------
    OrderError
        The quantity is 0, not finite, or broken where whole shares are traded; a price is not
        above 0. Nothing was sent.
    """
    if not math.isfinite(quantity) or quantity == 0:
        raise OrderError(
            f"an order of {quantity} shares of {symbol}",
            cure="give a finite quantity other than 0; below 0 sells",
        )
    if not fractional and quantity != int(quantity):
        raise OrderError(
            f"an order of {quantity:g} shares of {symbol}, where whole ones are traded",
            cure="round the quantity, or set fractional = True in the algorithm",
        )
    if limit is None and stop is None:
        return
    for name, price in (("limit", limit), ("stop", stop)):
        if price is not None and not (math.isfinite(price) and price > 0):
            raise OrderError(
                f"a {name} of {price} for {symbol}", cure="give a finite price above 0"
            )
