"""Runs what `schedule` says, on APScheduler: market time becomes real time, whatever the clock.

A tick that comes late is run once and at once; one that comes while the run before it still goes
on is skipped, counted and reported. Neither loses work, since work is found in what is stored.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from apscheduler.events import (  # type: ignore[import-untyped]
    EVENT_JOB_ERROR,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    JobEvent,
)
from apscheduler.executors.pool import ThreadPoolExecutor  # type: ignore[import-untyped]
from apscheduler.schedulers.background import BackgroundScheduler  # type: ignore[import-untyped]
from apscheduler.triggers.base import BaseTrigger  # type: ignore[import-untyped]
from apscheduler.triggers.interval import IntervalTrigger  # type: ignore[import-untyped]

from marketdata.calendars import TradingCalendar
from marketdata.clock import Clock, SystemClock, from_micros
from marketdata.schedule import Tick, Timetable, next_fire
from marketdata.types import SECOND

log = logging.getLogger("marketdata.ticking")

HEARTBEAT_SECONDS: Final = 1.0
_HEARTBEAT: Final = "heartbeat"
_STANDSTILL: Final = timedelta(days=365)
_JUMP: Final = 2 * SECOND
_REMEMBERED: Final = 16
_REASONS: Final = {
    EVENT_JOB_MISSED: "missed",
    EVENT_JOB_MAX_INSTANCES: "skipped",
    EVENT_JOB_ERROR: "error",
}

PassedOver = Callable[[Tick, str], None]


class MarketTrigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Fires when the market's clock reaches the next moment of the timetable.

    Parameters
    ----------
    clock : Clock
        Market time. Where it stands still, nothing is ever due.
    timetable, calendar : callable
        Return what holds now: a delay may be learnt, a year may end.
    """

    def __init__(
        self,
        tick: Tick,
        clock: Clock,
        timetable: Callable[[], Timetable],
        calendar: Callable[[], TradingCalendar],
    ) -> None:
        self._tick = tick
        self._clock = clock
        self._timetable = timetable
        self._calendar = calendar
        self._again: int | None = None
        self._market: dict[datetime, int] = {}

    def again_at(self, market_us: int) -> None:
        """Fire once more at `market_us`, beside the timetable."""
        self._again = market_us

    def was_due(self, after_us: int, until_us: int) -> bool:
        """Whether the timetable has a tick in ``(after_us, until_us]`` of market time."""
        return next_fire(self._tick, self._timetable(), self._calendar(), after_us) <= until_us

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """Return the real time of the next tick; see APScheduler's `BaseTrigger`."""
        market, real = self._clock.now_us(), SystemClock().now_us()
        # Not before the tick that fired just now: two clocks need not agree to the microsecond.
        after = max(market, self._market.get(previous, market) if previous else market)
        due = next_fire(self._tick, self._timetable(), self._calendar(), after)
        if self._again is not None and after < self._again < due:
            due = self._again
        if self._clock.speed == 0:
            return now + _STANDSTILL
        fires = from_micros(real + round((due - market) / self._clock.speed))
        self._market[fires] = due
        while len(self._market) > _REMEMBERED:
            del self._market[next(iter(self._market))]
        return fires


class Ticker:
    """The scheduler of one daemon.

    Parameters
    ----------
    calls : mapping
        What to do at each tick, on a thread of its own; a tick never runs twice at once.
    passed_over : callable
        Told of each tick whose run did not begin (``skipped``, ``missed``) or failed (``error``).
    """

    def __init__(
        self,
        clock: Clock,
        timetable: Callable[[], Timetable],
        calendar: Callable[[], TradingCalendar],
        calls: Mapping[Tick, Callable[[], None]],
        passed_over: PassedOver,
    ) -> None:
        self._clock = clock
        self._passed_over = passed_over
        self._beat = time.monotonic()
        self._triggers = {tick: MarketTrigger(tick, clock, timetable, calendar) for tick in calls}
        self._running: set[Tick] = set()
        self._idle = threading.Condition()
        self._seen = (clock.now_us(), time.monotonic())
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={
                "default": ThreadPoolExecutor(len(calls)),
                _HEARTBEAT: ThreadPoolExecutor(1),
            },
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        self._scheduler.add_listener(
            self._heard, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES | EVENT_JOB_ERROR
        )
        for tick, call in calls.items():
            self._scheduler.add_job(self._run, self._triggers[tick], (tick, call), id=tick.value)
        beat = IntervalTrigger(seconds=HEARTBEAT_SECONDS, timezone=UTC)
        self._scheduler.add_job(self._turn, beat, id=_HEARTBEAT, executor=_HEARTBEAT)

    def start(self) -> None:
        """Begin to tick."""
        # Its own words about skipped runs come at level warning, and ours are better.
        logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
        self._scheduler.start()

    def heartbeat_age(self) -> float:
        """Return the seconds since the loop turned last."""
        return time.monotonic() - self._beat

    def now(self, *ticks: Tick) -> None:
        """Have these ticks run at once, beside the timetable."""
        for tick in ticks:
            self._modify(tick, next_run_time=from_micros(SystemClock().now_us()))

    def again_at(self, tick: Tick, market_us: int) -> None:
        """Have a tick run once more at that market time."""
        self._triggers[tick].again_at(market_us)
        self._reschedule(tick.value, self._triggers[tick])

    def watch_clock(self) -> None:
        """Follow the clock where it was set or has slept; to be called about every second."""
        market, real = self._clock.now_us(), time.monotonic()
        before, then = self._seen
        self._seen = (market, real)
        jump = market - before - (real - then) * self._clock.speed * SECOND
        if abs(jump) <= _JUMP * max(1.0, self._clock.speed):
            return
        log.warning("the clock jumped by %+.1f s of market time", jump / SECOND)
        self._reschedule(_HEARTBEAT, IntervalTrigger(seconds=HEARTBEAT_SECONDS, timezone=UTC))
        for tick, trigger in self._triggers.items():
            self._reschedule(tick.value, trigger)
            if jump > 0 and trigger.was_due(before, market):
                log.warning("the tick %s was missed", tick)
                self._passed_over(tick, "missed")
                self.now(tick)

    def stop(self, timeout: float) -> bool:
        """Begin nothing any more and wait for what runs; return whether all of it has ended."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        with self._idle:
            return self._idle.wait_for(lambda: not self._running, timeout)

    @property
    def running(self) -> frozenset[Tick]:
        """What runs now."""
        return frozenset(self._running)

    # ------------------------------------------------------------------------------ internals

    def _run(self, tick: Tick, call: Callable[[], None]) -> None:
        with self._idle:
            self._running.add(tick)
        try:
            call()
        finally:
            with self._idle:
                self._running.discard(tick)
                self._idle.notify_all()

    def _turn(self) -> None:
        self._beat = time.monotonic()

    def _heard(self, event: JobEvent) -> None:
        if event.job_id == _HEARTBEAT:
            return
        reason = _REASONS[event.code]
        if reason == "error":
            log.error("the tick %s failed: %s", event.job_id, event.exception)
        else:
            log.warning("the tick %s was %s", event.job_id, reason)
        self._passed_over(Tick(event.job_id), reason)

    def _modify(self, tick: Tick, **changes: Any) -> None:
        if self._scheduler.running:
            self._scheduler.modify_job(tick.value, **changes)

    def _reschedule(self, name: str, trigger: BaseTrigger) -> None:
        if self._scheduler.running:
            self._scheduler.reschedule_job(name, trigger=trigger)
