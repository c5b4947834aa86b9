"""The table `series` inside a writing transaction: rows locked in the order of their keys, so that
writers of one series follow each other and two writers of many cannot deadlock; then updated.
"""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from marketdata.spans import Span
from marketdata.store import arrays
from marketdata.store.arrays import LONG_AGO, NEVER
from marketdata.store.batches import Batch
from marketdata.store.connection import Driver
from marketdata.store.observed import Int32s, Observed
from marketdata.store.rows import KEYS, OF_ONE, fields_of
from marketdata.store.wire import POSTGRES_EPOCH
from marketdata.types import Bools, Int64s, SeriesKey, Stage

_SPANS: Final = "s.coverage, s.unsettled, s.final, s.sealed, s.pinned"
_LOCK_ONE: Final = (
    f"SELECT {_SPANS}, s.corrections FROM series AS s WHERE {OF_ONE} FOR NO KEY UPDATE"
)
# One packed row for all series, as in `rows`.
_LOCK: Final = f"""
WITH locked AS MATERIALIZED (
    SELECT k.n::integer AS n, s.first_bar, s.last_bar, upper(s.sealed) AS sealed_until,
           upper(s.coverage) AS covered_until, s.tombstones
    FROM {KEYS} JOIN series AS s USING (provider, feed, symbol, timeframe)
    ORDER BY k.n FOR NO KEY UPDATE OF s)
SELECT string_agg(int4send(n), NULL),
       string_agg(timestamptz_send(coalesce(first_bar, 'infinity')), NULL),
       string_agg(timestamptz_send(coalesce(last_bar, '-infinity')), NULL),
       string_agg(timestamptz_send(coalesce(sealed_until, '-infinity')), NULL),
       string_agg(timestamptz_send(coalesce(covered_until, '-infinity')), NULL),
       string_agg(int4send(tombstones), NULL)
FROM locked
"""
_NEW_SERIES: Final = f"""
INSERT INTO series (provider, feed, symbol, timeframe)
SELECT k.provider, k.feed, k.symbol, k.timeframe FROM {KEYS} ORDER BY k.n
ON CONFLICT DO NOTHING
"""
_DETAILS: Final = f"""
SELECT k.n, {_SPANS}, s.corrections
FROM {KEYS} JOIN series AS s USING (provider, feed, symbol, timeframe)
"""
# What is covered for the first time is unsettled until a commit settles it; an answer that comes
# late, observed before the corrections, unsettles nothing: its bars lose to the revised ones.
_SPANS_OF: Final = """(
    SELECT n, spans::tstzmultirange FROM unnest(%({0})s::text[]) WITH ORDINALITY AS v (spans, n)
    ) AS {0} ON {0}.n = v.{0}_at"""
_UPDATE: Final = f"""
UPDATE series AS s
SET coverage = s.coverage + u.covered,
    revision = s.revision + (u.changed OR NOT s.coverage @> u.covered)::integer,
    unsettled = s.unsettled + (u.covered - s.coverage) - u.settled,
    final = s.final + u.final,
    sealed = s.sealed + u.sealed,
    first_bar = least(s.first_bar, nullif(u.first_bar, 'infinity')),
    last_bar = greatest(s.last_bar, nullif(u.last_bar, '-infinity')),
    first_row = least(s.first_row, nullif(u.first_row, 'infinity')),
    last_row = greatest(s.last_row, nullif(u.last_row, '-infinity')),
    bar_count = s.bar_count + u.added,
    sealed_count = s.sealed_count + u.added_sealed,
    last_fetched_at = greatest(s.last_fetched_at, u.observed)
FROM (SELECT k.provider, k.feed, k.symbol, k.timeframe, k.n, covered.spans AS covered,
             settled.spans AS settled, final.spans AS final, sealed.spans AS sealed,
             v.first_bar, v.last_bar, v.first_row, v.last_row, v.observed, v.added, v.added_sealed,
             v.changed
      FROM {KEYS}
      JOIN unnest(%(covered_at)s::integer[], %(settled_at)s::integer[], %(final_at)s::integer[],
                  %(sealed_at)s::integer[], %(first_bar)s::timestamptz[],
                  %(last_bar)s::timestamptz[], %(first_row)s::timestamptz[],
                  %(last_row)s::timestamptz[], %(observed)s::timestamptz[], %(added)s::bigint[],
                  %(added_sealed)s::bigint[], %(changed)s::boolean[])
           WITH ORDINALITY AS v (covered_at, settled_at, final_at, sealed_at, first_bar, last_bar,
                                 first_row, last_row, observed, added, added_sealed, changed, n)
           USING (n)
      {" ".join(f"JOIN {_SPANS_OF.format(name)}" for name in ("covered", "settled", "final", "sealed"))}
     ) AS u
WHERE (s.provider, s.feed, s.symbol, s.timeframe) = (u.provider, u.feed, u.symbol, u.timeframe)
RETURNING u.n, s.revision
"""
_REVISIONS: Final = f"""
WITH updated AS ({_UPDATE})
SELECT string_agg(int4send(n::integer), NULL), string_agg(int8send(revision), NULL) FROM updated
"""


class SeriesRow(NamedTuple):
    """The row of one series, which nobody else can change before our transaction ends."""

    coverage: list[Span]
    unsettled: list[Span]
    final: list[Span]
    sealed: list[Span]
    pinned: list[Span]
    corrections: int

    def stages(self, timestamp: Int64s) -> Int64s:
        """Return for each timestamp the stage at which the span around it is held."""
        stage = np.full(len(timestamp), int(Stage.CLOSED), np.int64)
        stage[inside(timestamp, self.coverage) & ~inside(timestamp, self.unsettled)] = Stage.REVISED
        stage[inside(timestamp, self.final)] = Stage.FINAL
        return stage


def inside(timestamp: Int64s, spans: Sequence[Span]) -> Bools:
    """Return which timestamps lie in a normal list of spans."""
    if not spans:
        return np.zeros(len(timestamp), np.bool_)
    edges = np.array(spans, np.int64).ravel()
    return np.asarray(np.searchsorted(edges, timestamp, side="right") % 2 == 1, np.bool_)


def lock_one(raw: Driver, key: SeriesKey) -> SeriesRow | None:
    """Lock the row of one series and return it, or None where there is none."""
    row = raw.execute(_LOCK_ONE, fields_of(key), binary=True).fetchone()
    return None if row is None else SeriesRow(*row)


class LockedSeries:
    """The rows of a batch, locked: what every commit needs at once, the rest when asked for.

    Attributes
    ----------
    first_bar, last_bar, sealed_until, covered_until : ndarray of int64
        By place of the series, number - 1; `NEVER`, and `LONG_AGO` for all but the first, where
        there is nothing.
    tombstones : ndarray of int64
    """

    def __init__(self, raw: Driver, keys: Sequence[SeriesKey]) -> None:
        self._raw = raw
        self._keys = keys
        self._rows: dict[int, SeriesRow] = {}
        columns = arrays.key_arrays(keys)
        row = raw.execute(_LOCK, columns, binary=True).fetchone()
        if row is None or len(row[0] or b"") < 4 * len(keys):
            raw.execute(_NEW_SERIES, columns)
            row = raw.execute(_LOCK, columns, binary=True).fetchone()
        assert row is not None
        _, first, last, sealed, covered, tombstones = row
        self.first_bar = _instants(first)
        self.last_bar = _instants(last)
        self.sealed_until = _instants(sealed)
        self.covered_until = _instants(covered)
        self.tombstones = np.frombuffer(tombstones, ">i4").astype(np.int64)

    def __getitem__(self, number: int) -> SeriesRow:
        """Return the whole row of one series."""
        if number not in self._rows:
            self.load([number])
        return self._rows[number]

    def load(self, numbers: Iterable[int]) -> None:
        """Fetch the whole rows of several series at once."""
        wanted = [number for number in numbers if number not in self._rows]
        if wanted:
            columns = arrays.key_arrays([self._keys[number - 1] for number in wanted])
            for place, *fields in self._raw.execute(_DETAILS, columns, binary=True):
                self._rows[wanted[place - 1]] = SeriesRow(*fields)

    def stages(self, number: Int32s, timestamp: Int64s) -> Int64s:
        """Return for bars, sorted by series, the stages at which the spans around them are held."""
        low = np.flatnonzero(np.diff(number, prepend=0))
        owners = number[low].tolist()
        self.load(owners)
        found = np.empty(len(number), np.int64)
        for owner, start, end in zip(owners, low.tolist(), [*low[1:].tolist(), None], strict=True):
            found[start:end] = self._rows[owner].stages(timestamp[start:end])
        return found


def _instants(data: bytes) -> Int64s:
    found = np.frombuffer(data, ">i8").astype(np.int64)
    finite = (found != NEVER) & (found != LONG_AGO)
    found[finite] += POSTGRES_EPOCH
    return found


@dataclass(slots=True)
class Changes:
    """What one transaction adds to its series; arrays are by place, number - 1."""

    added: Int64s
    added_sealed: Int64s
    changed: Bools
    first_bar: Int64s
    last_bar: Int64s
    first_row: Int64s
    last_row: Int64s
    sealed: dict[int, list[Span]] = field(default_factory=dict)
    """By number."""

    @classmethod
    def none(cls, count: int) -> Changes:
        def ends(value: int) -> Int64s:
            return np.full(count, value, np.int64)

        return cls(
            ends(0), ends(0), np.zeros(count, np.bool_),
            ends(NEVER), ends(LONG_AGO), ends(NEVER), ends(LONG_AGO),
        )  # fmt: skip

    def note_bars(self, written: Observed, *, rows: bool) -> None:
        """Note where bars were written, and whether they are rows."""
        if not len(written):
            return
        low = np.flatnonzero(np.diff(written.number, prepend=0))
        high = np.append(low[1:], len(written)) - 1
        at = written.number[low] - 1
        first, last = written.timestamp[low], written.timestamp[high]
        self.first_bar[at] = np.minimum(self.first_bar[at], first)
        self.last_bar[at] = np.maximum(self.last_bar[at], last)
        if rows:
            self.first_row[at] = np.minimum(self.first_row[at], first)
            self.last_row[at] = np.maximum(self.last_row[at], last)


def update(raw: Driver, batch: Batch, changes: Changes) -> dict[SeriesKey, int]:
    """Apply what a batch says and what came of it to its series, which are locked; return the new
    revisions."""
    sealed = [changes.sealed.get(n, ()) for n in range(1, len(batch.keys) + 1)]
    parameters: dict[str, Any] = {
        **arrays.key_arrays(batch.keys),
        **_distinct("covered", batch.covered),
        **_distinct("settled", batch.settled),
        **_distinct("final", batch.final),
        **_distinct("sealed", sealed),
        **{
            name: arrays.instants(getattr(changes, name))
            for name in ("first_bar", "last_bar", "first_row", "last_row")
        },
        "observed": arrays.instants(batch.observed),
        "added": arrays.bigints(changes.added),
        "added_sealed": arrays.bigints(changes.added_sealed),
        "changed": arrays.booleans(changes.changed),
    }
    row = raw.execute(_REVISIONS, parameters, binary=True).fetchone()
    assert row is not None
    numbers = np.frombuffer(row[0], ">i4").tolist()
    revisions = np.frombuffer(row[1], ">i8").tolist()
    return {batch.keys[n - 1]: revision for n, revision in zip(numbers, revisions, strict=True)}


def _distinct(name: str, columns: Sequence[Sequence[Span]]) -> dict[str, Any]:
    """Return the distinct lists of spans, and for each series which of them it has, from 1."""
    known: dict[tuple[Span, ...], int] = {}
    places = [known.setdefault(tuple(spans), len(known) + 1) for spans in columns]
    return {name: arrays.multiranges(list(known)), f"{name}_at": arrays.ints(places)}
