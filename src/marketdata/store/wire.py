"""PostgreSQL's binary formats, to and from numpy, and keys as arrays. Pure: no connection is used
here.

Source: PostgreSQL documentation, COPY, "Binary Format"; send and receive functions of
``timestamptz`` (microseconds since 2000-01-01T00:00Z, int64), ``float8``, ``tstzmultirange``
(count, then each range with its length: one byte of flags and two bounds with theirs). All numbers
are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.adapt import Buffer, Loader
from psycopg.pq import Format

from marketdata.clock import from_micros
from marketdata.spans import Span
from marketdata.types import COLUMNS, Bars, Floats, Int64s, SeriesKey, Timeframe

POSTGRES_EPOCH: Final = 946_684_800_000_000
"""2000-01-01T00:00Z in microseconds since 1970."""

COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER: Final = b"\xff\xff"
_ROWS_PER_CHUNK: Final = 65_536

_EMPTY, _LOWER_INCLUSIVE, _UPPER_INCLUSIVE, _LOWER_INFINITE, _UPPER_INFINITE = 1, 2, 4, 8, 16

_ONE_RANGE: Final = struct.Struct(">iiBiqiq")

_FIELDS: Final = (
    [("n", ">i4"), ("timestamp", ">i8")] + [(c, ">f8") for c in COLUMNS] + [("revision", ">i8")]
)
# No field is ever NULL (NaN stands for absent), so every row has the same length and a whole batch
# is one structured array.
_INCOMING: Final = np.dtype(
    [("fields", ">i2")]
    + [part for name, kind in _FIELDS for part in ((f"{name}:length", ">i4"), (name, kind))]
)


def incoming_rows(
    series: NDArray[np.int32], timestamp: Int64s, values: Floats, revision: Int64s
) -> Iterator[bytes]:
    """Yield a binary COPY stream of rows ``(n, timestamp, <the seven values>, revision)``.

    Parameters
    ----------
    series : ndarray of int32, shape (n,)
        Number of the series each row belongs to.
    timestamp, revision : ndarray of int64, shape (n,)
        Microseconds UTC; revision numbers.
    values : ndarray of float64, shape (7, n)
    """
    yield COPY_HEADER
    for start in range(0, len(timestamp), _ROWS_PER_CHUNK):
        part = slice(start, start + _ROWS_PER_CHUNK)
        rows = np.empty(len(timestamp[part]), _INCOMING)
        rows["fields"] = len(_FIELDS)
        for name, kind in _FIELDS:
            rows[f"{name}:length"] = np.dtype(kind).itemsize
        rows["n"] = series[part]
        rows["timestamp"] = timestamp[part] - POSTGRES_EPOCH
        rows["revision"] = revision[part]
        for column, name in zip(values, COLUMNS, strict=True):
            rows[name] = column[part]
        yield rows.tobytes()
    yield COPY_TRAILER


def bars_from_blocks(blocks: Sequence[Sequence[bytes]]) -> Bars:
    """Join blocks of packed columns to bars that own their memory.

    Parameters
    ----------
    blocks : sequence of sequences of bytes
        Each block holds three byte strings: timestamps as int64; as float64 open, high, low and
        close bar by bar; volume, vwap and trade_count likewise.
    """
    count = sum(len(block[0]) for block in blocks) // 8
    timestamp = np.empty(count, np.int64)
    values = np.empty((len(COLUMNS), count), np.float64)
    at = 0
    for block in sorted(blocks, key=_first_instant):
        end = at + len(block[0]) // 8
        instants, prices, amounts = block
        timestamp[at:end] = np.frombuffer(instants, ">i8")
        values[:4, at:end] = np.frombuffer(prices, ">f8").reshape(-1, 4).T
        values[4:, at:end] = np.frombuffer(amounts, ">f8").reshape(-1, 3).T
        at = end
    timestamp += POSTGRES_EPOCH
    return Bars(timestamp, values)


def _first_instant(block: Sequence[bytes]) -> int:
    return int.from_bytes(block[0][:8], "big", signed=True)


class _MicrosLoader(Loader):
    """timestamptz as microseconds since 1970."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        (micros,) = struct.unpack(">q", data)
        return int(micros) + POSTGRES_EPOCH


class _SpansLoader(Loader):
    """tstzmultirange as a normal list of spans."""

    format = Format.BINARY

    def load(self, data: Buffer) -> list[Span]:
        return spans_from_multirange(bytes(data))


def spans_from_multirange(data: bytes) -> list[Span]:
    """Return the spans of a binary tstzmultirange whose ranges are all finite ``[start, end)``."""
    if len(data) == _ONE_RANGE.size:  # that of a healthy series
        _, _, flags, _, start, _, end = _ONE_RANGE.unpack(data)
        if flags == _LOWER_INCLUSIVE:
            return [Span(start + POSTGRES_EPOCH, end + POSTGRES_EPOCH)]
    (count,) = struct.unpack_from(">i", data)
    spans = []
    at = 4
    for _ in range(count):
        length, flags = struct.unpack_from(">iB", data, at)
        if flags != _LOWER_INCLUSIVE:
            raise ValueError("stored coverage is not a list of finite half-open spans")
        start, end = struct.unpack_from(">4xq4xq", data, at + 5)
        spans.append(Span(start + POSTGRES_EPOCH, end + POSTGRES_EPOCH))
        at += 4 + length
    return spans


def key_columns(keys: Sequence[SeriesKey]) -> dict[str, list[str]]:
    """Return the fields of keys as one list each, by name, for ``unnest``."""
    return {
        name: [str(getattr(key, name)) for key in keys]
        for name in ("provider", "feed", "symbol", "timeframe")
    }


def key_of(row: Sequence[str]) -> SeriesKey:
    """Return the key that a row of ``provider, feed, symbol, timeframe`` names."""
    provider, feed, symbol, timeframe = row
    return SeriesKey(provider, feed, symbol, Timeframe(timeframe))


def multirange_text(spans: Sequence[Span]) -> str:
    """Return spans as the text form of a tstzmultirange."""
    ranges = (
        f"[{from_micros(s.start).isoformat()},{from_micros(s.end).isoformat()})"
        for s in spans
        if not s.empty
    )
    return "{" + ",".join(ranges) + "}"


def register_loaders(connection: Connection[Any]) -> None:
    """Make binary results of `connection` give instants as int and coverage as spans."""
    connection.adapters.register_loader("timestamptz", _MicrosLoader)
    connection.adapters.register_loader("tstzmultirange", _SpansLoader)
