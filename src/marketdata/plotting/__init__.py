"""Pictures with plotly: bars with indicators, trades and gaps, and what is stored of many symbols.

`bars` draws one frame, `coverage` the heat-map. plotly is an extra and loaded by the first picture.
"""

from __future__ import annotations

from marketdata.plotting.bars import MAX_SYMBOLS, plot, series_of
from marketdata.plotting.coverage import plot_coverage
from marketdata.plotting.time_axis import MAX_CANDLES

__all__ = ["MAX_CANDLES", "MAX_SYMBOLS", "plot", "plot_coverage", "series_of"]
