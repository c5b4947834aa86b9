"""What each job did and when: the table ``job_runs``, kept short."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, text

from marketdata.clock import from_micros
from marketdata.store.connection import Database

KEPT_RUNS: Final = 1000
"""Of each job. A day of cycles is about 450."""

# The caller holds the job's lease: whoever left a run unfinished is gone.
_LOST: Final = text("""
UPDATE job_runs SET finished_at = clock_timestamp(), outcome = 'lost'
WHERE job = :job AND finished_at IS NULL
""")
_START: Final = text("""
INSERT INTO job_runs (job, occasion, market_time, holder, fence)
VALUES (:job, :occasion, :market_time, :holder, :fence) RETURNING id
""")
_FINISH: Final = text("""
UPDATE job_runs SET finished_at = clock_timestamp(), outcome = :outcome,
    summary = CAST(:summary AS jsonb), error = CAST(:error AS jsonb)
WHERE id = :id AND finished_at IS NULL
""")
_PASS_OVER: Final = text("""
INSERT INTO job_runs (job, outcome, started_at, finished_at, market_time, holder, fence)
VALUES (:job, :outcome, clock_timestamp(), clock_timestamp(), :market_time, :holder, 0)
""")
_PRUNE: Final = text("""
DELETE FROM job_runs WHERE job = :job
    AND id <= (SELECT id FROM job_runs WHERE job = :job ORDER BY id DESC OFFSET :kept LIMIT 1)
    AND id <> coalesce((SELECT max(id) FROM job_runs WHERE job = :job
                        AND outcome IN ('done', 'incomplete')), 0)
""")
_OCCASION: Final = text("""
SELECT outcome FROM job_runs WHERE job = :job AND occasion = :occasion ORDER BY id DESC LIMIT 1
""")
COLUMNS: Final = (
    "job, occasion, started_at, finished_at, outcome, market_time, summary, error, holder, fence"
)
"""Those of `JobRun`."""
_RECENT: Final = text(
    f"SELECT {COLUMNS} FROM job_runs WHERE job = :job ORDER BY id DESC LIMIT :limit"  # noqa: S608
)


@dataclass(frozen=True, slots=True)
class JobRun:
    """One row of ``job_runs``. Moments are aware, in UTC, of real time but for `market_time`."""

    job: str
    occasion: str | None
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    """None while it runs; ``done``, ``incomplete``, ``stopped``, ``failed``, ``lost``, ``skipped``,
    ``missed`` or ``error``."""
    market_time: datetime
    summary: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    holder: str
    fence: int


class PostgresJobRuns:
    """The log of runs. Every method may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(
        self, job: str, *, occasion: str | None, market_us: int, holder: str, fence: int
    ) -> int:
        """Note that a run begins; return its number. The caller holds the job's lease."""
        values = {
            "job": job,
            "occasion": occasion,
            "market_time": from_micros(market_us),
            "holder": holder,
            "fence": fence,
        }

        def work(connection: Connection) -> int:
            connection.execute(_LOST, values)
            return int(connection.execute(_START, values).scalar_one())

        return self._database.run(work)

    def finish(
        self,
        number: int,
        job: str,
        outcome: str,
        *,
        summary: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Note how run `number` ended, unless it was given up as lost, and forget old ones."""
        values = {
            "id": number,
            "job": job,
            "outcome": outcome,
            "summary": None if summary is None else json.dumps(dict(summary)),
            "error": None if error is None else json.dumps(dict(error)),
            "kept": KEPT_RUNS,
        }

        def work(connection: Connection) -> None:
            connection.execute(_FINISH, values)
            connection.execute(_PRUNE, values)

        self._database.run(work)

    def outcome_of(self, job: str, occasion: str) -> str | None:
        """Return how the newest run of that occasion ended; None where there was none, or it
        has not ended."""
        values = {"job": job, "occasion": occasion}
        row = self._database.run(
            lambda c: c.execute(_OCCASION, values).one_or_none(), snapshot=True
        )
        return None if row is None else row[0]

    def pass_over(self, job: str, outcome: str, *, market_us: int, holder: str) -> None:
        """Note a run that never began: ``skipped`` (the one before still went on), ``missed`` (nobody
        was there) or ``error``."""
        values = {
            "job": job,
            "outcome": outcome,
            "market_time": from_micros(market_us),
            "holder": holder,
        }
        self._database.run(lambda c: c.execute(_PASS_OVER, values))

    def recent(self, job: str, limit: int = 20) -> list[JobRun]:
        """Return the last `limit` runs of `job`, newest first."""
        values = {"job": job, "limit": limit}
        rows = self._database.run(lambda c: c.execute(_RECENT, values).all(), snapshot=True)
        return [JobRun(*row) for row in rows]
