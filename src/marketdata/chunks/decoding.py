"""From chunks to bars, each into its place of one array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from marketdata.chunks import layout
from marketdata.chunks.layout import DESCRIPTOR, PREFIX, SUMMED, WIDTH
from marketdata.chunks.packing import BITS, CONSTANT, SINGLE, Segment, Unsigned, unpack, unpack_bits
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


class Summary(NamedTuple):
    """What a chunk says of itself, without decoding it."""

    bars: int
    first: int
    """Label of the first bar, microseconds UTC."""
    last: int


def read_summary(data: bytes) -> Summary:
    """Return what the header says; its checksum is left to decoding.

    Raises
    ------
    StoreError
        Not a chunk of this layout; a retry does not help.
    """
    return Summary(*_header(data)[:3])


def decode_bars(data: bytes) -> Bars:
    """Return the bars of one chunk, in memory of their own.

    Raises
    ------
    StoreError
        Damaged, or not a chunk of this layout; a retry does not help.
    """
    return decode_chunks((data,))


def decode_chunks(
    blocks: Sequence[bytes], span: Span | None = None, then: Bars | None = None
) -> Bars:
    """Return the bars of all chunks, one after the other as given, in memory of their own.

    Parameters
    ----------
    span : Span, optional
        Return only the bars labelled inside it. The answer is made in its own size at once: cutting
        it down afterwards would take as long as decoding.
    then : Bars, optional
        Bars to follow those of the chunks.

    Raises
    ------
    StoreError
        One of them is damaged, or not a chunk of this layout; a retry does not help.
    """
    parts = [_part(_Chunk(block), span) for block in blocks]
    total = sum(part.count if isinstance(part, _Chunk) else len(part) for part in parts)
    rest = 0 if then is None else len(then)
    bars = Bars(np.empty(total + rest, np.int64), np.empty((WIDTH, total + rest)))
    start = 0
    for part in parts:
        count = part.count if isinstance(part, _Chunk) else len(part)
        of = slice(start, start + count)
        if isinstance(part, _Chunk):
            part.decode_to(bars.timestamp[of], bars.values[:, of])
        else:
            bars.timestamp[of], bars.values[:, of] = part.timestamp, part.values
        start += count
    if then is not None:
        bars.timestamp[start:], bars.values[:, start:] = then.timestamp, then.values
    return bars


def _part(chunk: _Chunk, span: Span | None) -> _Chunk | Bars:
    """Return a chunk that lies in `span`, else the bars of it that do."""
    if span is None or (span.start <= chunk.first and chunk.last < span.end):
        return chunk
    bars = Bars(np.empty(chunk.count, np.int64), np.empty((WIDTH, chunk.count)))
    chunk.decode_to(bars.timestamp, bars.values)
    return bars.within(span)


def decode_chunk(data: bytes) -> tuple[Bars, Int64s]:
    """Return the bars of one chunk and each bar's revision, in memory of their own.

    Raises
    ------
    StoreError
        Damaged, or not a chunk of this layout; a retry does not help.
    """
    chunk = _Chunk(data)
    bars = Bars(np.empty(chunk.count, np.int64), np.empty((WIDTH, chunk.count)))
    chunk.decode_to(bars.timestamp, bars.values)
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


class _Chunk:
    """One chunk whose checksum holds."""

    def __init__(self, data: bytes) -> None:
        self.count, self.first, self.last, patches, runs, checksum = _header(data)
        self._data = memoryview(data)
        if crc32(self._data[PREFIX.size :]) != checksum:
            raise StoreError("a sealed chunk is damaged: its checksum is wrong", cure=_CURE)
        self._lengths = [self.count] * layout.PLACES + [patches, patches, runs, runs]
        self._payload: NDArray[np.uint8] = np.empty(0, np.uint8)

    def unpack(self) -> None:
        """Decompress the payload; needed before anything else."""
        table = self._data[layout.TABLE_FROM : layout.PAYLOAD_FROM]
        self._segments = [Segment(*row) for row in DESCRIPTOR.iter_unpack(table)]
        sizes = [s.planes * n for s, n in zip(self._segments, self._lengths, strict=True)]
        self._ends = list(accumulate(sizes))
        payload = layout.LZ4.decompress(self._data[layout.PAYLOAD_FROM :], self._ends[-1])
        self._payload = np.frombuffer(payload, np.uint8)

    def decode_to(self, time: Int64s, values: Floats) -> None:
        """Unpack the bars into arrays of their length."""
        with _damage_translated():
            self.unpack()
            self.write(time, values)

    def write(self, time: Int64s, values: Floats) -> None:
        """Write the bars to arrays of their length."""
        self._write_times(time)
        self._write_column(layout.VOLUMES, values[VOLUME])
        self._write_column(layout.TRADE_COUNTS, values[TRADE_COUNT])
        if self._segments[layout.CLOSES].kind == BITS:
            for place, column in enumerate((CLOSE, OPEN, HIGH, LOW), layout.CLOSES):
                self._write_column(place, values[column])
            self._write_column(layout.VWAPS, values[VWAP])
        else:
            prices = values[layout.PRICES]
            self._write_price_numbers(prices)
            self._write_vwaps(values[VWAP], prices)
            _divide(prices, self._segments[layout.CLOSES])
        self._write_patches(values)

    def revisions(self) -> Int64s:
        lengths = self._row(layout.RUNS).astype(np.int64)
        revisions = np.cumsum(self._row(layout.REVISIONS), dtype=np.int64)
        return np.repeat(revisions, lengths)

    def _row(self, segment: int) -> Unsigned:
        planes, count = self._segments[segment].planes, self._lengths[segment]
        if not planes:
            return np.zeros(count, np.uint8)
        end = self._ends[segment]
        return unpack(self._payload[end - planes * count : end], count, planes)

    def _write_times(self, time: Int64s) -> None:
        # The cast first, the sum in place: a sum that casts as it goes takes twice as long.
        time[:] = self._row(layout.TIMES)
        time *= self._segments[layout.TIMES].base
        time[0] += self.first
        np.cumsum(time, out=time)
        if time[-1] != self.last:
            raise ValueError("its last timestamp is not the one its header names")

    def _write_price_numbers(self, prices: Floats) -> None:
        open_, high, low, close = prices
        of = self._segments[layout.CLOSES]
        steps = np.add(self._row(layout.CLOSES), np.int64(of.bias), dtype=np.int64)
        steps[0] += of.base
        np.cumsum(steps, out=steps)
        close[:] = steps
        open_[:1], open_[1:] = close[:1], close[:-1]
        self._add(layout.OPENS, open_)
        np.maximum(open_, close, out=high)
        self._add(layout.HIGHS, high)
        np.minimum(open_, close, out=low)
        low -= self._row(layout.LOWS)
        if bias := self._segments[layout.LOWS].bias:
            low -= bias

    def _write_vwaps(self, vwap: Floats, prices: Floats) -> None:
        of = self._segments[layout.VWAPS]
        if of.kind in (CONSTANT, BITS):
            self._write_column(layout.VWAPS, vwap)
            return
        digits = of.exponent - self._segments[layout.CLOSES].exponent
        guess_vwap(prices[HIGH], prices[LOW], digits, vwap)
        self._add(layout.VWAPS, vwap)
        _divide(vwap, of)

    def _write_column(self, segment: int, out: Floats) -> None:
        """Write a column that follows no other."""
        of = self._segments[segment]
        if of.kind == CONSTANT:
            out.view(np.int64).fill(of.base)
        elif of.kind == BITS:
            out[:] = unpack_bits(self._row(segment))
        else:
            np.add(self._row(segment), float(of.bias), out=out)
            _divide(out, of)

    def _add(self, segment: int, out: Floats) -> None:
        of = self._segments[segment]
        if of.planes:
            np.add(out, self._row(segment), out=out)
        if of.bias:
            out += of.bias

    def _write_patches(self, values: Floats) -> None:
        steps = self._row(layout.PLACES)
        if not len(steps):
            return
        places = np.cumsum(steps.astype(np.int64))
        columns = places // self.count  # numpy divides by one number quickly, but not in divmod
        rows = places - columns * self.count
        values[columns, rows] = unpack_bits(self._row(layout.PATCHES))


def _divide(numbers: Floats, of: Segment) -> None:
    divide(numbers, of.exponent, of.kind == SINGLE, numbers)
