"""``make bench``: every benchmark on real servers, each figure beside its anchor of the same run.

Uses embedded servers in a directory of its own, or those that ``--database-url`` and
``--redis-url`` name (a database that may be filled, a Redis database that is flushed).
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import (
    bench_alpaca_parse,
    bench_backfill,
    bench_backtest,
    bench_cache,
    bench_chunks,
    bench_cycle,
    bench_import,
    bench_indicator_store,
    bench_indicators,
    bench_live,
    bench_reads,
    bench_sealed,
    bench_store,
    bench_sweep,
)
from benchmarks.bench_backtest import Absent, Many
from benchmarks.bench_chunks import Room
from benchmarks.bench_cycle import Counted
from benchmarks.timing import Row


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--database-url")
    parser.add_argument("--redis-url")
    parser.add_argument("--bars", type=int, default=200_000, help="bars of the store benchmarks")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    if chosen.database_url and chosen.redis_url:
        rows = run(chosen.database_url, chosen.redis_url, chosen.bars)
    else:
        rows = on_embedded_servers(chosen.bars)
    missed = [row for row in rows if not row.reached]
    print(f"\n{len(rows)} figures, {len(missed)} missed")
    return 0


def on_embedded_servers(bars: int) -> list[Row | Room | Counted | Many | Absent]:
    from marketdata import embedded

    directory = Path(tempfile.mkdtemp(prefix="marketdata-bench-"))
    directory.chmod(0o711)
    try:
        with embedded.acquire(directory / "home") as lease:
            return run(lease.servers.database_url, lease.servers.redis_url, bars)
    finally:
        embedded.erase(directory / "home")
        shutil.rmtree(directory, ignore_errors=True)


def run(database_url: str, redis_url: str, bars: int) -> list[Row | Room | Counted | Many | Absent]:
    """Run all, printing each part as it is done; the smaller sizes show how the cost grows."""
    parts: dict[str, Callable[[], Iterable[Row | Room | Counted | Many | Absent]]] = {
        "Reads through all tiers": lambda: bench_reads.run(database_url, redis_url),
        "Redis cache": lambda: bench_cache.run(redis_url),
        "Broker answers": bench_alpaca_parse.rows,
        "Indicators": bench_indicators.rows,
        "Indicators kept": lambda: bench_indicator_store.run(database_url, redis_url),
        "Sealed chunks": bench_chunks.rows,
        "A cycle of the aggregator": lambda: bench_cycle.run(database_url, redis_url),
        "A thousand live algorithms": lambda: bench_live.run(database_url, redis_url),
        "Import and export": lambda: bench_import.rows(database_url, redis_url, bars),
        "Backfill": lambda: bench_backfill.rows(database_url, redis_url),
        "PostgreSQL store": lambda: bench_store.rows(database_url, bars),
        "Sealed bars in PostgreSQL": lambda: bench_sealed.rows(database_url),
        "Back-tests": bench_backtest.rows,
        "Sweeps": bench_sweep.rows,
    }
    rows: list[Row | Room | Counted | Many | Absent] = []
    for title, part in parts.items():
        print(f"\n{title}", flush=True)
        for row in part():
            print(f"  {row}", flush=True)
            rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
