"""At which price an order fills, given what the market did. Pure.

Of a minute nothing is known but open, high, low and close: its open is one moment, all else is
"inside". An order given in the middle of a minute waits for the next one's prices.

================  ==================================  ==========================================
order             at a price                          inside a minute, its open not having done it
================  ==================================  ==========================================
market            that price                          no
limit             that price, if it is as good        the limit, if low or high reached it
stop              that price, if it is as far         the stop, if high or low reached it
stop limit        both of the above                   the stop, if reached and within the limit
================  ==================================  ==========================================

A buy stop, once reached, buys up to 4 % above its stop price, 2.5 % from 50 dollars on.
Source: Alpaca, "Placing Orders", Stop Order.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from marketdata.sandbox.trading.book import PaperOrder

_COLLAR_BELOW_50: Final = Decimal("1.04")
_COLLAR: Final = Decimal("1.025")


def at_price(order: PaperOrder, price: Decimal) -> Decimal | None:
    """Return what the order fills at while the market trades at `price`; None if it does not.

    Marks a stop that was reached as triggered.
    """
    if order.stop_price is not None and not order.triggered:
        order.triggered = _beyond(order, price, order.stop_price)
        if not order.triggered:
            return None
    bound = _bound(order)
    return price if bound is None or _as_good(order, price, bound) else None


def inside(order: PaperOrder, high: Decimal, low: Decimal) -> Decimal | None:
    """Return what the order fills at inside a minute between `low` and `high`; None if it does
    not. Marks a stop that was reached as triggered."""
    far, good = (high, low) if order.side == "buy" else (low, high)
    stop = order.stop_price
    if stop is not None and not order.triggered:
        order.triggered = _beyond(order, far, stop)
        bound = _bound(order)
        within = bound is None or _as_good(order, stop, bound)
        return stop if order.triggered and within else None
    bound = _bound(order)
    return bound if bound is not None and _as_good(order, good, bound) else None


def _bound(order: PaperOrder) -> Decimal | None:
    """The worst price the order takes, once triggered; None takes any."""
    if order.limit_price is not None or order.stop_price is None or order.side == "sell":
        return order.limit_price
    return order.stop_price * (_COLLAR_BELOW_50 if order.stop_price < 50 else _COLLAR)


def _as_good(order: PaperOrder, price: Decimal, bound: Decimal) -> bool:
    return price <= bound if order.side == "buy" else price >= bound


def _beyond(order: PaperOrder, price: Decimal, stop: Decimal) -> bool:
    return price >= stop if order.side == "buy" else price <= stop
