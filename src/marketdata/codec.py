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

The tail: what commits have added to a block since it was written, one record a commit, appended.
A record is its bars, 64 bytes each, and a trailer of 64 bytes, so that everything is aligned::

    0   i64       timestamp      of each bar
    8   f64[7]    the columns
    ...
    0   4s     magic  b"mdtl"
    4   u16    layout version
    6   u16    bars of this record
    8   i64    store epoch
    16  i64    covered from
    24  i64    covered until, exclusive
    32  i64    last answer of the provider
    40  i64    revision before   (of the record before it, or of the block)
    48  i64    revision          (the cache's scripts read these eight bytes, from the end)
    56  u32    CRC-32 of the owner's name, the bars and the trailer up to here
    60  u32    0

Bars of a later record replace earlier ones of the same label. A record whose revision before is
not the one before it, or whose span leaves a hole, makes the whole tail void.
"""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

import numpy as np

from marketdata.protocols import BlockGrowth, CachedBlock
from marketdata.spans import Span
from marketdata.types import COLUMNS, Bars, Floats, Int64s, SeriesKey, Timeframe

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

TAIL_MAGIC: Final = b"mdtl"
TAIL_REVISION: Final = (-16, -9)
"""Where in a tail its last revision is, first and last byte counted from the end."""
_TRAILER: Final = struct.Struct("<4sHHqqqqqqII")
_TRAILER_SUMMED: Final = struct.Struct("<4sHHqqqqqq")
_CHECK: Final = struct.Struct("<II")
_ROW_BYTES: Final = _TRAILER.size
assert _ROW_BYTES == _BAR_BYTES


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


def encode_growth(growth: BlockGrowth, key: SeriesKey, epoch: int) -> bytes:
    """Return the tail record of `growth` for the block of the stored series `key`.

    Raises
    ------
    struct.error
        More than 65,535 bars; a retry does not help.
    """
    count = len(growth.bars)
    rows = np.empty((count, 1 + _WIDTH), "<f8")
    rows[:, 0] = growth.bars.timestamp.astype("<i8", copy=False).view("<f8")
    rows[:, 1:] = growth.bars.values.T
    payload = rows.tobytes()
    fetched = _UNKNOWN if growth.fetched_us is None else growth.fetched_us
    summed = payload + _TRAILER_SUMMED.pack(
        TAIL_MAGIC, LAYOUT, count, epoch, *growth.covered, fetched, growth.previous, growth.revision
    )
    return summed + _CHECK.pack(crc32(summed, _owner_checksum(key, None)), 0)


def decode_grown(tail: bytes, block: CachedBlock, key: SeriesKey, epoch: int) -> CachedBlock | None:
    """Return `block` with its tail, or None if the tail is not intact and exactly this block's.

    Never raises, whatever the bytes.
    """
    if len(tail) % _ROW_BYTES or not tail:
        return None
    owner = _owner_checksum(key, block.base)
    view = memoryview(tail)
    trailers: list[int] = []
    newest: tuple[int, int, int] | None = None
    revision_there, until_there = 0, 0
    end = len(tail)
    while end:  # from the last record to the first
        at = end - _ROW_BYTES
        magic, layout, count, of, since, until, fetched, previous, revision, checksum, zero = (
            _TRAILER.unpack_from(tail, at)
        )
        begin = at - count * _ROW_BYTES
        if magic != TAIL_MAGIC or layout != LAYOUT or of != epoch or zero or begin < 0:
            return None
        if checksum != crc32(view[begin : end - _CHECK.size], owner):
            return None
        if newest is None:
            newest = until, revision, fetched
        elif revision != revision_there or until < until_there:
            return None
        trailers.append(at // _ROW_BYTES)
        revision_there, until_there = previous, since
        end = begin
    if newest is None or revision_there != block.revision or until_there > block.covered.end:
        return None
    until, revision, fetched = newest
    covered = Span(block.covered.start, max(until, block.covered.end))
    is_bar = np.ones(len(tail) // _ROW_BYTES, np.bool_)
    is_bar[trailers] = False
    bars = _merged(block.bars, np.frombuffer(tail, "<f8").reshape(-1, 1 + _WIDTH)[is_bar])
    return CachedBlock(
        covered, revision, bars, block.base, None if fetched == _UNKNOWN else fetched
    )


def _merged(bars: Bars, rows: Floats) -> Bars:
    """Return `bars` with those of a tail: the later of two bars of one label counts. Read-only."""
    if not len(rows):
        return bars
    added: Int64s = rows[:, 0].copy().view(np.int64)
    keep = len(bars)
    if (keep and added[0] <= bars.timestamp[-1]) or not (added[1:] > added[:-1]).all():
        # Some were read again: from the first of these on, sort and keep the later ones.
        keep = int(np.searchsorted(bars.timestamp, added.min()))
        labels = np.concatenate([bars.timestamp[keep:], added])
        rows = np.concatenate([np.insert(bars.values[:, keep:].T, 0, 0.0, axis=1), rows])
        order = np.argsort(labels, kind="stable")
        arranged = labels[order]
        order = order[np.append(arranged[1:] != arranged[:-1], True)]
        added, rows = labels[order], rows[order]
    timestamp = np.concatenate([bars.timestamp[:keep], added])
    values = np.empty((_WIDTH, len(timestamp)))
    values[:, :keep] = bars.values[:, :keep]
    values[:, keep:] = rows[:, 1:].T
    timestamp.flags.writeable = values.flags.writeable = False
    return Bars(timestamp, values)


def _owner_checksum(key: SeriesKey, base: Timeframe | None) -> int:
    # NUL cannot occur in a host, feed or symbol: no two owners share a name.
    return crc32("\0".join((*key, base or key.timeframe)).encode())
