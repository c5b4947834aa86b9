"""A backfill end to end, from a sandbox in another process to sealed chunks: speed, size, calls.

    python -m benchmarks.bench_backfill --database-url postgresql://user@host/database \\
        --redis-url redis://host/0 --symbols 100 --months 24

Makes and drops a schema of its own, ``marketdata_bench_backfill``. The anchor is the same work done
the usual way: one symbol and month with alpaca-py's models and pandas' `to_sql`, scaled.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
import sqlalchemy

from benchmarks.bench_chunks import Room
from benchmarks.timing import Row
from marketdata.backfill import Backfill, BackfillReport, Limits, Wanted
from marketdata.config import Settings
from marketdata.wiring import Runtime

SCHEMA = "marketdata_bench_backfill"
NOW = "2024-06-20T15:00:30-04:00"
SIZES = (5, 20)
MONTHS = 3
WANTED_BARS_A_SECOND = 150_000
WANTED_BYTES_A_BAR = 20.0
BUSY = ["AAPL", "MSFT", "NVDA", "AMZN", "TSLA"]


@dataclass(frozen=True)
class Measured:
    """One backfill."""

    report: BackfillReport
    planned_calls: int
    bytes_a_bar: float
    """Of the table of chunks, with its index and all."""


def rows(
    database_url: str, redis_url: str, sizes: Sequence[int] = SIZES, months: int = MONTHS
) -> Iterator[Row | Room]:
    """Yield speed against the wanted one and the usual way, and size against the wanted one."""
    with sandbox() as url:
        usual = usual_bars_a_second(database_url, url)
        for count in sizes:
            measured = measure(database_url, redis_url, url, count, months)
            taken, bars = measured.report.seconds * 1000, measured.report.bars
            what = f"backfill, {count} symbols x {months} months"
            calls = f"{measured.report.calls:,} of {measured.planned_calls:,} calls planned"
            wanted = f"{WANTED_BARS_A_SECOND:,} bars/s"
            yield Row(
                what, f"{bars:,} bars", taken, wanted,
                bars / WANTED_BARS_A_SECOND * 1000, 1.0, True,
            )  # fmt: skip
            anchor = "alpaca-py models, to_sql"
            yield Row(what, calls, taken, anchor, bars / usual * 1000, None, True)
            yield Room(
                f"{what}, sealed", f"{bars:,} bars", measured.bytes_a_bar, WANTED_BYTES_A_BAR
            )


def measure(
    database_url: str, redis_url: str, sandbox_url: str, count: int, months: int
) -> Measured:
    """Backfill `count` symbols into an empty schema."""
    drop(database_url)
    settings = Settings.load(
        database_url=database_url,
        redis_url=redis_url,
        schema=SCHEMA,
        broker="sandbox",
        alpaca_url=sandbox_url,
        alpaca_trading_url=sandbox_url,
        clock=NOW,
        progress="off",
        retention="never",
    )
    # One simulated symbol in ten is young, and may not have been listed yet.
    simulated = (f"S{n:05d}" for n in range(1, 2 * count) if n % 10 != 3)
    symbols = [*BUSY, *simulated][:count]
    start = datetime.fromisoformat(NOW).date() - timedelta(days=round(months * 365.25 / 12))
    wanted, limits = Wanted(symbols=tuple(symbols), start=start), Limits(max_symbols=0)
    try:
        with closing(Runtime(settings)) as runtime:
            runtime.store.migrate()
            job = Backfill(runtime)
            planned = job.plan(wanted, limits).this_run.calls
            report = job.run(wanted, limits)
        assert report.complete, report.summary()
        return Measured(report, planned, bytes_a_bar(database_url))
    finally:
        drop(database_url)


def bytes_a_bar(database_url: str) -> float:
    """Return the size of the table of chunks, index and all, by the bars in it."""
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            f"SELECT pg_total_relation_size('{SCHEMA}.bar_chunks')::float8 / sum(bar_count)"
            f" FROM {SCHEMA}.bar_chunks"
        ).fetchone()
    assert found is not None
    return float(found[0])


def usual_bars_a_second(database_url: str, sandbox_url: str) -> float:
    """Fetch one month of one symbol with alpaca-py's models and store it with `to_sql`."""
    from alpaca.data.historical import StockHistoricalDataClient
    from alpaca.data.requests import StockBarsRequest
    from alpaca.data.timeframe import TimeFrame

    client = StockHistoricalDataClient("key", "secret", url_override=sandbox_url)
    request = StockBarsRequest(
        symbol_or_symbols="AAPL",
        timeframe=TimeFrame.Minute,
        start=datetime.fromisoformat("2024-05-01T00:00:00+00:00"),
        end=datetime.fromisoformat("2024-05-31T23:59:00+00:00"),
    )
    url = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = sqlalchemy.create_engine(url)
    try:
        began = time.perf_counter()
        answer = client.get_stock_bars(request)
        frame = answer.df  # type: ignore[union-attr]  # models, not raw data
        frame.reset_index().to_sql("bench_usual", engine, if_exists="replace", index=False)
        return len(frame) / (time.perf_counter() - began)
    finally:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("DROP TABLE IF EXISTS bench_usual"))
        engine.dispose()


@contextmanager
def sandbox() -> Iterator[str]:
    """Run a sandbox as a process of its own, as a broker is; yield its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "marketdata.sandbox", "--clock", NOW],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def drop(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_backfill", description=__doc__
    )
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--symbols", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--months", type=int, default=MONTHS)
    chosen = parser.parse_args()
    for row in rows(chosen.database_url, chosen.redis_url, chosen.symbols, chosen.months):
        print(row, flush=True)


if __name__ == "__main__":
    main()
