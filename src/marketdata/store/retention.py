"""Dropping: intraday bars that are too old, chunks that are damaged, partitions that are empty.

What is known of the past of bars goes with them.
"""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import date
from typing import Final

from sqlalchemy import text

from marketdata.clock import from_micros
from marketdata.errors import StoreError, StoreUnavailableError
from marketdata.protocols import BeforeCommit
from marketdata.spans import Span, intersect, subtract
from marketdata.store import chunk_table, corrections, rows, sealed, series_table, trail
from marketdata.store.chunk_table import StoredChunk
from marketdata.store.connection import Database, Driver, driver
from marketdata.store.observed import Observed, apply
from marketdata.store.rows import OF_ONE, fields_of
from marketdata.store.sealing import INTRADAY
from marketdata.store.series_table import SeriesRow
from marketdata.store.wire import key_of, multirange_text
from marketdata.types import SeriesKey

_OUTLIVED: Final = """
SELECT provider, feed, symbol, timeframe FROM series
WHERE timeframe = ANY (%(intraday)s)
  AND (first_bar < %(before)s OR lower(coverage) < %(before)s OR lower(pinned) < %(before)s)
"""
_CUT: Final = f"""
UPDATE series SET coverage = coverage - g.gone, unsettled = unsettled - g.gone,
                  final = final - g.gone, sealed = sealed - g.gone, pinned = pinned - g.gone,
                  bar_count = bar_count - %(bars)s, sealed_count = sealed_count - %(sealed)s,
                  revision = revision + 1
FROM (SELECT %(gone)s::tstzmultirange AS gone) AS g
WHERE {OF_ONE} RETURNING revision
"""
_COUNTED: Final = f"""
SELECT coalesce(sum(bar_count), 0)::bigint FROM bar_chunks
WHERE {OF_ONE} AND span_start = ANY (%(starts)s)
"""
_MONTHS: Final = text("""
SELECT replace(substring(relname FROM '\\d{4}_\\d{2}$'), '_', '-') || '-01'
FROM pg_inherits JOIN pg_class ON oid = inhrelid
WHERE inhparent = CAST('market_data_bars_intraday' AS regclass) ORDER BY relname
""")
_DROP: Final = text("SELECT drop_empty_bar_partition(CAST(:month AS date))")
_DROP_ATTEMPTS: Final = 5
_DROP_PAUSE: Final = 0.2


class Retention:
    """Drops what is too old, or beyond repair, with its coverage."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def outlived(self, before: int) -> list[SeriesKey]:
        """Return the intraday series that reach back beyond `before`, sorted."""
        parameters = {"intraday": INTRADAY, "before": from_micros(before)}

        def work(raw: Driver) -> list[SeriesKey]:
            return sorted(key_of(row) for row in raw.execute(_OUTLIVED, parameters))

        return self._database.run(lambda c: work(driver(c)), snapshot=True)

    def cut(self, key: SeriesKey, before: int, before_commit: BeforeCommit | None = None) -> int:
        """Drop all of a series before `before`, a midnight of the exchange, with its coverage, in
        one transaction; return the number of bars dropped.

        A chunk that holds later bars too stays as it is until all of it is too old; what of it is
        dropped is not read any more.
        """
        gone = Span(0, before)

        def work(raw: Driver) -> int:
            state = series_table.lock_one(raw, key)
            if state is None:
                return 0
            old = chunk_table.overlapping(raw, [key], {1: [gone]})
            out = [chunk for chunk in old if chunk.span.end <= before]
            removed = _remove(raw, key, state, [gone], old, out, before_commit)
            trail.forget(raw, key, [gone])
            return removed

        return self._database.run(lambda c: work(driver(c)))

    def discard(
        self, key: SeriesKey, span: Span, before_commit: BeforeCommit | None = None
    ) -> list[Span]:
        """Give up the chunks touching `span` that cannot be decoded, with the coverage of their
        days, so that these are fetched again; return their spans. Sound chunks stay."""

        def work(raw: Driver) -> list[Span]:
            state = series_table.lock_one(raw, key)
            if state is None:
                return []
            touching = chunk_table.overlapping(raw, [key], {1: [span]})
            out = [chunk for chunk in touching if not _sound(key, chunk)]
            spans = [chunk.span for chunk in out]
            if out:
                days = intersect(spans, state.sealed)
                _remove(raw, key, state, days, out, out, before_commit)
                trail.forget(raw, key, days, known=False)
            return spans

        return self._database.run(lambda c: work(driver(c)))

    # ----------------------------------------------------------------------------- partitions

    def months(self) -> list[date]:
        """Return the months that have a partition of intraday rows."""
        found = self._database.run(lambda c: c.execute(_MONTHS).scalars().all(), snapshot=True)
        return [date.fromisoformat(month) for month in found]

    def drop_if_empty(self, month: date) -> bool:
        """Drop the partition of a month if it holds no row; return whether it is gone.

        A partition somebody is reading or writing stays: nobody waits for us, and we give up after
        about two seconds.
        """
        parameters = {"month": month}
        for attempt in range(_DROP_ATTEMPTS):
            try:
                return bool(self._database.run(lambda c: c.execute(_DROP, parameters).scalar_one()))
            except StoreUnavailableError as error:
                if error.facts.get("sqlstate") not in ("55P03", "40P01"):
                    raise
                if attempt < _DROP_ATTEMPTS - 1:
                    time.sleep(_DROP_PAUSE)
        return False


def _remove(
    raw: Driver,
    key: SeriesKey,
    state: SeriesRow,
    gone: Sequence[Span],
    touched: Sequence[StoredChunk],
    out: Sequence[StoredChunk],
    before_commit: BeforeCommit | None,
) -> int:
    """Drop everything of a series inside `gone`; of the chunks `touched` delete those of `out`."""
    removed = intersect(state.sealed, gone)
    noted = corrections.read(raw, [key], {1: removed}) if state.corrections else Observed.empty()
    bars = sum(_count(raw, key, chunk, removed, noted) for chunk in touched)
    bars += _uncharted(noted, touched)
    held = subtract(gone, state.sealed)
    deleted = rows.delete_spans(raw, [key], {1: held})
    chunk_table.delete(raw, [key], [(1, chunk.span) for chunk in out])
    corrections.forget(raw, [key], {1: gone})
    parameters = {
        **fields_of(key),
        "gone": multirange_text(gone),
        "bars": deleted + bars,
        "sealed": bars,
    }
    row = raw.execute(_CUT, parameters).fetchone()
    assert row is not None
    corrections.recount(raw, [key])
    rows.refresh_ends(raw, [key])
    sealed.refresh_bounds(raw, key, subtract(state.sealed, removed))
    if before_commit is not None:
        before_commit({key: row[0]})
    return deleted + bars


def _count(
    raw: Driver, key: SeriesKey, chunk: StoredChunk, removed: Sequence[Span], noted: Observed
) -> int:
    """Return how many bars a chunk, corrected, has in `removed`; of a damaged one, what its row says."""
    try:
        bars = sealed.clipped(chunk_table.decoded(key, chunk), removed)
    except StoreError:
        parameters = {**fields_of(key), "starts": [from_micros(chunk.span.start)]}
        row = raw.execute(_COUNTED, parameters).fetchone()
        assert row is not None
        return int(row[0])
    return len(apply(noted.within(chunk.span), bars).live())


def _uncharted(noted: Observed, chunks: Sequence[StoredChunk]) -> int:
    """Return how many corrections are bars of days without a chunk."""
    live = noted.live()
    return len(live) - sum(len(live.within(chunk.span)) for chunk in chunks)


def _sound(key: SeriesKey, chunk: StoredChunk) -> bool:
    try:
        chunk_table.decoded(key, chunk)
    except StoreError:
        return False
    return True
