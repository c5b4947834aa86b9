"""What a strategy's run leaves behind and goes on from: JSON, exact to the last bit.

Python writes a float so that reading gives the same one.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import TYPE_CHECKING, Any

from algorithms.errors import JournalError
from algorithms.orders import Order, OrderState, TimeInForce

if TYPE_CHECKING:
    from algorithms.engine import Engine

log = logging.getLogger("algorithms.engine")

VERSION = 1


def order_record(order: Order) -> dict[str, Any]:
    """Return an order as JSON-representable data."""
    return {
        "id": order.id, "symbol": order.symbol, "quantity": order.quantity, "limit": order.limit,
        "stop": order.stop, "time_in_force": str(order.time_in_force), "created": order.created,
        "expires": order.expires, "parent": order.parent, "twin": order.twin, "tag": order.tag,
        "state": str(order.state), "filled": order.filled,
        "filled_price": None if math.isnan(order.filled_price) else order.filled_price,
        "triggered": order.triggered, "reason": order.reason,
    }  # fmt: skip


def order_of(record: dict[str, Any]) -> Order:
    """Return the order that `order_record` wrote down."""
    fields = dict(record)
    fields["time_in_force"] = TimeInForce(fields["time_in_force"])
    fields["state"] = OrderState(fields["state"])
    if fields["filled_price"] is None:
        fields["filled_price"] = math.nan
    return Order(**fields)


def snapshot_of(engine: Engine) -> dict[str, Any]:
    """Return where a run stands after its last moment."""
    account, blotter = engine.account, engine.blotter
    return {
        "version": VERSION,
        "now": engine.now,
        "cash": account.cash,
        "fees": account.fees,
        "positions": dict(account.positions),
        "orders": [order_record(order) for order in blotter.waiting.values()],
        "count": blotter.count,
        "state": copy.deepcopy(engine.algorithm.state),
    }


def resume(engine: Engine, snapshot: dict[str, Any]) -> None:
    """Let an engine go on from a snapshot, and call `on_start`, which sees all of it: positions,
    open orders, `state`.

    A restart must not show in what is traded: a process that fails and begins again ten times would
    otherwise buy ten times what `on_start` buys. So what `on_start` orders now is not sent (it was
    when the run began), and what `state` held stays; new keys are added. Waiting orders that it
    cancels are cancelled.
    """
    restore_into(engine, snapshot)
    blotter, algorithm = engine.blotter, engine.algorithm
    kept = dict(algorithm.state)
    algorithm.on_start(engine.context)
    algorithm.state.update(kept)
    for order in blotter.given:
        order.state = OrderState.REJECTED
        order.reason = "given when it began again"
        blotter.changed.pop(order.id, None)
    if blotter.given:
        log.warning(
            "%s: what on_start orders was ordered when the run began, and is not sent again",
            algorithm.name,
        )
    blotter.given.clear()
    blotter.count = snapshot["count"]


def restore_into(engine: Engine, snapshot: dict[str, Any]) -> None:
    """Let an engine stand where a snapshot was made.

    Raises
    ------
    JournalError
        It was written by another version, or names a symbol that is no longer watched.
    """
    if snapshot.get("version") != VERSION:
        raise JournalError(
            f"a snapshot of version {snapshot.get('version')}",
            cure="start the algorithm anew under another name",
        )
    blotter = engine.blotter
    orders = [order_of(record) for record in snapshot["orders"]]
    for symbol in {*snapshot["positions"], *(order.symbol for order in orders)}:
        if symbol not in engine.algorithm.symbols:
            raise JournalError(
                f"{symbol} is held or ordered, and no longer watched",
                cure=f"let the algorithm watch {symbol} until it is sold",
            )
    engine.account.cash = snapshot["cash"]
    engine.account.fees = snapshot["fees"]
    engine.account.positions = dict(snapshot["positions"])
    engine.algorithm.state = copy.deepcopy(snapshot["state"])
    blotter.count = snapshot["count"]
    blotter.adopt(orders)
