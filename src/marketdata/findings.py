"""What is not well, in sentences, the worst first, each with what to do. Pure.

``marketdata status``, ``/health`` and the metrics say the same because they all ask here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from marketdata.drift import by_stage_and_field
from marketdata.types import HOUR, MINUTE, SECOND
from marketdata.wellbeing import Vitals

OVERDUE: Final = {"cycle": 5 * MINUTE, "reconcile": 30 * MINUTE}
"""Market time after which a job that has not succeeded is overdue; of nightly ones 12 hours."""
NIGHTLY_OVERDUE: Final = 12 * HOUR
LEAST_HORIZON_DAYS: Final = 30
_MANY: Final = 0.1
"""The share of stale series above which it is not single symbols any more."""
_FEW_REQUESTS: Final = 0.04
"""The share of the limit that is less than a backfill leaves by itself."""
_MANY_FAILURES: Final = 3
_FEW_PASSED_OVER: Final = 3
"""Ticks a day that may be passed over without anybody having to know: the next run does it all."""
_PASSED_OVER: Final = {
    "skipped": (
        "the run before still went on",
        "fewer symbols, a longer MARKETDATA_POLL or a faster machine",
    ),
    "missed": ("the process or its machine slept", "keep the machine awake, or start a standby"),
    "error": ("PostgreSQL did not answer", "marketdata doctor"),
}


class Level(IntEnum):
    """How bad it is; also the exit code of ``marketdata status --check``."""

    OK = 0
    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not well, and what to do."""

    level: Level
    subject: str
    """One word for the runbook: ``leader``, ``stale``, ``job``, ``gaps``, ``budget``, ..."""
    text: str
    cure: str

    def __str__(self) -> str:
        return f"{self.text} -> {self.cure}"


def findings(vitals: Vitals) -> list[Finding]:
    """Return what is not well, the worst first; empty where all is."""
    found = [
        *_of_leader(vitals),
        *_of_freshness(vitals),
        *_of_jobs(vitals),
        *_of_ticks(vitals),
        *_of_store(vitals),
        *_of_budget(vitals),
        *_of_companions(vitals),
    ]
    return sorted(found, key=lambda f: -f.level)


def _of_leader(vitals: Vitals) -> Iterator[Finding]:
    if _unattended(vitals):
        symbols = sum(lag.symbols for lag in vitals.lag.values())
        yield Finding(
            Level.CRITICAL,
            "leader",
            f"no daemon acts: {symbols:,} subscribed series are kept fresh by nobody",
            "marketdata up",
        )


def _unattended(vitals: Vitals) -> bool:
    """Whether series are subscribed and neither a daemon nor a cron job runs cycles."""
    late = vitals.overdue.get("cycle")
    runs_by_hand = late is not None and late * SECOND <= OVERDUE["cycle"]
    return bool(vitals.lag) and vitals.figures.leader is None and not runs_by_hand


def _of_freshness(vitals: Vitals) -> Iterator[Finding]:
    for base, lag in vitals.lag.items():
        if not lag.stale:
            continue
        many = lag.stale > max(1, _MANY * lag.symbols)
        behind = f", up to {_duration(lag.worst)} of trading time behind" if lag.worst else ""
        never = f", {lag.unfetched:,} never fetched" if lag.unfetched else ""
        yield Finding(
            Level.CRITICAL if many else Level.WARNING,
            "stale",
            f"{lag.stale:,} of {lag.symbols:,} subscribed {base} series are stale{behind}{never}",
            "marketdata run cycle",
        )


def _of_jobs(vitals: Vitals) -> Iterator[Finding]:
    figures = vitals.figures
    for job, run in figures.runs.items():
        failures = figures.failures.get(job, 0)
        if run.outcome in ("failed", "lost"):
            why = (run.error or {}).get("message") or "its process went away"
            yield Finding(
                Level.CRITICAL if failures >= 3 else Level.WARNING,
                "job",
                f"{job} failed {'once' if failures == 1 else f'{failures} times'}: {why}",
                (run.error or {}).get("cure") or f"marketdata run {job}",
            )
        elif run.outcome == "incomplete":
            yield Finding(
                Level.WARNING,
                "job",
                f"{job} finished with {_failed_in(run.summary)}",
                f"marketdata run {job}",
            )
    if not vitals.lag or _unattended(vitals):
        return  # nothing is expected of anybody, or that was said
    for job, seconds in vitals.overdue.items():
        if seconds * SECOND > OVERDUE.get(job, NIGHTLY_OVERDUE):
            yield Finding(
                Level.CRITICAL if job == "cycle" else Level.WARNING,
                "overdue",
                f"{job} should have succeeded {_duration(seconds)} ago",
                f"marketdata run {job}",
            )


def _failed_in(summary: Mapping[str, object] | None) -> str:
    count = (summary or {}).get("failed")
    return f"{count} failure{'' if count == 1 else 's'}" if count else "failures"


def _of_ticks(vitals: Vitals) -> Iterator[Finding]:
    for (job, outcome), count in sorted(vitals.figures.passed_over.items()):
        why, cure = _PASSED_OVER[outcome]
        yield Finding(
            Level.WARNING if count > _FEW_PASSED_OVER else Level.OK,
            "skipped",
            f"{count:,} run{'' if count == 1 else 's'} of {job} did not begin in 24 hours: {why}",
            cure,
        )


def _of_store(vitals: Vitals) -> Iterator[Finding]:
    figures = vitals.figures
    if figures.read_only:
        yield Finding(
            Level.CRITICAL,
            "read_only",
            "PostgreSQL takes no writes: what is fetched cannot be kept",
            "check its disk, and whether it is a replica",
        )
    if figures.torn:
        yield Finding(
            Level.WARNING,
            "gaps",
            f"{figures.torn:,} of {figures.series:,} series have gaps inside, {figures.gaps:,} in all",
            "marketdata run backfill",
        )
    if vitals.horizon_days < LEAST_HORIZON_DAYS:
        yield Finding(
            Level.WARNING,
            "horizon",
            f"the exchange's calendar ends in {vitals.horizon_days:.0f} days",
            "update the package exchange-calendars",
        )


def _of_budget(vitals: Vitals) -> Iterator[Finding]:
    left, limit = vitals.requests_left, vitals.request_limit
    if left is not None and limit and left < _FEW_REQUESTS * limit:
        yield Finding(
            Level.WARNING,
            "budget",
            f"{max(left, 0):,} of {limit:,} requests a minute are left",
            "see who asks: marketdata status; backfills give way by themselves",
        )


def _of_companions(vitals: Vitals) -> Iterator[Finding]:
    leader = vitals.figures.leader
    for name, told in ((leader.details.get("companions") or {}) if leader else {}).items():
        if told.get("failures", 0) >= _MANY_FAILURES:
            yield Finding(
                Level.WARNING,
                "companion",
                f"{name}, which runs beside the daemon, ended {told['failures']} times in a row, "
                f"the last with exit code {told.get('exit_code')}",
                "the daemon's log says why; MARKETDATA_COMPANIONS=off runs none",
            )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def described(vitals: Vitals) -> dict[str, Any]:
    """Return vitals as JSON-representable data."""
    figures = vitals.figures
    leader = figures.leader
    return {
        "findings": [
            {"level": f.level.name.lower(), "subject": f.subject, "text": f.text, "cure": f.cure}
            for f in findings(vitals)
        ],
        "leader": None if leader is None else leader.holder,
        "leader_since": None if leader is None else leader.acquired_at.isoformat(),
        "market_open": vitals.market_open,
        "lag": {
            base.value: {
                "symbols": lag.symbols,
                "stale": lag.stale,
                "unfetched": lag.unfetched,
                "worst_seconds": lag.worst,
            }
            for base, lag in vitals.lag.items()
        },
        "jobs": {
            job: {
                "outcome": run.outcome or "running",
                "started_at": run.started_at.isoformat(),
                "last_success": s.finished_at.isoformat()
                if (s := figures.successes.get(job)) and s.finished_at
                else None,
                "failures_in_row": figures.failures.get(job, 0),
                "overdue_seconds": vitals.overdue.get(job, 0.0),
                "summary": dict(run.summary) if run.summary else None,
                "error": dict(run.error) if run.error else None,
            }
            for job, run in figures.runs.items()
        },
        "passed_over_24h": {f"{job} {why}": n for (job, why), n in figures.passed_over.items()},
        "requests_left": vitals.requests_left,
        "requests_per_minute": vitals.request_limit,
        "budgets": [
            {
                "credential": b.credential,
                "limit": b.limit,
                "stated": b.stated,
                "used": b.used,
                "used_by": {p.name.lower(): n for p, n in b.by_priority.items()},
                "left_for": {p.name.lower(): b.left(p) for p in b.by_priority},
                "reserve": {p.name.lower(): n for p, n in b.reserve.items()},
                "waiting": [p.name.lower() for p in b.waiting],
                "paused_seconds": round(b.paused, 1),
            }
            for b in figures.budgets
        ],
        "revised": [
            {
                "provider": c.provider,
                "stage": c.stage,
                "field": c.field,
                "bars": c.bars,
                "largest": c.largest,
            }
            for c in by_stage_and_field(figures.drift)
        ],
        "tombstones": figures.tombstones,
        "trail_bytes": figures.trail_bytes,
        "series": figures.series,
        "series_with_gaps": figures.torn,
        "gaps": figures.gaps,
        "rows": figures.rows,
        "sealed": figures.sealed,
        "database_bytes": figures.database_bytes,
        "row_bytes": figures.row_bytes,
        "chunk_bytes": figures.chunk_bytes,
        "forecast_bytes": vitals.forecast_bytes,
        "calendar_horizon_days": round(vitals.horizon_days, 1),
    }
