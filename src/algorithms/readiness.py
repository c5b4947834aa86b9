"""From when on a strategy is called: once what it watches is warm. Pure, and told by the past alone.

A series is warm from its first bar on at which all its indicators have values, `warm_up` bars
later for the strategy's own timeframe. The run waits for every series that trades as it begins,
but not for ever for one that has stopped: one without a bar for ten days (or three of its bars) is
waited for no longer. What comes after a moment never changes whether it is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

import marketdata as md
from algorithms.lines import NEVER, Floats, Int64s

_DAY: Final = 86_400_000_000
_STOPPED: Final = 10 * _DAY
_BAR: Final = {md.Timeframe.WEEK_1: 7 * _DAY, md.Timeframe.MONTH_1: 31 * _DAY}


def warm_from(closes: Int64s, indicators: Iterable[Floats], timeframe: str, warm_up: int) -> int:
    """Return the moment from which on a series is not waited for.

    Parameters
    ----------
    closes : ndarray of int64, shape (n,)
        When its bars close.
    indicators : iterable of ndarray of float64, shape (n,) or longer
    timeframe : str
    warm_up : int
        Bars to have besides.
    """
    size = len(closes)
    warm = min(warm_up, size)
    for values in indicators:
        valid = ~np.isnan(values[:size])
        first = int(valid.argmax()) if valid.any() else size
        warm = min(max(warm, first + warm_up), size)
    patience = max(_STOPPED, 3 * _BAR.get(md.Timeframe.parse(timeframe), 0))
    stops = np.flatnonzero(np.diff(closes[: warm + 1]) > patience)
    if len(stops):
        return int(closes[stops[0]]) + patience
    if warm < size:
        return int(closes[warm])
    return int(closes[-1]) + patience if size else -NEVER
