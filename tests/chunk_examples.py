"""Chunks' bars for tests."""

from __future__ import annotations

import numpy as np

from marketdata.types import MINUTE, Bars, Int64s, revision_of

FIRST = 1_704_205_800_000_000  # 2024-01-02T14:30Z
OBSERVED = FIRST + 3600 * 1_000_000


def minute_bars(count: int, seed: int = 0) -> Bars:
    """Prices in cents, a few finer; volumes, some fractional; six-digit vwaps; quiet minutes."""
    random = np.random.default_rng(seed)
    timestamp = FIRST + np.cumsum(random.choice([1, 1, 1, 1, 2, 3], count)) * MINUTE
    close = 10_000 + np.cumsum(random.integers(-9, 10, count))
    open_ = close + random.integers(-5, 6, count)
    high = np.maximum(open_, close) + random.integers(0, 6, count)
    low = np.minimum(open_, close) - random.integers(0, 6, count)
    values = np.stack(
        [
            *(open_ / 100, high / 100, low / 100, close / 100),
            random.integers(1, 500_000, count).astype(np.float64),
            random.integers(low * 10_000, high * 10_000 + 1) / 1e6,
            random.integers(1, 3000, count).astype(np.float64),
        ]
    )
    finer = random.random((4, count)) < 0.02
    values[:4][finer] += 0.0005
    fractional = random.random(count) < 0.02
    values[4, fractional] += np.round(random.random(count)[fractional], 6)
    return Bars(timestamp, values)


def revisions(count: int) -> Int64s:
    """A session observed at once and its end observed again."""
    found = np.full(count, revision_of(3, OBSERVED), np.int64)
    found[count // 2 :] += 7_000
    return found


def assert_same_bars(left: Bars, right: Bars) -> None:
    """Bit for bit: NaN is NaN, -0.0 is not 0.0."""
    np.testing.assert_array_equal(left.timestamp, right.timestamp)
    assert left.timestamp.dtype == right.timestamp.dtype == np.int64
    assert left.values.shape == right.values.shape
    assert left.values.dtype == right.values.dtype == np.float64
    np.testing.assert_array_equal(
        np.ascontiguousarray(left.values).view(np.int64),
        np.ascontiguousarray(right.values).view(np.int64),
    )
