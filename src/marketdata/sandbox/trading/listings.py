"""Lists of orders and activities: filters and pages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, Final

from marketdata.clock import to_micros
from marketdata.sandbox.answers import ApiError
from marketdata.sandbox.trading.book import PaperOrder, fill_json, order_json
from marketdata.sandbox.trading.desk import Desk
from marketdata.sandbox.trading.tickets import NOT_FOUND, unreadable

_ACTIVITY_TYPES: Final = frozenset(
    [
        "FILL",
        "ACATC",
        "ACATS",
        "CFEE",
        "CSD",
        "CSW",
        "DIV",
        "DIVCGL",
        "DIVCGS",
        "DIVFEE",
        "DIVFT",
        "DIVNRA",
        "DIVROC",
        "DIVTW",
        "DIVTXEX",
        "FEE",
        "INT",
        "INTNRA",
        "INTTW",
        "JNL",
        "JNLC",
        "JNLS",
        "MA",
        "MISC",
        "NC",
        "OPASN",
        "OPEXP",
        "OPXRC",
        "PTC",
        "PTR",
        "REORG",
        "SC",
        "SPIN",
        "SPLIT",
        "SSO",
        "SSP",
        "TRANS",
    ]
)


def listed_orders(desk: Desk, params: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the orders that ``GET /v2/orders`` asks for.

    A stop-loss that is ``held`` beside its take-profit is not among the open ones unless it is
    shown inside its entry, and shown inside it only as long as that is open: users report both.
    """
    status = params.get("status", "open")
    if status not in ("open", "closed", "all"):
        raise unreadable("invalid status")
    nested = params.get("nested", "").lower() == "true"
    after, until = _moment(params, "after"), _moment(params, "until")
    symbols = [s for s in params.get("symbols", "").split(",") if s]
    orders = list(desk.orders.values())
    if params.get("after_order_id"):
        orders = orders[_place(orders, params["after_order_id"]) + 1 :]
    elif params.get("before_order_id"):
        orders = orders[: _place(orders, params["before_order_id"])]
    found = [
        o
        for o in orders
        if (status == "all" or _listed_open(o) == (status == "open"))
        and (after is None or o.created > after)
        and (until is None or o.created < until)
        and (not symbols or o.symbol in symbols)
        and params.get("side") in (None, o.side)
        and not (nested and o.parent is not None)
    ]
    if params.get("direction", "desc") == "desc":
        found.reverse()
    return [order_json(o, nested=nested) for o in found[: _limit(params, "limit", 50, 500)]]


def _listed_open(order: PaperOrder) -> bool:
    return order.is_open and order.status != "held"


def _place(orders: list[PaperOrder], ident: str) -> int:
    for at, order in enumerate(orders):
        if order.id == ident:
            return at
    raise ApiError(404, f"order not found for {ident}", NOT_FOUND)


def activities(
    desk: Desk, kind: str | None, params: Mapping[str, str], most: int | None
) -> list[dict[str, Any]]:
    """Return a page of activities; `most` cuts it shorter than asked."""
    kinds = [k for k in (kind or "FILL").split(",") if k]
    unknown = [k for k in kinds if k not in _ACTIVITY_TYPES]
    if unknown:
        raise unreadable(f"invalid activity type: {unknown[0]}")
    fills = desk.fills if "FILL" in kinds else []
    after, until = _moment(params, "after"), _moment(params, "until")
    wanted = params.get("order_id")
    found = [
        f
        for f in sorted(fills, key=lambda f: f.time)
        if (after is None or f.time > after)
        and (until is None or f.time < until)
        and wanted in (None, f.order.id)
    ]
    if params.get("direction", "desc") == "desc":
        found.reverse()
    token = params.get("page_token")
    if token:
        ids = [f.id for f in found]
        found = found[ids.index(token) + 1 :] if token in ids else []
    size = _limit(params, "page_size", 100, 100)
    return [fill_json(f) for f in found[: size if most is None else min(size, most)]]


def _limit(params: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise unreadable(f"invalid {name}")
    return int(text)


def _moment(params: Mapping[str, str], name: str) -> int | None:
    """Read an instant, or a date, whose UTC midnight is meant."""
    text = params.get(name)
    if not text:
        return None
    try:
        if len(text) == 10:
            text = f"{date.fromisoformat(text)}T00:00:00Z"
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise unreadable(f"invalid {name}") from None
    if moment.tzinfo is None:
        raise unreadable(f"invalid {name}")
    return to_micros(moment)
