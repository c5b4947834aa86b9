"""Reading an order request, with Alpaca's refusals of what cannot be meant.

What depends on the account or the market is checked by the desk. Codes and words: Alpaca's
documents and what users have published of its answers; 40010001 is a parameter that cannot be
read, 42210000 one that is not allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any, Final, get_args

from marketdata.sandbox.answers import ApiError
from marketdata.sandbox.trading.book import ZERO, Kind, Side

UNREADABLE: Final = 40010001
NOT_ALLOWED: Final = 42210000
FORBIDDEN: Final = 40310000
NOT_FOUND: Final = 40410000
CLASSES: Final = ("simple", "bracket", "oco", "oto")
LONGEST_ID: Final = 128
_PLACES: Final = 9
"""Decimal places of a quantity."""


@dataclass(frozen=True, slots=True)
class Exit:
    """Prices of a take-profit (`limit` alone) or a stop-loss."""

    limit: Decimal | None
    stop: Decimal | None


@dataclass(frozen=True, slots=True)
class Ticket:
    """An order request that can be read."""

    symbol: str
    side: Side
    type: Kind
    time_in_force: Any
    qty: Decimal | None
    notional: Decimal | None
    limit_price: Decimal | None
    stop_price: Decimal | None
    extended_hours: bool
    client_order_id: str | None
    order_class: str
    """Empty for a simple order."""
    take_profit: Exit | None
    stop_loss: Exit | None

    @property
    def fractional(self) -> bool:
        return self.notional is not None or self.qty != int(self.qty or 0)


def read_ticket(body: Mapping[str, Any]) -> Ticket:
    """Read the body of ``POST /v2/orders``.

    Raises
    ------
    ApiError
        422, with the code and words of Alpaca's refusal.
    """
    order_class = str(body.get("order_class") or "simple")
    if order_class not in CLASSES:
        raise unreadable("invalid order_class")
    ticket = Ticket(
        symbol=str(body.get("symbol") or ""),
        side=_choice(body, "side", get_args(Side), "invalid side"),
        type=_choice(body, "type", get_args(Kind), "invalid order type"),
        time_in_force=_choice(body, "time_in_force", ("day", "gtc"), "invalid time_in_force"),
        qty=decimal_of(body, "qty"),
        notional=decimal_of(body, "notional"),
        limit_price=decimal_of(body, "limit_price"),
        stop_price=decimal_of(body, "stop_price"),
        extended_hours=bool(body.get("extended_hours")),
        client_order_id=_client_id(body),
        order_class="" if order_class == "simple" else order_class,
        take_profit=_exit(body, "take_profit"),
        stop_loss=_exit(body, "stop_loss"),
    )
    if not ticket.symbol:
        raise unreadable("symbol is required")
    _check_size(ticket)
    ticket = _with_prices(ticket)
    _check_terms(ticket)
    if ticket.order_class:
        _check_group(ticket)
    return ticket


def _client_id(body: Mapping[str, Any]) -> str | None:
    text = body.get("client_order_id")
    if text is not None and len(str(text)) > LONGEST_ID:
        raise unreadable(f"client_order_id must be no more than {LONGEST_ID} characters")
    return None if text in (None, "") else str(text)


def _choice(body: Mapping[str, Any], name: str, known: tuple[str, ...], refusal: str) -> Any:
    value = body.get(name)
    if value not in known:
        raise unreadable(refusal)
    return value


def decimal_of(body: Mapping[str, Any], name: str, label: str | None = None) -> Decimal | None:
    """Read a number given as number or string; absent and null are None."""
    value = body.get(name)
    if value is None:
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite():
        raise unreadable(f"invalid {label or name}")
    return number


def _exit(body: Mapping[str, Any], name: str) -> Exit | None:
    part = body.get(name)
    if not isinstance(part, Mapping):
        return None
    return Exit(
        decimal_of(part, "limit_price", f"{name}.limit_price"),
        decimal_of(part, "stop_price", f"{name}.stop_price"),
    )


def _check_size(ticket: Ticket) -> None:
    if ticket.qty is None and ticket.notional is None:
        raise unreadable("qty or notional is required")
    if ticket.qty is not None and ticket.notional is not None:
        raise unreadable("only one of qty or notional is accepted")
    size = ticket.qty if ticket.qty is not None else ticket.notional
    if size is None or size <= 0:
        raise unreadable(f"{'qty' if ticket.qty is not None else 'notional'} must be > 0")
    if size != round(size, _PLACES):
        raise not_allowed(f"qty increment must be at least 1e-{_PLACES}")
    if ticket.notional is not None and ticket.type != "market":
        raise not_allowed("notional orders must be market orders")


def _with_prices(ticket: Ticket) -> Ticket:
    """Return the ticket with the limit of an OCO order, which is that of its take-profit."""
    limit = ticket.type == "limit" and ticket.limit_price is None
    if ticket.order_class == "oco" and limit and ticket.take_profit:
        ticket = replace(ticket, limit_price=ticket.take_profit.limit)
    wants_limit = ticket.type in ("limit", "stop_limit")
    wants_stop = ticket.type in ("stop", "stop_limit")
    if wants_limit and ticket.limit_price is None:
        raise unreadable("limit orders require a limit price")
    if wants_stop and ticket.stop_price is None:
        raise unreadable("stop orders require a stop price")
    if ticket.type == "market" and (ticket.limit_price or ticket.stop_price) is not None:
        raise unreadable("market orders require no stop or limit price")
    if not wants_limit and ticket.limit_price is not None:
        raise unreadable("stop orders require no limit price")
    if not wants_stop and ticket.stop_price is not None:
        raise unreadable("limit orders require no stop price")
    for name, price in _prices(ticket):
        check_increment(name, price)
    return ticket


def _prices(ticket: Ticket) -> list[tuple[str, Decimal]]:
    profit, loss = ticket.take_profit, ticket.stop_loss
    named = [
        ("limit_price", ticket.limit_price),
        ("stop_price", ticket.stop_price),
        ("take_profit.limit_price", profit.limit if profit else None),
        ("stop_loss.stop_price", loss.stop if loss else None),
        ("stop_loss.limit_price", loss.limit if loss else None),
    ]
    return [(name, price) for name, price in named if price is not None]


def check_increment(name: str, price: Decimal) -> None:
    """Refuse a price that is not above 0, or not on its grid: cents from a dollar up, else 1/100
    of a cent. Source: Alpaca, "Placing Orders", sub-penny increments."""
    if price <= ZERO:
        raise unreadable(f"{name} must be > 0")
    if price != round(price, 2 if price >= 1 else 4):
        raise not_allowed(
            f"invalid {name} {price}. sub-penny increment does not fulfill minimum pricing criteria"
        )


def _check_terms(ticket: Ticket) -> None:
    if ticket.extended_hours and ticket.type != "limit":
        raise not_allowed("extended hours order must be DAY or GTC limit orders")
    if ticket.fractional:
        if ticket.order_class:
            raise not_allowed("fractional orders must be simple orders")
        if ticket.time_in_force != "day":
            raise not_allowed("fractional orders must be DAY orders")


def _check_group(ticket: Ticket) -> None:
    kind, profit, loss = ticket.order_class, ticket.take_profit, ticket.stop_loss
    if kind in ("bracket", "oco"):
        if profit is None or profit.limit is None:
            raise not_allowed(f"{kind} orders require take_profit.limit_price")
        if loss is None or loss.stop is None:
            raise not_allowed(f"{kind} orders require stop_loss.stop_price")
    elif profit is None and loss is None:
        raise not_allowed("oto orders require take_profit or stop_loss")
    elif profit is not None and loss is not None:
        raise not_allowed("oto orders require only one of take_profit or stop_loss")
    if kind == "oco" and ticket.type != "limit":
        raise not_allowed("oco orders must be limit orders")
    if ticket.extended_hours:
        raise not_allowed(f"{kind} orders do not support extended hours")
    if profit and loss and profit.limit is not None and loss.stop is not None:
        # A sell of shares held (OCO) has its exits where a buy's would be.
        long = (ticket.side == "buy") != (kind == "oco")
        if long and profit.limit <= loss.stop:
            raise not_allowed("take_profit.limit_price must be > stop_loss.stop_price")
        if not long and profit.limit >= loss.stop:
            raise not_allowed("take_profit.limit_price must be < stop_loss.stop_price")


def unreadable(message: str) -> ApiError:
    return ApiError(422, message, UNREADABLE)


def not_allowed(message: str) -> ApiError:
    return ApiError(422, message, NOT_ALLOWED)


def forbidden(message: str, **facts: object) -> ApiError:
    error = ApiError(403, message, FORBIDDEN)
    error.facts = facts
    return error
