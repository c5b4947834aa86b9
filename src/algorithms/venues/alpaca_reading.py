"""Reading orders and fills at Alpaca: legs under our ids, replacements, lists to their end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from algorithms.errors import VenueError
from algorithms.orders import OrderState
from algorithms.venues import BrokerFill, BrokerOrder
from algorithms.venues.alpaca_http import Requests
from algorithms.venues.alpaca_wire import (
    fill_of,
    instant_of,
    order_of,
    record_of,
    rows_of,
    state_of,
    text_of,
    unreadable,
)
from algorithms.venues.families import Families

_PAGE: Final = 500
_ACTIVITY_PAGE: Final = 100
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = 1_000_000

Record = Mapping[str, Any]


class AlpacaReading:
    """What an account's orders and fills are, as ours.

    Parameters
    ----------
    requests : Requests
    families : Families
        Which orders of ours belong together; what is learnt here is noted there.
    """

    def __init__(self, requests: Requests, families: Families) -> None:
        self._requests = requests
        self._families = families

    def find(self, order_id: str) -> BrokerOrder | None:
        """Return an order by our id; see `BrokerVenue.find`."""
        record = self.record(order_id)
        if record is None:
            return None
        holder = self._families.native_holder(order_id)
        return self._shown(record, order_id, None if holder is None else self.by_client_id(holder))

    def record(self, order_id: str) -> Record | None:
        """Return the newest record of an order of ours, a leg of another one included."""
        record = self.by_client_id(order_id)
        if record is None:
            for holder in self._families.holders(order_id):
                above = self.by_client_id(holder)
                if above is None:
                    continue
                record = self._families.leg(order_id, holder, self.whole(above))
                if record is not None:
                    break
        return None if record is None else self._newest(record)

    def by_client_id(self, order_id: str) -> Record | None:
        """Return what the broker has under a client order id of its own or ours."""
        try:
            found = self._requests.call(lambda client: client.get_order_by_client_id(order_id))
        except VenueError as error:
            if error.facts.get("status") == 404:
                return None
            raise
        record = record_of(found, "order")
        if text_of(record, "client_order_id") != order_id:
            raise unreadable("it is about another order")
        return record

    def _by_broker_id(self, broker_id: str) -> Record:
        params = {"nested": "true"}
        found = self._requests.call(lambda client: client.get(f"/orders/{broker_id}", params))
        return record_of(found, "order")

    def whole(self, record: Record) -> Record:
        """Return an order with its legs, of which a look-up by our id may not tell."""
        if record.get("legs") or record.get("order_class") in (None, "", "simple"):
            return record
        return self._by_broker_id(text_of(record, "id"))

    def _newest(self, record: Record) -> Record:
        """Follow an order that the broker has replaced: by a split, or with fewer shares left."""
        seen = {text_of(record, "id")}
        while record.get("status") == "replaced" and isinstance(record.get("replaced_by"), str):
            record = self._by_broker_id(record["replaced_by"])
            if text_of(record, "id") in seen:
                raise unreadable("two orders replace each other")
            seen.add(text_of(record, "id"))
        return record

    def _shown(self, record: Record, order_id: str, above: Record | None) -> BrokerOrder:
        """Return an order as ours, `above` being the order that the broker keeps it with."""
        holder = self._families.native_holder(order_id)
        order = order_of(record, ident=order_id, parent=holder)
        if order.state is not OrderState.HELD or holder is None or above is None:
            return order
        waits = self._families.waits_for(order_id, holder)
        if waits and state_of(above) is not OrderState.FILLED:
            return order
        # Alpaca shows the second exit of a pair as held while it watches both.
        return replace(order, state=OrderState.OPEN)

    def open_orders(self) -> list[BrokerOrder]:
        """Return every order that is not final; see `BrokerVenue.open_orders`.

        Alpaca's list leaves out orders that are held: the legs are asked for beside it.
        """
        records = {text_of(r, "id"): r for r in self._listed_open()}
        above_of: dict[str, Record] = {}
        for holder in self._families.watched():
            above = self.by_client_id(holder)
            if above is None:
                self._families.absent(holder)
                continue
            whole = above_of[holder] = self.whole(above)
            self._families.note(holder, whole)
            for leg in whole.get("legs") or ():
                records.setdefault(text_of(leg, "id"), leg)
        found = []
        for broker_id, record in records.items():
            ident = self._families.ours(broker_id) or text_of(record, "client_order_id")
            holder = self._families.native_holder(ident) or ""
            order = self._shown(record, ident, above_of.get(holder))
            if not order.state.final:
                found.append(order)
        return sorted(found, key=lambda o: (o.submitted, o.id))

    def _listed_open(self) -> list[Record]:
        found: dict[str, Record] = {}
        after = ""
        while True:
            params = {"status": "open", "limit": _PAGE, "direction": "asc", "nested": "false"}
            if after:
                params["after_order_id"] = after
            page = self._page("/orders", params)
            if not page.keys() - found.keys():
                return list(found.values())
            found |= page
            if len(page) < _PAGE:
                return list(found.values())
            after = list(page)[-1]

    def _page(self, path: str, params: Mapping[str, Any]) -> dict[str, Record]:
        """Return a page of a list by id, in the broker's order."""
        asked = dict(params)
        rows = self._requests.call(lambda client: client.get(path, asked))
        return {text_of(row, "id"): row for row in rows_of(rows, "list")}

    # ------------------------------------------------------------------------------- fills

    def fills_since(self, us: int) -> list[BrokerFill]:
        """Return every fill at or after `us`; see `BrokerVenue.fills_since`.

        Pages are asked for until an empty one: a short page does not say that it is the last.
        """
        # "After" is exclusive, and of another clock's moment than the fill's: ask from earlier.
        moment = _EPOCH + timedelta(microseconds=max(us - _SECOND, 0))
        params: dict[str, Any] = {
            "after": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "direction": "asc",
            "page_size": _ACTIVITY_PAGE,
        }
        records: dict[str, Record] = {}
        while True:
            page = self._page("/account/activities/FILL", params)
            if not page:
                break
            if not page.keys() - records.keys():
                raise unreadable("a page of fills came twice")
            records |= page
            params["page_token"] = list(page)[-1]
        wanted = [r for r in records.values() if instant_of(r, "transaction_time") >= us]
        fills = [fill_of(r, self._order_id(text_of(r, "order_id"))) for r in wanted]
        return sorted(fills, key=lambda fill: fill.time)

    def _order_id(self, broker_id: str) -> str:
        """Return our id of the order that a fill names, or the broker's client order id."""
        known = self._families.ours(broker_id)
        if known is not None:
            return known
        record = self._by_broker_id(broker_id)
        ident = text_of(record, "client_order_id")
        if self._families.knows(ident):
            self._families.note(ident, record)
            return ident
        # One of a group that an earlier process gave, or one that replaces an order of ours.
        tied = record.get("order_class") not in (None, "", "simple")
        for holder in self._families.unresolved(text_of(record, "symbol")) if tied else ():
            above = self.by_client_id(holder)
            if above is not None:
                self._families.note(holder, self.whole(above))
        known = self._families.ours(broker_id)
        before = record.get("replaces")
        if known is None and isinstance(before, str) and before != broker_id:
            known = self._order_id(before)
        self._families.name(broker_id, known or ident)
        return known or ident
