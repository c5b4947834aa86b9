"""Orders that one request gives to Alpaca together: brackets and their kin. Pure.

==========  =====================================================  ==========================
class       what it is                                             given for
==========  =====================================================  ==========================
bracket     an entry, its take-profit and its stop-loss            both exits as children
oto         an entry and one exit                                  one exit as child
oco         a take-profit and a stop-loss, each cancels the other  a stop-loss as twin
==========  =====================================================  ==========================

Source: Alpaca, "Placing Orders": whole shares only, one time in force for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from algorithms.orders import Order, OrderType, TimeInForce
from algorithms.venues.alpaca_wire import limit_on_grid, stop_on_grid


def tied_fields(order: Order, children: Sequence[Order]) -> dict[str, Any]:
    """Return what a request for `order` says of the orders tied to it; empty where Alpaca does
    not take them together."""
    profits = [c for c in children if c.type is OrderType.LIMIT]
    losses = [c for c in children if c.stop is not None]
    simple = len(profits) <= 1 and len(losses) <= 1 and len(profits) + len(losses) == len(children)
    if not children or not simple or order.filled or order.quantity != int(order.quantity):
        return {}
    if all(c.parent == order.id for c in children):
        kind = "bracket" if len(children) == 2 else "oto"
        fits = all(c.quantity == -order.quantity and _same_force(order, c) for c in children)
    else:
        kind = "oco"
        fits = order.type is OrderType.LIMIT and not profits and _are_twins(order, losses[0])
        profits = [order]
    if not fits or len({c.time_in_force for c in children}) != 1:
        return {}
    fields: dict[str, Any] = {
        "order_class": kind,
        "time_in_force": children[0].time_in_force.value,
    }
    if profits and profits[0].limit is not None:
        fields["take_profit"] = {
            "limit_price": limit_on_grid(profits[0].limit, buys=profits[0].buys)
        }
    if losses and losses[0].stop is not None:
        fields["stop_loss"] = {"stop_price": stop_on_grid(losses[0].stop)}
        if losses[0].limit is not None:
            limit = limit_on_grid(losses[0].limit, buys=losses[0].buys)
            fields["stop_loss"]["limit_price"] = limit
    return fields


def _same_force(entry: Order, child: Order) -> bool:
    """Whether an exit's time in force can be its entry's too. A market order fills at the first
    opportunity, whatever is said of it."""
    return child.time_in_force is entry.time_in_force or (
        entry.type is OrderType.MARKET and child.time_in_force is TimeInForce.GTC
    )


def _are_twins(profit: Order, loss: Order) -> bool:
    return (
        loss.twin == profit.id
        and loss.quantity == profit.quantity
        and loss.time_in_force is profit.time_in_force
    )
