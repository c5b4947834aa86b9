"""From bars in columns to the DataFrame a caller gets, and its provenance.

One fixed shape: index = bar open (``datetime64[us, UTC]``, named ``timestamp``), columns always
``open high low close volume vwap trade_count`` as float64. Frames own their memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any, Final, NoReturn, cast

import numpy as np
import pandas as pd

from marketdata.types import COLUMNS, Bars, Int64s

ATTRS_KEY: Final = "marketdata"
_COLUMN_INDEX: Final = pd.Index(COLUMNS)


class Provenance(dict[str, str | int | float | bool]):
    """What a frame knows of its origin: a read-only mapping in ``df.attrs["marketdata"]``.

    pandas deep-copies ``attrs`` on every operation; being immutable, this copies as itself, so
    that a frame with provenance is as fast as one without.
    """

    __slots__ = ()

    def __copy__(self) -> Provenance:
        return self

    def __deepcopy__(self, memo: object) -> Provenance:
        return self

    def __reduce__(self) -> tuple[type[Provenance], tuple[dict[str, Any]]]:
        return Provenance, (dict(self),)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("provenance is read-only: it says where the frame came from")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse


def time_index(timestamps: Int64s, tz: str | None) -> pd.DatetimeIndex:
    """Return bar opens as an index in zone `tz` (None: naive dates in ``timestamps``' own clock)."""
    stamps = timestamps.view("M8[us]")
    if tz is None:
        return pd.DatetimeIndex(stamps, name="timestamp")
    index = pd.DatetimeIndex(stamps, tz=UTC, name="timestamp", copy=False)
    return index if tz == "UTC" else index.tz_convert(tz)


def single_frame(
    bars: Bars, tz: str | None, columns: pd.Index[str] = _COLUMN_INDEX
) -> pd.DataFrame:
    """Return one symbol's bars with a DatetimeIndex; takes over the bars' memory where it is
    their own, else copies it. `columns` names the rows of the values where they are others."""
    values, stamps = bars.values, bars.timestamp
    if values.base is not None or not values.flags.writeable:
        values = np.array(values, order="C")
    if stamps.flags.writeable:
        index = time_index(stamps if stamps.base is None else stamps.copy(), tz)
    else:
        index = _shared_index(stamps, tz)
    return pd.DataFrame(values.T, index=index, columns=columns, copy=False)


_indices: OrderedDict[tuple[int, str | None], tuple[Int64s, pd.DatetimeIndex]] = OrderedDict()
_INDICES_KEPT: Final = 64


def _shared_index(stamps: Int64s, tz: str | None) -> pd.DatetimeIndex:
    """Return the index of read-only timestamps, made once: its values cannot be changed, so
    frames of the same bars share them, each under a view that may be renamed."""
    at = (id(stamps), tz)
    known = _indices.get(at)
    if known is not None and known[0] is stamps:
        return known[1].view()
    index = time_index(stamps.copy(), tz)
    _indices[at] = (stamps, index)
    if len(_indices) > _INDICES_KEPT:
        _indices.popitem(last=False)
    return index.view()


def multi_frame(
    bars: Mapping[str, Bars], tz: str | None, columns: pd.Index[str] = _COLUMN_INDEX
) -> pd.DataFrame:
    """Return several symbols' bars with a MultiIndex (symbol, timestamp), sorted by both.

    The index is built from codes: each distinct timestamp becomes a value once, however many
    symbols have a bar there.
    """
    symbols = sorted(bars)
    lengths = [len(bars[s]) for s in symbols]
    stamps, codes = _factorise([bars[s].timestamp for s in symbols])
    values = np.empty((len(columns), sum(lengths)), np.float64)
    at = 0
    for symbol, length in zip(symbols, lengths, strict=True):
        values[:, at : at + length] = bars[symbol].values
        at += length
    index = pd.MultiIndex(
        levels=cast(Any, [_names(symbols), time_index(stamps, tz)]),
        codes=cast(Any, [np.repeat(np.arange(len(symbols), dtype=np.int32), lengths), codes]),
        names=["symbol", "timestamp"],
        verify_integrity=False,
    )
    return pd.DataFrame(values.T, index=index, columns=columns, copy=False)


def field_matrix(
    bars: Mapping[str, Bars],
    order: Sequence[str],
    field: str,
    tz: str | None,
    columns: Sequence[str] = COLUMNS,
) -> pd.DataFrame:
    """Return one field as a matrix timestamp x symbol (columns in `order`), NaN where no bar is."""
    row = columns.index(field)
    parts = [bars[s].timestamp for s in order]
    if order and _all_equal(parts):
        stamps = parts[0].copy()
        matrix = np.stack([bars[s].values[row] for s in order])
    else:
        stamps, codes = _factorise(parts)
        matrix = np.full((len(order), len(stamps)), np.nan)
        at = 0
        for column, symbol in enumerate(order):
            length = len(bars[symbol])
            matrix[column, codes[at : at + length]] = bars[symbol].values[row]
            at += length
    symbols = _names(order)
    return pd.DataFrame(matrix.T, index=time_index(stamps, tz), columns=symbols, copy=False)


def _names(symbols: Sequence[str]) -> pd.Index[str]:
    return pd.Index(list(symbols), dtype="str", name="symbol")


def _all_equal(parts: Sequence[Int64s]) -> bool:
    """Whether all series have bars at the same moments, as liquid symbols do over one window:
    then there is nothing to sort or search."""
    first = parts[0]
    return all(len(p) == len(first) and np.array_equal(p, first) for p in parts[1:])


def _factorise(parts: Sequence[Int64s]) -> tuple[Int64s, np.ndarray[Any, np.dtype[np.int32]]]:
    """Return the sorted distinct values of sorted arrays, and each value's position in them."""
    filled = [p for p in parts if len(p)]
    if not filled:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    longest = max(filled, key=len)
    if _all_equal(filled):
        return longest.copy(), np.tile(np.arange(len(longest), dtype=np.int32), len(filled))
    distinct = longest
    for part in filled:
        if part is not longest:
            distinct = _merge_sorted(distinct, part)
    return distinct, np.concatenate([np.searchsorted(distinct, p).astype(np.int32) for p in filled])


def _merge_sorted(known: Int64s, part: Int64s) -> Int64s:
    at = np.searchsorted(known, part)
    new = part[(at == len(known)) | (known[np.minimum(at, len(known) - 1)] != part)]
    return np.union1d(known, new) if len(new) else known
