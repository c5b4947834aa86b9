"""From chunks to bars, each into its place of one array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from marketdata.chunks import layout
from marketdata.chunks.layout import DESCRIPTOR, PREFIX, SUMMED, WIDTH
from marketdata.chunks.packing import BITS, CONSTANT, SINGLE, Segment, Whole, unpack, unpack_bits
from marketdata.chunks.scaling import divide, guess_vwap
from marketdata.errors import StoreError
from marketdata.spans import Span
from marketdata.types import (
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    TRADE_COUNT,
    VOLUME,
    VWAP,
    Bars,
    Floats,
    Int64s,
)

_CURE = (
    "restore the chunk from a backup, or drop it with its coverage and fetch the span again: "
    "marketdata backfill SYMBOL --start --end"
)


def decode_bars(data: bytes) -> Bars:
    """Return the bars of one chunk, in memory of their own.

    Raises
    ------
    StoreError
        Damaged, or not a chunk of this layout; a retry does not help.
    """
    return decode_chunks((Chunk(data),))


def decode_chunks(
    chunks: Sequence[Chunk], span: Span | None = None, then: Bars | None = None
) -> Bars:
    """Return the bars of all chunks, one after the other as given, in memory of their own.

    Parameters
    ----------
    span : Span, optional
        Return only the bars labelled inside it; no others are decoded.
    then : Bars, optional
        Bars to follow those of the chunks.

    Raises
    ------
    StoreError
        One of them was written wrongly; a retry does not help.
    """
    parts = [(chunk, chunk.places(span)) for chunk in chunks]
    total = sum(high - low for _, (low, high) in parts)
    rest = 0 if then is None else len(then)
    bars = Bars(np.empty(total + rest, np.int64), np.empty((WIDTH, total + rest)))
    start = 0
    for chunk, (low, high) in parts:
        of = slice(start, start + high - low)
        chunk.decode_to(bars.timestamp[of], bars.values[:, of], low, high)
        start += high - low
    if then is not None:
        bars.timestamp[start:], bars.values[:, start:] = then.timestamp, then.values
    return bars


def decode_chunk(data: bytes) -> tuple[Bars, Int64s]:
    """Return the bars of one chunk and each bar's revision, in memory of their own.

    Raises
    ------
    StoreError
        Damaged, or not a chunk of this layout; a retry does not help.
    """
    chunk = Chunk(data)
    chunk.open()
    bars = decode_chunks((chunk,))
    with _damage_translated():
        return bars, chunk.revisions()


def _header(data: bytes) -> tuple[int, ...]:
    if len(data) < layout.PAYLOAD_FROM:
        raise StoreError(f"a sealed chunk is cut short at {len(data)} bytes", cure=_CURE)
    magic, version, width, checksum = PREFIX.unpack_from(data)
    if magic != layout.MAGIC:
        raise StoreError("a sealed chunk does not begin like one", cure=_CURE)
    if version != layout.LAYOUT or width != WIDTH:
        raise StoreError(
            f"a sealed chunk has layout {version} with {width} columns, this release reads "
            f"layout {layout.LAYOUT} with {WIDTH}",
            cure="use the release that wrote it, or a newer one",
        )
    return (*SUMMED.unpack_from(data, PREFIX.size), checksum)


@contextmanager
def _damage_translated() -> Iterator[None]:
    try:
        yield
    except (ValueError, IndexError, OverflowError, MemoryError, OSError, pa.ArrowException) as e:
        # Behind an intact checksum only a chunk that was written wrongly comes here.
        raise StoreError(f"a sealed chunk cannot be read: {e}", cure=_CURE) from e


class Chunk:
    """One chunk whose checksum holds.

    Raises
    ------
    StoreError
        Damaged, or not a chunk of this layout; a retry does not help.
    """

    def __init__(self, data: bytes) -> None:
        self.count, self.first, self.last, patches, runs, checksum = _header(data)
        self._data = memoryview(data)
        if crc32(self._data[PREFIX.size :]) != checksum:
            raise StoreError("a sealed chunk is damaged: its checksum is wrong", cure=_CURE)
        if not self.count:
            raise StoreError("a sealed chunk cannot be read: it says it has no bars", cure=_CURE)
        self._lengths = [self.count] * layout.PLACES + [patches, patches, runs, runs]
        self._payload: NDArray[np.uint8] | None = None

    def open(self) -> None:
        """Decompress it ahead of decoding, and keep that: what a reader can do while the next chunk
        is on its way. Without it memory for one payload after the other is used again.

        Raises
        ------
        StoreError
            Written wrongly; a retry does not help.
        """
        if self._payload is not None:
            return
        with _damage_translated():
            table = self._data[layout.TABLE_FROM : layout.PAYLOAD_FROM]
            self._segments = [Segment(*row) for row in DESCRIPTOR.iter_unpack(table)]
            sizes = [s.planes * n for s, n in zip(self._segments, self._lengths, strict=True)]
            self._ends = list(accumulate(sizes))
            payload = layout.LZ4.decompress(self._data[layout.PAYLOAD_FROM :], self._ends[-1])
            self._payload = np.frombuffer(payload, np.uint8)

    def places(self, span: Span | None) -> tuple[int, int]:
        """Return the places of the first bar inside `span` and of the first one behind it."""
        if span is None or (span.start <= self.first and self.last < span.end):
            return 0, self.count
        self.open()
        time = np.empty(self.count, np.int64)
        with _damage_translated():
            self._write_times(time)
        low, high = np.searchsorted(time, span).tolist()
        return low, high

    def decode_to(self, time: Int64s, values: Floats, low: int, high: int) -> None:
        """Unpack the bars from place `low` to before `high` into arrays of that length."""
        if low >= high:
            return
        kept = self._payload
        self.open()
        with _damage_translated():
            if high - low == self.count:
                self._write_times(time)
            else:
                every = np.empty(self.count, np.int64)
                self._write_times(every)
                time[:] = every[low:high]
            self._write_values(values, low, high)
        self._payload = kept

    def revisions(self) -> Int64s:
        """Return the revision of every bar."""
        lengths = self._row(layout.RUNS).astype(np.int64)
        revisions = np.cumsum(self._row(layout.REVISIONS), dtype=np.int64)
        return np.repeat(revisions, lengths)

    def _write_values(self, values: Floats, low: int, high: int) -> None:
        self._write_column(layout.VOLUMES, values[VOLUME], low, high)
        self._write_column(layout.TRADE_COUNTS, values[TRADE_COUNT], low, high)
        if self._segments[layout.CLOSES].kind == BITS:
            for place, column in enumerate((CLOSE, OPEN, HIGH, LOW), layout.CLOSES):
                self._write_column(place, values[column], low, high)
            self._write_column(layout.VWAPS, values[VWAP], low, high)
        else:
            numbers = self._price_numbers(low, high)
            _divide(numbers, self._segments[layout.CLOSES], values[layout.PRICES])
            self._write_vwaps(values[VWAP], numbers, low, high)
        self._write_patches(values, low, high)

    def _row(self, segment: int, low: int = 0, high: int | None = None) -> Whole:
        planes, count = self._segments[segment].planes, self._lengths[segment]
        of = slice(low, high)
        if not planes:
            return np.zeros(count, np.uint8)[of]
        assert self._payload is not None
        end = self._ends[segment]
        return unpack(self._payload[end - planes * count : end].reshape(planes, count)[:, of])

    def _write_times(self, time: Int64s) -> None:
        steps = self._row(layout.TIMES)
        unit = self._segments[layout.TIMES].base
        if self.count > 1 and (unit < 1 or not np.minimum.reduce(steps[1:])):
            raise ValueError("its timestamps do not ascend")
        # The cast first, the sum in place: a sum that casts as it goes takes twice as long.
        time[:] = steps
        time *= unit
        time[0] += self.first
        np.cumsum(time, out=time)
        if time[-1] != self.last:
            raise ValueError("its last timestamp is not the one its header names")

    def _price_numbers(self, low: int, high: int) -> Whole:
        """Return open, high, low and close, a row each, in a type that holds high and low added."""
        steps = self._row(layout.CLOSES, 0, high)
        numbers = np.empty((4, high - low), self._price_type(steps))
        open_, highest, lowest, close = numbers
        of = self._segments[layout.CLOSES]
        every = steps.astype(numbers.dtype)
        every += every.dtype.type(of.bias)
        every[0] += every.dtype.type(of.base)
        np.cumsum(every, out=every)
        close[:] = every[low:]
        open_[:] = self._signed(layout.OPENS, low, high, numbers.dtype)
        open_[0] += every[max(0, low - 1)]
        open_[1:] += close[:-1]
        np.maximum(open_, close, out=highest)
        highest += self._signed(layout.HIGHS, low, high, numbers.dtype)
        np.minimum(open_, close, out=lowest)
        lowest -= self._signed(layout.LOWS, low, high, numbers.dtype)
        return numbers

    def _price_type(self, steps: Whole) -> np.dtype[np.signedinteger[Any]]:
        """Return int32, in which half as much memory is moved, wherever it cannot overflow."""
        closes = self._segments[layout.CLOSES]
        most = abs(closes.base) + len(steps) * (int(np.maximum.reduce(steps)) + abs(closes.bias))
        for segment in (layout.OPENS, layout.HIGHS, layout.LOWS):
            of = self._segments[segment]
            most += 256**of.planes + abs(of.bias)
        return np.dtype(np.int32 if 2 * most < 2**31 else np.int64)

    def _write_vwaps(self, vwap: Floats, prices: Whole, low: int, high: int) -> None:
        of = self._segments[layout.VWAPS]
        if of.kind in (CONSTANT, BITS):
            self._write_column(layout.VWAPS, vwap, low, high)
            return
        digits = of.exponent - self._segments[layout.CLOSES].exponent
        guess_vwap(prices[HIGH], prices[LOW], digits, vwap)
        small = of.planes <= 3 and abs(of.bias) < 2**30
        vwap += self._signed(layout.VWAPS, low, high, np.dtype(np.int32 if small else np.int64))
        _divide(vwap, of, vwap)

    def _signed(
        self, segment: int, low: int, high: int, as_type: np.dtype[np.signedinteger[Any]]
    ) -> Whole:
        numbers: NDArray[Any] = self._row(segment, low, high).astype(as_type)
        if bias := self._segments[segment].bias:
            numbers += as_type.type(bias)
        return numbers

    def _write_column(self, segment: int, out: Floats, low: int, high: int) -> None:
        """Write a column that follows no other."""
        of = self._segments[segment]
        if of.kind == CONSTANT:
            out.view(np.int64).fill(of.base)
        elif of.kind == BITS:
            out[:] = unpack_bits(self._row(segment, 0, high))[low:]
        else:
            out[:] = self._row(segment, low, high)
            if of.bias:
                out += float(of.bias)
            _divide(out, of, out)

    def _write_patches(self, values: Floats, low: int, high: int) -> None:
        steps = self._row(layout.PLACES)
        if not len(steps):
            return
        places = np.cumsum(steps.astype(np.int64))
        columns = places // self.count  # numpy divides by one number quickly, but not in divmod
        rows = places - columns * self.count
        patches = unpack_bits(self._row(layout.PATCHES))
        if high - low < self.count:
            inside = (rows >= low) & (rows < high)
            columns, rows, patches = columns[inside], rows[inside] - low, patches[inside]
        values[columns, rows] = patches


def _divide(numbers: NDArray[Any], of: Segment, out: Floats) -> None:
    divide(numbers, of.exponent, of.kind == SINGLE, out)
