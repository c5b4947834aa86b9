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
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from types import FrameType
from typing import Any, Final

import marketdata as md
from algorithms.errors import AlgorithmError
from algorithms.live.broking import POLL_SECONDS, Courier, News
from algorithms.live.hosting import PAPER, Factory, Hosted, Stepped
from algorithms.live.journal import LEASE_SECONDS, Journal, RunnerLease
from algorithms.live.life import Policy
from algorithms.live.records import Desired, Life, Record, Switch
from algorithms.live.roster import Roster, unknown_symbols
from algorithms.live.sources import make
from algorithms.live.supervision import Outcome, Supervisor, trace_of
from algorithms.venues import BrokerVenue

log = logging.getLogger("algorithms.live")

LOOK_SECONDS: Final = 2.0
"""How often a runner looks what is wanted: a stop or a kill takes effect within this."""
_LONGEST_WAIT: Final = 0.5
_BUSY_WAIT: Final = 0.05
_RETRY_FIRST: Final = 0.25
_RETRY_MOST: Final = 15.0
_FAREWELL: Final = 10.0
_FREEZE_SECONDS: Final = 60.0


class _Phase(Enum):
    """What a call of an algorithm is for."""

    PREPARE = auto()
    BUILD = auto()
    STEP = auto()
    STOP = auto()


@dataclass
class Cycles:
    """What a runner has done, for whoever watches it.

    Attributes
    ----------
    count, stored, steps, moments, orders, fills : int
        Cycles, transactions, calls, and what they brought.
    seconds : float
        Of the last cycle: from its bars to the end of the last call.
    stored_seconds : float
        Of its transaction.
    longest : float
        Of all cycles.
    """

    count: int = 0
    stored: int = 0
    steps: int = 0
    moments: int = 0
    orders: int = 0
    fills: int = 0
    seconds: float = 0.0
    stored_seconds: float = 0.0
    longest: float = 0.0


class LiveRunner:
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
        self._lease: RunnerLease | None = None
        self._lost = threading.Event()
        self._hosted: dict[int, Hosted] = {}
        self._phases: dict[Hosted, _Phase] = {}
        self._wanted: dict[int, Record] = {}
        self._switch = Switch()
        self._unstored: dict[Hosted, Stepped | None] = {}
        self._poked: set[Hosted] = set()
        self._look_at = -math.inf
        self._behind = False
        self._changed = False
        self._built = False
        self._freeze_at = -math.inf

    # ----------------------------------------------------------------------------- the course

    def stop(self) -> None:
        """End after the cycle at hand; callable from any thread and from a signal handler."""
        self._stop.set()
        self._wake.set()

    @property
    def hosted(self) -> Mapping[str, Life]:
        """The algorithms it runs, by name, and where each stands."""
        return {each.name: each.course.life for each in list(self._hosted.values())}

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

    # ------------------------------------------------------------------------------ the lease

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

    # ------------------------------------------------------------------------- what is wanted

    def _look(self) -> None:
        """Claim what is free, and obey what was said of what runs."""
        assert self._lease is not None
        for claim in self._lease.claim(self._names_free()):
            hosted = Hosted(claim, self._factory, self.policy)
            self._hosted[hosted.id] = hosted
            self._wanted[hosted.id] = claim.record
            self._changed = True
            log.info("%s: claimed", hosted.name)
        self._switch = self._journal.switch()
        names = [hosted.name for hosted in self._hosted.values()]
        found = {record.id: record for record in self._journal.records(names)} if names else {}
        for hosted in list(self._hosted.values()):
            record = found.get(hosted.id)
            if record is None or record.epoch != hosted.claim.record.epoch:
                log.error("%s belongs to another process now", hosted.name)
                self._drop([hosted])
                continue
            self._obey(hosted, record)

    def _names_free(self) -> list[str] | None:
        if self._names is None:
            return None
        mine = {hosted.name for hosted in self._hosted.values()}
        # Those that were stopped from elsewhere stay so, until somebody wants them again.
        stopped = {r.name for r in self._wanted.values() if r.desired is Desired.STOPPED} - mine
        for record in self._journal.records(sorted(stopped)) if stopped else ():
            if record.desired is not Desired.STOPPED:
                self._wanted[record.id] = record
                stopped.discard(record.name)
        return [name for name in self._names if name not in mine and name not in stopped]

    def _obey(self, hosted: Hosted, record: Record) -> None:
        before, self._wanted[hosted.id] = self._wanted[hosted.id], record
        changed = before.changed_at != record.changed_at
        if record.desired is Desired.STOPPED and changed:
            self._stop_one(hosted, record.reason)
            return
        killed = record.desired is Desired.KILLED
        if killed or self._switch.active:
            reason = record.reason if killed else self._switch.reason
            flatten = (killed and record.flatten) or (self._switch.active and self._switch.flatten)
            if hosted.kill(reason, flatten):
                log.warning("%s: killed%s", hosted.name, f": {reason}" if reason else "")
                self._poked.add(hosted)
        elif hosted.release():
            log.warning("%s: released", hosted.name)
            self._poked.add(hosted)
        if changed and hosted.course.life is Life.ERROR:
            log.info("%s: begun again by hand", hosted.name)
            hosted.course.revive()

    def _stop_one(self, hosted: Hosted, reason: str) -> None:
        log.info("%s: stopped%s", hosted.name, f": {reason}" if reason else "")
        if hosted in self._supervisor.busy:
            self._wanted[hosted.id] = hosted.claim.record  # looked at again
            return
        if hosted.engine is not None:
            self._call({hosted: hosted.stop}, _Phase.STOP)
        hosted.course.stop()
        self._unstored.setdefault(hosted, None)
        self._store()
        assert self._lease is not None
        self._lease.give_back({hosted.id: hosted.course.life})
        self._drop([hosted])

    def _drop(self, gone: Sequence[Hosted]) -> None:
        for hosted in gone:
            self._hosted.pop(hosted.id, None)
            if hosted.venue in self._couriers:
                self._couriers[hosted.venue].forget(hosted.id)
            self._unstored.pop(hosted, None)
            self._poked.discard(hosted)
            self._supervisor.forget(hosted)
            self._changed = True

    # ------------------------------------------------------------------------------ beginning

    def _begin(self) -> None:
        """Prepare, warm up and build those that are to begin, or to begin again."""
        now = self._monotonic()
        busy = self._supervisor.busy
        for hosted in self._hosted.values():
            if hosted not in busy and hosted.course.begin_again(now):
                self._unstored.setdefault(hosted, None)
        fresh = [
            hosted
            for hosted in self._hosted.values()
            if hosted.course.life is Life.STARTING and hosted not in busy and hosted.engine is None
        ]
        for hosted in [h for h in fresh if h.venue not in (PAPER, *self._couriers)]:
            known = ", ".join((PAPER, *self._couriers))
            error = AlgorithmError(f"there is no venue {hosted.venue!r}", cure=f"there are {known}")
            self._failed(hosted, error, str(error), for_good=True)
            fresh.remove(hosted)
        if fresh:
            self._call({h: h.prepare for h in fresh if h.needs is None}, _Phase.PREPARE)
            fresh = [h for h in fresh if h.needs is not None and h.course.life is Life.STARTING]
        if not fresh and not self._changed:
            self._store()
            return
        self._follow(fresh)
        fresh = [hosted for hosted in fresh if hosted.course.life is Life.STARTING]
        self._warm(fresh)
        self._call(
            {
                hosted: _build(hosted, self._roster.complete(hosted.needs))
                for hosted in fresh
                if hosted.needs is not None and hosted.course.life is Life.STARTING
            },
            _Phase.BUILD,
        )
        self._store()

    def _follow(self, fresh: Sequence[Hosted]) -> None:
        """Follow what all watch; who watches what does not exist is given up."""
        left = list(fresh)
        while True:
            others = [h for h in self._hosted.values() if h.needs is not None and h not in fresh]
            needs = [hosted.needs for hosted in (*others, *left) if hosted.needs is not None]
            try:
                self._roster.follow(needs)
            except md.UnknownSymbolError as error:
                unknown = unknown_symbols(error)
                wrong = [h for h in left if h.needs and unknown.intersection(h.needs.symbols)]
                if not wrong:
                    raise
                for hosted in wrong:
                    left.remove(hosted)
                    self._failed(hosted, error, str(error), for_good=True)
            else:
                self._changed = False
                return

    def _warm(self, fresh: Sequence[Hosted]) -> None:
        """Give each its market, with history; who asks for what cannot be had, fails alone."""
        groups: dict[int, list[Hosted]] = {}
        for hosted in fresh:
            assert hosted.needs is not None
            hosted.market = self._roster.admit(hosted, self._roster.edge(hosted.needs))
            groups.setdefault(id(hosted.market), []).append(hosted)
        for group in groups.values():
            try:
                self._read(group)
            except md.MarketDataError as error:
                if error.transient:
                    raise
                for hosted in group:
                    try:
                        self._read([hosted])
                    except md.MarketDataError as own:
                        if own.transient:
                            raise
                        self._failed(hosted, own, trace_of(own), for_good=False)

    def _read(self, group: Sequence[Hosted]) -> None:
        market = group[0].market
        assert market is not None
        edges = [self._roster.edge(h.needs) for h in group if h.needs is not None]
        self._roster.warm(market, group, max(edges))

    # ------------------------------------------------------------------------------ the cycle

    def _cycle(self) -> None:
        began = time.perf_counter()
        self._handle(self._supervisor.look())
        self._store()  # before anybody is stepped again
        self._hear()
        bars = self._roster.take()
        self._roster.renew_actions()
        calls = self._due()
        if calls:
            self._behind = False
            self._call(calls, _Phase.STEP)
            cycles = self.cycles
            cycles.count += 1
            cycles.seconds = time.perf_counter() - began
            cycles.longest = max(cycles.longest, cycles.seconds)
            log.debug("%d bars, %d steps in %.3f s", bars, len(calls), cycles.seconds)
        self._store()

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

    # -------------------------------------------------------------------------------- calls

    def _call(self, calls: Mapping[Hosted, Callable[[], Any]], phase: _Phase) -> None:
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
            if outcome.slow and phase is _Phase.STEP:
                hosted.course.was_slow()
                log.warning("%s: a call lasted %.2f s", hosted.name, outcome.seconds)
            if outcome.error is not None:
                for_good = isinstance(outcome.error, AlgorithmError) and phase is _Phase.PREPARE
                self._failed(hosted, outcome.error, outcome.trace or "", for_good=for_good)
            elif phase is not _Phase.PREPARE:
                assert outcome.result is not None
                self._went_well(hosted, phase, outcome.result)

    def _went_well(self, hosted: Hosted, phase: _Phase, stepped: Stepped) -> None:
        if phase is _Phase.BUILD:
            hosted.course.started()
            if not self._built:
                self._built, self._freeze_at = True, min(self._freeze_at, self._monotonic() + 5.0)
            if hosted.killed:
                hosted.course.life = Life.KILLED
                self._poked.add(hosted)
            log.info("%s: running from %s", hosted.name, _shown(stepped.cursor))
        elif phase is _Phase.STEP:
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
        else:
            wait = self.policy.wait(course.failures)
            log.warning("%s: failed, again in %.0f s: %r", hosted.name, wait, error)

    # ------------------------------------------------------------------------------- storing

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

    # -------------------------------------------------------------------------------- the end

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
                self._call({hosted: hosted.stop for hosted in idle}, _Phase.STOP)
                for hosted in self._hosted.values():
                    hosted.course.stop()
                    self._unstored.setdefault(hosted, None)
                self._store()
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


def _build(hosted: Hosted, now: int) -> Callable[[], Stepped]:
    return lambda: hosted.build(now)


def _step(hosted: Hosted, until: int, news: News | None) -> Callable[[], Stepped]:
    return lambda: hosted.step(until, news)


def _shown(moment: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment / 1e6))


def _this_process() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


@contextmanager
def stopped_by_signals(runner: LiveRunner) -> Iterator[list[int]]:
    """Have Ctrl-C and SIGTERM end `runner` after its cycle, and a second one at once.

    Yields
    ------
    list of int
        The signals that came.
    """
    came: list[int] = []

    def heard(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt
        runner.stop()

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_until_signalled(runner: LiveRunner) -> int:
    """Run in the main thread until a signal; return the exit code: 130 after Ctrl-C, else 0."""
    with stopped_by_signals(runner) as came:
        try:
            runner.run()
        except KeyboardInterrupt:
            return 130
    return 130 if signal.SIGINT in came else 0
