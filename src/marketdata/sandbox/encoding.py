"""Bars as JSON text, a page at a time instead of a number at a time.

A page is written into one matrix of bytes, a row a bar, with zero bytes where a number is shorter
than its column; dropping the zero bytes leaves the text. Numbers are decimal integers divided by
the smallest power of ten that gives back every float64 of the column bit for bit; a column that
has none is written with ``repr``, which round-trips too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import date
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marketdata.types import (
    CLOSE,
    DAY,
    HIGH,
    LOW,
    MINUTE,
    OPEN,
    SECOND,
    TRADE_COUNT,
    VOLUME,
    VWAP,
    Bars,
    Floats,
    Int64s,
)

Bytes = NDArray[np.uint8]

# Order of the keys in an answer of Alpaca's market-data API.
_FIELDS: Final = (
    ("o", OPEN),
    ("h", HIGH),
    ("l", LOW),
    ("c", CLOSE),
    ("v", VOLUME),
    ("n", TRADE_COUNT),
    ("vw", VWAP),
)
_SCALES: Final = (0, 2, 4, 6, 9)
_EXACT: Final = 2.0**53
_ROW_END: Final = b","
_SYMBOL_END: Final = b"\x01"
_EPOCH: Final = date(1970, 1, 1).toordinal()


def _text_table(texts: Sequence[str]) -> Bytes:
    return np.frombuffer("".join(texts).encode(), np.uint8).reshape(len(texts), -1)


_CLOCK: Final = _text_table([f"T{m // 60:02d}:{m % 60:02d}:" for m in range(1440)])
_SIXTY: Final = _text_table([f"{s:02d}Z" for s in range(60)])


def encode_bars(parts: Sequence[Bars]) -> list[bytes]:
    """Return each part's bars as the inside of a JSON array, without its brackets.

    NaN becomes ``null``. Every float64 is read back bit for bit.
    """
    lengths = [len(p) for p in parts]
    if not sum(lengths):
        return [b""] * len(parts)
    filled = [p for p in parts if len(p)]
    timestamp = np.concatenate([p.timestamp for p in filled])
    values = np.concatenate([p.values for p in filled], axis=1)
    columns = [_constant(b'{"t":"', len(timestamp)), _times(timestamp)]
    for at, (key, row) in enumerate(_FIELDS):
        lead = b'"' if at == 0 else b""
        columns.append(_constant(lead + f',"{key}":'.encode(), len(timestamp)))
        columns.append(_numbers(values[row]))
    columns.append(_constant(b"}", len(timestamp)))
    ends = np.full((len(timestamp), 1), _ROW_END[0], np.uint8)
    ends[np.cumsum([len(p) for p in filled]) - 1] = _SYMBOL_END[0]
    columns.append(ends)
    text = np.concatenate(columns, axis=1).tobytes().translate(None, b"\0")
    pieces = iter(text.split(_SYMBOL_END))
    return [next(pieces) if n else b"" for n in lengths]


def _constant(text: bytes, rows: int) -> Bytes:
    return np.broadcast_to(np.frombuffer(text, np.uint8), (rows, len(text)))


def _times(timestamp: Int64s) -> Bytes:
    """Return ``YYYY-MM-DDTHH:MM:SSZ`` for each timestamp; fractions of a second are cut."""
    day = timestamp // DAY
    second = (timestamp - day * DAY) // SECOND
    days, where = np.unique(day, return_inverse=True)
    dates = _text_table([date.fromordinal(_EPOCH + int(d)).isoformat() for d in days])
    return np.concatenate(
        [dates[where], _CLOCK[second // 60 % (DAY // MINUTE)], _SIXTY[second % 60]], axis=1
    )


def _numbers(values: Floats) -> Bytes:
    for digits in _SCALES:
        factor = 10.0**digits
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.rint(values * factor)
            exact = (scaled / factor == values) & (np.abs(scaled) < _EXACT)
        if exact.all() and not (np.signbit(values)).any():
            return _decimals(scaled.astype(np.int64), digits)
    texts = ["null" if math.isnan(v) else json.dumps(v) for v in values.tolist()]
    width = max(map(len, texts))
    return np.array(texts, f"S{width}").view(np.uint8).reshape(len(texts), width)


def _decimals(scaled: Int64s, digits: int) -> Bytes:
    """Return non-negative integers over 10**digits as decimal text padded with zero bytes."""
    factor = 10**digits
    whole, fraction = (scaled, None) if not digits else np.divmod(scaled, factor)
    width = len(str(int(whole.max())))
    out = np.empty((len(scaled), width + (digits + 1 if digits else 0)), np.uint8)
    rest = whole
    for at in range(width - 1, -1, -1):
        smaller = rest // 10
        digit = (rest - smaller * 10 + ord("0")).astype(np.uint8)
        # A leading zero is no digit, but 0 itself is written.
        out[:, at] = digit if at == width - 1 else np.where(rest > 0, digit, 0)
        rest = smaller
    if fraction is not None:
        out[:, width] = np.where(fraction > 0, ord("."), 0)
        rest, power = fraction, factor
        for at in range(digits):
            power //= 10
            digit_, left = np.divmod(rest, power)
            # What follows the last digit that is not 0 is left out.
            out[:, width + 1 + at] = np.where(rest > 0, digit_ + ord("0"), 0)
            rest = left
    return out
