"""Random numbers that can be read at any address, and the price levels made of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marketdata.sandbox.source import day_number
from marketdata.types import Floats, Int64s

UInt64s = NDArray[np.uint64]

_OCTAVES: Final = 2 ** np.arange(12, dtype=np.int64)
_GROWTH: Final = 0.06
_GROWTH_FROM: Final = day_number(date(2025, 1, 1))


def _mixed(x: UInt64s) -> UInt64s:
    """Scatter 64-bit numbers (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(key: int, streams: int | Sequence[int], index: Int64s) -> Floats:
    """Return numbers in [0, 1) addressed by key, stream and index.

    The shape is that of `index`, behind an axis of streams where there are several.
    """
    many = (streams,) if isinstance(streams, int) else streams
    salts = np.array([(key + s * 0x9E3779B97F4A7C15) % 2**64 for s in many], np.uint64)
    salts = salts.reshape(-1, *(1,) * index.ndim)
    mixed = _mixed(_mixed(index.astype(np.uint64) + salts) ^ np.uint64(key))
    found = np.asarray((mixed >> np.uint64(11)) * 2.0**-53)
    return np.asarray(found[0]) if isinstance(streams, int) else found


def normals(key: int, streams: Sequence[int], index: Int64s) -> Floats:
    """Return nearly normal numbers (three uniforms), within plus and minus three, by stream."""
    drawn = uniforms(key, [s * 3 + part for s in streams for part in range(3)], index)
    total = drawn.reshape(len(streams), 3, *index.shape).sum(axis=1)
    return np.asarray(total * 2.0 - 3.0)


def levels(key: int, volatility: float, days: Int64s) -> Floats:
    """Return the logarithm of price relative to its typical level, for days since 1970-01-01.

    Noise of doubling periods, interpolated: its daily moves have the given standard deviation,
    and it stays within a factor of a few of its level for ever.
    """
    cell, inside = np.divmod(days[None, :], _OCTAVES[:, None])
    # Each octave reads its own part of one index space.
    base = cell + (np.arange(len(_OCTAVES)) << 40)[:, None]
    (noise,) = normals(key, [1], np.stack([base, base + 1]))
    part = inside / _OCTAVES[:, None]
    heights = noise[0] * (1 - part) + noise[1] * part
    weights = 0.5 * volatility * np.sqrt(_OCTAVES)
    growth = _GROWTH / 365 * (days - _GROWTH_FROM)
    return np.asarray((heights * weights[:, None]).sum(axis=0) + growth)
