"""From bars to a chunk."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from marketdata.chunks.layout import (
    DESCRIPTOR,
    LAYOUT,
    LZ4,
    MAGIC,
    PREFIX,
    PRICES,
    SUMMED,
    WIDTH,
)
from marketdata.chunks.packing import (
    CONSTANT,
    SCALED,
    SINGLE,
    Packed,
    Segment,
    pack,
    pack_bits,
    pack_signed,
)
from marketdata.chunks.scaling import LARGEST, Scaled, guess_vwap, scale
from marketdata.types import (
    CLOSE,
    HIGH,
    LOW,
    MINUTE,
    OPEN,
    TRADE_COUNT,
    VOLUME,
    VWAP,
    Bars,
    Bools,
    Floats,
    Int64s,
)


def encode_chunk(bars: Bars, revisions: Int64s) -> bytes:
    """Return `bars` as bytes from which `decode_chunk` makes the same bars, bit for bit.

    Parameters
    ----------
    bars : Bars
        At least one; timestamps strictly ascending, values of shape ``(7, n)``, any floats.
    revisions : ndarray of int64, shape (n,)
        `types.revision_of` each bar. Equal neighbours take no room.

    Raises
    ------
    ValueError
        No bars, not ascending, or shapes that do not fit; a retry does not help.
    """
    _check(bars, revisions)
    count, values = len(bars), np.ascontiguousarray(bars.values)
    misses = np.zeros(values.shape, np.bool_)
    prices = scale(values[PRICES]) if np.isfinite(values[PRICES]).all() else None
    segments = [
        _times(bars.timestamp),
        *_prices(values[PRICES], prices, misses[PRICES]),
        _amounts(values[VOLUME], misses[VOLUME]),
        _vwaps(values[VWAP], prices, misses[VWAP]),
        _amounts(values[TRADE_COUNT], misses[TRADE_COUNT]),
    ]
    places = np.flatnonzero(misses)
    runs = np.flatnonzero(np.diff(revisions, prepend=~revisions[:1]))
    segments += [
        pack(np.diff(places, prepend=0).view(np.uint64)),
        pack_bits(values.reshape(-1)[places]),
        pack(np.diff(runs, append=count).view(np.uint64)),
        pack(np.diff(revisions[runs], prepend=0).view(np.uint64)),
    ]
    return _sealed(bars.timestamp, len(places), len(runs), segments)


def _check(bars: Bars, revisions: Int64s) -> None:
    count = len(bars)
    if not count:
        raise ValueError("a chunk holds at least one bar")
    if bars.values.shape != (WIDTH, count) or revisions.shape != (count,):
        raise ValueError(
            f"columns of shape {bars.values.shape} and revisions of shape {revisions.shape} "
            f"for {count} bars"
        )
    if not (bars.timestamp[1:] > bars.timestamp[:-1]).all():
        raise ValueError("the timestamps of a chunk must be strictly ascending")


def _sealed(time: Int64s, patches: int, runs: int, segments: list[Packed]) -> bytes:
    summed = SUMMED.pack(len(time), int(time[0]), int(time[-1]), patches, runs)
    summed += b"".join(DESCRIPTOR.pack(*packed.segment) for packed in segments)
    payload: bytes = LZ4.compress(b"".join(packed.data for packed in segments), asbytes=True)
    summed += payload
    return PREFIX.pack(MAGIC, LAYOUT, WIDTH, crc32(summed)) + summed


def _times(time: Int64s) -> Packed:
    steps = np.diff(time, prepend=time[0]).view(np.uint64)  # of any size: they wrap around 2**64
    unit = 1 if (steps % np.uint64(MINUTE)).any() else MINUTE
    return pack(steps // np.uint64(unit), base=unit)


def _prices(values: Floats, scaled: Scaled | None, misses: Bools) -> list[Packed]:
    """Return close, open, high and low, and note what of them does not come back."""
    if scaled is None:
        return [pack_bits(values[column]) for column in (CLOSE, OPEN, HIGH, LOW)]
    misses[:] = scaled.misses
    open_, high, low, close = scaled.numbers
    before = np.concatenate([close[:1], close[:-1]])
    how = _how(scaled)
    return [
        _differences(close - before, **how, base=int(close[0])),
        _differences(open_ - before, **how),
        _differences(high - np.maximum(open_, close), **how),
        _differences(np.minimum(open_, close) - low, **how),
    ]


def _differences(numbers: Floats, **how: int) -> Packed:
    return pack_signed(numbers.astype(np.int64), **how)


def _amounts(values: Floats, misses: Bools) -> Packed:
    """Return a column that follows no other."""
    scaled = scale(values)
    if _constant(values) or scaled is None:
        return _unscaled(values)
    misses[:] = scaled.misses
    return _differences(scaled.numbers, **_how(scaled))


def _vwaps(values: Floats, prices: Scaled | None, misses: Bools) -> Packed:
    if prices is None:
        return _amounts(values, misses)
    scaled = scale(values, prices.exponent + 1)
    if _constant(values) or scaled is None:
        return _unscaled(values)
    guess = np.empty_like(values)
    digits = scaled.exponent - prices.exponent
    guess_vwap(prices.numbers[HIGH], prices.numbers[LOW], digits, guess)
    if not (np.abs(guess) <= LARGEST).all():
        return _unscaled(values)
    misses[:] = scaled.misses
    # A patched bar costs nothing here: its number is what is guessed anyway.
    return _differences(np.where(misses, 0.0, scaled.numbers - guess), **_how(scaled))


def _constant(values: Floats) -> bool:
    bits = values.view(np.int64)
    return bool((bits == bits[0]).all())


def _unscaled(values: Floats) -> Packed:
    if _constant(values):
        return Packed(Segment(CONSTANT, base=int(values.view(np.int64)[0])), b"")
    return pack_bits(values)


def _how(scaled: Scaled) -> dict[str, int]:
    return {"kind": SINGLE if scaled.single else SCALED, "exponent": scaled.exponent}
