"""A thousand live algorithms on one bar close: from the daemon's notice to the last `on_bar`.

The market is a sandbox in a process of its own. An aggregator stores the minute of 500 symbols,
brings Redis up to date and sends its notice; a runner hears it, reads each series once, and steps
1,000 algorithms of 10 symbols each. Then everything is stored in one transaction.

Beside it: the same algorithms each reading their own ten symbols from the same warm tiers.

Run: ``PYTHONPATH=src python -m benchmarks.bench_live DATABASE_URL REDIS_URL`` (the Redis database is
flushed; the schema bench_live is dropped).
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
import redis

import marketdata as md
from algorithms import Algorithm, Context
from algorithms.blotter import Costs
from algorithms.live.journal import Journal
from algorithms.live.records import Claim, Registration
from algorithms.live.runner import LiveRunner
from benchmarks.bench_cycle import START, Counted, Market
from benchmarks.timing import Row
from marketdata.aggregator import Aggregator
from marketdata.config import Settings
from marketdata.sandbox import simulated
from marketdata.wiring import Runtime

ALGORITHMS: Final = 1_000
SERIES: Final = 500
SYMBOLS: Final = 10
CYCLES: Final = 8
SAMPLE: Final = 20
LIMIT_MS: Final = 1_000.0
_SCHEMA: Final = "bench_live"
_WAIT: Final = 120.0


class Cross(Algorithm):
    """Holds each of its symbols while the fast average is above the slow one."""

    timeframe = "1min"
    indicators = {"fast": "sma_10", "slow": "sma_30", "rsi": "rsi_14"}

    def on_bar(self, ctx: Context) -> None:
        for symbol in ctx.symbols:
            view = ctx[symbol]
            if not view.has_bar:
                continue
            if view.fast[-1] > view.slow[-1] and view.rsi[-1] < 70:
                if not view.position:
                    ctx.order(5, symbol)
            elif view.position:
                ctx.close_position(symbol)
        _Watch.seen(ctx.now_us)


class _Watch:
    """When the last `on_bar` of each moment ended."""

    calls: dict[int, int] = {}
    last: dict[int, float] = {}

    @classmethod
    def seen(cls, moment: int) -> None:
        cls.calls[moment] = cls.calls.get(moment, 0) + 1
        cls.last[moment] = time.perf_counter()


@dataclass
class Measured:
    """What the cycles cost, in milliseconds: from the notice to the last call, and to store."""

    decided: list[float] = field(default_factory=list)
    stored: list[float] = field(default_factory=list)
    broker_calls: int = 0
    reads: list[int] = field(default_factory=list)
    steps: int = 0
    orders: int = 0
    started: float = 0.0
    alone: float = 0.0


def measure(market: Market, database_url: str, redis_url: str) -> Measured:
    """Run the cycles and return what they cost."""
    found = Measured()
    names = simulated(SERIES)
    noticed = [0.0]
    with _stack(market, database_url, redis_url) as (daemon, client, journal):
        wanted = [(name, "1min", 0) for name in names]

        def notify(keys: Any, until_us: int) -> None:
            noticed[0] = time.perf_counter()
            daemon.notices.publish_closed(keys, until_us)

        aggregator = Aggregator(daemon, threading.Event(), wanted=lambda: wanted, notify=notify)
        while aggregator.cycle().due:
            pass
        _register(journal, names)
        runner = LiveRunner(client, journal, factory=_make)
        thread = threading.Thread(target=runner.run, daemon=True)
        began = time.perf_counter()
        thread.start()
        _until(lambda: list(runner.hosted.values()).count("running") == ALGORITHMS)  # type: ignore[arg-type]
        found.started = time.perf_counter() - began
        for turn in range(CYCLES + 2):  # the first two make the follower trust the daemon
            _one(market, aggregator, runner, client, noticed, found if turn >= 2 else Measured())
        runner.stop()
        thread.join(_WAIT)
        found.steps = runner.cycles.steps
        found.orders = runner.cycles.orders
        found.alone = _alone(client, names)
    return found


def _one(
    market: Market,
    aggregator: Aggregator,
    runner: LiveRunner,
    client: md.Client,
    noticed: list[float],
    found: Measured,
) -> None:
    market.advance(60)
    moment = market.clock.now_us() // 60_000_000 * 60_000_000
    stored = runner.cycles.stored
    before = client.stats()
    assert not aggregator.cycle().failed
    # Quiet symbols have no bar: their algorithms' other nine have.
    _until(
        lambda: runner.cycles.stored > stored and _Watch.calls.get(moment, 0) >= ALGORITHMS * 0.99
    )
    after = client.stats()
    found.decided.append((_Watch.last[moment] - noticed[0]) * 1000)
    found.stored.append(runner.cycles.stored_seconds * 1000)
    found.broker_calls += after["broker_requests"] - before["broker_requests"]
    tiers = ("series_from_redis", "series_from_postgres", "series_from_broker")
    found.reads.append(sum(after[t] - before[t] for t in tiers))


def _alone(client: md.Client, names: list[str]) -> float:
    """Return the milliseconds that the algorithms would take to read for themselves, scaled."""
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for number in range(SAMPLE):
            client.get_bars(_watched(names, number), "1min", limit=60)
        best = min(best, (time.perf_counter() - began) / SAMPLE)
    return best * 1000 * ALGORITHMS


def _watched(names: list[str], number: int) -> list[str]:
    return [names[(number * 7 + step * 41) % len(names)] for step in range(SYMBOLS)]


def _register(journal: Journal, names: list[str]) -> None:
    journal.register_all(
        [
            Registration(f"cross{number:04}", "bench:Cross", tuple(_watched(names, number)), "1min")
            for number in range(ALGORITHMS)
        ]
    )


def _make(claim: Claim) -> tuple[Algorithm, Costs]:
    registration = claim.record.registration
    return Cross(symbols=registration.symbols, name=registration.name), Costs()


def _until(holds: Any) -> None:
    end = time.perf_counter() + _WAIT
    while not holds():
        if time.perf_counter() > end:
            raise TimeoutError("the algorithms did not come that far")
        time.sleep(0.005)


@contextmanager
def _stack(
    market: Market, database_url: str, redis_url: str
) -> Iterator[tuple[Runtime, md.Client, Journal]]:
    drop = f"DROP SCHEMA IF EXISTS {_SCHEMA} CASCADE"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(drop)
    with redis.Redis.from_url(redis_url) as server:
        server.flushdb()
    settings = Settings.load(
        database_url=database_url, redis_url=redis_url, schema=_SCHEMA, broker="sandbox",
        alpaca_url=market.url, alpaca_trading_url=market.url, clock=START, progress="off",
    )  # fmt: skip
    daemon = Runtime(settings, market.clock)
    client = md.Client(settings, clock=market.clock)
    database = client.database()
    journal = Journal(database.url, database.schema)
    try:
        yield daemon, client, journal
    finally:
        journal.close()
        client.close()
        daemon.close()
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(drop)


def run(database_url: str, redis_url: str) -> list[Row | Counted]:
    """Measure; prints what has no place in a row."""
    market = Market()
    try:
        found = measure(market, database_url, redis_url)
    finally:
        market.close()
    decided = ", ".join(f"{ms:.0f}" for ms in found.decided)
    stored = ", ".join(f"{ms:.0f}" for ms in found.stored)
    print(f"  from the notice to the last on_bar: {decided} ms; each transaction: {stored} ms")
    print(f"  {found.orders} orders in {found.steps} steps; {found.started:.1f} s to begin all")
    size = f"{ALGORITHMS} x {SYMBOLS} of {SERIES}"
    ours = statistics.median(found.decided)
    return [
        Row("all on_bar of a close", size, ours, "the limit", LIMIT_MS, 1.0, False),
        Row("the worst close", size, max(found.decided), "the limit", LIMIT_MS, None, False),
        Row("all on_bar of a close", size, ours, "each reads alone", found.alone, None, True),
        Counted("broker calls of all closes", size, found.broker_calls, "calls", 0),
        Counted("reads of series a close", size, max(found.reads), "reads", SERIES),
    ]


if __name__ == "__main__":
    for row in run(sys.argv[1], sys.argv[2]):
        print(row)
