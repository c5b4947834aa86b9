"""Volume: OBV, accumulation/distribution, VWAP of the session, volume against earlier sessions.

What is summed up from a beginning means nothing without it. VWAP begins with its session. OBV
and A/D begin with the session for intraday bars and with the series for daily and coarser ones,
so that a value is the same whatever window is asked for; differences inside a session are
TA-Lib's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from marketdata.indicators.definitions import (
    UNBOUNDED,
    Argument,
    Definition,
    State,
    Value,
)
from marketdata.indicators.inputs import (
    ArrayOps,
    Inputs,
    Now,
    Ops,
    session_starts,
    time_of_day,
)
from marketdata.indicators.kernels import exact_sum
from marketdata.types import CLOSE, DAY, HIGH, HOUR, LOW, MINUTE, VOLUME, Floats, Int64s

_EARLY_CLOSE = 13 * HOUR


def _parts(starts: Int64s) -> Iterator[tuple[int, int]]:
    """Return the index ranges of counts that hold more than one bar."""
    edges = np.append(np.unique(starts), len(starts))
    long = np.flatnonzero(np.diff(edges) > 1)
    for at in long.tolist():
        yield int(edges[at]), int(edges[at + 1])


def _accumulated(amounts: Floats, starts: Int64s) -> Floats:
    """Return running sums that begin anew at each start, in the order of the bars."""
    out = amounts.copy()
    for low, high in _parts(starts):
        np.add.accumulate(amounts[low:high], out=out[low:high])
    return out


# -------------------------------------------------------------------------------------- OBV, A/D


def _obv(inputs: Inputs) -> Sequence[Floats]:
    starts = inputs.anchors
    close = inputs.close
    sign = np.ones(len(inputs))
    sign[1:] = np.sign(close[1:] - close[:-1])
    sign[starts] = 1.0
    return (_accumulated(sign * inputs.volume, starts),)


def _obv_step(state: State, now: Now, ops: Ops) -> tuple[State, tuple[Value, ...]]:
    (total,) = state
    rose, fell = now.close > now.close_before, now.close < now.close_before
    change = ops.where(rose, now.volume, ops.where(fell, -now.volume, 0.0))
    total = ops.where(now.fresh, now.volume, total + change)
    return (total,), (total,)


def _obv_seed(inputs: Inputs) -> State:
    return (float(_obv(inputs)[0][-1]),)


def _money(high: Value, low: Value, close: Value, volume: Value, ops: Ops) -> Value:
    return ops.ratio((close - low) - (high - close), high - low) * volume


def _ad(inputs: Inputs) -> Sequence[Floats]:
    money = _money(inputs.high, inputs.low, inputs.close, inputs.volume, ArrayOps())
    return (_accumulated(money, inputs.anchors),)


def _ad_step(state: State, now: Now, ops: Ops) -> tuple[State, tuple[Value, ...]]:
    (total,) = state
    money = _money(now.high, now.low, now.close, now.volume, ops)
    total = ops.where(now.fresh, 0.0, total) + money
    return (total,), (total,)


def _ad_seed(inputs: Inputs) -> State:
    return (float(_ad(inputs)[0][-1]),)


# ------------------------------------------------------------------------------------------ VWAP


def _typical(high: Value, low: Value, close: Value) -> Value:
    return (high + low + close) / 3.0


def _vwap_sums(inputs: Inputs) -> tuple[Floats, Floats]:
    starts = session_starts(inputs.sessions)
    typical = _typical(inputs.high, inputs.low, inputs.close)
    return _accumulated(typical * inputs.volume, starts), _accumulated(inputs.volume, starts)


def _vwap(inputs: Inputs) -> Sequence[Floats]:
    paid, volume = _vwap_sums(inputs)
    typical = _typical(inputs.high, inputs.low, inputs.close)
    return (ArrayOps.ratio(paid, volume, typical),)


def _vwap_step(state: State, now: Now, ops: Ops) -> tuple[State, tuple[Value, ...]]:
    paid, volume = state
    typical = _typical(now.high, now.low, now.close)
    paid = ops.where(now.fresh_session, 0.0, paid) + typical * now.volume
    volume = ops.where(now.fresh_session, 0.0, volume) + now.volume
    return (paid, volume), (ops.ratio(paid, volume, typical),)


def _vwap_seed(inputs: Inputs) -> State:
    paid, volume = _vwap_sums(inputs)
    return float(paid[-1]), float(volume[-1])


# ------------------------------------------------------------------------------- relative volume


def _relative_volume(inputs: Inputs, length: int) -> Sequence[Floats]:
    if not len(inputs):
        return (np.empty(0),)
    if not inputs.intraday:
        return (_against_bars(inputs.volume, length),)
    return (_against_sessions(inputs, length),)


def _against_bars(volume: Floats, length: int) -> Floats:
    out = np.full(len(volume), np.nan)
    if len(volume) > length:
        means = exact_sum(volume[:-1], length) / length
        out[length:] = ArrayOps.ratio(volume[length:], means, np.nan)
    return out


def _against_sessions(inputs: Inputs, length: int) -> Floats:
    times = time_of_day(inputs.timestamp) // MINUTE
    places = np.full(DAY // MINUTE, -1, np.int64)
    present = np.unique(times)
    places[present] = np.arange(len(present))
    column = places[times]
    row = inputs.sessions - inputs.sessions[0]
    sessions = int(row[-1]) + 1
    volume = np.zeros((sessions, len(present)))
    volume[row, column] = inputs.volume
    counted = np.ones_like(volume)
    for session in inputs.early:
        if 0 <= session - int(inputs.sessions[0]) < sessions:
            counted[session - int(inputs.sessions[0]), present >= _EARLY_CLOSE // MINUTE] = 0.0
    volume_sum, count = np.zeros_like(volume), np.zeros_like(volume)
    volume *= counted
    for back in range(min(length, sessions - 1), 0, -1):
        volume_sum[back:] += volume[:-back]
        count[back:] += counted[:-back]
    means = ArrayOps.ratio(volume_sum, count)
    means[:length] = 0.0
    return np.asarray(ArrayOps.ratio(inputs.volume, means[row, column], np.nan))


class EarlierSessions:
    """The incremental form of relative volume: volumes by minute of the sessions before."""

    def __init__(self, length: int, inputs: Inputs):
        self._length = length
        self._early = inputs.early
        self._first: int | None = None
        self._bars: list[float] = []
        self._by_minute: dict[int, dict[int, float]] = {}
        if len(inputs):
            self._load(inputs)

    def _load(self, inputs: Inputs) -> None:
        self._first = int(inputs.sessions[0])
        self._bars = inputs.volume[-self._length - 1 :].tolist()
        if not inputs.intraday:
            return
        recent = inputs.sessions >= inputs.sessions[-1] - self._length
        times = time_of_day(inputs.timestamp[recent]).tolist()
        sessions = inputs.sessions[recent].tolist()
        for time, session, volume in zip(
            times, sessions, inputs.volume[recent].tolist(), strict=True
        ):
            self._by_minute.setdefault(time, {})[session] = volume

    def append(self, timestamp: int, volume: float, session: int) -> float:
        """Take the next bar and return its relative volume."""
        self._bars = [*self._bars[-self._length :], volume]
        return self._value(timestamp, volume, session)

    def revise(self, timestamp: int, volume: float, session: int) -> float:
        """Replace the last bar and return its relative volume."""
        self._bars[-1:] = [volume]
        return self._value(timestamp, volume, session)

    def _value(self, timestamp: int, volume: float, session: int) -> float:
        if self._first is None:
            self._first = session
        time = int(time_of_day(np.array([timestamp]))[0])
        if not time:
            before = self._bars[:-1]
            total = sum(before) if len(before) == self._length else 0.0
            return volume * self._length / total if total else float("nan")
        minute = self._by_minute.setdefault(time, {})
        for old in [s for s in minute if s < session - self._length]:
            del minute[old]
        minute[session] = volume
        if session - self._length < self._first:
            return float("nan")
        counted = [
            s
            for s in range(session - self._length, session)
            if not (s in self._early and time >= _EARLY_CLOSE)
        ]
        total = sum(minute.get(s, 0.0) for s in counted)
        return volume * len(counted) / total if total else float("nan")


VOLUMES: tuple[Definition, ...] = (
    Definition(
        name="obv",
        outputs=("",),
        arguments=(),
        columns=(CLOSE, VOLUME),
        kernel="own",
        formula="sum of volume, negative where the close fell, 0 where it stayed; begins with the "
        "volume of the session's first bar (daily and coarser: of the series' first)",
        source="J. Granville (1963); TA-Lib 0.8, ta_OBV.c, up to the beginning",
        batch=_obv,
        lookback=lambda: 0,
        stabilisation=lambda: UNBOUNDED,
        sessions=lambda: 1,
        step=_obv_step,
        seed=_obv_seed,
        scope="series",
        spellings=("OBV",),
    ),
    Definition(
        name="ad",
        outputs=("",),
        arguments=(),
        columns=(HIGH, LOW, CLOSE, VOLUME),
        kernel="own",
        formula="sum of volume ((close - low) - (high - close)) / (high - low) since the session's "
        "first bar (daily and coarser: the series' first)",
        source="M. Chaikin; TA-Lib 0.8, ta_AD.c, up to the beginning",
        batch=_ad,
        lookback=lambda: 0,
        stabilisation=lambda: UNBOUNDED,
        sessions=lambda: 1,
        step=_ad_step,
        seed=_ad_seed,
        scope="series",
        spellings=("AD",),
    ),
    Definition(
        name="vwap",
        outputs=("",),
        arguments=(),
        columns=(HIGH, LOW, CLOSE, VOLUME),
        kernel="own",
        formula="sum of tp * volume / sum of volume since the session's first bar, tp = (high + "
        "low + close) / 3; tp itself before any volume",
        source="pandas-ta volume/vwap.py, anchor D; P. Berkowitz et al., J. of Finance 43 (1988)",
        batch=_vwap,
        lookback=lambda: 0,
        sessions=lambda: 1,
        step=_vwap_step,
        seed=_vwap_seed,
        scope="session",
        spellings=("VWAP",),
    ),
    Definition(
        name="relative_volume",
        outputs=("",),
        arguments=(Argument("length", 20),),
        columns=(VOLUME,),
        kernel="own",
        formula="volume / mean volume of the same minute of the n sessions before; a minute "
        "without a bar is 0, early closes have no minutes from 13:00 on; daily and coarser: / mean "
        "of the n bars before; NaN where that mean is 0",
        source="own, after TradingView's 'Relative Volume at Time'",
        batch=_relative_volume,
        lookback=lambda length: length,
        sessions=lambda length: length,
        scope="session",
    ),
)
