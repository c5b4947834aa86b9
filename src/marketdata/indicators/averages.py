"""Averages of the close, and what is built on them: SMA, EMA, WMA, DEMA, TEMA, MACD, Bollinger."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marketdata.indicators import talib_c
from marketdata.indicators.definitions import Argument, Definition, State, Value
from marketdata.indicators.inputs import Inputs, Now, Ops
from marketdata.indicators.kernels import (
    deviation,
    deviation_close,
    ema_memory,
    mean_close,
    padded,
    weighted_mean,
)
from marketdata.types import CLOSE, Floats

_TALIB = "TA-Lib 0.8, ta_{}.c (ta-lib.org)"
_SHARP = 1e-14
"""Precision of averages whose differences are the value: what remains is a share of the price."""


def _before_length(length: int, *_: object) -> int:
    return length - 1


def _length(length: int, *_: object) -> int:
    return length


def no_seed(_: Inputs, *__: object) -> State:
    """Return the empty state of what is computed from its tail alone."""
    return ()


# ------------------------------------------------------------------------------------- SMA, WMA


def _sma(inputs: Inputs, length: int) -> Sequence[Floats]:
    return (mean_close(inputs, length),)


def _sma_step(state: State, now: Now, _: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    return state, (np.add.reduce(now.tail(CLOSE, length), axis=-1) / length,)


def _wma(inputs: Inputs, length: int) -> Sequence[Floats]:
    return (padded(weighted_mean(inputs.close, length), len(inputs)),)


def _wma_step(state: State, now: Now, _: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    weights = np.arange(1.0, length + 1)
    return state, (now.tail(CLOSE, length) @ weights / (length * (length + 1) / 2),)


# ------------------------------------------------------------------------------ EMA, DEMA, TEMA


def _emas(inputs: Inputs, length: int, depth: int) -> list[Floats]:
    """Return the EMA, the EMA of the EMA, and so on; each shorter by its own look-back."""
    found, values = [], inputs.close
    for _ in range(depth):
        values = talib_c.EMA(values, length)[length - 1 :] if len(values) >= length else values[:0]
        found.append(values)
    return found


def _ema(inputs: Inputs, length: int) -> Sequence[Floats]:
    return (talib_c.EMA(inputs.close, length),)


def _ema_seed(inputs: Inputs, length: int) -> State:
    return (float(talib_c.EMA(inputs.close, length)[-1]),)


def _ema_step(state: State, now: Now, _: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    (average,) = state
    average = (now.close - average) * (2.0 / (length + 1)) + average
    return (average,), (average,)


def _dema(inputs: Inputs, length: int) -> Sequence[Floats]:
    return (talib_c.DEMA(inputs.close, length),)


def _tema(inputs: Inputs, length: int) -> Sequence[Floats]:
    return (talib_c.TEMA(inputs.close, length),)


def _dema_seed(inputs: Inputs, length: int) -> State:
    return tuple(float(values[-1]) for values in _emas(inputs, length, 2))


def _tema_seed(inputs: Inputs, length: int) -> State:
    return tuple(float(values[-1]) for values in _emas(inputs, length, 3))


def _dema_step(state: State, now: Now, _: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    weight = 2.0 / (length + 1)
    one, two = state
    one = (now.close - one) * weight + one
    two = (one - two) * weight + two
    return (one, two), (2 * one - two,)


def _tema_step(state: State, now: Now, _: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    weight = 2.0 / (length + 1)
    one, two, three = state
    one = (now.close - one) * weight + one
    two = (one - two) * weight + two
    three = (two - three) * weight + three
    return (one, two, three), (3 * one - 3 * two + three,)


# ----------------------------------------------------------------------------------------- MACD


def _macd(inputs: Inputs, fast: int, slow: int, signal: int) -> Sequence[Floats]:
    found: Sequence[Floats] = talib_c.MACD(inputs.close, fast, slow, signal)
    return found


def _macd_seed(inputs: Inputs, fast: int, slow: int, signal: int) -> State:
    line, average, _ = talib_c.MACD(inputs.close, fast, slow, signal)
    behind = float(talib_c.EMA(inputs.close, slow)[-1])
    return float(line[-1]) + behind, behind, float(average[-1])


def _macd_step(
    state: State, now: Now, _: Ops, fast: int, slow: int, signal: int
) -> tuple[State, tuple[Value, ...]]:
    ahead, behind, average = state
    close = now.close
    ahead = (close - ahead) * (2.0 / (fast + 1)) + ahead
    behind = (close - behind) * (2.0 / (slow + 1)) + behind
    line = ahead - behind
    average = (line - average) * (2.0 / (signal + 1)) + average
    return (ahead, behind, average), (line, average, line - average)


def _refuse_macd(fast: int, slow: int, _: int) -> str | None:
    return None if fast < slow else f"fast ({fast}) must be below slow ({slow})"


# ------------------------------------------------------------------------- Bollinger, deviation


def _bbands(inputs: Inputs, length: int, std: float) -> Sequence[Floats]:
    middle = mean_close(inputs, length)
    reach = deviation_close(inputs, length) * std
    return middle + reach, middle, middle - reach


def _bbands_step(
    state: State, now: Now, ops: Ops, length: int, std: float
) -> tuple[State, tuple[Value, ...]]:
    window = now.tail(CLOSE, length)
    middle = np.add.reduce(window, axis=-1) / length
    reach = deviation(window, ops) * std
    return state, (middle + reach, middle, middle - reach)


def _stdev(inputs: Inputs, length: int) -> Sequence[Floats]:
    return (deviation_close(inputs, length),)


def _stdev_step(state: State, now: Now, ops: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    return state, (deviation(now.tail(CLOSE, length), ops),)


AVERAGES: tuple[Definition, ...] = (
    Definition(
        name="sma",
        outputs=("",),
        arguments=(Argument("length", 20),),
        columns=(CLOSE,),
        kernel="talib",
        formula="sum of the last n closes / n",
        source=_TALIB.format("SMA"),
        batch=_sma,
        lookback=_before_length,
        step=_sma_step,
        seed=no_seed,
        tail=_length,
        spellings=("SMA",),
    ),
    Definition(
        name="ema",
        outputs=("",),
        arguments=(Argument("length", 20, 2),),
        columns=(CLOSE,),
        kernel="talib",
        formula="e + (close - e) * 2 / (n + 1), begun with the mean of the first n closes",
        source=_TALIB.format("EMA"),
        batch=_ema,
        lookback=_before_length,
        stabilisation=ema_memory,
        step=_ema_step,
        seed=_ema_seed,
        spellings=("EMA",),
    ),
    Definition(
        name="wma",
        outputs=("",),
        arguments=(Argument("length", 20),),
        columns=(CLOSE,),
        kernel="own",
        formula="sum of k * close over the last n, k = 1 (oldest) .. n, / (n (n + 1) / 2)",
        source=_TALIB.format("WMA"),
        batch=_wma,
        lookback=_before_length,
        step=_wma_step,
        seed=no_seed,
        tail=_length,
        spellings=("WMA",),
    ),
    Definition(
        name="dema",
        outputs=("",),
        arguments=(Argument("length", 20, 2),),
        columns=(CLOSE,),
        kernel="talib",
        formula="2 e1 - e2; e1 = EMA n of the close, e2 = EMA n of e1",
        source="P. Mulloy, Stocks & Commodities 12:1 (1994); " + _TALIB.format("DEMA"),
        batch=_dema,
        lookback=lambda length: 2 * (length - 1),
        stabilisation=lambda length: 2 * ema_memory(length),
        step=_dema_step,
        seed=_dema_seed,
        spellings=("DEMA",),
    ),
    Definition(
        name="tema",
        outputs=("",),
        arguments=(Argument("length", 20, 2),),
        columns=(CLOSE,),
        kernel="talib",
        formula="3 e1 - 3 e2 + e3, each the EMA n of the one before",
        source="P. Mulloy, Stocks & Commodities 12:2 (1994); " + _TALIB.format("TEMA"),
        batch=_tema,
        lookback=lambda length: 3 * (length - 1),
        stabilisation=lambda length: 3 * ema_memory(length),
        step=_tema_step,
        seed=_tema_seed,
        spellings=("TEMA",),
    ),
    Definition(
        name="macd",
        outputs=("", "signal", "hist"),
        arguments=(Argument("fast", 12, 2), Argument("slow", 26, 2), Argument("signal", 9, 2)),
        columns=(CLOSE,),
        kernel="talib",
        formula="EMA fast - EMA slow, both begun at the slow one's first bar; signal: its EMA; "
        "hist: line - signal",
        source="G. Appel; " + _TALIB.format("MACD"),
        batch=_macd,
        lookback=lambda fast, slow, signal: slow + signal - 2,
        stabilisation=lambda fast, slow, signal: (
            ema_memory(slow, _SHARP) + ema_memory(signal, _SHARP)
        ),
        step=_macd_step,
        seed=_macd_seed,
        refuse=_refuse_macd,
        spellings=("MACD", "MACDs", "MACDh"),
    ),
    Definition(
        name="bbands",
        outputs=("upper", "middle", "lower"),
        arguments=(Argument("length", 20), Argument("std", 2.0, 0)),
        columns=(CLOSE,),
        kernel="talib",
        formula="SMA n +- std * population standard deviation of the last n closes (ddof 0)",
        source="J. Bollinger, Bollinger on Bollinger Bands (2001); " + _TALIB.format("BBANDS"),
        batch=_bbands,
        lookback=_before_length,
        step=_bbands_step,
        seed=no_seed,
        tail=_length,
        spellings=("BBU", "BBM", "BBL"),
    ),
    Definition(
        name="stdev",
        outputs=("",),
        arguments=(Argument("length", 20),),
        columns=(CLOSE,),
        kernel="talib",
        formula="population standard deviation of the last n closes (ddof 0)",
        source=_TALIB.format("STDDEV"),
        batch=_stdev,
        lookback=_before_length,
        step=_stdev_step,
        seed=no_seed,
        tail=_length,
        spellings=("STDEV",),
    ),
)
