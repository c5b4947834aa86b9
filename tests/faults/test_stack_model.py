"""The stack against the market itself, step by random step, with faults thrown in.

Each step moves the clock, spoils something or asks something. An answer must be what the market
says, bar for bar; an error must be typed, in time, and gone once the fault is. The seed is in the
test's name: the same seed takes the same steps.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pandas as pd
import psycopg
import pytest
import redis

import marketdata as md
from marketdata import frames, planning, resample
from marketdata.clock import from_micros
from marketdata.queries import select
from marketdata.sandbox import Fault
from marketdata.spans import Span
from marketdata.types import DAY, Bars, Timeframe
from tests.stack import BARS, Stack, runtime, same
from tests.stack_callers import block_names

SYMBOLS = ["AAPL", "MSFT", "BRK.B", "S00042"]
FRAMES = ["1min", "1min", "1min", "5min", "30min", "1hour", "4hour", "1day", "1week"]
KEPT: dict[str, Any] = {"kinds": ["status", "cut", "bars_null", "html", "reset", "stall"]}


class Model:
    """What the market says, computed without store, cache or planning of fetches."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._running = runtime(stack.client)

    def bars(self, symbol: str, query: Any) -> Bars:
        """Return the closed bars of one symbol that answer `query`."""
        market, calendar = self._stack.sandbox.source, self._running.calendar()
        caps = self._running.broker.capabilities("sip")
        timeframe, window = query.timeframe, query.window
        base = Timeframe.MIN_1 if timeframe.intraday else Timeframe.DAY_1
        edge = planning.frontier(calendar, base, caps, self._stack.clock.now_us())
        start = (
            window.start
            if window.start is not None
            else edge - (400 if timeframe.intraday else 5000) * DAY
        )
        span = Span(start - 40 * DAY, min(max(window.end, start), edge) + 40 * DAY)
        if base is Timeframe.MIN_1:
            found = Bars.concat(list(market.minutes(symbol, span, "sip")))
            found = found.within(Span(span.start, edge))
        else:
            found = market.days(symbol, span, "sip")
            found = found.take(calendar.close[calendar.session_index(found.timestamp)] <= edge)
        if timeframe is not base:
            closed = planning.closed_labels(calendar, timeframe, edge)
            found = resample.resample(found, base, timeframe, calendar, query.session)
            found = found.within(Span(span.start, closed))
        return select(found.within(Span(start, window.end)), query, calendar)

    def frame(self, query: Any, single: bool) -> pd.DataFrame:
        series = {s: self.bars(s, query) for s in query.symbols}
        if single:
            return frames.single_frame(series[query.symbols[0]], "UTC")
        return frames.multi_frame(series, "UTC")


class Walk:
    """One random walk over one stack."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self.stack = stack
        self.random = random.Random(seed)
        self.model = Model(stack)
        self.questions = self.errors = 0

    def step(self) -> None:
        chance = self.random.random()
        if chance < 0.04:
            self.crowd()
        elif chance < 0.12:
            self.move_clock()
        elif chance < 0.20:
            self.trouble()
        else:
            self.ask()

    def move_clock(self) -> None:
        by = self.random.choice([61, 300, 3600, 5 * 3600, 26 * 3600, 3 * 86400])
        self.stack.clock.advance(seconds=self.random.randrange(1, by))

    def trouble(self) -> None:
        kind = self.random.choice(["flush", "damage", "terminate", "reconnect"])
        if kind == "flush":
            self.stack.flush_redis()
        elif kind == "damage":
            with redis.Redis.from_url(self.stack.settings["redis_url"]) as server:
                for name in block_names(server):
                    block = bytearray(server.get(name) or b"x")
                    block[self.random.randrange(len(block))] ^= 0x10
                    server.set(name, bytes(block))
        elif kind == "terminate":
            with psycopg.connect(self.stack.settings["database_url"], autocommit=True) as other:
                other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        else:
            self.stack.client.close()
            self.stack.client = self.stack.connect()
            self.model = Model(self.stack)

    def crowd(self) -> None:
        """Two clients answer six questions at once."""
        asked = [self.question() for _ in range(6)]
        found: dict[int, pd.DataFrame] = {}
        with self.stack.connect() as other:

            def one(at: int) -> None:
                client = other if at % 2 else self.stack.client
                found[at] = client.get_bars(**asked[at])

            threads = [threading.Thread(target=one, args=(at,)) for at in range(len(asked))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        for at, question in enumerate(asked):
            assert at in found, f"no answer to {question}"
            self.check(question, found[at])

    def question(self) -> dict[str, Any]:
        pick = self.random
        asked: dict[str, Any] = {"timeframe": pick.choice(FRAMES)}
        asked["symbols"] = (
            pick.choice(SYMBOLS)
            if pick.random() < 0.5
            else pick.sample(SYMBOLS, pick.randrange(1, 4))
        )
        asked["session"] = pick.choice(["regular", "regular", "extended"])
        now = from_micros(self.stack.clock.now_us())
        if pick.random() < 0.4:
            most = 60 if asked["timeframe"] in ("1hour", "4hour") else 500
            asked["limit"] = min(most, pick.choice([1, 5, 60, 500]))
        if pick.random() < 0.6 or "limit" not in asked:
            back = timedelta(minutes=pick.randrange(1, pick.choice([600, 6000, 12000])))
            asked["start"] = now - back
            if pick.random() < 0.6:
                asked["end"] = asked["start"] + timedelta(minutes=pick.randrange(1, 6000))
        return asked

    def ask(self) -> None:
        asked = self.question()
        faults = self.stack.sandbox.faults
        if self.random.random() < 0.25:
            kind = self.random.choice(KEPT["kinds"])
            nth, times = self.random.choice([(1, 1), (2, 1), (1, None), (2, None)])
            faults.add(Fault(kind, match=BARS, nth=nth, times=times))
        if self.random.random() < 0.3:
            limit = self.random.choice([50, 200, 999])
            faults.add(Fault("short_page", match=BARS, times=None, limit=limit))
        self.questions += 1
        timeout = 1.5 if any(f.kind == "stall" for f in faults) else 30
        started = time.monotonic()
        try:
            found = self.stack.client.get_bars(**asked, timeout=timeout)
        except (md.BrokerError, md.StoreUnavailableError) as error:
            assert time.monotonic() - started < timeout + 1
            assert error.transient  # noqa: PT017
            self.errors += 1
            faults.clear()
            found = self.repeat(asked)
        faults.clear()
        self.check(asked, found)

    def repeat(self, asked: dict[str, Any]) -> pd.DataFrame:
        """Ask again after an error; the broker may be left alone for some seconds more."""
        deadline = time.monotonic() + 15
        while True:
            try:
                return self.stack.client.get_bars(**asked)
            except md.BrokerUnavailableError as error:
                assert error.facts.get("circuit_open"), "an error was remembered"  # noqa: PT017
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def check(self, asked: dict[str, Any], found: pd.DataFrame) -> None:
        request = self.stack.client._request(
            asked["symbols"],
            asked["timeframe"],
            start=asked.get("start"),
            end=asked.get("end"),
            period=None,
            limit=asked.get("limit"),
            session=asked["session"],
            feed=None,
        )
        expected = self.model.frame(request.query, isinstance(asked["symbols"], str))
        try:
            same(found, expected)
        except AssertionError as difference:
            told = dict(found.attrs["marketdata"])
            raise AssertionError(f"{asked} at {self.stack.clock!r}, {told}") from difference

    def check_coverage(self) -> None:
        """Whatever is covered holds exactly the market's bars."""
        for symbol in SYMBOLS:
            for interval in self.stack.client.coverage(symbol, "1min"):
                asked: dict[str, Any] = {
                    "symbols": symbol, "timeframe": "1min", "session": "extended",
                    "start": interval.start, "end": interval.end,
                }  # fmt: skip
                self.stack.flush_redis()
                self.check(asked, self.stack.client.get_bars(**asked))


SEEDS = [int(s) for s in os.environ.get("MARKETDATA_TEST_SEEDS", "1 2 3").split()]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.filterwarnings("ignore::marketdata.SplitInRangeWarning")
def test_any_walk_answers_as_the_market_does(make_stack: Callable[..., Stack], seed: int) -> None:
    stack = make_stack(at="2024-03-05T10:15:30-05:00")
    walk = Walk(stack, seed)
    try:
        for _ in range(60):
            walk.step()
        stack.forget_calls()
        walk.check_coverage()
        assert stack.calls() == 0, "what is covered was asked again"
    finally:
        stack.client.close()
    print(f"seed {seed}: {walk.questions} questions, {walk.errors} errors on the way")
