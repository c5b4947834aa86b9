"""What every `BarCache` promises, run against each implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from marketdata.cache import RedisCache
from marketdata.protocols import BarCache
from marketdata.types import SeriesKey, Timeframe
from tests.block_examples import AAPL, EPOCH, MSFT, assert_same_block, some_block

MakeCache = Callable[[int], BarCache]
FIVE = AAPL.with_timeframe(Timeframe.MIN_5)
DAILY = AAPL.with_timeframe(Timeframe.DAY_1)


@pytest.fixture(params=["redis"])
def make_cache(request: pytest.FixtureRequest) -> Iterator[MakeCache]:
    """Makes caches of a given store epoch on one shared place."""
    assert request.param == "redis"
    url: str = request.getfixturevalue("redis_db")
    made: list[RedisCache] = []

    def make(epoch: int) -> BarCache:
        made.append(RedisCache(url, epoch, timeout=2.0))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


@pytest.fixture
def cache(make_cache: MakeCache) -> BarCache:
    return make_cache(EPOCH)


def held(cache: BarCache, key: SeriesKey = AAPL, base: Timeframe | None = None) -> int | None:
    """Return the revision served under `key`."""
    block = cache.get([key], base).get(key)
    return None if block is None else block.revision


def test_nothing_is_found_in_an_empty_cache(cache: BarCache):
    assert cache.get([AAPL, MSFT]) == {}
    assert cache.get([]) == {}


def test_what_was_put_is_found_bit_for_bit_and_read_only(cache: BarCache):
    block = some_block()
    cache.put({AAPL: block}, {AAPL: 60.0})
    found = cache.get([AAPL, MSFT])
    assert list(found) == [AAPL]
    assert_same_block(found[AAPL], block)
    with pytest.raises(ValueError, match="read-only"):
        found[AAPL].bars.values[0, 0] = 1.0


def test_a_block_without_bars_is_not_a_miss(cache: BarCache):
    quiet = some_block(0)
    cache.put({AAPL: quiet}, {AAPL: 60.0})
    assert_same_block(cache.get([AAPL])[AAPL], quiet)


def test_many_symbols_in_one_call(cache: BarCache):
    keys = [SeriesKey("alpaca", "sip", f"A{n}", Timeframe.MIN_1) for n in range(300)]
    blocks = {key: some_block(5, seed=n) for n, key in enumerate(keys)}
    cache.put(blocks, dict.fromkeys(keys, 60.0))
    found = cache.get([*keys, AAPL])
    assert list(found) == keys
    for key in keys:
        np.testing.assert_array_equal(found[key].bars.values, blocks[key].bars.values)


@pytest.mark.parametrize(
    "other",
    [
        AAPL._replace(provider="sandbox"),
        AAPL._replace(feed="iex"),
        AAPL._replace(symbol="AAP"),
        DAILY,
    ],
)
def test_invariant_10_series_never_mix(cache: BarCache, other: SeriesKey):
    cache.put({AAPL: some_block()}, {AAPL: 60.0})
    assert cache.get([other]) == {}
    cache.raise_floor({other: 99})
    assert held(cache) == 1


def test_another_store_sees_nothing_and_disturbs_nothing(cache: BarCache, make_cache: MakeCache):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 60.0})
    other = make_cache(EPOCH + 1)
    assert other.get([AAPL]) == {}
    other.raise_floor({AAPL: 1_000_000})
    other.put({AAPL: some_block(revision=1_000_001)}, {AAPL: 60.0})
    assert held(cache) == 5
    assert held(other) == 1_000_001


# ------------------------------------------------------------------------------------- revisions


def test_a_block_below_the_floor_is_a_miss(cache: BarCache):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 60.0})
    cache.raise_floor({AAPL: 5})
    assert held(cache) == 5
    cache.raise_floor({AAPL: 6})
    assert held(cache) is None


def test_invariant_15_the_next_put_after_a_revision_is_served(cache: BarCache):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 60.0})
    cache.raise_floor({AAPL: 6})
    corrected = some_block(revision=6, seed=9)
    cache.put({AAPL: corrected}, {AAPL: 60.0})
    assert_same_block(cache.get([AAPL])[AAPL], corrected)


def test_fault_19_a_stale_put_after_the_floor_rose_is_refused(cache: BarCache):
    read_before_the_commit = some_block(revision=5)
    cache.raise_floor({AAPL: 6})
    cache.put({AAPL: read_before_the_commit}, {AAPL: 60.0})
    assert held(cache) is None


def test_a_put_never_replaces_a_higher_revision(cache: BarCache):
    cache.put({AAPL: some_block(revision=7)}, {AAPL: 60.0})
    cache.put({AAPL: some_block(revision=6)}, {AAPL: 60.0})
    assert held(cache) == 7


def test_a_put_of_the_same_revision_replaces(cache: BarCache):
    cache.put({AAPL: some_block(10, revision=7)}, {AAPL: 60.0})
    longer = some_block(20, revision=7)
    cache.put({AAPL: longer}, {AAPL: 60.0})
    assert_same_block(cache.get([AAPL])[AAPL], longer)


def test_a_floor_never_falls(cache: BarCache):
    cache.raise_floor({AAPL: 9})
    cache.raise_floor({AAPL: 3})
    cache.put({AAPL: some_block(revision=8)}, {AAPL: 60.0})
    assert held(cache) is None


def test_revisions_compare_as_numbers(cache: BarCache):
    newest = 31_710_000_000_001
    cache.put({AAPL: some_block(revision=9)}, {AAPL: 60.0})
    cache.raise_floor({AAPL: newest})
    assert held(cache) is None
    cache.put({AAPL: some_block(revision=newest - 1)}, {AAPL: 60.0})
    assert held(cache) is None
    cache.put({AAPL: some_block(revision=newest)}, {AAPL: 60.0})
    assert held(cache) == newest


def test_in_one_put_each_block_meets_its_own_floor(cache: BarCache):
    cache.raise_floor({AAPL: 6, MSFT: 2})
    blocks = {AAPL: some_block(revision=5), MSFT: some_block(revision=5)}
    cache.put(blocks, dict.fromkeys(blocks, 60.0))
    assert list(cache.get([AAPL, MSFT])) == [MSFT]


# ------------------------------------------------------------------------- derived timeframes


def test_a_derived_block_lives_and_falls_with_its_base(cache: BarCache):
    cache.put({FIVE: some_block(revision=5, base=Timeframe.MIN_1)}, {FIVE: 60.0})
    assert held(cache, FIVE, Timeframe.MIN_1) == 5
    cache.raise_floor({FIVE: 99, DAILY: 99})
    assert held(cache, FIVE, Timeframe.MIN_1) == 5
    cache.raise_floor({AAPL: 6})
    assert held(cache, FIVE, Timeframe.MIN_1) is None


def test_native_and_derived_bars_of_one_timeframe_are_kept_apart(cache: BarCache):
    cache.put({FIVE: some_block(revision=5, base=Timeframe.MIN_1)}, {FIVE: 60.0})
    assert held(cache, FIVE) is None
    cache.put({FIVE: some_block(revision=900)}, {FIVE: 60.0})
    assert held(cache, FIVE) == 900
    assert held(cache, FIVE, Timeframe.MIN_1) == 5


def test_naming_the_own_timeframe_as_base_is_naming_none(cache: BarCache):
    cache.put({AAPL: some_block(revision=5)}, {AAPL: 60.0})
    assert held(cache, AAPL, Timeframe.MIN_1) == 5


# --------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("ttl", [0.0, -1.0])
def test_a_ttl_of_nothing_stores_nothing(cache: BarCache, ttl: float):
    cache.put({AAPL: some_block()}, {AAPL: ttl})
    assert cache.get([AAPL]) == {}
