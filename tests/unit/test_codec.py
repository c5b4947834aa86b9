"""The block's bytes: what is accepted, what is a miss, and the layout other releases rely on."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from marketdata.codec import HEADER_BYTES, REVISION_OFFSET, decode_block, encode_block
from marketdata.protocols import CachedBlock
from marketdata.spans import Span
from marketdata.types import Bars, SeriesKey, Timeframe
from tests.block_examples import AAPL, EPOCH, MSFT, START, assert_same_block, some_block


def test_round_trip_is_exact_and_copies_nothing():
    block = some_block()
    data = encode_block(block, AAPL, EPOCH)
    decoded = decode_block(data, AAPL, EPOCH)
    assert decoded is not None
    assert_same_block(decoded, block)
    for array in (decoded.bars.timestamp, decoded.bars.values):
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert array.flags.aligned
        assert array.flags.c_contiguous


def test_a_quiet_span_without_bars_round_trips():
    quiet = CachedBlock(Span(START, START + 10), 3, Bars.empty())
    decoded = decode_block(encode_block(quiet, AAPL, EPOCH), AAPL, EPOCH)
    assert decoded is not None
    assert_same_block(decoded, quiet)


def test_columns_in_any_memory_order_encode_alike():
    block = some_block(20)
    fortran = replace(block, bars=Bars(block.bars.timestamp, np.asfortranarray(block.bars.values)))
    assert encode_block(fortran, AAPL, EPOCH) == encode_block(block, AAPL, EPOCH)


def test_size_and_place_of_the_revision_are_fixed():
    data = encode_block(some_block(500, revision=2**52 + 1), AAPL, EPOCH)
    assert len(data) == HEADER_BYTES + 500 * 64 == 32_056
    assert struct.unpack_from("<q", data, REVISION_OFFSET) == (2**52 + 1,)


@pytest.mark.parametrize(
    "owner",
    [
        MSFT,
        AAPL._replace(provider="sandbox"),
        AAPL._replace(feed="iex"),
        AAPL.with_timeframe(Timeframe.MIN_5),
        # The same letters, cut elsewhere.
        SeriesKey("alpacas", "ip", "AAPL", Timeframe.MIN_1),
    ],
)
def test_under_another_series_key_it_is_a_miss(owner: SeriesKey):
    assert decode_block(encode_block(some_block(), AAPL, EPOCH), owner, EPOCH) is None


def test_of_another_base_or_epoch_it_is_a_miss():
    five = AAPL.with_timeframe(Timeframe.MIN_5)
    data = encode_block(some_block(base=Timeframe.MIN_1), five, EPOCH)
    assert decode_block(data, five, EPOCH, Timeframe.MIN_1) is not None
    assert decode_block(data, five, EPOCH) is None
    assert decode_block(data, five, EPOCH + 1, Timeframe.MIN_1) is None


@pytest.mark.parametrize("cut", [0, 1, 55, 56, 57, 32_055])
def test_a_cut_block_is_a_miss(cut: int):
    assert decode_block(encode_block(some_block(), AAPL, EPOCH)[:cut], AAPL, EPOCH) is None


def test_trailing_bytes_and_other_layouts_are_a_miss():
    data = encode_block(some_block(), AAPL, EPOCH)
    assert decode_block(data + b"\0", AAPL, EPOCH) is None
    assert decode_block(data + bytes(64), AAPL, EPOCH) is None
    assert decode_block(data[:4] + b"\x02\x00" + data[6:], AAPL, EPOCH) is None
    assert decode_block(b"{" + data[1:], AAPL, EPOCH) is None


def test_columns_that_do_not_fit_are_refused():
    bars = some_block(3).bars
    with pytest.raises(ValueError, match="for 2 bars"):
        encode_block(CachedBlock(Span(0, 1), 1, Bars(bars.timestamp[:2], bars.values)), AAPL, EPOCH)
