"""Alpaca's market-data REST API v2, as its OpenAPI description and its clients have it.

Bars, latest bars, quotes and trades, snapshots. Source of every path, parameter and key: the
Alpaca market-data OpenAPI description; where it is silent (error texts, date-only ranges) the
answers follow what the service has been seen to say.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from marketdata.clock import from_micros, to_micros
from marketdata.sandbox.answers import ApiError, json_response, parse_date, parse_limit
from marketdata.sandbox.encoding import encode_bars
from marketdata.sandbox.source import dividend_factors, rebased
from marketdata.sandbox.view import MarketView, Period
from marketdata.spans import Span
from marketdata.types import CLOSE, DAY, HIGH, LOW, MINUTE, OPEN, SECOND, VOLUME, VWAP, Bars

RECENT: Final = 15 * MINUTE
"""How old SIP data must be for an account without real-time rights."""
RECENT_SIP_MESSAGE: Final = "subscription does not permit querying recent SIP data"
_HISTORICAL_FEEDS: Final = ("sip", "iex", "boats", "otc")
_LATEST_FEEDS: Final = (*_HISTORICAL_FEEDS, "delayed_sip", "overnight")
_ADJUSTMENTS: Final = {"raw", "split", "dividend", "spin-off", "all"}
_MALFORMED: Final = re.compile(r"(?![A-Z]{1,7}(\.[A-Z0-9]{1,4}){0,2}$|S\d{4,5}$|SIM\d{1,6}$)")
_INSTANT: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?([Zz]|[+ -]\d\d:\d\d)"
)


@dataclass(frozen=True, slots=True)
class BarsQuery:
    """One request for historical bars, checked."""

    symbols: tuple[str, ...]
    period: Period
    span: Span
    limit: int
    feed: str
    adjustments: frozenset[str]
    token: tuple[str, int] | None
    newest_first: bool
    asof: date | None
    """The day on which symbols are what is asked for, earlier names included; None asks for what
    had the symbol at the time."""


class AlpacaData:
    """Handlers of the market-data paths.

    Parameters
    ----------
    view : MarketView
        The market at the clock's time.
    entitled_sip : bool
        Whether the account may see SIP data of the last 15 minutes.
    """

    def __init__(self, view: MarketView, *, entitled_sip: bool) -> None:
        self.view = view
        self.entitled_sip = entitled_sip

    def routes(self) -> list[Route]:
        found = [
            Route("/v2/stocks/bars", self.bars),
            Route("/v2/stocks/snapshots", self.snapshots),
            Route("/v2/stocks/{symbol}/bars", self.bars),
            Route("/v2/stocks/{symbol}/snapshot", self.snapshots),
        ]
        for kind in ("bars", "quotes", "trades"):
            found.append(Route(f"/v2/stocks/{kind}/latest", self.latest, name=kind))
            found.append(Route(f"/v2/stocks/{{symbol}}/{kind}/latest", self.latest, name=kind))
        # Fixed words come before a symbol of the same spelling.
        return sorted(found, key=lambda r: "{symbol}" in r.path)

    # ------------------------------------------------------------------------- historical

    async def bars(self, request: Request) -> Response:
        """Answer ``/v2/stocks/bars`` and ``/v2/stocks/{symbol}/bars``."""
        single = request.path_params.get("symbol")
        query = self._bars_query(request.query_params, single)
        cap = request.scope.get("sandbox.limit")
        limit = query.limit if cap is None else min(query.limit, cap)
        parts, token = self._page(query, limit)
        encoded = encode_bars([b for _, b in parts])
        tail = f',"next_page_token":{json.dumps(token)}'.encode()
        if single is not None:
            body = b'{"bars":[' + b"".join(encoded) + b"]" + tail
            body += f',"symbol":"{single}"}}'.encode()
        else:
            named = zip(parts, encoded, strict=True)
            inner = b",".join(b'"' + s.encode() + b'":[' + text + b"]" for (s, _), text in named)
            body = b'{"bars":{' + inner + b"}" + tail + b"}"
        return Response(body, media_type="application/json")

    def _bars_query(self, params: Mapping[str, str], single: str | None) -> BarsQuery:
        symbols = self._symbols(params, single)
        text = params.get("timeframe")
        period = Period.parse(text or "")
        if period is None:
            raise ApiError(400, f"invalid timeframe: {text}" if text else "timeframe is required")
        feed = params.get("feed", "sip")
        if feed not in _HISTORICAL_FEEDS:
            raise ApiError(400, f"invalid feed: {feed}")
        adjustments = frozenset(params.get("adjustment", "raw").split(","))
        if not adjustments <= _ADJUSTMENTS:
            raise ApiError(400, f"invalid adjustment: {params['adjustment']}")
        sort = params.get("sort", "asc")
        if sort not in ("asc", "desc"):
            raise ApiError(400, f"invalid sort: {sort}")
        asof = params.get("asof") or self.view.today.isoformat()
        token = params.get("page_token")
        return BarsQuery(
            symbols,
            period,
            self._span(params, feed),
            parse_limit(params, default=1000, most=10_000),
            feed,
            adjustments,
            _read_token(token, symbols) if token else None,
            sort == "desc",
            None if asof == "-" else parse_date(asof, "asof"),
        )

    def _symbols(self, params: Mapping[str, str], single: str | None) -> tuple[str, ...]:
        text = params.get("symbols", "") if single is None else single
        names = [s.strip() for s in text.split(",") if s.strip()]
        if not names:
            raise ApiError(400, "symbols is required")
        for name in names:
            if _MALFORMED.match(name) and self.view.source.asset(name) is None:
                raise ApiError(400, f"invalid symbol: {name}")
        return tuple(sorted(set(names)))

    def _span(self, params: Mapping[str, str], feed: str) -> Span:
        now = self.view.now
        newest = now if self.entitled_sip or feed != "sip" else now - RECENT
        start_text, end_text = params.get("start"), params.get("end")
        end = newest if not end_text else self._instant(end_text, "end")
        if end > newest and feed == "sip" and not self.entitled_sip:
            raise ApiError(403, RECENT_SIP_MESSAGE)
        if start_text:
            start = self._instant(start_text, "start")
        else:
            start = min(self.view.calendar.midnight_of(self.view.today), newest)
        if start > newest and feed == "sip" and not self.entitled_sip:
            raise ApiError(403, RECENT_SIP_MESSAGE)
        if end_text and end < start:
            raise ApiError(400, "end should not be before start")
        return Span(start, end + 1)

    def _instant(self, text: str, name: str) -> int:
        """Read an RFC 3339 instant, or a date as its exchange midnight, into microseconds."""
        match = _INSTANT.fullmatch(text)
        try:
            if match is None:
                return self.view.calendar.midnight_of(date.fromisoformat(text))
            zone = match[4].replace(" ", "+").upper()
            moment = datetime.fromisoformat(f"{match[1]}T{match[2]}{zone}")
        except ValueError:
            raise ApiError(
                400, f"Invalid format for parameter {name}: error parsing '{text}' as RFC3339"
            ) from None
        return to_micros(moment) + int((match[3] or "0").ljust(6, "0")[:6])

    def _page(self, query: BarsQuery, limit: int) -> tuple[list[tuple[str, Bars]], str | None]:
        """Return the bars of one page, by symbol and then time, and the token of the next."""
        parts: list[tuple[str, Bars]] = []
        missing = limit
        last: tuple[str, int] | None = None
        for symbol in query.symbols:
            span = query.span
            if query.token is not None:
                resumed, moment = query.token
                if symbol < resumed:
                    continue
                if symbol == resumed:
                    span = (
                        Span(span.start, moment)
                        if query.newest_first
                        else Span(moment + 1, span.end)
                    )
            mine: list[Bars] = []
            for piece in self._pieces(symbol, query, span):
                if not missing and len(piece):
                    if mine:
                        parts.append((symbol, Bars.concat(mine)))
                    assert last is not None
                    return parts, _write_token(*last)
                taken = Bars(piece.timestamp[:missing], piece.values[:, :missing])
                if len(taken):
                    mine.append(taken)
                    missing -= len(taken)
                    last = (symbol, int(taken.timestamp[-1]))
                if len(taken) < len(piece):
                    parts.append((symbol, Bars.concat(mine)))
                    assert last is not None
                    return parts, _write_token(*last)
            if mine:
                parts.append((symbol, Bars.concat(mine)))
        return parts, None

    def _pieces(self, symbol: str, query: BarsQuery, span: Span) -> Any:
        if self.view.source.asset(symbol) is None:
            return
        if query.asof is not None:
            symbol = self.view.whole(symbol, query.asof)
        found = self.view.bars(
            symbol, query.period, span, query.feed, newest_first=query.newest_first
        )
        for piece in found:
            if not len(piece):
                continue
            adjusted = self._adjusted(symbol, piece, query.adjustments)
            if query.newest_first:
                adjusted = adjusted.take(np.arange(len(adjusted))[::-1])
            yield adjusted

    def _adjusted(self, symbol: str, bars: Bars, adjustments: frozenset[str]) -> Bars:
        split = bool(adjustments & {"split", "all"})
        factors = self.view.factors(symbol, bars.timestamp, "split" if split else "raw")
        out = rebased(bars, factors)
        paid = self._dividend_factors(symbol, bars) if adjustments & {"dividend", "all"} else None
        if paid is not None:
            values = out.values.copy()
            values[[OPEN, HIGH, LOW, CLOSE, VWAP]] *= paid
            out = Bars(out.timestamp, values)
        if (split and factors is not None) or paid is not None:
            # Alpaca rounds adjusted prices to cents.
            out.values[[OPEN, HIGH, LOW, CLOSE]] = np.round(out.values[[OPEN, HIGH, LOW, CLOSE]], 2)
            out.values[[VOLUME, VWAP]] = np.round(out.values[[VOLUME, VWAP]], 6)
        return out

    def _dividend_factors(self, symbol: str, bars: Bars) -> Any:
        actions = [
            a
            for a in self.view.source.actions(symbol)
            if a.type == "cash_dividend" and a.ex_date <= self.view.today
        ]
        first = int(bars.timestamp.min())
        later = [a for a in actions if self.view.calendar.midnight_of(a.ex_date) > first]
        if not later:
            return None
        days = self.view.days(symbol, Span(first - 10 * DAY, self.view.now), "sip")
        raw = rebased(days, self.view.factors(symbol, days.timestamp, "raw"))
        return dividend_factors(bars.timestamp, later, raw)

    # ----------------------------------------------------------------------------- latest

    async def latest(self, request: Request) -> Response:
        """Answer the latest bar, quote or trade of one or several symbols."""
        kind = request.url.path.split("/")[-2]
        single = request.path_params.get("symbol")
        symbols = self._symbols(request.query_params, single)
        feed, delay = self._latest_feed(request.query_params)
        found = {}
        for symbol in symbols:
            answer = self._latest_of(kind, symbol, feed, delay)
            if answer is not None:
                found[symbol] = answer
        if single is None:
            return json_response({kind: found})
        if single not in found:
            raise ApiError(404, f"no {kind[:-1]} found for {single}")
        return json_response({"symbol": single, kind[:-1]: found[single]})

    async def snapshots(self, request: Request) -> Response:
        """Answer snapshots: a map by symbol without a wrapper, unknown symbols null."""
        single = request.path_params.get("symbol")
        symbols = self._symbols(request.query_params, single)
        feed, delay = self._latest_feed(request.query_params)
        found = {s: self._snapshot(s, feed, delay) for s in symbols}
        if single is None:
            return json_response(found)
        snapshot = found[single]
        if snapshot is None:
            raise ApiError(404, f"no snapshot found for {single}")
        return json_response({"symbol": single} | snapshot)

    def _latest_feed(self, params: Mapping[str, str]) -> tuple[str, int]:
        feed = params.get("feed", "sip" if self.entitled_sip else "iex").lower()
        if feed not in _LATEST_FEEDS:
            raise ApiError(400, f"invalid feed: {feed}")
        if feed == "sip" and not self.entitled_sip:
            raise ApiError(403, RECENT_SIP_MESSAGE)
        return ("sip", RECENT) if feed == "delayed_sip" else (feed, 0)

    def _latest_bar(self, symbol: str, feed: str, delay: int) -> Bars:
        if self.view.source.asset(symbol) is None:
            return Bars.empty()
        newest = self.view.newest_minute(symbol, feed, before=self.view.now - delay - MINUTE + 1)
        return self._adjusted(symbol, newest, frozenset({"raw"}))

    def _latest_of(self, kind: str, symbol: str, feed: str, delay: int) -> dict[str, Any] | None:
        bar = self._latest_bar(symbol, feed, delay)
        if not len(bar):
            return None
        if kind == "bars":
            return bar_json(bar)
        return _trade(bar) if kind == "trades" else _quote(bar)

    def _snapshot(self, symbol: str, feed: str, delay: int) -> dict[str, Any] | None:
        bar = self._latest_bar(symbol, feed, delay)
        if not len(bar):
            return None
        days = self.view.days(symbol, Span(self.view.now - 10 * DAY, self.view.now), feed).last(2)
        days = self._adjusted(symbol, days, frozenset({"raw"}))
        return {
            "latestTrade": _trade(bar),
            "latestQuote": _quote(bar),
            "minuteBar": bar_json(bar),
            "dailyBar": bar_json(days.last(1)) if len(days) else None,
            "prevDailyBar": bar_json(days.take(np.arange(1))) if len(days) > 1 else None,
        }


def bar_json(bar: Bars) -> dict[str, Any]:
    """Return the one bar of `bar` as Alpaca writes it."""
    found: dict[str, Any] = json.loads(encode_bars([bar])[0])
    return found


def _moment(micros: int) -> str:
    return from_micros(micros).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


def _trade(bar: Bars) -> dict[str, Any]:
    price = float(bar.values[CLOSE, 0])
    size = max(1, int(np.nan_to_num(bar.values[VOLUME, 0])) % 300)
    moment = int(bar.timestamp[0]) + 57 * SECOND + size * 9973 % SECOND
    return {
        "t": _moment(moment),
        "x": "D",
        "p": price,
        "s": size,
        "c": ["@"],
        "i": moment // SECOND % 100_000,
        "z": "C",
    }


def _quote(bar: Bars) -> dict[str, Any]:
    price = float(bar.values[CLOSE, 0])
    moment = int(bar.timestamp[0]) + 58 * SECOND + int(price * 7919) % SECOND
    return {
        "t": _moment(moment),
        "ax": "Q",
        "ap": round(price + 0.01, 4),
        "as": 2,
        "bx": "P",
        "bp": max(round(price - 0.01, 4), 0.0001),
        "bs": 3,
        "c": ["R"],
        "z": "C",
    }


def _write_token(symbol: str, moment: int) -> str:
    return base64.b64encode(f"{symbol}|M|{_moment(moment)}".encode()).decode()


def _read_token(token: str, symbols: Sequence[str]) -> tuple[str, int]:
    try:
        symbol, _, moment = base64.b64decode(token, validate=True).decode().split("|")
        micros = to_micros(datetime.fromisoformat(moment[:26] + "+00:00"))
    except (binascii.Error, ValueError):
        raise ApiError(400, "invalid page_token") from None
    if symbol not in symbols:
        raise ApiError(400, "invalid page_token")
    return symbol, micros
