"""How orders, fills and accounts are written at Alpaca, and read from it. Pure.

Numbers come as decimal strings and are read to the nearest float; what is no number, or not a
finite one, is refused rather than guessed. Source: Alpaca Trading API reference, schemas Order,
Account, Position and TradingActivities, and "Placing Orders".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any, Final

from algorithms.errors import VenueError
from algorithms.orders import Order, OrderState, OrderType, TimeInForce
from algorithms.venues import BrokerAccount, BrokerFill, BrokerOrder

LONGEST_ID: Final = 128
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_INSTANT: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")

STATES: Final[Mapping[str, OrderState]] = {
    "new": OrderState.OPEN,
    "accepted": OrderState.OPEN,
    "pending_new": OrderState.OPEN,
    "accepted_for_bidding": OrderState.OPEN,
    "partially_filled": OrderState.OPEN,
    "done_for_day": OrderState.OPEN,
    "calculated": OrderState.OPEN,
    "stopped": OrderState.OPEN,
    "suspended": OrderState.OPEN,
    "pending_cancel": OrderState.OPEN,
    "pending_replace": OrderState.OPEN,
    "pending_review": OrderState.OPEN,
    "held": OrderState.HELD,
    "filled": OrderState.FILLED,
    "canceled": OrderState.CANCELED,
    "replaced": OrderState.CANCELED,
    "expired": OrderState.EXPIRED,
    "rejected": OrderState.REJECTED,
}
"""Alpaca's order status as ours. One that is not known is not taken for final."""


# ----------------------------------------------------------------------------------- reading


def unreadable(what: str) -> VenueError:
    """Return the error for an answer that does not say what it must."""
    return VenueError(
        f"alpaca: the answer cannot be read: {what}",
        cure="try again; what was given is settled by giving it again",
        transient=True,
    )


def number_of(record: Mapping[str, Any], name: str) -> float:
    """Return a decimal string, or a JSON number, as the nearest float.

    Raises
    ------
    VenueError
        Absent, or no finite number; transient.
    """
    value = record.get(name)
    if (isinstance(value, str) and _NUMBER.fullmatch(value)) or (
        isinstance(value, int | float) and not isinstance(value, bool)
    ):
        number = float(value)
    else:
        raise unreadable(f"{name} is {value!r}")
    if not math.isfinite(number):
        raise unreadable(f"{name} is {value!r}")
    return number


def _optional_number(record: Mapping[str, Any], name: str) -> float | None:
    return None if record.get(name) is None else number_of(record, name)


def text_of(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value:
        raise unreadable(f"{name} is {value!r}")
    return value


def instant_of(record: Mapping[str, Any], name: str) -> int:
    """Return an RFC 3339 instant as microseconds UTC; finer fractions are cut."""
    match = _INSTANT.fullmatch(text_of(record, name))
    if match is None:
        raise unreadable(f"{name} is {record.get(name)!r}")
    whole, fraction, zone = match.groups()
    micros = (fraction or "")[:6].ljust(6, "0")
    try:
        moment = datetime.fromisoformat(f"{whole}.{micros}{'+00:00' if zone == 'Z' else zone}")
    except ValueError:
        raise unreadable(f"{name} is {record.get(name)!r}") from None
    return (moment - _EPOCH) // timedelta(microseconds=1)


def account_of(record: Any) -> BrokerAccount:
    found = record_of(record, "account")
    return BrokerAccount(
        cash=number_of(found, "cash"),
        equity=number_of(found, "equity"),
        buying_power=number_of(found, "buying_power"),
    )


def positions_of(rows: Any) -> dict[str, float]:
    """Return shares by symbol, signed."""
    held: dict[str, float] = {}
    for row in rows_of(rows, "positions"):
        shares = abs(number_of(row, "qty"))
        side = text_of(row, "side")
        if side not in ("long", "short"):
            raise unreadable(f"side is {side!r}")
        if shares:
            held[text_of(row, "symbol")] = shares if side == "long" else -shares
    return held


def order_of(record: Mapping[str, Any], *, ident: str, parent: str | None = None) -> BrokerOrder:
    """Return an order as ours, under the id `ident`."""
    sign = _sign(record)
    filled = number_of(record, "filled_qty")
    quantity = _optional_number(record, "qty")
    if quantity is None:  # an order of a sum of money
        quantity = filled if record.get("status") == "filled" else math.nan
    average = _optional_number(record, "filled_avg_price") if filled else None
    return BrokerOrder(
        id=ident,
        broker_id=text_of(record, "id"),
        symbol=text_of(record, "symbol"),
        quantity=sign * quantity,
        type=_type(record),
        limit=_optional_number(record, "limit_price"),
        stop=_optional_number(record, "stop_price"),
        time_in_force=_time_in_force(record),
        state=state_of(record),
        filled=sign * filled if filled else 0.0,
        filled_price=math.nan if average is None else average,
        submitted=instant_of(record, "submitted_at"),
        parent=parent,
        reason=text_of(record, "status"),
    )


def state_of(record: Mapping[str, Any]) -> OrderState:
    status = text_of(record, "status")
    if status == "calculated" and record.get("qty") == record.get("filled_qty"):
        return OrderState.FILLED
    return STATES.get(status, OrderState.OPEN)


def fill_of(record: Mapping[str, Any], order_id: str) -> BrokerFill:
    """Return an activity of type FILL as ours."""
    return BrokerFill(
        time=instant_of(record, "transaction_time"),
        order_id=order_id,
        symbol=text_of(record, "symbol"),
        quantity=_sign(record) * number_of(record, "qty"),
        price=number_of(record, "price"),
        fee=0.0,
        tag="",
        id=text_of(record, "id"),
    )


def _sign(record: Mapping[str, Any]) -> int:
    side = text_of(record, "side")
    if side not in ("buy", "sell", "sell_short"):
        raise unreadable(f"side is {side!r}")
    return 1 if side == "buy" else -1


def _type(record: Mapping[str, Any]) -> OrderType:
    kind = text_of(record, "type")
    if kind == "trailing_stop":  # nobody here gives one
        return OrderType.STOP
    try:
        return OrderType(kind)
    except ValueError:
        raise unreadable(f"type is {kind!r}") from None


def _time_in_force(record: Mapping[str, Any]) -> TimeInForce | None:
    value = record.get("time_in_force")
    return TimeInForce(value) if value in ("day", "gtc") else None


def record_of(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise unreadable(f"no {what} in it")
    return value


def rows_of(value: Any, what: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise unreadable(f"no {what} in it")
    return value


# ----------------------------------------------------------------------------------- writing


def limit_on_grid(price: float, *, buys: bool) -> float:
    """Return a limit on the grid of prices: cents from a dollar up, else hundredths of a cent.

    A buy's limit is lowered and a sell's raised: never worse than was asked for.
    """
    return _on_grid(price, ROUND_FLOOR if buys else ROUND_CEILING)


def stop_on_grid(price: float) -> float:
    """Return a stop price on the grid of prices, the nearest one."""
    return _on_grid(price, ROUND_HALF_EVEN)


def _on_grid(price: float, rounding: str) -> float:
    # What float arithmetic adds to a price is no part of it.
    exact = round(Decimal(repr(price)), 8)
    step = Decimal("0.01") if exact >= 1 else Decimal("0.0001")
    return float(max(exact.quantize(step, rounding), step))


def order_fields(order: Order) -> dict[str, Any]:
    """Return what a request for `order` says, apart from orders tied to it.

    A market order for a part of a share is one for the day: Alpaca takes no other, and it fills
    at the next opportunity anyway.
    """
    force = order.time_in_force
    if order.type is OrderType.MARKET and order.quantity != int(order.quantity):
        force = TimeInForce.DAY
    fields: dict[str, Any] = {
        "symbol": order.symbol,
        "qty": float(abs(round(order.quantity, 9))),
        "side": "buy" if order.buys else "sell",
        "time_in_force": force.value,
        "client_order_id": order.id,
    }
    if order.limit is not None:
        fields["limit_price"] = limit_on_grid(order.limit, buys=order.buys)
    if order.stop is not None:
        fields["stop_price"] = stop_on_grid(order.stop)
    return fields


def request_of(fields: Mapping[str, Any], kind: OrderType) -> Any:
    """Return alpaca-py's request; raises `ValueError` for what it does not take."""
    from alpaca.trading import requests

    classes = {
        OrderType.MARKET: requests.MarketOrderRequest,
        OrderType.LIMIT: requests.LimitOrderRequest,
        OrderType.STOP: requests.StopOrderRequest,
        OrderType.STOP_LIMIT: requests.StopLimitOrderRequest,
    }
    return classes[kind](**fields)


def same_order(record: Mapping[str, Any], order: Order) -> str | None:
    """Return in what the order at the broker is another one than `order`; None if in nothing."""
    fields = order_fields(order)
    wanted = {
        "symbol": order.symbol,
        "side": fields["side"],
        "type": order.type.value,
        "limit_price": fields.get("limit_price"),
        "stop_price": fields.get("stop_price"),
        "qty": fields["qty"],
    }
    for name, value in wanted.items():
        there = _optional_number(record, name) if isinstance(value, float) else record.get(name)
        if there != value:
            return f"{name} is {there} there and {value} here"
    return None
