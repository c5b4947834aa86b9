"""Which orders belong together, and what the broker calls them. Thread-safe; kept in memory.

A bracket given to Alpaca is one request: its exits get ids of Alpaca's choosing, the client order
id included. They are known again by their part in it: the take-profit has a limit and no stop
price, the stop-loss a stop price.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from algorithms.orders import Order, OrderState
from algorithms.venues.alpaca_wire import state_of, text_of

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Member:
    symbol: str
    parent: str | None
    twin: str | None
    is_stop: bool

    @property
    def holders(self) -> tuple[str, ...]:
        """The orders that it may be a leg of: its entry, and the take-profit beside a stop-loss."""
        twin = self.twin if self.is_stop else None
        return tuple(i for i in (self.parent, twin) if i is not None)


class Families:
    """The orders of ours that are tied to others, and the broker's ids of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: dict[str, _Member] = {}
        self._names: dict[str, str] = {}
        self._resolved: set[str] = set()
        self._watched: set[str] = set()
        self._native: dict[str, str] = {}
        """Orders that the broker keeps as legs, and the order that it keeps them with."""

    def learn(self, orders: Iterable[Order], *, given: bool = False) -> None:
        """Take note of orders of ours; `given` ones may be at the broker already."""
        with self._lock:
            for o in orders:
                member = _Member(o.symbol, o.parent, o.twin, o.stop is not None)
                self._members[o.id] = member
                if not given or o.id in self._native:
                    continue
                # An exit that waits for its entry has not been given beside its twin.
                waits = o.state is OrderState.HELD
                holders = {o.parent} if waits else set(member.holders)
                self._watched |= {h for h in holders if h is not None} - self._resolved

    def expect(self, order_id: str) -> None:
        """Take note that an order is being given with others tied to it."""
        with self._lock:
            self._watched.add(order_id)
            self._resolved.discard(order_id)

    def knows(self, order_id: str) -> bool:
        with self._lock:
            return order_id in self._members

    def name(self, broker_id: str, order_id: str) -> None:
        """Take note of what the broker calls an order."""
        with self._lock:
            self._names[broker_id] = order_id

    def ours(self, broker_id: str) -> str | None:
        """Return our id of what the broker calls `broker_id`."""
        with self._lock:
            return self._names.get(broker_id)

    def note(self, order_id: str, record: Record) -> set[str]:
        """Take note of the broker's record of an order, legs included; return the ids of ours
        that its legs are."""
        found = set()
        with self._lock:
            self._names[text_of(record, "id")] = order_id
            for leg in record.get("legs") or ():
                for ident in self._members:
                    if self._belongs(ident, order_id) and self._is(ident, leg):
                        self._names[text_of(leg, "id")] = ident
                        self._native[ident] = order_id
                        found.add(ident)
            self._resolved.add(order_id)
            self._watched.difference_update(found)
            legs = record.get("legs") or ()
            if legs and not all(state_of(each).final for each in (record, *legs)):
                self._watched.add(order_id)
            else:
                self._watched.discard(order_id)
        return found

    def absent(self, order_id: str) -> None:
        """Take note that the broker does not have an order."""
        with self._lock:
            self._watched.discard(order_id)

    def leg(self, order_id: str, holder: str, record: Record) -> Record | None:
        """Return the leg of `holder` that is our order `order_id`."""
        self.note(holder, record)
        for leg in record.get("legs") or ():
            if self.ours(text_of(leg, "id")) == order_id:
                return dict(leg)
        return None

    def holders(self, order_id: str) -> list[str]:
        """Return the orders of which `order_id` may be a leg."""
        with self._lock:
            member = self._members.get(order_id)
        if member is None:
            return []
        return list(member.holders)

    def native_holder(self, order_id: str) -> str | None:
        """Return the order that the broker keeps `order_id` with, as far as is known."""
        with self._lock:
            return self._native.get(order_id)

    def waits_for(self, order_id: str, holder: str) -> bool:
        """Whether `order_id` comes to life with the fill of `holder`."""
        with self._lock:
            member = self._members.get(order_id)
        return member is not None and member.parent == holder

    def watched(self) -> list[str]:
        """Return the orders with which the broker keeps others, or may, that are not over."""
        with self._lock:
            return sorted(self._watched)

    def unresolved(self, symbol: str) -> list[str]:
        """Return the orders on a symbol that others are tied to, whose legs were never looked up."""
        with self._lock:
            members = [m for m in self._members.values() if m.symbol == symbol]
            return sorted({h for m in members for h in m.holders} - self._resolved)

    def _belongs(self, order_id: str, holder: str) -> bool:
        return holder in self._members[order_id].holders

    def _is(self, order_id: str, leg: Record) -> bool:
        return self._members[order_id].is_stop == (leg.get("stop_price") is not None)
