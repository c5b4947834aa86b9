"""What a snapshot brought of sealed bars, put together."""

from __future__ import annotations

import pytest

from marketdata.chunks import encode_chunk
from marketdata.errors import StoreError
from marketdata.spans import Span
from marketdata.store.sealed_reading import with_sealed
from marketdata.types import MINUTE, Bars, SeriesKey, Timeframe
from tests.chunk_examples import assert_same_bars, minute_bars, revisions

KEY = SeriesKey("alpaca", "sip", "AAPL", Timeframe.MIN_1)
BARS = minute_bars(90)


def part(low: int, high: int) -> Bars:
    return Bars(BARS.timestamp[low:high], BARS.values[:, low:high])


def span(low: int, high: int) -> Span:
    return Span(int(BARS.timestamp[low]), int(BARS.timestamp[high - 1]) + MINUTE)


def chunk(low: int, high: int) -> tuple[Span, bytes]:
    return span(low, high), encode_chunk(part(low, high), revisions(high - low))


def test_chunks_in_any_order_and_rows_behind_them():
    chunks = dict([chunk(30, 60), chunk(0, 30)])
    found = with_sealed(KEY, part(60, 90), chunks, [span(0, 60)], None)
    assert_same_bars(found, BARS)


def test_rows_between_sealed_days():
    chunks = dict([chunk(0, 30), chunk(60, 90)])
    found = with_sealed(KEY, part(30, 60), chunks, [span(0, 30), span(60, 90)], None)
    assert_same_bars(found, BARS)


@pytest.mark.parametrize("rows", [(0, 0), (60, 90)])
def test_chunks_that_overlap_are_an_error(rows: tuple[int, int]):
    chunks = dict([chunk(0, 40), chunk(30, 60)])
    with pytest.raises(StoreError, match=r"AAPL.*overlap"):
        with_sealed(KEY, part(*rows), chunks, [span(0, 60)], None)


def test_a_row_among_sealed_bars_is_an_error():
    chunks = dict([chunk(0, 60)])
    with pytest.raises(StoreError, match=r"AAPL.*order"):
        with_sealed(KEY, part(59, 90), chunks, [span(0, 60)], None)
