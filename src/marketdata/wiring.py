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
from typing import TYPE_CHECKING, Final

from marketdata import planning
from marketdata.adjusting import Adjuster
from marketdata.cache import RedisCache
from marketdata.cache.indicators import IndicatorCache, announce_actions
from marketdata.cache.notices import NoticeListener, Notices
from marketdata.cache.subscriptions import SubscriptionMirror
from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import Clock, parse_clock
from marketdata.config import Settings
from marketdata.errors import RequestError
from marketdata.fetching import Fetcher
from marketdata.latest import LatestReader
from marketdata.queries import BarsQuery
from marketdata.reader import Reader
from marketdata.renewing import LeaseKeeper
from marketdata.sources import Source, Surroundings, check_keys, choose_source, make_broker
from marketdata.spans import Span
from marketdata.splits import Splits
from marketdata.statistics import Flusher, Statistics
from marketdata.store import PostgresStore
from marketdata.store.backfill import PostgresBackfillLog
from marketdata.store.counters import PostgresCounters
from marketdata.store.figures import PostgresFigures
from marketdata.store.indicators import PostgresIndicators
from marketdata.store.job_runs import PostgresJobRuns
from marketdata.store.leases import PostgresLeases
from marketdata.store.retention import Retention
from marketdata.store.sealing import Sealer
from marketdata.store.subscriptions import PostgresSubscriptions
from marketdata.subscriptions import SubscriptionManager
from marketdata.types import MINUTE
from marketdata.verdicts import Verdicts
from marketdata.warning_types import LIBRARY, DelayedDataWarning, ProviderWarning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from marketdata.clock import Deadline
    from marketdata.embedded import Lease
    from marketdata.errors import UnknownSymbolError
    from marketdata.kept_indicators import KeptIndicators
    from marketdata.protocols import ActionKind, BeforeCommit, Broker, Commit
    from marketdata.types import SeriesKey, Split

log = logging.getLogger("marketdata")

RESERVE: Final = 0.25
"""Share of the request budget that background work leaves to live reads."""


class Runtime:
    """The running stack of one client and process.

    Parameters
    ----------
    clock : Clock, optional
        Market time; by default the one that the settings name.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings = settings
        check_keys(settings)
        self.clock: Clock = parse_clock(settings.clock) if clock is None else clock
        self._lease: Lease | None = None
        self._background: Broker | None = None
        self._closing = ExitStack()
        database_url, redis_url = self._servers()
        self._database_url = database_url
        self.store = PostgresStore(database_url, schema=settings.database_schema)
        try:
            self._prepare_schema()
            self.cache = RedisCache(redis_url, lambda: self.store.epoch)
            self.source = choose_source(settings, self.store.recorded())
            self._surroundings = Surroundings(
                settings,
                self.source,
                self.clock,
                self.calendar,
                budget=self.store,
                on_delay=_warn_of_delay,
                on_notice=_say,
                closing=self._closing,
            )
            self.broker: Broker = make_broker(self._surroundings)
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
        self.verdicts = Verdicts(self.broker)
        self.actions = _Announcing(self.store, self.cache)
        self.splits = Splits(self.actions, self.broker, self.clock, self.calendar)
        self.latest = LatestReader(self.broker, self.clock)
        self.statistics = Statistics()
        self._flusher = Flusher(self.stats, PostgresCounters(self.store.database).add)
        self.statistics.on_first(self._flusher.start)
        self.adopting = _Adopting(self.store, self.source)
        self.fetcher = Fetcher(
            self.adopting,
            self.store,
            self.cache,
            self.broker,
            self.verdicts,
            self.clock,
            self.calendar,
        )
        self.reader = Reader(
            self.store,
            self.cache,
            self.broker,
            self.fetcher,
            self.verdicts,
            self.clock,
            self.calendar,
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
        for name in (
            "_flusher",
            "leases",
            "listener",
            "broker",
            "_background",
            "cache",
            "mirror",
            "notices",
            "store",
            "_closing",
        ):
            part = getattr(self, name, None)  # making this stack may have failed half-way
            if part is not None:
                part.close()
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    @property
    def background_broker(self) -> Broker:
        """The broker for work nobody waits for: it leaves a quarter of the request budget (20 a
        minute at least) to live reads, and fails without them. Made on first use."""
        if self._background is None:
            quiet = replace(self._surroundings, reserve=RESERVE, on_delay=_say)
            self._background = make_broker(quiet)
        return self._background

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

    @cached_property
    def job_leases(self) -> PostgresLeases:
        """Who acts, on connections of its own. Whoever uses it closes it."""
        return PostgresLeases(self._database_url, schema=self.settings.database_schema)

    @cached_property
    def job_runs(self) -> PostgresJobRuns:
        """What each job did and when."""
        return PostgresJobRuns(self.store.database)

    @cached_property
    def figures(self) -> PostgresFigures:
        """Figures of the whole store, on a connection of its own with short timeouts. Whoever uses
        it closes it."""
        return PostgresFigures.connect(self._database_url, self.settings.database_schema)

    def unknown(
        self, names: Sequence[str], deadline: Deadline, cure: str | None = None
    ) -> UnknownSymbolError:
        """Return the error for symbols that the broker says do not exist."""
        return self.verdicts.unknown(self.provider, names, self.known_symbols(), deadline, cure)

    def stats(self) -> dict[str, int]:
        """Return the counters of `Client.stats`."""
        brokers = [self.broker] if self._background is None else [self.broker, self._background]
        sent = [broker.health().get("requests_sent") for broker in brokers]
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

    def commit(
        self, commits: Sequence[Commit], before_commit: BeforeCommit | None = None
    ) -> dict[SeriesKey, int]:
        if not self._adopted and not self._source.simulated:
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


class _Announcing:
    """The action store as everybody sees it: what was computed with fewer actions is forgotten
    before new ones are recorded."""

    def __init__(self, store: PostgresStore, cache: RedisCache) -> None:
        self._store = store
        self._cache = cache
        self.splits = store.splits
        self.checked = store.checked

    def record(
        self,
        provider: str,
        splits: Mapping[str, Sequence[Split]],
        asked: Span,
        observed_us: int,
        kind: ActionKind = "split",
    ) -> None:
        if kind == "split" and splits:
            announce_actions(self._cache, provider, list(splits), observed_us)
        self._store.record(provider, splits, asked, observed_us, kind)


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
