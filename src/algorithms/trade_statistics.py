"""What a list of trades says: how often they win, how much, and how long they last. Pure.

All figures are of closed trades. Fees are in `Trade.pnl`, dividends too. NaN where a figure is
not defined, never an infinity: a profit factor needs a loss, an average win a win.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from algorithms.performance import DAY, deviation, mean
from algorithms.run_record import Floats
from algorithms.trades import Trade


class TradeStatistics:
    """The closed ones among `trades` as arrays, and their figures.

    Attributes
    ----------
    count, open_count : int
    pnl : float64 array
        In money, one a closed trade.
    returns : float64 array
        ``pnl / |entry price * quantity|``.
    days : float64 array
        From entry to exit, calendar days with their fractions.
    """

    def __init__(self, trades: Sequence[Trade]) -> None:
        closed = [t for t in trades if t.closed]
        self.count = len(closed)
        self.open_count = len(trades) - len(closed)
        self.pnl: Floats = np.array([t.pnl for t in closed], np.float64)
        self.returns: Floats = np.array([t.return_on_entry for t in closed], np.float64)
        self.days: Floats = np.array(
            [(t.exit_time - t.entry_time) / DAY for t in closed if t.exit_time is not None],
            np.float64,
        )
        self._won = self.pnl[self.pnl > 0]
        self._lost = self.pnl[self.pnl < 0]

    def hit_rate(self) -> float:
        """Return the share of trades that gained money."""
        return len(self._won) / self.count if self.count else math.nan

    def profit_factor(self) -> float:
        """Return gross profit over gross loss; NaN without a loss.

        As ``STAT_PROFIT_FACTOR`` of the MQL5 reference, "Testing statistics".
        """
        return float(self._won.sum() / -self._lost.sum()) if len(self._lost) else math.nan

    def average_win(self) -> float:
        """Return the mean gain of the trades that gained, in money."""
        return mean(self._won)

    def average_loss(self) -> float:
        """Return the mean of the trades that lost, in money: below 0."""
        return mean(self._lost)

    def expectancy(self) -> float:
        """Return what a trade gained on average, in money.

        ``hit rate * average win + share of losers * average loss``: Tharp, *Trade Your Way to
        Financial Freedom* (2nd ed., 2007), ch. 7, in money rather than in multiples of risk.
        """
        return mean(self.pnl)

    def average_return(self) -> float:
        """Return the arithmetic mean of the trades' returns."""
        return mean(self.returns)

    def best(self) -> float:
        """Return the highest return of a trade."""
        return float(self.returns.max()) if self.count else math.nan

    def worst(self) -> float:
        """Return the lowest return of a trade."""
        return float(self.returns.min()) if self.count else math.nan

    def average_days(self) -> float:
        """Return how long a trade was held on average, in calendar days."""
        return mean(self.days)

    def sqn(self) -> float:
        """Return the System Quality Number, ``sqrt(n) * mean(pnl) / std(pnl)``.

        Tharp, *The Definitive Guide to Position Sizing* (2008), in money rather than in multiples
        of risk, and without his cap of n at 100. NaN for fewer than two trades.
        """
        spread, gain = deviation(self.pnl), mean(self.pnl)
        # Trades of one and the same result differ by their rounding.
        return math.sqrt(self.count) * gain / spread if spread > 1e-9 * abs(gain) else math.nan
