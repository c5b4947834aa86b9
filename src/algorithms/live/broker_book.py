"""What one algorithm knows of its orders at a broker, beside its engine: which of the broker's fills
are booked, and which orders ended here and may still stand there."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from algorithms.engine import Engine
from algorithms.live.broking import Belief, News
from algorithms.orders import Fill, Order, OrderState
from algorithms.persistence import order_of, order_record
from algorithms.venues import BrokerFill

log = logging.getLogger("algorithms.live")

_LATE: Final = 3_600_000_000
"""How late a broker may report a fill behind others."""
_KEPT: Final = 86_400_000_000


class BrokerBook:
    """Books what a broker says on an engine; for the thread that steps it.

    Parameters
    ----------
    began : int
        When the run began: no fill of its orders is earlier.
    """

    def __init__(self, began: int) -> None:
        self._booked: dict[str, int] = {}
        self._unsettled: dict[str, Order] = {}
        self._newest = began

    def hear(self, engine: Engine, news: News) -> list[Fill]:
        """Book fills and ends that are not booked yet; return the fills."""
        found: list[Fill] = []
        for there in news.fills:
            if there.id in self._booked:
                continue
            self._booked[there.id] = there.time
            self._newest = max(self._newest, there.time)
            found.append(self._book(engine, there))
        waiting = engine.blotter.waiting
        for order_id, state, reason in news.ended:
            order = waiting.get(order_id)
            if order is not None:
                engine.cancel(order, reason)
                order.state = state
        for order_id in news.settled:
            self._unsettled.pop(order_id, None)
        for fill in found:
            engine.algorithm.on_fill(engine.context, fill)
        return found

    def _book(self, engine: Engine, there: BrokerFill) -> Fill:
        order = engine.blotter.waiting.get(there.order_id)
        fill: Fill = there.fill
        if order is not None:
            fill = fill._replace(tag=order.tag)
            engine.blotter.book(fill, engine.now)
            return fill
        # It ended here before its fill was known: what was traded was traded.
        engine.account.apply(fill)
        ended = self._unsettled.get(there.order_id)
        if ended is None:
            log.warning("a fill of %s, which is not known any more, is booked", there.order_id)
            return fill
        paid = 0.0 if not ended.filled else ended.filled_price * ended.filled
        ended.filled += fill.quantity
        ended.filled_price = (paid + fill.price * fill.quantity) / ended.filled
        engine.blotter.changed[ended.id] = ended
        return fill._replace(tag=ended.tag)

    def note(self, changed: Iterable[Order]) -> None:
        """Take note of orders that changed: of those that ended, the broker is to hear."""
        for order in changed:
            if order.state in (OrderState.CANCELED, OrderState.EXPIRED):
                self._unsettled.setdefault(order.id, copy.copy(order))

    @property
    def unsettled(self) -> bool:
        """Whether orders ended here that may still stand at the broker."""
        return bool(self._unsettled)

    def belief(self, engine: Engine) -> Belief:
        """Return what is to hold at the broker."""
        self._forget()
        waiting = engine.blotter.waiting
        ended = [order for order in self._unsettled.values() if order.id not in waiting]
        return Belief(
            prefix=engine.blotter.prefix,
            orders=tuple(copy.copy(order) for order in (*waiting.values(), *ended)),
            positions=dict(engine.account.positions),
            booked=frozenset(self._booked),
            since=self._newest - _LATE,
        )

    def _forget(self) -> None:
        old = self._newest - _KEPT
        for fill_id in [i for i, moment in self._booked.items() if moment < old]:
            del self._booked[fill_id]

    def snapshot(self) -> dict[str, Any]:
        """Return what it knows, JSON-representable."""
        return {
            "booked": dict(self._booked),
            "unsettled": [order_record(order) for order in self._unsettled.values()],
            "newest": self._newest,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from what `snapshot` returned."""
        self._booked = dict(snapshot["booked"])
        self._unsettled = {record["id"]: order_of(record) for record in snapshot["unsettled"]}
        self._newest = snapshot["newest"]
