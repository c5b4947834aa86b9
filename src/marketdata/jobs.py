"""The daemon's jobs, each also a command: what it is, how it is run, under which lock, on record.

However a job is started (the daemon's clock, ``marketdata run``, cron), it runs under the lease
``job:<name>``: never twice at once, on however many machines. Each run leaves a row in
``job_runs``. A job looks at its stop signal between small steps; it is set on SIGTERM, and as soon
as a lease it works under may have run out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from marketdata.clock import Clock
from marketdata.errors import MarketDataError
from marketdata.leadership import Lease, ProcessLeases, StopSignal

if TYPE_CHECKING:
    from marketdata.store.job_runs import PostgresJobRuns
    from marketdata.store.leases import Holding, PostgresLeases
    from marketdata.wiring import Runtime

log = logging.getLogger("marketdata.jobs")

Outcome = Literal["done", "incomplete", "stopped", "failed", "busy", "over"]
"""``over``: the night's run is over already. ``busy`` and ``over`` leave no row."""

_ERROR_LENGTH: Final = 500


class Report(Protocol):
    """What every job returns. May also have ``failed`` (what could not be done) and ``stopped``."""

    def summary(self) -> Mapping[str, str | int | float]: ...


Work = Callable[[], Report]


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of work.

    Attributes
    ----------
    prepare : callable
        Takes the running stack and the stop signal; returns what does the work each time it is
        called. Prepared once a process, so that work may keep what it has in memory.
    """

    name: str
    does: str
    prepare: Callable[[Runtime, threading.Event], Work]


def _cycle(runtime: Runtime, stop: threading.Event) -> Work:
    from marketdata.aggregator import Aggregator
    from marketdata.indicator_codec import CAPACITY
    from marketdata.indicator_reading import bars_needed
    from marketdata.indicator_updates import IndicatorUpdater
    from marketdata.kept_indicators import KEPT
    from marketdata.types import Timeframe

    def wanted() -> list[tuple[str, str]]:
        return [(each.symbol, each.timeframe) for each in runtime.subscriptions.wanted()]

    return Aggregator(
        runtime,
        stop,
        wanted=wanted,
        indicators=IndicatorUpdater(runtime, wanted=runtime.subscriptions.wanted),
        notify=runtime.notices.publish_closed,
        history=bars_needed(KEPT, Timeframe.MIN_1, "regular") + CAPACITY,
    ).cycle


def _reconcile(runtime: Runtime, stop: threading.Event) -> Work:
    return runtime.subscriptions.reconcile


def _backfill(runtime: Runtime, stop: threading.Event) -> Work:
    from marketdata.backfill import Backfill

    return Backfill(runtime, stop=stop).run


def _seal(runtime: Runtime, stop: threading.Event) -> Work:
    from marketdata.sealing import seal

    return lambda: seal(runtime, stop)


def _actions(runtime: Runtime, stop: threading.Event) -> Work:
    from marketdata.action_refresh import refresh_actions

    return lambda: refresh_actions(runtime, stop)


def _retention(runtime: Runtime, stop: threading.Event) -> Work:
    from marketdata.sealing import retain

    return lambda: retain(runtime, stop)


def _verify(runtime: Runtime, stop: threading.Event) -> Work:
    from marketdata.verifying import verify

    return lambda: verify(runtime, stop=stop)


JOBS: Final = {
    job.name: job
    for job in (
        Job("cycle", "fetch what has closed of every subscribed symbol", _cycle),
        Job("reconcile", "end subscriptions that ran out, renew their mirror", _reconcile),
        Job("backfill", "fetch missing history, oldest settings first", _backfill),
        Job("actions", "ask again about splits, dividends, renames and the like", _actions),
        Job("seal", "turn settled intraday rows into compressed chunks", _seal),
        Job("retention", "drop intraday bars past their time", _retention),
        Job("verify", "read a sample from the broker again, report what differs", _verify),
    )
}
NIGHTLY: Final = ("backfill", "seal", "retention", "verify")
"""The night's work, one after the other."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one run of a job ended."""

    job: str
    outcome: Outcome
    seconds: float = 0.0
    summary: Mapping[str, str | int | float] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    error: Exception | None = None
    holder: Holding | None = None
    """Who runs it, where the outcome is ``busy``."""

    @property
    def succeeded(self) -> bool:
        return self.outcome in ("done", "incomplete")


class JobRunner:
    """Runs jobs of the table for one process.

    Parameters
    ----------
    runtime : Runtime
        The running stack.
    leases : ProcessLeases
        Holds the jobs' locks.
    book : PostgresLeases
        Where these are kept; asked who holds a lock that is taken.
    runs : PostgresJobRuns
        The record.
    stop : Event
        Set when the process is to end.
    jobs : mapping, optional
        The table; `JOBS` by default.
    """

    def __init__(
        self,
        runtime: Runtime,
        leases: ProcessLeases,
        book: PostgresLeases,
        runs: PostgresJobRuns,
        stop: threading.Event,
        jobs: Mapping[str, Job] = JOBS,
    ) -> None:
        self._runtime = runtime
        self._clock: Clock = runtime.clock
        self._leases = leases
        self._book = book
        self._runs = runs
        self._stop = stop
        self._jobs = jobs
        self._signals = {name: StopSignal(stop) for name in jobs}
        self._prepared: dict[str, Work] = {}

    def forget(self) -> None:
        """Prepare anew what works from memory: somebody else has been at work meanwhile."""
        self._prepared.clear()

    def run(self, name: str, *, occasion: str | None = None, right: Sequence[Lease] = ()) -> Ended:
        """Run a job to its end, on the calling thread; never raises for what the job raised.

        Parameters
        ----------
        name : str
            Of the table.
        occasion : str, optional
            The night it belongs to: it runs only if no run of that night has finished.
        right : sequence of Lease
            Further leases under which it may run; once one of them is lost the job stops.

        Raises
        ------
        StoreError
            Nobody knows whether it may run; it did not.
        """
        with self._leases.holding(f"job:{name}") as lock:
            if lock is None:
                return Ended(name, "busy", holder=self._holder(name))
            if occasion is not None and self._is_over(name, occasion):
                return Ended(name, "over")
            number = self._runs.start(
                name,
                occasion=occasion,
                market_us=self._clock.now_us(),
                holder=self._leases.holder,
                fence=lock.fence,
            )
            ended = self._work(name, (*right, lock))
            self._record(number, ended)
            return ended

    def _is_over(self, name: str, occasion: str) -> bool:
        return self._runs.outcome_of(name, occasion) in ("done", "incomplete")

    def _holder(self, name: str) -> Holding | None:
        found = (h for h in self._book.holdings() if h.name == f"job:{name}" and h.live)
        return next(found, None)

    def _work(self, name: str, leases: Sequence[Lease]) -> Ended:
        signal = self._signals[name]
        signal.arm(leases)
        began = time.monotonic()
        try:
            work = self._prepared.get(name)
            if work is None:
                work = self._prepared[name] = self._jobs[name].prepare(self._runtime, signal)
            report = work()
            summary = report.summary()
        except Exception as error:
            # What it holds in memory may be half of something.
            self._prepared.pop(name, None)
            seconds = time.monotonic() - began
            stopped = signal.is_set() and isinstance(error, MarketDataError)
            if stopped:
                log.info("%s stopped after %.1f s: %s", name, seconds, error)
            elif isinstance(error, MarketDataError):
                log.error("%s failed after %.1f s: %s", name, seconds, error)
            else:
                log.exception("%s failed after %.1f s", name, seconds)
            return Ended(name, "stopped" if stopped else "failed", seconds, error=error)
        self._count(report)
        failed = tuple(_named(each) for each in getattr(report, "failed", ()))
        left = getattr(report, "gaps_left", ())
        outcome: Outcome = "incomplete" if failed or left else "done"
        if getattr(report, "stopped", False):
            outcome = "stopped"
        ended = Ended(name, outcome, time.monotonic() - began, summary, failed)
        log.info("%s %s in %.1f s", name, outcome, ended.seconds, extra={"summary": dict(summary)})
        return ended

    def _count(self, report: Report) -> None:
        """Add what the job read to this process's counters, beside the reads of its callers."""
        summary = report.summary()
        found = {}
        if "calls" in summary:  # of the broker
            found = {"bars_fetched": summary.get("bars", 0), "broker_pages": summary["calls"]}
        rejected = getattr(report, "rejected", {})
        found |= {f"bars_rejected_{reason}": n for reason, n in rejected.items()}
        numbers = {name: n for name, n in found.items() if isinstance(n, int) and n > 0}
        if numbers:
            self._runtime.statistics.add(numbers)

    def _record(self, number: int, ended: Ended) -> None:
        try:
            self._runs.finish(
                number,
                ended.job,
                ended.outcome,
                summary=ended.summary or None,
                error=None if ended.error is None else error_record(ended.error),
            )
        except MarketDataError as error:
            log.warning("the end of %s cannot be recorded: %s", ended.job, error)


def _named(failure: object) -> str:
    """Return what failed, in a line: a name, or what of the report's own kind says the same."""
    if isinstance(failure, str):
        return failure
    key = getattr(failure, "key", None) or " ".join(getattr(failure, "symbols", ())[:8])
    why = getattr(failure, "message", None) or getattr(failure, "error", "")
    return f"{key}: {why}" if key else str(failure)


def error_record(error: Exception) -> dict[str, Any]:
    """Return an error as it is kept and shown: type, message and cure, bounded."""
    if isinstance(error, MarketDataError):
        kept = {"type": type(error).__name__, "message": error.message, "cure": error.cure}
    else:
        kept = {"type": type(error).__name__, "message": " ".join(str(error).split()), "cure": None}
    return {name: value and str(value)[:_ERROR_LENGTH] for name, value in kept.items()}
