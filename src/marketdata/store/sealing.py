"""Sealing: rows of settled days into chunks and back, corrections merged, chunks joined. Each step is
one transaction on one series: killed between any two, nothing is lost and the next run goes on.
"""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from marketdata.pausing import (
    SEAL_CHUNKS_WRITTEN,
    SEAL_READ,
    SEAL_ROWS_DELETED,
    SEAL_STEP_DONE,
    pause_point,
)
from marketdata.spans import Span, intersect, normalise, subtract
from marketdata.store import chunk_table, corrections, rows, sealed, series_table
from marketdata.store.connection import Database, Driver, driver
from marketdata.store.observed import Observed
from marketdata.store.rows import OF_ONE, Stretches, fields_of
from marketdata.store.wire import key_of, multirange_text
from marketdata.store.writing import Partitions
from marketdata.tiling import merges, month_spans, quarter_spans, touched_days, whole_days
from marketdata.types import Int64s, SeriesKey, Timeframe

INTRADAY: Final = [t.value for t in Timeframe if t.intraday]
_FINAL: Final = """
SELECT provider, feed, symbol, timeframe, final, sealed, pinned, corrections FROM series
WHERE timeframe = ANY (%(intraday)s) AND final <> '{}'
  AND (%(symbols)s::text[] IS NULL OR symbol = ANY (%(symbols)s))
"""
_SEVERAL_CHUNKS: Final = """
SELECT provider, feed, symbol, timeframe, s.sealed, array_agg(c.span_start), array_agg(c.span_end)
FROM bar_chunks AS c JOIN series AS s USING (provider, feed, symbol, timeframe)
WHERE %(symbols)s::text[] IS NULL OR symbol = ANY (%(symbols)s)
GROUP BY provider, feed, symbol, timeframe, s.sealed,
         date_trunc('quarter', c.span_start, 'America/New_York')
HAVING count(*) > 1
"""
_SEAL: Final = f"""
UPDATE series SET sealed = sealed + %(days)s::tstzmultirange, sealed_count = sealed_count + %(bars)s
WHERE {OF_ONE}
"""
_UNSEAL: Final = f"""
UPDATE series SET sealed = sealed - %(days)s::tstzmultirange, sealed_count = sealed_count - %(bars)s,
                  pinned = pinned + %(days)s::tstzmultirange
WHERE {OF_ONE}
"""
_UNPIN: Final = """
UPDATE series SET pinned = '{}'
WHERE pinned <> '{}' AND (%(symbols)s::text[] IS NULL OR symbol = ANY (%(symbols)s))
"""


@dataclass(frozen=True, slots=True)
class Moved:
    """What one transaction did to one series."""

    bars: int = 0
    """Bars sealed, or unsealed."""
    chunks: int = 0
    """Chunks written."""
    bytes: int = 0
    corrections: int = 0
    """Corrections merged."""


class Sealer:
    """Moves settled intraday bars of a store between rows and chunks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._partitions = Partitions(database)

    def candidates(self, before: int, symbols: Sequence[str] | None = None) -> list[SeriesKey]:
        """Return the series that may have something to seal before `before`, to merge or to join,
        sorted."""
        parameters = {
            "intraday": INTRADAY,
            "symbols": None if symbols is None else list(symbols),
        }

        def work(raw: Driver) -> set[SeriesKey]:
            found = {
                key_of(row[:4])
                for row in raw.execute(_FINAL, parameters, binary=True)
                if row[7] or _open_days(row[4], row[5], row[6], before)
            }
            return found | {
                key_of(row[:4])
                for row in raw.execute(_SEVERAL_CHUNKS, parameters, binary=True)
                if merges(row[4], [Span(*ends) for ends in zip(row[5], row[6], strict=True)])
            }

        return sorted(self._database.run(lambda c: work(driver(c)), snapshot=True))

    def seal(self, key: SeriesKey, before: int) -> Iterator[Moved]:
        """Seal what is final and before `before`, month by month, one transaction for each; then
        merge corrections, and join the chunks of a week, month or quarter that has become complete,
        one transaction for each quarter with something to do.

        Yields after each transaction. Pinned days stay rows.

        Raises
        ------
        StoreError
            A chunk is damaged; nothing of its transaction is stored.
        """
        more = True
        while more:
            done, more = self._partitions.run(lambda raw: _seal_one_month(raw, key, before))
            pause_point(SEAL_STEP_DONE)
            if done.bars or more:
                yield done
        since: int | None = 0
        while since is not None:

            def tidied(raw: Driver, since: int = since) -> tuple[Moved, int | None]:
                return _tidy(raw, key, since)

            done, since = self._partitions.run(tidied)
            pause_point(SEAL_STEP_DONE)
            yield done

    def unseal(self, key: SeriesKey, span: Span) -> Iterator[Moved]:
        """Make rows again of the sealed days that `span` touches, and pin them: the newest month
        first, one transaction for each month. Yields after each.

        Raises
        ------
        StoreError
            A chunk is damaged; nothing of its transaction is stored.
        """
        if span.empty:
            return
        for month in reversed(list(month_spans(touched_days(span)))):
            days = touched_days(span.clip(month))

            def work(raw: Driver, days: Span = days) -> Moved | None:
                return _unseal(raw, key, days, self._partitions)

            done = self._partitions.run(work)
            if done is not None:
                yield done

    def unpin(self, symbols: Sequence[str] | None = None) -> int:
        """Let pinned days be sealed again; return the number of series that had some."""
        parameters = {"symbols": None if symbols is None else list(symbols)}
        return self._database.run(lambda c: driver(c).execute(_UNPIN, parameters).rowcount)


def _open_days(
    final: Sequence[Span], done: Sequence[Span], pinned: Sequence[Span], before: int
) -> list[Span]:
    """Return the whole final days before `before` that are rows and may be sealed."""
    held = normalise([*done, *pinned])
    return subtract(intersect(whole_days(final), [Span(0, max(0, before))]), held)


def _seal_one_month(raw: Driver, key: SeriesKey, before: int) -> tuple[Moved, bool]:
    """Seal the first month that has something to seal; return what was done, and whether there may
    be another."""
    state = series_table.lock_one(raw, key)
    days = [] if state is None else _open_days(state.final, state.sealed, state.pinned, before)
    if state is None or not days:
        return Moved(), False
    own = intersect(days, [next(month_spans(days[0]))])
    found = rows.read(raw, [key], Stretches.of({1: own}))
    pause_point(SEAL_READ)
    sealed.make_room(raw, [key], {1: state.sealed}, {1: own})
    made = sealed.new_chunks(1, own, found)
    written = chunk_table.store(raw, [key], made)
    pause_point(SEAL_CHUNKS_WRITTEN)
    if len(found):
        rows.delete_spans(raw, [key], {1: own})
        rows.refresh_ends(raw, [key])
    pause_point(SEAL_ROWS_DELETED)
    raw.execute(_SEAL, {**fields_of(key), "days": multirange_text(own), "bars": len(found)})
    moved = Moved(len(found), sum(len(m.bars) > 0 for m in made), written)
    return moved, own != days


def _tidy(raw: Driver, key: SeriesKey, since: int) -> tuple[Moved, int | None]:
    """Merge pending corrections into their chunks, and join chunks, in the first quarter from `since`
    on where there are any; return what was done, and where there may be more."""
    state = series_table.lock_one(raw, key)
    if state is None or not state.sealed:
        return Moved(), None
    pending = Observed.empty()
    if state.corrections:
        pending = corrections.read(raw, [key], {1: state.sealed}, pending=True)
    stored = chunk_table.spans(raw, [key]).get(1, [])
    todo = [
        *(merge.span for merge in merges(state.sealed, stored)),
        *_around(pending.timestamp, stored),
    ]
    todo = normalise(span for span in todo if span.start >= since)
    if not todo:
        return Moved(), None
    quarter = next(quarter_spans(todo[0]))
    spans = intersect(todo, [quarter])
    old = chunk_table.overlapping(raw, [key], {1: spans})
    own = intersect(spans, state.sealed)
    bars = sealed.view(raw, [key], {1: own}).live()
    chunk_table.delete(raw, [key], [(1, chunk.span) for chunk in old])
    made = sealed.new_chunks(1, own, bars)
    written = chunk_table.store(raw, [key], made)
    merged = sum(len(pending.within(span)) for span in own)
    if merged:
        corrections.merged(raw, [key], {1: own})
        corrections.recount(raw, [key])
    moved = Moved(0, sum(len(m.bars) > 0 for m in made), written, merged)
    return moved, quarter.end if todo[-1].end > quarter.end else None


def _around(labels: Int64s, chunks: Sequence[Span]) -> list[Span]:
    """Return the chunk each label lies in, or its day where that has none."""
    ordered = sorted(chunks)
    found = set()
    for label in labels.tolist():
        inside = [span for span in ordered if span.start <= label < span.end]
        found.add(inside[0] if inside else touched_days(Span(label, label + 1)))
    return sorted(found)


def _unseal(raw: Driver, key: SeriesKey, span: Span, partitions: Partitions) -> Moved | None:
    state = series_table.lock_one(raw, key)
    days = [] if state is None else intersect(state.sealed, [span])
    if state is None or not days:
        return None
    found = sealed.view(raw, [key], {1: days}).live()
    partitions.require([key], found)
    old = chunk_table.overlapping(raw, [key], {1: days})
    sealed.rewrite(raw, [key], old, {1: subtract(state.sealed, days)})
    corrections.merged(raw, [key], {1: days})
    corrections.recount(raw, [key])
    rows.write(raw, [key], found)
    rows.refresh_ends(raw, [key])
    raw.execute(_UNSEAL, {**fields_of(key), "days": multirange_text(days), "bars": len(found)})
    return Moved(len(found))
