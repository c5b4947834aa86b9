"""The daemon's metrics for Prometheus: a registry of its own, and no label that names a symbol.

What happens in this process is counted as it happens. What the store knows is taken from the last
`Vitals` that somebody left here: a scrape asks nobody, and no server can hold it up.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from marketdata.drift import by_stage_and_field
from marketdata.findings import findings
from marketdata.wellbeing import Vitals

if TYPE_CHECKING:
    from marketdata.cache.redis_cache import CacheInfo
    from marketdata.jobs import Ended
    from marketdata.schedule import Tick
    from marketdata.store.budget import BudgetUse

PREFIX: Final = "marketdata_"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300)
_TIERS: Final = {"redis": "series_from_redis", "postgres": "series_from_postgres",
                 "broker": "series_from_broker"}  # fmt: skip


class Metrics:
    """Everything behind ``/metrics``; thread-safe.

    Parameters
    ----------
    version : str
        Of this release.
    leading : callable
        Whether this process acts.
    heartbeat : callable
        Returns the seconds since the scheduler's loop turned last.
    answers : callable
        Returns how this process's requests to the broker ended, by status.
    """

    def __init__(
        self,
        version: str,
        *,
        leading: Callable[[], bool],
        heartbeat: Callable[[], float],
        answers: Callable[[], Mapping[str, int]],
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.skipped: Count[str] = Count()
        """Ticks whose run did not begin, by name, in this process."""
        info = Info("marketdata_build", "Release and interpreter.", registry=self.registry)
        info.info({"version": version, "python": platform.python_version()})
        leader = Gauge(
            "marketdata_leader", "1 in the daemon that acts, 0 in one that stands by.", registry=self.registry
        )  # fmt: skip
        leader.set_function(lambda: float(leading()))
        beat = Gauge(
            "marketdata_heartbeat_age_seconds",
            "Since the scheduler's loop turned last.",
            registry=self.registry,
        )
        beat.set_function(heartbeat)
        self._elected = self._counter("leader_elections", "Times this process came to lead.")
        self._cycle = Histogram(
            "marketdata_cycle_seconds",
            "How long a cycle took, whatever its outcome.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._runs = self._counter("job_runs", "Runs of this process that ended.", "job", "outcome")
        self._job_seconds = Gauge(
            "marketdata_job_last_seconds",
            "How long the job's last run in this process took.",
            ["job"],
            registry=self.registry,
        )
        self._ticks = self._counter(
            "ticks_passed_over",
            "Ticks whose run did not begin: skipped (the one before still went on), missed (late), "
            "error (it failed outside the job).",
            "tick", "reason",
        )  # fmt: skip
        self._observed = _Observed(answers)
        self.registry.register(self._observed)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}{name}", text, labels, registry=self.registry)

    # -------------------------------------------------------------------------- what happened

    def elected(self) -> None:
        """Count that this process came to lead."""
        self._elected.inc()

    def ended(self, ended: Ended) -> None:
        """Count one run of a job."""
        self._runs.labels(ended.job, ended.outcome).inc()
        if ended.seconds:
            self._job_seconds.labels(ended.job).set(ended.seconds)
            if ended.job == "cycle":
                self._cycle.observe(ended.seconds)

    def passed_over(self, tick: Tick, reason: str) -> None:
        """Count a tick whose run did not begin."""
        self._ticks.labels(tick.value, reason).inc()

    def observe(self, vitals: Vitals | None, cache: CacheInfo | None) -> None:
        """Leave what was seen just now: None for a server that did not answer."""
        self._observed.leave(vitals, cache)

    # ----------------------------------------------------------------------------- what is told

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Observed(Collector):
    """Metrics of the last look at the servers; a server that is down keeps its last figures."""

    def __init__(self, answers: Callable[[], Mapping[str, int]]) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._vitals: Vitals | None = None
        self._cache: CacheInfo | None = None
        self._up = {"postgres": False, "redis": False}
        self._seen = time.monotonic()

    def leave(self, vitals: Vitals | None, cache: CacheInfo | None) -> None:
        with self._lock:
            self._up = {"postgres": vitals is not None, "redis": cache is not None}
            self._vitals = vitals or self._vitals
            self._cache = cache or self._cache
            if vitals is not None:
                self._seen = time.monotonic()

    def describe(self) -> list[Metric]:
        """Name nothing beforehand: some families come with the first look."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            vitals, cache, up, seen = self._vitals, self._cache, dict(self._up), self._seen
        yield _gauge("server_up", "Whether a server answered the last look.", "server", up)
        yield _gauge(
            "observation_age_seconds",
            "Since the figures below were read from PostgreSQL.",
            value=time.monotonic() - seen,
        )
        yield _counter(
            "broker_requests",
            "Requests of this process by HTTP status, or timeout, unreachable, unreadable.",
            "status",
            self._answers(),
        )
        if cache is not None:
            yield _gauge("redis_memory_bytes", "Memory Redis uses.", value=cache.used_memory)
            yield _gauge(
                "redis_memory_limit_bytes", "Memory Redis may use; 0 is no limit.", value=cache.maxmemory
            )  # fmt: skip
        if vitals is not None:
            yield from _of_market(vitals)
            yield from _of_series(vitals)
            yield from _of_jobs(vitals)
            yield from _of_store(vitals)


def _of_market(vitals: Vitals) -> Iterator[Metric]:
    yield _gauge("market_open", "1 in the regular session.", value=vitals.market_open)
    yield _gauge(
        "market_time_seconds", "Market time, seconds since 1970.", value=vitals.now_us / 1e6
    )
    yield _gauge(
        "calendar_horizon_days", "Until the end of the known calendar.", value=vitals.horizon_days
    )
    by_level = Count(f.level.name.lower() for f in findings(vitals))
    yield _gauge(
        "findings",
        "Things that are not well, as marketdata status tells them.",
        "level",
        {name: by_level[name] for name in ("warning", "critical")},
    )


def _of_series(vitals: Vitals) -> Iterator[Metric]:
    lag = {base.value: each for base, each in vitals.lag.items()}
    yield _gauge(
        "subscriptions", "Subscribed symbols by stored timeframe.", "timeframe",
        {base: each.symbols for base, each in lag.items()},
    )  # fmt: skip
    yield _gauge(
        "bar_lag_seconds",
        "Trading time between the last bar due and the last bar stored, of the subscribed series "
        "furthest behind; 0 while the market is closed.",
        "timeframe",
        {base: each.worst for base, each in lag.items()},
    )
    yield _gauge(
        "series_stale",
        "Subscribed series far behind what is due, or never fetched.",
        "timeframe",
        {base: each.stale for base, each in lag.items()},
    )
    figures = vitals.figures
    yield _gauge("series", "Series stored.", value=figures.series)
    yield _gauge("series_with_gaps", "Series with gaps inside.", value=figures.torn)
    yield _gauge(
        "gaps", "Gaps inside series: time never asked of the provider.", value=figures.gaps
    )
    yield _gauge(
        "bars_stored", "Bars by form: rows, or sealed in chunks.", "form",
        {"rows": figures.rows, "sealed": figures.sealed},
    )  # fmt: skip
    yield _gauge(
        "corrections_pending", "Corrections that wait to be sealed.", value=figures.corrections
    )


def _of_jobs(vitals: Vitals) -> Iterator[Metric]:
    figures = vitals.figures
    successes = {
        job: run.finished_at.timestamp()
        for job, run in figures.successes.items()
        if run.finished_at is not None
    }
    yield _gauge(
        "job_last_success_timestamp_seconds",
        "When the job last finished, on any machine.",
        "job",
        successes,
    )
    yield _gauge(
        "job_failures_in_row",
        "Failures since the job's last success, on any machine.",
        "job",
        {job: figures.failures.get(job, 0) for job in figures.runs},
    )
    yield _gauge(
        "job_overdue_seconds",
        "Market time since the job should have succeeded; 0 where it has.",
        "job",
        vitals.overdue,
    )
    yield _gauge("leader_known", "Whether any daemon acts.", value=figures.leader is not None)


def _of_store(vitals: Vitals) -> Iterator[Metric]:
    figures, totals = vitals.figures, vitals.figures.counters
    yield _gauge("database_size_bytes", "The whole database.", value=figures.database_bytes)
    yield _gauge(
        "bars_size_bytes", "Bars by form, indexes included.", "form",
        {"rows": figures.row_bytes, "sealed": figures.chunk_bytes},
    )  # fmt: skip
    if vitals.requests_left is not None:
        yield _gauge(
            "rate_budget_left",
            "Requests left of this minute, over all processes.",
            value=max(0, vitals.requests_left),
        )
        yield _gauge("rate_budget_limit", "Requests a minute.", value=vitals.request_limit or 0)
    if figures.budgets:
        yield from _of_budget(figures.budgets[0])
    yield _counter(
        "reads",
        "Series read, by the lowest tier asked, over all processes.",
        "tier",
        {tier: totals.get(name, 0) for tier, name in _TIERS.items()},
    )
    yield _counter(
        "bars_fetched", "Bars the broker gave, over all processes.",
        values={"": totals.get("bars_fetched", 0)},
    )  # fmt: skip
    prefix = "bars_rejected_"
    yield _counter(
        "bars_rejected",
        "Bars that failed the quality gates, by reason, over all processes.",
        "reason",
        {n.removeprefix(prefix): v for n, v in totals.items() if n.startswith(prefix)},
    )
    yield from _of_revisions(vitals)


def _of_revisions(vitals: Vitals) -> Iterator[Metric]:
    figures = vitals.figures
    family = CounterMetricFamily(
        f"{PREFIX}bars_revised",
        "Observed bars that replaced stored ones with other values, by stage and field.",
        labels=["provider", "stage", "field"],
    )
    for count in by_stage_and_field(figures.drift):
        family.add_metric([count.provider, count.stage, count.field], count.bars)
    yield family
    yield _gauge("tombstones", "Bars that their provider has withdrawn.", value=figures.tombstones)
    yield _gauge(
        "trail_size_bytes", "Replaced values, indexes included.", value=figures.trail_bytes
    )


def _of_budget(budget: BudgetUse) -> Iterator[Metric]:
    """Tell how the most used budget is shared out."""
    yield _gauge(
        "rate_budget_used", "Requests of the last minute, over all processes.", "priority",
        {p.name.lower(): n for p, n in budget.by_priority.items()},
    )  # fmt: skip
    yield _gauge(
        "rate_budget_available", "Requests that would be granted now.", "priority",
        {p.name.lower(): budget.left(p) for p in budget.by_priority},
    )  # fmt: skip
    yield _gauge(
        "rate_budget_waiting", "1 where somebody waits for budget.", "priority",
        {p.name.lower(): float(p in budget.waiting) for p in budget.by_priority},
    )  # fmt: skip
    yield _gauge(
        "rate_budget_paused_seconds",
        "For how long the broker refuses everything (429).",
        value=budget.paused,
    )


def _gauge(
    name: str,
    text: str,
    label: str = "",
    values: Mapping[str, float] | None = None,
    *,
    value: float = 0.0,
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(PREFIX + name, text, labels=[label] if label else [])
    for key, number in (values if label and values is not None else {"": value}).items():
        family.add_metric([key] if label else [], number)
    return family


def _counter(
    name: str, text: str, label: str = "", values: Mapping[str, float] | None = None
) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, text, labels=[label] if label else [])
    for key, number in (values or {}).items():
        family.add_metric([key] if label else [], number)
    return family
