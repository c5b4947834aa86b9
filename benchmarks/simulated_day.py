"""A whole trading day of the aggregator at ten thousand symbols: its broker calls, and what it leaves open.

The market is a sandbox in a process of its own; both sides move on one replayed clock through the
day as the daemon's schedule has it: a cycle each quarter of an hour from four in the morning, each
minute of the session, and each quarter of an hour until the evening, with every re-read on the way.
No backfill. It takes about four seconds a cycle: half an hour for 10,000 symbols.

Run: ``PYTHONPATH=src python -m benchmarks.simulated_day DATABASE_URL REDIS_URL [SYMBOLS]`` (the Redis
database is flushed; the schema bench_cycle_SYMBOLS is dropped). Exit code 1 if a bar is missing
or 10,000 calls were not enough.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import redis

from benchmarks.bench_cycle import START, Market, _runtime
from marketdata.aggregator import Aggregator
from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.indicator_updates import IndicatorUpdater
from marketdata.planning import gaps
from marketdata.protocols import ReadRequest
from marketdata.sandbox import GeneratedMarket, simulated
from marketdata.spans import Span
from marketdata.types import SeriesKey, Timeframe
from marketdata.wiring import Runtime

DAY: Final = START[:10]
LIMIT: Final = 10_000
COMPARED: Final = 200
"""Symbols whose stored bars are compared with the market's, one by one."""


def moments() -> list[datetime]:
    """Return when the schedule runs a cycle on DAY: 5 s past, New York time."""

    def ticks(first: str, last: str, minutes: int) -> list[datetime]:
        begin, end = (datetime.fromisoformat(f"{DAY}T{t}:05-04:00") for t in (first, last))
        step = timedelta(minutes=minutes)
        return [begin + n * step for n in range((end - begin) // step + 1)]

    return [
        *ticks("04:15", "09:30", 15),
        *ticks("09:31", "16:01", 1),
        *ticks("16:15", "21:15", 15),
    ]


@dataclass(frozen=True)
class Day:
    """What one day cost and left."""

    symbols: int
    cycles: int
    calls: int
    failed: int
    gaps: int
    unsettled: int
    """Series whose session is not covered as final."""
    different: int
    """Of the compared symbols, those whose bars are not the market's."""
    bars: int
    seconds: Sequence[float]

    @property
    def reached(self) -> bool:
        wrong = self.failed + self.gaps + self.unsettled + self.different
        return self.calls < LIMIT and not wrong

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        return (
            f"{self.symbols} symbols, {self.cycles} cycles of {DAY}: {self.calls} broker calls "
            f"(< {LIMIT} {'ok' if self.calls < LIMIT else 'MISSED'}), {self.bars} bars of the day, "
            f"{self.failed} failed requests, {self.gaps} series with a gap, {self.unsettled} not "
            f"final, {self.different} of {min(COMPARED, self.symbols)} compared differ; a cycle "
            f"{ordered[len(ordered) // 2]:.2f} s (median), {ordered[-1]:.2f} s (longest)"
        )


def run(database_url: str, redis_url: str, symbols: int, say: Callable[[str], None]) -> Day:
    """Replay the day for `symbols` generated symbols, 1min and 1day each."""
    names = simulated(symbols)
    market = Market()
    server = redis.Redis.from_url(redis_url)
    server.config_set("maxmemory", 0)
    server.flushdb()
    try:
        _back_to(market, moments()[0] - timedelta(minutes=15))
        with _runtime(market, database_url, redis_url, symbols) as runtime:
            return _replay(market, runtime, names, say)
    finally:
        market.close()
        server.flushdb()
        server.close()


def _replay(market: Market, runtime: Runtime, names: list[str], say: Callable[[str], None]) -> Day:
    def wanted() -> list[tuple[str, Any, int]]:
        return [(name, t, 0) for t in ("1min", "1day") for name in names]

    updater = IndicatorUpdater(runtime, wanted=wanted)
    aggregator = Aggregator(runtime, threading.Event(), wanted=wanted, indicators=updater)
    while aggregator.cycle().due:
        pass  # what subscribing brings: the newest blocks, before the day begins
    updater.fill(threading.Event(), 3600.0, at_once=500)
    say(f"filled with {market.calls()} calls; the day begins")
    before = market.calls()
    failed = 0
    seconds: list[float] = []
    for moment in moments():
        _forward_to(market, moment)
        began = time.perf_counter()
        report = aggregator.cycle()
        seconds.append(time.perf_counter() - began)
        failed += len(report.failed)
        if moment.minute == 0:
            say(f"{moment:%H:%M} {market.calls() - before} calls, cycle {seconds[-1]:.2f} s")
    calls = market.calls() - before
    open_, unsettled, different, bars = _left(runtime, names)
    return Day(len(names), len(seconds), calls, failed, open_, unsettled, different, bars, seconds)


def _left(runtime: Runtime, names: list[str]) -> tuple[int, int, int, int]:
    """Return how many series have a gap in DAY, are not final, differ; and the day's bars."""
    calendar = calendar_for(EXCHANGE, runtime.clock.now_us())
    begin, end = (
        int(datetime.fromisoformat(f"{DAY}T{t}-04:00").timestamp()) * 1_000_000
        for t in ("04:00", "20:00")
    )
    day = Span(begin, end)
    keys = [
        SeriesKey(runtime.provider, runtime.source.feed, name, timeframe)
        for timeframe in (Timeframe.MIN_1, Timeframe.DAY_1)
        for name in names
    ]
    states = runtime.store.states(keys)
    missing = [k for k in keys if gaps(day, states[k], calendar, k.timeframe)]
    minutes = [k for k in keys if k.timeframe is Timeframe.MIN_1]
    loose = [
        k for k in minutes if not any(s.start <= begin and end <= s.end for s in states[k].final)
    ]
    source = GeneratedMarket()
    different = bars = 0
    for number, key in enumerate(minutes):
        stored = runtime.store.read([ReadRequest(key, day)])[key][1]
        bars += len(stored)
        if number < COMPARED:
            theirs = list(source.minutes(key.symbol, day, "sip"))
            labels = [t for page in theirs for t in page.timestamp.tolist()]
            values = [v for page in theirs for v in page.values.T.tolist()]
            different += stored.timestamp.tolist() != labels
            different += repr(stored.values.T.tolist()) != repr(values)
    return len(missing), len(loose), different, bars


def _back_to(market: Market, moment: datetime) -> None:
    market.advance(moment.timestamp() - market.clock.now_us() / 1e6)


def _forward_to(market: Market, moment: datetime) -> None:
    seconds = moment.timestamp() - market.clock.now_us() / 1e6
    assert seconds >= 0, moment
    market.advance(seconds)


if __name__ == "__main__":
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 10_000
    found = run(sys.argv[1], sys.argv[2], count, lambda line: print(line, flush=True))
    print(found)
    sys.exit(0 if found.reached else 1)
