"""At what price an order fills inside one bar, and whether it does. Pure: the one place for both modes.

A bar says where trading began (open) and how far it went (low, high), never in which order. Where
both a good and a bad outcome fit a bar, the bad one is taken. With a buy (a sell mirrors it):

==========  ===============================================================================
market      the open
limit       if low <= limit: the lower of open and limit
stop        if high >= stop: the higher of open and stop (a gap through the stop pays the open)
stop-limit  stop reached at the open: a limit order from there on. Reached inside the bar: fills at
            the stop if limit >= stop, else waits as a limit order from the next bar on, since the
            low may have come before the stop was reached
==========  ===============================================================================

The children of a bracket live from their parent's fill on. After a parent that filled at the open
they see all of the bar, the stop-loss first. After one that filled inside the bar, the stop-loss
counts as reached if the bar's range holds it, and the take-profit waits for the next bar.
"""

from __future__ import annotations

from algorithms.orders import Order


def price_in_bar(order: Order, opened: float, high: float, low: float) -> float | None:
    """Return the price at which `order` fills in a bar, before slippage; None where it waits.

    Marks a stop-limit order whose stop was reached (`Order.triggered`).
    """
    limit, stop = order.limit, order.stop
    buys = order.quantity > 0
    if stop is None or order.triggered:
        if limit is None:
            return opened
        return _limit(buys, limit, opened, high, low)
    reached = high >= stop if buys else low <= stop
    if not reached:
        return None
    at_open = opened >= stop if buys else opened <= stop
    if limit is None:
        return opened if at_open else stop
    order.triggered = True
    if at_open:
        return _limit(buys, limit, opened, high, low)
    within = limit >= stop if buys else limit <= stop
    return stop if within else None


def _limit(buys: bool, limit: float, opened: float, high: float, low: float) -> float | None:
    if buys:
        return min(opened, limit) if low <= limit else None
    return max(opened, limit) if high >= limit else None


def stop_after_entry(order: Order, entry: float, high: float, low: float) -> float | None:
    """Return where a stop-loss fills in the bar inside which its parent filled at `entry`."""
    stop = order.stop
    if stop is None:
        return None
    if order.quantity > 0:
        return max(entry, stop) if high >= stop else None
    return min(entry, stop) if low <= stop else None


def slips(order: Order) -> bool:
    """Return whether slippage moves this order's price: a limit order's it never does."""
    return order.limit is None
