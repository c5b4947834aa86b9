"""Reading: the state of series, and their bars as packed columns.

How rows leave the server was chosen by measurement (200,000 one-minute bars of one series, two
cores, PostgreSQL 18, milliseconds; ``benchmarks/bench_store.py`` keeps the ratios):

=============================================================  =====
``pandas.read_sql``                                            1,040
``COPY`` of rows, read message by message with psycopg           238
one row of ``array_agg`` per column                              128
ADBC (rows, parsed in C)                                          94
one row of ``array_agg`` per column and month                     93
one row of ``string_agg(float8send(x))`` per column and month  81
=============================================================  =====

Each row costs the client one message, so the server packs a month of a column into one value: 24
messages for two years instead of 200,000, and numpy reads them without a Python object per number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import numpy as np
from psycopg import sql
from sqlalchemy import Connection

from marketdata.clock import from_micros, to_micros
from marketdata.errors import StoreError
from marketdata.protocols import ReadRequest, SeriesState
from marketdata.spans import Span
from marketdata.store.connection import Database, Driver, driver
from marketdata.store.wire import bars_from_blocks
from marketdata.types import COLUMNS, DAY, Bars, SeriesKey

_STATES: Final = """
SELECT k.n, s.coverage, s.revision, s.settled_until, s.first_bar, s.last_bar,
       s.last_fetched_at
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[])
         WITH ORDINALITY AS k (provider, feed, symbol, timeframe, n)
JOIN series AS s USING (provider, feed, symbol, timeframe)
"""

# string_agg skips NULL, which would shift a column against the others: absent becomes NaN first.
_PACKED: Final = sql.SQL(
    """COPY (
    SELECT r.n, packed.*
    FROM unnest({numbers}::integer[], {symbols}::text[], {starts}::timestamptz[],
                {ends}::timestamptz[]) AS r (n, symbol, starts, ends)
    CROSS JOIN LATERAL (
        SELECT {columns}
        FROM (SELECT "timestamp", open, high, low, close, volume,
                     coalesce(vwap, 'NaN') AS vwap, coalesce(trade_count, 'NaN') AS trade_count
              FROM market_data_bars
              WHERE symbol = r.symbol AND timeframe = {timeframe}
                AND provider = {provider} AND feed = {feed}
                AND "timestamp" >= r.starts AND "timestamp" < r.ends
                AND "timestamp" >= {first} AND "timestamp" < {last}
              ORDER BY "timestamp") AS bars
        HAVING count(*) > 0) AS packed
) TO STDOUT (FORMAT binary)"""
)
_PACKED_COLUMNS: Final = sql.SQL(
    ", ".join(
        ["string_agg(timestamptz_send(\"timestamp\"), ''::bytea)"]
        + [f"string_agg(float8send({column}), ''::bytea)" for column in COLUMNS]
    )
)
_PACKED_TYPES: Final = ["int4"] + ["bytea"] * (1 + len(COLUMNS))

# One plan whatever the statistics say: the primary key in order, month by month. A sequential scan
# or a bitmap scan with its sort would win only on tables too small to matter.
_ONE_PLAN: Final = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"


class _Block(NamedTuple):
    """One stretch of one request that comes back as one row."""

    number: int
    symbol: str
    span: Span


class BarReader:
    """Reads what `BarWriter` wrote."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def states(self, keys: Sequence[SeriesKey]) -> dict[SeriesKey, SeriesState]:
        """Return the state of every key; a series never written has the empty state."""
        if not keys:
            return {}
        return self._database.run(lambda c: _states(driver(c), keys), snapshot=True)

    def read(self, requests: Sequence[ReadRequest]) -> dict[SeriesKey, tuple[SeriesState, Bars]]:
        """Return state and bars of each request from one snapshot; one request per series."""
        if not requests:
            return {}
        if len({request.key for request in requests}) < len(requests):
            raise ValueError("one request per series and read")
        return self._database.run(lambda c: _read(c, requests), snapshot=True)


def _read(
    connection: Connection, requests: Sequence[ReadRequest]
) -> dict[SeriesKey, tuple[SeriesState, Bars]]:
    raw = driver(connection)
    states = _states(raw, [request.key for request in requests])
    groups: dict[tuple[str, str, str], list[_Block]] = defaultdict(list)
    for number, request in enumerate(requests):
        span = _stored(request.span, states[request.key])
        key = request.key
        for part in _months(span) if key.timeframe.intraday else [span]:
            if not part.empty:
                groups[key.provider, key.feed, key.timeframe].append(
                    _Block(number, key.symbol, part)
                )
    if groups:
        raw.execute(_ONE_PLAN)
    packed: dict[int, list[Sequence[bytes]]] = defaultdict(list)
    for group, blocks in groups.items():
        for number, *columns in _copy_blocks(raw, group, blocks):
            packed[number].append(columns)
    answer = {}
    for number, request in enumerate(requests):
        bars = bars_from_blocks(packed.pop(number, []))
        if len(bars) > 1 and not (np.diff(bars.timestamp) > 0).all():
            raise StoreError(f"bars of {request.key} did not come back in order")
        answer[request.key] = states[request.key], bars
    return answer


def _states(raw: Driver, keys: Sequence[SeriesKey]) -> dict[SeriesKey, SeriesState]:
    found = dict.fromkeys(keys, SeriesState())
    columns = [list(column) for column in zip(*keys, strict=True)]
    for number, coverage, *rest in raw.execute(_STATES, columns, binary=True):
        found[keys[number - 1]] = SeriesState(coverage, *rest)
    return found


def _stored(span: Span, state: SeriesState) -> Span:
    """Return the part of `span` that can hold rows."""
    if state.first_bar is None or state.last_bar is None:
        return Span(0, 0)
    return span.clip(Span(state.first_bar, state.last_bar + 1))


def _months(span: Span) -> Iterator[Span]:
    """Cut a span at months in UTC: each piece lies in one partition and is one packed row."""
    start = span.start
    while start < span.end:
        moment = from_micros(start)
        first = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        following = from_micros(to_micros(first) + 32 * DAY).replace(day=1)
        end = min(span.end, to_micros(following))
        yield Span(start, end)
        start = end


def _copy_blocks(
    raw: Driver, group: tuple[str, str, str], blocks: Sequence[_Block]
) -> Iterator[tuple[Any, ...]]:
    provider, feed, timeframe = group
    statement = _PACKED.format(
        columns=_PACKED_COLUMNS,
        numbers=sql.Literal([b.number for b in blocks]),
        symbols=sql.Literal([b.symbol for b in blocks]),
        starts=sql.Literal(_instants(b.span.start for b in blocks)),
        ends=sql.Literal(_instants(b.span.end for b in blocks)),
        first=sql.Literal(from_micros(min(b.span.start for b in blocks))),
        last=sql.Literal(from_micros(max(b.span.end for b in blocks))),
        timeframe=sql.Literal(str(timeframe)),
        provider=sql.Literal(provider),
        feed=sql.Literal(feed),
    )
    with raw.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(_PACKED_TYPES)
        yield from copy.rows()


def _instants(micros: Iterable[int]) -> list[datetime]:
    return [from_micros(m) for m in micros]
