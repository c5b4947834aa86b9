"""What trading and market data both ask for: assets, calendar and clock."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from marketdata.clock import from_micros
from marketdata.sandbox.answers import ApiError, json_response, parse_date
from marketdata.sandbox.source import Asset
from marketdata.sandbox.trading.book import new_id
from marketdata.sandbox.view import MarketView


class AlpacaReference:
    """Handlers of assets, calendar and clock."""

    def __init__(self, view: MarketView) -> None:
        self.view = view

    def routes(self) -> list[Route]:
        return [
            Route("/v2/assets", self.assets),
            Route("/v2/assets/{symbol}", self.asset),
            Route("/v2/calendar", self.calendar),
            Route("/v2/clock", self.clock),
        ]

    # ----------------------------------------------------------------------------- assets

    async def assets(self, request: Request) -> Response:
        params = request.query_params
        if params.get("asset_class", "us_equity") != "us_equity":
            return json_response([])
        status, exchange = params.get("status"), params.get("exchange")
        found = [a for a in self.view.source.assets() if exchange in (None, a.exchange)]
        records = [self._record(a) for a in found if self._listed(a)]
        return json_response([r for r in records if status in (None, r["status"])])

    async def asset(self, request: Request) -> Response:
        symbol = request.path_params["symbol"]
        asset = self.view.source.asset(symbol)
        if asset is None or not self._listed(asset):
            raise ApiError(404, f"asset not found for {symbol}", 40410000)
        return json_response(self._record(asset))

    def _listed(self, asset: Asset) -> bool:
        return self.view.source.first_day(asset.symbol) <= self.view.today

    def _record(self, asset: Asset) -> dict[str, Any]:
        """Return an asset; one that was renamed or delisted is inactive, and not traded."""
        return _asset_json(asset, active=asset.active_on(self.view.today))

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


def _asset_json(asset: Asset, *, active: bool) -> dict[str, Any]:
    return {
        "id": new_id(asset.symbol),
        "class": "us_equity",
        "exchange": asset.exchange,
        "symbol": asset.symbol,
        "name": asset.name,
        "status": "active" if active else "inactive",
        "tradable": active,
        "marginable": True,
        "shortable": True,
        "easy_to_borrow": True,
        "fractionable": True,
        "attributes": [],
    }
