"""What kernels read: the bars of one series as columns, and one bar as a step sees it."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import numpy as np

from marketdata.clock import from_micros
from marketdata.indicators.definitions import Value
from marketdata.types import CLOSE, DAY, HIGH, LOW, OPEN, VOLUME, Bars, Floats, Int64s

_ZONE = ZoneInfo("America/New_York")


@lru_cache(maxsize=32768)
def _offset(day: int) -> int:
    """Return the exchange's distance from UTC on a day (days since 1970), in microseconds."""
    noon = from_micros(day * DAY + DAY // 2).astimezone(_ZONE)
    distance = noon.utcoffset()
    assert distance is not None
    return int(distance.total_seconds()) * 1_000_000


def wall_clock(timestamps: Int64s) -> Int64s:
    """Return microseconds since 1970 by the exchange's clock; it is set outside sessions."""
    if not len(timestamps):
        return timestamps.astype(np.int64)
    days, index = np.unique(timestamps // DAY, return_inverse=True)
    offsets = np.array([_offset(day) for day in days.tolist()], np.int64)
    return np.asarray(timestamps + offsets[index], np.int64)


def time_of_day(timestamps: Int64s) -> Int64s:
    """Return microseconds since exchange midnight."""
    return np.asarray(wall_clock(timestamps) % DAY, np.int64)


def at_midnight(timestamp: int) -> bool:
    """Return whether a bar begins at exchange midnight: a daily or coarser one."""
    return (timestamp + _offset(timestamp // DAY)) % DAY == 0


class Inputs:
    """The bars of one series, for batch kernels.

    Attributes
    ----------
    timestamp, sessions : ndarray of int64, shape (n,)
        Bar opens, microseconds UTC, and the session each falls into.
    open, high, low, close, volume : ndarray of float64, shape (n,)
        Contiguous views.
    early : frozenset of int
        Sessions that close early.
    shared : dict
        What one kernel has computed and another may use.
    """

    __slots__ = (
        "_bounds",
        "close",
        "early",
        "high",
        "low",
        "open",
        "sessions",
        "shared",
        "timestamp",
        "values",
        "volume",
    )

    def __init__(self, bars: Bars, sessions: Int64s, early: frozenset[int] = frozenset()):
        values = bars.values
        if values.strides[-1] != 8:
            values = np.ascontiguousarray(values)
        self.timestamp = bars.timestamp
        self.values = values
        self.sessions = sessions
        self.early = early
        self.open = values[OPEN]
        self.high = values[HIGH]
        self.low = values[LOW]
        self.close = values[CLOSE]
        self.volume = values[VOLUME]
        self.shared: dict[Any, Any] = {}
        self._bounds: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.close)

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest close."""
        if self._bounds is None:
            close = self.close
            # argmin and argmax are three times as fast as min and max.
            self._bounds = float(close[close.argmin()]), float(close[close.argmax()])
        return self._bounds

    def first(self, count: int) -> Inputs:
        """Return the first `count` bars."""
        return self.part(0, count)

    def part(self, start: int, end: int) -> Inputs:
        """Return the bars from `start` to before `end`."""
        bars = Bars(self.timestamp[start:end], self.values[:, start:end])
        return Inputs(bars, self.sessions[start:end], self.early)

    def lengthened(self, least: int) -> Inputs:
        """Return at least `least` bars: after these, the same ones back and forth, one a day."""
        count = len(self)
        if count >= least:
            return self
        turn = np.arange(count, least) % (2 * count)
        index = np.where(turn < count, turn, 2 * count - 1 - turn)
        later = np.arange(1, least - count + 1, dtype=np.int64)
        bars = Bars(
            np.concatenate([self.timestamp, self.timestamp[-1] + later * DAY]),
            np.concatenate([self.values, self.values[:, index]], axis=1),
        )
        sessions = np.concatenate([self.sessions, self.sessions[-1] + later])
        return Inputs(bars, sessions, self.early)

    @property
    def intraday(self) -> bool:
        """Whether bars are shorter than a day: none of those begins at exchange midnight."""
        return bool(len(self)) and not at_midnight(int(self.timestamp[0]))

    @property
    def anchors(self) -> Int64s:
        """The index at which each bar's count began: its session's first bar, or 0 for days."""
        if not self.intraday:
            return np.zeros(len(self), np.int64)
        return session_starts(self.sessions)


def session_starts(sessions: Int64s) -> Int64s:
    """Return for each bar the index of its session's first one."""
    fresh = np.empty(len(sessions), np.bool_)
    fresh[:1] = True
    np.not_equal(sessions[1:], sessions[:-1], out=fresh[1:])
    return np.maximum.accumulate(np.where(fresh, np.arange(len(sessions)), 0))


class Ops(Protocol):
    """The few operations that floats and arrays spell differently."""

    def where(self, condition: Value, yes: Value, no: Value) -> Value: ...
    def maximum(self, left: Value, right: Value) -> Value: ...
    def minimum(self, left: Value, right: Value) -> Value: ...
    def sqrt(self, value: Value) -> Value: ...
    def ratio(self, above: Value, below: Value, otherwise: Value = 0.0) -> Value:
        """Return above / below, or `otherwise` where below is 0."""


class FloatOps:
    """`Ops` of one series."""

    @staticmethod
    def where(condition: Value, yes: Value, no: Value) -> Value:
        return yes if condition else no

    @staticmethod
    def maximum(left: Value, right: Value) -> Value:
        return left if left > right else right

    @staticmethod
    def minimum(left: Value, right: Value) -> Value:
        return left if left < right else right

    @staticmethod
    def sqrt(value: Value) -> Value:
        return sqrt(value)

    @staticmethod
    def ratio(above: Value, below: Value, otherwise: Value = 0.0) -> Value:
        return above / below if below else otherwise


class ArrayOps:
    """`Ops` of many series at once."""

    @staticmethod
    def where(condition: Value, yes: Value, no: Value) -> Value:
        return np.where(condition, yes, no)

    @staticmethod
    def maximum(left: Value, right: Value) -> Value:
        return np.maximum(left, right)

    @staticmethod
    def minimum(left: Value, right: Value) -> Value:
        return np.minimum(left, right)

    @staticmethod
    def sqrt(value: Value) -> Value:
        return np.sqrt(value)

    @staticmethod
    def ratio(above: Value, below: Value, otherwise: Value = 0.0) -> Value:
        out = np.empty(np.broadcast(above, below).shape)
        out[...] = otherwise
        np.divide(above, below, out=out, where=np.asarray(below) != 0)
        return out


class Now(Protocol):
    """A bar as a step sees it: its values, those of the bar before, and the tail of a column.

    Values are floats for one series, arrays of shape (series,) for many.
    """

    open: Value
    high: Value
    low: Value
    close: Value
    volume: Value
    high_before: Value
    low_before: Value
    close_before: Value
    fresh: Value
    """Whether the bar begins a new count: another session than the bar before, if intraday."""
    fresh_session: Value
    """Whether the bar's session is another than that of the bar before."""

    def tail(self, column: int, count: int) -> Floats:
        """Return the last `count` values of a column, the newest last: shape (..., count)."""


class Cursor:
    """`Now` at a position of `Inputs`; `before` is what `seed` has seen."""

    __slots__ = (
        "_inputs",
        "_position",
        "close",
        "close_before",
        "fresh",
        "fresh_session",
        "high",
        "high_before",
        "low",
        "low_before",
        "open",
        "volume",
    )

    def __init__(self, inputs: Inputs, position: int):
        self._inputs = inputs
        self._position = position
        self.open, self.high, self.low, self.close, self.volume = inputs.values[
            :5, position
        ].tolist()
        _, self.high_before, self.low_before, self.close_before, _ = inputs.values[
            :5, position - 1
        ].tolist()
        session, before = inputs.sessions[position], inputs.sessions[position - 1]
        self.fresh_session = bool(session != before)
        self.fresh = self.fresh_session and inputs.intraday

    def tail(self, column: int, count: int) -> Floats:
        end = self._position + 1
        return self._inputs.values[column, end - count : end]
