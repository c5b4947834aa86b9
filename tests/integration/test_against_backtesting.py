"""On the same bars and strategy, fills, trades and equity are backtesting.py's, to the cent.

Real daily and minute prices; orders at the market, limits, stops, brackets; long and short; with
and without commission. Where both differ on purpose is in `test_differences_to_backtesting`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest

from tests.backtesting_twins import TWINS, assert_equal, ours, peer
from tests.shared_data import SHARED, needs_shared_data

pytestmark = needs_shared_data

DAYS = SHARED / "daily" / "us88_2012-2017.csv.gz"
MINUTES = SHARED / "minute" / "us24_2019-02.csv.gz"
PRICES = ["open", "high", "low", "close", "volume"]
DAILY = ["AAPL", "AMZN", "BAC", "GE", "XOM", "GOOG"]
MINUTELY = ["AAPL", "AMZN", "SPY", "UGA"]


@lru_cache
def table(path: str) -> dict[str, pd.DataFrame]:
    frame = pd.read_csv(path, usecols=["symbol", "timestamp", *PRICES])
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True)
    frame = frame.dropna()
    return {
        str(symbol): part.set_index("timestamp")[PRICES].astype(np.float64)
        for symbol, part in frame.groupby("symbol")
    }


def compare(frame: pd.DataFrame, name: str, timeframe: str, commission: float) -> int:
    algorithm, strategy = TWINS[name]
    params = {"share": 0.0008} if timeframe == "1min" and hasattr(strategy, "share") else {}
    found = ours(
        frame, algorithm(symbols=["X"], timeframe=timeframe, **params), commission=commission
    )
    wanted = peer(frame, strategy, commission=commission, params=params)
    return assert_equal(found, wanted, frame)


@pytest.mark.parametrize("commission", [0.0, 0.0007], ids=["free", "commission"])
@pytest.mark.parametrize("name", list(TWINS))
def test_daily_bars(name: str, commission: float) -> None:
    frames = table(str(DAYS))
    trades = [compare(frames[symbol], name, "1day", commission) for symbol in DAILY]
    assert min(trades) >= 5
    assert sum(trades) >= 50


@pytest.mark.parametrize("name", list(TWINS))
def test_minute_bars(name: str) -> None:
    frames = table(str(MINUTES))
    trades = [compare(frames[symbol], name, "1min", 0.0) for symbol in MINUTELY]
    assert sum(trades) >= 50
