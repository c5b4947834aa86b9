"""Batch values of indicators over the bars of one series, or of many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marketdata.indicators.definitions import History, Indicator
from marketdata.indicators.inputs import Inputs
from marketdata.types import Bars, Floats, Int64s, Timeframe

NO_SESSIONS: frozenset[int] = frozenset()


def compute(
    indicators: Sequence[Indicator],
    bars: Bars,
    sessions: Int64s,
    *,
    early: frozenset[int] = NO_SESSIONS,
) -> Floats:
    """Return the indicators' values at every bar.

    Parameters
    ----------
    indicators : sequence of Indicator
        From `resolve`.
    bars : Bars
        Ascending; prices and volumes hold no NaN.
    sessions : ndarray of int64, shape (n,)
        The session each bar falls into, as `TradingCalendar.session_index` counts them.
    early : frozenset of int, optional
        Those sessions that close early; only relative volume asks.

    Returns
    -------
    ndarray of float64, shape (columns, n)
        One row for each of the indicators' columns, in their order; NaN before an indicator's
        look-back. A value is that of any window, 1e-9 relative, where `history` precedes it.
    """
    size = len(bars)
    out = np.empty((sum([len(indicator.selected) for indicator in indicators]), size))
    if not size:
        return out
    inputs = Inputs(bars, sessions, early)
    row = 0
    for indicator in indicators:
        outputs = indicator.batch(inputs)
        for index in indicator.selected:
            out[row] = outputs[index]
            row += 1
    return out


def history(indicators: Sequence[Indicator], timeframe: Timeframe | None = None) -> History:
    """Return what must precede the first bar asked for.

    Parameters
    ----------
    indicators : sequence of Indicator
    timeframe : Timeframe, optional
        Of the bars. Counts that begin with the session for intraday bars and with the series for
        others need sessions or all bars accordingly; without it, both.

    Returns
    -------
    History
        ``bars``, `UNBOUNDED` for all the series has, and ``sessions``: both must precede.
    """
    bars = sessions = 0
    for indicator in indicators:
        scope = indicator.definition.scope
        if scope == "window" or timeframe is None or not timeframe.intraday:
            bars = max(bars, indicator.lookback + indicator.stabilisation)
        if scope != "window" and (timeframe is None or timeframe.intraday):
            sessions = max(sessions, indicator.sessions)
    return History(bars, sessions)
