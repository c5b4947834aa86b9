"""``marketdata up``: every job in one process. One daemon leads and acts, the others stand by.

::

    main thread        waits for servers, then for the end; follows the clock
    scheduler          ticks -> jobs, each on a thread of its own     (ticking, schedule)
    leases             renewed every 10 s; says who leads              (leadership)
    observer           looks at the servers every 15 s                 (wellbeing, metrics)
    HTTP               /livez /readyz /health /metrics                 (health)

A tick does nothing where this daemon does not lead. Who comes to lead acts at once, and makes up
for a night that was missed. Jobs run under the leader's lease and their own: both may end.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import disable_created_metrics

from marketdata import __version__, leadership
from marketdata.brokers.resilience import answers
from marketdata.cache import RedisCache
from marketdata.clock import Clock, from_micros
from marketdata.companions import Companions, environment, registered
from marketdata.errors import CacheError, MarketDataError, StoreUnavailableError
from marketdata.findings import described
from marketdata.health import HealthServer, State
from marketdata.jobs import JOBS, NIGHTLY, Ended, Job, JobRunner
from marketdata.leadership import Lease, ProcessLeases
from marketdata.metrics import Metrics
from marketdata.observing import LOOK_EVERY, Observer, request_limit
from marketdata.protocols import Priority
from marketdata.schedule import Tick, Timetable, actions_due, night_of
from marketdata.ticking import Ticker
from marketdata.types import MINUTE, SECOND
from marketdata.wellbeing import timetable
from marketdata.wiring import Runtime

if TYPE_CHECKING:
    from marketdata.config import Settings

log = logging.getLogger("marketdata.daemon")

GRACE: Final = 18.0
"""Seconds that jobs have to end or to roll back once the daemon is told to."""
_STANDSTILL: Final = 30.0
"""Seconds without a turn of the scheduler's loop after which this process is not fit to lead."""
_DEAF: Final = 60.0
"""Seconds without a word from PostgreSQL after which the daemon is not ready."""
_RETRY: Final = 0.5
_AGAIN_FIRST: Final = MINUTE
_AGAIN_MOST: Final = 15 * MINUTE
_MOST_JITTER: Final = 1.5


class Daemon:
    """One daemon, from its start to its end.

    Parameters
    ----------
    settings : Settings
        Of the servers, the broker and the timetable.
    wait : float
        Seconds to wait for servers that are not there yet.
    clock : Clock, optional
        Market time; by default the one that the settings name.
    lease : float
        Seconds: length of the leader's lease. It is renewed three times as often, and a standby
        looks six times as often.
    grace : float
        Seconds that jobs have to end once the daemon is told to.
    look_every : float
        Seconds between two looks at the servers, where nothing happens in between.
    jobs : mapping, optional
        The table of jobs.
    companions : mapping, optional
        Name to command line of what runs beside the leader; by default what is installed, unless
        the settings say otherwise.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        wait: float = 60.0,
        clock: Clock | None = None,
        lease: float = leadership.LEASE_SECONDS,
        grace: float = GRACE,
        look_every: float = LOOK_EVERY,
        jobs: Mapping[str, Job] = JOBS,
        companions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._settings = settings
        self._given_clock = clock
        self._wait = wait
        self._lease_seconds = lease
        self._grace = grace
        self._look_every = look_every
        self._jobs = jobs
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._phase = "waiting for its servers"
        self._jitter = round(random.uniform(0, _MOST_JITTER) * SECOND)
        self._runtime: Runtime | None = None
        self._leases: ProcessLeases | None = None
        self._ticker: Ticker | None = None
        self._ended_by: MarketDataError | None = None
        self._observer: Observer | None = None
        self._cycle_failures = 0
        self._unfetched = 0
        if companions is None:
            companions = registered() if settings.companions == "on" else {}
        self._companions = Companions(companions, environment(settings), self._leads)
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._metrics = Metrics(
            __version__,
            leading=self._is_leading,
            heartbeat=self._heartbeat_age,
            answers=answers.snapshot,
        )
        self._http = HealthServer(
            settings.listen,
            live=self._live,
            ready=self._ready,
            detail=self._detail,
            metrics=self._metrics.exposition,
        )

    @property
    def url(self) -> str:
        """Where it answers health and metrics."""
        return self._http.url

    # ------------------------------------------------------------------------------ the course

    def stop(self) -> None:
        """End soon; callable from any thread and from a signal handler."""
        self._stop.set()

    def run(self) -> bool:
        """Work until `stop`; return whether everything ended in time.

        Raises
        ------
        StoreUnavailableError, CacheError
            The servers did not come within the time given; a retry can help.
            Or the embedded servers were stopped while it worked.
        StoreReadOnlyError
            PostgreSQL lets this user write nothing.
        ConfigurationError, SchemaError
            A setting or the schema needs a hand; a retry does not help.
        """
        try:
            runtime = self._connect()
            if runtime is None:
                return True
            ticker, leases, observer = self._assemble(runtime)
            observer.start()
            ticker.start()
            leases.lead(on_gain=self._gained)
            self._companions.start()
            self._phase = "running"
            while not self._stop.wait(1.0):
                ticker.watch_clock()
            clean = self._end(ticker)
            if self._ended_by is not None:
                raise self._ended_by
            return clean
        finally:
            self._stop.set()
            self._close()

    def _connect(self) -> Runtime | None:
        """Return the stack once its servers answer; None where we are to end before."""
        until = time.monotonic() + self._wait
        said = False
        while not self._stop.is_set():
            try:
                runtime = Runtime(self._settings, self._given_clock, priority=Priority.LIVE)
            except StoreUnavailableError as error:
                if time.monotonic() + _RETRY > until:
                    raise
                if not said:
                    log.warning("waiting for PostgreSQL, %.0f s at most: %s", self._wait, error)
                said = True
                self._stop.wait(_RETRY)
                continue
            self._runtime = runtime
            return runtime if self._await_redis(runtime.cache, until) else None
        return None

    def _await_redis(self, cache: RedisCache, until: float) -> bool:
        """Return whether Redis came before we are to end. A daemon that works does without it;
        one that starts without it more likely has a wrong address."""
        said = False
        while not self._stop.is_set():
            try:
                cache.info()
                return True
            except CacheError as error:
                if time.monotonic() + _RETRY > until:
                    raise
                if not said:
                    log.warning("waiting for Redis, %.0f s at most: %s", self._wait, error)
                said = True
                self._stop.wait(_RETRY)
        return False

    def _assemble(self, runtime: Runtime) -> tuple[Ticker, ProcessLeases, Observer]:
        book = runtime.job_leases
        seconds = self._lease_seconds
        self._leases = ProcessLeases(
            book,
            seconds=seconds,
            renew_every=seconds / 3,
            poll_every=seconds / 6,
            fit=lambda: self._heartbeat_age() < _STANDSTILL,
            details=lambda: {
                "release": __version__,
                "url": self.url,
                "clock": repr(runtime.clock),
                "settle_delay": self._timetable().settle_delay,
                "requests_per_minute": request_limit(runtime),
                "companions": self._companions.told(),
            },
        )
        book.renew({}, token="", seconds=0)  # who may not write can never lead: say so now
        self._runner = JobRunner(
            runtime, self._leases, book, runtime.job_runs, self._stop, self._jobs
        )
        calls: dict[Tick, Callable[[], None]] = {
            Tick.CYCLE: self._cycle,
            Tick.RECONCILE: self._reconcile,
            Tick.ACTIONS: self._actions,
            Tick.NIGHTLY: self._nightly,
        }
        self._ticker = Ticker(
            runtime.clock, self._timetable, runtime.calendar, calls, self._passed_over
        )
        self._observer = Observer(
            runtime,
            self._metrics,
            self._leases,
            self._timetable,
            self._servers_gone,
            self._look_every,
        )
        return self._ticker, self._leases, self._observer

    def _servers_gone(self, error: MarketDataError) -> None:
        self._ended_by = error
        self.stop()

    def _end(self, ticker: Ticker) -> bool:
        """Stop what runs; return whether it did."""
        self._phase = "ending"
        began = time.monotonic()
        self._companions.stop()
        clean = ticker.stop(self._grace)
        if not clean:
            names = ", ".join(sorted(ticker.running))
            log.error("%s did not end within %.0f s and is left to roll back", names, self._grace)
        log.info("ended after %.1f s", time.monotonic() - began)
        return clean

    def _close(self) -> None:
        runtime = self._runtime
        self._companions.close()
        if self._observer is not None:
            self._observer.close()
        if self._leases is not None:
            self._leases.close()
        if runtime is not None:
            with suppress(MarketDataError):
                runtime.figures.close()
            runtime.close()
        self._http.close()

    # ---------------------------------------------------------------------------------- ticks

    def _right(self) -> Lease | None:
        """Return the right to act, if we have it."""
        assert self._leases is not None
        return None if self._stop.is_set() else self._leases.leading

    def _gained(self) -> None:
        """We lead from now on: others may have been at work, and ticks may have been missed."""
        assert self._ticker is not None
        self._metrics.elected()
        self._runner.forget()
        self._ticker.now(Tick.RECONCILE, Tick.CYCLE)
        if self._night() is not None:
            self._ticker.now(Tick.NIGHTLY)
        if self._actions_occasion() is not None:
            self._ticker.now(Tick.ACTIONS)

    def _run_job(self, name: str, right: Lease, occasion: str | None = None) -> Ended:
        ended = self._runner.run(name, occasion=occasion, right=(right,))
        if ended.outcome == "busy":
            who = f", since {ended.holder.acquired_at:%H:%M:%S} UTC" if ended.holder else ""
            log.info("%s runs elsewhere%s", name, who)
        self._metrics.ended(ended)
        if self._observer is not None:
            self._observer.look_soon()
        return ended

    def _cycle(self) -> None:
        right = self._right()
        if right is None:
            return
        ended = self._run_job("cycle", right)
        self._cycle_failures = 0 if ended.outcome != "failed" else self._cycle_failures + 1
        if ended.outcome == "busy":
            # Of a leader that vanished the job's lease may outlive the leader's own.
            self._again(Tick.CYCLE, round(self._lease_seconds / 6 * SECOND))
        elif self._cycle_failures:
            wait = _AGAIN_FIRST * 2 ** min(self._cycle_failures - 1, 10)
            self._again(Tick.CYCLE, min(wait, _AGAIN_MOST))

    def _again(self, tick: Tick, wait: int) -> None:
        """Have `tick` run once more in `wait` microseconds of market time."""
        assert self._ticker is not None
        assert self._runtime is not None
        self._ticker.again_at(tick, self._runtime.clock.now_us() + wait)

    def _reconcile(self) -> None:
        right = self._right()
        if right is None:
            return
        self._run_job("reconcile", right)
        # Who subscribes at the weekend need not wait for Monday's first cycle. Once for each
        # change: what the broker does not know stays unfetched.
        assert self._runtime is not None
        with suppress(MarketDataError):
            wanted = self._runtime.figures.look().wanted
            before, self._unfetched = self._unfetched, sum(w.get(None, 0) for w in wanted.values())
            if self._unfetched > before:
                assert self._ticker is not None
                self._ticker.now(Tick.CYCLE)

    def _nightly(self) -> None:
        """Do the night's work, what of it is not done yet; what fails is tried again that night."""
        night = self._night()
        if night is None:
            return
        unfinished = False
        for name in NIGHTLY:
            right = self._right()
            if right is None:
                return
            ended = self._run_job(name, right, occasion=night)
            unfinished = unfinished or ended.outcome in ("failed", "busy")
        if unfinished:
            self._again(Tick.NIGHTLY, _AGAIN_MOST)

    def _actions(self) -> None:
        """Ask about corporate actions, once an occasion; what fails is tried again for a while."""
        occasion, right = self._actions_occasion(), self._right()
        if occasion is None or right is None:
            return
        if self._run_job("actions", right, occasion=occasion).outcome in ("failed", "busy"):
            self._again(Tick.ACTIONS, _AGAIN_MOST)

    def _actions_occasion(self) -> str | None:
        assert self._runtime is not None
        runtime = self._runtime
        return actions_due(self._timetable(), runtime.calendar(), runtime.clock.now_us())

    def _night(self) -> str | None:
        assert self._runtime is not None
        runtime = self._runtime
        day = night_of(self._timetable(), runtime.calendar(), runtime.clock.now_us())
        return None if day is None else day.isoformat()

    def _passed_over(self, tick: Tick, reason: str) -> None:
        self._metrics.passed_over(tick, reason)
        if self._observer is not None:
            self._observer.passed_over(tick, reason)

    # -------------------------------------------------------------------------------- settings

    def _timetable(self) -> Timetable:
        assert self._runtime is not None
        caps = self._runtime.broker.capabilities(self._runtime.source.feed)
        return timetable(self._settings, caps.settle_delay, caps.daily_settle_delay, self._jitter)

    # ----------------------------------------------------------------------------- what is told

    def _is_leading(self) -> bool:
        return self._leases is not None and self._leases.is_leader()

    def _leads(self) -> bool:
        """Whether companions are to run."""
        return self._is_leading() and not self._stop.is_set()

    def _heartbeat_age(self) -> float:
        return 0.0 if self._ticker is None else self._ticker.heartbeat_age()

    def _live(self) -> State:
        age = self._heartbeat_age()
        return State(age < _STANDSTILL, {"live": age < _STANDSTILL, "heartbeat_age": round(age, 1)})

    def _ready(self) -> State:
        role = "leader" if self._is_leading() else "standby"
        why = None
        if self._phase != "running":
            why = self._phase
        elif self._observer is None or self._observer.age > max(_DEAF, 3 * self._look_every):
            why = "PostgreSQL does not answer"
        detail = {"ready": why is None, "role": role, **({} if why is None else {"reason": why})}
        return State(why is None, detail)

    def _detail(self) -> dict[str, Any]:
        detail: dict[str, Any] = {
            "release": __version__,
            "phase": self._phase,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "role": "leader" if self._is_leading() else "standby",
            "heartbeat_age": round(self._heartbeat_age(), 1),
            "running": sorted(self._ticker.running) if self._ticker else [],
            "broker_requests": answers.snapshot(),
            "companions": self._companions.told(),
        }
        if self._runtime is not None:
            runtime = self._runtime
            detail |= {
                "source": f"{runtime.provider}/{runtime.source.feed}",
                "simulated": runtime.simulated,
                "market_time": from_micros(runtime.clock.now_us()).isoformat(),
                "broker": dict(runtime.broker.health()),
            }
        observer = self._observer
        if observer is not None and observer.vitals is not None:
            detail |= described(observer.vitals)
            detail["observed_seconds_ago"] = round(observer.age, 1)
        return detail
