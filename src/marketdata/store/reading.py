"""Reading: the state of series, and their bars: rows as packed columns, sealed ones as chunks.

How rows leave the server was chosen by measurement (200,000 one-minute bars of one series, two
cores, PostgreSQL 18, milliseconds; ``benchmarks/bench_store.py`` keeps the ratios):

===========================================================================  ======
``pandas.read_sql``, by the session's time zone                              390-820
``COPY`` of rows, read message by message with psycopg                          238
one row of ``array_agg`` per column and month                                    88
ADBC (rows, parsed in C)                                                         85
one row a month of ``string_agg(float8send(x), '')`` per column                  83
the same with NULL for a delimiter                                               72
one row a month of ``string_agg`` over four and three numbers at a time          56
this shared with a second connection                                             37
===========================================================================  ======

Each row costs the client one message, so the server packs a month of a column into one value: 24
messages for two years instead of 200,000, and numpy reads them without a Python object per number.

What then costs is the packing, on one core of the server. A long read is therefore shared with a
second connection that joins the first one's snapshot, where the machine has the cores, the pool a
free connection, and the server exports snapshots. Without any of these one connection reads alone.

Sealed bars leave the server as the bytes of their chunks. Each is decompressed while the server sends
the next, unless there are very many, and decoded when the snapshot is closed already: see
`sealed_reading`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
from psycopg import sql
from sqlalchemy import Connection

from marketdata.clock import from_micros, to_micros
from marketdata.errors import StoreUnavailableError
from marketdata.pausing import SNAPSHOT_TAKEN, pause_point
from marketdata.protocols import ReadPlan, ReadRequest, SeriesState
from marketdata.spans import Span, intersect, subtract
from marketdata.store.connection import Database, Driver, driver
from marketdata.store.failures import judge
from marketdata.store.observed import Observed
from marketdata.store.sealed_reading import (
    Received,
    SealedShare,
    SealedSpans,
    check_order,
    copy_sealed,
    opened,
    read_corrections,
    shares,
    with_sealed,
)
from marketdata.store.wire import bars_from_blocks
from marketdata.types import DAY, Bars, SeriesKey, Timeframe

_log = logging.getLogger(__name__)

_STATES: Final = """
SELECT k.n, s.coverage, s.revision, s.unsettled, s.first_bar, s.last_bar,
       s.last_fetched_at, s.final, s.sealed, s.corrections
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[])
         WITH ORDINALITY AS k (provider, feed, symbol, timeframe, n)
JOIN series AS s USING (provider, feed, symbol, timeframe)
"""
# Of one series, which is what most reads are: planning the join above takes longer than its answer.
_STATE: Final = """
SELECT 1, coverage, revision, unsettled, first_bar, last_bar, last_fetched_at, final, sealed,
       corrections
FROM series WHERE provider = %s AND feed = %s AND symbol = %s AND timeframe = %s
"""

# What packing costs are calls, so two of PostgreSQL's geometric types serve as envelopes: lseg_send
# writes the four numbers of a segment as they are, circle_send the three of a circle, where
# float8send would be called once for each. string_agg skips NULL, which would shift a column against
# the others: absent becomes NaN first.
_PACKED: Final = sql.SQL(
    """COPY (
    SELECT r.n, packed.*
    FROM unnest({numbers}::integer[], {symbols}::text[], {starts}::timestamptz[],
                {ends}::timestamptz[]) AS r (n, symbol, starts, ends)
    CROSS JOIN LATERAL (
        SELECT string_agg(timestamptz_send("timestamp"), NULL),
               string_agg(lseg_send(lseg(point(open, high), point(low, close))), NULL),
               string_agg(circle_send(circle(point(volume, vwap), trade_count)), NULL)
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
_CONNECTIONS: Final = min(4, os.cpu_count() or 1)
_CHUNKS: Final = 2 * _CONNECTIONS
_CHUNK_STEPS: Final = 90 * 24 * 60
"""Least steps of series time in one chunk: a quarter of minutes packs in about 10 ms, and a
statement costs 1."""

_PACKED_TYPES: Final = ["int4", "bytea", "bytea", "bytea"]

# One plan whatever the statistics say: the primary key in order, month by month. A sequential scan
# or a bitmap scan with its sort would win only on tables too small to matter.
_ONE_PLAN: Final = sql.SQL(";SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")


# A partition is dropped once it is empty for those who look then; whoever took a snapshot before must
# be able to read it to the end. So this comes before the snapshot.
_OPENING: Final = _ONE_PLAN + sql.SQL(
    ";LOCK TABLE ONLY market_data_bars_intraday IN ACCESS SHARE MODE"
)

_EXPORT: Final = "SELECT pg_export_snapshot(), pg_current_snapshot()::text"
_SEEN: Final = "SELECT pg_current_snapshot()::text"


class _Block(NamedTuple):
    """One stretch of one request that comes back as one row."""

    number: int
    """Place among all blocks of the read: blocks of one request follow each other in time."""
    symbol: str
    span: Span


class _SharingRefusedError(Exception):
    """The server exports no snapshots to this user; the transaction that asked is lost."""


class _Shared(NamedTuple):
    """A snapshot that other connections can join, and what it looks like from inside."""

    name: str
    seen: str


class _Found(NamedTuple):
    """What one read brought from its snapshot; its bars by number of request."""

    states: dict[SeriesKey, SeriesState]
    requests: Sequence[ReadRequest]
    columns: list[list[Sequence[bytes]]]
    sealed: dict[int, list[Span]]
    """The part of the request that is sealed."""
    chunks: dict[int, dict[Span, Received]]
    corrections: dict[int, Observed]


_Group = tuple[str, str, str]
_Chunk = tuple[_Group, list[_Block]]


class _Pile:
    """The blocks of one read, in chunks that connections of one snapshot take from it."""

    def __init__(self, chunks: Iterable[_Chunk | SealedShare]) -> None:
        self._todo = deque(chunks)
        # Several shares are received by several connections, and wait as bytes in less memory.
        self._opens = len(self._todo) == 1
        self.columns: dict[int, Sequence[bytes]] = {}
        self.sealed: dict[int, dict[Span, Received]] = {}
        """By number of request the chunks that reach into it."""

    def __len__(self) -> int:
        return len(self._todo)

    def work_off(self, raw: Driver) -> None:
        """Read chunks until none is left; one that fails goes back on the pile."""
        while self._todo:
            try:
                chunk = self._todo.popleft()
            except IndexError:  # the other connection was faster
                return
            try:
                if isinstance(chunk, SealedShare):
                    for number, span, data in copy_sealed(raw, chunk):
                        self.sealed.setdefault(number, {})[span] = (
                            opened(data) if self._opens else data
                        )
                else:
                    for number, *columns in _copy_blocks(raw, *chunk):
                        self.columns[number] = columns
            except BaseException:
                self._todo.appendleft(chunk)
                raise

    def abandon(self) -> None:
        """Leave what is not begun: nobody waits for it any longer."""
        self._todo.clear()


class BarReader:
    """Reads what `BarWriter` wrote."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._alone = _CONNECTIONS < 2

    def states(self, keys: Sequence[SeriesKey]) -> dict[SeriesKey, SeriesState]:
        """Return the state of every key; a series never written has the empty state."""
        if not keys:
            return {}
        return self._database.run(lambda c: _states(driver(c), keys)[0], snapshot=True)

    def read(self, requests: Sequence[ReadRequest]) -> dict[SeriesKey, tuple[SeriesState, Bars]]:
        """Return state and bars of each request from one snapshot; one request per series."""
        states, bars = self.read_planned([request.key for request in requests], lambda _: requests)
        return {key: (states[key], found) for key, found in bars.items()}

    def read_planned(
        self, keys: Sequence[SeriesKey], plan: ReadPlan
    ) -> tuple[dict[SeriesKey, SeriesState], dict[SeriesKey, Bars]]:
        """See `BarStore.read_planned`."""
        if not keys:
            return {}, {}

        def work(connection: Connection) -> _Found:
            return self._read(driver(connection), keys, plan)

        try:
            found = self._database.run(work, snapshot=True, opening=_OPENING)
        except _SharingRefusedError as refusal:
            _log.info("long reads will use one connection: %s", refusal.__cause__)
            self._alone = True
            found = self._database.run(work, snapshot=True, opening=_OPENING)
        return found.states, {
            request.key: _assembled(request.key, found, number)
            for number, request in enumerate(found.requests)
        }

    def _read(self, raw: Driver, keys: Sequence[SeriesKey], plan: ReadPlan) -> _Found:
        states, corrected = _states(raw, keys)
        pause_point(SNAPSHOT_TAKEN)
        requests = plan(states)
        if len({request.key for request in requests}) < len(requests):
            raise ValueError("one request per series and read")
        blocks: list[list[_Block]] = []
        sealed: list[SealedSpans] = []
        count = 0
        for number, request in enumerate(requests):
            state = states[request.key]
            span = _stored(request.span, state)
            inside = intersect([span], state.sealed)
            if inside:
                sealed.append(SealedSpans(number, request.key, inside))
            spans = _spans(request.key, subtract([span], state.sealed))
            blocks.append([_Block(count + n, request.key.symbol, s) for n, s in enumerate(spans)])
            count += len(spans)
        pile = _Pile([*shares(sealed), *_chunks(requests, blocks)])
        self._work_off(raw, pile)
        return _Found(
            states=states,
            requests=requests,
            columns=[
                [pile.columns[b.number] for b in own if b.number in pile.columns] for own in blocks
            ],
            sealed={each.number: each.spans for each in sealed},
            chunks=pile.sealed,
            corrections=read_corrections(raw, [s for s in sealed if s.key in corrected]),
        )

    def _work_off(self, raw: Driver, pile: _Pile) -> None:
        helpers = self._helpers(raw, pile) if len(pile) > 1 and not self._alone else []
        try:
            pile.work_off(raw)
        except BaseException:
            pile.abandon()
            raise
        finally:
            for helper in helpers:
                helper.join()
        pile.work_off(raw)  # what a helper had to put back

    def _helpers(self, raw: Driver, pile: _Pile) -> list[threading.Thread]:
        shared = _export(raw)
        started: list[threading.Thread] = []
        for _ in range(min(len(pile), _CONNECTIONS) - 1):
            helper = threading.Thread(target=self._help, args=(pile, shared), daemon=True)
            try:
                helper.start()
            except RuntimeError as error:  # no thread left, or the interpreter is on its way out
                _log.debug("reading with one connection less: %s", error)
                break
            started.append(helper)
        return started

    def _help(self, pile: _Pile, shared: _Shared) -> None:
        def work(connection: Connection) -> None:
            raw = driver(connection)
            # Behind a proxy or a list of hosts this may be another server, with a namesake.
            if _one_row(raw, _SEEN) == (shared.seen,):
                pile.work_off(raw)

        try:
            self._database.run(work, snapshot=shared.name, patient=False, opening=_ONE_PLAN)
        except Exception as error:  # the reader does what is left, and meets what is wrong with it
            _log.debug("reading with one connection less: %s", error)


def _export(raw: Driver) -> _Shared:
    try:
        return _Shared(*_one_row(raw, _EXPORT))
    except psycopg.Error as error:
        if raw.closed or judge(error).error is StoreUnavailableError:
            raise
        raise _SharingRefusedError from error


def _one_row(raw: Driver, statement: LiteralString) -> tuple[Any, ...]:
    row = raw.execute(statement).fetchone()
    assert row is not None
    return row


def _assembled(key: SeriesKey, found: _Found, number: int) -> Bars:
    rows = bars_from_blocks(found.columns[number])
    check_order(key, rows)
    if number not in found.sealed:
        return rows
    return with_sealed(
        key,
        rows,
        found.chunks.pop(number, {}),
        found.sealed[number],
        found.corrections.get(number),
    )


def _spans(key: SeriesKey, spans: Sequence[Span]) -> list[Span]:
    if not key.timeframe.intraday:
        return list(spans)
    return [part for span in spans for part in _months(span)]


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


def _states(
    raw: Driver, keys: Sequence[SeriesKey]
) -> tuple[dict[SeriesKey, SeriesState], set[SeriesKey]]:
    """Return the state of every key, and which of them have corrections of sealed bars."""
    found = dict.fromkeys(keys, SeriesState())
    corrected = set()
    if len(keys) == 1:
        rows = raw.execute(_STATE, keys[0], binary=True)
    else:
        columns = [list(column) for column in zip(*keys, strict=True)]
        rows = raw.execute(_STATES, columns, binary=True)
    for number, *fields, corrections in rows:
        key = keys[number - 1]
        found[key] = SeriesState(*fields)
        if corrections:
            corrected.add(key)
    return found, corrected


def _stored(span: Span, state: SeriesState) -> Span:
    """Return the part of `span` that can hold bars."""
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
