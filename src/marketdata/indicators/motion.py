"""Movement: true range, ATR, RSI and ADX, all averaged in Wilder's way.

RSI and ADX divide one fading average by another, 0 / 0 for a price that stands still: there the
quotient would depend for ever on what happened before. Where nothing has moved for so long that
`STANDSTILL` of it remains, the averages are 0 and so are the values: what TA-Lib gives for a
window in which nothing moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from marketdata.indicators import talib_c
from marketdata.indicators.definitions import Argument, Definition, State, Step, Value
from marketdata.indicators.inputs import Cursor, FloatOps, Inputs, Now, Ops
from marketdata.indicators.kernels import (
    STANDSTILL,
    smoothed_end,
    still_runs,
    true_range,
    wilder_memory,
)
from marketdata.types import CLOSE, HIGH, LOW, Bools, Floats, Int64s

_WILDER = "J. W. Wilder, New Concepts in Technical Trading Systems (1978); TA-Lib 0.8, ta_{}.c"


def standstill(length: int) -> int:
    """Return after how many motionless bars a series counts as standing still."""
    return wilder_memory(length, STANDSTILL)


def _halts(inputs: Inputs, length: int, moving: Callable[[Inputs], Bools]) -> Int64s | None:
    """Return the bars at which the series stands still, or None where it never does."""
    limit = standstill(length)
    if len(inputs) <= limit:
        return None
    found: tuple[Bools, int] | None = inputs.shared.get(moving)
    if found is None:
        moved = moving(inputs)
        found = inputs.shared[moving] = moved, len(moved) - int(np.count_nonzero(moved))
    moved, still = found
    if still < limit:
        return None
    halted = np.flatnonzero(still_runs(moved) >= limit) + 1
    return halted if len(halted) else None


def _replay(
    step: Step, state: State, inputs: Inputs, start: int, outputs: Sequence[Floats], length: int
) -> State:
    """Step through the bars from `start` on, writing their values over `outputs`."""
    ops = FloatOps()
    for position in range(start, len(inputs)):
        state, values = step(state, Cursor(inputs, position), ops, length)
        for row, value in zip(outputs, values, strict=False):
            row[position] = value
    return state


# ------------------------------------------------------------------------------ true range, ATR


def _range_step(state: State, now: Now, ops: Ops) -> tuple[State, tuple[Value, ...]]:
    return state, (_range_now(now, ops),)


def _range_now(now: Now, ops: Ops) -> Value:
    return ops.maximum(now.high, now.close_before) - ops.minimum(now.low, now.close_before)


def _true_range(inputs: Inputs) -> Sequence[Floats]:
    out = np.full(len(inputs), np.nan)
    out[1:] = true_range(inputs)
    return (out,)


def _atr(inputs: Inputs, length: int) -> Sequence[Floats]:
    return (talib_c.ATR(inputs.high, inputs.low, inputs.close, length),)


def _natr(inputs: Inputs, length: int) -> Sequence[Floats]:
    return (talib_c.NATR(inputs.high, inputs.low, inputs.close, length),)


def _atr_seed(inputs: Inputs, length: int) -> State:
    return (float(talib_c.ATR(inputs.high, inputs.low, inputs.close, length)[-1]),)


def _atr_step(state: State, now: Now, ops: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    (average,) = state
    average = (average * (length - 1) + _range_now(now, ops)) / length
    return (average,), (average,)


def _natr_step(state: State, now: Now, ops: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    state, (average,) = _atr_step(state, now, ops, length)
    return state, (ops.ratio(average, now.close) * 100.0,)


# ------------------------------------------------------------------------------------------ RSI


def _closes_moving(inputs: Inputs) -> Bools:
    return np.asarray(inputs.close[1:] != inputs.close[:-1])


def _rsi(inputs: Inputs, length: int) -> Sequence[Floats]:
    out = talib_c.RSI(inputs.close, length)
    halts = _halts(inputs, length, _closes_moving)
    if halts is not None:
        start = int(halts[0])
        out[start] = 0.0
        _replay(_rsi_step, (0.0, 0.0, float(standstill(length))), inputs, start + 1, (out,), length)
    return (out,)


def _rsi_seed(inputs: Inputs, length: int) -> State:
    halts = _halts(inputs, length, _closes_moving)
    if halts is not None:
        state = (0.0, 0.0, float(standstill(length)))
        return _replay(_rsi_step, state, inputs, int(halts[-1]) + 1, (), length)
    change = np.diff(inputs.close)
    decay = (length - 1) / length
    up = smoothed_end(np.maximum(change, 0.0), length, decay) / length
    down = smoothed_end(np.maximum(-change, 0.0), length, decay) / length
    return up, down, _still_for(change != 0)


def _still_for(moving: Bools) -> float:
    """Return how many bars ago the last movement was."""
    moved = np.flatnonzero(moving)
    return float(len(moving) - 1 - moved[-1]) if len(moved) else float(len(moving))


def _rsi_step(state: State, now: Now, ops: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    up, down, still = state
    change = now.close - now.close_before
    up = (up * (length - 1) + ops.maximum(change, 0.0)) / length
    down = (down * (length - 1) + ops.maximum(-change, 0.0)) / length
    still = ops.where(change == 0, still + 1.0, 0.0)
    halted = still >= standstill(length)
    up, down = ops.where(halted, 0.0, up), ops.where(halted, 0.0, down)
    return (up, down, still), (100.0 * ops.ratio(up, up + down),)


# ------------------------------------------------------------------------------------------ ADX


def _ranges_moving(inputs: Inputs) -> Bools:
    """Return for each bar after the first whether it has directional movement."""
    up, down = _directional(inputs)
    return np.logical_or(up > 0, down > 0)


def _directional(inputs: Inputs) -> tuple[Floats, Floats]:
    rise, fall = np.diff(inputs.high), -np.diff(inputs.low)
    up = np.where((rise > 0) & (rise > fall), rise, 0.0)
    down = np.where((fall > 0) & (fall > rise), fall, 0.0)
    return up, down


def _adx(inputs: Inputs, length: int) -> Sequence[Floats]:
    prices = inputs.high, inputs.low, inputs.close
    out = (
        talib_c.ADX(*prices, length),
        talib_c.PLUS_DI(*prices, length),
        talib_c.MINUS_DI(*prices, length),
    )
    halts = _halts(inputs, length, _ranges_moving)
    if halts is not None:
        start = int(halts[0])
        for row in out:
            row[start] = 0.0
        _replay(_adx_step, _halted(inputs, start, length), inputs, start + 1, out, length)
    return out


def _halted(inputs: Inputs, position: int, length: int) -> State:
    ranges = smoothed_end(true_range(inputs.first(position + 1)), length - 1, 1 - 1 / length)
    return 0.0, 0.0, ranges, 0.0, float(standstill(length))


def _adx_seed(inputs: Inputs, length: int) -> State:
    halts = _halts(inputs, length, _ranges_moving)
    if halts is not None:
        start = int(halts[-1])
        state = _halted(inputs, start, length)
        return _replay(_adx_step, state, inputs, start + 1, (), length)
    decay = 1 - 1 / length
    up, down = _directional(inputs)
    return (
        smoothed_end(up, length - 1, decay),
        smoothed_end(down, length - 1, decay),
        smoothed_end(true_range(inputs), length - 1, decay),
        float(talib_c.ADX(inputs.high, inputs.low, inputs.close, length)[-1]),
        _still_for((up > 0) | (down > 0)),
    )


def _adx_step(state: State, now: Now, ops: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    up, down, ranges, average, still = state
    rise, fall = now.high - now.high_before, now.low_before - now.low
    moved_up = ops.where((rise > 0) & (rise > fall), rise, 0.0)
    moved_down = ops.where((fall > 0) & (fall > rise), fall, 0.0)
    still = ops.where((moved_up == 0) & (moved_down == 0), still + 1.0, 0.0)
    halted = still >= standstill(length)
    up = ops.where(halted, 0.0, up - up / length + moved_up)
    down = ops.where(halted, 0.0, down - down / length + moved_down)
    ranges = ranges - ranges / length + _range_now(now, ops)
    plus, minus = 100.0 * ops.ratio(up, ranges), 100.0 * ops.ratio(down, ranges)
    both = plus + minus
    spread = 100.0 * ops.ratio(abs(plus - minus), both)
    renewed = ops.where(both == 0, average, (average * (length - 1) + spread) / length)
    average = ops.where(halted, 0.0, renewed)
    return (up, down, ranges, average, still), (average, plus, minus)


MOTION: tuple[Definition, ...] = (
    Definition(
        name="rsi",
        outputs=("",),
        arguments=(Argument("length", 14, 2),),
        columns=(CLOSE,),
        kernel="talib",
        formula="100 u / (u + d); u, d: Wilder averages of rises and falls of the close, begun "
        "with the mean of the first n; 0 where the close stands still",
        source=_WILDER.format("RSI"),
        batch=_rsi,
        lookback=lambda length: length,
        stabilisation=lambda length: standstill(length) + wilder_memory(length),
        step=_rsi_step,
        seed=_rsi_seed,
        spellings=("RSI",),
    ),
    Definition(
        name="true_range",
        outputs=("",),
        arguments=(),
        columns=(HIGH, LOW, CLOSE),
        kernel="own",
        formula="max(high, close before) - min(low, close before)",
        source=_WILDER.format("TRANGE"),
        batch=_true_range,
        lookback=lambda: 1,
        step=_range_step,
        seed=lambda inputs: (),
        spellings=("TRUERANGE",),
    ),
    Definition(
        name="atr",
        outputs=("",),
        arguments=(Argument("length", 14, 2),),
        columns=(HIGH, LOW, CLOSE),
        kernel="talib",
        formula="Wilder average of the true range, begun with the mean of the first n",
        source=_WILDER.format("ATR"),
        batch=_atr,
        lookback=lambda length: length,
        stabilisation=wilder_memory,
        step=_atr_step,
        seed=_atr_seed,
        spellings=("ATRr",),
    ),
    Definition(
        name="natr",
        outputs=("",),
        arguments=(Argument("length", 14, 2),),
        columns=(HIGH, LOW, CLOSE),
        kernel="talib",
        formula="100 ATR n / close",
        source="J. Forman, Stocks & Commodities 24:6 (2006); TA-Lib 0.8, ta_NATR.c",
        batch=_natr,
        lookback=lambda length: length,
        stabilisation=wilder_memory,
        step=_natr_step,
        seed=_atr_seed,
        spellings=("NATR",),
    ),
    Definition(
        name="adx",
        outputs=("", "dmp", "dmn"),
        arguments=(Argument("length", 14, 2),),
        columns=(HIGH, LOW, CLOSE),
        kernel="talib",
        formula="Wilder average of 100 |p - m| / (p + m); dmp = p, dmn = m: 100 times the Wilder "
        "sums of directional movement / that of the true range; 0 where neither moves",
        source=_WILDER.format("ADX"),
        batch=_adx,
        lookback=lambda length: 2 * length - 1,
        stabilisation=lambda length: standstill(length) + wilder_memory(length, STANDSTILL),
        step=_adx_step,
        seed=_adx_seed,
        spellings=("ADX", "DMP", "DMN"),
    ),
)
