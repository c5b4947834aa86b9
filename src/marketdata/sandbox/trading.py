"""The rest of Alpaca that market data needs: assets, calendar, clock, corporate actions.

Source: Alpaca market-data OpenAPI (corporate actions) and Trading API reference (the others).
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from marketdata.clock import from_micros
from marketdata.sandbox.answers import ApiError, json_response, parse_date, parse_limit
from marketdata.sandbox.source import Action, Asset, plain_number
from marketdata.sandbox.view import MarketView

_NAMESPACE: Final = uuid.UUID("5a4d0a5e-62a4-4d1c-9f0e-6d61726b6574")
_TYPES: Final = {
    "forward_split": "forward_splits",
    "reverse_split": "reverse_splits",
    "cash_dividend": "cash_dividends",
}
_OTHER_TYPES: Final = {
    "unit_split",
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
}


class AlpacaTrading:
    """Handlers of assets, calendar, clock and corporate actions."""

    def __init__(self, view: MarketView) -> None:
        self.view = view

    def routes(self) -> list[Route]:
        return [
            Route("/v2/assets", self.assets),
            Route("/v2/assets/{symbol}", self.asset),
            Route("/v2/calendar", self.calendar),
            Route("/v2/clock", self.clock),
            Route("/v1/corporate-actions", self.corporate_actions),
        ]

    # ----------------------------------------------------------------------------- assets

    async def assets(self, request: Request) -> Response:
        params = request.query_params
        wanted_status = params.get("status", "active")
        wanted_class = params.get("asset_class", "us_equity")
        if wanted_status == "inactive" or wanted_class != "us_equity":
            return json_response([])
        exchange = params.get("exchange")
        found = [a for a in self.view.source.assets() if exchange in (None, a.exchange)]
        return json_response([_asset_json(a) for a in found if self._listed(a)])

    async def asset(self, request: Request) -> Response:
        symbol = request.path_params["symbol"]
        asset = self.view.source.asset(symbol)
        if asset is None or not self._listed(asset):
            raise ApiError(404, f"asset not found for {symbol}", 40410000)
        return json_response(_asset_json(asset))

    def _listed(self, asset: Asset) -> bool:
        return self.view.source.first_day(asset.symbol) <= self.view.today

    # ---------------------------------------------------------------- calendar and clock

    async def calendar(self, request: Request) -> Response:
        """Answer the sessions between two dates, both inclusive; hours in exchange time."""
        params, calendar = request.query_params, self.view.calendar
        start = parse_date(params.get("start", "1980-01-01"), "start")
        end = parse_date(params.get("end", "2029-12-31"), "end")
        rows = []
        for index in range(len(calendar.midnight)):
            day = calendar.session_date(index)
            if not start <= day <= end:
                continue
            hours = [
                from_micros(int(moment)).astimezone(calendar.zone)
                for moment in (
                    calendar.open[index],
                    calendar.close[index],
                    calendar.extended_open[index],
                    calendar.extended_close[index],
                )
            ]
            rows.append(
                {
                    "date": day.isoformat(),
                    "open": f"{hours[0]:%H:%M}",
                    "close": f"{hours[1]:%H:%M}",
                    "session_open": f"{hours[2]:%H%M}",
                    "session_close": f"{hours[3]:%H%M}",
                }
            )
        return json_response(rows)

    async def clock(self, request: Request) -> Response:
        calendar, now = self.view.calendar, self.view.now
        session = calendar.session_at(now)
        is_open = calendar.is_open(now)
        running = session >= 0 and now < calendar.session_span(session, "regular").end
        following = session if running else session + 1

        def local(micros: int) -> str:
            return from_micros(micros).astimezone(calendar.zone).isoformat()

        return json_response(
            {
                "timestamp": local(now),
                "is_open": is_open,
                "next_open": local(calendar.next_open(now + 1)),
                "next_close": local(calendar.session_span(following, "regular").end),
            }
        )

    # ------------------------------------------------------------------ corporate actions

    async def corporate_actions(self, request: Request) -> Response:
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
            grouped.setdefault(_TYPES[_type(action)], []).append(_action_json(action))
        token = base64.b64encode(f"CA|{skip + limit}".encode()).decode() if rest else None
        return json_response({"corporate_actions": grouped, "next_page_token": token})

    def _actions(self, params: Mapping[str, str], start: date, end: date) -> list[Action]:
        types = {t for t in params.get("types", "").split(",") if t}
        unknown = types - _TYPES.keys() - _OTHER_TYPES
        if unknown:
            raise ApiError(400, f"invalid type: {min(unknown)}")
        names = [s for s in params.get("symbols", "").split(",") if s]
        symbols = names or self.view.source.symbols_with_actions()
        found = [
            action
            for symbol in dict.fromkeys(symbols)
            for action in self.view.known_actions(symbol)
            if start <= action.processed <= end and (not types or _type(action) in types)
        ]
        return sorted(found, key=lambda a: (a.processed, a.symbol, a.amount))


def _asset_json(asset: Asset) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid5(_NAMESPACE, asset.symbol)),
        "class": "us_equity",
        "exchange": asset.exchange,
        "symbol": asset.symbol,
        "name": asset.name,
        "status": "active",
        "tradable": True,
        "marginable": True,
        "shortable": True,
        "easy_to_borrow": True,
        "fractionable": True,
        "attributes": [],
    }


def _type(action: Action) -> str:
    if not action.is_split:
        return "cash_dividend"
    return "forward_split" if action.ratio > 1 else "reverse_split"


def _action_json(action: Action) -> dict[str, Any]:
    kind = _type(action)
    name = f"{action.symbol} {action.ex_date} {kind}"
    cusip = uuid.uuid5(_NAMESPACE, action.symbol).hex[:9].upper()
    record: dict[str, Any] = {
        "id": str(uuid.uuid5(_NAMESPACE, name)),
        "symbol": action.symbol,
        "ex_date": action.ex_date.isoformat(),
        "process_date": action.processed.isoformat(),
        "record_date": (action.ex_date - timedelta(days=1)).isoformat(),
    }
    if kind == "cash_dividend":
        return record | {
            "cusip": cusip,
            "rate": action.amount,
            "special": False,
            "foreign": False,
            "payable_date": action.processed.isoformat(),
        }
    rates = {"new_rate": plain_number(action.new), "old_rate": plain_number(action.old)}
    if kind == "forward_split":
        return record | rates | {"cusip": cusip, "payable_date": action.processed.isoformat()}
    return record | rates | {"old_cusip": cusip, "new_cusip": cusip[::-1]}


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
