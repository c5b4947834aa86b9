"""Bars for the tests of indicators: generated walks, real prices, TA-Lib asked directly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import talib

from marketdata.types import COLUMNS, Bars, Floats, Int64s
from tests.shared_data import SHARED

OPENING = pd.Timestamp("2024-01-02 09:30", tz="America/New_York")


def minutes(count: int, *, per_session: int = 390) -> tuple[Int64s, Int64s]:
    """Return the opens of `count` one-minute bars on weekdays, and the session of each."""
    sessions, minute = np.divmod(np.arange(count), per_session)
    days = pd.date_range(OPENING, periods=int(sessions[-1]) + 1 if count else 0, freq="B")
    opens = days.tz_convert("UTC").as_unit("us").asi8
    return opens[sessions] + minute * 60_000_000, sessions.astype(np.int64)


def days(count: int) -> tuple[Int64s, Int64s]:
    """Return the labels of `count` daily bars, New York midnights of weekdays."""
    dates = pd.date_range("2015-01-02", periods=count, freq="B", tz="America/New_York")
    return dates.tz_convert("UTC").as_unit("us").asi8, np.arange(count, dtype=np.int64)


def bars_of(timestamp: Int64s, close: Floats, *, seed: int = 0, tick: float = 0.01) -> Bars:
    """Return bars around the closes: each opens at the close before, in whole ticks."""
    random = np.random.default_rng(seed)
    opened = np.concatenate([close[:1], close[:-1]])
    reach = np.round(random.integers(0, 30, (2, len(close))) * tick, 10)
    moved = np.concatenate([[True], np.diff(close) != 0])
    high = np.maximum(opened, close) + np.where(moved, reach[0], 0.0)
    low = np.minimum(opened, close)
    low = np.maximum(low - np.where(moved, reach[1], 0.0), low / 2)
    volume = random.integers(0, 10_000, len(close)) * 0.5
    missing = np.full(len(close), np.nan)
    values = np.array([opened, high, low, close, volume, missing, missing])
    return Bars(timestamp.astype(np.int64), values)


def walk(count: int, *, seed: int = 0, level: float = 100.0, noise: float = 0.004) -> Floats:
    """Return a random walk in cents."""
    random = np.random.default_rng(seed)
    return np.round(level * np.exp(np.cumsum(random.normal(0, noise, count))), 2) + 0.01


def cut(bars: Bars, start: int, end: int) -> Bars:
    return Bars(bars.timestamp[start:end], bars.values[:, start:end])


def read(path: str) -> Iterator[tuple[str, Bars, Int64s]]:
    """Yield symbol, bars and sessions of a file of real prices."""
    frame = pd.read_csv(SHARED / path, parse_dates=["timestamp"])
    for symbol, part in frame.dropna(subset=["open", "close"]).groupby("symbol"):
        timestamp = part.timestamp.dt.as_unit("us").astype("int64").to_numpy()
        values = np.full((len(COLUMNS), len(part)), np.nan)
        values[:5] = part[["open", "high", "low", "close", "volume"]].to_numpy(np.float64).T
        yield str(symbol), Bars(timestamp, values), timestamp // 86_400_000_000


def talib_answers(bars: Bars) -> dict[str, Floats]:
    """Return TA-Lib's values for everything that states TA-Lib's formula, by our column."""
    _, high, low, close, volume = (np.ascontiguousarray(row) for row in bars.values[:5])
    found = {f"rsi_{n}": talib.RSI(close, n) for n in (9, 14)}
    found |= {f"sma_{n}": talib.SMA(close, n) for n in (10, 20, 50, 200)}
    found |= {f"ema_{n}": talib.EMA(close, n) for n in (10, 20, 50)}
    macd, upper = "macd_12_26_9", "bbands_20_2"
    outputs = zip(
        (macd, f"{macd}_signal", f"{macd}_hist"), talib.MACD(close, 12, 26, 9), strict=True
    )
    found |= dict(outputs)
    bands = (f"{upper}_upper", f"{upper}_middle", f"{upper}_lower")
    found |= dict(zip(bands, talib.BBANDS(close, 20, 2, 2), strict=True))
    stoch = ("stoch_14_3_3_stochk", "stoch_14_3_3_stochd")
    found |= dict(zip(stoch, talib.STOCH(high, low, close, 14, 3, slowd_period=3), strict=True))
    return found | {
        "atr_14": talib.ATR(high, low, close, 14),
        "natr_14": talib.NATR(high, low, close, 14),
        "true_range": talib.TRANGE(high, low, close),
        "adx_14": talib.ADX(high, low, close, 14),
        "adx_14_dmp": talib.PLUS_DI(high, low, close, 14),
        "adx_14_dmn": talib.MINUS_DI(high, low, close, 14),
        "cci_20": talib.CCI(high, low, close, 20),
        "mfi_14": talib.MFI(high, low, close, volume, 14),
        "willr_14": talib.WILLR(high, low, close, 14),
        "roc_10": talib.ROC(close, 10),
        "mom_10": talib.MOM(close, 10),
        "wma_20": talib.WMA(close, 20),
        "dema_20": talib.DEMA(close, 20),
        "tema_20": talib.TEMA(close, 20),
        "stdev_20": talib.STDDEV(close, 20),
    }


SCALES = {"rsi": 100.0, "stoch": 100.0, "adx": 100.0, "cci": 100.0, "mfi": 100.0, "willr": 100.0}
"""The range of oscillators that touch 0: what 1e-9 relative is relative to there."""


def scale_of(column: str, bars: Bars) -> float:
    """Return what differences of a column are measured against where its value is near 0.

    Differences of prices (MACD, momentum) are as precise as the prices they are the difference
    of; sums of volume as the volumes.
    """
    family = column.partition("_")[0]
    if family in SCALES:
        return SCALES[family]
    if family in {"obv", "ad"}:
        return float(np.max(bars.values[4], initial=1.0))
    if family in {"roc", "natr", "relative"}:
        return 1.0
    return float(np.median(bars.values[3])) if len(bars) else 1.0


def assert_close(got: Floats, wanted: Floats, scale: float, what: str, rtol: float = 1e-9) -> None:
    """Compare within `rtol` of the value, and where that is near 0 within 1e-12 of `scale`."""
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=1e-12 * scale, err_msg=what)
