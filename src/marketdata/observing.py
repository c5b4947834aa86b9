"""Looks at the servers now and then, so that nobody who asks how things are has to wait for them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from marketdata.errors import CacheError, MarketDataError, StoreUnavailableError
from marketdata.schedule import Tick, Timetable
from marketdata.wellbeing import Vitals, assess

if TYPE_CHECKING:
    from marketdata.cache.redis_cache import CacheInfo
    from marketdata.leadership import ProcessLeases
    from marketdata.metrics import Metrics
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.observing")

LOOK_EVERY: Final = 15.0
_LEAST_PAUSE: Final = 1.0
"""Seconds between two looks at least, however much happens."""


class Observer:
    """Keeps the newest `Vitals`, on a thread of its own with connections of its own.

    Parameters
    ----------
    runtime : Runtime
        The running stack.
    metrics : Metrics
        Told of each look.
    leases : ProcessLeases
        Whether this process leads: only then are ticks that were passed over put on record.
    timetable : callable
        Returns what holds now.
    on_servers_gone : callable
        Called once the embedded servers were stopped.
    every : float
        Seconds between two looks where nothing happens in between.
    """

    def __init__(
        self,
        runtime: Runtime,
        metrics: Metrics,
        leases: ProcessLeases,
        timetable: Callable[[], Timetable],
        on_servers_gone: Callable[[MarketDataError], None],
        every: float = LOOK_EVERY,
    ) -> None:
        self.vitals: Vitals | None = None
        """What was seen last; None before the first look."""
        self.every = every
        self._runtime = runtime
        self._metrics = metrics
        self._leases = leases
        self._timetable = timetable
        self._on_servers_gone = on_servers_gone
        self._seen = float("-inf")
        self._to_note: SimpleQueue[tuple[Tick, str]] = SimpleQueue()
        self._now = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="marketdata-observer", daemon=True)

    def start(self) -> None:
        """Begin with a look at once."""
        self._thread.start()

    def close(self, timeout: float = 1.0) -> None:
        """Look no more; wait `timeout` seconds at most for a look under way."""
        self._end.set()
        self._now.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def age(self) -> float:
        """Seconds since PostgreSQL answered a look; infinity before it ever did."""
        return time.monotonic() - self._seen

    def look_soon(self) -> None:
        """Something has happened: do not wait for the next look's time."""
        self._now.set()

    def passed_over(self, tick: Tick, reason: str) -> None:
        """Put on record a tick whose run did not begin, once PostgreSQL answers."""
        self._to_note.put((tick, reason))
        self._now.set()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self._look()
            except Exception:
                log.exception("looking at the servers failed")
            self._now.wait(self.every)
            self._end.wait(_LEAST_PAUSE)
            self._now.clear()

    def _look(self) -> None:
        runtime, vitals = self._runtime, None
        cache: CacheInfo | None = None
        try:
            self._note()
            vitals = assess(
                runtime.figures.look(),
                runtime.calendar(),
                runtime.clock.now_us(),
                self._timetable(),
                seal_after=runtime.settings.seal_after,
                retention=runtime.settings.retention,
                request_limit=request_limit(runtime),
            )
            self.vitals, self._seen = vitals, time.monotonic()
        except MarketDataError as error:
            log.warning("PostgreSQL cannot be looked at: %s", error)
            self._ask_for_embedded()
        try:
            cache = runtime.cache.info()
        except CacheError as error:
            log.warning("Redis cannot be looked at: %s", error)
        self._metrics.observe(vitals, cache)

    def _note(self) -> None:
        while True:
            try:
                tick, reason = self._to_note.get_nowait()
            except Empty:
                return
            if not self._leases.is_leader():
                continue
            try:
                self._runtime.job_runs.pass_over(
                    tick.value,
                    reason,
                    market_us=self._runtime.clock.now_us(),
                    holder=self._leases.holder,
                )
            except MarketDataError:
                self._to_note.put((tick, reason))
                raise

    def _ask_for_embedded(self) -> None:
        """Say so where the embedded servers were stopped: nobody but their users starts them."""
        settings = self._runtime.settings
        if settings.database_url is not None or self._end.is_set():
            return
        from marketdata import embedded

        if not any(server.running for server in embedded.status(settings.home).servers):
            self._on_servers_gone(
                StoreUnavailableError(
                    f"the embedded servers of {settings.home} were stopped",
                    cure="start them again with: marketdata up",
                )
            )


def request_limit(runtime: Runtime) -> int | None:
    """Return the requests a minute that the broker allows, as far as it is known."""
    limit = runtime.broker.health().get("requests_per_minute")
    return limit if isinstance(limit, int) else None
