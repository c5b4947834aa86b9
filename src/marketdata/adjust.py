"""Split adjustment: raw prices stay stored, factors are applied on read.

A bar strictly before a split's ex-date (the exchange midnight of that session) is scaled: prices
by old/new, volume by new/old, trade counts not at all. Factors of several splits multiply, in the
manner of CRSP. From the ex-date's session on (04:00 in New York) bars are left alone.

A week or month may hold a split in its middle: adjust the days, then resample. Intraday bars never
cross an ex-date, so there the order does not matter. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from marketdata.errors import DataQualityError
from marketdata.spans import Span
from marketdata.types import CLOSE, HIGH, LOW, OPEN, VOLUME, VWAP, Bars, Floats, Int64s, Split

_PRICES = np.array((OPEN, HIGH, LOW, CLOSE, VWAP))


def split_factors(splits: Sequence[Split], timestamps: Int64s) -> tuple[Floats, Floats]:
    """Return what to multiply raw prices and raw volumes by.

    Parameters
    ----------
    splits : sequence of Split
        In any order; several on one date multiply.
    timestamps : ndarray of int64, shape (n,)
        Bar opens, microseconds UTC, in any order.

    Returns
    -------
    price_factor, volume_factor : ndarray of float64, shape (n,)
        Each is 1.0 where no split follows; their product is 1 up to rounding.

    Raises
    ------
    DataQualityError
        A split of zero, negative or non-finite shares; a retry does not help.
    """
    ordered = sorted(splits, key=lambda s: s.ex_date)
    for split in ordered:
        _check(split)
    ex_dates = np.array([s.ex_date for s in ordered], np.int64)
    # later[i] is the product over the splits from the i-th on; none are left at the end.
    new = _products_from([s.new for s in ordered])
    old = _products_from([s.old for s in ordered])
    following = np.searchsorted(ex_dates, timestamps, side="right")
    return (old / new)[following], (new / old)[following]


def adjust_bars(bars: Bars, splits: Sequence[Split]) -> Bars:
    """Return raw bars on the share basis after all of `splits`.

    Returns
    -------
    Bars
        With values of its own; `bars` itself where no split follows its first bar. NaN stays NaN.

    Raises
    ------
    DataQualityError
        As `split_factors`.
    """
    if not _concerned(bars, splits):
        return bars
    price, volume = split_factors(splits, bars.timestamp)
    return _scaled(bars, price, volume)


def unsplit_bars(bars: Bars, splits: Sequence[Split]) -> Bars:
    """Return raw bars from ones that the source has already adjusted: the inverse of `adjust_bars`.

    Parameters
    ----------
    bars : Bars
        On today's share basis, as Yahoo gives them.
    splits : sequence of Split
        Every split from the first bar to today: the source has applied all of them, also those
        after the last bar.

    Raises
    ------
    DataQualityError
        As `split_factors`.
    """
    if not _concerned(bars, splits):
        return bars
    price, volume = split_factors(splits, bars.timestamp)
    # The two factors are each other's inverse, and each is rounded once only.
    return _scaled(bars, volume, price)


def effective(splits: Sequence[Split], now_us: int) -> list[Split]:
    """Return the splits that have taken effect by `now_us`; announced ones change nothing yet."""
    return [s for s in splits if s.ex_date <= now_us]


def splits_within(splits: Sequence[Split], span: Span) -> list[Split]:
    """Return the splits with an ex-date in `span`, ascending."""
    found = [s for s in splits if span.start <= s.ex_date < span.end]
    return sorted(found, key=lambda s: s.ex_date)


def _concerned(bars: Bars, splits: Sequence[Split]) -> bool:
    return len(bars) > 0 and any(s.ex_date > bars.timestamp[0] for s in splits)


def _scaled(bars: Bars, price: Floats, volume: Floats) -> Bars:
    values = bars.values.copy()
    values[_PRICES] *= price
    values[VOLUME] *= volume
    return Bars(bars.timestamp, values)


def _products_from(shares: Sequence[float]) -> Floats:
    """Return for each position the product from there to the end, 1.0 past it."""
    products: Floats = np.cumprod(np.array([1.0, *reversed(shares)]), dtype=np.float64)
    return products[::-1]


def _check(split: Split) -> None:
    if not all(math.isfinite(shares) and shares > 0 for shares in (split.new, split.old)):
        raise DataQualityError(
            f"a split of {split.new:g} shares for {split.old:g} has no factor",
            cure="ask for adjustment='raw', or correct the table corporate_actions",
        )
