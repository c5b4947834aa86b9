"""Redis and PostgreSQL fail, freeze, forget and come back; the answers stay the same.

Figures are real: what a read costs with Redis gone is measured against the same read's answer from
PostgreSQL, in one process and run.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pandas as pd
import psycopg
import pytest
import redis

import marketdata as md
from marketdata.clock import to_micros
from marketdata.pausing import STORE_READ
from marketdata.sandbox import Fault
from marketdata.testing import Pause
from marketdata.types import CLOSE, Bars
from tests.redis_process import RedisProcess
from tests.stack import BARS, Stack, runtime, same, tiers
from tests.stack_callers import Outcome, ask, ask_together, block_names, until

HOT: dict[str, Any] = {"symbols": "AAPL", "timeframe": "1min", "limit": 500}
OLDER: dict[str, Any] = {
    "symbols": "AAPL", "timeframe": "1min", "start": "2024-03-11", "end": "2024-03-12"
}  # fmt: skip
ALLOWED = 0.050
"""Seconds a read may cost more than without Redis trouble, once the breaker is open."""


@pytest.fixture
def server() -> Iterator[RedisProcess]:
    with RedisProcess() as found:
        yield found


@pytest.fixture
def stack(make_stack: Callable[..., Stack], server: RedisProcess) -> Stack:
    """A stack whose Redis belongs to the test."""
    return make_stack(redis_url=server.url)


def seconds(call: Callable[[], object], times: int = 15) -> list[float]:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found


def read_from_store(stack: Stack) -> list[float]:
    """Return what the hot read costs when Redis is healthy and does not have it."""

    def read() -> None:
        stack.client.get_bars(**HOT)

    found = []
    for _ in range(10):
        stack.flush_redis()
        found += seconds(read, 1)
    return found


def hits_again(stack: Stack) -> bool:
    return tiers(stack.client.get_bars(**HOT)) == "redis:1"


# ------------------------------------------------------------------------------------------ Redis


@pytest.mark.exact("it asserts on time")
@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_fault_12_without_redis_answers_are_the_same_and_cheap(
    stack: Stack, server: RedisProcess, how: str
) -> None:
    expected = stack.client.get_bars(**HOT)
    assert hits_again(stack)
    healthy = statistics.median(read_from_store(stack))
    assert hits_again(stack)
    stack.forget_calls()
    server.stop() if how == "stopped" else server.freeze()
    try:
        first = seconds(lambda: same(stack.client.get_bars(**HOT), expected), 1)[0]
        assert first < healthy + 1.0, "the read that finds out waits for one time-out, not a minute"
        times = seconds(lambda: same(stack.client.get_bars(**HOT), expected), 30)
        assert tiers(stack.client.get_bars(**HOT)) == "postgres:1"
        added = statistics.median(times) - healthy
        print(f"Redis {how}: first read {first:.3f} s, then {added * 1000:+.1f} ms a read")
        assert added < ALLOWED
        # Writes go on as well: a new minute, and a series never asked before.
        stack.set_time("2024-03-14T15:01:30-04:00")
        assert len(stack.client.get_bars(**HOT)) == 500
        assert len(stack.client.get_bars("MSFT", "1min", limit=50)) == 50
    finally:
        server.start() if how == "stopped" else server.thaw()
    until(lambda: hits_again(stack), 20)
    assert stack.client.get_bars(**HOT).index[-1] == pd.Timestamp("2024-03-14T19:00Z")


@pytest.mark.exact("it asserts on time")
def test_fault_12_frozen_under_load_p99_is_bounded(stack: Stack, server: RedisProcess) -> None:
    symbols = ["AAPL", "MSFT", "SPY", "NVDA"]
    expected = {s: stack.client.get_bars(s, "1min", limit=100) for s in symbols}
    slow: list[float] = []
    wrong: list[str] = []
    stop = threading.Event()

    def load(symbol: str) -> None:
        while not stop.is_set():
            started = time.perf_counter()
            frame = stack.client.get_bars(symbol, "1min", limit=100)
            slow.append(time.perf_counter() - started)
            if not frame.equals(expected[symbol]):
                wrong.append(symbol)

    threads = [threading.Thread(target=load, args=(s,)) for s in symbols * 2]
    for thread in threads:
        thread.start()
    until(lambda: len(slow) > 50)
    server.freeze()
    slow.clear()
    until(lambda: len(slow) > 300)
    frozen = sorted(slow)
    server.thaw()
    until(lambda: hits_again(stack), 20)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    p99 = frozen[int(len(frozen) * 0.99)]
    print(f"Redis frozen under 8 threads: p50 {frozen[len(frozen) // 2]:.3f} s, p99 {p99:.3f} s")
    assert p99 < 1.0


def test_fault_11_damaged_blocks_are_never_served(stack: Stack, server: RedisProcess) -> None:
    expected = stack.client.get_bars(**HOT)
    assert hits_again(stack)
    source = random.Random(11)
    with server.client() as client:
        (name,) = block_names(client)
        block = client.get(name)
        assert isinstance(block, bytes)
        for _ in range(150):
            spoilt = bytearray(block)
            spoilt[source.randrange(len(spoilt))] ^= 1 << source.randrange(8)
            client.set(name, bytes(spoilt))
            same(stack.client.get_bars(**HOT), expected)
        for junk in (b"", b"md", block[:-1], block + b"x", os.urandom(4096), b"\0" * len(block)):
            client.set(name, junk)
            same(stack.client.get_bars(**HOT), expected)
        client.delete(name)
        client.rpush(name, b"a list where a block should be")
        same(stack.client.get_bars(**HOT), expected)
    assert stack.client.stats()["redis_damaged"] >= 150
    assert stack.calls() == 1


def test_a_redis_full_of_damage_costs_little(stack: Stack, server: RedisProcess) -> None:
    symbols = [a.symbol for a in stack.sandbox.source.assets()][:12]
    expected = stack.client.get_bars(symbols, "1min", limit=100, missing="skip")
    with server.client() as client:
        names = block_names(client)
        assert len(names) >= 10
        healthy = []
        for _ in range(5):
            client.delete(*names)
            healthy += seconds(lambda: stack.client.get_bars(symbols, "1min", limit=100), 1)
        damaged = []
        for _ in range(5):
            for name in names:
                client.set(name, os.urandom(20_000))
            damaged += seconds(
                lambda: same(stack.client.get_bars(symbols, "1min", limit=100), expected), 1
            )
    added = statistics.median(damaged) - statistics.median(healthy)
    print(f"a read of {len(symbols)} damaged blocks: {added * 1000:+.1f} ms")
    assert added < ALLOWED


def test_fault_13_flushall_in_the_middle_changes_nothing(
    stack: Stack, server: RedisProcess
) -> None:
    expected = stack.client.get_bars(**HOT)
    stack.forget_calls()
    stop = threading.Event()

    def flush() -> None:
        with server.client() as client:
            while not stop.is_set():
                client.flushall()

    flushing = threading.Thread(target=flush)
    flushing.start()
    try:
        for _ in range(60):
            same(stack.client.get_bars(**HOT), expected)
    finally:
        stop.set()
        flushing.join()
    assert stack.calls() == 0
    until(lambda: hits_again(stack))


def test_fault_19_a_block_read_before_a_commit_is_not_served_after_it(stack: Stack) -> None:
    """A reader pauses between its read of PostgreSQL and its write to Redis; meanwhile another
    client stores the next minute."""
    stack.client.get_bars(**HOT)
    stack.flush_redis()
    late = threading.Thread(target=lambda: ask(stack.client, HOT))
    with Pause(STORE_READ) as pause:
        late.start()
        assert pause.wait_reached()
        stack.set_time("2024-03-14T15:01:30-04:00")
        with stack.connect() as other:
            newest = other.get_bars(**HOT)
            assert newest.index[-1] == pd.Timestamp("2024-03-14T19:00Z")
            pause.release()
            late.join()
            same(other.get_bars(**HOT), newest)
            same(stack.client.get_bars(**HOT), newest)
    assert tiers(stack.client.get_bars(**HOT)) == "redis:1"


class Corrected:
    """A market that has corrected the close of one minute."""

    def __init__(self, market: Any, minute: str, close: float) -> None:
        self._market = market
        self._label = to_micros(datetime.fromisoformat(minute))
        self._close = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._market, name)

    def minutes(self, *asked: Any, **options: Any) -> Iterator[Bars]:
        for bars in self._market.minutes(*asked, **options):
            values = bars.values.copy()
            values[CLOSE, bars.timestamp == self._label] = self._close
            yield Bars(bars.timestamp, values)


def test_fault_19_a_corrected_bar_is_not_undone_by_a_late_block(stack: Stack) -> None:
    """The writer of the correction dies before it writes Redis, and a reader that paused with the
    old bar in hand comes back: the floor alone keeps the old block from being served."""
    hour: dict[str, Any] = {**HOT, "limit": None, "start": "2024-03-14T14:00-04:00",
                            "end": "2024-03-14T15:00-04:00"}  # fmt: skip
    stack.client.get_bars(**HOT)
    stack.flush_redis()
    late = threading.Thread(target=lambda: ask(stack.client, HOT))
    with Pause(STORE_READ) as pause:
        late.start()
        assert pause.wait_reached()
        source: Any = Corrected(stack.sandbox.source, "2024-03-14T14:59-04:00", 12.34)
        stack.sandbox.source = source
        stack.set_time("2024-03-14T15:01:30-04:00")
        with stack.connect() as other:
            other_cache: Any = runtime(other).cache
            other_cache.put = lambda *_: None
            assert other.get_bars(**HOT)["close"].iloc[-2] == 12.34, "the minute is read again"
        pause.release()
        late.join()
    found = stack.client.get_bars(**hour)
    assert found["close"].iloc[-1] == 12.34
    assert stack.calls() == 2
    # Invariant 15: from here on Redis serves the correction.
    stack.client.get_bars(**HOT)
    again = stack.client.get_bars(**hour)
    assert tiers(again) == "redis:1"
    same(again, found)


# -------------------------------------------------------------------------------------- PostgreSQL


def terminate_all(stack: Stack) -> int:
    """End every session of clients on the stack's database; return how many."""
    with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
        ended = connection.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert ended is not None
    return int(ended[0])


def test_fault_16_sessions_ended_under_load(stack: Stack) -> None:
    symbols = ["AAPL", "MSFT", "SPY", "NVDA"]
    question: dict[str, Any] = {
        "timeframe": "1min", "start": "2024-03-12", "end": "2024-03-13"
    }  # fmt: skip
    expected = {s: stack.client.get_bars(s, **question) for s in symbols}
    stop = threading.Event()
    right: list[str] = []
    errors: list[BaseException] = []
    wrong: list[str] = []

    def load(symbol: str) -> None:
        while not stop.is_set():
            try:
                frame = stack.client.get_bars(symbol, **question)
            except BaseException as error:
                errors.append(error)
            else:
                (right if frame.equals(expected[symbol]) else wrong).append(symbol)

    threads = [threading.Thread(target=load, args=(s,)) for s in symbols * 2]
    for thread in threads:
        thread.start()
    ended = 0
    for _ in range(8):
        answered = len(right)
        ended += terminate_all(stack)
        until(lambda answered=answered: len(right) > answered + 8)
    stop.set()
    for thread in threads:
        thread.join()
    print(f"{ended} sessions ended, {len(right)} right answers, {len(errors)} errors")
    assert ended > 8
    assert wrong == []
    assert {type(e) for e in errors} <= {md.StoreUnavailableError}
    assert len(errors) <= ended
    for symbol in symbols:
        same(stack.client.get_bars(symbol, **question), expected[symbol])


def test_fault_16_sessions_ended_in_the_middle_of_a_walk(stack: Stack) -> None:
    hold = stack.sandbox.faults.add(Fault("hold", match=BARS, nth=2))
    stack.sandbox.faults.add(Fault("short_page", match=BARS, times=None, limit=300))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(ask(stack.client, OLDER)))
    thread.start()
    assert hold.wait_fired()
    assert terminate_all(stack) >= 1
    hold.release()
    thread.join()
    assert found[0].error == "", "an idempotent transaction is tried again"
    stack.forget_calls()
    assert ask(stack.client, OLDER).digest == found[0].digest
    assert stack.calls() == 0


def at_once(*asked: tuple[md.Client, dict[str, Any]]) -> list[Outcome]:
    """Let each client ask its question, all at once."""
    found: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda client=client, q=q: found.append(ask(client, q)))
        for client, q in asked
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_fault_17_two_writers_in_opposite_order(stack: Stack) -> None:
    symbols = ["AAPL", "MSFT", "NVDA", "SPY", "TSLA", "BRK.B"]
    with stack.connect() as other:
        for day in range(4, 9):
            window = {"timeframe": "1min", "start": f"2024-03-0{day}T10:00-05:00",
                      "end": f"2024-03-0{day}T11:00-05:00"}  # fmt: skip
            results = at_once(
                (stack.client, {"symbols": symbols, **window}),
                (other, {"symbols": symbols[::-1], **window}),
            )
            assert [r.error for r in results] == ["", ""]
            assert results[0].digest == results[1].digest
    assert stack.calls() == 5, "each window walked once"


def test_fault_18_a_read_only_database_claims_nothing(stack: Stack) -> None:
    kept = stack.client.get_bars(**OLDER)
    name = psycopg.conninfo.conninfo_to_dict(stack.settings["database_url"])["dbname"]

    def take_writes(allowed: bool) -> None:
        with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            value = "off" if allowed else "on"
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        terminate_all(stack)

    take_writes(False)
    same(stack.client.get_bars(**OLDER), kept)
    with pytest.raises(md.StoreReadOnlyError) as caught:
        stack.client.get_bars("MSFT", "1min", limit=10)
    assert caught.value.cure
    assert stack.client.coverage("MSFT", "1min") == []
    take_writes(True)
    assert len(stack.client.get_bars("MSFT", "1min", limit=10)) == 10


def test_postgres_down_is_a_typed_error_at_once(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    hot = stack.client.get_bars(**HOT)
    assert hits_again(stack)
    store: Any = runtime(stack.client).store
    store.database._parameters.update(host="127.0.0.1", port="9", hostaddr=None)
    store.database._parameters = {
        k: v for k, v in store.database._parameters.items() if v is not None
    }
    store.database.close()
    same(stack.client.get_bars(**HOT), hot)  # what Redis has is still served
    started = time.monotonic()
    with pytest.raises(md.StoreUnavailableError, match="doctor"):
        stack.client.get_bars(**OLDER)
    assert time.monotonic() - started < 4


def test_both_down_for_a_moment_and_back(stack: Stack, server: RedisProcess) -> None:
    expected = stack.client.get_bars(**HOT)
    server.stop()
    terminate_all(stack)
    with contextlib.suppress(md.StoreUnavailableError):
        same(stack.client.get_bars(**HOT), expected)
    same(stack.client.get_bars(**HOT), expected)
    server.start()
    until(lambda: hits_again(stack), 20)


def test_redis_killed_under_many_readers_and_a_writer(stack: Stack, server: RedisProcess) -> None:
    """The clock moves, minutes arrive, Redis comes and goes; nobody sees an older newest bar."""
    stack.client.get_bars(**HOT)
    for minute in range(1, 7):
        stack.set_time(f"2024-03-14T15:{minute:02}:30-04:00")
        if minute == 2:
            server.stop()
        if minute == 5:
            server.start()
        outcomes = ask_together(stack.client, [HOT] * 8)
        assert {o.error for o in outcomes} == {""}
        assert len({o.digest for o in outcomes}) == 1
        newest = stack.client.get_bars(**HOT).index[-1]
        assert newest == pd.Timestamp(f"2024-03-14T15:{minute - 1:02}", tz="America/New_York")
    with redis.Redis.from_url(server.url) as client:
        assert client.ping()
    until(lambda: hits_again(stack), 20)
    assert stack.client.get_bars(**HOT).index[-1] == newest
