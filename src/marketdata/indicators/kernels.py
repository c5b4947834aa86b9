"""Numerics that several indicators share, chosen so that a value does not depend on the window.

A running sum carries the rounding of everything that went through it, such as a price of 10,000
that has since become 0.01. TA-Lib's running sums are used where the prices keep that below 1e-10
of the value, sums over each window's own bars elsewhere.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, log
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from marketdata.indicators import talib_c
from marketdata.indicators.definitions import Value
from marketdata.indicators.inputs import ArrayOps, Inputs, Ops
from marketdata.types import Bools, Floats, Int64s

PRECISION: Final = 1e-12
"""What may remain of a window's beginning in a stabilised value, as a share of it."""
STANDSTILL: Final = 1e-14
"""What remains of the last movement when a series counts as standing still."""
_STEADY: Final = 100.0
_ROWS: Final = 8192


@lru_cache(maxsize=256)
def memory(decay: float, precision: float = PRECISION) -> int:
    """Return after how many bars an average that keeps `decay` a bar has forgotten its start."""
    return ceil(log(precision) / log(decay)) if decay > 0 else 1


def ema_memory(length: int, precision: float = PRECISION) -> int:
    """Return `memory` of an exponential average of weight 2 / (length + 1)."""
    return memory((length - 1) / (length + 1), precision)


def wilder_memory(length: int, precision: float = PRECISION) -> int:
    """Return `memory` of Wilder's average of weight 1 / length."""
    return memory((length - 1) / length, precision)


def windows(values: Floats, length: int) -> Floats:
    """Return every window of `length` values as a read-only view, shape (n - length + 1, length)."""
    count = max(len(values) - length + 1, 0)
    found: Floats = as_strided(values, (count, length), (8, 8), writeable=False)
    return found


def padded(values: Floats, size: int) -> Floats:
    """Return `values` at the end of an array of `size`, NaN before."""
    out: Floats = np.empty(size)
    start = max(size - len(values), 0)
    out[:start] = np.nan
    out[start:] = values[len(values) - (size - start) :]
    return out


def exact_sum(values: Floats, length: int) -> Floats:
    """Return the sum of each window from its own values alone; shape (n - length + 1,)."""
    if len(values) < length:
        return np.empty(0)
    return np.asarray(np.convolve(values, np.ones(length), "valid"), np.float64)


def weighted_mean(values: Floats, length: int) -> Floats:
    """Return the mean of each window with weights 1, 2, ..., length; shape (n - length + 1,)."""
    if len(values) < length:
        return np.empty(0)
    weights = np.arange(length, 0, -1, dtype=np.float64)  # convolve turns them round
    return np.asarray(np.convolve(values, weights, "valid") / weights.sum(), np.float64)


def steady(inputs: Inputs) -> bool:
    """Return whether running sums of the close keep within 1e-10 of exact ones."""
    low, high = inputs.bounds
    return high <= _STEADY * low


def mean_close(inputs: Inputs, length: int) -> Floats:
    """Return the moving mean of the close, NaN before the first; shared between indicators."""
    found: Floats | None = inputs.shared.get(("mean", length))
    if found is None:
        if steady(inputs):
            found = talib_c.SMA(inputs.close, length) if length > 1 else inputs.close.copy()
        else:
            found = padded(exact_sum(inputs.close, length) / length, len(inputs))
        inputs.shared["mean", length] = found
    return found


def deviation(window: Floats, ops: Ops) -> Value:
    """Return the population standard deviation over the last axis: 0 exactly if all are equal.

    Distances are taken from the window's last value, then from their own mean, so that nothing
    of the price's level is squared.
    """
    length = window.shape[-1]
    away = window - window[..., -1:]
    away -= np.add.reduce(away, axis=-1, keepdims=True) / length
    return ops.sqrt(np.einsum("...i,...i->...", away, away) / length)


def deviation_close(inputs: Inputs, length: int) -> Floats:
    """Return the moving population standard deviation of the close, NaN before the first."""
    size = len(inputs)
    if length == 1 or size < length:
        return padded(np.zeros(max(size - length + 1, 0)), size)
    if steady(inputs):
        found: Floats = talib_c.STDDEV(inputs.close, length, 1.0)
        return found
    out = np.full(size, np.nan)
    view = windows(inputs.close, length)
    for start in range(0, len(view), _ROWS):
        part = view[start : start + _ROWS]
        out[start + length - 1 : start + length - 1 + len(part)] = deviation(part, ArrayOps())
    return out


@lru_cache(maxsize=64)
def _weights(decay: float, seeds: int, size: int) -> Floats:
    """Return the weight of each of `size` values in an average whose first `seeds` weigh alike."""
    age = np.minimum(np.arange(size - 1, -1, -1), size - seeds)
    weights: Floats = decay ** age.astype(np.float64)
    weights.flags.writeable = False
    return weights


def smoothed_end(values: Floats, seeds: int, decay: float) -> float:
    """Return where ``sum = sum * decay + value`` ends, begun with the sum of the first `seeds`."""
    return float(np.dot(_weights(decay, seeds, len(values)), values))


def still_runs(moving: Bools) -> Int64s:
    """Return for each bar how many bars, itself included, it is since the last that moved."""
    places = np.arange(1, len(moving) + 1)
    return np.asarray(places - np.maximum.accumulate(np.where(moving, places, 0)), np.int64)


def true_range(inputs: Inputs) -> Floats:
    """Return the true range of every bar after the first; shape (n - 1,)."""
    before = inputs.close[:-1]
    high = np.maximum(inputs.high[1:], before)
    return np.asarray(high - np.minimum(inputs.low[1:], before))
