"""What yfinance asks of Yahoo: the chart endpoint, and the cookie, crumb and consent pages.

Source: the requests and parsers of yfinance 1.7 (``data.py``, ``base.py``, ``scrapers/history.py``)
and recorded answers of ``/v8/finance/chart``. Yahoo's prices, volumes and dividends are divided by
every split in effect today; its limits on old intraday data are Yahoo's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from marketdata.clock import from_micros
from marketdata.sandbox.source import (
    Asset,
    aggregate,
    dividend_factors,
    plain_number,
    rebased,
)
from marketdata.sandbox.view import MarketView, Period
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
    Bars,
    Floats,
    Int64s,
)

_INTRADAY: Final = {
    "1m": 1, "2m": 2, "5m": 5, "15m": 15, "30m": 30, "60m": 60, "90m": 90, "1h": 60,
}  # fmt: skip
_COARSE: Final = {
    "1d": Period(1, "day"),
    "5d": Period(1, "week"),
    "1wk": Period(1, "week"),
    "1mo": Period(1, "month"),
    "3mo": Period(3, "month"),
}
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


@dataclass(frozen=True, slots=True)
class ChartQuery:
    """One chart request, checked: bars of `interval` labelled in `span`."""

    asset: Asset
    ticker: str
    interval: str
    span: Span
    extended: bool
    range: str


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
        if asset is None or self.view.source.first_day(asset.symbol) > self.view.today:
            raise ChartError(404, "Not Found", "No data found, symbol may be delisted")
        interval = params.get("interval", "1d")
        if interval not in _INTRADAY and interval not in _COARSE:
            raise ChartError(
                422,
                "Unprocessable Entity",
                f"Invalid input - interval={interval} is not supported. Valid intervals: "
                f"[{', '.join([*_INTRADAY, '4h', *_COARSE])}]",
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
        return ChartQuery(asset, ticker.upper(), interval, span, extended, name)

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
            if interval in _INTRADAY:
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
        symbol, daily = query.asset.symbol, query.interval in _COARSE
        bars = self._coarse(query) if daily else self._intraday(query)
        stamps = bars.timestamp
        if query.interval == "1d":
            stamps = self._opens(stamps)
        bars = rebased(bars, self.view.factors(symbol, bars.timestamp, "split"))
        adjusted = self._adjusted_close(symbol, bars) if daily else None
        if self.live_row:
            bars, stamps, adjusted = self._with_live_row(query, bars, stamps, adjusted)
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

    # ------------------------------------------------------------------------------- bars

    def _coarse(self, query: ChartQuery) -> Bars:
        found = list(self.view.bars(query.asset.symbol, _COARSE[query.interval], query.span, "sip"))
        return Bars.concat(found)

    def _opens(self, midnights: Int64s) -> Int64s:
        """Yahoo labels a daily bar with its session's opening."""
        calendar = self.view.calendar
        return calendar.open[calendar.session_index(midnights)]

    def _intraday(self, query: ChartQuery) -> Bars:
        step = _INTRADAY[query.interval] * MINUTE
        hours = "extended" if query.extended else "regular"
        reach = Span(query.span.start - step, query.span.end + step)
        found = []
        for section in self._sections(reach, hours):
            pieces = list(self.view.minutes(query.asset.symbol, section, "sip"))
            bars = Bars.concat(pieces)
            labels = section.start + (bars.timestamp - section.start) // step * step
            joined = aggregate(bars, labels)
            if self.view.calendar.is_open(section.start):
                joined = self._with_gaps(joined, section, step)
            else:
                # Yahoo has no volume outside regular hours.
                joined = Bars(joined.timestamp, joined.values.copy())
                joined.values[VOLUME] = 0.0
            found.append(joined)
        return Bars.concat(found).within(query.span)

    def _sections(self, span: Span, hours: str) -> list[Span]:
        """Return the parts of each session in which bins are counted from the part's start."""
        calendar = self.view.calendar
        low = max(calendar.session_at(span.start), 0)
        high = calendar.session_at(min(span.end, self.view.now))
        found = []
        for index in range(low, high + 1):
            regular = calendar.session_span(index, "regular")
            if hours == "extended":
                outer = calendar.session_span(index, "extended")
                found += [
                    Span(outer.start, regular.start),
                    regular,
                    Span(regular.end, outer.end),
                ]
            else:
                found.append(regular)
        return found

    def _with_gaps(self, bars: Bars, section: Span, step: int) -> Bars:
        """Put in the rows of nulls that Yahoo has for regular minutes without a trade."""
        end = min(section.end, self.view.now - MINUTE + 1)
        grid = np.arange(section.start, end, step, dtype=np.int64)
        if len(grid) == len(bars):
            return bars
        values = np.full((len(bars.values), len(grid)), np.nan)
        values[:, np.searchsorted(grid, bars.timestamp)] = bars.values
        return Bars(grid, values)

    def _with_live_row(
        self, query: ChartQuery, bars: Bars, stamps: Int64s, adjusted: Floats | None
    ) -> tuple[Bars, Int64s, Floats | None]:
        now = self.view.now
        hours: Any = "extended" if query.extended else "regular"
        if not self.view.calendar.is_open(now, hours) or not query.span.start <= now:
            return bars, stamps, adjusted
        second = now // SECOND * SECOND
        if query.interval == "1d" and len(bars) and self._is_today(int(bars.timestamp[-1])):
            # The running day's row carries the time of its last trade.
            return bars, np.r_[stamps[:-1], second], adjusted
        newest = self.view.newest_minute(query.asset.symbol, "sip")
        if not len(newest) or second % MINUTE == 0:
            return bars, stamps, adjusted
        newest = rebased(newest, self.view.factors(query.asset.symbol, newest.timestamp, "split"))
        values = np.full((len(bars.values), 1), float(newest.values[CLOSE, 0]))
        values[VOLUME] = 0.0
        live = Bars(np.array([second]), values)
        if adjusted is not None:
            adjusted = np.concatenate([adjusted, values[CLOSE]])
        return Bars.concat([bars, live]), np.r_[stamps, second], adjusted

    def _is_today(self, midnight: int) -> bool:
        return midnight == self.view.calendar.midnight_of(self.view.today)

    def _adjusted_close(self, symbol: str, bars: Bars) -> Floats:
        closes: Floats = bars.values[CLOSE]
        if not len(bars):
            return closes
        today = self.view.today
        paid = [a for a in self.view.source.actions(symbol) if a.amount and a.ex_date <= today]
        if not paid:
            return closes
        days = self.view.days(symbol, Span(int(bars.timestamp[0]) - 10 * DAY, self.view.now), "sip")
        raw = rebased(days, self.view.factors(symbol, days.timestamp, "raw"))
        return np.asarray(closes * dividend_factors(bars.timestamp, paid, raw))

    # --------------------------------------------------------------------- events and meta

    def _events(self, query: ChartQuery) -> dict[str, Any]:
        calendar, today = self.view.calendar, self.view.today
        actions = self.view.source.actions(query.asset.symbol)
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
                splits[str(stamp)] = {
                    "date": stamp,
                    "numerator": plain_number(action.new),
                    "denominator": plain_number(action.old),
                    "splitRatio": f"{plain_number(action.new)}:{plain_number(action.old)}",
                }
            else:
                later = [
                    a.ratio for a in actions if a.is_split and action.ex_date < a.ex_date <= today
                ]
                amount = round(action.amount / float(np.prod(later)), 6)
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
        newest = self.view.days(symbol, Span(now - 20 * DAY, now), "sip").last(1)
        if len(newest):
            newest = rebased(newest, self.view.factors(symbol, newest.timestamp, "split"))
            close = float(newest.values[CLOSE, 0])
            traded = min(now, calendar.session_span(session, "regular").end)
            if not math.isnan(close):
                meta |= {"regularMarketPrice": close, "chartPreviousClose": close}
            meta["regularMarketTime"] = traded // SECOND
        if query.interval in _INTRADAY:
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
    return 60 * DAY if interval in _INTRADAY else None


def _numbers(values: Floats) -> list[float | None]:
    return [None if math.isnan(v) else v for v in values.tolist()]


def _json(body: object, status: int = 200) -> Response:
    return Response(json.dumps(body, separators=(",", ":")), status, media_type="application/json")
