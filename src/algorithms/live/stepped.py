"""What one call of an algorithm leaves, as plain data: nothing an author does later changes it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from algorithms.engine import Engine
from algorithms.live.broker_book import BrokerBook
from algorithms.live.broking import Belief
from algorithms.live.records import Delivery, SessionEquity
from algorithms.live.risk import RiskGuard
from algorithms.orders import Fill, Order, OrderState

MOST_REJECTED: Final = 100
"""Refused orders of one step that are stored; the rest is counted only."""


@dataclass(frozen=True)
class Stepped:
    """What one call of an algorithm did, as plain data.

    Attributes
    ----------
    cursor : int
    snapshot : str
        JSON.
    orders : sequence of Order
        Copies of those that are new or have changed.
    fills : sequence of Fill
    positions : dict of str to (shares, newest raw close)
    sessions : sequence of SessionEquity
        Those that ended on the way.
    cash : float
    equity : float or None
        None where no prices were at hand.
    moments : int
        Gone through.
    behind : bool
        Whether there are more up to where it was to go.
    """

    cursor: int
    snapshot: str
    orders: Sequence[Order]
    fills: Sequence[Fill]
    positions: dict[str, tuple[float, float]]
    cash: float
    equity: float | None
    sessions: Sequence[SessionEquity] = ()
    moments: int = 0
    behind: bool = False
    belief: Belief | None = None
    """What is to hold at the broker once this is stored; None with the paper venue."""


def stepped_of(
    engine: Engine,
    guard: RiskGuard,
    broker: BrokerBook | None,
    fills: Sequence[Fill],
    *,
    moments: int = 0,
    behind: bool = False,
    sessions: Sequence[SessionEquity] = (),
) -> Stepped:
    """Take what changed from an engine, which forgets what the journal is to keep."""
    account, blotter = engine.account, engine.blotter
    changed = [copy.copy(order) for order in blotter.changed.values()]
    belief = None
    if broker is not None:
        broker.note(changed)
        belief = broker.belief(engine)
    # The journal has them: what a process keeps must not grow with every order it ever gave.
    blotter.changed.clear()
    for grown in (
        blotter.orders,
        blotter.fills,
        blotter.moments,
        engine.actions,
        engine.cash_flows,
        engine.share_changes,
    ):
        cast("list[Any]", grown).clear()
    told = engine.snapshot()
    told.pop("now")
    kept = {"engine": told, "risk": guard.snapshot()}
    if broker is not None:
        kept["broker"] = broker.snapshot()
    equity = engine.equity()
    return Stepped(
        cursor=engine.now,
        snapshot=json.dumps(kept),
        orders=changed,
        fills=list(fills),
        positions={s: (q, engine.mark(s)) for s, q in account.positions.items()},
        cash=account.cash,
        equity=None if math.isnan(equity) else equity,
        sessions=sessions,
        moments=moments,
        behind=behind,
        belief=belief,
    )


def storable(orders: Sequence[Order]) -> list[Order]:
    """Return the orders to store: of refused ones without end, the first."""
    found, refused = [], 0
    for order in orders:
        if order.state.value == "rejected":
            refused += 1
            if refused > MOST_REJECTED:
                continue
        found.append(order)
    return found


def delivery_of(order: Order) -> Delivery:
    """Return what a broker is to be told of an order; what it was told already stays noted."""
    if order.state is OrderState.REJECTED:
        return Delivery.REFUSED
    if order.state is OrderState.FILLED:
        return Delivery.DONE
    return Delivery.CANCEL if order.state.final else Delivery.INTENT
