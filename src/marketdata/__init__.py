"""marketdata: one call for market data. Redis, else PostgreSQL, else the broker.

>>> import marketdata as md
>>> md.get_bars("AAPL", "1min", limit=500)  # doctest: +SKIP

The functions here are the methods of a default `Client`, configured by `configure` or by
``MARKETDATA_`` variables; `connect` gives a client of your own. Importing this module is cheap:
drivers are loaded with the first call that needs them.
"""

from __future__ import annotations

import logging as _logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from marketdata.errors import (
    AuthenticationError,
    BrokerError,
    BrokerResponseError,
    BrokerTimeoutError,
    BrokerUnavailableError,
    CacheError,
    ConfigurationError,
    DataQualityError,
    DataUnavailableError,
    InvalidRangeError,
    InvalidSymbolError,
    InvalidTimeframeError,
    MarketDataError,
    MissingDependencyError,
    NaiveTimestampError,
    RateLimitError,
    RequestError,
    SchemaError,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
    UnknownSymbolError,
    UnsupportedRequestError,
)
from marketdata.warning_types import (
    DelayedDataWarning,
    EndedSymbolWarning,
    FallbackWarning,
    MarketDataWarning,
    MissingSymbolsWarning,
    ProviderWarning,
    ShortHistoryWarning,
    SplitInRangeWarning,
)

if TYPE_CHECKING:
    from marketdata.api import configure, default_client
    from marketdata.client import Client, connect
    from marketdata.config import Settings
    from marketdata.database_calls import Database
    from marketdata.explaining import Plan
    from marketdata.following import Follower
    from marketdata.latest import Bar, Quote, Trade
    from marketdata.subscriptions import Subscription
    from marketdata.types import Interval, Split, Timeframe

    _client = default_client()
    adjustment_steps = _client.adjustment_steps
    database = _client.database
    sessions = _client.sessions
    get_actions = _client.get_actions
    get_bars = _client.get_bars
    get_indicators = _client.get_indicators
    get_latest_bar = _client.get_latest_bar
    get_latest_trade = _client.get_latest_trade
    get_latest_quote = _client.get_latest_quote
    get_snapshots = _client.get_snapshots
    follow = _client.follow
    subscribe = _client.subscribe
    unsubscribe = _client.unsubscribe
    coverage = _client.coverage
    cross_check = _client.cross_check
    find_symbols = _client.find_symbols
    gaps = _client.gaps
    explain = _client.explain
    plot = _client.plot
    plot_coverage = _client.plot_coverage
    provenance = _client.provenance
    revisions = _client.revisions
    bar_states = _client.bar_states
    indicators = _client.indicators
    stats = _client.stats

# A library is silent unless its user configures logging.
_logging.getLogger("marketdata").addHandler(_logging.NullHandler())

__version__ = "0.1.0"

_LAZY = {
    "configure": "api",
    "default_client": "api",
    "Client": "client",
    "connect": "client",
    "Settings": "config",
    "Database": "database_calls",
    "Plan": "explaining",
    "Follower": "following",
    "Bar": "latest",
    "Quote": "latest",
    "Trade": "latest",
    "Subscription": "subscriptions",
    "Interval": "types",
    "Split": "types",
    "Timeframe": "types",
}
_METHODS = frozenset(
    {
        "adjustment_steps",
        "coverage",
        "cross_check",
        "database",
        "explain",
        "follow",
        "find_symbols",
        "gaps",
        "get_actions",
        "get_bars",
        "get_indicators",
        "get_latest_bar",
        "get_latest_quote",
        "get_latest_trade",
        "get_snapshots",
        "plot",
        "plot_coverage",
        "provenance",
        "revisions",
        "bar_states",
        "sessions",
        "stats",
        "subscribe",
        "unsubscribe",
    }
)

__all__ = [
    "AuthenticationError",
    "Bar",
    "BrokerError",
    "BrokerResponseError",
    "BrokerTimeoutError",
    "BrokerUnavailableError",
    "CacheError",
    "Client",
    "ConfigurationError",
    "DataQualityError",
    "DataUnavailableError",
    "Database",
    "DelayedDataWarning",
    "EndedSymbolWarning",
    "FallbackWarning",
    "Follower",
    "Interval",
    "InvalidRangeError",
    "InvalidSymbolError",
    "InvalidTimeframeError",
    "MarketDataError",
    "MarketDataWarning",
    "MissingDependencyError",
    "MissingSymbolsWarning",
    "NaiveTimestampError",
    "Plan",
    "ProviderWarning",
    "Quote",
    "RateLimitError",
    "RequestError",
    "SchemaError",
    "Settings",
    "ShortHistoryWarning",
    "Split",
    "SplitInRangeWarning",
    "StoreError",
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "Subscription",
    "Timeframe",
    "Trade",
    "UnknownSymbolError",
    "UnsupportedRequestError",
    "__version__",
    "adjustment_steps",
    "bar_states",
    "configure",
    "connect",
    "coverage",
    "cross_check",
    "database",
    "default_client",
    "explain",
    "find_symbols",
    "follow",
    "gaps",
    "get_actions",
    "get_bars",
    "get_indicators",
    "get_latest_bar",
    "get_latest_quote",
    "get_latest_trade",
    "get_snapshots",
    "indicators",
    "plot",
    "plot_coverage",
    "provenance",
    "revisions",
    "sessions",
    "stats",
    "subscribe",
    "unsubscribe",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(f"marketdata.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    if name == "indicators":
        # The package of that name, which is callable: importing it may not change what this is.
        return import_module("marketdata.indicators")
    if name in _METHODS:
        # Looked up each time: `configure` replaces the default client.
        from marketdata.api import default_client

        return getattr(default_client(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
