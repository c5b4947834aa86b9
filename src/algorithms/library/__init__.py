"""Strategies to read, run and start from: each one file, short enough to read in a minute.

They show how the engine is used; none of them is advice. By name on the command line:
``marketdata algo backtest sma_cross``.
"""

from __future__ import annotations

from algorithms.library.bollinger_breakout import BollingerBreakout
from algorithms.library.macd_trend import MacdTrend
from algorithms.library.monthly_momentum import MonthlyMomentum
from algorithms.library.pair import Pair
from algorithms.library.rsi_reversion import RsiReversion
from algorithms.library.sma_cross import SmaCross

__all__ = [
    "BollingerBreakout",
    "MacdTrend",
    "MonthlyMomentum",
    "Pair",
    "RsiReversion",
    "SmaCross",
]
