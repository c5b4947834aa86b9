"""What yfinance asks of Yahoo: the chart endpoint, and the cookie, crumb and consent pages.

Source: the requests and parsers of yfinance 1.7 (``data.py``, ``base.py``, ``scrapers/history.py``)
and recorded answers of ``/v8/finance/chart``. Yahoo's prices, volumes and dividends are divided by
every split in effect today; its limits on old intraday data are Yahoo's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Final

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from marketdata.clock import from_micros
from marketdata.sandbox.source import (
    plain_number,
    rebased,
)
from marketdata.sandbox.view import MarketView
from marketdata.sandbox.yahoo_bars import COARSE, INTRADAY, ChartBars, ChartQuery
from marketdata.spans import Span
from marketdata.types import (
    CLOSE,
    DAY,
    HIGH,
    HOUR,
    LOW,
    MINUTE,
    OPEN,
    SECOND,
    VOLUME,
    Floats,
)

_RANGES: Final = {
    "1mo": 31, "3mo": 92, "6mo": 183, "1y": 365, "2y": 731, "5y": 1827, "10y": 3653,
}  # fmt: skip
_VALID_RANGES: Final = ["1d", "5d", *_RANGES, "ytd", "max"]
_SPAN_OF_MINUTES: Final = 8 * DAY
_FIELDS: Final = (("open", OPEN), ("high", HIGH), ("low", LOW), ("close", CLOSE))


class ChartError(Exception):
    """An answer with ``chart.error`` filled in."""

    def __init__(self, status: int, code: str, description: str) -> None:
        super().__init__(description)
        self.status, self.code, self.description = status, code, description

    def response(self) -> Response:
        error = {"code": self.code, "description": self.description}
        return _json({"chart": {"result": None, "error": error}}, self.status)


class YahooChart:
    """Handlers of the Yahoo paths.

    Parameters
    ----------
    view : MarketView
        The market at the clock's time.
    live_row : bool
        Whether the answer ends, while the market is open, with a row stamped with the present
        second and volume 0, as Yahoo's do.
    """

    def __init__(self, view: MarketView, *, live_row: bool) -> None:
        self.view = view
        self.bars = ChartBars(view)
        self.live_row = live_row

    def routes(self) -> list[Route]:
        return [
            Route("/v8/finance/chart/{symbol}", self.chart),
            Route("/v1/test/getcrumb", self.crumb),
            Route("/consent", self.consent),
            Route("/v2/collectConsent", self.nothing, methods=["POST"]),
            Route("/copyConsent", self.nothing),
            Route("/", self.nothing),
            Route("/v10/finance/quoteSummary/{symbol}", self.no_summary),
            Route("/v7/finance/quote", self.no_summary),
        ]

    # -------------------------------------------------------------------- cookie and crumb

    async def crumb(self, request: Request) -> Response:
        return Response("sandboxcrumb", media_type="text/plain")

    async def consent(self, request: Request) -> Response:
        fields = "".join(
            f'<input type="hidden" name="{name}" value="sandbox">'
            for name in ("csrfToken", "sessionId")
        )
        return Response(f"<html><form>{fields}</form></html>", media_type="text/html")

    async def nothing(self, request: Request) -> Response:
        """Answer the pages that only set cookies. None is set: yfinance would keep it on disk."""
        return Response("", media_type="text/html")

    async def no_summary(self, request: Request) -> Response:
        error = {"code": "Not Found", "description": "Quote not found"}
        return _json({"quoteSummary": {"result": None, "error": error}}, 404)

    # ------------------------------------------------------------------------------ chart

    async def chart(self, request: Request) -> Response:
        """Answer ``/v8/finance/chart/{symbol}``."""
        try:
            query = self._query(request.path_params["symbol"], request.query_params)
            return _json({"chart": {"result": [self._result(query)], "error": None}})
        except ChartError as error:
            return error.response()

    def _query(self, ticker: str, params: Mapping[str, str]) -> ChartQuery:
        asset = self.view.source.asset(ticker.upper().replace("-", "."))
        asset = asset or self.view.source.asset(ticker)
        today = self.view.today
        gone = asset is not None and not asset.active_on(today)
        if asset is None or gone or self.view.source.first_day(asset.symbol) > today:
            raise ChartError(404, "Not Found", "No data found, symbol may be delisted")
        interval = params.get("interval", "1d")
        if interval not in INTRADAY and interval not in COARSE:
            raise ChartError(
                422,
                "Unprocessable Entity",
                f"Invalid input - interval={interval} is not supported. Valid intervals: "
                f"[{', '.join([*INTRADAY, '4h', *COARSE])}]",
            )
        name = params.get("range", "")
        try:
            span = (
                Span(
                    int(float(params["period1"])) * SECOND,
                    int(float(params.get("period2", self.view.now // SECOND))) * SECOND,
                )
                if "period1" in params
                else self._range(asset.symbol, name or "1d", interval)
            )
        except (ValueError, OverflowError):
            raise ChartError(400, "Bad Request", "Invalid input - period1 or period2") from None
        if span.end < span.start:
            raise ChartError(
                400, "Bad Request", "Invalid input - start date cannot be after end date."
            )
        self._check_age(interval, span)
        extended = params.get("includePrePost", "false").lower() == "true"
        address = self.view.whole(asset.symbol, today)
        return ChartQuery(asset, ticker.upper(), interval, span, extended, name, address)

    def _range(self, symbol: str, name: str, interval: str) -> Span:
        calendar, now = self.view.calendar, self.view.now
        end = now + SECOND
        session = max(calendar.session_at(now), 5)
        if now < calendar.session_span(session, "extended").start:
            session -= 1
        if name in ("1d", "5d"):
            return Span(int(calendar.midnight[session - (name == "5d") * 4]), end)
        today = self.view.today
        if name == "ytd":
            return Span(calendar.midnight_of(date(today.year, 1, 1)), end)
        if name == "max":
            if interval in INTRADAY:
                return Span(now - (_max_age(interval) or DAY) + HOUR, end)
            return Span(calendar.midnight_of(self.view.source.first_day(symbol)), end)
        if name not in _RANGES:
            raise ChartError(
                422,
                "Unprocessable Entity",
                f"Invalid input - range={name} is not supported. Valid ranges: {_VALID_RANGES}",
            )
        return Span(calendar.midnight_of(today - timedelta(days=_RANGES[name])), end)

    def _check_age(self, interval: str, span: Span) -> None:
        """Refuse what Yahoo refuses: minutes over 8 days, and intraday bars that are too old."""
        age = _max_age(interval)
        if age is None:
            return
        start, end = span.start // SECOND, span.end // SECOND
        asked = f"{interval} data not available for startTime={start} and endTime={end}. "
        reached = min(span.end, self.view.now)
        if interval == "1m" and reached - span.start > _SPAN_OF_MINUTES:
            raise ChartError(
                422,
                "Unprocessable Entity",
                asked + "Only 8 days worth of 1m granularity data are allowed to be fetched per "
                "request.",
            )
        if self.view.now - span.start > age:
            raise ChartError(
                422,
                "Unprocessable Entity",
                asked + f"The requested range must be within the last {age // DAY} days.",
            )

    def _result(self, query: ChartQuery) -> dict[str, Any]:
        symbol, daily = query.address, query.interval in COARSE
        bars = self.bars.coarse(query) if daily else self.bars.intraday(query)
        stamps = bars.timestamp
        if query.interval == "1d":
            stamps = self.bars.opens(stamps)
        bars = rebased(bars, self.view.factors(symbol, bars.timestamp, "split"))
        adjusted = self.bars.adjusted_close(symbol, bars) if daily else None
        if self.live_row:
            bars, stamps, adjusted = self.bars.with_live_row(query, bars, stamps, adjusted)
        result: dict[str, Any] = {"meta": self._meta(query)}
        if not len(bars):
            return result | {"indicators": {"quote": [{}]}}
        result["timestamp"] = (stamps // SECOND).tolist()
        events = self._events(query)
        if events:
            result["events"] = events
        quote: dict[str, Any] = {name: _numbers(bars.values[row]) for name, row in _FIELDS}
        quote["volume"] = [
            None if math.isnan(v) else round(v) for v in bars.values[VOLUME].tolist()
        ]
        result["indicators"] = {"quote": [quote]}
        if adjusted is not None:
            result["indicators"]["adjclose"] = [{"adjclose": _numbers(adjusted)}]
        return result

    # --------------------------------------------------------------------- events and meta

    def _events(self, query: ChartQuery) -> dict[str, Any]:
        calendar, today = self.view.calendar, self.view.today
        actions = self.view.source.actions(query.address)
        dividends: dict[str, Any] = {}
        splits: dict[str, Any] = {}
        for action in actions:
            if action.ex_date > today:
                continue
            at = int(np.searchsorted(calendar.midnight, calendar.midnight_of(action.ex_date)))
            if at >= len(calendar.open):
                continue
            moment = int(calendar.open[at])
            if not query.span.start <= moment < query.span.end:
                continue
            stamp = moment // SECOND
            if action.is_split:
                # A stock dividend of 1 for 20 is told of as a split of 21 for 20.
                added = action.old if action.type == "stock_dividend" else 0.0
                new, old = plain_number(action.new + added), plain_number(action.old)
                splits[str(stamp)] = {
                    "date": stamp,
                    "numerator": new,
                    "denominator": old,
                    "splitRatio": f"{new}:{old}",
                }
            elif action.type == "cash_dividend":
                later = [
                    a.ratio for a in actions if a.is_split and action.ex_date < a.ex_date <= today
                ]
                earlier = dividends.get(str(stamp), {"amount": 0.0})["amount"]
                amount = round(earlier + action.amount / float(np.prod(later)), 6)
                dividends[str(stamp)] = {"amount": amount, "date": stamp}
        found = {"dividends": dividends, "splits": splits}
        return {name: events for name, events in found.items() if events}

    def _meta(self, query: ChartQuery) -> dict[str, Any]:
        calendar, now = self.view.calendar, self.view.now
        symbol = query.asset.symbol
        session = max(calendar.session_at(now), 0)
        offset, zone = self._zone(now)
        first = calendar.midnight_of(self.view.source.first_day(symbol)) + 9 * HOUR + 30 * MINUTE
        meta: dict[str, Any] = {
            "currency": "USD",
            "symbol": query.ticker,
            "exchangeName": "NMS" if query.asset.exchange == "NASDAQ" else "NYQ",
            "fullExchangeName": query.asset.exchange,
            "instrumentType": query.asset.kind,
            "firstTradeDate": first // SECOND,
            "hasPrePostMarketData": True,
            "gmtoffset": offset,
            "timezone": zone,
            "exchangeTimezoneName": "America/New_York",
            "longName": query.asset.name,
            "shortName": query.asset.name,
            "priceHint": 2,
            "currentTradingPeriod": self._periods(session),
            "dataGranularity": query.interval,
            "range": query.range,
            "validRanges": _VALID_RANGES,
        }
        newest = self.view.days(query.address, Span(now - 20 * DAY, now), "sip").last(1)
        if len(newest):
            newest = rebased(newest, self.view.factors(query.address, newest.timestamp, "split"))
            close = float(newest.values[CLOSE, 0])
            traded = min(now, calendar.session_span(session, "regular").end)
            if not math.isnan(close):
                meta |= {"regularMarketPrice": close, "chartPreviousClose": close}
            meta["regularMarketTime"] = traded // SECOND
        if query.interval in INTRADAY:
            meta["tradingPeriods"] = self._trading_periods(query)
        return meta

    def _zone(self, moment: int) -> tuple[int, str]:
        local = from_micros(moment).astimezone(self.view.calendar.zone)
        offset = local.utcoffset()
        assert offset is not None
        return int(offset.total_seconds()), local.tzname() or ""

    def _periods(self, session: int) -> dict[str, Any]:
        calendar = self.view.calendar
        regular = calendar.session_span(session, "regular")
        outer = calendar.session_span(session, "extended")
        spans = {
            "pre": Span(outer.start, regular.start),
            "regular": regular,
            "post": Span(regular.end, outer.end),
        }
        offset, zone = self._zone(regular.start)
        return {
            name: {
                "timezone": zone,
                "start": span.start // SECOND,
                "end": span.end // SECOND,
                "gmtoffset": offset,
            }
            for name, span in spans.items()
        }

    def _trading_periods(self, query: ChartQuery) -> Any:
        """Return the sessions asked for: a list, or by part where extended hours are asked."""
        calendar = self.view.calendar
        low = calendar.session_at(query.span.start)
        high = calendar.session_at(min(query.span.end, self.view.now))
        sessions = [self._periods(i) for i in range(max(low, 0), high + 1)]
        if not query.extended:
            return [[s["regular"]] for s in sessions]
        return {part: [[s[part]] for s in sessions] for part in ("pre", "post", "regular")}


def _max_age(interval: str) -> int | None:
    if interval == "1m":
        return 30 * DAY
    if interval in ("60m", "1h"):
        return 730 * DAY
    return 60 * DAY if interval in INTRADAY else None


def _numbers(values: Floats) -> list[float | None]:
    return [None if math.isnan(v) else v for v in values.tolist()]


def _json(body: object, status: int = 200) -> Response:
    return Response(json.dumps(body, separators=(",", ":")), status, media_type="application/json")
