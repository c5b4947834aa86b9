"""Indicators: resolve names, compute them over bars, keep them up to date bar by bar.

>>> from marketdata.indicators import compute, history, resolve
>>> [indicator.columns for indicator in resolve(["rsi_14", "BBU_20_2.0"])]
[('rsi_14',), ('bbands_20_2_upper',)]

Calling the module, ``marketdata.indicators()``, lists them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from marketdata.indicators.computing import compute, history
from marketdata.indicators.definitions import UNBOUNDED, History, Indicator
from marketdata.indicators.live import Live
from marketdata.indicators.names import default_set, resolve
from marketdata.indicators.panel import Panel
from marketdata.indicators.table import listing

if TYPE_CHECKING:
    from pandas import DataFrame

DEFAULT = default_set()
"""The default set: RSI 14 and 9, SMA 10, 20, 50, 200, EMA 10, 20, 50, MACD, Bollinger."""


class _Callable(ModuleType):
    """This module: calling it lists the indicators, as `listing` does."""

    def __call__(self, *, pandas_ta: bool = True) -> DataFrame:
        return listing(pandas_ta=pandas_ta)


sys.modules[__name__].__class__ = _Callable

__all__ = [
    "DEFAULT",
    "UNBOUNDED",
    "History",
    "Indicator",
    "Live",
    "Panel",
    "compute",
    "history",
    "listing",
    "resolve",
]
