"""Oscillators of a window: stochastic, Williams %R, CCI, rate of change, momentum, money flow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marketdata.indicators import talib_c
from marketdata.indicators.averages import no_seed
from marketdata.indicators.definitions import Argument, Definition, State, Value
from marketdata.indicators.inputs import ArrayOps, Inputs, Now, Ops
from marketdata.indicators.kernels import exact_sum, padded, windows
from marketdata.types import CLOSE, HIGH, LOW, VOLUME, Floats

_TALIB = "TA-Lib 0.8, ta_{}.c (ta-lib.org)"
_ROWS = 8192


def _before_length(length: int) -> int:
    return length - 1


def _length(length: int) -> int:
    return length


def _one_more(length: int) -> int:
    return length + 1


# ----------------------------------------------------------------------- stochastic, Williams %R


def _fast(inputs: Inputs, length: int) -> Floats:
    """Return where in the range of the last bars each close lies, in percent; no NaN before."""
    if len(inputs) < length:
        return np.empty(0)
    fast: Floats = talib_c.STOCHF(inputs.high, inputs.low, inputs.close, length, 1)[0]
    return np.ascontiguousarray(fast[length - 1 :])


def _stoch(inputs: Inputs, k: int, d: int, smooth_k: int) -> Sequence[Floats]:
    slow = exact_sum(_fast(inputs, k), smooth_k) / smooth_k
    signal = exact_sum(slow, d) / d
    size = len(inputs)
    return padded(slow[d - 1 :], size), padded(signal, size)


def _stoch_lookback(k: int, d: int, smooth_k: int) -> int:
    return k + d + smooth_k - 3


def _stoch_seed(inputs: Inputs, k: int, d: int, smooth_k: int) -> State:
    fast = _fast(inputs, k)
    slow = exact_sum(fast, smooth_k) / smooth_k
    kept = fast[len(fast) - smooth_k + 1 :].tolist() + slow[len(slow) - d + 1 :].tolist()
    return tuple(kept)


def _stoch_step(
    state: State, now: Now, ops: Ops, k: int, d: int, smooth_k: int
) -> tuple[State, tuple[Value, ...]]:
    highest = np.maximum.reduce(now.tail(HIGH, k), axis=-1)
    lowest = np.minimum.reduce(now.tail(LOW, k), axis=-1)
    fast = (*state[: smooth_k - 1], ops.ratio(now.close - lowest, (highest - lowest) / 100.0))
    slow = (*state[smooth_k - 1 :], sum(fast) / smooth_k)
    return (*fast[1:], *slow[1:]), (slow[-1], sum(slow) / d)


def _willr(inputs: Inputs, length: int) -> Sequence[Floats]:
    return (talib_c.WILLR(inputs.high, inputs.low, inputs.close, length),)


def _willr_step(state: State, now: Now, ops: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    highest = np.maximum.reduce(now.tail(HIGH, length), axis=-1)
    lowest = np.minimum.reduce(now.tail(LOW, length), axis=-1)
    return state, (ops.ratio(highest - now.close, (highest - lowest) / -100.0),)


# -------------------------------------------------------------------------------------- CCI, MFI


def _channel(typical: Floats, ops: Ops) -> Value:
    """Return the CCI of the last of each window of typical prices; 0 where all are equal."""
    length = typical.shape[-1]
    last = typical[..., -1]
    away = typical - typical[..., -1:]
    mean = np.add.reduce(away, axis=-1) / length
    spread = np.add.reduce(np.abs(away - np.expand_dims(mean, -1)), axis=-1) / length
    spread = ops.where(spread <= 1e-13 * abs(last), 0.0, spread)
    return ops.ratio(-mean, 0.015 * spread)


def _typical(high: Floats, low: Floats, close: Floats) -> Floats:
    return (high + low + close) / 3.0


def _cci(inputs: Inputs, length: int) -> Sequence[Floats]:
    out = np.full(len(inputs), np.nan)
    view = windows(_typical(inputs.high, inputs.low, inputs.close), length)
    for start in range(0, len(view), _ROWS):
        part = view[start : start + _ROWS]
        out[start + length - 1 : start + length - 1 + len(part)] = _channel(part, ArrayOps())
    return (out,)


def _cci_step(state: State, now: Now, ops: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    typical = _typical(now.tail(HIGH, length), now.tail(LOW, length), now.tail(CLOSE, length))
    return state, (_channel(typical, ops),)


def _flows(typical: Floats, volume: Floats) -> tuple[Floats, Floats]:
    """Return money in and money out of each bar after the first, over the last axis."""
    flow = typical[..., 1:] * volume[..., 1:]
    change = typical[..., 1:] - typical[..., :-1]
    least = 1e-13 * typical[..., 1:]  # less is rounding of equal sums
    return np.where(change > least, flow, 0.0), np.where(change < -least, flow, 0.0)


def _mfi(inputs: Inputs, length: int) -> Sequence[Floats]:
    flows = _flows(_typical(inputs.high, inputs.low, inputs.close), inputs.volume)
    came, went = (exact_sum(flow, length) for flow in flows)
    return (padded(_share(came, went, ArrayOps()), len(inputs)),)


def _share(came: Value, went: Value, ops: Ops) -> Value:
    return 100.0 * ops.ratio(came, came + went)


def _mfi_step(state: State, now: Now, ops: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    count = length + 1
    typical = _typical(now.tail(HIGH, count), now.tail(LOW, count), now.tail(CLOSE, count))
    came, went = _flows(typical, now.tail(VOLUME, count))
    sums = np.add.reduce(came, axis=-1), np.add.reduce(went, axis=-1)
    return state, (_share(*sums, ops),)


# ------------------------------------------------------------------------------------- ROC, MOM


def _roc(inputs: Inputs, length: int) -> Sequence[Floats]:
    return (talib_c.ROC(inputs.close, length),)


def _roc_step(state: State, now: Now, ops: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    before = now.tail(CLOSE, length + 1)[..., 0]
    return state, ((ops.ratio(now.close, before, 1.0) - 1.0) * 100.0,)


def _mom(inputs: Inputs, length: int) -> Sequence[Floats]:
    return (talib_c.MOM(inputs.close, length),)


def _mom_step(state: State, now: Now, _: Ops, length: int) -> tuple[State, tuple[Value, ...]]:
    return state, (now.close - now.tail(CLOSE, length + 1)[..., 0],)


OSCILLATORS: tuple[Definition, ...] = (
    Definition(
        name="stoch",
        outputs=("stochk", "stochd"),
        arguments=(Argument("k", 14), Argument("d", 3), Argument("smooth_k", 3)),
        columns=(HIGH, LOW, CLOSE),
        kernel="talib",
        formula="stochk: SMA smooth_k of 100 (close - lowest low) / (highest high - lowest low) "
        "of k bars, 0 where they are equal; stochd: its SMA d",
        source="G. Lane; " + _TALIB.format("STOCH"),
        batch=_stoch,
        lookback=_stoch_lookback,
        step=_stoch_step,
        seed=_stoch_seed,
        tail=lambda k, d, smooth_k: k,
        spellings=("STOCHk", "STOCHd"),
    ),
    Definition(
        name="willr",
        outputs=("",),
        arguments=(Argument("length", 14, 2),),
        columns=(HIGH, LOW, CLOSE),
        kernel="talib",
        formula="-100 (highest high - close) / (highest high - lowest low) of n bars, 0 where "
        "they are equal",
        source="L. Williams; " + _TALIB.format("WILLR"),
        batch=_willr,
        lookback=_before_length,
        step=_willr_step,
        seed=no_seed,
        tail=_length,
        spellings=("WILLR",),
    ),
    Definition(
        name="cci",
        outputs=("",),
        arguments=(Argument("length", 20, 2),),
        columns=(HIGH, LOW, CLOSE),
        kernel="own",
        formula="(tp - SMA n) / (0.015 mean |tp - SMA n|), tp = (high + low + close) / 3; 0 where "
        "all are equal",
        source="D. Lambert, Commodities (1980); " + _TALIB.format("CCI"),
        batch=_cci,
        lookback=_before_length,
        step=_cci_step,
        seed=no_seed,
        tail=_length,
        spellings=("CCI",),
    ),
    Definition(
        name="mfi",
        outputs=("",),
        arguments=(Argument("length", 14, 2),),
        columns=(HIGH, LOW, CLOSE, VOLUME),
        kernel="own",
        formula="100 in / (in + out): sums over n bars of tp * volume where tp rose and where it "
        "fell; 0 where neither did",
        source="G. Quong, A. Soudack, Stocks & Commodities 7:3 (1989); " + _TALIB.format("MFI"),
        batch=_mfi,
        lookback=_length,
        step=_mfi_step,
        seed=no_seed,
        tail=_one_more,
        spellings=("MFI",),
    ),
    Definition(
        name="roc",
        outputs=("",),
        arguments=(Argument("length", 10),),
        columns=(CLOSE,),
        kernel="talib",
        formula="100 (close / close n bars ago - 1)",
        source=_TALIB.format("ROC"),
        batch=_roc,
        lookback=_length,
        step=_roc_step,
        seed=no_seed,
        tail=_one_more,
        spellings=("ROC",),
    ),
    Definition(
        name="mom",
        outputs=("",),
        arguments=(Argument("length", 10),),
        columns=(CLOSE,),
        kernel="talib",
        formula="close - close n bars ago",
        source=_TALIB.format("MOM"),
        batch=_mom,
        lookback=_length,
        step=_mom_step,
        seed=no_seed,
        tail=_one_more,
        spellings=("MOM",),
    ),
)
