"""Sealed bars against rows, on PostgreSQL: reading, writing, and room on disk.

    python -m benchmarks.bench_sealed --database-url postgresql://user@host/database

Two years of regular-hours minutes, generated, with fractional volumes and six-digit vwaps. They are
written month by month, as a backfill does; the series whose reading is measured has then been through
the nightly sealing once, which joins complete quarters. Makes and drops a schema of its own,
``marketdata_bench_sealed``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import adbc_driver_postgresql.dbapi
import pandas as pd
import psycopg
import sqlalchemy

from benchmarks.arctic_anchor import ArcticAbsentError, measure
from benchmarks.bench_chunks import MOST_BYTES, TWO_YEARS, Room, minutes
from benchmarks.timing import Row, take_turns
from marketdata.clock import from_micros
from marketdata.protocols import Commit, ReadRequest
from marketdata.spans import Span, intersect
from marketdata.store import PostgresStore
from marketdata.store.sealing import Sealer
from marketdata.tiling import month_spans
from marketdata.types import COLUMNS, DAY, Bars, SeriesKey, Timeframe

SCHEMA = "marketdata_bench_sealed"
SYMBOLS = 50
BATCH = 20
WRITTEN_PER_SECOND = 300_000
_ALIKE = ("AAPL", "SPY", "S00007", "MSFT", "S00100")


def rows(database_url: str, symbols: int = SYMBOLS) -> Iterator[Row | Room]:
    """Measure, and yield the lines of the report."""
    _drop(database_url)
    with PostgresStore(database_url, schema=SCHEMA) as store:
        store.migrate()
        try:
            yield from _writing(store, symbols)
            yield from _room(store, database_url)
            yield from _reading(store, database_url)
            yield _many(store, symbols)
            yield from _again(store)
            yield _sealing(store)
        finally:
            _drop(database_url)


def _key(symbol: str) -> SeriesKey:
    return SeriesKey("alpaca", "sip", symbol, Timeframe.MIN_1)


def _symbol(number: int) -> str:
    return f"B{number:05}"


@lru_cache(maxsize=8)
def _months(of: str) -> list[tuple[Span, Bars]]:
    bars = minutes(of)
    return [
        (part, bars.within(part).frozen())
        for month in month_spans(TWO_YEARS)
        for part in intersect([month], [TWO_YEARS])
    ]


def _commit(symbol: str, of: str, month: int, *, sealed: bool = True, later: int = 0) -> Commit:
    span, bars = _months(of)[month]
    end = TWO_YEARS.end + DAY
    return Commit(_key(symbol), bars, span, end + later, end, end, sealed=sealed)


# ------------------------------------------------------------------------------------- writing


def _writing(store: PostgresStore, symbols: int) -> Iterator[Row]:
    """Fill with two years of every symbol, a month of `BATCH` symbols to a commit."""
    for of in _ALIKE:
        _months(of)
    bars = 0
    best = 0.0
    began = time.perf_counter()
    for first in range(0, symbols, BATCH):
        numbers = range(first, min(first + BATCH, symbols))
        for month in range(len(_months(_ALIKE[0]))):
            commits = [_commit(_symbol(n), _ALIKE[n % len(_ALIKE)], month) for n in numbers]
            count = sum(len(commit.bars) for commit in commits)
            at = time.perf_counter()
            store.commit(commits)
            best = max(best, count / (time.perf_counter() - at))
            bars += count
    rate = bars / (time.perf_counter() - began)
    size = f"{bars:,} bars"
    per_bar = 1_000 / rate * 1_000_000
    anchor = 1_000 / WRITTEN_PER_SECOND * 1_000_000
    yield Row("a million bars into chunks", size, per_bar, "300,000 a second", anchor, 1, True)
    yield Row(
        "  the best commit", f"{BATCH} x 1 month", 1e9 / best, "300,000 a second", anchor, 1, True
    )


def _again(store: PostgresStore) -> Iterator[Row]:
    """What an unchanged month costs when it is committed once more: sealed, and as rows."""
    sealed = [_commit(_symbol(n), _ALIKE[n % len(_ALIKE)], 3, later=DAY) for n in range(BATCH)]
    as_rows = [
        _commit(f"R{n:05}", _ALIKE[n % len(_ALIKE)], 3, sealed=False, later=-DAY)
        for n in range(BATCH)
    ]
    count = sum(len(commit.bars) for commit in sealed)
    began = time.perf_counter()
    store.commit(as_rows)
    first = (time.perf_counter() - began) * 1000
    again = [
        _commit(f"R{n:05}", _ALIKE[n % len(_ALIKE)], 3, sealed=False, later=DAY)
        for n in range(BATCH)
    ]
    best = take_turns(
        {"sealed": lambda: store.commit(sealed), "rows": lambda: store.commit(again)}, 2
    )
    size = f"{count:,} bars"
    yield Row(
        "unchanged rows read again", size, best["rows"], "their first commit", first, None, True
    )
    yield Row(
        "unchanged chunks read again", size, best["sealed"], "as rows", best["rows"], None, True
    )


def _sealing(store: PostgresStore) -> Row:
    """Rows of a month into chunks, as the nightly job does it."""
    sealer = Sealer(store.database)
    span, _ = _months(_ALIKE[0])[3]
    count = 0
    began = time.perf_counter()
    for number in range(BATCH):
        for moved in sealer.seal(_key(f"R{number:05}"), span.end):
            count += moved.bars
    taken = (time.perf_counter() - began) * 1000
    anchor = count / WRITTEN_PER_SECOND * 1000
    return Row("rows sealed", f"{count:,} bars", taken, "300,000 a second", anchor, None, True)


# ---------------------------------------------------------------------------------------- room


def _room(store: PostgresStore, url: str) -> Iterator[Room]:
    with psycopg.connect(url) as plain:
        sizes = plain.execute(
            f"SELECT pg_total_relation_size('{SCHEMA}.bar_chunks'), sum(bar_count), "
            f"sum(octet_length(data)) FROM {SCHEMA}.bar_chunks"
        ).fetchone()
    assert sizes is not None
    total, bars, data = sizes
    size = f"{bars:,} bars"
    yield Room("on disk, all of the table", size, float(total / bars), MOST_BYTES)
    yield Room("  of these encoded bars", size, float(data / bars))


# ------------------------------------------------------------------------------------- reading


def _reading(store: PostgresStore, url: str) -> Iterator[Row]:
    """One symbol's two years, sealed as every night leaves them, beside the same bars as rows."""
    key = _key(_symbol(0))
    yield _joining(store, key)
    for month in range(len(_months(_ALIKE[0]))):
        store.commit([_commit("ROWS", _ALIKE[0], month, sealed=False)])
    with psycopg.connect(url, autocommit=True) as plain:
        plain.execute(f"VACUUM ANALYZE {SCHEMA}.market_data_bars")
    count = len(minutes(_ALIKE[0]))
    query = (
        f'SELECT "timestamp", {", ".join(COLUMNS)} FROM {SCHEMA}.market_data_bars '
        "WHERE symbol = 'ROWS' AND timeframe = '1min' AND provider = 'alpaca' AND feed = 'sip' "
        f"AND \"timestamp\" >= '{from_micros(TWO_YEARS.start)}' "
        f'AND "timestamp" < \'{from_micros(TWO_YEARS.end)}\' ORDER BY "timestamp"'
    )
    # pandas supports SQLAlchemy's connections and warns of any other.
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    with (
        engine.connect() as pooled,
        adbc_driver_postgresql.dbapi.connect(url) as arrow,
        arrow.cursor() as cursor,
    ):

        def ours(of: SeriesKey) -> None:
            assert len(store.read([ReadRequest(of, TWO_YEARS)])[of][1]) == count

        def adbc() -> None:
            cursor.execute(query)
            assert cursor.fetch_arrow_table().num_rows == count

        text = sqlalchemy.text(query)

        def read_sql() -> None:
            assert len(pd.read_sql(text, pooled)) == count

        contenders = {
            "sealed": lambda: ours(key),
            "rows": lambda: ours(_key("ROWS")),
            "ADBC": adbc,
        }
        best = take_turns(contenders, 7)
        best |= take_turns({"read_sql": read_sql}, 2)
    engine.dispose()
    size = f"{count:,} bars"
    what = "read sealed, after a night"
    yield Row(what, size, best["sealed"], "ADBC over rows", best["ADBC"], 6, True)
    yield Row(what, size, best["sealed"], "pandas.read_sql", best["read_sql"], 100, True)
    yield Row(what, size, best["sealed"], "our rows", best["rows"], None, True)
    try:
        arctic = measure(minutes(_ALIKE[0])).read_ms
    except ArcticAbsentError as absent:
        print(f"  ArcticDB is not here, no figure beside it: {absent}", flush=True)
    else:
        yield Row(
            "read sealed, over a connection", size, best["sealed"], "ArcticDB's files", arctic, 6,
            False,
        )  # fmt: skip


def _joining(store: PostgresStore, key: SeriesKey) -> Row:
    """What the night does with months fresh from a backfill: a quarter of them to a chunk."""
    began = time.perf_counter()
    chunks = sum(moved.chunks for moved in Sealer(store.database).seal(key, TWO_YEARS.end))
    taken = (time.perf_counter() - began) * 1000
    count = len(minutes(_ALIKE[0]))
    anchor = count / WRITTEN_PER_SECOND * 1000
    what = f"months joined to {chunks} quarters"
    return Row(what, f"{count:,} bars", taken, "300,000 a second", anchor, None, True)


def _many(store: PostgresStore, symbols: int) -> Row:
    """Every symbol's two years, in parallel, beside as many single reads one after the other."""
    keys = [_key(_symbol(n)) for n in range(symbols)]

    def one(key: SeriesKey) -> int:
        return len(store.read([ReadRequest(key, TWO_YEARS)])[key][1])

    def together() -> int:
        found = store.read([ReadRequest(key, TWO_YEARS) for key in keys])
        return sum(len(bars) for _, bars in found.values())

    def threads() -> int:
        with ThreadPoolExecutor(4) as pool:
            return sum(pool.map(one, keys))

    best = take_turns(
        {"together": together, "threads": threads, "alone": lambda: sum(map(one, keys))}, 2
    )
    count = together()
    print(f"    (one call {best['together']:.0f} ms, four threads {best['threads']:.0f} ms)")
    fast = min(best["together"], best["threads"])
    return Row(
        f"read {symbols} symbols x 2 years", f"{count:,} bars", fast, "one by one", best["alone"],
        None, True,
    )  # fmt: skip


def _drop(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as plain:
        plain.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--symbols", type=int, default=SYMBOLS)
    chosen = parser.parse_args()
    for row in rows(chosen.database_url, chosen.symbols):
        print(row, flush=True)


if __name__ == "__main__":
    main()
