"""Writing: bars and the coverage they prove, in one transaction.

1. Lock the rows of the series concerned, in the order of their keys: writers of one series follow
   each other, and two writers of many series cannot deadlock.
2. Read what is stored under the same labels, packed, and decide in `observed` what replaces what:
   a session read again without corrections writes nothing.
3. Write: rows by COPY into a temporary table and one ordered upsert; what differs from sealed bars
   into `bar_corrections`; whole final days of a backfill straight into chunks. What was replaced
   goes to the trail (`history`).
4. Merge coverage and counts in SQL, call `before_commit`, COMMIT.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from marketdata.errors import StoreError
from marketdata.pausing import (
    BARS_WRITTEN,
    COMMITTED,
    COVERAGE_WRITTEN,
    FLOOR_RAISED,
    pause_point,
)
from marketdata.protocols import BeforeCommit, Commit
from marketdata.spans import Span, intersect, normalise, subtract
from marketdata.store import chunk_table, corrections, rows, sealed, series_table
from marketdata.store.batches import Batch, batch_of
from marketdata.store.chunk_table import NewChunk
from marketdata.store.connection import Database, Driver, driver
from marketdata.store.failures import FOREIGN, missing_partition
from marketdata.store.history import History
from marketdata.store.observed import Decision, Int32s, Observed, apply, decide
from marketdata.store.rows import Stretches
from marketdata.store.series_table import Changes, LockedSeries, inside
from marketdata.tiling import traded_days, whole_days
from marketdata.types import Bools, Int64s, SeriesKey

_ATTEMPTS: Final = 6
"""The partitions of new months are made between two attempts; retention may drop one meanwhile."""
_ROWS, _SEALED, _FRESH = range(3)


class MissingPartitionsError(Exception):
    """Rows of these months (``2024-03``) are to be written, and have no partition we know of."""

    def __init__(self, months: set[str]) -> None:
        super().__init__(months)
        self.months = months


class BarWriter:
    """Stores bars with their coverage; idempotent, so that a lost reply may be answered by a retry.

    Parameters
    ----------
    trail : collection of str, optional
        Symbols whose replaced values are kept; None for all.
    """

    def __init__(self, database: Database, trail: Collection[str] | None = None) -> None:
        self._trail = trail
        self.partitions = Partitions(database)

    def commit(
        self, commits: Sequence[Commit], before_commit: BeforeCommit | None = None
    ) -> dict[SeriesKey, int]:
        """Store bars and coverage of all `commits` in one transaction; return the new revisions.

        A bar's stage is final before the commit's `final_until`, revised before its
        `settled_until`, else closed. Coverage is stored as given, and a stored bar inside it that
        the answer lacks stays, unless `withdrawn` names it. Intraday bars of commits that allow it
        (`sealed`) become chunks where they complete whole final days, with what is stored there.

        Raises
        ------
        DataQualityError
            A value that the table refuses; nothing is stored.
        StoreUnavailableError
            Not reachable, or lost twice; a retry helps and cannot store twice.
        StoreReadOnlyError
            Read-only server, full disk or missing rights; nothing is stored.
        StoreError
            Bars fall into a sealed chunk that is damaged; nothing is stored.
        """
        if not commits:
            return {}
        batch = batch_of(commits)

        def work(raw: Driver) -> dict[SeriesKey, int]:
            return _Transaction(raw, batch, self.partitions, self._trail).store(before_commit)

        revisions = self.partitions.run(work)
        pause_point(COMMITTED)
        return revisions


class Partitions:
    """The monthly partitions of intraday rows, as far as this process knows them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: set[str] = set()

    def require(self, keys: Sequence[SeriesKey], bars: Observed) -> None:
        """Raise `MissingPartitionsError` unless all intraday months of `bars` are known."""
        intraday = np.array([False] + [key.timeframe.intraday for key in keys])
        stamps = bars.timestamp[intraday[bars.number]]
        months = set(np.unique(stamps.astype("M8[us]").astype("M8[M]")).astype(str).tolist())
        if not months <= self._known:
            raise MissingPartitionsError(months - self._known)

    def run[T](self, work: Callable[[Driver], T]) -> T:
        """Run `work` in a transaction, which calls `require` before it writes rows; make the
        partitions that are missing between attempts.

        Where one is dropped meanwhile, they are made in the transaction itself: nobody drops any
        until that has ended.
        """
        held: set[str] = set()

        def attempted(connection: Connection) -> T:
            if held:
                self._ensure(connection, held)
            return work(driver(connection))

        for attempt in range(_ATTEMPTS):
            try:
                return self._database.run(attempted)
            except MissingPartitionsError as missing:
                if attempt:
                    held |= missing.months
                else:
                    self._database.run(lambda c, m=missing.months: self._ensure(c, m))  # type: ignore[misc]
            except StoreError as error:
                cause = error.__cause__
                gone = isinstance(cause, FOREIGN) and missing_partition(cause)
                if not gone or attempt == _ATTEMPTS - 1:
                    raise
                self._known.clear()  # one has been dropped since we made it
        raise StoreError("a month's partition is dropped as often as it is made", transient=True)

    def _ensure(self, connection: Connection, months: set[str]) -> None:
        days = [f"{month}-01" for month in sorted(months)]
        statement = text("SELECT ensure_bar_partitions(CAST(:days AS date[]))")
        connection.execute(statement, {"days": days}).scalar_one()
        self._known |= months


class _Transaction:
    """One attempt to store a batch."""

    def __init__(
        self, raw: Driver, batch: Batch, partitions: Partitions, trail: Collection[str] | None
    ) -> None:
        self._raw = raw
        self._keys = batch.keys
        self._batch = batch
        self._partitions = partitions
        self._changes = Changes.none(len(batch.keys))
        self._locked = LockedSeries(raw, batch.keys)
        self._history = History(raw, batch, self._locked, trail)
        self._corrected: set[int] = set()
        """Numbers of series whose corrections were changed."""
        self._emptied: set[int] = set()
        """Numbers of series some of whose rows were deleted."""
        self._shrunk: set[int] = set()
        """Numbers of series that may have lost their first or last bar."""

    def store(self, before_commit: BeforeCommit | None) -> dict[SeriesKey, int]:
        new, noted = self._batch.new, self._batch.noted
        fresh = self._fresh_days()
        places = self._places(fresh)
        if places is None:
            self._write_rows(new, noted)
        else:
            for place, write in ((_ROWS, self._write_rows), (_SEALED, self._write_sealed)):
                chosen = places == place
                if chosen.any():
                    write(new.take(chosen), noted[chosen])
            if fresh:
                chosen = places == _FRESH
                self._write_chunks(new.take(chosen), noted[chosen], fresh)
        pause_point(BARS_WRITTEN)
        self._history.store()
        revisions = series_table.update(self._raw, self._batch, self._changes)
        self._look_again()
        pause_point(COVERAGE_WRITTEN)
        if before_commit is not None:
            before_commit(revisions)
        pause_point(FLOOR_RAISED)
        return revisions

    # ------------------------------------------------------------------- where bars are to go

    def _fresh_days(self) -> dict[int, list[Span]]:
        """Return the days to be sealed now: whole and final with what these commits cover."""
        found = {}
        self._locked.load(self._batch.sealing)
        for number, covered in self._batch.sealing.items():
            state = self._locked[number]
            final = normalise([*state.final, *self._batch.final[number - 1]])
            traded = normalise(traded_days(span) for span in covered)
            days = intersect(whole_days(final), traded)
            days = subtract(days, normalise([*state.sealed, *state.pinned]))
            if days:
                found[number] = days
        return found

    def _places(self, fresh: Mapping[int, Sequence[Span]]) -> NDArray[np.int8] | None:
        """Return where each new bar goes; None where all are to be rows."""
        new = self._batch.new
        number, low, high = _runs(new)
        sealed_before = new.timestamp[low] < self._locked.sealed_until[number - 1]
        if not fresh and not sealed_before.any():
            return None
        places = np.zeros(len(new), np.int8)
        held = number[sealed_before].tolist()
        self._locked.load(held)
        ends = zip(low.tolist(), high.tolist(), strict=True)
        bounds = dict(zip(number.tolist(), ends, strict=True))
        for n in held:
            own = slice(*bounds[n])
            places[own][inside(new.timestamp[own], self._locked[n].sealed)] = _SEALED
        for n, days in fresh.items():
            own = slice(*bounds.get(n, (0, 0)))
            places[own][inside(new.timestamp[own], days)] = _FRESH
        return places

    # -------------------------------------------------------------------------------- writing

    def _write_rows(self, new: Observed, noted: Bools) -> None:
        number, low, high = _runs(new)
        stretches = Stretches(number, new.timestamp[low], new.timestamp[high - 1] + 1)
        stored = self._stored_rows(stretches)
        decision = decide(new, stored, noted, self._locked.stages)
        self._history.note(new, stored, decision)
        live = new.take(decision.write & ~new.withdrawn)
        self._partitions.require(self._keys, live)
        rows.write(self._raw, self._keys, live)
        self._note_withdrawals(new, decision, live)
        gone = new.take(decision.had & decision.write & new.withdrawn)
        rows.delete_labels(self._raw, self._keys, gone.number, gone.timestamp)
        self._emptied.update(np.unique(gone.number).tolist())
        self._changes.note_bars(live, rows=True)
        self._count(new, decision)

    def _write_sealed(self, new: Observed, noted: Bools) -> None:
        spans = {
            n: intersect([Span(first, last + 1)], self._locked[n].sealed)
            for n, first, last in _ends(new)
        }
        stored = sealed.view(self._raw, self._keys, spans)
        decision = decide(new, stored, noted, self._locked.stages)
        self._history.note(new, stored, decision)
        found = new.take(decision.write)
        corrections.write(self._raw, self._keys, found, np.ones(len(found), np.bool_))
        self._corrected.update(np.unique(found.number).tolist())
        self._changes.note_bars(found.live(), rows=False)
        self._changes.added_sealed += self._count(new, decision)

    def _write_chunks(
        self, new: Observed, noted: Bools, days: Mapping[int, Sequence[Span]]
    ) -> None:
        stored = self._stored_rows(Stretches.of(days))
        decision = decide(new, stored, noted, self._locked.stages)
        self._history.note(new, stored, decision)
        written = new.take(decision.write)
        self._note_withdrawals(new, decision, written.live())
        merged = apply(written, stored).live()
        sealed.make_room(self._raw, self._keys, {n: self._locked[n].sealed for n in days}, days)
        chunks: list[NewChunk] = []
        for number, own in days.items():
            bars = merged.of_series(number)
            chunks += sealed.new_chunks(number, own, bars)
            self._changes.sealed[number] = list(own)
            self._changes.added_sealed[number - 1] += len(bars)
        chunk_table.store(self._raw, self._keys, chunks)
        held = {number: days[number] for number in np.unique(stored.number).tolist()}
        if rows.delete_spans(self._raw, self._keys, held):
            self._emptied.update(held)
        self._changes.note_bars(written.live(), rows=False)
        self._count(new, decision)

    def _stored_rows(self, stretches: Stretches) -> Observed:
        """Return rows, and withdrawals that came to be known, in the spans given."""
        at = stretches.number - 1
        locked = self._locked
        there = (stretches.start <= locked.last_bar[at]) & (stretches.end > locked.first_bar[at])
        found = rows.read(self._raw, self._keys, stretches.take(there))
        marked = stretches.take(locked.tombstones[at] > 0)
        if len(marked.number):
            spans: dict[int, list[Span]] = {}
            for number, start, end in zip(*(c.tolist() for c in marked), strict=True):
                spans.setdefault(number, []).append(Span(start, end))
            noted = corrections.read(self._raw, self._keys, spans)
            found = Observed.join([found, noted]).newest_of_each()
        return found

    def _note_withdrawals(self, new: Observed, decision: Decision, live: Observed) -> None:
        """Remember what was withdrawn, and forget it of bars that are back."""
        gone = new.take(decision.write & new.withdrawn)
        corrections.write(self._raw, self._keys, gone, np.zeros(len(gone), np.bool_))
        back = live.take(self._locked.tombstones[live.number - 1] > 0)
        corrections.delete_labels(self._raw, self._keys, back)
        self._corrected.update(np.unique(gone.number).tolist(), np.unique(back.number).tolist())

    # ------------------------------------------------------------------------------- counting

    def _count(self, new: Observed, decision: Decision) -> Int64s:
        """Note what was written of each series; return by how much its number of bars grew."""
        added = decision.added(new.withdrawn)
        at = new.number - 1
        grown = np.zeros(len(self._keys), np.int64)
        np.add.at(grown, at, added)
        self._changes.added += grown
        self._changes.changed[at[decision.changes]] = True
        self._shrunk.update(np.unique(new.number[added < 0]).tolist())
        return grown

    def _look_again(self) -> None:
        """Count and look up again what cannot be told from the change alone."""
        corrections.recount(self._raw, [self._keys[n - 1] for n in sorted(self._corrected)])
        rows.refresh_ends(self._raw, [self._keys[n - 1] for n in sorted(self._emptied)])
        for number in sorted(self._shrunk):
            days = [*self._locked[number].sealed, *self._changes.sealed.get(number, ())]
            sealed.refresh_bounds(self._raw, self._keys[number - 1], normalise(days))


def _runs(bars: Observed) -> tuple[Int32s, Int64s, Int64s]:
    """Return number, first and end place of each series among `bars`."""
    low = np.flatnonzero(np.diff(bars.number, prepend=0))
    return bars.number[low], low, np.append(low[1:], len(bars))[: len(low)]


def _ends(bars: Observed) -> Iterator[tuple[int, int, int]]:
    """Yield number, first and last timestamp of each series among `bars`."""
    number, low, high = _runs(bars)
    first, last = bars.timestamp[low], bars.timestamp[high - 1]
    yield from zip(number.tolist(), first.tolist(), last.tolist(), strict=True)
