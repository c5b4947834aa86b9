"""One cycle of the aggregator at 100, 1,000 and 10,000 symbols, and the same work done the usual way.

The market is a sandbox in a process of its own, warmed up: its bars are made before they are
asked for. A cycle fetches the new minute over HTTP, reads the minute before again, stores both,
updates the default indicators, brings Redis up to date and sends its notice.

The usual way, for a sample of symbols and scaled: one alpaca-py request a symbol with its models,
the series kept as JSON in Redis, pandas-ta over the last 500 bars, `DataFrame.to_sql`.

Run: ``PYTHONPATH=src python -m benchmarks.bench_cycle DATABASE_URL REDIS_URL [SYMBOLS...]`` (the Redis
database is flushed; schemas named bench_cycle_* are dropped).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pandas as pd
import psycopg
import redis
from psycopg import sql

from benchmarks.timing import Row
from marketdata.aggregator import Aggregator
from marketdata.clock import FixedClock
from marketdata.config import Settings
from marketdata.cycle_report import CycleReport
from marketdata.indicator_codec import CAPACITY
from marketdata.indicator_reading import bars_needed
from marketdata.indicator_updates import IndicatorUpdater
from marketdata.kept_indicators import KEPT
from marketdata.sandbox import simulated
from marketdata.types import Timeframe
from marketdata.wiring import Runtime

SIZES: Final = (100, 1_000, 10_000)
SAMPLE: Final = 20
CYCLES: Final = 5
LIMIT_MS: Final = 10_000.0
CALLS: Final = 20
START: Final = "2026-03-12T14:00:05-04:00"
"""A Thursday in session; every simulated symbol is listed by then."""


@dataclass(frozen=True)
class Counted:
    """One line of the report: a number that is no time, and what it may be at most."""

    what: str
    size: str
    number: float
    unit: str
    most: float

    @property
    def reached(self) -> bool:
        return self.number <= self.most

    def __str__(self) -> str:
        verdict = "ok" if self.reached else "MISSED"
        found = f"{self.number:>10.0f} {self.unit}"
        return f"{self.what:<44} {self.size:>14}  {found}  (<= {self.most:g} {verdict})"


class Market:
    """The sandbox in its own process, and a clock that both sides move together."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.market_process", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self.clock = FixedClock(datetime.fromisoformat(START))

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds=seconds)
        body = json.dumps({"advance": seconds}).encode()
        request = urllib.request.Request(f"{self.url}/_sandbox/clock", data=body, method="POST")
        urllib.request.urlopen(request, timeout=30).read()

    def calls(self) -> int:
        with urllib.request.urlopen(f"{self.url}/_sandbox/requests", timeout=30) as answer:
            return int(json.load(answer)["count"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@dataclass(frozen=True)
class Measured:
    """What the cycles of one size cost."""

    symbols: int
    first_seconds: float
    """Until nothing was missing any more, from an empty store."""
    best: CycleReport
    seconds: Sequence[float]
    """Of each steady cycle."""
    calls: int
    """Requests of one steady cycle, by the market's own count."""
    redis_bytes: int
    """Memory of Redis for each series, indicators included."""
    process_bytes: int

    def lines(self) -> Iterator[str]:
        stages = {k: v for k, v in self.best.seconds.items() if k != "total" and v >= 0.0005}
        yield (
            f"{self.symbols:>6} symbols: a cycle {min(self.seconds):.2f} s (all "
            f"{', '.join(f'{s:.2f}' for s in self.seconds)}), {self.calls} broker calls, "
            f"{self.best.bars} bars, {self.best.indicators} series' indicators"
        )
        yield "       stages: " + ", ".join(f"{k} {v:.2f} s" for k, v in stages.items())
        total = self.redis_bytes * self.symbols
        yield (
            f"       Redis {self.redis_bytes / 1000:.1f} kB a series, {total / 1e6:.0f} MB; "
            f"process {self.process_bytes / 1e6:.0f} MB; first load {self.first_seconds:.1f} s"
        )


def measure(market: Market, database_url: str, redis_url: str, symbols: int) -> Measured:
    """Fill an empty store with the newest blocks of `symbols`, then run steady cycles."""
    names = simulated(symbols)
    with _runtime(market, database_url, redis_url, symbols) as runtime:
        server = redis.Redis.from_url(redis_url)
        server.flushdb()
        empty = _used(server)

        def wanted() -> list[tuple[str, Any, int]]:
            return [(name, "1min", 0) for name in names]

        updater = IndicatorUpdater(runtime, wanted=wanted)
        history = bars_needed(KEPT, Timeframe.MIN_1, "regular") + CAPACITY
        aggregator = Aggregator(
            runtime, threading.Event(), wanted=wanted, indicators=updater, history=history
        )
        began = time.perf_counter()
        while aggregator.cycle().due:
            pass
        first = time.perf_counter() - began
        # Series with few bars need more history than a cycle loads at once.
        updater.fill(threading.Event(), 3600.0, at_once=500)
        reports: list[CycleReport] = []
        seconds: list[float] = []
        calls = 0
        for _ in range(CYCLES):
            market.advance(60)
            calls = market.calls()
            began = time.perf_counter()
            reports.append(aggregator.cycle())
            seconds.append(time.perf_counter() - began)
            calls = market.calls() - calls
        failed = [f for r in reports for f in r.failed]
        assert not failed, failed[0]
        best = min(reports, key=lambda r: r.seconds["total"])
        used = (_used(server) - empty) // symbols
        server.close()
        return Measured(symbols, first, best, seconds, calls, used, _resident())


@contextmanager
def _runtime(market: Market, database_url: str, redis_url: str, number: int) -> Iterator[Runtime]:
    schema = f"bench_cycle_{number}"
    drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(drop)
    settings = Settings.load(
        database_url=database_url, redis_url=redis_url, schema=schema, broker="sandbox",
        alpaca_url=market.url, alpaca_trading_url=market.url, clock=START, progress="off",
    )  # fmt: skip
    runtime = Runtime(settings, market.clock)
    try:
        yield runtime
    finally:
        runtime.close()
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(drop)


def _used(server: redis.Redis) -> int:
    told: Mapping[str, Any] = server.info("memory")
    return int(told["used_memory"])


def _resident() -> int:
    """Return the memory of this process, bytes; 0 where /proc does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)


# ------------------------------------------------------------------------------- the usual way


def usual_seconds(market: Market, database_url: str, redis_url: str) -> float:
    """Return the seconds that one symbol of a minute's work takes the usual way, best of three."""
    from alpaca.data.historical import StockHistoricalDataClient
    from sqlalchemy import create_engine

    client = StockHistoricalDataClient("key", "secret", url_override=market.url)
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://", 1))
    server = redis.Redis.from_url(redis_url)
    names = simulated(SAMPLE)
    end = datetime.fromtimestamp(market.clock.now_us() / 1e6, UTC)
    for name in names:
        history = _ask(client, name, end - timedelta(days=5), end).tail(500)
        server.set(f"usual:{name}", history.to_json(date_format="iso"))
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for name in names:
            _usual_minute(client, engine, server, name, end)
        best = min(best, (time.perf_counter() - began) / len(names))
    with engine.begin() as connection:
        for table in ("usual_bars", "usual_indicators"):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
    engine.dispose()
    server.close()
    return best


def _ask(client: Any, name: str, start: datetime, end: datetime) -> pd.DataFrame:
    from alpaca.data.enums import DataFeed
    from alpaca.data.requests import StockBarsRequest
    from alpaca.data.timeframe import TimeFrame

    request = StockBarsRequest(
        symbol_or_symbols=name, timeframe=TimeFrame.Minute, start=start, end=end, feed=DataFeed.SIP
    )
    frame: pd.DataFrame = client.get_stock_bars(request).df
    return frame.reset_index(level=0, drop=True) if len(frame) else frame


def _usual_minute(client: Any, engine: Any, server: redis.Redis, name: str, end: datetime) -> None:
    new = _ask(client, name, end - timedelta(minutes=3), end)
    kept = pd.read_json(_text(server.get(f"usual:{name}")))
    kept.index = pd.to_datetime(kept.index, utc=True)
    bars = pd.concat([kept, new])
    bars = bars[~bars.index.duplicated(keep="last")].tail(500)
    values = _indicators(bars).tail(1)
    new.assign(symbol=name).to_sql("usual_bars", engine, if_exists="append")
    values.assign(symbol=name).to_sql("usual_indicators", engine, if_exists="append")
    server.set(f"usual:{name}", bars.to_json(date_format="iso"))


def _text(answer: Any) -> Any:
    import io

    return io.StringIO(answer.decode())


def _indicators(bars: pd.DataFrame) -> pd.DataFrame:
    """Return the default set by pandas-ta's own functions."""
    import pandas_ta as ta

    close = bars["close"]
    parts: list[Any] = [
        *(ta.rsi(close, length=n, talib=False) for n in (14, 9)),
        *(ta.sma(close, length=n, talib=False) for n in (10, 20, 50, 200)),
        *(ta.ema(close, length=n, talib=False) for n in (10, 20, 50)),
        ta.macd(close, talib=False),
        ta.bbands(close, length=20, talib=False),
    ]
    values: pd.DataFrame = pd.concat(parts, axis=1)
    return values


# ------------------------------------------------------------------------------------- report


def run(database_url: str, redis_url: str, sizes: Sequence[int] = SIZES) -> list[Row | Counted]:
    """Measure every size; prints what has no place in a row."""
    rows: list[Row | Counted] = []
    market = Market()
    server = redis.Redis.from_url(redis_url)
    limit = int(server.config_get("maxmemory")["maxmemory"] or 0)
    server.config_set("maxmemory", 0)  # the embedded server's own limit is 256 MB
    try:
        usual: float | None = None
        for symbols in sizes:
            found = measure(market, database_url, redis_url, symbols)
            if usual is None:
                usual = usual_seconds(market, database_url, redis_url)
            for line in found.lines():
                print(f"  {line}", flush=True)
            ours = min(found.seconds) * 1000
            size = f"{symbols} symbols"
            rows.append(
                Row(
                    "a cycle", size, ours, "the usual way, scaled", usual * symbols * 1000, 10, True
                )
            )
            if symbols == max(SIZES):
                megabytes = found.redis_bytes * symbols / 1e6
                rows += [
                    Row("a cycle", size, ours, "the limit", LIMIT_MS, 1.0, False),
                    Counted("broker calls of a cycle", size, found.calls, "calls", CALLS),
                    Counted("memory of Redis", size, megabytes, "MB", 1000),
                ]
    finally:
        market.close()
        server.flushdb()
        server.config_set("maxmemory", limit)
        server.close()
    return rows


if __name__ == "__main__":
    chosen = [int(n) for n in sys.argv[3:]] or list(SIZES)
    for row in run(sys.argv[1], sys.argv[2], chosen):
        print(row)
