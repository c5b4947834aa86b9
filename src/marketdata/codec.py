"""The block: bars of one series as the bytes that the cache holds.

Layout, little endian, 56 bytes of header and 64 bytes a bar::

    0   4s     magic  b"mdbk"
    4   u16    layout version
    6   u16    columns (7)
    8   u32    CRC-32 of the owner's name, the header from byte 12 on, and the payload
    12  u32    bars
    16  i64    store epoch
    24  i64    revision           (the cache's scripts read these eight bytes)
    32  i64    covered from, microseconds UTC
    40  i64    covered until, exclusive
    48  i64    last answer of the provider, microseconds UTC; the least number where unknown
    56  i64[n]        timestamps
        f64[7][n]     columns in the order of `types.COLUMNS`

The owner's name (series and base timeframe) is in the checksum and not in the bytes: a block
found under another series' key fails the check. Never pickle: these bytes come from a server that
others may write to. Pure.
"""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

import numpy as np

from marketdata.protocols import CachedBlock
from marketdata.spans import Span
from marketdata.types import COLUMNS, Bars, SeriesKey, Timeframe

MAGIC: Final = b"mdbk"
LAYOUT: Final = 1
REVISION_OFFSET: Final = 24

_HEADER: Final = struct.Struct("<4sHHIIqqqqq")
_PREFIX: Final = struct.Struct("<4sHHI")
_SUMMED: Final = struct.Struct("<Iqqqqq")
_WIDTH: Final = len(COLUMNS)
_UNKNOWN: Final = -(2**63)
_BAR_BYTES: Final = 8 * (1 + _WIDTH)
HEADER_BYTES: Final = _HEADER.size


def encode_block(block: CachedBlock, key: SeriesKey, epoch: int) -> bytes:
    """Return `block` as bytes that only `decode_block` with the same owner and epoch accepts.

    Parameters
    ----------
    block : CachedBlock
        Bars with values of shape ``(7, n)``; every float64 survives bit for bit, NaN included.
    key : SeriesKey
        The series the bars belong to.
    epoch : int
        The store's epoch, a signed 64-bit number.

    Raises
    ------
    ValueError
        The columns do not fit the timestamps; a retry does not help.
    """
    count = len(block.bars)
    if block.bars.values.shape != (_WIDTH, count):
        raise ValueError(f"columns of shape {block.bars.values.shape} for {count} bars")
    payload = (
        np.ascontiguousarray(block.bars.timestamp, "<i8").tobytes()
        + np.ascontiguousarray(block.bars.values, "<f8").tobytes()
    )
    fetched = _UNKNOWN if block.fetched_us is None else block.fetched_us
    summed = _SUMMED.pack(count, epoch, block.revision, *block.covered, fetched)
    checksum = crc32(payload, crc32(summed, _owner_checksum(key, block.base)))
    return _PREFIX.pack(MAGIC, LAYOUT, _WIDTH, checksum) + summed + payload


def decode_block(
    data: bytes, key: SeriesKey, epoch: int, base: Timeframe | None = None
) -> CachedBlock | None:
    """Return the block in `data`, or None if it is not exactly that owner's intact block.

    Never raises, whatever the bytes. The arrays are read-only views over `data` and keep it
    alive: copy them before handing them to a user.

    Parameters
    ----------
    data : bytes
        What the cache answered.
    key, epoch, base
        Whose block it must be; `base` as in `CachedBlock`.
    """
    if len(data) < HEADER_BYTES:
        return None
    magic, layout, width, checksum, count, of, revision, *rest = _HEADER.unpack_from(data)
    if magic != MAGIC or layout != LAYOUT or width != _WIDTH or of != epoch:
        return None
    if len(data) != HEADER_BYTES + count * _BAR_BYTES:
        return None
    if checksum != crc32(memoryview(data)[_PREFIX.size :], _owner_checksum(key, base)):
        return None
    timestamp = np.frombuffer(data, np.int64, count, HEADER_BYTES)
    values = np.frombuffer(data, np.float64, _WIDTH * count, HEADER_BYTES + 8 * count)
    bars = Bars(timestamp, values.reshape(_WIDTH, count))
    start, end, fetched = rest
    fetched_us = None if fetched == _UNKNOWN else fetched
    return CachedBlock(Span(start, end), revision, bars, base, fetched_us)


def _owner_checksum(key: SeriesKey, base: Timeframe | None) -> int:
    # NUL cannot occur in a host, feed or symbol: no two owners share a name.
    return crc32("\0".join((*key, base or key.timeframe)).encode())
