"""What the cache leaves in Redis, and what it makes of what it finds there."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from marketdata.cache import RedisCache
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

FLOOR = f"md:1:{{AAPL}}:{EPOCH}:alpaca:sip:1min:floor"
BLOCK = f"md:1:{{AAPL}}:{EPOCH}:alpaca:sip:1min:1min"
TAIL = f"{BLOCK}:tail"


@pytest.fixture
def cache(redis_db: str) -> Iterator[RedisCache]:
    cache = RedisCache(redis_db, EPOCH, timeout=2.0)
    yield cache
    cache.close()


@pytest.fixture
def server(redis_db: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_db) as client:
        yield client


def test_keys_name_version_symbol_store_series_and_base(cache: RedisCache, server: redis.Redis):
    five = AAPL.with_timeframe(Timeframe.MIN_5)
    cache.put({AAPL: some_block()}, {AAPL: 60.0})
    cache.put({five: some_block(base=Timeframe.MIN_1)}, {five: 60.0})
    derived = BLOCK.removesuffix("1min") + "5min"
    assert sorted(server.keys("*")) == sorted(k.encode() for k in (FLOOR, BLOCK, derived))


def test_ttls_are_spread_capped_and_outlived_by_the_floor(cache: RedisCache, server: redis.Redis):
    keys = [SeriesKey("alpaca", "sip", f"A{n}", Timeframe.MIN_1) for n in range(40)]
    blocks = dict.fromkeys(keys, some_block(1))
    cache.put(blocks, dict.fromkeys(keys, 100.0))
    left = [server.pttl(k) for k in server.keys("*:1min:1min")]
    assert min(left) > 89_000
    assert max(left) <= 110_000
    assert len(set(left)) > 20
    cache.put({AAPL: some_block()}, {AAPL: 1e9})
    day = 86_400_000
    assert 0.89 * day < server.pttl(BLOCK) <= 1.1 * day
    assert 2.9 * day < server.pttl(FLOOR) <= 3 * day


def test_raising_a_floor_renews_it_even_where_it_stays(cache: RedisCache, server: redis.Redis):
    cache.raise_floor({AAPL: 9})
    server.pexpire(FLOOR, 60_000)
    cache.raise_floor({AAPL: 9})
    assert server.pttl(FLOOR) > 80_000_000
    assert server.get(FLOOR) == b"9"


@pytest.mark.parametrize("damage", [b"", b"garbage", b'{"close": [1.0]}', None])
def test_invariant_16_a_damaged_block_is_removed_and_counted(
    cache: RedisCache, server: redis.Redis, damage: bytes | None
):
    cache.put({AAPL: some_block()}, {AAPL: 60.0})
    if damage is None:
        server.setrange(BLOCK, 1000, b"\xff\x00\xff")
    else:
        server.set(BLOCK, damage)
    assert cache.get([AAPL, MSFT]) == {}
    assert not server.exists(BLOCK)
    assert cache.stats.damaged == 1
    cache.put({AAPL: some_block()}, {AAPL: 60.0})
    assert len(cache.get([AAPL])) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda tail: tail[:-1],
        lambda tail: tail[:-64],
        lambda tail: tail[64:],
        lambda tail: tail[-128:],
        lambda tail: tail + tail,
        lambda tail: tail + bytes(64),
        lambda tail: tail[128:] + tail[:128],
        lambda tail: b"",
        lambda tail: b"garbage",
    ],
)
def test_a_damaged_or_torn_tail_is_a_miss_and_removed(
    cache: RedisCache, server: redis.Redis, damage: Callable[[bytes], bytes]
):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    first = some_growth(block)
    second = some_growth(grown(block, first))
    for growth in (first, second):
        cache.raise_floor({AAPL: growth.revision})
        cache.grow({AAPL: growth}, {AAPL: 60.0})
    tail = server.get(TAIL)
    assert isinstance(tail, bytes)
    assert len(tail) == 256
    server.set(TAIL, damage(tail))
    assert cache.get([AAPL]) == {}
    cache.put({AAPL: some_block(revision=7)}, {AAPL: 60.0})
    assert not server.exists(TAIL)
    assert_same_block(cache.get([AAPL])[AAPL], some_block(revision=7))


def test_a_tail_that_was_evicted_leaves_a_block_below_the_floor(
    cache: RedisCache, server: redis.Redis
):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    cache.raise_floor({AAPL: 6})
    cache.grow({AAPL: some_growth(block)}, {AAPL: 60.0})
    server.delete(TAIL)
    assert cache.get([AAPL]) == {}
    assert cache.stats.stale == 1


def test_the_tail_of_a_block_that_was_evicted_fits_no_other(cache: RedisCache, server: redis.Redis):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    cache.raise_floor({AAPL: 6})
    cache.grow({AAPL: some_growth(block)}, {AAPL: 60.0})
    tail = server.get(TAIL)
    server.delete(BLOCK)
    next_growth = some_growth(block, previous=6)
    cache.raise_floor({AAPL: 7})
    assert cache.grow({AAPL: next_growth}, {AAPL: 60.0})[AAPL] == 0
    cache.put({AAPL: some_block(revision=7, seed=3)}, {AAPL: 60.0})
    assert_same_block(cache.get([AAPL])[AAPL], some_block(revision=7, seed=3))
    assert isinstance(tail, bytes)
    server.set(TAIL, tail)
    assert cache.get([AAPL]) == {}


def test_growing_keeps_block_and_tail_alive(cache: RedisCache, server: redis.Redis):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 10.0})
    cache.raise_floor({AAPL: 6})
    cache.grow({AAPL: some_growth(block)}, {AAPL: 1000.0})
    assert 890_000 < server.pttl(TAIL) <= 1_100_000
    assert 890_000 < server.pttl(BLOCK) <= 1_100_000
    assert cache.stats.grown == 1


def test_without_a_floor_nothing_grows(cache: RedisCache, server: redis.Redis):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    server.delete(FLOOR)
    assert cache.grow({AAPL: some_growth(block)}, {AAPL: 60.0})[AAPL] == 0
    assert not server.exists(TAIL)


def test_a_tail_of_another_type_is_not_grown(cache: RedisCache, server: redis.Redis):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    server.rpush(TAIL, "a")
    cache.raise_floor({AAPL: 6})
    assert cache.grow({AAPL: some_growth(block)}, {AAPL: 60.0})[AAPL] == 0
    cache.put({AAPL: some_block(revision=6)}, {AAPL: 60.0})
    assert len(cache.get([AAPL])) == 1


def test_a_block_moved_under_another_key_is_damage(cache: RedisCache, server: redis.Redis):
    cache.put({AAPL: some_block(), MSFT: some_block(seed=2)}, {AAPL: 60.0, MSFT: 60.0})
    server.copy(BLOCK, BLOCK.replace("AAPL", "MSFT"), replace=True)
    assert list(cache.get([AAPL, MSFT])) == [AAPL]
    assert cache.stats.damaged == 1


@pytest.mark.parametrize("floor", [b"", b"x", b"1.5e3", b"\xff"])
def test_an_unreadable_floor_is_a_miss_until_the_next_put(
    cache: RedisCache, server: redis.Redis, floor: bytes
):
    cache.put({AAPL: some_block(revision=2000)}, {AAPL: 60.0})
    server.set(FLOOR, floor)
    assert cache.get([AAPL]) == {}
    assert cache.stats.stale == 1
    server.set(FLOOR, b"x")
    cache.put({AAPL: some_block(revision=2000)}, {AAPL: 60.0})
    assert len(cache.get([AAPL])) == 1


def test_keys_of_another_type_are_overwritten(cache: RedisCache, server: redis.Redis):
    server.hset(BLOCK, "a", "b")
    server.rpush(FLOOR, "a")
    assert cache.get([AAPL]) == {}
    cache.raise_floor({AAPL: 1})
    cache.put({AAPL: some_block()}, {AAPL: 60.0})
    assert len(cache.get([AAPL])) == 1


def test_a_lost_floor_makes_its_blocks_misses(cache: RedisCache, server: redis.Redis):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 60.0})
    server.delete(FLOOR)
    assert cache.get([AAPL]) == {}
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 60.0})
    assert len(cache.get([AAPL])) == 1


def test_without_its_floor_a_block_still_holds_off_older_ones(
    cache: RedisCache, server: redis.Redis
):
    cache.put({AAPL: some_block(revision=7)}, {AAPL: 60.0})
    server.delete(FLOOR)
    cache.put({AAPL: some_block(revision=6)}, {AAPL: 60.0})
    assert cache.get([AAPL]) == {}
    assert cache.stats.refused == 1
    cache.put({AAPL: some_block(revision=7)}, {AAPL: 60.0})
    assert len(cache.get([AAPL])) == 1


def test_a_put_raises_the_floor_that_a_writer_could_not_raise(cache: RedisCache):
    five = AAPL.with_timeframe(Timeframe.MIN_5)
    cache.put({five: some_block(revision=5, base=Timeframe.MIN_1)}, {five: 60.0})
    cache.put({AAPL: some_block(revision=6)}, {AAPL: 60.0})
    assert cache.get([five], Timeframe.MIN_1) == {}


def test_stats_count_what_happened(cache: RedisCache):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 60.0})
    cache.put({AAPL: some_block(revision=4)}, {AAPL: 60.0})
    cache.get([AAPL, MSFT])
    cache.raise_floor({AAPL: 6})
    cache.get([AAPL])
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.stale, stats.damaged) == (1, 2, 1, 0)
    assert (stats.puts, stats.refused, stats.errors, stats.floors_failed) == (1, 1, 0, 0)


@pytest.mark.exact("it counts the commands sent")
def test_one_read_is_one_command(cache: RedisCache, server: redis.Redis):
    keys = [SeriesKey("alpaca", "sip", f"A{n}", Timeframe.MIN_1) for n in range(20)]
    cache.put(dict.fromkeys(keys, some_block(3)), dict.fromkeys(keys, 60.0))
    cache.get(keys)
    before = _calls(server)
    cache.get(keys)
    cache.get(keys[:1])
    after = _calls(server)
    new = {name: after[name] - before.get(name, 0) for name in after}
    assert new["mget"] == 2
    assert sum(n for name, n in new.items() if name not in ("info", "mget")) == 0


def _calls(server: redis.Redis) -> dict[str, int]:
    told = server.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(v["calls"]) for name, v in told.items()}


def test_the_epoch_is_asked_for_once_and_only_when_needed(redis_db: str):
    asked: list[int] = []

    def epoch() -> int:
        asked.append(1)
        return EPOCH

    cache = RedisCache(redis_db, epoch)
    assert asked == []
    cache.put({AAPL: some_block()}, {AAPL: 60.0})
    assert len(cache.get([AAPL])) == 1
    assert asked == [1]
    cache.close()


def test_fifty_threads_share_one_cache(cache: RedisCache):
    blocks = {n: some_block(50, revision=n, seed=n) for n in range(1, 51)}
    wrong: list[object] = []

    def work(revision: int) -> None:
        try:
            for _ in range(5):
                cache.put({AAPL: blocks[revision]}, {AAPL: 60.0})
                found = cache.get([AAPL])[AAPL]
                assert found.revision >= revision
                assert_same_block(found, blocks[found.revision])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in blocks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.get([AAPL])[AAPL].revision == 50
    assert cache.stats.errors == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_parent_and_forked_child_both_go_on(cache: RedisCache):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 60.0})
    assert len(cache.get([AAPL])) == 1
    # A lock held in the parent at the moment of the fork stays held in the child for ever.
    with cache._lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            served = len(cache.get([AAPL])) == 1
            cache.put({MSFT: some_block(revision=5)}, {MSFT: 60.0})
            os._exit(0 if served and cache.stats.errors == 0 else 1)
    for _ in range(20):
        assert len(cache.get([AAPL])) == 1
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(cache.get([MSFT])) == [MSFT]
    assert cache.stats.errors == 0


def test_a_closed_cache_opens_again(cache: RedisCache):
    cache.put({AAPL: some_block()}, {AAPL: 60.0})
    cache.close()
    assert len(cache.get([AAPL])) == 1


def test_what_the_doctor_asks(cache: RedisCache):
    assert cache.ping()
    info = cache.info()
    assert int(info.version.split(".")[0]) >= 6
    assert info.policy
    assert info.maxmemory >= 0
    assert info.used_memory > 100_000
    assert 0 < info.ping_seconds < 2
