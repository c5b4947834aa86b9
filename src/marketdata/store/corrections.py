"""The table `bar_corrections` inside a writing transaction: what differs from sealed chunks, and
what was withdrawn. The caller holds the locks of the series concerned.
"""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from marketdata.spans import Span
from marketdata.store import arrays
from marketdata.store.connection import Driver
from marketdata.store.observed import Observed
from marketdata.store.rows import KEYS
from marketdata.types import COLUMNS, Bools, SeriesKey

_VALUES: Final = ", ".join(COLUMNS)
_SPANS: Final = f"""
{KEYS} JOIN unnest(%(n)s::integer[], %(start)s::timestamptz[], %(end)s::timestamptz[])
    AS r (n, starts, ends) USING (n)
"""
_HERE: Final = """c.symbol = k.symbol AND c.timeframe = k.timeframe AND c.provider = k.provider
    AND c.feed = k.feed AND c."timestamp" >= r.starts AND c."timestamp" < r.ends"""
_READ: Final = f"""
SELECT k.n, c."timestamp", c.withdrawn, c.revision, {", ".join("c." + c for c in COLUMNS)}
FROM {_SPANS} JOIN bar_corrections AS c ON {_HERE}
WHERE c.pending OR NOT %(pending)s
"""
_WRITE: Final = f"""
INSERT INTO bar_corrections AS t
    (symbol, timeframe, provider, feed, "timestamp", withdrawn, pending, revision, {_VALUES})
SELECT k.symbol, k.timeframe, k.provider, k.feed, i."timestamp", i.withdrawn, i.pending, i.revision,
       {", ".join(f"nullif(i.{c}, 'NaN')" for c in COLUMNS)}
FROM {KEYS}
JOIN unnest(%(n)s::integer[], %(timestamp)s::timestamptz[], %(withdrawn)s::boolean[],
            %(pending)s::boolean[], %(revision)s::bigint[],
            {", ".join(f"%({c})s::double precision[]" for c in COLUMNS)})
    AS i (n, "timestamp", withdrawn, pending, revision, {_VALUES}) USING (n)
ORDER BY k.n, i."timestamp"
ON CONFLICT (symbol, timeframe, provider, feed, "timestamp") DO UPDATE
    SET withdrawn = excluded.withdrawn, pending = excluded.pending, revision = excluded.revision,
        {", ".join(f"{c} = excluded.{c}" for c in COLUMNS)}
"""
_FORGET: Final = f"""
DELETE FROM bar_corrections AS c USING {_SPANS}
WHERE {_HERE} AND (NOT c.withdrawn OR %(withdrawn)s)
"""
_MERGED: Final = f"""
UPDATE bar_corrections AS c SET pending = false FROM {_SPANS}
WHERE {_HERE} AND c.withdrawn AND c.pending
"""
_DELETE_LABELS: Final = f"""
DELETE FROM bar_corrections AS c
USING {KEYS} JOIN unnest(%(n)s::integer[], %(label)s::timestamptz[]) AS gone (n, label) USING (n)
WHERE c.symbol = k.symbol AND c.timeframe = k.timeframe AND c.provider = k.provider
  AND c.feed = k.feed AND c."timestamp" = gone.label
"""
_RECOUNT: Final = f"""
UPDATE series AS s SET corrections = found.pending, tombstones = found.withdrawn
FROM (SELECT k.*, count(*) FILTER (WHERE c.pending) AS pending,
             count(*) FILTER (WHERE c.withdrawn) AS withdrawn
      FROM {KEYS} LEFT JOIN bar_corrections AS c USING (symbol, timeframe, provider, feed)
      GROUP BY k.provider, k.feed, k.symbol, k.timeframe, k.n) AS found
WHERE (s.provider, s.feed, s.symbol, s.timeframe)
    = (found.provider, found.feed, found.symbol, found.timeframe)
"""


def read(
    raw: Driver,
    keys: Sequence[SeriesKey],
    spans: Mapping[int, Sequence[Span]],
    *,
    pending: bool = False,
) -> Observed:
    """Return the corrections and withdrawals of series in the spans given for each, by number
    counted from 1; on request only those not merged yet."""
    if not spans:
        return Observed.empty()
    parameters = {**_parameters(keys, spans), "pending": pending}
    rows = raw.execute(_READ, parameters, binary=True).fetchall()
    if not rows:
        return Observed.empty()
    number, timestamp, withdrawn, revision, *values = zip(*rows, strict=True)
    return Observed(
        np.array(number, np.int32),
        np.array(timestamp, np.int64),
        np.array(values, np.float64),  # None becomes NaN
        np.array(revision, np.int64),
        np.array(withdrawn, np.bool_),
    ).newest_of_each()


def write(raw: Driver, keys: Sequence[SeriesKey], found: Observed, pending: Bools) -> None:
    """Store corrections and withdrawals; `pending` says which await being merged into a chunk."""
    if not len(found):
        return
    parameters: dict[str, Any] = {
        **arrays.key_arrays(keys),
        **{
            name: arrays.doubles(column) for name, column in zip(COLUMNS, found.values, strict=True)
        },
        "n": arrays.ints(found.number),
        "timestamp": arrays.instants(found.timestamp),
        "withdrawn": arrays.booleans(found.withdrawn),
        "pending": arrays.booleans(pending),
        "revision": arrays.bigints(found.revision),
    }
    raw.execute(_WRITE, parameters)


def merged(raw: Driver, keys: Sequence[SeriesKey], spans: Mapping[int, Sequence[Span]]) -> None:
    """Note that chunks, or rows, hold what the corrections in these spans said; withdrawals stay."""
    if spans:
        parameters = {**_parameters(keys, spans), "withdrawn": False}
        raw.execute(_FORGET, parameters)
        raw.execute(_MERGED, parameters)


def forget(raw: Driver, keys: Sequence[SeriesKey], spans: Mapping[int, Sequence[Span]]) -> None:
    """Delete everything in these spans, withdrawals included."""
    if spans:
        raw.execute(_FORGET, {**_parameters(keys, spans), "withdrawn": True})


def delete_labels(raw: Driver, keys: Sequence[SeriesKey], found: Observed) -> None:
    """Delete what is stored under these labels."""
    if len(found):
        parameters: dict[str, Any] = {
            **arrays.key_arrays(keys),
            "n": arrays.ints(found.number),
            "label": arrays.instants(found.timestamp),
        }
        raw.execute(_DELETE_LABELS, parameters)


def recount(raw: Driver, keys: Sequence[SeriesKey]) -> None:
    """Count the corrections of these series again, into `series`."""
    if keys:
        raw.execute(_RECOUNT, arrays.key_arrays(sorted(keys)))


def _parameters(keys: Sequence[SeriesKey], spans: Mapping[int, Sequence[Span]]) -> dict[str, Any]:
    pieces = [(number, span) for number, own in spans.items() for span in own]
    return {
        **arrays.key_arrays(keys),
        "n": arrays.ints([number for number, _ in pieces]),
        "start": arrays.instants([span.start for _, span in pieces]),
        "end": arrays.instants([span.end for _, span in pieces]),
    }
