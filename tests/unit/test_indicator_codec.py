"""The ``ind`` block: every value bit for bit, and nothing damaged accepted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.indicator_codec import CAPACITY, HEADER_BYTES, SUMMED_BYTES, BlockFormat
from marketdata.indicator_values import FOREVER, NOTHING_BEFORE, Newest, Steps, Tail
from marketdata.types import MINUTE, SeriesKey, Timeframe

AAPL = SeriesKey("alpaca", "sip", "AAPL", Timeframe.MIN_1)
FORMAT = BlockFormat(("rsi_14", "sma_10", "macd_12_26_9_hist"), 42)
START = 1_710_000_000_000_000


def some_tail(count: int, seed: int = 0) -> Tail:
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, 3))
    values[random.random(values.shape) < 0.1] = np.nan
    stamps = START + np.cumsum(random.integers(1, 5, count)) * MINUTE
    return Tail(stamps, values, int(stamps[-1]) + MINUTE, 7, START, 3, START, fetched_us=START + 1)


@given(count=st.integers(1, CAPACITY), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_block_gives_back_what_was_put_into_it(count: int, seed: int) -> None:
    tail = some_tail(count, seed)
    found = FORMAT.decode(FORMAT.encode(tail, AAPL), AAPL, None)
    assert found is not None
    np.testing.assert_array_equal(found.timestamp, tail.timestamp)
    np.testing.assert_array_equal(found.values.view(np.int64), tail.values.view(np.int64))
    for name in ("covered_until", "revision", "actions_us", "action_version", "previous"):
        assert getattr(found, name) == getattr(tail, name)
    assert found.fetched_us == tail.fetched_us
    with pytest.raises(ValueError, match="read-only"):
        found.values[0, 0] = 1.0


def test_only_the_newest_are_kept() -> None:
    tail = some_tail(CAPACITY + 20)
    found = FORMAT.decode(FORMAT.encode(tail, AAPL), AAPL, None)
    assert found is not None
    np.testing.assert_array_equal(found.timestamp, tail.timestamp[-CAPACITY:])
    assert found.previous == tail.timestamp[-CAPACITY - 1]


def test_nothing_that_is_another_s_is_accepted() -> None:
    data = FORMAT.encode(some_tail(5), AAPL)
    assert FORMAT.decode(data, AAPL, None) is not None
    assert FORMAT.decode(data, AAPL._replace(symbol="MSFT"), None) is None
    assert FORMAT.decode(data, AAPL, Timeframe.DAY_1) is None
    assert BlockFormat(FORMAT.columns, 43).decode(data, AAPL, None) is None
    assert BlockFormat(("rsi_9", *FORMAT.columns[1:]), 42).decode(data, AAPL, None) is None
    assert BlockFormat(FORMAT.columns[:2], 42).decode(data, AAPL, None) is None


@given(at=st.integers(0, HEADER_BYTES + CAPACITY * 48 - 1), flip=st.integers(1, 255))
@settings(max_examples=400, deadline=None)
def test_fault_11_a_flipped_byte_gives_no_wrong_value(at: int, flip: int) -> None:
    tail = some_tail(40)
    data = bytearray(FORMAT.encode(tail, AAPL))
    data[at] ^= flip
    found = FORMAT.decode(bytes(data), AAPL, None)
    if found is not None:  # what was damaged is not among the records that count
        count = len(found.timestamp)
        np.testing.assert_array_equal(found.timestamp, tail.timestamp[-count:])
        np.testing.assert_array_equal(found.values, tail.values[-count:])


@given(data=st.binary(max_size=300) | st.binary(min_size=3160, max_size=3160))
@settings(max_examples=100, deadline=None)
def test_rubbish_is_a_miss(data: bytes) -> None:
    assert FORMAT.decode(data, AAPL, None) is None


def test_an_empty_tail_has_no_block() -> None:
    with pytest.raises(ValueError, match="0 bars"):
        FORMAT.encode(Tail(np.empty(0, np.int64), np.empty((0, 3)), 0, 0, 0, 0), AAPL)


def test_a_step_is_a_header_and_a_record() -> None:
    keys = [AAPL, AAPL._replace(symbol="MSFT")]
    newest = Newest(
        keys,
        np.array([START, START]),
        np.ones((2, 3)),
        np.array([8, 9]),
        np.array([START, START]),
        np.zeros(2, np.int64),
    )
    before = np.array([NOTHING_BEFORE, NOTHING_BEFORE])
    steps = Steps(
        newest,
        before,
        np.array([7, 8]),
        np.array([True, False]),
        [None, None],
        newest.timestamp,
        np.array([FOREVER, FOREVER]),
    )
    with_record, without = FORMAT.encode_steps(steps)
    assert len(with_record) == SUMMED_BYTES + FORMAT.record_bytes
    assert len(without) == SUMMED_BYTES
