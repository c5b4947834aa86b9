"""What a writing transaction replaces, kept beside the bars: the trail, late arrivals, drift.

`History` collects what the decisions of `observed` replace, and writes it before the transaction
ends. Where nothing differs it costs a few comparisons and no statement:

- what was replaced, of the series the trail is kept for, goes to ``bar_revisions``;
- of the others the series remembers up to when values may have been replaced without a trace;
- what was first observed long after its close goes to ``bar_arrivals``;
- how many bars changed, by field and stage, is added to ``drift_counters``.
"""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

import numpy as np

from marketdata.bar_history import observed_us, punctual_until, state_of
from marketdata.drift import DriftCount, changes_by_field
from marketdata.store import arrays
from marketdata.store.batches import Batch
from marketdata.store.connection import Driver
from marketdata.store.observed import Decision, Int32s, Observed, Replaced, replaced
from marketdata.store.rows import KEYS
from marketdata.store.series_table import LockedSeries, inside
from marketdata.types import COLUMNS, REVISION_STAGE, Bools, Int64s

_OLD: Final = ", ".join(f"o{n}" for n in range(len(COLUMNS)))
_NEW: Final = ", ".join(f"n{n}" for n in range(len(COLUMNS)))
_WRITE: Final = f"""
INSERT INTO bar_revisions (symbol, timeframe, provider, feed, "timestamp", new_revision,
                           old_revision, old_stage, old_values, new_values)
SELECT k.symbol, k.timeframe, k.provider, k.feed, i."timestamp", i.new_revision, i.old_revision,
       i.old_stage, CASE WHEN NOT i.old_absent THEN ARRAY[{_OLD}] END,
       CASE WHEN NOT i.new_absent THEN ARRAY[{_NEW}] END
FROM {KEYS}
JOIN unnest(%(n)s::integer[], %(timestamp)s::timestamptz[], %(new_revision)s::bigint[],
            %(old_revision)s::bigint[], %(old_stage)s::integer[], %(old_absent)s::boolean[],
            %(new_absent)s::boolean[],
            {", ".join(f"%(o{n})s::double precision[]" for n in range(len(COLUMNS)))},
            {", ".join(f"%(n{n})s::double precision[]" for n in range(len(COLUMNS)))})
    AS i (n, "timestamp", new_revision, old_revision, old_stage, old_absent, new_absent,
          {_OLD}, {_NEW}) USING (n)
ORDER BY k.n, i."timestamp"
ON CONFLICT DO NOTHING
"""
_UNTRAILED: Final = f"""
UPDATE series AS s SET untrailed_until = greatest(s.untrailed_until, i.until)
FROM {KEYS} JOIN unnest(%(n)s::integer[], %(until)s::timestamptz[]) AS i (n, until) USING (n)
WHERE (s.provider, s.feed, s.symbol, s.timeframe) = (k.provider, k.feed, k.symbol, k.timeframe)
"""
_ARRIVED: Final = f"""
INSERT INTO bar_arrivals AS t (symbol, timeframe, provider, feed, first_bar, last_bar, observed_at)
SELECT k.symbol, k.timeframe, k.provider, k.feed, i.first_bar, i.last_bar, i.observed_at
FROM {KEYS}
JOIN unnest(%(n)s::integer[], %(first)s::timestamptz[], %(last)s::timestamptz[],
            %(observed)s::timestamptz[]) AS i (n, first_bar, last_bar, observed_at) USING (n)
ORDER BY k.n, i.first_bar
ON CONFLICT (symbol, timeframe, provider, feed, first_bar) DO UPDATE
    SET last_bar = greatest(t.last_bar, excluded.last_bar), observed_at = excluded.observed_at
"""
_SLOTS: Final = 16
_COUNT: Final = f"""
INSERT INTO drift_counters AS t (provider, feed, timeframe, stage, field, slot, bars, largest)
SELECT i.*, pg_backend_pid() %% {_SLOTS}, c.bars, c.largest
FROM unnest(%(provider)s::text[], %(feed)s::text[], %(timeframe)s::text[], %(stage)s::text[],
            %(field)s::text[], %(bars)s::bigint[], %(largest)s::double precision[])
    AS c (provider, feed, timeframe, stage, field, bars, largest)
CROSS JOIN LATERAL (SELECT c.provider, c.feed, c.timeframe, c.stage, c.field) AS i
ORDER BY 1, 2, 3, 4, 5
ON CONFLICT (provider, feed, timeframe, stage, field, slot) DO UPDATE
    SET bars = t.bars + excluded.bars, largest = greatest(t.largest, excluded.largest),
        updated_at = excluded.updated_at
"""


class History:
    """What one writing transaction replaces.

    Parameters
    ----------
    kept : collection of str, optional
        Symbols whose trail is kept; None for all.
    """

    def __init__(
        self,
        raw: Driver,
        batch: Batch,
        locked: LockedSeries,
        kept: Collection[str] | None,
    ) -> None:
        self._raw = raw
        self._keys = keys = batch.keys
        self._locked = locked
        self._kept = np.array([False] + [kept is None or key.symbol in kept for key in keys])
        self._punctual = np.array([0] + [punctual_until(key.timeframe) for key in keys], np.int64)
        self._punctual[1:] += batch.delays
        self._found: list[Replaced] = []
        self._late: list[Observed] = []

    def note(self, new: Observed, stored: Observed, decision: Decision) -> None:
        """Note what a decision replaces, and what it stores for the first time but late."""
        found = replaced(new, stored, decision)
        if len(found.new):
            self._found.append(found)
        fresh = decision.changes & ~decision.known
        if not fresh.any():
            return
        at = new.number - 1
        doubtful = fresh & (new.timestamp < self._locked.covered_until[at])
        if doubtful.any():
            appeared = self._appeared(new, doubtful)
            if appeared.any():
                self._found.append(_from_nothing(new.take(appeared)))
                fresh &= ~appeared
        late = fresh & (observed_us(new.revision) - new.timestamp > self._punctual[new.number])
        if late.any():
            self._note_late(new, late)

    def _appeared(self, new: Observed, doubtful: Bools) -> Bools:
        """Return which of the doubtful bars an earlier answer covered without having them."""
        numbers = np.unique(new.number[doubtful]).tolist()
        self._locked.load(numbers)
        found = np.zeros(len(new), np.bool_)
        for number in numbers:
            low, high = np.searchsorted(new.number, (number, number + 1))
            own = slice(int(low), int(high))
            found[own] = inside(new.timestamp[own], self._locked[number].coverage)
        return found & doubtful

    def _note_late(self, new: Observed, late: Bools) -> None:
        """Note the first and the last bar of each stretch that came late as a whole."""
        at = np.flatnonzero(late)
        observed = new.revision[at] % REVISION_STAGE
        apart = (np.diff(at) > 1) | (np.diff(new.number[at]) > 0) | (np.diff(observed) != 0)
        first = at[np.append(True, apart)]
        last = at[np.append(apart, True)]
        self._late += [new.take(first), new.take(last)]

    def store(self) -> None:
        """Write what was noted; nothing where that is nothing."""
        if self._late:
            self._store_arrivals()
        if not self._found:
            return
        new = Observed.join([found.new for found in self._found])
        old = Observed.join([found.old for found in self._found])
        order = np.lexsort((new.timestamp, new.number))
        new, old = new.take(order), old.take(order)
        held = self._locked.stages(new.number, new.timestamp)
        stages = np.maximum(held, old.revision // REVISION_STAGE)
        kept = self._kept[new.number]
        self._write(new.take(kept), old.take(kept), stages[kept])
        self._mark_untrailed(new.take(~kept))
        self._count(new, old, stages)

    def _numbered(self, number: Int32s) -> dict[str, Any]:
        """Return the keys of some series and a number for each of theirs, as parameters."""
        owners, places = np.unique(number, return_inverse=True)
        keys = [self._keys[owner - 1] for owner in owners.tolist()]
        return {**arrays.key_arrays(keys), "n": arrays.ints(places + 1)}

    def _write(self, new: Observed, old: Observed, old_stages: Int64s) -> None:
        if not len(new):
            return
        parameters: dict[str, Any] = {
            **self._numbered(new.number),
            **{f"o{n}": arrays.doubles(column) for n, column in enumerate(old.values)},
            **{f"n{n}": arrays.doubles(column) for n, column in enumerate(new.values)},
            "timestamp": arrays.instants(new.timestamp),
            "new_revision": arrays.bigints(new.revision),
            "old_revision": arrays.bigints(old.revision),
            "old_stage": arrays.ints(old_stages),
            "old_absent": arrays.booleans(old.withdrawn),
            "new_absent": arrays.booleans(new.withdrawn),
        }
        self._raw.execute(_WRITE, parameters)

    def _mark_untrailed(self, new: Observed) -> None:
        if not len(new):
            return
        low = np.flatnonzero(np.diff(new.number, prepend=0))
        until = np.maximum.reduceat(observed_us(new.revision), low)
        parameters: dict[str, Any] = {
            **self._numbered(new.number[low]),
            "until": arrays.instants(until),
        }
        self._raw.execute(_UNTRAILED, parameters)

    def _store_arrivals(self) -> None:
        first = Observed.join(self._late[::2])
        last = Observed.join(self._late[1::2])
        parameters: dict[str, Any] = {
            **self._numbered(first.number),
            "first": arrays.instants(first.timestamp),
            "last": arrays.instants(last.timestamp),
            "observed": arrays.instants(observed_us(first.revision)),
        }
        self._raw.execute(_ARRIVED, parameters)

    # ------------------------------------------------------------------------------ counting

    def _count(self, new: Observed, old: Observed, old_stages: Int64s) -> None:
        counts = list(self._counted(new, old, old_stages))
        columns = list(zip(*counts, strict=True))
        names = ("provider", "feed", "timeframe", "stage", "field")
        parameters: dict[str, Any] = {
            name: arrays.texts(map(str, column))
            for name, column in zip(names, columns, strict=False)
        }
        parameters["bars"] = arrays.bigints(np.array(columns[5], np.int64))
        parameters["largest"] = arrays.doubles(np.array(columns[6], np.float64))
        self._raw.execute(_COUNT, parameters)

    def _counted(self, new: Observed, old: Observed, old_stages: Int64s) -> Iterator[DriftCount]:
        """Yield the counts of each kind of series and pair of stages, in order."""
        owners, places = np.unique(new.number, return_inverse=True)
        keys = [self._keys[owner - 1] for owner in owners.tolist()]
        groups = [(key.provider, key.feed, key.timeframe.value) for key in keys]
        known = {group: place for place, group in enumerate(sorted(set(groups)))}
        group = np.array([known[each] for each in groups])[places]
        stages = new.revision // REVISION_STAGE
        kinds = (group * 16 + old_stages * 4 + stages).astype(np.int64)
        names = list(known)
        for kind in np.unique(kinds).tolist():
            of = kinds == kind
            where, before, after = kind // 16, kind // 4 % 4, kind % 4
            stage = f"{state_of(before)}->{state_of(after, before)}"
            found = changes_by_field(
                old.values[:, of], new.values[:, of], old.withdrawn[of], new.withdrawn[of],
                old.revision[of] % REVISION_STAGE == 0,
            )  # fmt: skip
            for name, (bars, largest) in found.items():
                provider, feed, timeframe = names[where]
                yield DriftCount(provider, feed, timeframe, stage, name, bars, largest)


def _from_nothing(new: Observed) -> Replaced:
    """Return bars as replacing the observation that there was none."""
    count = len(new)
    old = Observed(
        new.number,
        new.timestamp,
        np.full((len(COLUMNS), count), np.nan),
        np.zeros(count, np.int64),
        np.ones(count, np.bool_),
    )
    return Replaced(new, old)
