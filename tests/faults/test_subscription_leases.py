"""Owners crash without a word, servers go and come back: leases end when they should and no sooner."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

import marketdata as md
from marketdata.renewing import LeaseKeeper
from marketdata.store.subscriptions import Lease
from marketdata.types import Timeframe
from tests.redis_process import RedisProcess
from tests.stack import Stack, runtime
from tests.stack_callers import until

OWNERS, EACH = 1_000, 50
MINUTE = Timeframe.MIN_1
OWNER = """
import sys, time
from marketdata.client import connect
from marketdata.renewing import LeaseKeeper
from marketdata.types import Timeframe

with connect() as client:
    client.get_bars("AAPL", "1day", limit=1)
    keeper = LeaseKeeper(client._lazy.get().subscriptions, lease=1.0)
    keeper.hold("crashing", ["AAPL", "KO"], Timeframe.MIN_1)
    print("subscribed", flush=True)
    time.sleep(60)
"""


def execute(stack: Stack, statement: str) -> int:
    with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
        connection.execute("SET search_path = marketdata")
        return connection.execute(statement).rowcount


def terminate_all(stack: Stack) -> None:
    execute(
        stack,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'marketdata'",
    )


def test_a_thousand_owners_crash_and_anothers_symbols_keep_flowing(stack: Stack) -> None:
    manager = runtime(stack.client).subscriptions
    ours = ("AAPL", "MSFT", "KO")
    stack.client.subscribe(ours, owner="alive", priority=9)
    symbols = [f"S{n:05}" for n in range(2_000)]

    def subscribe(n: int) -> None:
        mine = [symbols[(n * 7 + k) % len(symbols)] for k in range(EACH)]
        manager.subscribe(f"owner-{n}", mine, MINUTE, holder=f"host:{n}")

    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(subscribe, range(OWNERS)))
    subscribing = time.perf_counter() - began
    assert execute(stack, "SELECT FROM symbol_subscriptions") == OWNERS * EACH + len(ours)
    began = time.perf_counter()
    wanted = manager.wanted()
    reading = time.perf_counter() - began
    assert len(wanted) == len(symbols) + len(ours)
    assert {s.symbol for s in wanted[:3]} == set(ours), "the highest priority comes first"

    def newest() -> dict[str, str]:
        """Keep fresh what is wanted, as the daemon does; return the newest minute of ours."""
        live = {s.symbol for s in manager.wanted()} & set(ours)
        return {s: str(stack.client.get_bars(s, "1min", limit=1).index[-1]) for s in live}

    assert set(newest().values()) == {"2024-03-14 18:59:00+00:00"}
    # They crash: nothing is unsubscribed, and a quarter of an hour passes on PostgreSQL's clock.
    execute(stack, "UPDATE symbol_subscriptions SET lease_until = lease_until - interval '15 min'")
    assert runtime(stack.client).leases.renew() == len(ours)
    began = time.perf_counter()
    report = manager.reconcile()
    expiring = time.perf_counter() - began
    assert report.summary() == {
        "wanted": len(ours), "expired": OWNERS * EACH, "owners_expired": OWNERS
    }  # fmt: skip
    assert {s.symbol for s in manager.wanted()} == set(ours)
    stack.set_time("2024-03-14T15:01:30-04:00")
    assert set(newest().values()) == {"2024-03-14 19:00:00+00:00"}
    print(
        f"{OWNERS} owners x {EACH}: subscribed in {subscribing:.2f} s, read in {reading:.3f} s, "
        f"expired in {expiring:.2f} s"
    )
    assert subscribing < 30


def test_a_killed_process_is_forgotten_and_a_living_one_is_not(
    stack: Stack, tmp_path: Path
) -> None:
    names = ("database_url", "redis_url", "broker", "alpaca_url", "alpaca_trading_url")
    environment = {f"MARKETDATA_{name.upper()}": str(stack.settings[name]) for name in names}
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=tmp_path,
        env={
            **environment,
            "MARKETDATA_CLOCK": repr(stack.clock),
            "PYTHONPATH": ":".join(sys.path),
        },
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"subscribed\n"
            manager = runtime(stack.client).subscriptions
            manager.pin("nightly", ["KO"], MINUTE)
            born = manager.held("crashing")
            until(lambda: _renewed(stack) > 1.2, 10)  # longer than its lease: the thread renews
            assert [h.symbol for h in manager.held("crashing")] == [h.symbol for h in born]
        finally:
            process.kill()
    until(lambda: not manager.held("crashing"), 5)
    assert {s.symbol for s in manager.wanted()} == {"KO"}, "the mirror outlived its first lease"


def _renewed(stack: Stack) -> float:
    with psycopg.connect(stack.settings["database_url"]) as connection:
        row = connection.execute(
            "SELECT extract(epoch FROM max(renewed_at - made_at))::float8 "
            "FROM marketdata.symbol_subscriptions WHERE owner = 'crashing'"
        ).fetchone()
        return float(row[0]) if row else 0.0


def test_renewals_outlive_an_absent_postgres(stack: Stack) -> None:
    """A renewal fails, then the next one succeeds, and what ran out meanwhile is there again."""
    manager = runtime(stack.client).subscriptions
    failed, renewed = threading.Event(), threading.Event()
    original = manager.renew

    def renew(leases: dict[Lease, int], lease: float = 0.0) -> set[Lease]:
        if not failed.is_set():
            failed.set()
            execute(stack, "DELETE FROM symbol_subscriptions")
            raise md.StoreUnavailableError("away")
        found = original(leases, lease)
        renewed.set()
        return found

    manager.renew = renew  # type: ignore[method-assign]
    keeper = LeaseKeeper(manager, lease=0.9)
    keeper.hold("one", ["AAPL"], MINUTE)
    assert failed.wait(5)
    assert renewed.wait(10), "the thread gave up"
    assert [s.symbol for s in manager.wanted()] == ["AAPL"]
    keeper.close()


def test_connections_killed_between_and_inside_calls_lose_nothing(stack: Stack) -> None:
    manager = runtime(stack.client).subscriptions
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.02):
            terminate_all(stack)

    killer = threading.Thread(target=kill)
    killer.start()
    wrong = 0
    try:
        for n in range(40):
            try:
                manager.replace("nightly", [f"S{n:05}", "AAPL"], MINUTE)
                expected = {f"S{n:05}", "AAPL"}
            except md.StoreUnavailableError:
                continue  # nobody knows whether it counted
            try:
                wrong += {s.symbol for s in manager.wanted()} != expected
            except md.StoreUnavailableError:
                continue
    finally:
        stop.set()
        killer.join()
    assert wrong == 0
    manager.replace("nightly", ["KO"], MINUTE)
    assert [s.symbol for s in manager.wanted()] == ["KO"]


@pytest.fixture
def server() -> Iterator[RedisProcess]:
    with RedisProcess() as found:
        yield found


def test_without_redis_postgres_answers(
    make_stack: Callable[..., Stack], server: RedisProcess
) -> None:
    stack = make_stack(redis_url=server.url)
    manager = runtime(stack.client).subscriptions
    manager.pin("nightly", ["AAPL"], MINUTE)
    assert [s.symbol for s in manager.wanted()] == ["AAPL"]
    server.stop()
    manager.pin("nightly", ["KO"], MINUTE)
    assert [s.symbol for s in manager.wanted()] == ["AAPL", "KO"]
    server.start()
    manager.pin("nightly", ["SPY"], MINUTE)
    assert [s.symbol for s in manager.wanted()] == ["AAPL", "KO", "SPY"]
    with server.client() as redis:
        until(lambda: manager.wanted() and redis.keys("*:wanted"), 10)
    server.freeze()
    began = time.monotonic()
    manager.unsubscribe("nightly", ["KO"])
    assert [s.symbol for s in manager.wanted()] == ["AAPL", "SPY"]
    assert time.monotonic() - began < 2
    server.thaw()
    with server.client() as redis:
        assert redis.keys("*:wanted"), "the mirror of before the change is still there"
        assert [s.symbol for s in manager.wanted()] == ["AAPL", "SPY"]
        until(lambda: manager.wanted() and redis.keys("*:wanted"), 10)
    assert [s.symbol for s in manager.wanted()] == ["AAPL", "SPY"]
