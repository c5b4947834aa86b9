"""The ``ind`` block in Redis: added to in place, never older than what is known, never wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import redis

from marketdata.cache import RedisCache
from marketdata.cache.indicators import IndicatorCache, announce_actions
from marketdata.indicator_codec import CAPACITY
from marketdata.indicator_values import FOREVER, Newest, Steps, Tail
from marketdata.types import MINUTE, SeriesKey, Timeframe

AAPL = SeriesKey("alpaca", "sip", "AAPL", Timeframe.MIN_1)
MSFT = AAPL._replace(symbol="MSFT")
COLUMNS = ("rsi_14", "sma_10")
START = 1_710_000_000_000_000
EPOCH = 5


@pytest.fixture
def bars(redis_db: str) -> Iterator[RedisCache]:
    cache = RedisCache(redis_db, EPOCH, timeout=2.0)
    yield cache
    cache.close()


@pytest.fixture
def cache(bars: RedisCache) -> IndicatorCache:
    return IndicatorCache(bars, COLUMNS)


def value(minute: int) -> list[float]:
    return [float(minute), minute / 7]


def tail(count: int, revision: int = 1, actions_us: int = START, version: int = 0) -> Tail:
    """Values of minutes 1 to `count`."""
    minutes = np.arange(1, count + 1)
    values = np.array([value(m) for m in minutes.tolist()])
    stamps = START + minutes * MINUTE
    end = int(stamps[-1]) + MINUTE
    return Tail(stamps, values, end, revision, actions_us, version, START)


def step(
    minute: int,
    revision: int,
    known: int,
    *,
    keys: tuple[SeriesKey, ...] = (AAPL,),
    values: list[float] | None = None,
    actions_us: int = START,
    version: int = 0,
    fresh: bool = True,
    covered: int | None = None,
) -> Steps:
    count = len(keys)
    at = START + minute * MINUTE
    newest = Newest(
        list(keys),
        np.full(count, at),
        np.tile(value(minute) if values is None else values, (count, 1)),
        np.full(count, revision),
        np.full(count, actions_us),
        np.full(count, version),
    )
    return Steps(
        newest,
        np.full(count, at - MINUTE),
        np.full(count, known),
        np.full(count, fresh),
        [None] * count,
        np.full(count, at + MINUTE if covered is None else covered),
        np.full(count, FOREVER),
    )


def held(cache: IndicatorCache, key: SeriesKey = AAPL) -> list[float]:
    """Return the minutes served, checking every value."""
    found = cache.get([key]).get(key)
    if found is None:
        return []
    minutes = (found.timestamp - START) // MINUTE
    np.testing.assert_array_equal(found.values, [value(m) for m in minutes.tolist()])
    return minutes.tolist()


def test_put_and_get(cache: IndicatorCache) -> None:
    assert cache.get([AAPL, MSFT]) == {}
    assert cache.put({AAPL: tail(10)}) == 1
    assert held(cache) == list(range(1, 11))
    assert list(cache.get([MSFT, AAPL])) == [AAPL]
    assert cache.get([AAPL])[AAPL] is cache.get([AAPL])[AAPL]


def test_steps_add_to_a_block_and_the_oldest_go(cache: IndicatorCache) -> None:
    cache.put({AAPL: tail(60)})
    for minute in range(61, 80):
        assert cache.step(step(minute, minute - 59, minute - 60)) == 1
    assert held(cache) == list(range(80 - CAPACITY, 80))
    found = cache.get([AAPL])[AAPL]
    assert found.revision == 20
    assert found.covered_until == START + 80 * MINUTE


def test_the_newest_record_is_revised_in_place(cache: IndicatorCache) -> None:
    cache.put({AAPL: tail(10)})
    cache.step(step(11, 2, 1, values=[1.0, 2.0]))
    assert cache.get([AAPL])[AAPL].values[-1].tolist() == [1.0, 2.0]
    cache.step(step(11, 3, 2))
    assert held(cache) == list(range(1, 12))


def test_quiet_time_moves_coverage_and_revision_only(cache: IndicatorCache) -> None:
    cache.put({AAPL: tail(10)})
    later = START + 30 * MINUTE
    assert cache.step(step(10, 2, 1, fresh=False, values=[9.0, 9.0], covered=later)) == 1
    assert held(cache) == list(range(1, 11))
    assert cache.get([AAPL])[AAPL].covered_until == later
    assert cache.step(step(10, 2, 1, keys=(MSFT,), fresh=False)) == 0


def test_a_step_that_does_not_follow_begins_the_block_anew(cache: IndicatorCache) -> None:
    cache.put({AAPL: tail(10)})
    cache.step(step(12, 2, 1))  # minute 11 is missing
    assert held(cache) == [12]
    cache.step(step(13, 5, 4))  # commits in between may have changed what came before
    assert held(cache) == [13]
    cache.step(step(14, 6, 5, version=8))  # another share basis
    assert held(cache) == [14]
    cache.step(step(20, 1, 0, keys=(MSFT,)))
    assert held(cache, MSFT) == [20]


def test_invariant_14_older_never_replaces_newer(cache: IndicatorCache) -> None:
    cache.put({AAPL: tail(10, revision=5, actions_us=START + 5)})
    for revision, actions in ((4, START + 5), (5, START + 4), (4, START + 9)):
        assert cache.put({AAPL: tail(3, revision, actions)}) == 0
        assert cache.step(step(11, revision, 5, actions_us=actions)) == 0
    assert held(cache) == list(range(1, 11))
    assert cache.step(step(11, 6, 5, actions_us=START + 5)) == 1
    assert cache.step(step(11, 6, 5, actions_us=START + 5)) == 1  # again: it is there already
    assert held(cache) == list(range(1, 12))


def test_a_raised_floor_makes_a_miss_until_the_step(
    bars: RedisCache, cache: IndicatorCache
) -> None:
    cache.put({AAPL: tail(10)})
    bars.raise_floor({AAPL: 2})
    assert held(cache) == []
    assert cache.put({AAPL: tail(10)}) == 0
    cache.step(step(11, 2, 1))
    assert held(cache) == list(range(1, 12))


def test_a_derived_block_is_under_the_floor_of_its_base(
    bars: RedisCache, cache: IndicatorCache
) -> None:
    five = AAPL.with_timeframe(Timeframe.MIN_5)
    block = tail(10)
    derived = Tail(
        block.timestamp,
        block.values,
        block.covered_until,
        1,
        START,
        0,
        START,
        None,
        Timeframe.MIN_1,
    )
    cache.put({five: derived})
    assert five in cache.get([five], Timeframe.MIN_1)
    assert five not in cache.get([five])
    bars.raise_floor({AAPL: 2})
    assert cache.get([five], Timeframe.MIN_1) == {}


def test_announced_actions_make_a_miss(bars: RedisCache, cache: IndicatorCache) -> None:
    cache.put({AAPL: tail(10), MSFT: tail(10)})
    announce_actions(bars, "alpaca", ["AAPL"], START + 1)
    assert held(cache) == []
    assert held(cache, MSFT) == list(range(1, 11))
    assert cache.put({AAPL: tail(10)}) == 0, "what was computed before may not come back"
    assert cache.step(step(11, 2, 1)) == 0
    assert cache.step(step(11, 2, 1, actions_us=START + 1)) == 1
    assert held(cache) == list(range(1, 12)), "the same splits: earlier values hold"


def test_a_lost_floor_or_mark_is_a_miss(cache: IndicatorCache, redis_db: str) -> None:
    with redis.Redis.from_url(redis_db) as server:
        for ending in (b":floor", b":actions"):
            cache.put({AAPL: tail(10)})
            assert held(cache)
            server.delete(*[name for name in server.scan_iter() if name.endswith(ending)])
            assert held(cache) == []


def test_releases_and_stores_do_not_meet(cache: IndicatorCache, bars: RedisCache) -> None:
    cache.put({AAPL: tail(10)})
    other = IndicatorCache(bars, ("rsi_14", "ema_10"))
    assert other.get([AAPL]) == {}
    other.put({AAPL: tail(3)})
    assert held(cache) == list(range(1, 11))


def test_invariant_16_damaged_blocks_are_removed(cache: IndicatorCache, redis_db: str) -> None:
    chance = random.Random(3)
    with redis.Redis.from_url(redis_db) as server:
        for _ in range(60):
            cache.put({AAPL: tail(CAPACITY)})
            (name,) = [n for n in server.scan_iter() if b":ind" in n]
            block = bytearray(server.get(name) or b"")
            block[chance.randrange(len(block))] ^= 1 << chance.randrange(8)
            server.set(name, bytes(block))
            fresh = IndicatorCache(cache._cache, COLUMNS)  # remembers nothing
            if not held(fresh):
                assert not server.exists(name)
        server.set(name, b"rubbish")
        assert held(cache) == []
        assert not server.exists(name)
        server.lpush(name, "a list")
        assert held(cache) == []
        cache.step(step(3, 9, 8))
        assert cache.put({AAPL: tail(3, revision=9)}) == 1
        assert held(cache) == [1, 2, 3]


def test_many_series_in_one_call(cache: IndicatorCache) -> None:
    keys = tuple(AAPL._replace(symbol=f"A{n}") for n in range(700))
    assert cache.put(dict.fromkeys(keys, tail(5))) == 700
    assert cache.step(step(6, 2, 1, keys=keys)) == 700
    assert cache.step(step(7, 3, 2, keys=keys)) == 700
    found = cache.get(keys)
    assert list(found) == list(keys)
    assert all(len(each.timestamp) == 7 for each in found.values())
