"""Floats as whole numbers over a power of ten, wherever that gives them back bit for bit."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marketdata.types import Bools, Floats

LARGEST: Final = 2.0**50
"""Whole numbers up to here, sums of four and differences of two are exact in float64."""
_MOST_DIGITS: Final = 10
_WORTH_PATCHING: Final = 0.1
"""A patch takes about eight bytes; two more digits in every value about one."""
_SAMPLE: Final = 200
"""Values on which an exponent is tried before it is tried on all."""


class Scaled(NamedTuple):
    """`numbers` whole; ``divide(numbers)`` gives the values back but for `misses`."""

    numbers: Floats
    """Where a value is not finite: 0."""
    misses: Bools
    exponent: int
    single: bool


def scale(values: Floats, least: int = 0) -> Scaled | None:
    """Return the smallest power of ten, from `least` on, that gives nearly all values back.

    Parameters
    ----------
    values : ndarray of float64
        Any shape, with at least one value.
    least : int
        Digits to begin with.

    Returns
    -------
    Scaled or None
        None where no power of ten up to 10**10 serves. NaN counts as no value: a column half NaN
        is scaled for the other half.
    """
    flat = values.reshape(-1)
    sample = flat[:: max(1, len(flat) // _SAMPLE)]
    with np.errstate(all="ignore"):  # inf, NaN and what overflows are misses
        for single in (False, True):
            if single and not _same(sample, sample.astype(np.float32).astype(np.float64)).all():
                return None
            for exponent in range(least, _MOST_DIGITS + 1):
                if not _worth(sample, _try(sample, exponent, single).misses):
                    continue
                tried = _try(values, exponent, single)
                if _worth(values, tried.misses):
                    return tried
    return None


def divide(numbers: NDArray[Any], exponent: int, single: bool, out: Floats) -> None:
    """Write the values that `numbers`, of any type, stand for to `out`, which may be `numbers`."""
    if exponent:
        np.divide(numbers, float(10**exponent), out=out)
    elif out is not numbers:
        out[:] = numbers
    if single:
        out[:] = out.astype(np.float32)


def guess_vwap(high: NDArray[Any], low: NDArray[Any], digits: int, out: Floats) -> None:
    """Write the middle of high and low, as whole numbers with `digits` (1 or more) more digits.

    Whole, because half a ten is: sum and product are exact, the same on every machine. `high` and
    `low` may be of a narrower type if that holds their sum.
    """
    np.add(high, low, out=out)
    out *= 10**digits // 2


def _try(values: Floats, exponent: int, single: bool) -> Scaled:
    numbers = np.rint(values * float(10**exponent))
    numbers[~(np.abs(numbers) <= LARGEST)] = 0
    numbers += 0.0  # -0.0 is no whole number
    back = np.empty_like(numbers)
    divide(numbers, exponent, single, back)
    return Scaled(numbers, ~_same(values, back), exponent, single)


def _same(values: Floats, back: Floats) -> Bools:
    return np.asarray(values.view(np.int64) == back.view(np.int64))


def _worth(values: Floats, misses: Bools) -> bool:
    missed = np.count_nonzero(misses)
    if missed <= _WORTH_PATCHING * values.size:
        return True
    nothing = np.count_nonzero(np.isnan(values))
    return bool(missed - nothing <= _WORTH_PATCHING * (values.size - nothing))
