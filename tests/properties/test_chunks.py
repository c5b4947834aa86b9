"""For any bars and revisions: the same back, bit for bit; for any damage: an error, never bars."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from marketdata.chunks import Chunk, decode_bars, decode_chunk, decode_chunks, encode_chunk
from marketdata.errors import StoreError
from marketdata.sandbox.generated import GeneratedMarket
from marketdata.spans import Span
from marketdata.types import Bars, Floats, Int64s
from tests.chunk_examples import assert_same_bars, minute_bars, revisions

int64s = st.integers(-(2**63), 2**63 - 1)
bit_patterns = npst.arrays(np.int64, (7, 40), elements=int64s)
any_floats = st.floats(width=64, allow_subnormal=True) | st.sampled_from(
    [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 5e-324, 1.7976931348623157e308]
)
decimals = st.builds(
    lambda number, digits: number / 10**digits, st.integers(-(10**14), 10**14), st.integers(0, 12)
)
halves = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def columns(draw: st.DrawFn, count: int) -> Floats:
    """Seven columns, each of one nature, with a few values of any other among them."""
    nature = st.sampled_from(["decimal", "float", "single", "constant", "integer"])
    values = np.empty((7, count))
    for column in values:
        match draw(nature):
            case "decimal":
                digits = draw(st.integers(0, 12))
                numbers = npst.arrays(np.int64, count, elements=st.integers(-(10**9), 10**12))
                column[:] = draw(numbers) / 10**digits
            case "integer":
                column[:] = draw(npst.arrays(np.int64, count, elements=int64s))
            case "float":
                column[:] = draw(npst.arrays(np.float64, count, elements=any_floats))
            case "single":
                column[:] = draw(npst.arrays(np.float32, count, elements=halves))
            case "constant":
                column[:] = draw(any_floats)
    places = st.tuples(st.integers(0, 6), st.integers(0, count - 1))
    for place in draw(st.lists(places, max_size=8)):
        values[place] = draw(any_floats | decimals)
    return values


@st.composite
def chunks(draw: st.DrawFn) -> tuple[Bars, Int64s]:
    times = draw(st.sets(int64s, min_size=1, max_size=60))
    if draw(st.booleans()):  # a regular series
        start = draw(st.integers(-(2**40), 2**40))
        times = {start + 60_000_000 * (t % 500) for t in times}
    timestamp = np.array(sorted(times), np.int64)
    count = len(timestamp)
    revised = draw(npst.arrays(np.int64, count, elements=int64s))
    if draw(st.booleans()):
        revised[:] = revised[0]
    return Bars(timestamp, draw(columns(count))), revised


@settings(max_examples=300, deadline=None)
@given(chunks())
def test_any_bars_come_back_bit_for_bit(chunk: tuple[Bars, Int64s]):
    bars, revised = chunk
    data = encode_chunk(bars, revised)
    assert encode_chunk(bars, revised) == data
    decoded, back = decode_chunk(data)
    assert_same_bars(decoded, bars)
    np.testing.assert_array_equal(back, revised)
    assert_same_bars(decode_bars(data), bars)
    opened = Chunk(data)
    ends = (int(bars.timestamp[0]), int(bars.timestamp[-1]))
    assert (opened.count, opened.first, opened.last) == (len(bars), *ends)


@settings(max_examples=300, deadline=None)
@given(chunks(), st.integers(0, 60), st.integers(0, 60))
def test_any_span_of_any_bars_comes_back_bit_for_bit(
    chunk: tuple[Bars, Int64s], low: int, length: int
):
    """Columns that follow their own past, and patches, are cut like all others."""
    bars, revised = chunk
    low = min(low, len(bars) - 1)
    high = min(low + length, len(bars) - 1)
    opened = Chunk(encode_chunk(bars, revised))
    span = Span(int(bars.timestamp[low]), int(bars.timestamp[high]))
    for _ in range(2):
        found = decode_chunks((opened,), span)
        assert_same_bars(found, Bars(bars.timestamp[low:high], bars.values[:, low:high]))
    assert_same_bars(decode_chunks((opened,)), bars)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 17_000), st.integers(0, 3000), st.sampled_from(["AAPL", "S00007"]))
def test_any_span_of_a_month_of_minutes_comes_back_bit_for_bit(low: int, length: int, symbol: str):
    bars, opened = month_of_minutes(symbol)
    low = min(low, len(bars) - 1)
    high = min(low + length, len(bars) - 1)
    span = Span(int(bars.timestamp[low]), int(bars.timestamp[high]))
    assert_same_bars(decode_chunks((opened,), span), bars.within(span))


@cache
def month_of_minutes(symbol: str) -> tuple[Bars, Chunk]:
    """Generated minutes, with prices that have patches among them."""
    month = Span(1_704_067_200_000_000, 1_706_745_600_000_000)
    bars = Bars.concat(list(GeneratedMarket().minutes(symbol, month, "sip")))
    bars.values[:, ::97] /= 3
    return bars, Chunk(encode_chunk(bars, revisions(len(bars))))


@settings(max_examples=100, deadline=None)
@given(bit_patterns)
def test_any_bits_come_back_payloads_of_nan_included(bits: Int64s):
    bars = Bars(np.arange(bits.shape[1]), bits.view(np.float64))
    assert_same_bars(decode_bars(encode_chunk(bars, np.zeros(len(bars), np.int64))), bars)


@settings(max_examples=60, deadline=None)
@given(st.lists(chunks(), max_size=5))
def test_many_chunks_come_back_in_the_order_given(parts: list[tuple[Bars, Int64s]]):
    decoded = decode_chunks([Chunk(encode_chunk(*part)) for part in parts])
    assert_same_bars(
        decoded,
        Bars(
            np.concatenate([np.empty(0, np.int64), *(b.timestamp for b, _ in parts)]),
            np.concatenate([np.empty((7, 0)), *(b.values for b, _ in parts)], axis=1),
        ),
    )


def test_any_changed_byte_is_an_error():
    data = encode_chunk(minute_bars(400), revisions(400))
    source = random.Random(1)
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(source.choice([1, 1, 1, 2, 5])):
            damaged[source.randrange(len(data))] ^= source.randrange(1, 256)
        if bytes(damaged) == data:
            continue
        with pytest.raises(StoreError) as raised:
            decode_chunk(bytes(damaged))
        assert raised.value.cure
        assert not raised.value.transient


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600), st.booleans())
def test_any_bytes_are_an_error(data: bytes, as_chunk: bool):
    with pytest.raises(StoreError):
        decode_chunk(b"mdck\x01\x00\x07\x00" + data if as_chunk else data)


@pytest.mark.parametrize("kept", [0, 1, 43, 279, 280, 281, -1])
def test_a_chunk_cut_short_is_an_error(kept: int):
    data = encode_chunk(minute_bars(50), revisions(50))
    with pytest.raises(StoreError):
        decode_bars(data[:kept])
