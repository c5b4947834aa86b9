"""For any bars: the same bars back; for any damage: a miss, never an exception, never other bars."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from marketdata.codec import decode_block, decode_grown, encode_block, encode_growth
from marketdata.protocols import CachedBlock
from marketdata.spans import Span
from marketdata.types import Bars, SeriesKey, Timeframe
from tests.block_examples import (
    AAPL,
    EPOCH,
    assert_same_block,
    grown,
    some_block,
    some_growth,
)

int64s = st.integers(-(2**63), 2**63 - 1)
names = st.from_regex(r"[a-z0-9.:-]{1,12}", fullmatch=True)
keys = st.builds(
    SeriesKey,
    names,
    names,
    st.from_regex(r"[A-Z]{1,5}(\.[A-Z])?", fullmatch=True),
    st.sampled_from(Timeframe),
)


@st.composite
def blocks(draw: st.DrawFn) -> CachedBlock:
    count = draw(st.integers(0, 30))
    timestamp = draw(npst.arrays(np.int64, count, elements=int64s))
    values = draw(npst.arrays(np.float64, (7, count), elements=st.floats(width=64)))
    covered = Span(draw(int64s), draw(int64s))
    base = draw(st.none() | st.sampled_from(Timeframe))
    fetched = draw(st.none() | st.integers(-(2**63) + 1, 2**63 - 1))
    return CachedBlock(covered, draw(int64s), Bars(timestamp, values), base, fetched)


@settings(max_examples=200, deadline=None)
@given(blocks(), keys, int64s)
def test_any_block_comes_back_bit_for_bit(block: CachedBlock, key: SeriesKey, epoch: int):
    decoded = decode_block(encode_block(block, key, epoch), key, epoch, block.base)
    assert decoded is not None
    assert_same_block(decoded, block)


@settings(max_examples=100, deadline=None)
@given(blocks(), keys, keys)
def test_only_the_owner_finds_the_block(block: CachedBlock, owner: SeriesKey, other: SeriesKey):
    found = decode_block(encode_block(block, owner, EPOCH), other, EPOCH, block.base)
    same = owner == other
    assert (found is not None) == same


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_miss(data: bytes):
    assert decode_block(data, AAPL, EPOCH) is None
    assert decode_block(b"mdbk\x01\x00\x07\x00" + data, AAPL, EPOCH) is None


def test_fault_11_ten_thousand_random_damages_are_all_misses():
    source = random.Random(20240308)
    intact = encode_block(some_block(40), AAPL, EPOCH)
    for _ in range(10_000):
        damaged = bytearray(intact)
        for _ in range(source.choice((1, 1, 1, 2, 8))):
            damaged[source.randrange(len(damaged))] ^= source.randrange(1, 256)
        if bytes(damaged) != intact:
            assert decode_block(bytes(damaged), AAPL, EPOCH) is None


def test_every_single_bit_of_a_block_is_guarded():
    intact = encode_block(some_block(2), AAPL, EPOCH)
    for at in range(len(intact) * 8):
        damaged = bytearray(intact)
        damaged[at // 8] ^= 1 << at % 8
        assert decode_block(bytes(damaged), AAPL, EPOCH) is None


# -------------------------------------------------------------------------------------- tails


def some_tail(counts: list[int], backs: list[int]) -> tuple[bytes, CachedBlock]:
    """Return the bytes of growths of so many bars, and the block they lead to."""
    block = now = some_block(30, revision=5)
    growths = []
    tail = b""
    for n, (count, back) in enumerate(zip(counts, backs, strict=True)):
        growths.append(some_growth(now, count, seed=n, back=back))
        tail += encode_growth(growths[-1], AAPL, EPOCH)
        now = grown(block, *growths)
    return tail, now


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=12))
def test_any_growths_lead_to_the_bars_of_the_last_observation(steps: list[tuple[int, int]]):
    tail, expected = some_tail([s[0] for s in steps], [s[1] for s in steps])
    found = decode_grown(tail, some_block(30, revision=5), AAPL, EPOCH)
    assert found is not None
    assert_same_block(found, expected)


def test_fault_11_ten_thousand_damages_of_a_tail_are_all_misses():
    source = random.Random(20260312)
    block = some_block(30, revision=5)
    intact, _ = some_tail([2, 1, 0, 2, 1], [0, 1, 0, 1, 0])
    assert decode_grown(intact, block, AAPL, EPOCH) is not None
    for _ in range(10_000):
        damaged = bytearray(intact)
        for _ in range(source.choice((1, 1, 1, 2, 8))):
            damaged[source.randrange(len(damaged))] ^= source.randrange(1, 256)
        if bytes(damaged) != intact:
            assert decode_grown(bytes(damaged), block, AAPL, EPOCH) is None


def test_every_single_bit_and_every_cut_of_a_tail_is_guarded():
    block = some_block(30, revision=5)
    intact, _ = some_tail([1, 2], [0, 1])
    for at in range(len(intact) * 8):
        damaged = bytearray(intact)
        damaged[at // 8] ^= 1 << at % 8
        assert decode_grown(bytes(damaged), block, AAPL, EPOCH) is None
    first = len(encode_growth(some_growth(block, 1), AAPL, EPOCH))
    for cut in range(len(intact)):
        found = decode_grown(intact[:cut], block, AAPL, EPOCH)
        # A tail that ends with a record is one that was not yet longer: the floor tells.
        assert (found is not None) == (cut == first)
        assert decode_grown(intact[len(intact) - cut :], block, AAPL, EPOCH) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 70000))
def test_any_bytes_are_no_tail(data: bytes, count: int):
    block = some_block(3)
    assert decode_grown(data, block, AAPL, EPOCH) is None
    padded = data.ljust(448, b"\0")[:448]
    trailer = bytearray(encode_growth(some_growth(block, 0), AAPL, EPOCH))
    trailer[6:8] = (count % 65536).to_bytes(2, "little")
    assert count == 0 or decode_grown(padded + bytes(trailer), block, AAPL, EPOCH) is None


@settings(max_examples=50, deadline=None)
@given(keys, int64s)
def test_only_owner_and_store_find_the_tail(other: SeriesKey, epoch: int):
    block = some_block(30, revision=5)
    tail, _ = some_tail([1, 1], [0, 0])
    mine = other == AAPL and epoch == EPOCH
    assert (decode_grown(tail, block, other, epoch) is not None) == mine
