"""The HTTP side of the trading API: one account for each API key."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from marketdata.sandbox.answers import ApiError, json_response
from marketdata.sandbox.corporate import AlpacaActions
from marketdata.sandbox.trading.accepting import accept, replace
from marketdata.sandbox.trading.book import (
    PaperOrder,
    PaperPosition,
    cents,
    instant,
    new_id,
    number,
    order_json,
    position_json,
)
from marketdata.sandbox.trading.desk import CASH, MULTIPLIER, Desk
from marketdata.sandbox.trading.listings import activities, listed_orders
from marketdata.sandbox.trading.reference import AlpacaReference
from marketdata.sandbox.trading.tape import Tape
from marketdata.sandbox.trading.tickets import (
    NOT_FOUND,
    decimal_of,
    not_allowed,
    unreadable,
)
from marketdata.sandbox.view import MarketView

Answer = Callable[[Request], Awaitable[Response]]


class AlpacaTrading:
    """Handlers of the trading API, of assets, calendar and clock, and of corporate actions.

    Attributes
    ----------
    cash : Decimal
        Dollars that an account begins with.
    most_shares, ids_checked_last
        Of the accounts to come, see `Desk`.
    """

    def __init__(self, view: MarketView) -> None:
        self.view = view
        self.cash = CASH
        self.most_shares: Decimal | int | None = None
        self.ids_checked_last = False
        self._desks: dict[str, Desk] = {}

    def desk(self, key: str) -> Desk:
        """Return the account of an API key, opened with the first question about it."""
        desk = self._desks.get(key)
        if desk is None:
            desk = self._desks[key] = Desk(Tape(self.view), key, self.cash)
            desk.most_shares, desk.ids_checked_last = self.most_shares, self.ids_checked_last
        return desk

    def routes(self) -> list[Route]:
        paths: list[tuple[str, str, Callable[[Desk, Request], Awaitable[Response]]]] = [
            ("GET", "/v2/account", self.account),
            ("GET", "/v2/account/activities", self.activities),
            ("GET", "/v2/account/activities/{kind}", self.activities),
            ("POST", "/v2/orders", self.submit),
            ("GET", "/v2/orders", self.orders),
            ("DELETE", "/v2/orders", self.cancel_all),
            ("GET", "/v2/orders:by_client_order_id", self.order_by_client_id),
            ("GET", "/v2/orders/{id}", self.order),
            ("PATCH", "/v2/orders/{id}", self.replace),
            ("DELETE", "/v2/orders/{id}", self.cancel),
            ("GET", "/v2/positions", self.positions),
            ("DELETE", "/v2/positions", self.close_all),
            ("GET", "/v2/positions/{symbol}", self.position),
            ("DELETE", "/v2/positions/{symbol}", self.close),
        ]
        return [
            *(Route(path, self._up_to_date(f), methods=[how]) for how, path, f in paths),
            *AlpacaReference(self.view).routes(),
            Route("/v1/corporate-actions", AlpacaActions(self.view).answer),
        ]

    def _up_to_date(self, handler: Callable[[Desk, Request], Awaitable[Response]]) -> Answer:
        async def answer(request: Request) -> Response:
            given = request.headers
            desk = self.desk(given.get("apca-api-key-id") or given.get("authorization") or "")
            # Read first: between catching up and answering nothing else may happen.
            await request.body()
            desk.catch_up()
            return await handler(desk, request)

        return answer

    # -------------------------------------------------------------------------- account

    async def account(self, desk: Desk, request: Request) -> Response:
        figures = desk.figures()
        equity, power = cents(figures["equity"]), cents(figures["buying_power"])
        margin = number(figures["margin"])
        return json_response(
            {
                "id": new_id("account", desk.key),
                "account_number": "PA" + new_id("account", desk.key)[:8].upper(),
                "status": "ACTIVE",
                "currency": "USD",
                "buying_power": power,
                "regt_buying_power": power,
                "daytrading_buying_power": "0",
                "effective_buying_power": power,
                "non_marginable_buying_power": cents(figures["cash"]),
                "cash": cents(figures["cash"]),
                "accrued_fees": "0",
                "portfolio_value": equity,
                "pattern_day_trader": False,
                "trading_blocked": False,
                "transfers_blocked": False,
                "account_blocked": False,
                "created_at": instant(desk.opened),
                "trade_suspended_by_user": False,
                "multiplier": number(MULTIPLIER),
                "shorting_enabled": True,
                "equity": equity,
                "last_equity": equity,
                "long_market_value": cents(figures["long"]),
                "short_market_value": cents(figures["short"]),
                "position_market_value": cents(figures["long"] + figures["short"]),
                "initial_margin": margin,
                "maintenance_margin": margin,
                "last_maintenance_margin": margin,
                "sma": "0",
                "daytrade_count": 0,
            }
        )

    async def activities(self, desk: Desk, request: Request) -> Response:
        kind = request.path_params.get("kind") or request.query_params.get("activity_types")
        most = request.scope.get("sandbox.limit")
        return json_response(activities(desk, kind, request.query_params, most))

    # --------------------------------------------------------------------------- orders

    async def submit(self, desk: Desk, request: Request) -> Response:
        order = accept(desk, await _body(request))
        # The answer goes out before the order reaches the market: it never says "filled".
        answer = json_response(order_json(order))
        if order.status == "pending_new":
            order.status = "new"
        desk.trade_now(order)
        return answer

    async def orders(self, desk: Desk, request: Request) -> Response:
        return json_response(listed_orders(desk, request.query_params))

    async def order(self, desk: Desk, request: Request) -> Response:
        nested = request.query_params.get("nested", "").lower() == "true"
        return json_response(order_json(_found(desk, request), nested=nested))

    async def order_by_client_id(self, desk: Desk, request: Request) -> Response:
        wanted = request.query_params.get("client_order_id", "")
        order = desk.by_client_id.get(wanted)
        if order is None:
            raise ApiError(404, f"order not found for {wanted}", NOT_FOUND)
        return json_response(order_json(order, nested=False))

    async def replace(self, desk: Desk, request: Request) -> Response:
        order = replace(desk, _found(desk, request), await _body(request))
        answer = json_response(order_json(order))
        desk.trade_now(order)
        return answer

    async def cancel(self, desk: Desk, request: Request) -> Response:
        order = _found(desk, request)
        if not order.is_open:
            raise not_allowed(f'order is already in "{order.status}" state')
        desk.cancel(order)
        return Response(status_code=204)

    async def cancel_all(self, desk: Desk, request: Request) -> Response:
        found = [o for o in desk.open_orders() if o.parent is None]
        for order in found:
            if order.is_open:
                desk.cancel(order)
        rows = [{"id": o.id, "status": 200, "body": order_json(o)} for o in found]
        return json_response(rows, 207)

    # ------------------------------------------------------------------------ positions

    async def positions(self, desk: Desk, request: Request) -> Response:
        return json_response([_position(desk, p) for p in desk.positions.values()])

    async def position(self, desk: Desk, request: Request) -> Response:
        return json_response(_position(desk, _held(desk, request.path_params["symbol"])))

    async def close(self, desk: Desk, request: Request) -> Response:
        params = dict(request.query_params)
        position = _held(desk, request.path_params["symbol"])
        share = decimal_of(params, "percentage")
        qty = decimal_of(params, "qty")
        if qty is None:
            qty = abs(position.qty) if share is None else abs(position.qty) * share / 100
        return json_response(order_json(_closing(desk, position, qty)))

    async def close_all(self, desk: Desk, request: Request) -> Response:
        if request.query_params.get("cancel_orders", "").lower() == "true":
            for order in desk.open_orders():
                if order.is_open:
                    desk.cancel(order)
        rows = []
        for position in list(desk.positions.values()):
            row: dict[str, Any] = {"symbol": position.symbol}
            try:
                order = _closing(desk, position, abs(position.qty))
                row |= {"status": 200, "body": order_json(order)}
            except ApiError as error:
                body = {"code": error.code, "message": error.message, **error.facts}
                row |= {"status": error.status, "body": body}
            rows.append(row)
        return json_response(rows, 207)


def _closing(desk: Desk, position: PaperPosition, qty: Decimal) -> PaperOrder:
    """Give a market order against a position; it trades after it was looked at."""
    side = "sell" if position.qty > 0 else "buy"
    ticket = {
        "symbol": position.symbol,
        "qty": number(qty),
        "side": side,
        "type": "market",
        "time_in_force": "day",
    }
    order = accept(desk, ticket)
    desk.trade_now(order)
    return order


def _position(desk: Desk, position: PaperPosition) -> dict[str, Any]:
    asset = desk.tape.asset(position.symbol)
    price = desk.tape.last(position.symbol) or position.entry
    before = desk.tape.yesterdays_close(position.symbol) or price
    bound = desk.held_for_orders(position.symbol)
    exchange = "NASDAQ" if asset is None else asset.exchange
    return position_json(position, price, before, bound, exchange)


def _held(desk: Desk, symbol: str) -> PaperPosition:
    position = desk.positions.get(symbol)
    if position is not None:
        return position
    known = desk.tape.asset(symbol) is not None
    message = "position does not exist" if known else f"symbol not found: {symbol}"
    raise ApiError(404, message, NOT_FOUND)


def _found(desk: Desk, request: Request) -> PaperOrder:
    wanted = request.path_params["id"]
    try:
        UUID(wanted)
    except ValueError:
        raise unreadable("order_id is missing") from None
    order = desk.orders.get(wanted)
    if order is None:
        raise ApiError(404, f"order not found for {wanted}", NOT_FOUND)
    return order


async def _body(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request; what Alpaca says of another body is a guess."""
    try:
        body = json.loads(await request.body())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "request body format is invalid", 40010000)
    return body
