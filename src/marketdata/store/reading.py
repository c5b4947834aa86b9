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

What then costs is the packing, on one core of the server. A long read is therefore shared with a
second connection that joins the first one's snapshot, where the machine has the cores and the
pool a free connection.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import numpy as np
from psycopg import sql

from marketdata.clock import from_micros, to_micros
from marketdata.errors import MarketDataError, StoreError
from marketdata.protocols import ReadRequest, SeriesState
from marketdata.spans import Span
from marketdata.store.connection import Database, Driver, driver
from marketdata.store.wire import bars_from_blocks
from marketdata.types import COLUMNS, DAY, Bars, SeriesKey, Timeframe

_log = logging.getLogger(__name__)

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
_CONNECTIONS: Final = min(4, os.cpu_count() or 1)
_CHUNKS: Final = 2 * _CONNECTIONS
_CHUNK_STEPS: Final = 90 * 24 * 60
"""Least steps of series time in one chunk: a quarter of minutes packs in about 10 ms, and a
statement costs 1."""

_PACKED_TYPES: Final = ["int4"] + ["bytea"] * (1 + len(COLUMNS))

# One plan whatever the statistics say: the primary key in order, month by month. A sequential scan
# or a bitmap scan with its sort would win only on tables too small to matter.
_ONE_PLAN: Final = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"


class _Block(NamedTuple):
    """One stretch of one request that comes back as one row."""

    number: int
    """Place among all blocks of the read: blocks of one request follow each other in time."""
    symbol: str
    span: Span


_Group = tuple[str, str, str]
_Chunk = tuple[_Group, list[_Block]]


class _Pile:
    """The blocks of one read, in chunks that connections of one snapshot take from it."""

    def __init__(self, chunks: Iterable[_Chunk]) -> None:
        self._todo = deque(chunks)
        self.columns: dict[int, Sequence[bytes]] = {}

    def __len__(self) -> int:
        return len(self._todo)

    def work_off(self, raw: Driver) -> None:
        """Read chunks until none is left; one that fails goes back on the pile."""
        if self._todo:
            raw.execute(_ONE_PLAN)
        while self._todo:
            try:
                chunk = self._todo.popleft()
            except IndexError:  # the other connection was faster
                return
            try:
                for number, *columns in _copy_blocks(raw, *chunk):
                    self.columns[number] = columns
            except BaseException:
                self._todo.appendleft(chunk)
                raise


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
        return self._database.run(lambda c: self._read(driver(c), requests), snapshot=True)

    def _read(
        self, raw: Driver, requests: Sequence[ReadRequest]
    ) -> dict[SeriesKey, tuple[SeriesState, Bars]]:
        states = _states(raw, [request.key for request in requests])
        blocks: list[list[_Block]] = []
        count = 0
        for request in requests:
            spans = _spans(request, states[request.key])
            blocks.append([_Block(count + n, request.key.symbol, s) for n, s in enumerate(spans)])
            count += len(spans)
        pile = _Pile(_chunks(requests, blocks))
        self._work_off(raw, pile)
        answer = {}
        for request, own in zip(requests, blocks, strict=True):
            columns = [pile.columns.pop(b.number) for b in own if b.number in pile.columns]
            bars = bars_from_blocks(columns)
            if len(bars) > 1 and not (np.diff(bars.timestamp) > 0).all():
                raise StoreError(f"bars of {request.key} did not come back in order")
            answer[request.key] = states[request.key], bars
        return answer

    def _work_off(self, raw: Driver, pile: _Pile) -> None:
        helpers: list[threading.Thread] = []
        if len(pile) > 1 and _CONNECTIONS > 1:
            exported = raw.execute("SELECT pg_export_snapshot()").fetchone()
            assert exported is not None
            helpers = [
                threading.Thread(target=self._help, args=(pile, exported[0]), daemon=True)
                for _ in range(min(len(pile), _CONNECTIONS) - 1)
            ]
        for helper in helpers:
            helper.start()
        try:
            pile.work_off(raw)
        finally:
            for helper in helpers:
                helper.join()
        pile.work_off(raw)  # what a helper had to put back

    def _help(self, pile: _Pile, snapshot: str) -> None:
        try:
            self._database.run(lambda c: pile.work_off(driver(c)), snapshot=snapshot, patient=False)
        except MarketDataError as error:
            _log.debug("reading with one connection less: %s", error)


def _spans(request: ReadRequest, state: SeriesState) -> list[Span]:
    span = _stored(request.span, state)
    parts = _months(span) if request.key.timeframe.intraday else [span]
    return [part for part in parts if not part.empty]


def _chunks(
    requests: Sequence[ReadRequest], blocks: Sequence[Sequence[_Block]]
) -> Iterator[_Chunk]:
    """Group blocks by what one statement can read, and cut the groups to equal loads."""
    groups: dict[_Group, list[_Block]] = defaultdict(list)
    for request, own in zip(requests, blocks, strict=True):
        key = request.key
        groups[key.provider, key.feed, key.timeframe].extend(own)
    for group, members in groups.items():
        step = Timeframe(group[2]).step
        loads = [(block.span.end - block.span.start) // step for block in members]
        share = max(_CHUNK_STEPS, sum(loads) // _CHUNKS + 1)
        chunk: list[_Block] = []
        load = 0
        for block, own_load in zip(members, loads, strict=True):
            chunk.append(block)
            load += own_load
            if load >= share:
                yield group, chunk
                chunk, load = [], 0
        if chunk:
            yield group, chunk


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


def _copy_blocks(raw: Driver, group: _Group, blocks: Sequence[_Block]) -> Iterator[tuple[Any, ...]]:
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
