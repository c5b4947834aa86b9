"""The control API under ``/_sandbox/``, for those who run the sandbox from another process."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from marketdata.clock import FixedClock, from_micros, parse_clock
from marketdata.errors import MarketDataError
from marketdata.sandbox.answers import json_response
from marketdata.sandbox.faults import Fault
from marketdata.sandbox.files import FileMarket
from marketdata.sandbox.generated import GeneratedMarket
from marketdata.sandbox.source import Action

if TYPE_CHECKING:
    from marketdata.sandbox.server import Sandbox


def control_routes(sandbox: Sandbox) -> list[Route]:
    """Return the routes that read counts, order faults, move the clock and add actions."""
    control = _Control(sandbox)
    return [
        Route("/_sandbox/", control.about, methods=["GET"]),
        Route("/_sandbox/requests", control.requests, methods=["GET", "DELETE"]),
        Route("/_sandbox/faults", control.faults, methods=["GET", "POST", "DELETE"]),
        Route("/_sandbox/clock", control.clock, methods=["GET", "POST"]),
        Route("/_sandbox/trading", control.trading, methods=["GET", "POST"]),
        Route("/_sandbox/splits", control.splits, methods=["POST"]),
        Route("/_sandbox/actions", control.actions, methods=["GET", "POST", "PATCH", "DELETE"]),
    ]


class _Control:
    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    async def about(self, request: Request) -> Response:
        """``GET /_sandbox/``: what this is."""
        source = self.sandbox.source
        return json_response(
            {
                "simulated": True,
                "source": type(source).__name__,
                "symbols": len(source.assets()),
                "clock": repr(self.sandbox.clock),
            }
        )

    async def requests(self, request: Request) -> Response:
        """``GET /_sandbox/requests?prefix=/v2/stocks/bars&log=1``: how many, and which."""
        log = self.sandbox.requests
        if request.method == "DELETE":
            log.clear()
            return json_response({"count": 0})
        found = log.matching(request.query_params.get("prefix", ""))
        body: dict[str, Any] = {"count": len(found)}
        if request.query_params.get("log"):
            body["requests"] = [asdict(r) for r in found]
        return json_response(body)

    async def faults(self, request: Request) -> Response:
        """``POST /_sandbox/faults`` with the fields of `Fault`; GET lists, DELETE clears."""
        plan = self.sandbox.faults
        if request.method == "DELETE":
            plan.clear()
        elif request.method == "POST":
            try:
                plan.add(Fault(**await request.json()))
            except (TypeError, ValueError, MarketDataError) as error:
                return json_response({"message": str(error)}, 400)
        return json_response({"faults": [f.to_record() for f in plan]})

    async def clock(self, request: Request) -> Response:
        """``POST /_sandbox/clock`` with ``{"clock": "<as MARKETDATA_CLOCK>"}`` or
        ``{"advance": seconds}`` for one that stands still."""
        if request.method == "POST":
            try:
                body = await request.json()
                if "clock" in body:
                    self.sandbox.clock = parse_clock(body["clock"])
                clock = self.sandbox.clock
                if "advance" in body and isinstance(clock, FixedClock):
                    clock.advance(seconds=float(body["advance"]))
            except (TypeError, ValueError, MarketDataError) as error:
                return json_response({"message": str(error)}, 400)
        now = from_micros(self.sandbox.view.now).isoformat()
        return json_response({"clock": repr(self.sandbox.clock), "now": now})

    async def trading(self, request: Request) -> Response:
        """``GET /_sandbox/trading?key=KEY``: what happened to an account, and whether it adds up.

        POST with ``most_shares`` or ``ids_checked_last`` sets what `Desk` says of them.
        """
        desk = self.sandbox.trading.desk(request.query_params.get("key", ""))
        if request.method == "POST":
            try:
                body = await request.json()
                most = body.get("most_shares", desk.most_shares)
                desk.most_shares = None if most is None else Decimal(str(most))
                desk.ids_checked_last = bool(body.get("ids_checked_last", desk.ids_checked_last))
            except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
                return json_response({"message": f"{type(error).__name__}: {error}"}, 400)
        desk.catch_up()
        return json_response(
            {
                "counts": dict(desk.counts),
                "contradictions": desk.contradictions(),
                "positions": {s: str(p.qty) for s, p in desk.positions.items()},
                "most_shares": None if desk.most_shares is None else str(desk.most_shares),
                "ids_checked_last": desk.ids_checked_last,
            }
        )

    async def splits(self, request: Request) -> Response:
        """``POST /_sandbox/splits``: let a split happen in a generated market."""
        source = self.sandbox.source
        if not isinstance(source, GeneratedMarket):
            return json_response({"message": "prices from files do not change"}, 400)
        try:
            body = await request.json()
            announced = body.get("announced")
            source.add_split(
                body["symbol"],
                date.fromisoformat(body["ex_date"]),
                float(body["new"]),
                float(body.get("old", 1)),
                announced=None if announced is None else date.fromisoformat(announced),
            )
        except (KeyError, TypeError, ValueError) as error:
            return json_response({"message": f"{type(error).__name__}: {error}"}, 400)
        return json_response({"symbol": body["symbol"]})

    async def actions(self, request: Request) -> Response:
        """``/_sandbox/actions``: what is told of corporate actions.

        POST with the fields of `Action` lets one happen, late if it was before now, and answers
        with its id; ``"happens": false`` only tells of it. PATCH with ``id`` and new values
        corrects what is told, DELETE ``?id=`` withdraws it, GET ``?symbol=`` lists.
        """
        source = self.sandbox.source
        if not isinstance(source, GeneratedMarket | FileMarket):
            return json_response({"message": "this market tells of no other actions"}, 400)
        params = request.query_params
        try:
            if request.method == "GET":
                return json_response([_record(a) for a in source.actions(params["symbol"])])
            if request.method == "DELETE":
                source.withdraw_action(params["id"])
                return json_response({"id": params["id"]})
            fields = await request.json()
            for name in ("ex_date", "process_date", "announced"):
                if fields.get(name) is not None:
                    fields[name] = date.fromisoformat(fields[name])
            if request.method == "PATCH":
                return json_response(_record(source.correct_action(fields.pop("id"), **fields)))
            happens = fields.pop("happens", True)
            action = Action(**fields)
            if isinstance(source, GeneratedMarket):
                source.add_action(action, happens=happens)
            else:
                source.add_action(action)
        except (KeyError, TypeError, ValueError) as error:
            return json_response({"message": f"{type(error).__name__}: {error}"}, 400)
        return json_response(_record(action))


def _record(action: Action) -> dict[str, Any]:
    dates = {
        name: None if day is None else day.isoformat()
        for name in ("ex_date", "process_date", "announced")
        for day in (getattr(action, name),)
    }
    return asdict(action) | dates | {"id": action.id, "type": action.type}
