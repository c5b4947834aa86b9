"""The ``ind`` block: a ring of the newest indicator values of one series, as the cache holds it.

Layout, little endian, 88 bytes of header and 24 bytes and 8 a value for each of 64 records::

    0   4s     magic  b"mdin"
    4   u16    layout version
    6   u16    values in a record
    8   u32    CRC-32 of the owner's name and the header from byte 12 to 80
    12  u32    CRC-32 of the values' names
    16  i64    store epoch
    24  i64    revision of the base series        (24 to 48: the cache's scripts read these)
    32  i64    corporate actions as of, microseconds UTC
    40  i64    newest timestamp, microseconds UTC
    48  i64    covered until, exclusive
    56  i64    last answer of the provider; the least number where unknown
    64  i64    action version
    72  i64    valid until: when the next announced split takes effect
    80  u32    place of the newest record         (outside the checksum: the scripts write it)
    84  u32    0
    88  records, each:
        u32    CRC-32 of the owner's name and the record from byte 8 on
        u32    0
        i64    timestamp
        i64    timestamp of the bar before
        f64[n] values

Adding a record rewrites the header and one record, never the whole block. Each record names the
one before it, so what a reader takes is an unbroken chain back from the newest, whatever happened
to the rest. Never pickle: these bytes come from a server that others may write to. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final
from zlib import crc32

import numpy as np

from marketdata.indicator_values import Steps, Tail
from marketdata.types import Int64s, SeriesKey, Timeframe

MAGIC: Final = b"mdin"
LAYOUT: Final = 1
CAPACITY: Final = 64
"""Records a block has room for."""
HEADER_BYTES: Final = 88
SUMMED_BYTES: Final = 80
"""Bytes of the header that a writer sends; the cache's scripts write the rest of it."""

_PREFIX: Final = struct.Struct("<4sHHI")
_FACTS: Final = struct.Struct("<Iqqqqqqqq")
_PLACE: Final = struct.Struct("<II")
_UNKNOWN: Final = -(2**63)


class BlockFormat:
    """Encodes and decodes blocks of one set of columns and one store.

    Parameters
    ----------
    columns : sequence of str
        Names of the values in each record.
    epoch : int
        The store's epoch, a signed 64-bit number.
    """

    def __init__(self, columns: Sequence[str], epoch: int) -> None:
        self.columns = tuple(columns)
        self.epoch = epoch
        self.signature = crc32("\0".join(columns).encode())
        self._record = np.dtype(
            [
                ("crc", "<u4"),
                ("unused", "<u4"),
                ("timestamp", "<i8"),
                ("previous", "<i8"),
                ("values", "<f8", (len(columns),)),
            ]
        )

    @property
    def record_bytes(self) -> int:
        return self._record.itemsize

    def encode(self, tail: Tail, key: SeriesKey) -> bytes:
        """Return the newest `CAPACITY` records of `tail` as a whole block."""
        held = min(len(tail.timestamp), CAPACITY)
        if not held or tail.values.shape != (len(tail.timestamp), len(self.columns)):
            raise ValueError(f"values of shape {tail.values.shape} for {len(tail.timestamp)} bars")
        owner = _owner_checksum(key, tail.base)
        records = np.zeros(CAPACITY, self._record)
        before = np.concatenate(([tail.previous], tail.timestamp[:-1]))
        records["timestamp"][:held] = tail.timestamp[-held:]
        records["previous"][:held] = before[-held:]
        records["values"][:held] = tail.values[-held:]
        records["crc"][:held] = _checksums(records[:held], np.full(held, owner).tolist())
        facts = (
            tail.revision,
            tail.actions_us,
            int(tail.timestamp[-1]),
            tail.covered_until,
            _UNKNOWN if tail.fetched_us is None else tail.fetched_us,
            tail.action_version,
            tail.valid_until,
        )
        return self._header(owner, facts) + _PLACE.pack(held - 1, 0) + records.tobytes()

    def encode_steps(self, steps: Steps) -> list[bytes]:
        """Return for each series the header that is to be, followed by its record if it has one."""
        found = steps.records
        owners = [
            _owner_checksum(key, base) for key, base in zip(found.keys, steps.bases, strict=True)
        ]
        records = np.zeros(len(found), self._record)
        records["timestamp"] = found.timestamp
        records["previous"] = steps.previous
        records["values"] = found.values
        records["crc"] = _checksums(records, owners)
        fetched = _UNKNOWN if steps.fetched_us is None else steps.fetched_us
        headers = zip(
            found.revision.tolist(),
            found.actions_us.tolist(),
            found.timestamp.tolist(),
            steps.covered_until.tolist(),
            [fetched] * len(found),
            found.action_version.tolist(),
            steps.valid_until.tolist(),
            strict=True,
        )
        data = memoryview(records.tobytes())
        size = self.record_bytes
        return [
            self._header(owner, facts) + (data[n * size : (n + 1) * size] if fresh else b"")
            for n, (owner, facts, fresh) in enumerate(
                zip(owners, headers, steps.fresh.tolist(), strict=True)
            )
        ]

    def _header(self, owner: int, facts: tuple[int, ...]) -> bytes:
        summed = _FACTS.pack(self.signature, self.epoch, *facts)
        return _PREFIX.pack(MAGIC, LAYOUT, len(self.columns), crc32(summed, owner)) + summed

    def decode(self, data: bytes, key: SeriesKey, base: Timeframe | None) -> Tail | None:
        """Return the records in `data`, or None if it is not exactly that owner's intact block of
        these columns.

        Never raises, whatever the bytes. The arrays are read-only copies.
        """
        if len(data) != HEADER_BYTES + CAPACITY * self.record_bytes:
            return None
        magic, layout, width, checksum = _PREFIX.unpack_from(data)
        owner = _owner_checksum(key, base)
        signature, epoch, revision, actions, last, covered, fetched, version, valid = (
            _FACTS.unpack_from(data, _PREFIX.size)
        )
        ours = (MAGIC, LAYOUT, len(self.columns), self.signature, self.epoch)
        place = _PLACE.unpack_from(data, SUMMED_BYTES)[0]
        if (
            (magic, layout, width, signature, epoch) != ours
            or checksum != crc32(data[_PREFIX.size : SUMMED_BYTES], owner)
            or place >= CAPACITY
        ):
            return None
        records = np.frombuffer(data, self._record, CAPACITY, HEADER_BYTES)
        order = np.arange(place - CAPACITY + 1, place + 1) % CAPACITY
        chain = _chain(records["timestamp"][order], records["previous"][order], last)
        kept = records[order[CAPACITY - chain :]]
        if not chain or _checksums(kept, [owner] * chain) != kept["crc"].tolist():
            return None
        timestamp = kept["timestamp"].astype(np.int64)
        values = kept["values"].astype(np.float64)
        timestamp.flags.writeable = values.flags.writeable = False
        return Tail(
            timestamp,
            values,
            covered,
            revision,
            actions,
            version,
            int(kept["previous"][0]),
            None if fetched == _UNKNOWN else fetched,
            base,
            valid,
        )


def _chain(timestamp: Int64s, previous: Int64s, last: int) -> int:
    """Return how many records, counted from the newest, follow each other without a break."""
    if timestamp[-1] != last:
        return 0
    linked = (previous[1:] == timestamp[:-1]) & (timestamp[:-1] != 0)
    broken = np.flatnonzero(~linked)
    return len(timestamp) - (int(broken[-1]) + 1 if len(broken) else 0)


def _checksums(records: np.ndarray, owners: Sequence[int]) -> list[int]:  # type: ignore[type-arg]
    size = records.dtype.itemsize
    data = memoryview(records.tobytes())
    return [crc32(data[n * size + 8 : (n + 1) * size], owner) for n, owner in enumerate(owners)]


def _owner_checksum(key: SeriesKey, base: Timeframe | None) -> int:
    # NUL cannot occur in a host, feed or symbol: no two owners share a name.
    return crc32("\0".join((*key, base or key.timeframe)).encode())
