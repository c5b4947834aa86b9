"""Rows of `market_data_bars` inside a writing transaction: read, upserted and deleted in columns.

The caller holds the locks of the series concerned.
"""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from marketdata.clock import from_micros
from marketdata.errors import StoreError
from marketdata.spans import Span
from marketdata.store import arrays
from marketdata.store.connection import Driver
from marketdata.store.observed import Int32s, Observed
from marketdata.store.wire import bars_from_blocks, incoming_rows
from marketdata.types import COLUMNS, REVISION_STAGE, Bools, Int64s, SeriesKey

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
_STAGE_EMPTY: Final = "DELETE FROM pg_temp.incoming_bars"

KEYS: Final = """unnest(%(provider)s::text[], %(feed)s::text[], %(symbol)s::text[],
    %(timeframe)s::text[]) WITH ORDINALITY AS k (provider, feed, symbol, timeframe, n)"""

OF_ONE: Final = (
    "(provider, feed, symbol, timeframe) = (%(provider)s, %(feed)s, %(symbol)s, %(timeframe)s)"
)
"""For `fields_of`."""

_VALUES: Final = ", ".join(COLUMNS)
_DIFFERS: Final = (
    f"({', '.join('excluded.' + c for c in COLUMNS)})"
    f" IS DISTINCT FROM ({', '.join('t.' + c for c in COLUMNS)})"
)
# What to write is decided already; the guard stands behind that decision.
_UPSERT: Final = f"""
INSERT INTO market_data_bars AS t
    (symbol, timeframe, "timestamp", {_VALUES}, provider, feed, revision)
SELECT k.symbol, k.timeframe, i."timestamp", i.open, i.high, i.low, i.close, i.volume,
       nullif(i.vwap, 'NaN'), nullif(i.trade_count, 'NaN'), k.provider, k.feed, i.revision
FROM pg_temp.incoming_bars AS i JOIN {KEYS} USING (n)
ORDER BY i.n, i."timestamp"
ON CONFLICT (symbol, timeframe, "timestamp", provider, feed) DO UPDATE
    SET {", ".join(f"{c} = excluded.{c}" for c in COLUMNS)}, revision = excluded.revision
    WHERE excluded.revision > t.revision
      AND (excluded.revision / {REVISION_STAGE} <> t.revision / {REVISION_STAGE} OR {_DIFFERS})
"""

# One packed row for all, as in `reading`; OFFSET 0 keeps the planner from joining in another way
# than series by series along the primary key.
_READ: Final = """
SELECT string_agg(int4send(r.n), NULL),
       string_agg(timestamptz_send(b."timestamp"), NULL),
       string_agg(lseg_send(lseg(point(b.open, b.high), point(b.low, b.close))), NULL),
       string_agg(circle_send(circle(point(b.volume, b.vwap), b.trade_count)), NULL),
       string_agg(int8send(b.revision), NULL)
FROM unnest(%(n)s::integer[], %(symbol)s::text[], %(start)s::timestamptz[],
            %(end)s::timestamptz[]) AS r (n, symbol, starts, ends)
CROSS JOIN LATERAL (
    SELECT "timestamp", open, high, low, close, volume, coalesce(vwap, 'NaN') AS vwap,
           coalesce(trade_count, 'NaN') AS trade_count, revision
    FROM market_data_bars
    WHERE symbol = r.symbol AND timeframe = %(timeframe)s
      AND provider = %(provider)s AND feed = %(feed)s
      AND "timestamp" >= r.starts AND "timestamp" < r.ends
      AND "timestamp" >= %(first)s AND "timestamp" < %(last)s
    OFFSET 0) AS b
"""
_ALONG_THE_KEY: Final = """
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off
"""
_ANY_WAY: Final = """
SET LOCAL enable_seqscan = on; SET LOCAL enable_bitmapscan = on; SET LOCAL enable_hashjoin = on;
SET LOCAL enable_mergejoin = on
"""
_DELETE_SPAN: Final = """
DELETE FROM market_data_bars
WHERE symbol = %(symbol)s AND timeframe = %(timeframe)s AND provider = %(provider)s
  AND feed = %(feed)s AND "timestamp" >= %(start)s AND "timestamp" < %(end)s
"""
_DELETE_LABELS: Final = f"""
DELETE FROM market_data_bars AS b
USING {KEYS} JOIN unnest(%(n)s::integer[], %(label)s::timestamptz[]) AS gone (n, label) USING (n)
WHERE b.symbol = k.symbol AND b.timeframe = k.timeframe AND b.provider = k.provider
  AND b.feed = k.feed AND b."timestamp" = gone.label
"""
_ENDS: Final = f"""
UPDATE series AS s SET first_row = e.first_row, last_row = e.last_row
FROM (
    SELECT k.provider, k.feed, k.symbol, k.timeframe, lowest.label AS first_row,
           highest.label AS last_row
    FROM {KEYS}
    LEFT JOIN LATERAL (
        SELECT "timestamp" AS label FROM market_data_bars AS b
        WHERE b.symbol = k.symbol AND b.timeframe = k.timeframe AND b.provider = k.provider
          AND b.feed = k.feed ORDER BY "timestamp" LIMIT 1) AS lowest ON true
    LEFT JOIN LATERAL (
        SELECT "timestamp" AS label FROM market_data_bars AS b
        WHERE b.symbol = k.symbol AND b.timeframe = k.timeframe AND b.provider = k.provider
          AND b.feed = k.feed ORDER BY "timestamp" DESC LIMIT 1) AS highest ON true) AS e
WHERE (s.provider, s.feed, s.symbol, s.timeframe) = (e.provider, e.feed, e.symbol, e.timeframe)
"""


class Stretches(NamedTuple):
    """Spans of series, as columns."""

    number: Int32s
    """Numbers of series, counted from 1."""
    start: Int64s
    end: Int64s

    @classmethod
    def of(cls, spans: Mapping[int, Sequence[Span]]) -> Stretches:
        pieces = [(number, *span) for number, own in spans.items() for span in own]
        columns = np.array(pieces, np.int64).reshape(-1, 3).T
        return cls(columns[0].astype(np.int32), columns[1], columns[2])

    def take(self, chosen: Bools) -> Stretches:
        return Stretches(self.number[chosen], self.start[chosen], self.end[chosen])


def read(raw: Driver, keys: Sequence[SeriesKey], stretches: Stretches) -> Observed:
    """Return the rows of series in the spans given."""
    if not len(stretches.number):
        return Observed.empty()
    groups = [(key.provider, key.feed, key.timeframe.value) for key in keys]
    known = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    raw.execute(_ALONG_THE_KEY)
    parts = []
    if len(known) == 1:
        parts.append(_read_group(raw, keys, groups[0], stretches))
    else:
        places = np.array([known[group] for group in groups])[stretches.number - 1]
        for group, place in known.items():
            own = stretches.take(places == place)
            if len(own.number):
                parts.append(_read_group(raw, keys, group, own))
    raw.execute(_ANY_WAY)
    return Observed.join(parts).newest_of_each()


def _read_group(
    raw: Driver,
    keys: Sequence[SeriesKey],
    group: tuple[str, str, str],
    stretches: Stretches,
) -> Observed:
    provider, feed, timeframe = group
    row = raw.execute(
        _READ,
        {
            "n": arrays.ints(stretches.number),
            "symbol": arrays.texts(keys[n - 1].symbol for n in stretches.number.tolist()),
            "start": arrays.instants(stretches.start),
            "end": arrays.instants(stretches.end),
            "first": from_micros(int(stretches.start.min())),
            "last": from_micros(int(stretches.end.max())),
            "timeframe": timeframe,
            "provider": provider,
            "feed": feed,
        },
        binary=True,
    ).fetchone()
    assert row is not None
    numbers, *columns, revisions = row
    if numbers is None:
        return Observed.empty()
    bars = bars_from_blocks([columns])
    return Observed(
        np.frombuffer(numbers, ">i4").astype(np.int32),
        bars.timestamp,
        bars.values,
        np.frombuffer(revisions, ">i8").astype(np.int64),
        np.zeros(len(bars), np.bool_),
    )


def write(raw: Driver, keys: Sequence[SeriesKey], bars: Observed) -> None:
    """Insert or replace rows; their values and revisions are known to differ from what is there."""
    if not len(bars):
        return
    raw.execute(f"{_SORT_IN_MEMORY}; {_STAGE_TABLE}; {_STAGE_EMPTY}")
    with raw.cursor() as cursor, cursor.copy(_STAGE_COPY) as copy:
        for part in incoming_rows(bars.number, bars.timestamp, bars.values, bars.revision):
            copy.write(part)
    written = raw.execute(_UPSERT, arrays.key_arrays(keys)).rowcount
    if written != len(bars):
        raise StoreError(f"{written} rows were written where {len(bars)} were to be")


def delete_spans(
    raw: Driver, keys: Sequence[SeriesKey], spans: Mapping[int, Sequence[Span]]
) -> int:
    """Delete the rows of series in the spans given for each; return how many there were."""
    rows = [
        {**fields_of(keys[number - 1]), "start": from_micros(s.start), "end": from_micros(s.end)}
        for number, own in sorted(spans.items())
        for s in own
    ]
    if not rows:
        return 0
    with raw.cursor() as cursor:
        cursor.executemany(_DELETE_SPAN, rows)
        return cursor.rowcount


def delete_labels(raw: Driver, keys: Sequence[SeriesKey], number: Int32s, label: Int64s) -> None:
    """Delete single rows, named by series and label."""
    if not len(label):
        return
    parameters: dict[str, Any] = {
        **arrays.key_arrays(keys),
        "n": arrays.ints(number),
        "label": arrays.instants(label),
    }
    raw.execute(_ALONG_THE_KEY)
    raw.execute(_DELETE_LABELS, parameters)
    raw.execute(_ANY_WAY)


def refresh_ends(raw: Driver, keys: Sequence[SeriesKey]) -> None:
    """Look up the first and last row of each series again, after rows were deleted."""
    if keys:
        raw.execute(_ENDS, arrays.key_arrays(sorted(keys)))


def fields_of(key: SeriesKey) -> dict[str, str]:
    """Return the fields of one key by name, as parameters."""
    return {name: str(value) for name, value in key._asdict().items()}
