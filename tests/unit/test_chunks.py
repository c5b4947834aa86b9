"""The chunk's bytes: how small, how exact, and the layout that other releases rely on."""

from __future__ import annotations

import csv
import gzip
import struct
from collections import defaultdict
from datetime import datetime
from zlib import crc32

import numpy as np
import pytest

from marketdata.chunks import Chunk, decode_bars, decode_chunk, decode_chunks, encode_chunk
from marketdata.chunks.layout import LZ4, PAYLOAD_FROM
from marketdata.errors import StoreError
from marketdata.sandbox.generated import GeneratedMarket
from marketdata.spans import Span
from marketdata.types import CLOSE, DAY, MINUTE, TRADE_COUNT, VOLUME, VWAP, Bars
from tests.chunk_examples import FIRST, assert_same_bars, minute_bars, revisions
from tests.shared_data import SHARED, needs_shared_data

JANUARY_2024 = Span(1_704_067_200_000_000, 1_706_745_600_000_000)


def encoded(bars: Bars) -> bytes:
    return encode_chunk(bars, np.zeros(len(bars), np.int64))


def test_the_header_is_what_its_picture_says():
    bars = minute_bars(30)
    data = encode_chunk(bars, revisions(30))
    magic, layout, columns, checksum, count, first, last = struct.unpack_from("<4sHHIIqq", data)
    assert (magic, layout, columns, count) == (b"mdck", 1, 7, 30)
    assert (first, last) == (bars.timestamp[0], bars.timestamp[-1])
    assert checksum == crc32(data[12:])
    chunk = Chunk(data)
    assert (chunk.count, chunk.first, chunk.last) == (30, first, last)
    assert struct.unpack_from("<I", data, 36) == (2,)


def test_the_answer_is_the_callers_own_memory():
    bars, revised = decode_chunk(encode_chunk(minute_bars(30), revisions(30)))
    for array in (bars.timestamp, bars.values, revised):
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert array.flags.aligned


def test_columns_in_any_memory_order_encode_alike():
    bars = minute_bars(40)
    other = Bars(bars.timestamp, np.asfortranarray(bars.values))
    assert encoded(other) == encoded(bars)


def test_a_view_into_longer_bars_encodes_its_own_bars():
    bars = minute_bars(100)
    part = bars.within(Span(int(bars.timestamp[20]), int(bars.timestamp[60])))
    assert_same_bars(decode_bars(encoded(part)), part)


def test_one_bar():
    assert_same_bars(decode_bars(encoded(minute_bars(1))), minute_bars(1))


def test_no_chunks_are_no_bars():
    assert len(decode_chunks([])) == 0


@pytest.mark.parametrize("symbol", ["AAPL", "SPY", "S00007"])
def test_generated_minutes_take_at_most_fifteen_bytes_with_fractions_and_six_digits(symbol: str):
    market = GeneratedMarket()
    bars = Bars.concat(list(market.minutes(symbol, JANUARY_2024, "sip")))
    assert (bars.values[VOLUME] % 1 != 0).mean() > 0.01
    assert (np.round(bars.values[VWAP], 5) != bars.values[VWAP]).mean() > 0.5
    data = encode_chunk(bars, revisions(len(bars)))
    assert_same_bars(decode_bars(data), bars)
    assert len(data) / len(bars) <= 15


def test_columns_without_a_number_take_nothing():
    bars = minute_bars(2000)
    full = len(encoded(bars))
    bars.values[[VWAP, TRADE_COUNT]] = np.nan
    bare = len(encoded(bars))
    bars.values[VOLUME] = np.nan
    assert len(encoded(bars)) < bare < full
    assert len(encoded(bars)) / 2000 < 5


def test_a_column_half_empty_is_still_scaled():
    bars = minute_bars(2000)
    full = len(encoded(bars))
    bars.values[VWAP, ::2] = np.nan
    assert len(encoded(bars)) < full


def test_prices_that_were_32_bit_floats_take_little_more_than_their_decimals():
    bars = minute_bars(2000)
    bars.values[:4] = np.round(bars.values[:4], 2)
    decimals = len(encoded(bars))
    bars.values[:4] = bars.values[:4].astype(np.float32)
    bars.values[VWAP] = bars.values[VWAP].astype(np.float32)
    assert_same_bars(decode_bars(encoded(bars)), bars)
    assert len(encoded(bars)) < 1.3 * decimals


def test_equal_revisions_take_no_room():
    bars = minute_bars(2000)
    same = len(encode_chunk(bars, np.full(2000, 10**13 + 7)))
    mixed = len(encode_chunk(bars, 10**13 + np.arange(2000) // 100))
    assert mixed - same < 120


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, 1e300), (1, np.inf), (2, np.nan), (3, -0.0), (4, -1e-320), (5, 2.0**52 + 1), (6, -np.inf)],
)
def test_one_strange_value_comes_back_among_plain_ones(column: int, value: float):
    bars = minute_bars(300)
    bars.values[column, 150] = value
    assert_same_bars(decode_bars(encoded(bars)), bars)


def test_days_and_odd_labels():
    for step in (DAY, MINUTE + 1, 1):
        bars = Bars(FIRST + np.arange(300) * step, minute_bars(300).values)
        assert_same_bars(decode_bars(encoded(bars)), bars)


@pytest.mark.parametrize(
    "bars",
    [
        Bars.empty(),
        Bars(np.array([2, 1]), np.zeros((7, 2))),
        Bars(np.array([1, 1]), np.zeros((7, 2))),
        Bars(np.array([1, 2]), np.zeros((7, 3))),
        Bars(np.array([1, 2]), np.zeros((6, 2))),
    ],
)
def test_what_is_not_a_chunk_is_refused(bars: Bars):
    with pytest.raises(ValueError, match=r"chunk|columns"):
        encoded(bars)


def test_revisions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="revisions"):
        encode_chunk(minute_bars(3), np.zeros(2, np.int64))


def test_another_layout_names_the_cure():
    data = bytearray(encoded(minute_bars(3)))
    data[4] = 9
    with pytest.raises(StoreError, match=r"layout 9.*newer"):
        decode_bars(bytes(data))


@pytest.mark.parametrize("dollars", [1, 5e6, 1.06e7, 1.08e7, 2.1e7, 2.2e7, 4.3e7, 5e9])
def test_prices_around_the_edges_of_32_bits_come_back(dollars: float):
    # high and low are added up on the way: 2**31 cents are 2.15e7 dollars, half of it 1.07e7
    bars = minute_bars(2000)
    bars.values[:4] = np.rint((bars.values[:4] + dollars) * 100) / 100
    bars.values[VWAP] = np.rint(bars.values[:4].mean(axis=0) * 1e4) / 1e4
    data = encoded(bars)
    assert_same_bars(decode_bars(data), bars)
    inner = Span(int(bars.timestamp[700]), int(bars.timestamp[1300]))
    assert_same_bars(decode_chunks([Chunk(data)], inner), bars.within(inner))


def test_prices_that_swing_beyond_32_bits_come_back():
    bars = minute_bars(300)
    bars.values[:4, 100:200] += 1e8
    assert_same_bars(decode_bars(encoded(bars)), bars)


def test_a_span_cuts_the_chunks_and_other_bars_may_follow():
    bars = minute_bars(90)
    blocks = [
        Chunk(encoded(Bars(bars.timestamp[a:b], bars.values[:, a:b])))
        for a, b in ((0, 30), (30, 60))
    ]
    then = Bars(bars.timestamp[60:], bars.values[:, 60:])
    for low, high in ((0, 60), (10, 50), (10, 20), (35, 60), (0, 0)):
        span = Span(int(bars.timestamp[low]), int(bars.timestamp[high]))
        assert_same_bars(decode_chunks(blocks, span), bars.within(span))
        joined = decode_chunks(blocks, span, then)
        assert_same_bars(joined, Bars.concat([bars.within(span), then]))
        assert joined.values.flags.owndata


def test_one_damaged_chunk_among_many_fails_them_all():
    whole = encoded(minute_bars(30))
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(StoreError, match=r"checksum.*backfill"):
        decode_chunks([Chunk(data) for data in (whole, damaged, whole)])


@pytest.mark.parametrize("spoil", ["short", "long", "count", "none", "planes"])
def test_an_intact_checksum_over_nonsense_is_an_error(spoil: str):
    body = bytearray(encoded(minute_bars(30))[12:])
    match spoil:
        case "short":
            del body[-20:]
        case "long":
            body += bytes(20)
        case "count":
            body[0] += 1
        case "none":
            body[0] = 0
        case "planes":
            body[29] = 9
    with pytest.raises(StoreError, match="cannot be read"):
        decode_chunk(struct.pack("<4sHHI", b"mdck", 1, 7, crc32(body)) + body)


def test_labels_without_a_unit_are_an_error():
    bars = Bars(FIRST + np.arange(300) * MINUTE, minute_bars(300).values)
    data = bytearray(encoded(bars))
    struct.pack_into("<q", data, 40 + 12, 0)
    struct.pack_into("<q", data, 24, FIRST)
    body = bytes(data[12:])
    with pytest.raises(StoreError, match="ascend"):
        decode_bars(struct.pack("<4sHHI", b"mdck", 1, 7, crc32(body)) + body)


def test_labels_that_stand_still_are_an_error():
    bars = Bars(FIRST + np.arange(300) * MINUTE, minute_bars(300).values)
    data = encoded(bars)
    chunk = Chunk(data)
    chunk.open()
    assert chunk._payload is not None
    planes = bytearray(chunk._payload.tobytes())
    planes[100:102] = b"\x00\x02"  # steps come first; these two make up for each other
    body = data[12:PAYLOAD_FROM] + LZ4.compress(bytes(planes), asbytes=True)
    with pytest.raises(StoreError, match="ascend"):
        decode_bars(struct.pack("<4sHHI", b"mdck", 1, 7, crc32(body)) + body)


@needs_shared_data
@pytest.mark.parametrize("name", ["minute/us24_2019-02.csv.gz", "daily/us88_2012-2017.csv.gz"])
def test_real_bars_come_back_and_stay_small(name: str):
    rows: dict[str, list[list[float]]] = defaultdict(list)
    with gzip.open(SHARED / name, "rt") as file:
        for row in csv.DictReader(file):
            time = datetime.fromisoformat(row["timestamp"]).timestamp() * 1e6
            cells = [row[c] for c in ("open", "high", "low", "close", "volume")]
            rows[row["symbol"]].append([time, *(float(c or "nan") for c in cells)])
    total = size = 0
    for series in rows.values():
        table = np.array(series).T
        values = np.full((7, table.shape[1]), np.nan)
        values[: CLOSE + 2] = table[1:]
        bars = Bars(table[0].astype(np.int64), values)
        data = encoded(bars)
        assert_same_bars(decode_bars(data), bars)
        total, size = total + len(bars), size + len(data)
    assert size / total < 18
