"""Redis frozen, killed, flushed, full, read-only or not Redis at all: slower, never wrong."""

from __future__ import annotations

import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marketdata.cache import Breaker, RedisCache
from marketdata.types import SeriesKey, Timeframe
from tests.block_examples import (
    AAPL,
    EPOCH,
    MSFT,
    assert_same_block,
    grown,
    some_block,
    some_growth,
)
from tests.redis_process import RedisProcess

TIMEOUT = 0.2


@pytest.fixture
def server() -> Iterator[RedisProcess]:
    with RedisProcess() as process:
        yield process


@pytest.fixture
def cache(server: RedisProcess) -> Iterator[RedisCache]:
    cache = RedisCache(server.url, EPOCH, timeout=TIMEOUT, breaker=Breaker(first=0.2, most=0.4))
    yield cache
    cache.close()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.005)


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def serves(cache: RedisCache) -> bool:
    return AAPL in cache.get([AAPL])


def test_fault_12_frozen_redis_costs_little_and_recovers_alone(
    server: RedisProcess, cache: RedisCache
):
    cache.put({AAPL: some_block()}, {AAPL: 600.0})
    assert serves(cache)
    server.freeze()
    try:
        assert timed(lambda: cache.get([AAPL])) < TIMEOUT + 0.3
        waits: list[float] = []

        def read() -> None:
            for _ in range(50):
                waits.append(timed(lambda: cache.get([AAPL])))
                time.sleep(0.01)

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # The threads run past several probes; none of the readers waits for one.
        waits.sort()
        assert len(waits) == 400
        assert waits[int(len(waits) * 0.99)] < 0.05
        assert timed(lambda: cache.put({AAPL: some_block()}, {AAPL: 60.0})) < 0.05
    finally:
        server.thaw()
    wait_until(lambda: serves(cache))
    assert_same_block(cache.get([AAPL])[AAPL], some_block())


def test_a_killed_redis_is_found_again_after_its_restart(server: RedisProcess, cache: RedisCache):
    cache.put({AAPL: some_block()}, {AAPL: 600.0})
    server.stop()
    assert timed(lambda: cache.get([AAPL])) < TIMEOUT + 0.3
    assert not serves(cache)
    cache.put({AAPL: some_block()}, {AAPL: 600.0})
    server.start()

    def put_and_served() -> bool:
        cache.put({AAPL: some_block()}, {AAPL: 600.0})
        return serves(cache)

    wait_until(put_and_served)


def test_a_redis_restarted_between_two_reads_is_not_noticed(
    server: RedisProcess, cache: RedisCache
):
    cache.put({AAPL: some_block()}, {AAPL: 600.0})
    server.stop()
    server.start()
    cache.put({AAPL: some_block()}, {AAPL: 600.0})
    assert serves(cache)
    assert cache.stats.errors == 0


def test_where_no_redis_listens_every_read_is_a_quick_miss():
    cache = RedisCache("redis://127.0.0.1:1/0", EPOCH)
    started = time.perf_counter()
    for _ in range(100):
        assert cache.get([AAPL, MSFT]) == {}
        cache.put({AAPL: some_block()}, {AAPL: 60.0})
        cache.raise_floor({AAPL: 2})
    assert time.perf_counter() - started < 1.0
    assert not cache.ping()
    assert cache.stats.misses == 200


def test_fault_13_flushall_loses_nothing_but_speed(server: RedisProcess, cache: RedisCache):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 600.0})
    with server.client() as client:
        client.flushall()
    assert not serves(cache)
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 600.0})
    assert serves(cache)
    cache.raise_floor({AAPL: 6})
    assert not serves(cache)


# ---------------------------------------------------------------------------------- stale blocks


def test_a_floor_not_raised_in_an_outage_is_raised_before_the_next_read(
    server: RedisProcess, cache: RedisCache, caplog: pytest.LogCaptureFixture
):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 600.0})
    server.freeze()
    try:
        assert timed(lambda: cache.raise_floor({AAPL: 6})) < TIMEOUT + 0.3
        assert "floors of 1 series not raised" in caplog.text
        assert cache.stats.floors_failed == 1
        # More while the breaker is open: no waiting, nothing forgotten.
        cache.raise_floor({MSFT: 3})
        cache.raise_floor({AAPL: 7})
    finally:
        server.thaw()
    served: list[int] = []

    def back() -> bool:
        served.extend(b.revision for b in cache.get([AAPL]).values())
        cache.put({MSFT: some_block(revision=3)}, {MSFT: 60.0})
        return MSFT in cache.get([MSFT])

    wait_until(back)
    assert served == []
    cache.put({AAPL: some_block(revision=6)}, {AAPL: 60.0})
    assert not serves(cache)
    cache.put({AAPL: some_block(revision=7)}, {AAPL: 60.0})
    assert serves(cache)


def test_raising_a_floor_tries_once_an_interval_while_the_breaker_is_open(server: RedisProcess):
    now = [100.0]
    breaker = Breaker(first=1.0, monotonic=lambda: now[0])
    cache = RedisCache(server.url, EPOCH, timeout=TIMEOUT, breaker=breaker)
    server.freeze()
    try:
        cache.raise_floor({AAPL: 5})
    finally:
        server.thaw()
    cache.raise_floor({AAPL: 6})
    assert not breaker.is_closed()
    now[0] += 1.0
    cache.raise_floor({MSFT: 8})
    assert breaker.is_closed()
    with server.client() as client:
        floors = {key: int(client.get(key) or 0) for key in client.keys("*:floor")}
    assert sorted(floors.values()) == [6, 8]
    cache.close()


def test_a_put_that_timed_out_and_arrives_late_changes_nothing(
    server: RedisProcess, cache: RedisCache
):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 600.0})
    server.freeze()
    try:
        # The bytes are in the socket; Redis will run them once it is thawed.
        cache.put({AAPL: some_block(revision=6, seed=6)}, {AAPL: 600.0})
        cache.raise_floor({AAPL: 7})
    finally:
        server.thaw()
    wait_until(lambda: cache.get([MSFT]) == {} and cache._link.breaker.is_closed())
    assert not serves(cache)


def test_fault_19_paused_between_store_read_and_put(server: RedisProcess, cache: RedisCache):
    read_old = threading.Event()
    committed = threading.Event()

    def slow_reader() -> None:
        old = some_block(revision=5)
        read_old.set()
        committed.wait(10)
        cache.put({AAPL: old}, {AAPL: 600.0})

    reader = threading.Thread(target=slow_reader)
    reader.start()
    assert read_old.wait(10)
    writer = RedisCache(server.url, EPOCH)
    writer.raise_floor({AAPL: 6})
    committed.set()
    reader.join()
    assert not serves(cache)
    new = some_block(revision=6, seed=6)
    writer.put({AAPL: new}, {AAPL: 600.0})
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 600.0})
    assert_same_block(cache.get([AAPL])[AAPL], new)
    writer.close()


# ------------------------------------------------------------------------------------ growing


def test_a_growth_that_timed_out_and_arrives_late_is_right_or_refused(
    server: RedisProcess, cache: RedisCache
):
    block = some_block(revision=5)
    cache.put({AAPL: block, MSFT: block}, {AAPL: 600.0, MSFT: 600.0})
    cache.raise_floor({AAPL: 6, MSFT: 6})
    growth = some_growth(block)
    server.freeze()
    try:
        # The bytes are in the socket; Redis will run them once it is thawed.
        sizes = cache.grow({AAPL: growth, MSFT: growth}, {AAPL: 600.0, MSFT: 600.0})
        assert sizes == {AAPL: 0, MSFT: 0}
        cache.raise_floor({MSFT: 7})
    finally:
        server.thaw()
    wait_until(lambda: cache.get([MSFT]) == {} and cache._link.breaker.is_closed())
    found = cache.get([AAPL, MSFT])
    assert list(found) == [AAPL]
    assert_same_block(found[AAPL], grown(block, growth))
    # Whoever believes that it failed puts the whole block, which is as right.
    cache.put({AAPL: grown(block, growth)}, {AAPL: 600.0})
    assert_same_block(cache.get([AAPL])[AAPL], grown(block, growth))


def test_while_redis_is_away_growing_costs_nothing(server: RedisProcess, cache: RedisCache):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 600.0})
    server.freeze()
    try:
        cache.raise_floor({AAPL: 6})
        assert timed(lambda: cache.grow({AAPL: some_growth(block)}, {AAPL: 60.0})) < 0.05
    finally:
        server.thaw()
    wait_until(lambda: cache.get([MSFT]) == {} and cache._link.breaker.is_closed())
    assert not serves(cache), "the floor that was owed has been raised"


def test_a_full_redis_does_not_grow_and_serves_nothing_stale(
    server: RedisProcess, cache: RedisCache
):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 600.0})
    _fill(server, "noeviction")
    cache.raise_floor({AAPL: 6})
    assert cache.grow({AAPL: some_growth(block)}, {AAPL: 600.0}) == {AAPL: 0}
    assert not serves(cache)


def test_fault_11_tails_damaged_inside_redis_are_misses(server: RedisProcess, cache: RedisCache):
    source = random.Random(12)
    block = some_block(20, revision=5)
    first = some_growth(block, 2)
    second = some_growth(grown(block, first), 2, back=1)
    expected = grown(block, first, second)
    cache.put({AAPL: block}, {AAPL: 600.0})
    for growth in (first, second):
        cache.raise_floor({AAPL: growth.revision})
        cache.grow({AAPL: growth}, {AAPL: 600.0})
    with server.client() as client:
        (name,) = [k for k in client.keys("*") if k.endswith(b":tail")]
        block_name = name.removesuffix(b":tail")
        intact, whole = client.get(name), client.get(block_name)
        assert isinstance(intact, bytes)
        assert isinstance(whole, bytes)
        for _ in range(300):
            at = source.randrange(len(intact))
            client.setrange(name, at, bytes([intact[at] ^ source.randrange(1, 256)]))
            assert cache.get([AAPL]) == {}
            assert not client.exists(name)
            client.set(name, intact)
            client.set(block_name, whole)
            assert_same_block(cache.get([AAPL])[AAPL], expected)
    assert cache.stats.damaged == 300


# ------------------------------------------------------------------------- full, read-only, wrong


def _fill(server: RedisProcess, policy: str) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", policy)
        client.set("ballast", b"x" * 2_000_000)
        client.config_set("maxmemory", "1500000")


def test_a_full_redis_takes_no_blocks_and_serves_no_stale_ones(
    server: RedisProcess, cache: RedisCache
):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 600.0})
    _fill(server, "noeviction")
    cache.put({MSFT: some_block()}, {MSFT: 600.0})
    assert cache.stats.errors == 1
    assert serves(cache), "a full server still reads"
    cache.raise_floor({AAPL: 6})
    assert not serves(cache)
    with server.client() as client:
        client.config_set("maxmemory", 0)
    cache.put({AAPL: some_block(revision=6)}, {AAPL: 600.0})
    assert serves(cache)


def test_a_read_only_redis_is_left_alone_until_it_can_be_told(
    server: RedisProcess, cache: RedisCache
):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 600.0})
    with server.client() as client:
        client.replicaof("127.0.0.1", 1)
    cache.put({MSFT: some_block()}, {MSFT: 600.0})
    assert serves(cache), "its blocks are good as long as nothing was committed"
    cache.raise_floor({AAPL: 6})
    for _ in range(20):
        assert not serves(cache)
        time.sleep(0.03)
    with server.client() as client:
        client.replicaof("NO", "ONE")
    wait_until(lambda: cache.get([MSFT]) == {} and cache._link.breaker.is_closed())
    assert not serves(cache)
    cache.put({AAPL: some_block(revision=6)}, {AAPL: 600.0})
    assert serves(cache)


def test_under_eviction_a_block_is_right_or_absent(server: RedisProcess, cache: RedisCache):
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", "3mb")
    keys = [SeriesKey("alpaca", "sip", f"A{n}", Timeframe.MIN_1) for n in range(200)]
    for n, key in enumerate(keys):
        cache.put({key: some_block(revision=n + 1, seed=n)}, {key: 600.0})
    found = cache.get(keys)
    assert 0 < len(found) < 200
    for n, key in enumerate(keys):
        if key in found:
            assert_same_block(found[key], some_block(revision=n + 1, seed=n))


def test_fault_11_blocks_damaged_inside_redis_are_misses(server: RedisProcess, cache: RedisCache):
    source = random.Random(11)
    block = some_block(20)
    cache.put({AAPL: block}, {AAPL: 600.0})
    with server.client() as client:
        name = next(k for k in client.keys("*") if not k.endswith(b":floor"))
        intact = client.get(name)
        assert isinstance(intact, bytes)
        for _ in range(300):
            at = source.randrange(len(intact))
            client.setrange(name, at, bytes([intact[at] ^ source.randrange(1, 256)]))
            assert cache.get([AAPL]) == {}
            assert not client.exists(name)
            client.set(name, intact)
            assert_same_block(cache.get([AAPL])[AAPL], block)
    assert cache.stats.damaged == 300


def test_a_server_that_is_not_redis_is_a_miss():
    with (
        tempfile.TemporaryDirectory(prefix="md-") as directory,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = str(Path(directory, "s"))
        listener.bind(path)
        listener.listen()
        listener.settimeout(5)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(1024)

        thread = threading.Thread(target=answer)
        thread.start()
        cache = RedisCache(f"unix://{path}", EPOCH)
        assert cache.get([AAPL]) == {}
        assert cache.stats.errors == 1
        cache.close()
        thread.join()
