"""The process that runs algorithms live: many of them, on one set of bars, a cycle at a time.

::

    feeds bring closed bars -> one market, extended once -> each algorithm is stepped, supervised
        -> one transaction stores orders, fills, state and how far each has come

Decided is what is stored: a process that is killed between leaves nothing half done. The next one
goes on from the last transaction, sees the same bars and decides the same. With the paper venue
that is all; a broker is told of an order only after it is stored.

Outages of PostgreSQL, Redis and the broker are waited out: bars keep coming in order when they are
over. A lease that runs out meanwhile is for good, since another process may have taken over: then
everything is claimed anew, and begins again from what is stored.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import marketdata as md
from algorithms.live.beginning import Beginning
from algorithms.live.broking import News
from algorithms.live.crew import Phase
from algorithms.live.hosting import Hosted
from algorithms.live.obeying import Obeying
from algorithms.live.stepped import Stepped

log = logging.getLogger("algorithms.live")

_LONGEST_WAIT: Final = 0.5
_BUSY_WAIT: Final = 0.05
_RETRY_FIRST: Final = 0.25
_RETRY_MOST: Final = 15.0
_FAREWELL: Final = 10.0
_FREEZE_SECONDS: Final = 60.0


class LiveRunner(Beginning, Obeying):
    """Runs algorithms until it is stopped.

    Parameters
    ----------
    client : Client
        Where bars come from.
    journal : Journal
    names : sequence of str, optional
        The algorithms to run, stopped ones too; by default all that are wanted running and that
        nobody runs.
    venues : mapping of str to BrokerVenue, optional
        The brokers that algorithms may name instead of ``paper``; not closed here.
    factory : Factory, optional
        Makes algorithms of what is stored; by default their classes are imported.
    policy : Policy, optional
    workers : int
        Calls at once, stuck ones not counted.
    lease_seconds : float
        Others may take over when this process has been silent for so long.
    look_every : float
        Seconds between two looks at what is wanted.
    poll_every : float
        Seconds between two looks at a broker while orders wait there.
    """

    def stop(self) -> None:
        """End after the cycle at hand; callable from any thread and from a signal handler."""
        self._stop.set()
        self._wake.set()

    def run(self) -> None:
        """Run until `stop`. Transient errors are waited out.

        Raises
        ------
        JournalError
            An algorithm that was named is not registered.
        SchemaError, StoreReadOnlyError, ConfigurationError
            What a hand must cure; a retry does not help.
        """
        heart = threading.Thread(target=self._beat, name="algorithm-heartbeat", daemon=True)
        heart.start()
        failures = 0
        try:
            while not self._stop.is_set():
                try:
                    self._turn()
                    failures = 0
                except md.MarketDataError as error:
                    if not error.transient:
                        raise
                    failures += 1
                    pause = min(_RETRY_MOST, _RETRY_FIRST * 2 ** min(failures, 10))
                    level = logging.WARNING if failures == 1 else logging.INFO
                    log.log(level, "trying again in %.1f s: %s", pause, error)
                    self._stop.wait(pause)
                    continue
                self._rest()
        finally:
            self._stop.set()
            self._end()
            gc.unfreeze()
            heart.join(_FAREWELL)

    def _turn(self) -> None:
        self._wake.clear()
        self._hold()
        self._store()
        if self._monotonic() >= self._look_at:
            self._look()
            self._look_at = self._monotonic() + self._look_every
        self._begin()
        self._cycle()

    def _rest(self) -> None:
        """Wait until something is to be done."""
        if self._behind or self._stop.is_set():
            return
        now = self._monotonic()
        if now >= self._freeze_at and self._hosted:
            _freeze(anew=self._built)
            self._built, self._freeze_at = False, self._monotonic() + _FREEZE_SECONDS
        waits = [_LONGEST_WAIT, max(0.0, self._look_at - now)]
        if self._supervisor.busy:
            waits.append(_BUSY_WAIT)
        for hosted in self._hosted.values():
            retry = hosted.course.retry_in(now)
            if retry is not None:
                waits.append(retry)
        self._wake.wait(min(waits))

    def _cycle(self) -> None:
        began = time.perf_counter()
        self._handle(self._supervisor.look())
        self._store()  # before anybody is stepped again
        self._hear()
        self._take_care()
        bars = self._roster.take()
        self._roster.renew_actions()
        calls = self._due()
        if calls:
            self._behind = False
            self._call(calls, Phase.STEP)
            cycles = self.cycles
            cycles.count += 1
            cycles.seconds = time.perf_counter() - began
            cycles.longest = max(cycles.longest, cycles.seconds)
            log.debug("%d bars, %d steps in %.3f s", bars, len(calls), cycles.seconds)
        self._store()

    def _due(self) -> dict[Hosted, Callable[[], Stepped]]:
        """Return the calls of those that have a moment to go through, or something to obey."""
        busy = self._supervisor.busy
        known: dict[Any, int] = {}
        calls: dict[Hosted, Callable[[], Stepped]] = {}
        for hosted in self._hosted.values():
            needs, engine = hosted.needs, hosted.engine
            if engine is None or needs is None or not hosted.course.steps or hosted in busy:
                continue
            until = known.get(needs.feeds)
            if until is None:
                until = known[needs.feeds] = self._roster.complete(needs)
            if hosted in self._poked or hosted.news is not None or hosted.has_news(until):
                news, hosted.news = hosted.news, None
                calls[hosted] = _step(hosted, until, news)
        self._poked.difference_update(calls)
        return calls

    def _end(self) -> None:
        """Say farewell: `on_stop`, the last transaction, the lease."""
        try:
            idle = [
                hosted
                for hosted in self._hosted.values()
                if hosted.engine is not None and hosted not in self._supervisor.busy
            ]
            if self._lease is not None and not self._lost.is_set():
                self._store()
                self._call({hosted: hosted.stop for hosted in idle}, Phase.STOP)
                for hosted in self._hosted.values():
                    hosted.course.stop()
                    self._unstored.setdefault(hosted, None)
                self._store()
                self._wait_for_brokers()
        except md.MarketDataError as error:
            log.warning("the last cycle is not stored, and is done again next time: %s", error)
        finally:
            self._roster.close()
            for courier in self._couriers.values():
                courier.close()
            stuck = self._supervisor.close()
            if stuck:
                log.warning("%d calls did not end", len(stuck))
            if self._lease is not None:
                try:
                    self._lease.end()
                except md.MarketDataError as error:
                    log.warning("the lease runs out by itself: %s", error)


def _freeze(*, anew: bool) -> None:
    """Leave what is there now out of later collections of garbage: a thousand engines are a million
    objects that stay, and looking at them all in the middle of a cycle takes half a second.

    Engines that are gone are garbage only where all is looked at `anew`.
    """
    if anew:
        gc.unfreeze()
    gc.collect()
    gc.freeze()


def _step(hosted: Hosted, until: int, news: News | None) -> Callable[[], Stepped]:
    return lambda: hosted.step(until, news)
