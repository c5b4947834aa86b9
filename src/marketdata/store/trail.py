"""Reading and cutting what `history` keeps: trail, late arrivals, drift counters, tombstones."""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marketdata.bar_history import Arrivals, Trail, TrailEntries
from marketdata.clock import from_micros
from marketdata.drift import DriftCount, Tombstone, TrailLength
from marketdata.protocols import ReadRequest
from marketdata.spans import Span
from marketdata.store import arrays
from marketdata.store.connection import Database, Driver, driver
from marketdata.store.rows import KEYS
from marketdata.store.wire import POSTGRES_EPOCH, key_of
from marketdata.types import COLUMNS, REVISION_STAGE, Bools, Int64s, SeriesKey

_SPANS: Final = f"""
{KEYS} JOIN unnest(%(n)s::integer[], %(start)s::timestamptz[], %(end)s::timestamptz[])
    AS r (n, starts, ends) USING (n)
"""
_HERE: Final = """t.symbol = k.symbol AND t.timeframe = k.timeframe AND t.provider = k.provider
    AND t.feed = k.feed"""
_NONE: Final = "'{" + ",".join(["NaN"] * len(COLUMNS)) + "}'::double precision[]"
# One packed row, as in `rows`. The primary key gives each bar's entries together: no sort.
_ENTRIES: Final = f"""
SELECT string_agg(int4send(e.n), NULL),
       string_agg(timestamptz_send(e."timestamp"), NULL),
       string_agg(int8send(e.new_revision), NULL),
       string_agg(int8send(e.old_revision), NULL),
       string_agg(int4send(e.old_stage), NULL),
       string_agg(boolsend(e.old_values IS NULL), NULL),
       string_agg(boolsend(e.new_values IS NULL), NULL),
       string_agg(array_send(coalesce(e.old_values, {_NONE})), NULL),
       string_agg(array_send(coalesce(e.new_values, {_NONE})), NULL)
FROM (
    SELECT k.n::integer AS n, t.*,
           max(t.new_revision %% {REVISION_STAGE})
               OVER (PARTITION BY k.n, t."timestamp") AS newest
    FROM {_SPANS} JOIN bar_revisions AS t
        ON {_HERE} AND t."timestamp" >= r.starts AND t."timestamp" < r.ends) AS e
WHERE e.newest > %(after)s
"""
_ARRIVALS: Final = f"""
SELECT k.n, t.first_bar, t.last_bar, t.observed_at
FROM {_SPANS} JOIN bar_arrivals AS t
    ON {_HERE} AND t.first_bar < r.ends AND t.last_bar >= r.starts
WHERE t.observed_at > %(since)s
ORDER BY k.n, t.first_bar
"""
_UNTRAILED: Final = f"""
SELECT k.n, t.untrailed_until FROM {KEYS} JOIN series AS t ON {_HERE}
WHERE t.untrailed_until IS NOT NULL
"""
_FORGET_ENTRIES: Final = f"""
DELETE FROM bar_revisions AS t USING {_SPANS}
WHERE {_HERE} AND t."timestamp" >= r.starts AND t."timestamp" < r.ends
"""
_FORGET_ARRIVALS: Final = f"""
DELETE FROM bar_arrivals AS t USING {_SPANS}
WHERE {_HERE} AND t.first_bar >= r.starts AND t.last_bar < r.ends
"""
_UNKNOWN_BEFORE: Final = f"""
UPDATE series AS t SET untrailed_until = greatest(t.untrailed_until, t.last_fetched_at)
FROM {KEYS} WHERE {_HERE}
"""
COUNTS: Final = """
SELECT provider, feed, timeframe, stage, field, sum(bars)::bigint, max(largest)
FROM drift_counters GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
"""
_TOMBSTONES: Final = """
SELECT provider, feed, symbol, timeframe, "timestamp", revision FROM bar_corrections
WHERE withdrawn AND provider = %(provider)s AND feed = %(feed)s
  AND (%(symbols)s::text[] IS NULL OR symbol = ANY (%(symbols)s))
  AND "timestamp" >= %(start)s AND "timestamp" < %(end)s
ORDER BY symbol, timeframe, "timestamp"
"""
_CHANGED: Final = """
SELECT provider, feed, symbol, timeframe, count(*), count(DISTINCT "timestamp"),
       max(new_revision %% 10000000000000) FROM bar_revisions
WHERE provider = %(provider)s AND feed = %(feed)s
  AND (%(symbols)s::text[] IS NULL OR symbol = ANY (%(symbols)s))
  AND "timestamp" >= %(start)s AND "timestamp" < %(end)s
GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 3, 4
"""
_VALUES: Final = np.dtype(
    [("head", "V20")]
    + [part for name in COLUMNS for part in ((f"{name}:length", ">i4"), (name, ">f8"))]
)
"""``array_send`` of seven float8 without NULL: dimensions, flags, type, length and lower bound;
each element with its length. Source: ``array_send`` of PostgreSQL."""


class PostgresTrail:
    """Reads the past of stored bars. Every method may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(
        self, requests: Sequence[ReadRequest], after_us: int | None = None
    ) -> dict[SeriesKey, Trail]:
        """See `BarStore.trail`."""
        if not requests:
            return {}
        return self._database.run(lambda c: _read(driver(c), requests, after_us), snapshot=True)

    def counts(self) -> list[DriftCount]:
        """Return how many bars changed so far, by kind of series, stage and field."""
        rows = self._database.run(lambda c: driver(c).execute(COUNTS).fetchall(), snapshot=True)
        return [DriftCount(*row) for row in rows]

    def tombstones(
        self, provider: str, feed: str, symbols: Sequence[str] | None, span: Span
    ) -> list[Tombstone]:
        """Return the withdrawn bars labelled in `span`, of `symbols` or of all, sorted."""
        parameters = _of(provider, feed, symbols, span)
        rows = self._database.run(
            lambda c: driver(c).execute(_TOMBSTONES, parameters, binary=True).fetchall(),
            snapshot=True,
        )
        return [Tombstone(key_of(r[:4]), r[4], r[5] % REVISION_STAGE * 1000) for r in rows]

    def lengths(
        self, provider: str, feed: str, symbols: Sequence[str] | None, span: Span
    ) -> list[TrailLength]:
        """Return how often bars labelled in `span` were replaced, the busiest series first."""
        parameters = _of(provider, feed, symbols, span)
        rows = self._database.run(
            lambda c: driver(c).execute(_CHANGED, parameters).fetchall(), snapshot=True
        )
        return [TrailLength(key_of(r[:4]), r[4], r[5], r[6] * 1000) for r in rows]


def _of(provider: str, feed: str, symbols: Sequence[str] | None, span: Span) -> dict[str, Any]:
    return {
        "provider": provider,
        "feed": feed,
        "symbols": None if symbols is None else list(symbols),
        "start": from_micros(span.start),
        "end": from_micros(span.end),
    }


def forget(
    raw: Driver,
    key: SeriesKey,
    spans: Sequence[Span],
    *,
    known: bool = True,
) -> None:
    """Delete the past of a series inside `spans`; the caller holds its lock.

    Parameters
    ----------
    known : bool
        Whether it is known what is deleted: a damaged chunk may have held anything, so that after
        it the trail counts as kept from now on.
    """
    parameters = _parameters([key], {1: spans})
    raw.execute(_FORGET_ENTRIES, parameters)
    raw.execute(_FORGET_ARRIVALS, parameters)
    if not known:
        raw.execute(_UNKNOWN_BEFORE, arrays.key_arrays([key]))


def _parameters(keys: Sequence[SeriesKey], spans: Mapping[int, Sequence[Span]]) -> dict[str, Any]:
    pieces = [(number, span) for number, own in spans.items() for span in own]
    return {
        **arrays.key_arrays(keys),
        "n": arrays.ints([number for number, _ in pieces]),
        "start": arrays.instants([span.start for _, span in pieces]),
        "end": arrays.instants([span.end for _, span in pieces]),
    }


def _read(
    raw: Driver, requests: Sequence[ReadRequest], after_us: int | None
) -> dict[SeriesKey, Trail]:
    keys = [request.key for request in requests]
    parameters = _parameters(keys, {n: [r.span] for n, r in enumerate(requests, start=1)})
    parameters["after"] = -1 if after_us is None else after_us // 1000
    parameters["since"] = from_micros(0 if after_us is None else after_us)
    row = raw.execute(_ENTRIES, parameters, binary=True).fetchone()
    assert row is not None
    numbers, entries = _unpacked(row)
    arrivals = raw.execute(_ARRIVALS, parameters, binary=True).fetchall()
    marks: dict[int, int] = dict(raw.execute(_UNTRAILED, parameters, binary=True).fetchall())
    came = np.array(arrivals, np.int64).reshape(-1, 4).T
    found = {}
    for number, key in enumerate(keys, start=1):
        own = came[:, came[0] == number]
        found[key] = Trail(
            entries if len(keys) == 1 else entries.take(numbers == number),
            Arrivals(own[1], own[2], own[3]),
            marks.get(number),
        )
    return found


def _unpacked(row: Sequence[bytes | None]) -> tuple[NDArray[np.int32], TrailEntries]:
    if row[0] is None:
        return np.empty(0, np.int32), TrailEntries.empty()
    numbers, stamps, new, old, stages, old_absent, new_absent, old_values, new_values = (
        part or b"" for part in row
    )

    def wide(data: bytes, kind: str = ">i8") -> Int64s:
        return np.frombuffer(data, kind).astype(np.int64)

    def flags(data: bytes) -> Bools:
        return np.frombuffer(data, np.bool_).copy()

    def values(data: bytes) -> NDArray[np.float64]:
        found = np.frombuffer(data, _VALUES)
        return np.array([found[name] for name in COLUMNS], np.float64)

    number = np.frombuffer(numbers, ">i4").astype(np.int32)
    entries = TrailEntries(
        wide(stamps) + POSTGRES_EPOCH,
        wide(new),
        wide(old),
        wide(stages, ">i4"),
        values(old_values),
        values(new_values),
        flags(old_absent),
        flags(new_absent),
    )
    order = np.lexsort((entries.new_revision, entries.timestamp, number))
    return number[order], entries.take(order)
