"""Alpaca behind the `Broker` port, through alpaca-py in raw mode.

Pages are asked one by one, because alpaca-py's own loop throws the finished ones away on an error.
Only 1min and 1day are fetched; everything coarser is derived.

``alpaca_wire`` and ``alpaca_actions`` read answers, ``alpaca_walk`` knows what a page proves, ``alpaca_client`` sends.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote, urlsplit

from marketdata.brokers.alpaca_actions import parse_actions, unreadable_error
from marketdata.brokers.alpaca_client import Endpoint, Keys
from marketdata.brokers.alpaca_narrowing import Narrowing, blames_the_request, in_batches
from marketdata.brokers.alpaca_walk import PAGE_ROWS, TIMEFRAMES, PageWalk
from marketdata.brokers.alpaca_wire import (
    KEYS_CURE,
    LATEST_PATHS,
    is_recent_refusal,
    parse_asset,
    parse_latest,
)
from marketdata.brokers.clock_watch import ClockWatch
from marketdata.brokers.resilience import Caller, CircuitBreaker, RequestGate
from marketdata.brokers.transport import Transport
from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import Clock, Deadline, FixedClock, ReplayClock, from_micros
from marketdata.corporate_actions import CorporateAction, names_of
from marketdata.errors import (
    AuthenticationError,
    BrokerResponseError,
    DataUnavailableError,
    MarketDataError,
)
from marketdata.protocols import (
    Asset,
    BarsPage,
    BarsRequest,
    BaseTimeframe,
    Capabilities,
    Priority,
    RateBudget,
    SymbolVerdict,
)
from marketdata.spans import Span
from marketdata.types import DAY, MINUTE, SECOND, Timeframe

DATA_URL: Final = "https://data.alpaca.markets"
TRADING_URL: Final = "https://paper-api.alpaca.markets"
FEEDS: Final = ("sip", "iex", "otc", "boats")
LATEST_FEEDS: Final = (*FEEDS, "delayed_sip", "overnight")
"""Feeds of the latest endpoints (source: OpenAPI ``stock_latest_feed``)."""
BATCH_SYMBOLS: Final = 500

_SETTLE: Final = 3 * SECOND
_RECENT: Final = 15 * MINUTE
_RECENT_REFUSED: Final = _RECENT + MINUTE
_DAILY_SETTLE: Final = 20 * MINUTE
_FIRST_OF_2016: Final = 1_451_624_400 * SECOND  # New York midnight
_FIRST_OF_1980: Final = 315_550_800 * SECOND
_PROCESSED_BEFORE: Final = timedelta(days=60)
_PROCESSED_AFTER: Final = timedelta(days=370)
_ASSET_UNKNOWN: Final = re.compile(r"(?<![/\w])(asset|symbol)\b[^/]*\bnot found\b", re.IGNORECASE)
"""What Alpaca says of an unknown symbol; a 404 that only echoes the path says something else."""
_ASSETS_KEPT: Final = 3600.0
_FAR_AHEAD: Final = 400 * DAY

_BASES: Final = {
    timeframe: (BaseTimeframe(Timeframe.MIN_1 if timeframe.intraday else Timeframe.DAY_1, None),)
    for timeframe in Timeframe
}


class AlpacaBroker:
    """Bars, corporate actions, latest data and assets from Alpaca, or from whatever speaks like it.

    Safe for many threads at once, and after a fork.

    Parameters
    ----------
    key_id, secret_key : str
        Appear in the headers of requests and nowhere else.
    data_url, trading_url : str or None
        None is Alpaca's own; the trading URL follows a foreign data URL.
    provider : str
        Where the data comes from, part of every key: ``alpaca``, ``sandbox`` or a host.
    feed : str
        The default feed.
    clock : Clock
        Market time.
    budget : RateBudget or None
        Shared by every process with the same key; None counts nothing.
    rate_limit : int
        Requests a minute, until the broker's headers say otherwise.
    priority : Priority
        Whom the requests are for.
    timeouts : tuple of float
        Seconds to connect, and between two reads.
    on_notice : callable, optional
        Takes one sentence the user should see once.

    Raises
    ------
    AuthenticationError
        A key is missing.
    """

    def __init__(
        self,
        *,
        key_id: str,
        secret_key: str,
        data_url: str | None = None,
        trading_url: str | None = None,
        provider: str = "alpaca",
        feed: str = "sip",
        clock: Clock,
        budget: RateBudget | None = None,
        rate_limit: int = 200,
        priority: Priority = Priority.READ,
        timeouts: tuple[float, float] = (3.0, 15.0),
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        if not key_id or not secret_key:
            raise AuthenticationError("Alpaca needs a key id and a secret key", cure=KEYS_CURE)
        self._provider = provider
        self._feed = feed
        self._clock = clock
        self._on_notice = on_notice
        self._delayed: dict[str, object] = {}
        self._assets: tuple[float, list[Asset]] | None = None
        data = (data_url or DATA_URL).rstrip("/")
        trading = (trading_url or (TRADING_URL if data == DATA_URL else data)).rstrip("/")
        digest = hashlib.sha256(f"{provider}:{key_id}".encode()).hexdigest()[:16]
        transport = self._transport = Transport(timeouts=timeouts)
        keys = Keys(key_id, secret_key)
        self._watch = ClockWatch(clock)
        # A fixed or replayed market time is no wall clock: a server's date says nothing about it.
        watch = None if isinstance(clock, FixedClock | ReplayClock) else self._watch
        self._said_ahead = 0
        caller = _caller(digest, rate_limit, budget, priority)
        self._data = Endpoint(data, keys, transport, caller, watch)
        # Corporate actions spend the same budget, but are a service that can be down on its own:
        # what fails there must not close the way to bars.
        gate = self._data.caller.gate
        self._corporate = Endpoint(data, keys, transport, Caller(CircuitBreaker("alpaca"), gate))
        # The trading API counts its own 200 requests a minute and can be down on its own.
        self._trading = self._data
        if urlsplit(trading).netloc != urlsplit(data).netloc:
            caller = _caller(f"{digest}-trading", 200, budget, priority)
            self._trading = Endpoint(trading, keys, transport, caller)

    def __repr__(self) -> str:
        return f"AlpacaBroker({self._provider!r}, {self._data.url!r}, feed={self._feed!r})"

    @property
    def provider(self) -> str:
        return self._provider

    @property
    def default_feed(self) -> str:
        return self._feed

    def capabilities(self, feed: str) -> Capabilities:
        """Return what `feed` can give now.

        Raises
        ------
        DataUnavailableError
            No such feed, or one without history; a retry does not help.
        """
        _require_feed(feed, FEEDS)
        ahead = self._watch.ahead
        return Capabilities(
            bases=_BASES,
            max_span={Timeframe.MIN_1: None, Timeframe.DAY_1: None},
            settle_delay=ahead + (_RECENT_REFUSED if feed in self._delayed else _SETTLE),
            daily_settle_delay=ahead + _DAILY_SETTLE,
            feeds=FEEDS,
            batch_symbols=BATCH_SYMBOLS,
            page_rows=PAGE_ROWS,
            latest_feeds=LATEST_FEEDS,
            # Source: Alpaca "Historical Data": bars are complete from 2016. A foreign host may
            # have more.
            earliest=_FIRST_OF_2016 if self._provider == "alpaca" else _FIRST_OF_1980,
            clock_ahead=ahead,
        )

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        self._transport.close()

    def health(self) -> dict[str, str | int | None]:
        """Return breaker state, requests sent and request allowance, as last seen; asks nothing.

        The allowance is that of the market-data host; requests sent count both hosts.
        """
        gate = self._data.caller.gate
        gates = {id(e): e.caller.gate for e in (self._data, self._trading)}
        return {
            "breaker": self._data.caller.breaker.state,
            "requests_sent": sum(g.granted for g in gates.values()),
            "requests_per_minute": gate.allowance,
            "requests_left": self._data.requests_left,
        }

    # -------------------------------------------------------------------------------- bars

    def pages(self, request: BarsRequest, deadline: Deadline) -> Iterator[BarsPage]:
        """Walk the pages of one request; stopping early is allowed at any page.

        A symbol the broker will not parse is reported in `BarsPage.refused` and the others are
        asked without it; where the broker does not name it, it is found by halving.

        Raises
        ------
        DataUnavailableError
            Not entitled. ``facts["settle_delay"]`` (seconds) says that the same request can be
            made for bars that much older: plan again.
        BrokerError
            After bounded retries where that could help.
        """
        _require_feed(request.feed, FEEDS)
        if request.timeframe not in TIMEFRAMES:
            raise DataUnavailableError(
                f"{request.timeframe} is not fetched from alpaca",
                cure="fetch 1min or 1day and derive it",
            )
        if request.span.empty or not request.symbols:
            return
        self._check_delay(request)
        narrowing = Narrowing(request.symbols)
        planned = self._watch.ahead
        while (symbols := narrowing.next_group()) is not None:
            walk = PageWalk(symbols, request, self._calendar())
            while not walk.finished:
                try:
                    page = self._next_page(walk, request.feed, deadline)
                except BrokerResponseError as error:
                    if walk.begun or not blames_the_request(error):
                        raise
                    narrowing.without(symbols, error)
                    break
                narrowing.answered = True
                self._check_clock(request, planned)
                yield replace(page, refused=narrowing.pop_refused())
        refused = narrowing.finish()
        if refused:
            yield BarsPage({}, {}, refused)

    def _check_clock(self, request: BarsRequest, planned: int) -> None:
        """Refuse an answer that reaches into what the broker's clock says is not over, where the
        request was planned by a clock that was thought to be less far ahead."""
        ahead = self._watch.ahead
        if ahead <= planned or request.span.end <= self._clock.now_us() - ahead:
            return
        seconds = ahead // SECOND
        if self._on_notice is not None and ahead != self._said_ahead:
            self._on_notice(f"this machine's clock is about {seconds} s ahead of the broker's")
        self._said_ahead = ahead
        raise DataUnavailableError(
            f"this machine's clock is about {seconds} s ahead of the broker's: bars younger than "
            "that are not closed",
            cure="set this machine's clock (NTP); run: marketdata doctor",
            settle_delay=self.capabilities(request.feed).settle_delay / SECOND,
        )

    def _check_delay(self, request: BarsRequest) -> None:
        """Refuse unasked what is known to be refused, where the request was planned just before
        another thread learnt that."""
        if request.feed not in self._delayed or not request.timeframe.intraday:
            return
        if request.span.end > self._clock.now_us() - _RECENT:
            error = DataUnavailableError(
                f"this Alpaca key has no right to the last 15 minutes of {request.feed}"
            )
            self._learn_delay(request.feed, error)
            raise error

    def _next_page(self, walk: PageWalk, feed: str, deadline: Deadline) -> BarsPage:
        """Ask for a page; once more where JSON came that is no page, such as ``bars: null``."""
        answer = self._get_data("/stocks/bars", walk.params(), feed, deadline)
        try:
            return walk.take(answer)
        except BrokerResponseError as error:
            if not error.transient or deadline.expired:
                raise
        return walk.take(self._get_data("/stocks/bars", walk.params(), feed, deadline))

    def _get_data(
        self, path: str, params: Mapping[str, str | int], feed: str, deadline: Deadline
    ) -> object:
        try:
            return self._data.get(path, params, deadline)
        except DataUnavailableError as error:
            status = error.facts.get("status")
            if isinstance(status, int) and is_recent_refusal(status, error.message):
                self._learn_delay(feed, error)
            raise

    def _learn_delay(self, feed: str, error: DataUnavailableError) -> None:
        """Remember for this key that the feed's last quarter of an hour is not to be had."""
        error.facts["settle_delay"] = _RECENT_REFUSED / SECOND
        error.cure = (
            "ask for bars older than 16 minutes; feed='delayed_sip' has later trades and quotes, "
            f"and feed='iex' is another, thinner source than {feed!r}"
        )
        mine = object()  # of several threads that learn it at once, one says it
        if self._delayed.setdefault(feed, mine) is mine and self._on_notice is not None:
            self._on_notice(
                f"this Alpaca key has no right to the last 15 minutes of {feed}: "
                "bars arrive 16 minutes late"
            )

    # ----------------------------------------------------------------------------- actions

    def actions(
        self, symbols: Sequence[str], span: Span, deadline: Deadline
    ) -> dict[str, list[CorporateAction]]:
        """Return the corporate actions with an ex-date in `span` for every symbol asked, ascending.

        The endpoint filters by the day an action is processed, for a dividend the day it is paid:
        two months before the span and a year after it are asked too. A name change or merger may
        be listed under either name; what is meant is found by the names in it.

        Raises
        ------
        BrokerResponseError
            An action cannot be read; ``facts["unreadable"]`` lists its symbols.
        """
        calendar = self._calendar()
        params = {**_processed_around(span, self._clock.now_us(), calendar), "limit": 1000}
        found: dict[str, dict[tuple[str, str, str], CorporateAction]] = {s: {} for s in symbols}
        unreadable: dict[str, str] = {}

        def ask(group: list[str]) -> None:
            for kinds in self._action_pages({"symbols": ",".join(group), **params}, deadline):
                listed, failed = parse_actions(kinds, calendar.midnight_of)
                unreadable.update(failed)
                for action in listed:
                    for name in names_of(action):
                        if name in found and span.start <= action.ex_date < span.end:
                            key = (action.symbol, action.kind, action.id or str(action))
                            found[name][key] = action

        in_batches(symbols, BATCH_SYMBOLS, ask)
        # Of an action that names no symbol nobody knows whose it is.
        if any(symbol in found or not symbol for symbol in unreadable):
            raise unreadable_error(unreadable, symbols)
        return {s: sorted(actions.values(), key=_by_ex_date) for s, actions in found.items()}

    def _action_pages(
        self, params: Mapping[str, str | int], deadline: Deadline
    ) -> Iterator[Mapping[str, Any]]:
        seen: set[str] = set()
        while True:
            answer = self._corporate.get("/corporate-actions", params, deadline, api_version="v1")
            kinds = answer.get("corporate_actions") if isinstance(answer, Mapping) else None
            if not isinstance(answer, Mapping) or not isinstance(kinds, Mapping):
                raise BrokerResponseError("alpaca: not a page of corporate actions", transient=True)
            yield kinds
            token = answer.get("next_page_token")
            if token is None:
                return
            if not isinstance(token, str) or not token or token in seen:
                raise BrokerResponseError("alpaca: the page token is empty or repeats")
            seen.add(token)
            params = {**params, "page_token": token}

    # ------------------------------------------------------------------------------ assets

    def verdict(self, symbol: str, deadline: Deadline) -> SymbolVerdict:
        """Ask the assets endpoint whether `symbol` exists; inactive assets do. Never raises.

        Source: Alpaca trading API: 200 with the asset, 404 ``{"code": 40410000, "message": "asset
        not found for ..."}``. A 404 of another kind, a refused key or silence is no verdict.
        """
        try:
            asset = self._trading.get(f"/assets/{quote(symbol, safe='')}", None, deadline)
        except MarketDataError as error:
            unknown = error.facts.get("status") == 404 and _ASSET_UNKNOWN.search(error.message)
            return SymbolVerdict(False if unknown else None)
        listed = parse_asset(asset)
        if listed is not None and listed.symbol == symbol:
            return SymbolVerdict(True, listed.name, listed)
        return SymbolVerdict(None)

    def symbols(self, deadline: Deadline) -> list[str]:
        """Return all US equities, inactive ones included, sorted; kept for an hour."""
        return [asset.symbol for asset in self.assets(deadline)]

    def assets(self, deadline: Deadline) -> list[Asset]:
        """Return all US equities, inactive ones included, by symbol; kept for an hour.

        Source: Alpaca trading API, ``GET /v2/assets``: without ``status`` it lists every status. A
        symbol that was given up and taken up again is listed twice: the active entry counts.
        """
        kept = self._assets
        if kept is None or time.monotonic() - kept[0] > _ASSETS_KEPT:
            params = {"asset_class": "us_equity"}
            answer = self._trading.get("/assets", params, deadline)
            if not isinstance(answer, list):
                raise BrokerResponseError("alpaca: not a list of assets", transient=True)
            found: dict[str, Asset] = {}
            for asset in map(parse_asset, answer):
                if asset is not None and (asset.status == "active" or asset.symbol not in found):
                    found[asset.symbol] = asset
            kept = self._assets = (time.monotonic(), [found[s] for s in sorted(found)])
        return list(kept[1])

    # ------------------------------------------------------------------------------ latest

    def latest(
        self, kind: str, symbols: Sequence[str], feed: str, deadline: Deadline
    ) -> dict[str, Mapping[str, Any]]:
        """Return the newest ``bar``, ``trade``, ``quote`` or ``snapshot`` by symbol.

        Field names and units: see `alpaca_wire.parse_latest`. A symbol without one, or one the
        broker will not parse, is absent.
        """
        _require_feed(feed, LATEST_FEEDS)
        if kind not in LATEST_PATHS:
            raise DataUnavailableError(f"alpaca has no latest {kind!r}")
        path, wrapper = LATEST_PATHS[kind]
        found: dict[str, Mapping[str, Any]] = {}

        def ask(group: list[str]) -> None:
            params = {"symbols": ",".join(group), "feed": feed}
            answer = self._get_data(path, params, feed, deadline)
            found.update(_latest_of(kind, answer, wrapper, group))

        in_batches(symbols, BATCH_SYMBOLS, ask)
        return found

    def _calendar(self) -> TradingCalendar:
        return calendar_for(EXCHANGE, self._clock.now_us())


def _processed_around(span: Span, now_us: int, calendar: TradingCalendar) -> dict[str, str | int]:
    """Return the days of processing to ask for, so that every ex-date in `span` is among them."""
    far = now_us + _FAR_AHEAD
    first, last = (
        from_micros(min(max(edge, _FIRST_OF_1980), far)).astimezone(calendar.zone).date()
        for edge in span
    )
    return {
        "start": (first - _PROCESSED_BEFORE).isoformat(),
        "end": (last + _PROCESSED_AFTER).isoformat(),
        "sort": "asc",
    }


def _by_ex_date(action: CorporateAction) -> tuple[int, str, str]:
    return (action.ex_date, action.kind, action.id)


def _latest_of(
    kind: str, answer: object, wrapper: str | None, group: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    by_symbol = answer
    if wrapper is not None:
        by_symbol = answer.get(wrapper) if isinstance(answer, Mapping) else None
    if not isinstance(by_symbol, Mapping):
        raise BrokerResponseError(f"alpaca: not an answer of latest {kind}s", transient=True)
    parsed = {s: parse_latest(kind, by_symbol.get(s)) for s in group}
    return {s: newest for s, newest in parsed.items() if newest is not None}


def _require_feed(feed: str, feeds: Sequence[str]) -> None:
    if feed not in feeds:
        raise DataUnavailableError(
            f"alpaca has no {feed!r} feed for this", cure="use one of: " + ", ".join(feeds)
        )


def _caller(credential: str, limit: int, budget: RateBudget | None, priority: Priority) -> Caller:
    gate = RequestGate(credential, limit, budget, priority=priority)
    return Caller(CircuitBreaker("alpaca"), gate)
