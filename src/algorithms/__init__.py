"""Strategies on marketdata's bars: written once, back-tested, swept and run live.

>>> from algorithms import Algorithm, backtest
>>> class Hold(Algorithm):
...     symbols = ["AAPL"]
...
...     def on_bar(self, ctx):
...         ctx.order_target_percent(1.0)
>>> backtest(Hold, start="2024-01-01").metrics  # doctest: +SKIP
"""

from __future__ import annotations

from algorithms.algorithm import Algorithm
from algorithms.backtest import backtest
from algorithms.context import Context, SymbolView
from algorithms.costs import (
    BasisPoints,
    Fees,
    NoFees,
    NoSlippage,
    Percent,
    PerShare,
    Slippage,
    VolumeShare,
)
from algorithms.errors import (
    AlgorithmError,
    JournalError,
    LookAheadError,
    OrderError,
    ParameterError,
    RealMoneyError,
    StrategyFileError,
    VenueError,
)
from algorithms.lines import Line, crossed_above, crossed_below
from algorithms.loading import load
from algorithms.market import MarketData
from algorithms.metrics import METRICS, metrics_of
from algorithms.orders import Fill, Order, OrderState, OrderType, TimeInForce
from algorithms.params import Param
from algorithms.result import BacktestResult
from algorithms.run_record import AppliedAction, BacktestRun
from algorithms.series import BarArrays
from algorithms.sweep import sweep
from algorithms.trades import Trade
from algorithms.walk_forward import walk_forward

__all__ = [
    "METRICS",
    "Algorithm",
    "AlgorithmError",
    "AppliedAction",
    "BacktestResult",
    "BacktestRun",
    "BarArrays",
    "BasisPoints",
    "Context",
    "Fees",
    "Fill",
    "JournalError",
    "Line",
    "LookAheadError",
    "MarketData",
    "NoFees",
    "NoSlippage",
    "Order",
    "OrderError",
    "OrderState",
    "OrderType",
    "Param",
    "ParameterError",
    "PerShare",
    "Percent",
    "RealMoneyError",
    "Slippage",
    "StrategyFileError",
    "SymbolView",
    "TimeInForce",
    "Trade",
    "VenueError",
    "VolumeShare",
    "backtest",
    "crossed_above",
    "crossed_below",
    "load",
    "metrics_of",
    "sweep",
    "walk_forward",
]
