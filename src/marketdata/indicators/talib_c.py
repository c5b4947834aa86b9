"""TA-Lib's C kernels, called directly: float64 arrays in, new float64 arrays out.

``talib``'s public functions look through their arguments for pandas and polars series first,
which takes as long as a third of the kernel over 500 bars.
"""

from __future__ import annotations

from inspect import unwrap
from typing import Any, Final

import talib

ADX: Final[Any] = unwrap(talib.ADX)
ATR: Final[Any] = unwrap(talib.ATR)
DEMA: Final[Any] = unwrap(talib.DEMA)
EMA: Final[Any] = unwrap(talib.EMA)
MACD: Final[Any] = unwrap(talib.MACD)
MINUS_DI: Final[Any] = unwrap(talib.MINUS_DI)
MOM: Final[Any] = unwrap(talib.MOM)
NATR: Final[Any] = unwrap(talib.NATR)
PLUS_DI: Final[Any] = unwrap(talib.PLUS_DI)
ROC: Final[Any] = unwrap(talib.ROC)
RSI: Final[Any] = unwrap(talib.RSI)
SMA: Final[Any] = unwrap(talib.SMA)
STDDEV: Final[Any] = unwrap(talib.STDDEV)
STOCHF: Final[Any] = unwrap(talib.STOCHF)
TEMA: Final[Any] = unwrap(talib.TEMA)
WILLR: Final[Any] = unwrap(talib.WILLR)
