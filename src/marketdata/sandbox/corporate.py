"""Alpaca's corporate actions, filed by process date as the service files them.

Source: Alpaca market-data OpenAPI, ``GET /v1/corporate-actions`` and the schemas it answers with.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from marketdata.sandbox.answers import ApiError, json_response, parse_date, parse_limit
from marketdata.sandbox.source import NAMESPACE, Action, plain_number
from marketdata.sandbox.view import MarketView

TYPES: Final = (
    "forward_split",
    "reverse_split",
    "unit_split",
    "cash_dividend",
    "stock_dividend",
    "spin_off",
    "cash_merger",
    "stock_merger",
    "stock_and_cash_merger",
    "redemption",
    "name_change",
    "worthless_removal",
    "rights_distribution",
    "partial_call",
    "reorganization",
)


class AlpacaActions:
    """The handler of the corporate-actions path."""

    def __init__(self, view: MarketView) -> None:
        self.view = view

    async def answer(self, request: Request) -> Response:
        """Answer announced actions with a process date between two dates, both inclusive."""
        params = request.query_params
        today = self.view.today.isoformat()
        start = parse_date(params.get("start", today), "start")
        end = parse_date(params.get("end", today), "end")
        if end < start:
            raise ApiError(400, "end should not be before start")
        limit = parse_limit(params, default=100, most=1000)
        found = self._actions(params, start, end)
        if params.get("sort", "asc") == "desc":
            found.reverse()
        skip = _read_offset(params.get("page_token"))
        page, rest = found[skip : skip + limit], found[skip + limit :]
        grouped: dict[str, list[dict[str, Any]]] = {}
        for action in page:
            grouped.setdefault(action.type + "s", []).append(action_json(action))
        token = base64.b64encode(f"CA|{skip + limit}".encode()).decode() if rest else None
        return json_response({"corporate_actions": grouped, "next_page_token": token})

    def _actions(self, params: Mapping[str, str], start: date, end: date) -> list[Action]:
        types = {t for t in params.get("types", "").split(",") if t}
        unknown = types - set(TYPES)
        if unknown:
            raise ApiError(400, f"invalid type: {min(unknown)}")
        names = [s for s in params.get("symbols", "").split(",") if s]
        symbols = names or self.view.source.symbols_with_actions()
        found = {
            action.id: action
            for symbol in dict.fromkeys(symbols)
            for action in self.view.known_actions(symbol)
            if start <= action.processed <= end and (not types or action.type in types)
        }
        return sorted(found.values(), key=lambda a: (a.processed, a.symbol, a.amount, a.id))


# ------------------------------------------------------------------------------------ as JSON


def _cusip(symbol: str | None) -> str:
    return uuid.uuid5(NAMESPACE, symbol or "").hex[:9].upper()


def _rates(action: Action) -> dict[str, Any]:
    return {"new_rate": plain_number(action.new), "old_rate": plain_number(action.old)}


def _forward_split(action: Action) -> dict[str, Any]:
    return _of_symbol(action) | _rates(action) | {"payable_date": action.processed.isoformat()}


def _reverse_split(action: Action) -> dict[str, Any]:
    cusip = _cusip(action.symbol)
    found = {"symbol": action.symbol, "old_cusip": cusip, "new_cusip": cusip[::-1]}
    renamed = {"new_symbol": action.other_symbol} if action.other_symbol else {}
    return found | _rates(action) | renamed


def _of_symbol(action: Action) -> dict[str, Any]:
    return {"symbol": action.symbol, "cusip": _cusip(action.symbol)}


def _stock_dividend(action: Action) -> dict[str, Any]:
    return _of_symbol(action) | {"rate": action.new / action.old}


def _cash_dividend(action: Action) -> dict[str, Any]:
    return _of_symbol(action) | {
        "rate": action.amount,
        "special": action.special,
        "foreign": False,
        "payable_date": action.processed.isoformat(),
    }


def _spin_off(action: Action) -> dict[str, Any]:
    return {
        "source_symbol": action.symbol,
        "source_cusip": _cusip(action.symbol),
        "source_rate": plain_number(action.old),
        "new_symbol": action.other_symbol,
        "new_cusip": _cusip(action.other_symbol),
        "new_rate": plain_number(action.new),
    }


def _merger(action: Action) -> dict[str, Any]:
    found: dict[str, Any] = {
        "acquiree_symbol": action.symbol,
        "acquiree_cusip": _cusip(action.symbol),
        "payable_date": action.processed.isoformat(),
    }
    if action.other_symbol:
        found |= {
            "acquirer_symbol": action.other_symbol,
            "acquirer_cusip": _cusip(action.other_symbol),
        }
    if action.type != "cash_merger":
        found |= {
            "acquirer_rate": plain_number(action.new),
            "acquiree_rate": plain_number(action.old),
        }
    if action.type != "stock_merger":
        found["rate" if action.type == "cash_merger" else "cash_rate"] = action.amount
    return found


def _name_change(action: Action) -> dict[str, Any]:
    return {
        "old_symbol": action.symbol,
        "old_cusip": _cusip(action.symbol),
        "new_symbol": action.other_symbol,
        "new_cusip": _cusip(action.other_symbol),
    }


def _redemption(action: Action) -> dict[str, Any]:
    paid = {"rate": action.amount, "payable_date": action.processed.isoformat()}
    return _of_symbol(action) | paid


def _unit_split(action: Action) -> dict[str, Any]:
    return (
        _name_change(action)
        | _rates(action)
        | {
            "alternate_symbol": f"{action.symbol}W",
            "alternate_cusip": _cusip(f"{action.symbol}W"),
            "alternate_rate": 0.5,
        }
    )


def _rights_distribution(action: Action) -> dict[str, Any]:
    found = _spin_off(action)
    del found["source_rate"], found["new_rate"]
    return found | {"rate": action.new / action.old, "payable_date": action.processed.isoformat()}


_WRITERS: Final[Mapping[str, Callable[[Action], dict[str, Any]]]] = {
    "forward_split": _forward_split,
    "reverse_split": _reverse_split,
    "unit_split": _unit_split,
    "cash_dividend": _cash_dividend,
    "stock_dividend": _stock_dividend,
    "spin_off": _spin_off,
    "cash_merger": _merger,
    "stock_merger": _merger,
    "stock_and_cash_merger": _merger,
    "redemption": _redemption,
    "name_change": _name_change,
    "worthless_removal": _of_symbol,
    "rights_distribution": _rights_distribution,
    "partial_call": _of_symbol,
    "reorganization": _of_symbol,
}
_EFFECTIVE: Final = {
    "cash_merger", "stock_merger", "stock_and_cash_merger", "unit_split", "reorganization",
}  # fmt: skip
_PROCESSED_ONLY: Final = {"redemption", "name_change", "worthless_removal", "partial_call"}


def action_json(action: Action) -> dict[str, Any]:
    """Return `action` with the keys that Alpaca's schema of its type has.

    What has no ex-date there is told of by its process date, or the date it becomes effective.
    """
    found = {"id": action.id} | _WRITERS[action.type](action)
    if action.currency is not None:
        found["currency"] = action.currency
    if action.type in _PROCESSED_ONLY:
        return found | {"process_date": action.ex_date.isoformat()}
    found["process_date"] = action.processed.isoformat()
    if action.type in _EFFECTIVE:
        return found | {"effective_date": action.ex_date.isoformat()}
    return found | {
        "ex_date": action.ex_date.isoformat(),
        "record_date": (action.ex_date - timedelta(days=1)).isoformat(),
    }


def _read_offset(token: str | None) -> int:
    if not token:
        return 0
    try:
        mark, _, offset = base64.b64decode(token, validate=True).decode().partition("|")
        if mark != "CA":
            raise ValueError(token)
        return int(offset)
    except (binascii.Error, ValueError):
        raise ApiError(400, "invalid page_token") from None
