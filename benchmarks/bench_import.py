"""Import and export beside PostgreSQL's own COPY of the same file into a plain table.

Run: ``python -m benchmarks.bench_import --database-url postgresql://user@host/database
--redis-url redis://host/0``. Makes and drops a schema of its own, ``marketdata_bench_import``.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
import psycopg

from benchmarks.bench_chunks import minutes
from benchmarks.timing import Row, take_turns
from marketdata.clock import Deadline
from marketdata.config import Settings
from marketdata.exporting import Wanted, export
from marketdata.files import Shape, open_table, write_bars
from marketdata.files.parsing import Times, parsed
from marketdata.importing import Importer, Statement
from marketdata.store import PostgresStore
from marketdata.types import Bars, Timeframe
from marketdata.wiring import Runtime

SCHEMA = "marketdata_bench_import"
SYMBOLS = ("AAPL", "MSFT", "SPY", "NVDA")
BARS = 200_000
COLUMNS = "symbol text, at timestamptz, o float8, h float8, l float8, c float8, v float8, w float8, n float8"
NOW = "2026-11-01T12:00:00Z"


def rows(database_url: str, redis_url: str, bars: int = BARS, rounds: int = 3) -> list[Row]:
    """Measure, and return the lines of the report."""
    _drop(database_url)
    with PostgresStore(database_url, schema=SCHEMA) as store:
        store.migrate()
    settings = Settings.load(
        database_url=database_url,
        redis_url=redis_url,
        schema=SCHEMA,
        broker="none",
        clock=NOW,
        progress="off",
    )
    runtime = Runtime(settings)
    try:
        with tempfile.TemporaryDirectory(prefix="marketdata-bench-") as directory:
            return _measure(runtime, database_url, Path(directory), bars, rounds)
    finally:
        runtime.close()
        _drop(database_url)


def _measure(
    runtime: Runtime, database_url: str, directory: Path, bars: int, rounds: int
) -> list[Row]:
    files = {kind: directory / f"bars.{kind}" for kind in ("csv", "parquet")}
    each = bars // len(SYMBOLS)
    for kind, path in files.items():
        with write_bars(path, "csv" if kind == "csv" else "parquet", {}) as file:
            for symbol in SYMBOLS:
                whole = minutes(symbol, extended=True)
                values = np.ascontiguousarray(whole.values[:, :each])
                file.write(symbol, Bars(whole.timestamp[:each], values))
    numbers = itertools.count()
    with psycopg.connect(database_url, autocommit=True) as plain:
        best = take_turns(
            {
                "dry": lambda: _import(runtime, files["csv"], "dry", dry_run=True),
                "csv": lambda: _import(runtime, files["csv"], f"c{next(numbers)}"),
                "parquet": lambda: _import(runtime, files["parquet"], f"p{next(numbers)}"),
                "export": lambda: _export(runtime, directory / "out.parquet"),
                "export csv": lambda: _export(runtime, directory / "out.csv"),
                "COPY in": lambda: _copy_in(plain, files["csv"]),
                "COPY out": lambda: _copy_out(plain),
            },
            rounds,
        )
    size = f"{bars:,} bars"
    return [
        Row(
            "import CSV, dry run",
            size,
            best["dry"],
            "COPY of the file",
            best["COPY in"],
            None,
            True,
        ),
        Row("import CSV", size, best["csv"], "COPY of the file", best["COPY in"], None, True),
        Row(
            "import Parquet", size, best["parquet"], "COPY of the CSV", best["COPY in"], None, True
        ),
        Row("export Parquet", size, best["export"], "COPY to CSV", best["COPY out"], None, True),
        Row("export CSV", size, best["export csv"], "COPY to CSV", best["COPY out"], None, True),
    ]


def _import(runtime: Runtime, path: Path, provider: str, *, dry_run: bool = False) -> None:
    statement = Statement(provider, provider, Timeframe.MIN_1, "raw")
    importer = Importer(runtime, statement, dry_run=dry_run)
    with open_table(path, Shape()) as table:
        for batch in parsed(table, Times(), runtime.calendar()):
            importer.add(batch)
    report = importer.finish()
    assert report.complete
    assert report.kept == report.rows > 0


def _export(runtime: Runtime, path: Path) -> None:
    wanted = Wanted("c0", "c0", SYMBOLS, Timeframe.MIN_1)
    kind = "csv" if path.suffix == ".csv" else "parquet"
    with write_bars(path, "csv" if kind == "csv" else "parquet", {}, replace=True) as file:
        assert export(runtime, wanted, file, Deadline(300)).rows > 0


def _copy_in(plain: psycopg.Connection, path: Path) -> None:
    plain.execute(f"DROP TABLE IF EXISTS {SCHEMA}.plain; CREATE TABLE {SCHEMA}.plain ({COLUMNS})")
    with (
        plain.cursor() as cursor,
        cursor.copy(f"COPY {SCHEMA}.plain FROM STDIN (FORMAT csv, HEADER)") as copy,
        path.open("rb") as file,
    ):
        while block := file.read(1 << 20):
            copy.write(block)


def _copy_out(plain: psycopg.Connection) -> None:
    with (
        plain.cursor() as cursor,
        cursor.copy(f"COPY {SCHEMA}.plain TO STDOUT (FORMAT csv, HEADER)") as copy,
    ):
        for _ in copy:
            pass


def _drop(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--bars", type=int, default=BARS)
    chosen = parser.parse_args()
    for line in rows(chosen.database_url, chosen.redis_url, chosen.bars):
        print(f"  {line}")
