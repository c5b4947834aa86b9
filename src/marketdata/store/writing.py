"""Writing: bars and the coverage they prove, in one transaction.

1. COPY every bar of the call into a temporary table.
2. Lock the rows of the series concerned, in the order of their keys: writers of one series follow
   each other, and two writers of many series cannot deadlock.
3. One upsert in the order (series, timestamp), guarded by revision.
4. Merge coverage and counts in SQL, call `before_commit`, COMMIT.
"""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from marketdata.clock import from_micros
from marketdata.errors import StoreError
from marketdata.protocols import BeforeCommit, Commit
from marketdata.spans import Span, normalise
from marketdata.store.connection import Database, Driver, driver
from marketdata.store.failures import FOREIGN, missing_partition
from marketdata.store.wire import incoming_rows, key_columns, multirange_text
from marketdata.types import (
    COLUMNS,
    REVISION_STAGE,
    Floats,
    Int64s,
    SeriesKey,
    Stage,
    revision_of,
)

# Kept by the connection and emptied by each COMMIT: making and dropping a table for every commit
# would bloat the system catalogue. IF NOT EXISTS, because a proxy may hand us another server session.
_STAGE_TABLE: Final = f"""
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_bars (
    n integer, "timestamp" timestamptz,
    {", ".join(f"{column} double precision" for column in COLUMNS)}, revision bigint
) ON COMMIT DELETE ROWS
"""
# The default of 4 MB would sort 200,000 bars on disk and cost a quarter of the commit.
_SORT_IN_MEMORY: Final = "SET LOCAL work_mem = '64MB'"
_STAGE_COPY: Final = "COPY pg_temp.incoming_bars FROM STDIN (FORMAT binary)"

_KEYS: Final = """unnest(%(provider)s::text[], %(feed)s::text[], %(symbol)s::text[],
    %(timeframe)s::text[]) WITH ORDINALITY AS k (provider, feed, symbol, timeframe, n)"""

_LOCK: Final = f"""
SELECT k.n, s.first_bar, s.last_bar
FROM {_KEYS} JOIN series AS s USING (provider, feed, symbol, timeframe)
ORDER BY k.n FOR NO KEY UPDATE OF s
"""
_NEW_SERIES: Final = f"""
INSERT INTO series (provider, feed, symbol, timeframe)
SELECT k.provider, k.feed, k.symbol, k.timeframe FROM {_KEYS} ORDER BY k.n
ON CONFLICT DO NOTHING
"""

_VALUES: Final = ", ".join(COLUMNS)
_DIFFERS: Final = (
    f"({', '.join('excluded.' + c for c in COLUMNS)})"
    f" IS DISTINCT FROM ({', '.join('t.' + c for c in COLUMNS)})"
)
_UPSERT: Final = f"""
WITH written AS (
    INSERT INTO market_data_bars AS t
        (symbol, timeframe, "timestamp", {_VALUES}, provider, feed, revision)
    SELECT k.symbol, k.timeframe, i."timestamp", i.open, i.high, i.low, i.close, i.volume,
           nullif(i.vwap, 'NaN'), nullif(i.trade_count, 'NaN'), k.provider, k.feed, i.revision
    FROM pg_temp.incoming_bars AS i JOIN {_KEYS} USING (n)
    ORDER BY i.n, i."timestamp"
    ON CONFLICT (symbol, timeframe, "timestamp", provider, feed) DO UPDATE
        SET {", ".join(f"{c} = excluded.{c}" for c in COLUMNS)}, revision = excluded.revision
        WHERE excluded.revision > t.revision
          AND (excluded.revision / {REVISION_STAGE} <> t.revision / {REVISION_STAGE} OR {_DIFFERS})
    RETURNING t.provider, t.feed, t.symbol, t.timeframe)
SELECT k.n, count(*) FROM written JOIN {_KEYS} USING (provider, feed, symbol, timeframe) GROUP BY k.n
"""

_COUNT: Final = f"""
SELECT o.n, stored.bars
FROM {_KEYS}
JOIN unnest(%(numbers)s::bigint[], %(firsts)s::timestamptz[], %(lasts)s::timestamptz[])
    AS o (n, first_bar, last_bar) USING (n)
CROSS JOIN LATERAL (
    SELECT count(*) AS bars FROM market_data_bars AS b
    WHERE b.symbol = k.symbol AND b.timeframe = k.timeframe
      AND b.provider = k.provider AND b.feed = k.feed
      AND b."timestamp" BETWEEN o.first_bar AND o.last_bar) AS stored
"""

# What is covered for the first time is unsettled until a commit settles it; an answer that comes
# late, observed before the corrections, unsettles nothing: its bars lose to the revised ones.
_SERIES: Final = f"""
UPDATE series AS s
SET coverage = s.coverage + u.covered,
    revision = s.revision + (u.changed OR NOT s.coverage @> u.covered)::integer,
    unsettled = s.unsettled + (u.covered - s.coverage) - u.settled,
    first_bar = least(s.first_bar, u.first_bar),
    last_bar = greatest(s.last_bar, u.last_bar),
    bar_count = s.bar_count + u.added,
    last_fetched_at = greatest(s.last_fetched_at, u.observed)
FROM (SELECT k.provider, k.feed, k.symbol, k.timeframe, k.n, v.covered::tstzmultirange AS covered,
             v.settled::tstzmultirange AS settled, v.first_bar, v.last_bar, v.observed, v.added, v.changed
      FROM {_KEYS}
      JOIN unnest(%(covered)s::text[], %(settled)s::text[], %(first_bar)s::timestamptz[],
                  %(last_bar)s::timestamptz[], %(observed)s::timestamptz[], %(added)s::bigint[],
                  %(changed)s::boolean[])
           WITH ORDINALITY AS v (covered, settled, first_bar, last_bar, observed,
                                 added, changed, n) USING (n)) AS u
WHERE (s.provider, s.feed, s.symbol, s.timeframe) = (u.provider, u.feed, u.symbol, u.timeframe)
RETURNING u.n, s.revision
"""


@dataclass(frozen=True, slots=True)
class _Batch:
    """All commits of one call, series by series in key order, bars in columns."""

    keys: list[SeriesKey]
    coverage: list[list[Span]]
    observed: list[int]
    settled: list[list[Span]]
    """The part of `coverage` observed after the provider's own early corrections."""
    number: NDArray[np.int32]
    """For each bar the index of its series, counted from 1."""
    timestamp: Int64s
    values: Floats
    revision: Int64s

    def bounds(self) -> list[tuple[int, int] | None]:
        """Return first and last timestamp of each series' bars."""
        edges = np.searchsorted(self.number, np.arange(1, len(self.keys) + 2)).tolist()
        return [
            (int(self.timestamp[low]), int(self.timestamp[high - 1])) if high > low else None
            for low, high in pairwise(edges)
        ]

    def intraday_months(self) -> set[str]:
        """Return the months (``2024-03``) of intraday bars."""
        intraday = np.array([False] + [key.timeframe.intraday for key in self.keys])
        stamps = self.timestamp[intraday[self.number]]
        return set(np.unique(stamps.astype("M8[us]").astype("M8[M]")).astype(str).tolist())


class BarWriter:
    """Stores bars with their coverage; idempotent, so that a lost reply may be answered by a retry."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known_months: set[str] = set()

    def commit(
        self, commits: Sequence[Commit], before_commit: BeforeCommit | None = None
    ) -> dict[SeriesKey, int]:
        """Store bars and coverage of all `commits` in one transaction; return the new revisions.

        A bar's stage is final before the commit's `final_until`, revised before its
        `settled_until`, else closed. Coverage is stored as given, and a stored bar inside it that
        the answer lacks stays.

        Raises
        ------
        DataQualityError
            A value that the table refuses; nothing is stored.
        StoreUnavailableError
            Not reachable, or lost twice; a retry helps and cannot store twice.
        StoreReadOnlyError
            Read-only server, full disk or missing rights; nothing is stored.
        """
        if not commits:
            return {}
        batch = _batch(commits)
        months = batch.intraday_months()
        for last_attempt in (False, True):
            self._ensure_partitions(months - self._known_months)
            try:
                return self._database.run(lambda c: _store(driver(c), batch, before_commit))
            except StoreError as error:
                cause = error.__cause__
                gone = isinstance(cause, FOREIGN) and missing_partition(cause)
                if last_attempt or not gone:
                    raise
                self._known_months -= months  # retention has dropped one since we made it
        raise AssertionError("unreachable")

    def _ensure_partitions(self, months: set[str]) -> None:
        if not months:
            return
        days = [f"{month}-01" for month in sorted(months)]
        statement = text("SELECT ensure_bar_partitions(CAST(:days AS date[]))")
        self._database.run(lambda c: c.execute(statement, {"days": days}).scalar_one())
        self._known_months |= months


def _store(raw: Driver, batch: _Batch, before_commit: BeforeCommit | None) -> dict[SeriesKey, int]:
    keys = key_columns(batch.keys)
    if len(batch.timestamp):
        raw.execute(f"{_SORT_IN_MEMORY}; {_STAGE_TABLE}")
        with raw.cursor() as cursor, cursor.copy(_STAGE_COPY) as copy:
            for chunk in incoming_rows(batch.number, batch.timestamp, batch.values, batch.revision):
                copy.write(chunk)
    stored = _lock_series(raw, keys, len(batch.keys))
    bounds = batch.bounds()
    added, changed = _upsert(raw, batch, keys, bounds, stored)
    revisions = _update_series(raw, batch, keys, bounds, added, changed)
    if before_commit is not None:
        before_commit(revisions)
    return revisions


def _lock_series(
    raw: Driver, keys: dict[str, list[str]], count: int
) -> dict[int, tuple[int | None, int | None]]:
    """Lock the series' rows, making those that are missing; return their first and last bars."""
    rows = raw.execute(_LOCK, keys, binary=True).fetchall()
    if len(rows) < count:
        raw.execute(_NEW_SERIES, keys)
        rows = raw.execute(_LOCK, keys, binary=True).fetchall()
    return {number: (first, last) for number, first, last in rows}


def _upsert(
    raw: Driver,
    batch: _Batch,
    keys: dict[str, list[str]],
    bounds: Sequence[tuple[int, int] | None],
    stored: dict[int, tuple[int | None, int | None]],
) -> tuple[list[int], list[bool]]:
    """Write the staged bars; return for each series the number of new rows, and whether any changed.

    The upsert cannot tell inserted from updated rows. Where the new bars lie outside what is
    stored all are new; elsewhere rows are counted before and after, which the locks make exact.
    """
    if not len(batch.timestamp):
        return [0] * len(keys["symbol"]), [False] * len(keys["symbol"])
    overlaps = _overlaps(bounds, stored)
    before = _count(raw, keys, overlaps)
    written: dict[int, int] = dict(raw.execute(_UPSERT, keys, binary=True).fetchall())
    after = _count(raw, keys, {n: o for n, o in overlaps.items() if n in written})
    added = [
        after[n] - before[n] if n in after else (0 if n in overlaps else written.get(n, 0))
        for n in range(1, len(bounds) + 1)
    ]
    return added, [n in written for n in range(1, len(bounds) + 1)]


def _overlaps(
    bounds: Sequence[tuple[int, int] | None],
    stored: dict[int, tuple[int | None, int | None]],
) -> dict[int, tuple[int, int]]:
    """Return, for series whose new bars reach into the stored ones, the new bars' bounds."""
    found = {}
    for number, new in enumerate(bounds, start=1):
        first, last = stored[number]
        if new is None or first is None or last is None:
            continue
        if new[0] <= last and new[1] >= first:
            found[number] = new
    return found


def _count(
    raw: Driver, keys: dict[str, list[str]], ranges: dict[int, tuple[int, int]]
) -> dict[int, int]:
    if not ranges:
        return {}
    parameters: dict[str, Any] = {
        **keys,
        "numbers": list(ranges),
        "firsts": [from_micros(first) for first, _ in ranges.values()],
        "lasts": [from_micros(last) for _, last in ranges.values()],
    }
    return dict(raw.execute(_COUNT, parameters, binary=True).fetchall())


def _update_series(
    raw: Driver,
    batch: _Batch,
    keys: dict[str, list[str]],
    bounds: Sequence[tuple[int, int] | None],
    added: Sequence[int],
    changed: Sequence[bool],
) -> dict[SeriesKey, int]:
    parameters: dict[str, Any] = {
        **keys,
        "covered": [multirange_text(spans) for spans in batch.coverage],
        "settled": [multirange_text(spans) for spans in batch.settled],
        "first_bar": [from_micros(b[0]) if b else None for b in bounds],
        "last_bar": [from_micros(b[1]) if b else None for b in bounds],
        "observed": [from_micros(o) for o in batch.observed],
        "added": list(added),
        "changed": list(changed),
    }
    rows = raw.execute(_SERIES, parameters, binary=True)
    return {batch.keys[number - 1]: revision for number, revision in rows}


# ------------------------------------------------------------------- from commits to one batch


def _batch(commits: Sequence[Commit]) -> _Batch:
    by_key: dict[SeriesKey, list[Commit]] = {}
    for commit in commits:
        by_key.setdefault(commit.key, []).append(commit)
    keys = sorted(by_key)
    groups = [by_key[key] for key in keys]
    filled = [
        (number, commit)
        for number, group in enumerate(groups, start=1)
        for commit in group
        if len(commit.bars)
    ]
    numbers = [np.full(len(c.bars), number, np.int32) for number, c in filled]
    empty = np.empty(0, np.int64)
    number = np.concatenate([np.empty(0, np.int32), *numbers])
    timestamp = np.concatenate([empty, *(c.bars.timestamp for _, c in filled)])
    values = np.concatenate(
        [np.empty((len(COLUMNS), 0)), *(c.bars.values for _, c in filled)], axis=1
    )
    revision = np.concatenate([empty, *(_revisions(c) for _, c in filled)])
    order = _newest_of_each(number, timestamp, revision)
    if order is not None:
        number, timestamp, revision = number[order], timestamp[order], revision[order]
        values = values[:, order]
    return _Batch(
        keys=keys,
        coverage=[normalise(c.covered for c in group) for group in groups],
        observed=[max(c.observed_us for c in group) for group in groups],
        settled=[normalise(_settled(c) for c in group) for group in groups],
        number=number,
        timestamp=timestamp,
        values=values,
        revision=revision,
    )


def _revisions(commit: Commit) -> Int64s:
    stage = np.full(len(commit.bars), int(Stage.CLOSED), np.int64)
    if commit.settled_until is not None:
        stage[commit.bars.timestamp < commit.settled_until] = Stage.REVISED
    if commit.final_until is not None:
        stage[commit.bars.timestamp < commit.final_until] = Stage.FINAL
    return revision_of(stage, commit.observed_us)


def _newest_of_each(
    number: NDArray[np.int32], timestamp: Int64s, revision: Int64s
) -> Int64s | None:
    """Return the order that sorts by (series, timestamp) and keeps the highest revision of each
    bar, the later one given where equal; None if that is the order already."""
    rising = (number[1:] > number[:-1]) | (timestamp[1:] > timestamp[:-1])
    if rising.all():
        return None
    order = np.lexsort((revision, timestamp, number))
    number, timestamp = number[order], timestamp[order]
    last = np.append((number[1:] != number[:-1]) | (timestamp[1:] != timestamp[:-1]), True)
    return np.asarray(order[last], np.int64)


def _settled(commit: Commit) -> Span:
    """Return the part of what `commit` covers that it settles."""
    if commit.settled_until is None:
        return Span(0, 0)
    return Span(commit.covered.start, min(commit.settled_until, commit.covered.end))
