"""Puts the parts together: settings in, one running stack out."""

from __future__ import annotations

import logging
import os
import threading
import warnings
import weakref
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from marketdata import planning
from marketdata.announcing import Adopting, Announcing
from marketdata.cache import RedisCache
from marketdata.cache.indicators import IndicatorCache
from marketdata.cache.notices import NoticeListener, Notices
from marketdata.cache.subscriptions import SubscriptionMirror
from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.chain import Chain
from marketdata.clock import Clock, parse_clock
from marketdata.config import Settings
from marketdata.errors import RequestError
from marketdata.identities import Identities, InstrumentActions
from marketdata.links import Common, Link
from marketdata.protocols import Priority
from marketdata.queries import BarsQuery
from marketdata.renewing import LeaseKeeper
from marketdata.sources import (
    Source,
    Surroundings,
    check_keys,
    choose_sources,
    make_broker,
    named_source,
)
from marketdata.spans import Span
from marketdata.statistics import Flusher, Statistics
from marketdata.store import PostgresStore
from marketdata.store.backfill import PostgresBackfillLog
from marketdata.store.counters import PostgresCounters
from marketdata.store.figures import PostgresFigures
from marketdata.store.identity import PostgresIdentity
from marketdata.store.indicators import PostgresIndicators
from marketdata.store.job_runs import PostgresJobRuns
from marketdata.store.leases import PostgresLeases
from marketdata.store.retention import Retention
from marketdata.store.sealing import Sealer
from marketdata.store.subscriptions import PostgresSubscriptions
from marketdata.subscriptions import SubscriptionManager
from marketdata.warning_types import LIBRARY, DelayedDataWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marketdata.clock import Deadline
    from marketdata.embedded import Lease
    from marketdata.errors import UnknownSymbolError
    from marketdata.kept_indicators import KeptIndicators
    from marketdata.protocols import Broker

log = logging.getLogger("marketdata")


class Runtime:
    """The running stack of one client and process.

    Parameters
    ----------
    clock : Clock, optional
        Market time; by default the one that the settings name.
    priority : Priority
        Whom `broker`, and all that reads through the links, works for: a daemon for its live
        cycles.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock | None = None,
        *,
        priority: Priority = Priority.READ,
    ) -> None:
        self.settings = settings
        self.priority = priority
        check_keys(settings)
        self.clock: Clock = parse_clock(settings.clock) if clock is None else clock
        self._lease: Lease | None = None
        self._brokers: list[Broker] = []
        self._closing = ExitStack()
        database_url, redis_url = self._servers()
        self.database_url = database_url
        self.store = PostgresStore(
            database_url, schema=settings.database_schema, trail=settings.trailed
        )
        try:
            self._prepare_schema()
            self.cache = RedisCache(redis_url, lambda: self.store.epoch)
            self.sources = choose_sources(settings, self.store.recorded())
            self.source = self.sources[0]
            self._surroundings = Surroundings(
                settings,
                self.source,
                self.clock,
                self.calendar,
                budget=self.store,
                priority=priority,
                on_delay=_warn_of_delay,
                on_notice=_say,
                closing=self._closing,
            )
            for source in self.sources:
                self._brokers.append(make_broker(replace(self._surroundings, source=source)))
        except BaseException:
            self.close()
            raise
        self.mirror = SubscriptionMirror(redis_url, lambda: self.store.epoch)
        self.subscriptions = SubscriptionManager(
            PostgresSubscriptions(self.store.database), self.mirror
        )
        self.leases = LeaseKeeper(self.subscriptions)
        self.notices = Notices(redis_url, lambda: self.store.epoch)
        self.listener = NoticeListener(redis_url, lambda: self.store.epoch)
        self.identity_store = PostgresIdentity(self.store.database)
        self.identities = Identities(self.identity_store, self.clock, self.calendar)
        self.action_store = InstrumentActions(Announcing(self.store, self.cache), self.identities)
        self._common = Common(
            self.store,
            self.cache,
            self.action_store,
            self.identity_store,
            self.identities,
            self.clock,
            self.calendar,
        )
        self.adopting = Adopting(self.store, self.sources)
        self.links = tuple(
            Link(source, broker, self.adopting, self._common)
            for source, broker in zip(self.sources, self._brokers, strict=True)
        )
        """The brokers in the order in which they are asked; most runtimes have one."""
        self.chain = Chain(self.links)
        self._others: list[Link] = []
        self._linking = threading.Lock()
        primary = self.links[0]
        self._by_priority = {(link.source, priority): link.broker for link in self.links}
        self.broker = primary.broker
        self.verdicts = primary.verdicts
        self.actions = primary.actions
        self.latest = primary.latest
        self.fetcher = primary.fetcher
        self.series_reader = primary.series_reader
        self.reader = primary.reader
        self.adjuster = primary.adjuster
        self.statistics = Statistics()
        self._flusher = Flusher(self.stats, PostgresCounters(self.store.database).add)
        self.statistics.on_first(self._flusher.start)

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
        for each in (
            "_flusher",
            "leases",
            "listener",
            *self._brokers,
            "cache",
            "mirror",
            "notices",
            "store",
            "_closing",
        ):
            # Making this stack may have failed half-way.
            part: Any = getattr(self, each, None) if isinstance(each, str) else each
            if part is not None:
                part.close()
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def broker_for(self, priority: Priority, source: Source | None = None) -> Broker:
        """Return the broker of `source` (the primary one) for work of this priority, made on first
        use: it spends the same budget as the link's own, before or after it, and fails without
        it."""
        wanted = (source or self.source, priority)
        with self._linking:
            if wanted not in self._by_priority:
                given = replace(self._surroundings, source=wanted[0], priority=priority)
                if priority.background:
                    given = replace(given, on_delay=_say)
                self._by_priority[wanted] = make_broker(given)
                self._brokers.append(self._by_priority[wanted])
            return self._by_priority[wanted]

    @cached_property
    def backfill_log(self) -> PostgresBackfillLog:
        """What a backfill could not fetch, and when it tries again."""
        return PostgresBackfillLog(self.store.database)

    @cached_property
    def sealer(self) -> Sealer:
        """Moves settled bars between rows and chunks."""
        return Sealer(self.store.database)

    @cached_property
    def retention(self) -> Retention:
        """Drops what is too old, or damaged."""
        return Retention(self.store.database)

    def indicator_tiers(self, columns: Sequence[str]) -> tuple[PostgresIndicators, IndicatorCache]:
        """Return where values of these names are stored, and where the newest are cached."""
        return PostgresIndicators(self.store.database, columns), IndicatorCache(self.cache, columns)

    @cached_property
    def kept_indicators(self) -> KeptIndicators:
        """What serves and leaves the kept indicators' newest values. TA-Lib is loaded here."""
        from marketdata.kept_indicators import KEPT_COLUMNS, KeptIndicators

        return KeptIndicators(self, *self.indicator_tiers(KEPT_COLUMNS))

    def link_named(self, name: str) -> Link:
        """Return the link of a broker by its name in ``MARKETDATA_BROKER``: that of the chain, or
        one made on first use.

        Raises
        ------
        ConfigurationError
            There is no such broker, or its keys are missing; a retry does not help.
        """
        with self._linking:
            for link in (*self.links, *self._others):
                if link.source.kind == name:
                    return link
            check_keys(self.settings, [name])
            source = named_source(name, self.settings, self.store.recorded())
            broker = make_broker(replace(self._surroundings, source=source))
            self._brokers.append(broker)
            link = Link(source, broker, self.adopting, self._common)
            self._others.append(link)
            return link

    # --------------------------------------------------------------------------------- facts

    @property
    def provider(self) -> str:
        return self.source.provider

    @property
    def simulated(self) -> bool:
        return self.source.simulated

    def calendar(self) -> TradingCalendar:
        return calendar_for(EXCHANGE, self.clock.now_us())

    def feed_named(self, feed: str | None, *, latest: bool = False) -> str:
        """Return the feed a call means.

        Parameters
        ----------
        latest : bool
            Whether the newest trade, quote, bar or snapshot is asked for: some feeds have only
            those.

        Raises
        ------
        RequestError
            The broker has no such feed; a retry does not help.
        """
        feed = self.source.feed if feed is None else feed.strip().lower()
        if feed == self.source.feed:
            return feed
        caps = self.broker.capabilities(self.source.feed)
        feeds = (caps.latest_feeds or caps.feeds) if latest else caps.feeds
        if feeds and feed not in feeds:
            raise RequestError(
                f"{self.provider} has no feed {feed!r}{'' if latest else ' with history'}",
                cure=f"use one of: {', '.join(feeds)}",
            )
        return feed

    def delayed(self, feed: str) -> bool:
        """Whether the primary broker refuses this key the most recent data."""
        return self.links[0].delayed(feed)

    def expected_bars(self, query: BarsQuery) -> int | None:
        """Return how many bars a fetch of all of `query` would bring, for a progress bar."""
        start = query.window.start
        if start is None:
            return None
        ways = self.broker.capabilities(query.feed).bases.get(query.timeframe)
        if not ways:
            return None
        base = ways[0].base
        span = Span(start, query.window.end)
        return planning.expected_bars(span, base, self.calendar()) * len(query.symbols)

    def known_symbols(self) -> list[str]:
        return self.store.known_symbols()

    @cached_property
    def job_leases(self) -> PostgresLeases:
        """Who acts, on connections of its own. Whoever uses it closes it."""
        return PostgresLeases(self.database_url, schema=self.settings.database_schema)

    @cached_property
    def job_runs(self) -> PostgresJobRuns:
        """What each job did and when."""
        return PostgresJobRuns(self.store.database)

    @cached_property
    def figures(self) -> PostgresFigures:
        """Figures of the whole store, on a connection of its own with short timeouts. Whoever uses
        it closes it."""
        return PostgresFigures.connect(self.database_url, self.settings.database_schema)

    def unknown(
        self,
        names: Sequence[str],
        deadline: Deadline,
        cure: str | None = None,
        *,
        links: Sequence[Link] = (),
    ) -> UnknownSymbolError:
        """Return the error for symbols that the primary broker, or each of those asked, says do
        not exist."""
        asked = " and ".join(dict.fromkeys(link.provider for link in links or self.links[:1]))
        return self.verdicts.unknown(asked, names, self.known_symbols(), deadline, cure)

    def stats(self) -> dict[str, int]:
        """Return the counters of `Client.stats`."""
        sent = [broker.health().get("requests_sent") for broker in list(self._brokers)]
        return {
            **self.statistics.snapshot(),
            **{f"redis_{name}": getattr(self.cache.stats, name) for name in _CACHE_COUNTERS},
            "broker_requests": sum(n for n in sent if isinstance(n, int)),
        }


_CACHE_COUNTERS: Final = ("hits", "misses", "stale", "damaged", "errors")


def stats_of_nothing() -> dict[str, int]:
    """Return the counters of a client that has not run yet."""
    names = [*(f"redis_{name}" for name in _CACHE_COUNTERS), "broker_requests"]
    return {**Statistics().snapshot(), **dict.fromkeys(names, 0)}


def _say(notice: str) -> None:
    log.warning("%s", notice)


def _warn_of_delay(notice: str) -> None:
    log.info("%s", notice)
    warnings.warn(notice, DelayedDataWarning, skip_file_prefixes=LIBRARY)


class LazyRuntime:
    """Makes the `Runtime` on first use, and anew in a forked child."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None
        _living.add(self)

    def get(self) -> Runtime:
        runtime = self._runtime
        if runtime is not None:
            return runtime
        with self._lock:
            if self._runtime is None:
                self._runtime = Runtime(self._settings, self._clock)
            return self._runtime

    @property
    def running(self) -> Runtime | None:
        """The stack, if it was made already."""
        return self._runtime

    def close(self) -> None:
        with self._lock:
            runtime, self._runtime = self._runtime, None
            if runtime is not None:
                runtime.close()

    def after_fork(self) -> None:
        """Forget the parent's stack: a child must not talk on its connections, nor close them."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        _inherited.append(self._runtime)
        self._runtime = None


_living: weakref.WeakSet[LazyRuntime] = weakref.WeakSet()
_inherited: list[Runtime | None] = []
"""Stacks of the parent process: collecting them would close its connections from here."""


def _after_fork() -> None:
    for each in list(_living):
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork)
