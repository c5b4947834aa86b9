"""What every `BarCache` promises, run against each implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from marketdata.cache import RedisCache
from marketdata.protocols import BarCache, BlockGrowth
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


# ------------------------------------------------------------------------------------- growing


def grow(cache: BarCache, growth: BlockGrowth, key: SeriesKey = AAPL) -> int:
    """Raise the floor as the writer does before its commit, then grow; return the bytes added."""
    cache.raise_floor({key: growth.revision})
    return cache.grow({key: growth}, {key: 60.0})[key]


def test_a_block_grows_commit_by_commit(cache: BarCache):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    growths = []
    now = block
    sizes = []
    for n in range(70):
        growths.append(some_growth(now, count=n % 3, seed=n))
        sizes.append(grow(cache, growths[-1]))
        now = cache.get([AAPL])[AAPL]
        assert_same_block(now, grown(block, *growths))
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < sizes[-1] < 20_000
    with pytest.raises(ValueError, match="read-only"):
        now.bars.values[0, 0] = 1.0


def test_a_changed_bar_replaces_the_one_before(cache: BarCache):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    first = some_growth(block, count=4, seed=3, back=2)
    grow(cache, first)
    second = some_growth(grown(block, first), count=4, seed=4, back=3)
    grow(cache, second)
    assert_same_block(cache.get([AAPL])[AAPL], grown(block, first, second))


def test_a_block_without_bars_grows_too(cache: BarCache):
    quiet = some_block(0, revision=5)
    cache.put({AAPL: quiet}, {AAPL: 60.0})
    still = some_growth(quiet, count=0)
    grow(cache, still)
    assert_same_block(cache.get([AAPL])[AAPL], grown(quiet, still))
    busy = some_growth(grown(quiet, still), count=2)
    grow(cache, busy)
    assert_same_block(cache.get([AAPL])[AAPL], grown(quiet, still, busy))


def test_nothing_grows_where_there_is_no_block(cache: BarCache):
    growth = some_growth(some_block(revision=5))
    assert grow(cache, growth) == 0
    assert cache.get([AAPL]) == {}


def test_only_the_revision_before_grows(cache: BarCache):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    assert grow(cache, some_growth(block, previous=6)) == 0
    assert held(cache) is None
    cache.put({AAPL: some_block(revision=7)}, {AAPL: 60.0})
    assert grow(cache, some_growth(block, previous=5)) == 0
    assert held(cache) == 7, "what is there stays"


def test_the_same_growth_twice_counts_once(cache: BarCache):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    growth = some_growth(block, count=2)
    assert grow(cache, growth) > 0
    assert grow(cache, growth) == 0
    assert_same_block(cache.get([AAPL])[AAPL], grown(block, growth))


def test_a_grown_block_below_the_floor_is_a_miss(cache: BarCache):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    grow(cache, some_growth(block))
    cache.raise_floor({AAPL: 8})
    assert held(cache) is None
    late = some_growth(block, previous=6)
    assert cache.grow({AAPL: late}, {AAPL: 60.0})[AAPL] == 0


def test_a_growth_below_the_floor_is_refused(cache: BarCache):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    cache.raise_floor({AAPL: 9})
    assert cache.grow({AAPL: some_growth(block)}, {AAPL: 60.0})[AAPL] == 0


def test_a_put_replaces_block_and_growths(cache: BarCache):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    growth = some_growth(block, count=2)
    grow(cache, growth)
    whole = grown(block, growth)
    cache.put({AAPL: whole}, {AAPL: 60.0})
    assert_same_block(cache.get([AAPL])[AAPL], whole)
    more = some_growth(whole)
    assert grow(cache, more) < 200, "the bytes count from the put on"
    assert_same_block(cache.get([AAPL])[AAPL], grown(whole, more))


def test_a_put_below_what_a_block_has_grown_to_is_refused(cache: BarCache):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    first = some_growth(block)
    second = some_growth(grown(block, first))
    grow(cache, first)
    grow(cache, second)
    cache.put({AAPL: some_block(revision=6, seed=8)}, {AAPL: 60.0})
    assert_same_block(cache.get([AAPL])[AAPL], grown(block, first, second))


def test_a_growth_that_leaves_a_hole_is_never_served(cache: BarCache):
    block = some_block(revision=5)
    cache.put({AAPL: block}, {AAPL: 60.0})
    grow(cache, some_growth(block, count=1, back=-2))
    assert held(cache) is None


def test_each_of_many_grows_on_its_own(cache: BarCache):
    keys = [SeriesKey("alpaca", "sip", f"A{n}", Timeframe.MIN_1) for n in range(1200)]
    block = some_block(2, revision=5)
    cache.put(dict.fromkeys(keys[::2], block), dict.fromkeys(keys, 60.0))
    growths = dict.fromkeys(keys, some_growth(block))
    cache.raise_floor(dict.fromkeys(keys, 6))
    sizes = cache.grow(growths, dict.fromkeys(keys, 60.0))
    assert list(sizes) == keys
    assert [bool(sizes[key]) for key in keys] == [True, False] * 600
    assert list(cache.get(keys)) == keys[::2]


def test_growths_of_another_series_or_store_do_not_mix(cache: BarCache, make_cache: MakeCache):
    block = some_block(revision=5)
    cache.put({AAPL: block, MSFT: block}, {AAPL: 60.0, MSFT: 60.0})
    other = make_cache(EPOCH + 1)
    other.put({AAPL: block}, {AAPL: 60.0})
    assert grow(other, some_growth(block)) > 0
    assert grow(cache, some_growth(block), MSFT) > 0
    assert held(cache) == 5
    assert held(cache, MSFT) == 6
    assert held(other) == 6
