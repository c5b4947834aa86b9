"""What keeping the default indicators of many series costs: begun, updated, stored, served.

Run: ``PYTHONPATH=src python -m benchmarks.bench_indicator_store --database-url URL --redis-url URL``
(a database that may be filled, a Redis database that is flushed).
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import redis
from sqlalchemy import create_engine

from benchmarks.bench_reads import client_on_sandbox
from benchmarks.timing import Row, take_turns
from marketdata.client import Client
from marketdata.clock import FixedClock
from marketdata.config import Settings
from marketdata.indicator_updates import IndicatorUpdater
from marketdata.kept_indicators import KEPT_COLUMNS
from marketdata.protocols import Commit
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.types import MINUTE, Bars, SeriesKey, Timeframe
from marketdata.wiring import Runtime

_NOW = "2024-03-14T15:00:30-04:00"
_SAMPLE = 100


@contextmanager
def runtime_without_broker(database_url: str, redis_url: str) -> Iterator[Runtime]:
    """Yield a stack that asks nobody, on a database that holds one provider's bars."""
    with PostgresStore(database_url) as store:
        store.migrate()
        store.adopt("alpaca", "sip")
    settings = Settings.load(
        database_url=database_url, redis_url=redis_url, broker="none", clock=_NOW, progress="off"
    )
    running = Runtime(settings, FixedClock(datetime.fromisoformat(_NOW)))
    try:
        yield running
    finally:
        running.close()


class Universe:
    """Minute bars of many series, walked on a minute at a time."""

    def __init__(self, running: Runtime, series: int, history: int) -> None:
        self.running = running
        self.keys = [SeriesKey("alpaca", "sip", f"S{n:05}", Timeframe.MIN_1) for n in range(series)]
        calendar = running.calendar()
        now_us = running.clock.now_us()
        end = now_us - now_us % MINUTE
        self.start = calendar.back(end, history, MINUTE, "regular")
        spans = calendar.trading_spans(Span(self.start, end), "regular")
        self.stamps = np.concatenate([np.arange(a, b, MINUTE) for a, b in spans])
        self.random = np.random.default_rng(1)
        self.close = self.random.uniform(10, 500, series)
        asked = Span(calendar.first, end + 30 * 1440 * MINUTE)
        symbols = [key.symbol for key in self.keys]
        running.store.record("alpaca", {s: [] for s in symbols}, asked, now_us)

    def bars(self, series: int) -> Bars:
        """Return the history of one series."""
        count = len(self.stamps)
        close = np.round(
            self.close[series] * np.exp(np.cumsum(self.random.normal(0, 1e-3, count))), 2
        )
        self.close[series] = close[-1]
        return Bars(self.stamps, _values(close, self.random))

    def store(self, part: list[int]) -> None:
        """Store the history of some series as covered."""
        now_us = self.running.clock.now_us()
        covered = Span(self.start, int(self.stamps[-1]) + MINUTE)
        commits = [Commit(self.keys[n], self.bars(n), covered, now_us, covered.end) for n in part]
        self.running.store.commit(commits)

    def next_minute(self) -> dict[SeriesKey, Bars]:
        """Let a minute pass; store and return its bars."""
        clock = self.running.clock
        assert isinstance(clock, FixedClock)
        stamp = int(self.stamps[-1]) + MINUTE
        self.stamps = np.append(self.stamps, stamp)
        clock.advance(minutes=1)
        self.close = np.round(self.close * np.exp(self.random.normal(0, 1e-3, len(self.close))), 2)
        values = _values(self.close, self.random)
        found = {
            key: Bars(np.array([stamp]), np.ascontiguousarray(values[:, n : n + 1]))
            for n, key in enumerate(self.keys)
        }
        covered = Span(stamp, stamp + MINUTE)
        now_us = clock.now_us()
        commits = [Commit(key, bars, covered, now_us) for key, bars in found.items()]
        for at in range(0, len(commits), 1000):
            self.running.store.commit(
                commits[at : at + 1000], before_commit=self.running.cache.raise_floor
            )
        return found


def _values(close: np.ndarray[Any, Any], random: np.random.Generator) -> np.ndarray[Any, Any]:
    volume = random.integers(100, 100_000, close.shape).astype(np.float64)
    return np.stack([close, close + 0.02, close - 0.02, close, volume, close, volume // 100])


def timed(work: Callable[[], object]) -> float:
    """Return the milliseconds of one call."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def updates(database_url: str, redis_url: str, series: int) -> list[Row]:
    """Begin `series` from stored bars, then update them minute by minute."""
    server = redis.Redis.from_url(redis_url)
    server.flushdb()
    with runtime_without_broker(database_url, redis_url) as running:
        updater = IndicatorUpdater(running)
        universe = Universe(running, series, 1000)
        for at in range(0, series, 250):
            universe.store(list(range(at, min(at + 250, series))))
        empty = dict.fromkeys(universe.keys, Bars.empty())
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used = _used(server)
        begun = timed(lambda: updater.update(empty))
        assert len(updater) == series, updater.counts
        kilobytes = (_used(server) - used) / series / 1024
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        best = {"all": float("inf"), "PostgreSQL": float("inf"), "Redis": float("inf")}
        stepper = updater._stepper
        parts: dict[str, float] = {}
        for name, owner, method in (
            ("PostgreSQL", stepper.store, "save"),
            ("Redis", stepper.cache, "step"),
        ):
            setattr(owner, method, _clocked(getattr(owner, method), name, parts))
        for _ in range(5):
            parts.clear()
            bars = universe.next_minute()
            parts["all"] = timed(lambda bars=bars: updater.update(bars))  # type: ignore[misc]
            best = {name: min(ms, parts.get(name, 0.0)) for name, ms in best.items()}
        assert updater.counts["begun"] == series
        usual = _usual_way(database_url, server, series)
    size = f"{series:,} series"
    scale = series / 10_000
    print(
        f"  Redis: {kilobytes:.1f} kB a series; this process: {grown:.0f} MB more while beginning "
        f"(at most); {series * 1000 / begun:,.0f} series begun a second"
    )
    return [
        Row("begin from stored bars", size, begun, "target 60 s", 60_000 * scale, 1, True),
        Row("one more bar, all in", size, best["all"], "target 2 s", 2000 * scale, 1, True),
        Row(
            "... of that PostgreSQL", size, best["PostgreSQL"], "to_sql, scaled", usual[0], 10, True
        ),
        Row("... of that Redis", size, best["Redis"], "JSON, scaled", usual[1], 3, True),
    ]


def _clocked(call: Callable[..., int], name: str, parts: dict[str, float]) -> Callable[..., int]:
    def clocked(*arguments: Any) -> int:
        began = time.perf_counter()
        found = call(*arguments)
        parts[name] = parts.get(name, 0.0) + (time.perf_counter() - began) * 1000
        return found

    return clocked


def _used(server: Any) -> int:
    return int(server.info("memory")["used_memory"])


def _usual_way(database_url: str, server: Any, series: int) -> tuple[float, float]:
    """Return the milliseconds of a long table through ``to_sql`` and of JSON through SET, of a
    sample and scaled."""
    stamp = pd.Timestamp(_NOW)
    long = pd.DataFrame(
        [("1min", f"S{n:05}", stamp, name, 1.5) for n in range(_SAMPLE) for name in KEPT_COLUMNS],
        columns=["timeframe", "symbol", "timestamp", "indicator_name", "indicator_value"],
    )
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    to_sql = timed(lambda: long.to_sql("usual_way", engine, if_exists="replace", index=False))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE usual_way")
    engine.dispose()
    rows = [{"t": stamp.isoformat(), **dict.fromkeys(KEPT_COLUMNS, 101.123456789)}] * 64

    def as_json() -> None:
        for n in range(_SAMPLE):
            held = json.loads(server.get(f"json:{n}") or "[]")
            server.set(f"json:{n}", json.dumps([*held[-63:], rows[0]]))

    for n in range(_SAMPLE):
        server.set(f"json:{n}", json.dumps(rows))
    return to_sql * series / _SAMPLE, timed(as_json) * series / _SAMPLE


def served(database_url: str, redis_url: str) -> list[Row]:
    """Hot `get_indicators` against hot `get_bars` of as many rows."""
    with client_on_sandbox(database_url, redis_url) as client:

        def bars() -> object:
            return client.get_bars("AAPL", "1min", limit=64)

        def indicators() -> object:
            return client.get_indicators("AAPL", None, "1min", limit=64)

        def computed() -> object:
            return client.get_indicators("AAPL", None, "1min", limit=65)

        best = take_turns({"bars": bars, "hot": indicators}, rounds=9, repeat=100)
        assert _tier(client) == "redis:1"
        slow = take_turns({"bars": bars, "computed": computed}, rounds=5, repeat=10)
    return [
        Row("hot get_indicators", "64 rows", best["hot"], "hot get_bars", best["bars"], 2, False),
        Row("computed", "65 rows", slow["computed"], "hot get_bars", slow["bars"], None, False),
    ]


def _tier(client: Client) -> str:
    frame = client.get_indicators("AAPL", None, "1min", limit=64)
    return str(frame.attrs["marketdata"]["tiers"])


def run(database_url: str, redis_url: str, series: int = 1_000) -> list[Row]:
    return [*updates(database_url, redis_url, series), *served(database_url, redis_url)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--series", type=int, default=10_000)
    chosen = parser.parse_args()
    for row in run(chosen.database_url, chosen.redis_url, chosen.series):
        print(row)
