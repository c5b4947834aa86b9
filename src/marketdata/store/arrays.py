"""Whole numpy columns as parameters: PostgreSQL arrays in their binary format, made at once and not
value by value, which for 10,000 series would take longer than the statement.

Source: ``array_recv`` of PostgreSQL: dimensions, whether any element is NULL, type of the elements;
for each dimension its length and lower bound; each element with its length. Big-endian. Type numbers
are those of ``pg_type.dat``. Pure but for the dumpers, which psycopg calls.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.pq import Format

from marketdata.spans import Span
from marketdata.store.wire import POSTGRES_EPOCH, multirange_text
from marketdata.types import Int64s, SeriesKey

NEVER: Final = np.iinfo(np.int64).max
"""In a column of instants: none. It arrives as ``infinity``."""
LONG_AGO: Final = np.iinfo(np.int64).min
"""The same, where the latest counts. It arrives as ``-infinity``."""


class _Packed:
    """The bytes of one array parameter."""

    __slots__ = ("data",)
    element: ClassVar[int]

    def __init__(self, data: bytes) -> None:
        self.data = data

    @classmethod
    def of(cls, column: NDArray[Any], kind: str) -> Any:
        """Return `column` as elements of a big-endian numpy `kind`."""
        rows = np.empty(len(column), [("length", ">i4"), ("value", kind)])
        rows["length"] = np.dtype(kind).itemsize
        rows["value"] = column
        return cls(cls.head(len(column)) + rows.tobytes())

    @classmethod
    def head(cls, count: int) -> bytes:
        if not count:
            return struct.pack(">iii", 0, 0, cls.element)
        return struct.pack(">iiiii", 1, 0, cls.element, count, 1)


class _Texts(_Packed):
    element = 25


class _Ints(_Packed):
    element = 23


class _Bigints(_Packed):
    element = 20


class _Booleans(_Packed):
    element = 16


class _Instants(_Packed):
    element = 1184


class _Doubles(_Packed):
    element = 701


_ARRAY_TYPES: Final = {
    _Texts: 1009,
    _Ints: 1007,
    _Bigints: 1016,
    _Booleans: 1000,
    _Instants: 1185,
    _Doubles: 1022,
}


def texts(values: Iterable[str]) -> object:
    """Return a ``text[]``."""
    encoded = [value.encode() for value in values]
    parts = [part for value in encoded for part in (_LENGTH.pack(len(value)), value)]
    return _Texts(_Texts.head(len(encoded)) + b"".join(parts))


_LENGTH: Final = struct.Struct(">i")


def ints(column: NDArray[Any] | Sequence[int]) -> object:
    """Return an ``integer[]``."""
    return _Ints.of(np.asarray(column, np.int32), ">i4")


def bigints(column: Int64s) -> object:
    """Return a ``bigint[]``."""
    return _Bigints.of(column, ">i8")


def booleans(column: NDArray[np.bool_]) -> object:
    """Return a ``boolean[]``."""
    return _Booleans.of(column, ">i1")


def doubles(column: NDArray[np.float64]) -> object:
    """Return a ``double precision[]``; NaN stays NaN."""
    return _Doubles.of(column, ">f8")


def instants(column: Int64s | Sequence[int]) -> object:
    """Return microseconds since 1970 as a ``timestamptz[]``."""
    micros = np.asarray(column, np.int64)
    infinite = (micros == NEVER) | (micros == LONG_AGO)
    return _Instants.of(np.where(infinite, micros, micros - POSTGRES_EPOCH), ">i8")


def multiranges(lists: Sequence[Sequence[Span]]) -> object:
    """Return normal lists of spans as a ``text[]`` of multiranges."""
    return texts(multirange_text(spans) for spans in lists)


def key_arrays(keys: Sequence[SeriesKey]) -> dict[str, object]:
    """Return the fields of keys as one array each, by name, for ``unnest``."""
    columns = list(zip(*keys, strict=True)) if keys else [()] * 4
    names = ("provider", "feed", "symbol", "timeframe")
    return {name: texts(column) for name, column in zip(names, columns, strict=True)}


def register_arrays(connection: Connection[Any]) -> None:
    """Make `connection` take the arrays of this module as parameters."""
    for kind, number in _ARRAY_TYPES.items():
        connection.adapters.register_dumper(kind, _dumper(number))


def _dumper(number: int) -> type[Dumper]:
    class ArrayDumper(Dumper):
        format = Format.BINARY
        oid = number

        def dump(self, obj: _Packed) -> bytes:
            return obj.data

    return ArrayDumper


__all__ = [
    "LONG_AGO",
    "NEVER",
    "bigints",
    "booleans",
    "doubles",
    "instants",
    "ints",
    "key_arrays",
    "multiranges",
    "register_arrays",
    "texts",
]
