"""Puts the parts together: settings in, one running stack out.

Which broker: what the settings name; ``auto`` adopts what the database was filled from, and on an
empty database takes Alpaca where keys are set, else Yahoo.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marketdata import planning
from marketdata.adjusting import Adjuster
from marketdata.brokers.offline import OfflineBroker
from marketdata.cache import RedisCache
from marketdata.calendars import TradingCalendar, calendar_for
from marketdata.clock import Clock, parse_clock
from marketdata.config import Settings, provider_of
from marketdata.errors import ConfigurationError, RequestError
from marketdata.fetching import Fetcher, Verdicts
from marketdata.latest import LatestReader
from marketdata.queries import BarsQuery
from marketdata.reader import Reader
from marketdata.spans import Span
from marketdata.splits import Splits
from marketdata.statistics import Statistics
from marketdata.store import PostgresStore
from marketdata.types import MINUTE
from marketdata.warning_types import LIBRARY, ProviderWarning

if TYPE_CHECKING:
    from marketdata.embedded import Lease
    from marketdata.protocols import Broker

log = logging.getLogger("marketdata")

EXCHANGE = "XNYS"
SANDBOX = "sandbox"
_SANDBOX_KEY = "sandbox"


@dataclass(frozen=True, slots=True)
class Source:
    """Which provider and feed this process reads and writes."""

    kind: str
    """``alpaca``, ``yahoo``, ``sandbox`` or ``none``: which adapter speaks to it."""
    provider: str
    feed: str


class Runtime:
    """The running stack of one client and process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        _check_keys(settings)
        self.clock: Clock = parse_clock(settings.clock)
        self._lease: Lease | None = None
        self._sandbox: Any = None
        database_url, redis_url = self._servers()
        self.store = PostgresStore(database_url, schema=settings.database_schema)
        try:
            self._prepare_schema()
            self.cache = RedisCache(redis_url, lambda: self.store.epoch)
            self.source = choose_source(settings, self.store.recorded())
            self.broker: Broker = self._make_broker()
        except BaseException:
            self.close()
            raise
        self.verdicts = Verdicts(self.broker)
        self.splits = Splits(self.store, self.broker, self.clock, self.calendar)
        self.latest = LatestReader(self.broker, self.clock)
        self.statistics = Statistics()
        fetcher = Fetcher(
            _Adopting(self.store, self.source),
            self.store,
            self.cache,
            self.broker,
            self.verdicts,
            self.clock,
            self.calendar,
        )
        self.reader = Reader(
            self.store, self.cache, self.broker, fetcher, self.verdicts, self.clock, self.calendar
        )
        self.adjuster = Adjuster(self.splits, self.reader, self.calendar)

    # ------------------------------------------------------------------------------- servers

    def _servers(self) -> tuple[str, str]:
        settings = self.settings
        if settings.database_url and settings.redis_url:
            return settings.database_url, settings.redis_url
        from marketdata import embedded

        self._lease = embedded.acquire(
            settings.home, postgres=not settings.database_url, redis=not settings.redis_url
        )
        servers = self._lease.servers
        return (
            settings.database_url or servers.database_url,
            settings.redis_url or servers.redis_url,
        )

    def _prepare_schema(self) -> None:
        """The embedded database is ours to bring up to date; in anybody's own only an empty one
        is set up, an older schema waits for ``db init``."""
        if self.settings.database_url is None:
            self.store.migrate()
        else:
            self.store.prepare_schema()

    def close(self) -> None:
        """Close connections, stop an in-process sandbox, leave the embedded servers. Idempotent."""
        for name in ("broker", "cache", "store", "_sandbox"):
            part = getattr(self, name, None)
            closing = getattr(part, "stop" if name == "_sandbox" else "close", None)
            if closing is not None:
                closing()
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    # -------------------------------------------------------------------------------- broker

    @property
    def provider(self) -> str:
        return self.source.provider

    @property
    def simulated(self) -> bool:
        return self.source.provider == SANDBOX

    def _make_broker(self) -> Broker:
        source, settings = self.source, self.settings
        if source.kind == "alpaca":
            return self._alpaca(settings.alpaca_url, settings.alpaca_trading_url)
        if source.kind == "yahoo":
            from marketdata.brokers.yahoo import YahooBroker

            return YahooBroker(
                clock=self.clock,
                calendar=self.calendar,
                base_url=settings.yahoo_url,
                provider=source.provider,
                budget=self.store,
                on_notice=_say,
            )
        if source.kind == SANDBOX:
            return self._alpaca(*self._sandbox_urls())
        if settings.broker == "none":
            return OfflineBroker(
                source.provider, source.feed, "MARKETDATA_BROKER=none asks no broker"
            )
        return OfflineBroker(
            source.provider,
            source.feed,
            f"this database was filled from {source.provider}, which this process cannot ask",
            cure="set its keys or URL, or choose another broker with MARKETDATA_BROKER; "
            "run: marketdata doctor",
        )

    def _alpaca(self, data_url: str | None, trading_url: str | None) -> Broker:
        from marketdata.brokers.alpaca import AlpacaBroker

        settings, source = self.settings, self.source
        sandboxed = source.kind == SANDBOX
        # Real keys are never sent to a sandbox.
        key = None if sandboxed else settings.alpaca_key_id
        secret = None if sandboxed else settings.alpaca_secret_key
        return AlpacaBroker(
            key_id=key.get_secret_value() if key else _SANDBOX_KEY,
            secret_key=secret.get_secret_value() if secret else _SANDBOX_KEY,
            data_url=data_url,
            trading_url=trading_url,
            provider=source.provider,
            feed=source.feed,
            clock=self.clock,
            budget=self.store,
            rate_limit=10_000 if sandboxed else 200,
            on_notice=_say,
        )

    def _sandbox_urls(self) -> tuple[str, str | None]:
        settings = self.settings
        if settings.alpaca_url:
            return settings.alpaca_url, settings.alpaca_trading_url
        from marketdata.sandbox import Sandbox

        self._sandbox = Sandbox(clock=self.clock).start()
        return self._sandbox.url, self._sandbox.url

    # --------------------------------------------------------------------------------- facts

    def calendar(self) -> TradingCalendar:
        return calendar_for(EXCHANGE, self.clock.now_us())

    def feed_named(self, feed: str | None) -> str:
        """Return the feed a call means.

        Raises
        ------
        RequestError
            The broker has no such feed; a retry does not help.
        """
        if feed is None or feed == self.source.feed:
            return self.source.feed
        feeds = self.broker.capabilities(self.source.feed).feeds
        if feeds and feed not in feeds:
            raise RequestError(
                f"{self.provider} has no feed {feed!r}", cure=f"use one of: {', '.join(feeds)}"
            )
        return feed

    def delayed(self, feed: str) -> bool:
        """Whether the broker refuses this key the most recent data."""
        return self.broker.capabilities(feed).settle_delay > 5 * MINUTE

    def expected_bars(self, query: BarsQuery) -> int | None:
        """Return how many bars a fetch of all of `query` would bring, for a progress bar."""
        start = query.window.start
        if start is None:
            return None
        base = self.broker.capabilities(query.feed).bases[query.timeframe][0].base
        span = Span(start, query.window.end)
        return planning.expected_bars(span, base, self.calendar()) * len(query.symbols)

    def known_symbols(self) -> list[str]:
        return self.store.known_symbols()

    def stats(self) -> dict[str, int | float]:
        """Return reads by tier, the cache's counters and the broker's."""
        counts: dict[str, int | float] = dict(self.statistics.snapshot())
        for name in ("hits", "misses", "stale", "damaged", "errors"):
            counts[f"redis_{name}"] = getattr(self.cache.stats, name)
        requests: Mapping[str, int] = getattr(self.broker, "stats", {})
        counts.update({f"broker_{k}": v for k, v in requests.items()})
        return counts


class _Adopting:
    """The store as the fetcher sees it: the first write records whose data this database holds."""

    def __init__(self, store: PostgresStore, source: Source) -> None:
        self._store = store
        self._source = source
        self._adopted = False
        self.states = store.states
        self.read = store.read

    @property
    def epoch(self) -> int:
        return self._store.epoch

    def commit(self, commits: Any, before_commit: Any = None) -> Any:
        if not self._adopted and self._source.provider != SANDBOX:
            # Simulated bars leave no mark: a later `auto` must not take them for what this
            # database is about.
            held = self._store.adopt(self._source.provider, self._source.feed)
            self._adopted = True
            if held != (self._source.provider, self._source.feed):
                warnings.warn(
                    f"this database was filled from {held[0]}/{held[1]}; bars of "
                    f"{self._source.provider}/{self._source.feed} are kept beside them, apart",
                    ProviderWarning,
                    skip_file_prefixes=LIBRARY,
                )
        return self._store.commit(commits, before_commit)


def _check_keys(settings: Settings) -> None:
    if settings.broker == "alpaca" and settings.alpaca_key_id is None:
        raise ConfigurationError(
            "MARKETDATA_BROKER=alpaca needs keys",
            cure="set APCA_API_KEY_ID and APCA_API_SECRET_KEY; or try MARKETDATA_BROKER=sandbox; "
            "run: marketdata doctor",
        )


def choose_source(settings: Settings, held: tuple[str, str] | None) -> Source:
    """Return whom to ask, from the settings and the database's own record.

    Parameters
    ----------
    held : (provider, feed) or None
        What the database was filled from; None on an empty one.
    """
    kind = settings.broker
    if kind == "auto":
        return _adopted_source(settings, held) if held else _fresh_source(settings)
    if kind == "none":
        provider, feed = held or ("alpaca", "sip")
        return Source("none", provider, settings.feed or feed)
    provider = _provider_of(settings, kind)
    default = held[1] if held and held[0] == provider else _default_feed(kind)
    return Source(kind, provider, settings.feed or default)


def _fresh_source(settings: Settings) -> Source:
    kind = "alpaca" if settings.alpaca_key_id else "yahoo"
    return Source(kind, _provider_of(settings, kind), settings.feed or _default_feed(kind))


def _adopted_source(settings: Settings, held: tuple[str, str]) -> Source:
    provider, recorded = held
    feed = settings.feed or recorded
    if provider == SANDBOX:
        return Source(SANDBOX, provider, feed)
    if provider == _provider_of(settings, "alpaca") and settings.alpaca_key_id:
        return Source("alpaca", provider, feed)
    if provider == _provider_of(settings, "yahoo"):
        return Source("yahoo", provider, feed)
    return Source("none", provider, feed)


def _provider_of(settings: Settings, kind: str) -> str:
    if kind == SANDBOX:
        return SANDBOX
    url = settings.alpaca_url if kind == "alpaca" else settings.yahoo_url
    return provider_of(url, kind)


def _default_feed(kind: str) -> str:
    return "yahoo" if kind == "yahoo" else "sip"


def _say(notice: str) -> None:
    log.warning("%s", notice)


class LazyRuntime:
    """Makes the `Runtime` on first use, and anew in a forked child."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None
        self._pid = 0

    def get(self) -> Runtime:
        runtime = self._runtime
        if runtime is not None and self._pid == os.getpid():
            return runtime
        with self._lock:
            if self._runtime is None or self._pid != os.getpid():
                # A forked child must not talk on its parent's connections, nor close them.
                self._runtime = Runtime(self._settings)
                self._pid = os.getpid()
            return self._runtime

    def close(self) -> None:
        with self._lock:
            runtime, self._runtime = self._runtime, None
            if runtime is not None and self._pid == os.getpid():
                runtime.close()
