"""The store against its anchors: rows read and written on PostgreSQL, and how cost grows.

    python -m benchmarks.bench_store --database-url postgresql://user@host/database

Makes and drops a schema of its own, ``marketdata_bench``.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import adbc_driver_postgresql.dbapi
import numpy as np
import pandas as pd
import psycopg
from psycopg import sql

from benchmarks.timing import Row, take_turns
from marketdata.protocols import Commit, ReadRequest
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.store.wire import COPY_HEADER, COPY_TRAILER, POSTGRES_EPOCH
from marketdata.types import COLUMNS, DAY, MINUTE, Bars, SeriesKey, Timeframe

SCHEMA = "marketdata_bench"
FIRST_SESSION = 1_704_205_800_000_000  # 2024-01-02T14:30Z
SESSION_MINUTES = 390
SIZES = (10_000, 50_000, 200_000)


def run(database_url: str, bars: int = 200_000, rounds: int = 5) -> list[dict[str, Any]]:
    """Return every figure as a record: ``what, ours_ms``, and where there is an anchor
    ``anchor, anchor_ms, ratio, bar, faster, reached``."""
    against, alone = measure(database_url, bars, rounds)
    return [
        *({**asdict(row), "ratio": row.ratio, "reached": row.reached} for row in against),
        *({"what": what, "ours_ms": taken} for what, taken in alone.items()),
    ]


def rows(database_url: str, bars: int = 200_000, rounds: int = 5) -> list[Row]:
    """Return the figures that have an anchor."""
    return measure(database_url, bars, rounds)[0]


def measure(database_url: str, bars: int, rounds: int) -> tuple[list[Row], dict[str, float]]:
    """Return the figures that have an anchor, and those that stand alone in milliseconds."""
    with PostgresStore(database_url, schema=SCHEMA) as store:
        _drop(database_url)
        store.migrate()
        try:
            reading = _reading(store, database_url, bars, rounds)
            writing, alone = _writing(store, database_url, bars, max(3, rounds // 2))
            alone |= _sizes(store, [size for size in SIZES if size <= bars])
            alone |= _many_symbols(store)
        finally:
            _drop(database_url)
    return [*reading, writing], alone


def minute_bars(count: int, seed: int = 0) -> Bars:
    """Regular minutes of consecutive weekdays."""
    sessions = np.arange(-(-count // SESSION_MINUTES))
    opens = FIRST_SESSION + (sessions // 5 * 7 + sessions % 5) * DAY
    timestamp = (opens[:, None] + np.arange(SESSION_MINUTES) * MINUTE).ravel()[:count]
    random = np.random.default_rng(seed)
    close = np.round(100 + np.cumsum(random.normal(0, 0.02, count)) % 50, 2)
    spread = np.round(random.uniform(0, 0.1, count), 2)
    values = np.stack(
        [
            *(close, close + spread, close - spread, close),
            *(random.integers(1, 1_000_000, count), close + 0.001, random.integers(1, 1000, count)),
        ]
    ).astype(np.float64)
    return Bars(timestamp, values)


def _key(symbol: str) -> SeriesKey:
    return SeriesKey("alpaca", "sip", symbol, Timeframe.MIN_1)


def _commit(symbol: str, bars: Bars) -> Commit:
    span = Span(int(bars.timestamp[0]), int(bars.timestamp[-1]) + MINUTE)
    return Commit(_key(symbol), bars, span, span.end + DAY, span.end, span.end)


# ------------------------------------------------------------------------------------- reading


def _reading(store: PostgresStore, url: str, count: int, rounds: int) -> list[Row]:
    bars = minute_bars(count)
    commit = _commit("READ", bars)
    store.commit([commit])
    _vacuum(url)
    query = (
        f'SELECT "timestamp", {", ".join(COLUMNS)} FROM {SCHEMA}.market_data_bars '
        "WHERE symbol = 'READ' AND timeframe = '1min' AND provider = 'alpaca' AND feed = 'sip' "
        f"AND \"timestamp\" >= '{_iso(commit.covered.start)}' "
        f'AND "timestamp" < \'{_iso(commit.covered.end)}\' ORDER BY "timestamp"'
    )
    request = [ReadRequest(commit.key, commit.covered)]
    with (
        psycopg.connect(url) as plain,
        adbc_driver_postgresql.dbapi.connect(url) as arrow,
        arrow.cursor() as cursor,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)  # pandas would rather have SQLAlchemy

        def ours() -> None:
            assert len(store.read(request)[commit.key][1]) == count

        def adbc() -> None:
            cursor.execute(query)
            assert cursor.fetch_arrow_table().num_rows == count

        def read_sql() -> None:
            assert len(pd.read_sql(query, plain)) == count  # type: ignore[call-overload]

        best = take_turns({"ours": ours, "ADBC": adbc, "read_sql": read_sql}, rounds)
    size = f"{count:,} bars"
    return [
        Row("read rows", size, best["ours"], "pandas.read_sql", best["read_sql"], 8, True),
        Row("read rows", size, best["ours"], "ADBC", best["ADBC"], 1.3, False),
    ]


# ------------------------------------------------------------------------------------- writing


def _writing(
    store: PostgresStore, url: str, count: int, rounds: int
) -> tuple[Row, dict[str, float]]:
    bars = minute_bars(count)
    size = f"{count:,} bars"
    numbers = itertools.count()
    with psycopg.connect(url, autocommit=True) as plain:
        best = take_turns(
            {
                "upsert": lambda: store.commit([_commit(f"U{next(numbers)}", bars)]),
                "COPY": lambda: _raw_copy(plain, f"C{next(numbers)}", bars),
            },
            rounds,
        )
    again = _commit("U0", bars)
    replay = take_turns({"again": lambda: store.commit([again])}, rounds)["again"]
    return (
        Row("staged upsert", size, best["upsert"], "raw COPY", best["COPY"], 0.33, True),
        {f"commit of {size} already stored": replay},
    )


def _raw_copy(plain: psycopg.Connection[Any], symbol: str, bars: Bars) -> None:
    """Binary COPY straight into the partitioned table: no stage, no conflicts, no coverage."""
    texts = {"symbol": symbol, "timeframe": "1min", "provider": "alpaca", "feed": "sip"}
    numbers = {"timestamp": ">i8", **dict.fromkeys(COLUMNS, ">f8"), "revision": ">i8"}
    layout: list[tuple[str, str]] = [("fields", ">i2")]
    for name in (*texts, *numbers):
        kind = numbers.get(name) or f"S{len(texts[name])}"
        layout += [(f"{name}:length", ">i4"), (name, kind)]
    rows = np.empty(len(bars), np.dtype(layout))
    rows["fields"] = len(texts) + len(numbers)
    for name, text in texts.items():
        rows[f"{name}:length"], rows[name] = len(text), text.encode()
    for name in numbers:
        rows[f"{name}:length"] = 8
    rows["timestamp"] = bars.timestamp - POSTGRES_EPOCH
    rows["revision"] = 1
    for column, name in zip(bars.values, COLUMNS, strict=True):
        rows[name] = column
    columns = sql.SQL(", ").join(map(sql.Identifier, (*texts, *numbers)))
    target = sql.SQL("COPY {}.market_data_bars ({}) FROM STDIN (FORMAT binary)").format(
        sql.Identifier(SCHEMA), columns
    )
    with plain.cursor() as cursor, cursor.copy(target) as copy:
        for part in (COPY_HEADER, rows.tobytes(), COPY_TRAILER):
            copy.write(part)


# ------------------------------------------------------------------------------- cost and size


def _sizes(store: PostgresStore, sizes: Sequence[int]) -> dict[str, float]:
    """Milliseconds per 10,000 bars: the same at every size, if cost grows with size alone."""
    numbers = itertools.count()
    taken = {}
    for size in sizes:
        bars = minute_bars(size)
        request = [ReadRequest(_key("R"), _commit("R", bars).covered)]
        store.commit([_commit("R", bars)])
        best = take_turns(
            {
                "write": lambda b=bars: store.commit([_commit(f"W{next(numbers)}", b)]),  # type: ignore[misc]
                "read": lambda r=request: store.read(r),  # type: ignore[misc]
            },
            rounds=3,
        )
        for name, milliseconds in best.items():
            taken[f"{name} {size:,} bars, for each 10,000"] = milliseconds / size * 10_000
    return taken


def _many_symbols(store: PostgresStore, count: int = 10_000) -> dict[str, float]:
    """What an aggregator does every minute: one new bar for each of many symbols."""
    keys = [_key(f"M{i}") for i in range(count)]
    day = Span(FIRST_SESSION + 7 * DAY, FIRST_SESSION + 8 * DAY)
    requests = [ReadRequest(key, day) for key in keys]
    values = minute_bars(1).values
    minutes = itertools.count(day.start, MINUTE)

    def next_minute() -> None:
        start = next(minutes)
        bars = Bars(np.array([start]), values)
        span = Span(start, start + MINUTE)
        store.commit([Commit(key, bars, span, span.end) for key in keys])

    best = take_turns(
        {
            "commit one bar": next_minute,
            "read the day so far": lambda: store.read(requests),
            "coverage": lambda: store.states(keys),
        },
        rounds=3,
    )
    return {f"{name} of {count:,} symbols": taken for name, taken in best.items()}


# ------------------------------------------------------------------------------------ plumbing


def _iso(micros: int) -> str:
    return str(np.datetime64(micros, "us")) + "Z"


def _drop(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


def _vacuum(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"VACUUM ANALYZE {SCHEMA}.market_data_bars")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_store")
    parser.add_argument("--bars", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--database-url", required=True)
    arguments = parser.parse_args()
    against, alone = measure(arguments.database_url, arguments.bars, arguments.rounds)
    print(*against, sep="\n")
    for what, taken in alone.items():
        print(f"{what:<59}  {taken:>10.3f} ms")


if __name__ == "__main__":
    main()
