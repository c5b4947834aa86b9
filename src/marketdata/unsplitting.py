"""Prices as traded from a user's prices that were divided for later splits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from marketdata.adjust import split_factors, unsplit_bars
from marketdata.clock import from_micros
from marketdata.types import CLOSE, DAY, OPEN, VOLUME, Bars, Split

_NOTABLE: Final = 1.5
"""Splits below 3:2 cannot be told from an ordinary move."""
_ADJACENT: Final = 7 * DAY
"""Bars further apart may have moved by themselves."""


def doubt_divided(bars: Bars, splits: Sequence[Split]) -> str | None:
    """Return why these prices may not be divided for one of the splits, or None."""
    for split in splits:
        if 1 / _NOTABLE < split.ratio < _NOTABLE:
            continue
        after = int(np.searchsorted(bars.timestamp, split.ex_date))
        if not 0 < after < len(bars):
            continue
        if bars.timestamp[after] - bars.timestamp[after - 1] > _ADJACENT:
            continue
        step = bars.values[CLOSE, after - 1] / bars.values[OPEN, after]
        if abs(np.log(step) / np.log(split.ratio) - 1) < 0.2:
            day = from_micros(split.ex_date + DAY // 2).date()
            return (
                f"its prices jump at its {split.new:g}:{split.old:g} split of {day} as if they were "
                "as traded: state --basis raw, or correct the split"
            )
    return None


def to_traded(bars: Bars, splits: Sequence[Split]) -> Bars:
    """Return prices as traded: to four decimals (six below one dollar), which is finer than any US
    quote, and whole shares. Bars that no split follows stay bit for bit as they are."""
    raw = unsplit_bars(bars, splits)
    if raw is bars:
        return bars
    moved = split_factors(splits, bars.timestamp)[0] != 1.0
    prices = raw.values[OPEN : CLOSE + 1]
    rounded = np.where(prices >= 1.0, np.round(prices, 4), np.round(prices, 6))
    prices[:, moved] = rounded[:, moved]
    raw.values[VOLUME, moved] = np.rint(raw.values[VOLUME, moved])
    return raw


def count_moved(bars: Bars, raw: Bars) -> int:
    if raw is bars:
        return 0
    return int(np.count_nonzero(bars.values[CLOSE] != raw.values[CLOSE]))
