"""Who is hosted by a runner: claimed under its lease, called, judged, stored."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Final

import marketdata as md
from algorithms.errors import AlgorithmError
from algorithms.live.broking import POLL_SECONDS, Courier
from algorithms.live.caretaking import Caretaking
from algorithms.live.cycles import Cycles
from algorithms.live.hosting import Factory, Hosted
from algorithms.live.journal import LEASE_SECONDS, Journal
from algorithms.live.lease import RunnerLease
from algorithms.live.life import Policy
from algorithms.live.records import Life, Record, Switch
from algorithms.live.roster import Roster
from algorithms.live.sources import make
from algorithms.live.stepped import Stepped
from algorithms.live.supervision import Outcome, Supervisor
from algorithms.venues import BrokerVenue

log = logging.getLogger("algorithms.live")

LOOK_SECONDS: Final = 2.0
"""How often a runner looks what is wanted: a stop or a kill takes effect within this."""
_BUSY_WAIT: Final = 0.05
_BROKERS_WAIT: Final = 5.0


class Phase(Enum):
    """What a call of an algorithm is for."""

    PREPARE = auto()
    BUILD = auto()
    STEP = auto()
    STOP = auto()


class Crew:
    """The algorithms of a runner, and what is not stored of them yet; see `LiveRunner`."""

    def __init__(
        self,
        client: md.Client,
        journal: Journal,
        *,
        names: Sequence[str] | None = None,
        venues: Mapping[str, BrokerVenue] | None = None,
        factory: Factory = make,
        policy: Policy | None = None,
        workers: int = 1,
        lease_seconds: float = LEASE_SECONDS,
        look_every: float = LOOK_SECONDS,
        poll_every: float = POLL_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cycles = Cycles()
        self.policy = policy or Policy()
        self._client = client
        self._journal = journal
        self._names = None if names is None else tuple(names)
        self._factory = factory
        self._lease_seconds = lease_seconds
        self._look_every = look_every
        self._monotonic = monotonic
        self._supervisor: Supervisor[Hosted, Any] = Supervisor(self.policy, workers)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._roster = Roster(client, self._wake.set)
        self._couriers = {
            name: Courier(venue, self._wake.set, poll=poll_every)
            for name, venue in (venues or {}).items()
        }
        self._care = Caretaking(self._couriers)
        self._lease: RunnerLease | None = None
        self._lost = threading.Event()
        self._hosted: dict[int, Hosted] = {}
        self._phases: dict[Hosted, Phase] = {}
        self._wanted: dict[int, Record] = {}
        self._switch = Switch()
        self._unstored: dict[Hosted, Stepped | None] = {}
        self._poked: set[Hosted] = set()
        self._look_at = -math.inf
        self._behind = False
        self._changed = False
        self._built = False
        self._freeze_at = -math.inf

    @property
    def hosted(self) -> Mapping[str, Life]:
        """The algorithms it runs, by name, and where each stands."""
        return {each.name: each.course.life for each in list(self._hosted.values())}

    def _hold(self) -> None:
        """Have a lease; where it has run out, begin everything anew under another one."""
        if self._lease is not None and not self._lost.is_set():
            return
        if self._lease is not None:
            log.error("the lease has run out: all is claimed anew and goes on from what is stored")
            self._drop(list(self._hosted.values()))
        self._lease = self._journal.begin(
            _this_process(), seconds=self._lease_seconds, details=self._details()
        )
        self._lost.clear()
        self._look_at = -math.inf

    def _beat(self) -> None:
        """Renew the lease, on a thread of its own."""
        every = self._lease_seconds / 3
        while not self._stop.wait(every):
            lease = self._lease
            if lease is None or self._lost.is_set():
                continue
            try:
                if not lease.renew(details=self._details()) and lease is self._lease:
                    self._lost.set()
                    self._wake.set()
            except md.MarketDataError as error:
                log.info("the lease cannot be renewed now: %s", error)

    def _details(self) -> dict[str, Any]:
        lives = [each.course.life for each in list(self._hosted.values())]
        cycles = self.cycles
        return {
            "algorithms": {life.value: lives.count(life) for life in set(lives)},
            "cycles": cycles.count,
            "cycle_seconds": round(cycles.seconds, 3),
            "stored_seconds": round(cycles.stored_seconds, 3),
            "longest_seconds": round(cycles.longest, 3),
            "feeds": self._roster.errors(),
        }

    def _drop(self, gone: Sequence[Hosted]) -> None:
        for hosted in gone:
            self._hosted.pop(hosted.id, None)
            if hosted.venue in self._couriers:
                self._couriers[hosted.venue].forget(hosted.id)
            self._care.end(hosted)
            self._unstored.pop(hosted, None)
            self._poked.discard(hosted)
            self._supervisor.forget(hosted)
            self._changed = True

    def _give_back(self, hosted: Hosted) -> None:
        assert self._lease is not None
        self._lease.give_back({hosted.id: hosted.course.life})
        self._drop([hosted])

    def _leave(self, hosted: Hosted, reason: str) -> None:
        """Let an algorithm go; at a broker once that has taken its entries back."""
        hosted.course.stop()
        self._unstored.setdefault(hosted, None)
        self._store()
        hosted.drop_engine()
        if not self._care.begin(hosted, reason or "stopped", leave=True):
            self._give_back(hosted)

    def _hear(self) -> None:
        """Take what brokers say: of orders to the journal, the rest to the algorithms."""
        assert self._lease is not None
        for courier in self._couriers.values():
            for algorithm, news in courier.take().items():
                hosted = self._hosted.get(algorithm)
                if hosted is None:
                    continue
                record = hosted.claim.record
                if news.concerns_orders:
                    hosted.news = news
                if news.delivered:
                    self._lease.delivered(record.id, record.epoch, record.run, news.delivered)

    def _take_care(self) -> None:
        """Look after the orders at brokers of those that are stopped or given up."""
        steps = self._care.steps()
        self._unstored.update(steps)
        self._store()
        for hosted in steps:
            self._care.stored(hosted)
        for hosted in self._care.done():
            log.info("%s: the broker has taken its entries back", hosted.name)
            self._give_back(hosted)

    def _wait_for_brokers(self) -> None:
        """Give brokers some seconds to take back what is to be taken back."""
        until = self._monotonic() + _BROKERS_WAIT
        while self._care.unsettled() and self._monotonic() < until:
            self._hear()
            self._take_care()
            self._wake.clear()
            self._wake.wait(_BUSY_WAIT)
        for hosted in self._care.unsettled():
            log.warning("%s: some of its orders may still stand at %s", hosted.name, hosted.venue)

    def _call(self, calls: Mapping[Hosted, Callable[[], Any]], phase: Phase) -> None:
        if not calls:
            return
        for hosted in calls:
            self._phases[hosted] = phase
        self._handle(self._supervisor.run(calls))

    def _handle(self, outcomes: Sequence[Outcome[Hosted, Any]]) -> None:
        for outcome in outcomes:
            hosted = outcome.key
            phase = self._phases.pop(hosted, None)
            if phase is None or self._hosted.get(hosted.id) is not hosted:
                continue
            if outcome.slow and phase is Phase.STEP:
                hosted.course.was_slow()
                log.warning("%s: a call lasted %.2f s", hosted.name, outcome.seconds)
            if outcome.error is not None:
                for_good = isinstance(outcome.error, AlgorithmError) and phase is Phase.PREPARE
                self._failed(hosted, outcome.error, outcome.trace or "", for_good=for_good)
            elif phase is not Phase.PREPARE:
                assert outcome.result is not None
                self._went_well(hosted, phase, outcome.result)

    def _went_well(self, hosted: Hosted, phase: Phase, stepped: Stepped) -> None:
        if phase is Phase.BUILD:
            hosted.course.started()
            if not self._built:
                self._built, self._freeze_at = True, min(self._freeze_at, self._monotonic() + 5.0)
            if hosted.killed:
                hosted.course.life = Life.KILLED
                self._poked.add(hosted)
            log.info("%s: running from %s", hosted.name, _shown(stepped.cursor))
        elif phase is Phase.STEP:
            hosted.course.went_well()
        self._unstored[hosted] = stepped
        self._behind = self._behind or stepped.behind
        cycles = self.cycles
        cycles.steps += 1
        cycles.moments += stepped.moments
        cycles.orders += len(stepped.orders)
        cycles.fills += len(stepped.fills)

    def _failed(self, hosted: Hosted, error: BaseException, trace: str, *, for_good: bool) -> None:
        course = hosted.course
        if for_good:
            course.give_up(trace)
        elif course.failed(trace, self._monotonic()):
            for_good = True
        hosted.drop_engine()
        # What it did in this step was not stored, and is done again.
        self._unstored[hosted] = None
        if for_good:
            log.error("%s: given up after %d failures: %s", hosted.name, course.failures, error)
            self._care.begin(hosted, "the algorithm was given up", leave=False)
        else:
            wait = self.policy.wait(course.failures)
            log.warning("%s: failed, again in %.0f s: %r", hosted.name, wait, error)

    def _store(self) -> None:
        """Store what is not stored yet, all of it in one transaction."""
        if not self._unstored or self._lease is None:
            return
        began = time.perf_counter()
        pending = dict(self._unstored)
        lost = self._lease.commit(hosted.entry(stepped) for hosted, stepped in pending.items())
        self.cycles.stored_seconds = time.perf_counter() - began
        self.cycles.stored += 1
        for hosted, stepped in pending.items():
            if hosted.id in lost:
                continue
            hosted.stored(stepped)
            if stepped is not None and stepped.belief is not None:
                self._couriers[hosted.venue].tell(hosted.id, stepped.belief)
        self._unstored.clear()
        if lost:
            self._lost_some([hosted for hosted in pending if hosted.id in lost])

    def _lost_some(self, gone: Sequence[Hosted]) -> None:
        assert self._lease is not None
        if not self._lease.renew():
            self._lost.set()
            return
        for hosted in gone:
            log.error("%s belongs to another process now: nothing of it was stored", hosted.name)
        self._drop(gone)


def _shown(moment: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment / 1e6))


def _this_process() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"
