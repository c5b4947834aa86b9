"""Figures of a store that has something of everything, for tests of what is made of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from marketdata.cache.redis_cache import CacheInfo
from marketdata.clock import from_micros
from marketdata.drift import DriftCount
from marketdata.protocols import Priority
from marketdata.store.budget import BudgetUse
from marketdata.store.figures import Figures
from marketdata.store.job_runs import JobRun
from marketdata.store.leases import Holding
from marketdata.types import MINUTE, Timeframe

REAL = datetime(2026, 1, 5, 12, tzinfo=UTC)
"""Real time, which differs from market time in a replay."""
CACHE = CacheInfo("127.0.0.1:6379", "7.2", 10_000, "allkeys-lru", 5_000, 0, 0.001)


def run(job: str, market_us: int, outcome: str | None = "done", **changes: Any) -> JobRun:
    """Return a run of `job` that began at `market_us` of market time."""
    finished = None if outcome is None else REAL + timedelta(seconds=2)
    found = JobRun(
        job,
        None,
        REAL,
        finished,
        outcome,
        from_micros(market_us),
        {"bars": 3},
        None,
        "me@host/1",
        1,
    )
    return replace(found, **changes)


def figures(now_us: int, **changes: Any) -> Figures:
    """Return the figures of a store on which all went well until just before `now_us`."""
    fresh = now_us - now_us % MINUTE
    runs = {
        job: run(job, now_us - MINUTE // 2)
        for job in ("cycle", "reconcile", "backfill", "seal", "retention", "verify")
    }
    found = Figures(
        database_bytes=1_000_000,
        row_bytes=400_000,
        chunk_bytes=300_000,
        read_only=False,
        series=6,
        rows=2_000,
        sealed=20_000,
        corrections=0,
        torn=0,
        gaps=0,
        wanted={Timeframe.MIN_1: {fresh: 4}, Timeframe.DAY_1: {fresh: 2}},
        requests_used=20,
        requests_paused=False,
        runs=runs,
        successes=runs,
        failures={},
        passed_over={},
        leases={
            "daemon": Holding(
                "daemon",
                "me@host/1",
                3,
                REAL,
                REAL + timedelta(seconds=30),
                {"url": "http://x"},
                True,
            )
        },
        counters={
            "series_from_redis": 90,
            "series_from_postgres": 8,
            "series_from_broker": 2,
            "bars_fetched": 1000,
            "bars_rejected_off_grid": 1,
        },
        drift=(DriftCount("alpaca", "sip", "1min", "closed->revised", "close", 3, 0.01),),
        budgets=(
            BudgetUse(
                "0123abcd",
                200,
                True,
                20,
                {Priority.LIVE: 8, Priority.READ: 0, Priority.BACKFILL: 12, Priority.VERIFY: 0},
                (Priority.BACKFILL,),
                0.0,
                {Priority.LIVE: 0, Priority.READ: 0, Priority.BACKFILL: 18, Priority.VERIFY: 18},
            ),
        ),
    )
    return replace(found, **changes)
