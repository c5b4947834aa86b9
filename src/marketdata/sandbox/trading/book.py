"""Orders, positions and fills of a paper account, and how Alpaca writes them.

Quantities, prices and money are decimals: what was booked adds up to the last digit.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from marketdata.clock import from_micros
from marketdata.sandbox.source import NAMESPACE

Side = Literal["buy", "sell"]
Kind = Literal["market", "limit", "stop", "stop_limit"]

OPEN: Final = frozenset({"accepted", "pending_new", "new", "partially_filled", "held"})
"""States in which an order may still fill."""
ZERO: Final = Decimal(0)
_NEW_YORK: Final = ZoneInfo("America/New_York")
_CENT: Final = Decimal("0.01")


@dataclass(slots=True, eq=False)
class PaperOrder:
    """One order. Instants are microseconds UTC."""

    id: str
    client_order_id: str
    symbol: str
    side: Side
    type: Kind
    time_in_force: Literal["day", "gtc"]
    created: int
    expires: int
    qty: Decimal | None = None
    notional: Decimal | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    extended_hours: bool = False
    order_class: str = ""
    role: str | None = None
    """``entry``, ``take_profit`` or ``stop_loss`` in an order of several."""
    group: str | None = None
    status: str = "new"
    active: bool = True
    """False for an exit whose entry has not filled."""
    working_from: int = 0
    """From when on it takes part in the market."""
    triggered: bool = False
    filled: Decimal = ZERO
    paid: Decimal = ZERO
    """Sum of price times quantity over its fills."""
    moments: dict[str, int] = field(default_factory=dict)
    """``filled``, ``canceled``, ``expired``, ``replaced`` and ``updated``: when."""
    legs: list[PaperOrder] = field(default_factory=list, repr=False)
    parent: PaperOrder | None = field(default=None, repr=False)
    replaces: str | None = None
    replaced_by: str | None = None
    opens: bool = True
    """Whether it opens a position, or adds to one."""
    reserved: Decimal = ZERO
    """Buying power it holds, of its whole quantity."""

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def works(self) -> bool:
        """Whether it can fill now. A stop-loss that is ``held`` beside its take-profit can."""
        return self.is_open and self.active

    @property
    def sign(self) -> int:
        return 1 if self.side == "buy" else -1

    @property
    def left(self) -> Decimal:
        """Shares still to fill; 0 for an order of a sum of money."""
        return ZERO if self.qty is None else self.qty - self.filled

    @property
    def reserves(self) -> Decimal:
        """Buying power it holds for what is left of it."""
        if not self.is_open or not self.opens or self.parent is not None:
            return ZERO
        return self.reserved if not self.qty else self.reserved * self.left / self.qty


@dataclass(frozen=True, slots=True)
class PaperFill:
    """One execution."""

    id: str
    time: int
    order: PaperOrder
    qty: Decimal
    price: Decimal
    filled: Decimal
    """Of the order, this one included."""


@dataclass(slots=True)
class PaperPosition:
    """Shares held, below 0 if short, and their mean entry price."""

    symbol: str
    qty: Decimal = ZERO
    entry: Decimal = ZERO

    def add(self, qty: Decimal, price: Decimal) -> None:
        """Book `qty` shares, signed, at `price`. Closing leaves the entry price as it was."""
        after = self.qty + qty
        if self.qty * qty >= 0:
            self.entry = (self.entry * abs(self.qty) + price * abs(qty)) / abs(after)
        elif after * self.qty < 0:
            self.entry = price
        self.qty = after


def new_id(*parts: object) -> str:
    """Return a UUID that is the same for the same parts."""
    return str(uuid.uuid5(NAMESPACE, " ".join(map(str, parts))))


# ------------------------------------------------------------------------------------- wire


def number(value: Decimal | None) -> str | None:
    """Return a decimal as Alpaca writes numbers: a string without trailing zeros."""
    if value is None:
        return None
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("", "-0") else text


def cents(value: Decimal) -> str:
    return str(number(value.quantize(_CENT, ROUND_HALF_UP)))


def instant(micros: int | None, digits: int = 9) -> str | None:
    """Return RFC 3339 in UTC; orders carry nanoseconds, activities microseconds or fewer."""
    if micros is None:
        return None
    moment = from_micros(micros)
    fraction = f"{moment.microsecond:06d}".ljust(9, "0")[:digits]
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction}Z"


def order_json(order: PaperOrder, *, nested: bool = True) -> dict[str, Any]:
    """Return an order as the API writes it; its legs inside it where `nested`."""
    average = order.paid / order.filled if order.filled else None
    if average is not None:
        average = average.quantize(Decimal("0.000001"), ROUND_HALF_UP)
    legs = [order_json(leg) for leg in order.legs] if nested else []
    intent = "open" if order.opens and order.parent is None else "close"
    record: dict[str, Any] = {
        "id": order.id,
        "client_order_id": order.client_order_id,
        "created_at": instant(order.created),
        "updated_at": instant(order.moments.get("updated", order.created)),
        "submitted_at": instant(order.created),
        "filled_at": instant(order.moments.get("filled")),
        "expired_at": instant(order.moments.get("expired")),
        "canceled_at": instant(order.moments.get("canceled")),
        "failed_at": None,
        "replaced_at": instant(order.moments.get("replaced")),
        "replaced_by": order.replaced_by,
        "replaces": order.replaces,
        "asset_id": new_id(order.symbol),
        "symbol": order.symbol,
        "asset_class": "us_equity",
        "notional": number(order.notional),
        "qty": number(order.qty),
        "filled_qty": number(order.filled),
        "filled_avg_price": number(average),
        "order_class": order.order_class,
        "order_type": order.type,
        "type": order.type,
        "side": order.side,
        "position_intent": f"{order.side}_to_{intent}",
        "time_in_force": order.time_in_force,
        "limit_price": number(order.limit_price),
        "stop_price": number(order.stop_price),
        "status": order.status,
        "extended_hours": order.extended_hours,
        "legs": legs or None,
        "trail_percent": None,
        "trail_price": None,
        "hwm": None,
        "subtag": None,
        "source": None,
        "expires_at": instant(order.expires),
    }
    if order.group is not None:
        record |= {"group_id": order.group, "group_role": order.role}
    return record


def fill_json(fill: PaperFill) -> dict[str, Any]:
    """Return an activity of type FILL. The id begins with New York's time, not UTC."""
    order = fill.order
    whole = order.qty is None or fill.filled >= order.qty
    return {
        "id": fill.id,
        "activity_type": "FILL",
        "transaction_time": instant(fill.time, 6),
        "type": "fill" if whole else "partial_fill",
        "price": number(fill.price),
        "qty": number(fill.qty),
        "side": "sell_short" if order.side == "sell" and order.opens else order.side,
        "symbol": order.symbol,
        "leaves_qty": number(ZERO if order.qty is None else order.qty - fill.filled),
        "order_id": order.id,
        "cum_qty": number(fill.filled),
        "order_status": "filled" if whole else "partially_filled",
    }


def fill_id(time: int, *parts: object) -> str:
    """Return an activity's id: the moment in New York to the millisecond, and a UUID."""
    local = from_micros(time).astimezone(_NEW_YORK)
    return f"{local:%Y%m%d%H%M%S}{local.microsecond // 1000:03d}::{new_id('fill', time, *parts)}"


def position_json(
    position: PaperPosition, price: Decimal, before: Decimal, held: Decimal, exchange: str
) -> dict[str, Any]:
    """Return a position as the API writes it, at `price`, with yesterday's close `before`."""
    cost = position.entry * position.qty
    value = price * position.qty
    gain = value - cost
    return {
        "asset_id": new_id(position.symbol),
        "symbol": position.symbol,
        "exchange": exchange,
        "asset_class": "us_equity",
        "asset_marginable": True,
        "qty": number(position.qty),
        "avg_entry_price": number(_rounded(position.entry)),
        "side": "long" if position.qty > 0 else "short",
        "market_value": number(value),
        "cost_basis": number(_rounded(cost)),
        "unrealized_pl": number(_rounded(gain)),
        "unrealized_plpc": number(_rounded(gain / abs(cost))) if cost else "0",
        "unrealized_intraday_pl": number(_rounded(gain)),
        "unrealized_intraday_plpc": number(_rounded(gain / abs(cost))) if cost else "0",
        "current_price": number(price),
        "lastday_price": number(before),
        "change_today": number(_rounded(price / before - 1)) if before else "0",
        "qty_available": number(position.qty - held if position.qty > 0 else position.qty + held),
    }


def _rounded(value: Decimal) -> Decimal:
    return value.quantize(Decimal("0.000001"), ROUND_HALF_UP)
