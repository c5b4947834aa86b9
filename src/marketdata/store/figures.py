"""The figures that metrics, health and ``status`` show: cheap reads over the whole store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, text

from marketdata.clock import to_micros
from marketdata.drift import DriftCount
from marketdata.store.budget import BudgetUse, uses
from marketdata.store.connection import Database
from marketdata.store.counters import TOTALS
from marketdata.store.job_runs import COLUMNS, JobRun
from marketdata.store.leases import HOLDINGS, Holding
from marketdata.store.trail import COUNTS
from marketdata.types import Timeframe

_SIZES: Final = text("""
SELECT pg_database_size(current_database()),
       (SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint
        FROM pg_partition_tree('market_data_bars'::regclass)),
       pg_total_relation_size('bar_chunks'::regclass),
       pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean
""")
_SERIES: Final = text("""
SELECT count(*), coalesce(sum(bar_count - sealed_count), 0)::bigint,
       coalesce(sum(sealed_count), 0)::bigint, coalesce(sum(corrections), 0)::bigint,
       count(*) FILTER (WHERE ranges > 1), coalesce(sum(ranges - 1) FILTER (WHERE ranges > 1), 0)
FROM (SELECT bar_count, sealed_count, corrections,
             (SELECT count(*) FROM unnest(coverage)) AS ranges FROM series) AS s
""")
# A derived timeframe is as fresh as what it derives from, a renamed symbol as the freshest of its
# names, each while it was its own: a rename known ahead takes effect without anybody writing. What
# does not trade any more is neither fresh nor stale.
_WANTED: Final = text("""
WITH wanted AS (
    SELECT DISTINCT symbol, CASE WHEN timeframe ~ '(min|hour)$' THEN '1min' ELSE '1day' END AS base
    FROM symbol_subscriptions
    WHERE ended_at IS NULL AND (pinned OR lease_until > clock_timestamp())),
known AS (
    SELECT symbol, timeframe, max(upper(coverage)) AS until FROM series GROUP BY 1, 2),
today AS (
    SELECT DISTINCT ON (s.symbol) s.symbol, provider, instrument, i.status
    FROM instrument_symbols AS s JOIN instruments AS i USING (provider, instrument)
    WHERE s.symbol IN (SELECT symbol FROM instrument_symbols
                       WHERE NOT (lower_inf(valid) AND upper_inf(valid)))
    ORDER BY s.symbol, s.valid DESC),
held AS (
    SELECT t.symbol, k.timeframe, max(least(k.until, upper(s.valid))) AS until
    FROM today AS t JOIN instrument_symbols AS s USING (provider, instrument)
    JOIN known AS k ON k.symbol = s.symbol
    GROUP BY 1, 2)
SELECT w.base, CASE WHEN t.symbol IS NULL THEN k.until ELSE h.until END, count(*)
FROM wanted AS w LEFT JOIN today AS t ON t.symbol = w.symbol
LEFT JOIN known AS k ON k.symbol = w.symbol AND k.timeframe = w.base
LEFT JOIN held AS h ON h.symbol = w.symbol AND h.timeframe = w.base
WHERE t.status IS DISTINCT FROM 'ended'
GROUP BY 1, 2
""")
_RUNS: Final = text(f"""
SELECT DISTINCT ON (job) {COLUMNS} FROM job_runs
WHERE outcome IS NULL OR outcome NOT IN ('skipped', 'missed', 'error') ORDER BY job, id DESC
""")  # noqa: S608
_SUCCESSES: Final = text(f"""
SELECT DISTINCT ON (job) {COLUMNS} FROM job_runs
WHERE outcome IN ('done', 'incomplete') ORDER BY job, id DESC
""")  # noqa: S608
_FAILURES: Final = text("""
SELECT job, count(*) FROM job_runs AS r
WHERE outcome IN ('failed', 'lost')
  AND id > coalesce((SELECT max(id) FROM job_runs AS s
                     WHERE s.job = r.job AND s.outcome IN ('done', 'incomplete')), 0)
GROUP BY job
""")
_PASSED_OVER: Final = text("""
SELECT job, outcome, count(*) FROM job_runs
WHERE outcome IN ('skipped', 'missed', 'error') AND started_at > clock_timestamp() - interval '1 day'
GROUP BY 1, 2
""")
_TRAIL: Final = text("""
SELECT (SELECT coalesce(sum(tombstones), 0)::bigint FROM series),
       pg_total_relation_size('bar_revisions'::regclass)
""")
_TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Figures:
    """One look at the store."""

    database_bytes: int
    row_bytes: int
    """Of market_data_bars, indexes included."""
    chunk_bytes: int
    read_only: bool
    series: int
    rows: int
    sealed: int
    """Bars in sealed chunks."""
    corrections: int
    torn: int
    """Series with gaps inside."""
    gaps: int
    wanted: Mapping[Timeframe, Mapping[int | None, int]]
    """For each stored timeframe: how many subscribed symbols are covered until when (microseconds
    UTC; None: never fetched)."""
    requests_used: int
    """In the last minute, of the credential that used most."""
    requests_paused: bool
    runs: Mapping[str, JobRun]
    """The newest run of each job."""
    successes: Mapping[str, JobRun]
    failures: Mapping[str, int]
    """Of each job since its last success."""
    passed_over: Mapping[tuple[str, str], int]
    """Runs that never began in the last 24 hours, by job and ``skipped``, ``missed`` or
    ``error``."""
    leases: Mapping[str, Holding]
    counters: Mapping[str, int]
    budgets: tuple[BudgetUse, ...] = ()
    """How each credential's request budget stands, the most used first."""
    drift: tuple[DriftCount, ...] = ()
    """How many observed bars replaced stored ones, by kind of series, stage and field."""
    tombstones: int = 0
    """Bars that their provider has withdrawn."""
    trail_bytes: int = 0
    """Of bar_revisions, indexes included."""

    @property
    def leader(self) -> Holding | None:
        """The daemon that acts; None where none does."""
        found = self.leases.get("daemon")
        return found if found is not None and found.live else None


class PostgresFigures:
    """Reads `Figures`.

    Parameters
    ----------
    database : Database
        Its timeouts bound how long a look may take.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def connect(cls, url: str, schema: str) -> PostgresFigures:
        """Return one with a connection of its own: a busy pool or a hung server holds a look up
        for `_TIMEOUT` seconds and no longer."""
        return cls(
            Database(
                url,
                schema=schema,
                pool_size=1,
                connect_timeout=_TIMEOUT,
                pool_timeout=_TIMEOUT,
                statement_timeout=_TIMEOUT,
                lock_timeout=_TIMEOUT,
                application_name="marketdata-figures",
            )
        )

    def look(self) -> Figures:
        """Return the figures of this moment, from one snapshot. Raises `StoreError`."""
        return self._database.run(_look, snapshot=True)

    def close(self) -> None:
        self._database.close()


def _look(connection: Connection) -> Figures:
    def rows(statement: Any) -> list[Any]:
        return list(connection.execute(statement).all())

    (sizes,), (series,), (trail,) = rows(_SIZES), rows(_SERIES), rows(_TRAIL)
    budgets = uses(connection)
    wanted: dict[Timeframe, dict[int | None, int]] = {}
    for base, until, count in rows(_WANTED):
        wanted.setdefault(Timeframe(base), {})[_micros(until)] = count
    database_bytes, row_bytes, chunk_bytes, read_only = sizes
    count, unsealed, sealed, corrections, torn, gaps = map(int, series)
    return Figures(
        database_bytes=database_bytes,
        row_bytes=row_bytes,
        chunk_bytes=chunk_bytes,
        read_only=read_only,
        series=count,
        rows=unsealed,
        sealed=sealed,
        corrections=corrections,
        torn=torn,
        gaps=gaps,
        wanted=wanted,
        requests_used=max((b.used for b in budgets), default=0),
        requests_paused=any(b.paused for b in budgets),
        runs={row[0]: JobRun(*row) for row in rows(_RUNS)},
        successes={row[0]: JobRun(*row) for row in rows(_SUCCESSES)},
        failures=dict(rows(_FAILURES)),
        passed_over={(job, outcome): count for job, outcome, count in rows(_PASSED_OVER)},
        leases={row[0]: Holding(*row) for row in rows(HOLDINGS)},
        counters=dict(rows(TOTALS)),
        budgets=budgets,
        drift=tuple(DriftCount(*row) for row in rows(text(COUNTS))),
        tombstones=int(trail[0]),
        trail_bytes=int(trail[1]),
    )


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else to_micros(moment)
