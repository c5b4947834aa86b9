"""What the default set of indicators costs, beside bare TA-Lib calls and pandas-ta's own functions.

Run: ``PYTHONPATH=src python -m benchmarks.bench_indicators``. pandas-ta is measured on a sample of
the symbols and scaled up.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import talib

from benchmarks.timing import Row, take_turns
from marketdata.indicators import DEFAULT, Live, Panel, compute, history
from marketdata.types import MINUTE, Bars, Floats, Int64s

BARS = 500
SYMBOLS = 10_000
SLICE = 100
SAMPLE = 10
"""Symbols that pandas-ta is given."""
START = 1_710_163_800_000_000
PER_SESSION = 390


def walks(symbols: int, bars: int) -> list[Bars]:
    """Return random walks, one a symbol, on the same minutes."""
    random = np.random.default_rng(0)
    timestamp = START + np.arange(bars, dtype=np.int64) * MINUTE
    made = []
    for _ in range(symbols):
        close = 100 * np.exp(np.cumsum(random.normal(0, 0.001, bars)))
        values = np.empty((7, bars))
        values[:4] = close
        values[1] *= 1.0005
        values[2] *= 0.9995
        values[4:] = 1000.0
        made.append(Bars(timestamp, values))
    return made


def bare_talib(close: Floats) -> None:
    """Call TA-Lib for each of the default set, and leave the answers."""
    talib.RSI(close, 14)
    talib.RSI(close, 9)
    talib.SMA(close, 10)
    talib.SMA(close, 20)
    talib.SMA(close, 50)
    talib.SMA(close, 200)
    talib.EMA(close, 10)
    talib.EMA(close, 20)
    talib.EMA(close, 50)
    talib.MACD(close, 12, 26, 9)
    talib.BBANDS(close, 20, 2, 2)


def pandas_ta_functions() -> Callable[[pd.Series], None]:
    """Return a call of pandas-ta's own functions for the default set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pandas_ta as ta

    def call(close: pd.Series) -> None:
        ta.rsi(close, 14, talib=False)
        ta.rsi(close, 9, talib=False)
        for length in (10, 20, 50, 200):
            ta.sma(close, length, talib=False)
        for length in (10, 20, 50):
            ta.ema(close, length, talib=False)
        ta.macd(close, 12, 26, 9, talib=False)
        ta.bbands(close, 20, 2.0, 2.0, ddof=0, talib=False)

    return call


def batch_rows(made: list[Bars], sessions: Int64s) -> list[Row]:
    """Measure the batch at three sizes; the bars hold at the greatest.

    All symbols are measured, a slice after the other with the contenders taking turns in each:
    seconds at a stretch are never undisturbed on a shared machine.
    """
    theirs = pandas_ta_functions()
    sample = [pd.Series(bars.values[3].copy()) for bars in made[:SAMPLE]]
    one = [take_turns({"": partial(theirs, close)}, rounds=3)[""] for close in sample]
    a_symbol = sum(one) / len(one)
    rows = []
    ours = talibs = 0.0
    for start in range(0, len(made), SLICE):
        part = made[start : start + SLICE]
        took = take_turns(
            {"ours": partial(default_set, part, sessions), "talib": partial(all_talib, part)},
            rounds=5,
        )
        ours, talibs = ours + took["ours"], talibs + took["talib"]
        size = start + len(part)
        if size in (SYMBOLS // 100, SYMBOLS // 10, SYMBOLS):
            final = size == SYMBOLS
            what, shown = "default set", f"{size}x{BARS}"
            most, least = (2.0, 60.0) if final else (None, None)
            rows += [
                Row(what, shown, ours, "bare TA-Lib calls", talibs, most, False),
                Row(what, shown, ours, "pandas-ta (scaled)", a_symbol * size, least, True),
            ]
    return rows


def default_set(part: list[Bars], sessions: Int64s) -> None:
    for bars in part:
        compute(DEFAULT, bars, sessions)


def all_talib(part: list[Bars]) -> None:
    for bars in part:
        bare_talib(bars.values[3])


def live_rows(made: list[Bars], sessions: Int64s) -> list[Row]:
    """Measure one more bar, for one series and for all, against TA-Lib over the window again."""
    bars = made[0]
    live = Live(DEFAULT)
    live.load(bars, sessions)
    row = bars.values[:, -1].tolist()
    stamp = int(bars.timestamp[-1])
    close = bars.values[3]
    took = take_turns(
        {
            "append": lambda: live.append(stamp, row, 1),
            "revise": lambda: live.revise(stamp, row, 1),
            "talib": lambda: bare_talib(close),
        },
        repeat=500,
    )
    again = "TA-Lib over 500 bars again"
    rows = [
        Row("append a bar, default set", "1", took["append"], again, took["talib"], None, True),
        Row("revise a bar, default set", "1", took["revise"], again, took["talib"], None, True),
    ]
    for size in (SYMBOLS // 100, SYMBOLS // 10, SYMBOLS):
        rows += panel_rows(made[0], sessions, size)
    return rows


def panel_rows(bars: Bars, sessions: Int64s, size: int) -> list[Row]:
    panel = Panel(DEFAULT, size)
    for series in range(size):
        panel.load(series, bars, sessions)
    index = np.arange(size)
    stamps = np.full(size, bars.timestamp[-1])
    last = np.repeat(bars.values[:, -1:], size, axis=1)
    labels = np.full(size, sessions[-1])
    part = [bars] * (size // 10)
    took = take_turns(
        {
            "append": lambda: panel.append(index, stamps, last, labels),
            "revise": lambda: panel.revise(index, stamps, last, labels),
            "talib, a tenth": lambda: all_talib(part),
        },
        rounds=7,
    )
    again_ms = took["talib, a tenth"] * 10
    held = 5.0 if size == SYMBOLS else None
    again = "TA-Lib over 500 bars again"
    shown = f"{size} series"
    return [
        Row("append a bar to each", shown, took["append"], again, again_ms, held, True),
        Row("revise the bar of each", shown, took["revise"], again, again_ms, held, True),
    ]


def rows() -> list[Row]:
    """Measure everything; needs no server."""
    made = walks(SYMBOLS, BARS)
    sessions = np.arange(BARS, dtype=np.int64) // PER_SESSION
    return batch_rows(made, sessions) + live_rows(made, sessions)


if __name__ == "__main__":
    print(f"the default set needs {history(DEFAULT).bars} bars of history")
    for measured in rows():
        print(measured)
