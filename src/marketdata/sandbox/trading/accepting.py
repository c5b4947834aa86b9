"""Whether a desk takes an order: what Alpaca refuses because of the account or the market.

The order of the checks is ours; Alpaca does not say which comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from marketdata.sandbox.answers import ApiError
from marketdata.sandbox.trading.book import ZERO, PaperOrder, new_id, number
from marketdata.sandbox.trading.desk import Desk
from marketdata.sandbox.trading.tickets import (
    Exit,
    Ticket,
    check_increment,
    decimal_of,
    forbidden,
    not_allowed,
    read_ticket,
    unreadable,
)

_CENT: Final = Decimal("0.01")
_SHORT_MARGIN: Final = Decimal("1.03")


def accept(desk: Desk, body: Mapping[str, Any]) -> PaperOrder:
    """Take an order into the books, without letting it trade yet.

    Raises
    ------
    ApiError
        The refusal; nothing was taken.
    """
    try:
        ticket = read_ticket(body)
        if desk.tape.asset(ticket.symbol) is None:
            raise not_allowed(f'asset "{ticket.symbol}" not found')
        if not desk.ids_checked_last:
            _check_id(desk, ticket.client_order_id)
        opens = _check_position(desk, ticket)
        _check_base_price(desk, ticket)
        reserved = _check_buying_power(desk, ticket, opens=opens)
        _check_id(desk, ticket.client_order_id)
    except ApiError:
        desk.counts["refused"] += 1
        raise
    order = _made(desk, ticket, opens=opens, reserved=reserved)
    desk.add(order)
    desk.counts["orders"] += 1
    return order


def _check_id(desk: Desk, client_order_id: str | None) -> None:
    if client_order_id in desk.by_client_id:
        desk.counts["duplicates"] += 1
        raise unreadable("client_order_id must be unique")


# --------------------------------------------------------------------------------- position


def _check_position(desk: Desk, ticket: Ticket) -> bool:
    """Refuse what the position or other orders forbid; return whether the order opens."""
    symbol, buys = ticket.symbol, ticket.side == "buy"
    held = desk.positions[symbol].qty if symbol in desk.positions else ZERO
    open_orders = desk.open_orders(symbol)
    closes = held < 0 if buys else held > 0
    if ticket.order_class in ("bracket", "oto") and (held or open_orders):
        raise not_allowed(f"{ticket.order_class} orders must be entry orders")
    if ticket.order_class == "oco" and not closes:
        raise not_allowed("oco orders must be exit orders")
    against = [o for o in open_orders if o.side != ticket.side and o.works]
    if not held and against and not buys:
        raise forbidden("cannot open a short sell while a long buy order is open")
    if not held and against and buys:
        raise forbidden("cannot open a long buy while a short sell order is open")
    if not ticket.order_class:
        _check_wash_trade(ticket, against)
    if closes:
        _check_available(desk, ticket, held)
    elif not buys and ticket.fractional:
        raise not_allowed("fractional orders cannot be sold short")
    return not closes


def _check_wash_trade(ticket: Ticket, against: list[PaperOrder]) -> None:
    """Source of the body: users' reports of Alpaca's answers; that only limits that cross are
    refused beside market and stop orders follows Alpaca's "User Protection"."""
    for order in against:
        limits = ticket.limit_price, order.limit_price
        if order.type in ("market", "stop", "stop_limit") or ticket.limit_price is None:
            reason = "opposite side market/stop order exists"
        elif limits[1] is not None and _cross(ticket.side, ticket.limit_price, limits[1]):
            reason = "opposite side limit order exists"
        else:
            continue
        raise forbidden(
            "potential wash trade detected. use complex orders",
            existing_order_id=order.id,
            reject_reason=reason,
        )


def _cross(side: str, own: Decimal, other: Decimal) -> bool:
    return own >= other if side == "buy" else own <= other


def _check_available(desk: Desk, ticket: Ticket, held: Decimal) -> None:
    bound = desk.held_for_orders(ticket.symbol)
    available = abs(held) - bound
    wanted = ticket.qty
    if wanted is None:
        price = desk.tape.last(ticket.symbol) or Decimal(1)
        wanted = (ticket.notional or ZERO) / price
    if wanted > available:
        raise forbidden(
            "insufficient qty available for order "
            f"(requested: {number(wanted)}, available: {number(available)})",
            available=number(available),
            existing_qty=number(abs(held)),
            held_for_orders=number(bound),
            related_orders=[o.id for o in desk.closing(ticket.symbol)],
            symbol=ticket.symbol,
        )


# ----------------------------------------------------------------------------------- prices


def _check_base_price(desk: Desk, ticket: Ticket) -> None:
    """Source: Alpaca, "Placing Orders", Threshold on stop price of stop-loss orders."""
    price = desk.tape.last(ticket.symbol)
    if not ticket.order_class or price is None:
        return
    profit = ticket.take_profit.limit if ticket.take_profit else None
    stop = ticket.stop_loss.stop if ticket.stop_loss else None
    long = (ticket.side == "buy") != (ticket.order_class == "oco")
    bases = [price] if ticket.limit_price is None else [price, ticket.limit_price]
    base = min(bases) if long else max(bases)
    edge = base - _CENT if long else base + _CENT
    if stop is not None and (stop > edge if long else stop < edge):
        sign, op = ("<=", "-") if long else (">=", "+")
        raise _off_base(f"stop_loss.stop_price must be {sign} base_price {op} 0.01", base)
    if profit is None or ticket.order_class == "oco":
        return
    base = ticket.limit_price or price
    edge = base + _CENT if long else base - _CENT
    if profit < edge if long else profit > edge:
        sign, op = (">=", "+") if long else ("<=", "-")
        raise _off_base(f"take_profit.limit_price must be {sign} base_price {op} 0.01", base)


def _off_base(message: str, base: Decimal) -> ApiError:
    error = not_allowed(message)
    error.facts = {"base_price": number(base)}
    return error


def _check_buying_power(desk: Desk, ticket: Ticket, *, opens: bool) -> Decimal:
    """Return what the order reserves. Source: Alpaca, "Placing Orders", Buying Power."""
    if not opens:
        return ZERO
    if ticket.notional is not None:
        cost = ticket.notional
    else:
        quote = desk.tape.quote(ticket.symbol)
        if quote is None:
            raise forbidden(f"no available quote for {ticket.symbol}")
        price = quote[1] if ticket.limit_price is None else ticket.limit_price
        if ticket.side == "sell":
            price = max(ticket.limit_price or ZERO, _SHORT_MARGIN * quote[1])
        cost = price * (ticket.qty or ZERO)
    power = desk.figures()["buying_power"]
    if cost > power:
        raise forbidden(
            "insufficient buying power",
            buying_power=number(power.quantize(_CENT)),
            cost_basis=number(cost),
        )
    return cost


# ----------------------------------------------------------------------------------- orders


def _made(desk: Desk, ticket: Ticket, *, opens: bool, reserved: Decimal) -> PaperOrder:
    tape = desk.tape
    nth = len(desk.orders)
    ident = new_id("order", desk.key, nth)
    open_now = tape.is_open(extended=ticket.extended_hours)
    order = PaperOrder(
        id=ident,
        client_order_id=ticket.client_order_id or new_id("client", ident),
        symbol=ticket.symbol,
        side=ticket.side,
        type=ticket.type,
        time_in_force=ticket.time_in_force,
        created=tape.now,
        expires=tape.expiry(ticket.time_in_force, extended=ticket.extended_hours),
        qty=ticket.qty,
        notional=ticket.notional,
        limit_price=ticket.limit_price,
        stop_price=ticket.stop_price,
        extended_hours=ticket.extended_hours,
        order_class=ticket.order_class,
        status="pending_new" if open_now else "accepted",
        working_from=tape.now,
        opens=opens,
        reserved=reserved,
    )
    if not ticket.order_class:
        return order
    order.group = new_id("group", ident)
    exits: list[tuple[str, Exit | None]] = [("stop_loss", ticket.stop_loss)]
    if ticket.order_class == "oco":
        order.role = "take_profit"
    else:
        order.role = "entry"
        exits.insert(0, ("take_profit", ticket.take_profit))
    order.legs = [_leg(order, role, e) for role, e in exits if e is not None]
    return order


def _leg(parent: PaperOrder, role: str, prices: Exit) -> PaperOrder:
    """Make an exit. Its client order id is not the caller's to choose."""
    ident = new_id("leg", parent.id, role)
    entry = parent.role == "entry"
    kind: Any = "limit" if prices.stop is None else "stop" if prices.limit is None else "stop_limit"
    return PaperOrder(
        id=ident,
        client_order_id=new_id("client", ident),
        symbol=parent.symbol,
        side=("sell" if parent.side == "buy" else "buy") if entry else parent.side,
        type=kind,
        time_in_force=parent.time_in_force,
        created=parent.created,
        expires=parent.expires,
        qty=parent.qty,
        limit_price=prices.limit,
        stop_price=prices.stop,
        order_class=parent.order_class,
        role=role,
        group=parent.group,
        status="held",
        active=not entry,
        working_from=parent.created,
        parent=parent,
        opens=False,
    )


def replace(desk: Desk, old: PaperOrder, body: Mapping[str, Any]) -> PaperOrder:
    """Put another order in the place of an open one.

    The new one is for what is left of the old unless the request says how many (a guess: Alpaca's
    documents do not say what becomes of a part that has filled).

    Raises
    ------
    ApiError
        422 where the order cannot be replaced, or the request cannot be read.
    """
    if not old.is_open or old.status in ("accepted", "pending_new"):
        raise not_allowed(f'cannot replace order in "{old.status}" status')
    if old.notional is not None:
        raise not_allowed("cannot replace notional orders")
    qty = decimal_of(body, "qty")
    limit, stop = decimal_of(body, "limit_price"), decimal_of(body, "stop_price")
    for name, price in (("limit_price", limit), ("stop_price", stop)):
        if price is not None:
            check_increment(name, price)
            if getattr(old, name) is None:
                raise unreadable(f"{old.type} orders require no {name.replace('_', ' ')}")
    if qty is not None and (old.parent is not None or old.legs):
        raise not_allowed("qty of an order of several cannot be replaced")
    client_id = body.get("client_order_id")
    _check_id(desk, client_id)
    tape = desk.tape
    ident = new_id("order", desk.key, len(desk.orders))
    new = PaperOrder(
        id=ident,
        client_order_id=client_id or new_id("client", ident),
        symbol=old.symbol,
        side=old.side,
        type=old.type,
        time_in_force=old.time_in_force,
        created=tape.now,
        expires=old.expires,
        qty=old.left if qty is None else qty,
        limit_price=old.limit_price if limit is None else limit,
        stop_price=old.stop_price if stop is None else stop,
        extended_hours=old.extended_hours,
        order_class=old.order_class,
        role=old.role,
        group=old.group,
        status=old.status,
        active=old.active,
        working_from=tape.now,
        legs=old.legs,
        parent=old.parent,
        opens=old.opens,
        reserved=old.reserves,
        replaces=old.id,
    )
    old.status, old.replaced_by, old.legs = "replaced", new.id, []
    old.moments |= {"replaced": tape.now, "updated": tape.now}
    for leg in new.legs:
        leg.parent = new
    if old.parent is not None:
        old.parent.legs = [new if leg is old else leg for leg in old.parent.legs]
    _enter(desk, new)
    desk.counts["replaced"] += 1
    return new


def _enter(desk: Desk, order: PaperOrder) -> None:
    """Take a replacement into the books; the legs it took over are there."""
    legs, order.legs = order.legs, []
    desk.add(order)
    order.legs = legs
