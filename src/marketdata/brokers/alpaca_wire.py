"""Alpaca's wire format: answers to columns, statuses to errors. Pure.

Source of every format claim: Alpaca's published OpenAPI description of the market-data API
(schemas ``stock_bar``, ``stock_trade``, ``stock_quote``, ``stock_snapshot``; responses 400 to 500) and, for assets, that of the trading API.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, Final

import numpy as np

from marketdata.clock import to_micros
from marketdata.errors import (
    AuthenticationError,
    BrokerError,
    BrokerResponseError,
    BrokerUnavailableError,
    DataUnavailableError,
    MarketDataError,
    RateLimitError,
)
from marketdata.protocols import Asset
from marketdata.quality import NO_TIMESTAMP
from marketdata.types import Bars, Floats, Int64s

# ----------------------------------------------------------------------------------------- bars

_TIME: Final = itemgetter("t")
_KEYS: Final = ("o", "h", "l", "c", "v", "vw", "n")  # in the order of `COLUMNS`
_NAN: Final = float("nan")


def parse_bars(rows: Sequence[Any]) -> Bars:
    """Return broker bars as columns, in the order they came.

    Parameters
    ----------
    rows : sequence of mapping
        JSON objects with ``t`` (RFC 3339, up to nanoseconds, which are cut to microseconds) and
        ``o h l c v vw n``; ``vw`` and ``n`` may be missing.

    Returns
    -------
    Bars
        One bar a row. What cannot be read is NaN, and for a timestamp `NO_TIMESTAMP`, so that the
        quality gates count and drop the row without its neighbours.
    """
    count = len(rows)
    values = np.empty((len(_KEYS), count), np.float64)
    try:
        for row, key in enumerate(_KEYS):
            values[row] = _column(rows, key, count)
        return Bars(parse_times([*map(_TIME, rows)]), values)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return _parse_bars_one_by_one(rows)


def _column(rows: Sequence[Any], key: str, count: int) -> Floats:
    try:
        return np.fromiter(map(itemgetter(key), rows), np.float64, count)
    except (KeyError, TypeError):
        # Null or missing, as vw and n of some sources are in every row: None becomes NaN.
        return np.array([row.get(key) for row in rows], np.float64)


def _parse_bars_one_by_one(rows: Sequence[Any]) -> Bars:
    values = np.full((len(_KEYS), len(rows)), _NAN)
    timestamps = np.full(len(rows), NO_TIMESTAMP, np.int64)
    for column, bar in enumerate(rows):
        if not isinstance(bar, Mapping):
            continue
        timestamps[column] = _micros(bar.get("t"))
        for row, key in enumerate(_KEYS):
            values[row, column] = _number(bar.get(key))
    return Bars(timestamps, values)


def parse_times(texts: Sequence[str]) -> Int64s:
    """Return RFC 3339 timestamps as microseconds UTC, cut below; unreadable is `NO_TIMESTAMP`."""
    if not texts:
        return np.empty(0, np.int64)
    joined = "\n".join(texts)
    if joined.count("Z") == len(texts) and joined.count("Z\n") == len(texts) - 1:
        # numpy reads ISO 8601 without a zone as UTC, and warns of one with it.
        try:
            plain = joined.replace("Z", "").split("\n")
            return np.array(plain, dtype="datetime64[us]").view(np.int64)
        except ValueError:
            pass
    return np.array([_micros(t) for t in texts], np.int64)


def _micros(value: object) -> int:
    if not isinstance(value, str):
        return NO_TIMESTAMP
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return NO_TIMESTAMP
    return NO_TIMESTAMP if moment.tzinfo is None else to_micros(moment)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _NAN
    try:
        return float(value)
    except OverflowError:
        return _NAN


# --------------------------------------------------------------------------------------- latest


def _as_is(value: object) -> object:
    return value


Field = tuple[str, str, Callable[[object], object]]

_BAR: Final[tuple[Field, ...]] = (
    ("timestamp", "t", _micros),
    ("open", "o", _number),
    ("high", "h", _number),
    ("low", "l", _number),
    ("close", "c", _number),
    ("volume", "v", _number),
    ("vwap", "vw", _number),
    ("trade_count", "n", _number),
)
_TRADE: Final[tuple[Field, ...]] = (
    ("timestamp", "t", _micros),
    ("price", "p", _number),
    ("size", "s", _number),
    ("exchange", "x", _as_is),
    ("conditions", "c", _as_is),
    ("id", "i", _as_is),
    ("tape", "z", _as_is),
)
_QUOTE: Final[tuple[Field, ...]] = (
    ("timestamp", "t", _micros),
    ("bid_price", "bp", _number),
    ("bid_size", "bs", _number),
    ("bid_exchange", "bx", _as_is),
    ("ask_price", "ap", _number),
    ("ask_size", "as", _number),
    ("ask_exchange", "ax", _as_is),
    ("conditions", "c", _as_is),
    ("tape", "z", _as_is),
)
_SNAPSHOT: Final = (
    ("latest_trade", "latestTrade", _TRADE),
    ("latest_quote", "latestQuote", _QUOTE),
    ("minute_bar", "minuteBar", _BAR),
    ("daily_bar", "dailyBar", _BAR),
    ("previous_daily_bar", "prevDailyBar", _BAR),
)
_FIELDS: Final = {"bar": _BAR, "trade": _TRADE, "quote": _QUOTE}

LATEST_PATHS: Final[Mapping[str, tuple[str, str | None]]] = {
    "bar": ("/stocks/bars/latest", "bars"),
    "trade": ("/stocks/trades/latest", "trades"),
    "quote": ("/stocks/quotes/latest", "quotes"),
    "snapshot": ("/stocks/snapshots", None),
}
"""For each kind its path, and the key that wraps the answer (snapshots have none)."""


def parse_asset(raw: object) -> Asset | None:
    """Return one entry of the assets endpoint; None where it is none.

    Source: Alpaca trading API, ``Assets``: ``symbol``, ``name``, ``exchange``, ``status`` (``active``
    or ``inactive``).
    """
    if not isinstance(raw, Mapping) or not isinstance(raw.get("symbol"), str):
        return None
    name, exchange = raw.get("name"), raw.get("exchange")
    return Asset(
        raw["symbol"],
        name if isinstance(name, str) and name else None,
        exchange if isinstance(exchange, str) and exchange else None,
        "inactive" if raw.get("status") == "inactive" else "active",
    )


def parse_latest(kind: str, raw: object) -> dict[str, Any] | None:
    """Return one latest bar, trade, quote or snapshot under plain names, or None for none.

    Timestamps are integers, microseconds UTC (None where unreadable); numbers are floats.

    - ``bar``: timestamp open high low close volume vwap trade_count
    - ``trade``: timestamp price size exchange conditions id tape
    - ``quote``: timestamp bid_price bid_size bid_exchange ask_price ask_size ask_exchange
      conditions tape
    - ``snapshot``: latest_trade latest_quote minute_bar daily_bar previous_daily_bar, each as
      above or None
    """
    if not isinstance(raw, Mapping) or not raw:
        return None
    if kind == "snapshot":
        parts = {name: _plain(fields, raw.get(key)) for name, key, fields in _SNAPSHOT}
        return parts if any(parts.values()) else None
    return _plain(_FIELDS[kind], raw)


def _plain(fields: Iterable[Field], raw: object) -> dict[str, Any] | None:
    if not isinstance(raw, Mapping):
        return None
    named = {name: convert(raw.get(key)) for name, key, convert in fields}
    if named["timestamp"] == NO_TIMESTAMP:
        named["timestamp"] = None
    return named


# --------------------------------------------------------------------------------------- errors

_ENTITLEMENT: Final = re.compile(r"subscription|not permit|entitle|agreement|not subscribed", re.I)
_RECENT: Final = re.compile(r"recent\s+sip", re.I)
_NAMED: Final = re.compile(r"symbols?\b[^:]*:\s*(.+)", re.I)
_PARAMETER: Final = re.compile(
    r"\b(timeframe|start|end|limit|feed|adjustment|page_?token|token|asof|sort|currency|types)\b",
    re.I,
)


def _worth_hiding(secret: str) -> bool:
    """Real keys are 20 characters and more; hiding a made-up ``k`` would garble every word."""
    return len(secret) >= 6


def words_of(body: str, secrets: Sequence[str] = ()) -> str:
    """Return what an error body says, shortened, without markup and without `secrets`."""
    match = re.search(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)"', body)
    text = match[1] if match else re.sub(r"<[^>]*>", " ", body)
    text = " ".join(text.split())
    for secret in filter(_worth_hiding, secrets):
        text = text.replace(secret, "***")
    return text[:200]


def is_recent_refusal(status: int, words: str) -> bool:
    """Whether the key may not see the last 15 minutes of consolidated data.

    Source: Alpaca "Market Data FAQ": 403 ``subscription does not permit querying recent SIP data``.
    """
    return status == 403 and _RECENT.search(words) is not None


KEYS_CURE: Final = "check APCA_API_KEY_ID and APCA_API_SECRET_KEY; run: marketdata doctor"


def error_of_status(status: int, words: str, retry_after: float | None = None) -> MarketDataError:
    """Return the library's error for an HTTP answer other than 200; total over all statuses.

    =============  ==========================================  ===========
    status         error                                       transient
    =============  ==========================================  ===========
    1xx, 2xx       BrokerResponseError (nothing in it)          yes
    3xx            BrokerResponseError (redirects are refused)  no
    401            AuthenticationError                          no
    403            DataUnavailableError where the body speaks   no
                   of the subscription, else AuthenticationError
    408, 5xx       BrokerUnavailableError                       yes
    429            RateLimitError                               yes
    other 4xx      BrokerResponseError                          no
    =============  ==========================================  ===========
    """
    said = f"alpaca answered {status}" + (f": {words}" if words else "")
    if status == 429:
        wait = 1.0 if retry_after is None else retry_after
        return RateLimitError(
            said, cure=f"try again in {wait:.0f} s", status=status, retry_after=round(wait, 3)
        )
    if status == 401:
        return AuthenticationError(said, cure=KEYS_CURE, status=status)
    if status == 403:
        if _ENTITLEMENT.search(words):
            return DataUnavailableError(
                said,
                cure="the key's subscription does not include this; ask for older data or another "
                "feed, or upgrade the plan",
                status=status,
                reason="not entitled",
            )
        return AuthenticationError(said, cure=KEYS_CURE, status=status)
    if status == 408 or status >= 500:
        return BrokerUnavailableError(said, status=status)
    return _unusable(said, status)


def _unusable(said: str, status: int) -> BrokerError:
    if 300 <= status < 400:
        return BrokerResponseError(
            said + " (redirects are refused)",
            cure="set MARKETDATA_ALPACA_URL to the address it redirects to",
            status=status,
        )
    return BrokerResponseError(said, transient=status < 300, status=status)


def retry_after(headers: Mapping[str, str], now_seconds: float) -> float | None:
    """Return the seconds until the broker will answer again, or None if it does not say.

    ``X-RateLimit-Reset`` is the epoch second at which the quota changes, on the broker's clock:
    the ``Date`` header of the same answer tells what that clock shows, to the second.
    """
    reset = _number_in(headers, "X-RateLimit-Reset")
    waits = [] if reset is None else [reset - _broker_seconds(headers, now_seconds)]
    after = _number_in(headers, "Retry-After")
    waits += [] if after is None else [after]
    return max(0.0, *waits) if waits else None


def _number_in(headers: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(headers[name])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _broker_seconds(headers: Mapping[str, str], now_seconds: float) -> float:
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(headers["Date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return now_seconds


def refused_by(words: str, symbols: Sequence[str]) -> list[str]:
    """Return which of `symbols` a 400 names: ``invalid symbol: TAOP:NASDAQ``."""
    match = _NAMED.search(words)
    if not match:
        return []
    named = {part.strip("'\"[]() .").upper() for part in re.split(r"[,\s]+", match[1])}
    return [s for s in symbols if s in named or s == match[1].strip("'\" ").upper()]


def may_be_a_symbol(words: str) -> bool:
    """Whether a 400 could be about one of the symbols rather than another parameter."""
    return "symbol" in words.lower() or _PARAMETER.search(words) is None
