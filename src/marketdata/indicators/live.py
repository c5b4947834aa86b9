"""Indicators of one live series: append a bar, revise the last bar, read the newest values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from marketdata.indicators.definitions import UNBOUNDED, Indicator, State, Value
from marketdata.indicators.inputs import FloatOps, Inputs, at_midnight
from marketdata.indicators.volumes import EarlierSessions
from marketdata.types import COLUMNS, VOLUME, Bars, Floats, Int64s


class Tail:
    """The last bars of a series; each is written twice, so that any last few are contiguous."""

    __slots__ = ("_capacity", "_sessions", "_timestamps", "_values", "count", "rows")

    def __init__(self, capacity: int, rows: Sequence[int]):
        self._capacity = capacity
        self._values = np.zeros((len(COLUMNS), 2 * capacity))
        self._timestamps = np.zeros(2 * capacity, np.int64)
        self._sessions = np.zeros(2 * capacity, np.int64)
        self.rows = [(row, self._values[row]) for row in rows]
        self.count = 0

    def put(self, timestamp: int, row: Sequence[float], session: int) -> None:
        """Write the bar at the position of the last one counted."""
        at = (self.count - 1) % self._capacity
        twin = at + self._capacity
        for column, values in self.rows:
            values[at] = values[twin] = row[column]
        self._timestamps[at] = self._timestamps[twin] = timestamp
        self._sessions[at] = self._sessions[twin] = session

    def load(self, bars: Bars, sessions: Int64s) -> None:
        """Take the last bars that there is room for."""
        kept = bars.last(self._capacity)
        self.count = len(bars)
        places = np.arange(self.count - len(kept), self.count) % self._capacity
        for start in (0, self._capacity):
            self._values[:, places + start] = kept.values
            self._timestamps[places + start] = kept.timestamp
            self._sessions[places + start] = sessions[len(bars) - len(kept) :]

    def last(self, column: int, count: int) -> Floats:
        end = (self.count - 1) % self._capacity + self._capacity + 1
        return self._values[column, end - count : end]

    def inputs(self, early: frozenset[int]) -> Inputs:
        """Return all bars held, oldest first."""
        end = (self.count - 1) % self._capacity + self._capacity + 1
        start = end - min(self.count, self._capacity)
        bars = Bars(self._timestamps[start:end], self._values[:, start:end])
        return Inputs(bars, self._sessions[start:end], early)


class LiveBar:
    """`Now` of one live series."""

    __slots__ = (
        "_tail",
        "close",
        "close_before",
        "fresh",
        "fresh_session",
        "high",
        "high_before",
        "low",
        "low_before",
        "open",
        "session",
        "session_before",
        "tail",
        "volume",
    )

    def __init__(self, tail: Tail):
        self.tail = tail.last
        self.open = self.high = self.low = self.close = self.volume = 0.0
        self.high_before = self.low_before = self.close_before = 0.0
        self.session = self.session_before = -1
        self.fresh = self.fresh_session = False

    def advance(self) -> None:
        """Make the bar the one before."""
        self.high_before, self.low_before, self.close_before = self.high, self.low, self.close
        self.session_before = self.session

    def set(self, timestamp: int, row: Sequence[float], session: int) -> None:
        self.open, self.high, self.low, self.close, self.volume = row[:5]
        self.session = session
        self.fresh_session = session != self.session_before
        self.fresh = self.fresh_session and not at_midnight(timestamp)


class _Stepped:
    """An indicator with an incremental form: its state after and before the last bar."""

    __slots__ = ("arguments", "before", "indicator", "lookback", "now", "seed", "step", "whole")

    def __init__(self, indicator: Indicator):
        definition = indicator.definition
        assert definition.step is not None
        assert definition.seed is not None
        self.indicator = indicator
        self.whole = indicator.whole
        self.step, self.seed = definition.step, definition.seed
        self.arguments = indicator.parameters
        self.lookback = indicator.lookback
        self.now: State = ()
        self.before: State | None = None


class _Recomputed:
    """An indicator without one: its newest value from as many bars as it needs."""

    def __init__(self, indicator: Indicator, early: frozenset[int]):
        needed = indicator.lookback + indicator.stabilisation + 1
        self._kept = None if needed >= UNBOUNDED or indicator.sessions else needed
        self.indicator = indicator
        self.whole = indicator.whole
        self._early = early
        self._bars = Bars.empty()
        self._sessions: Int64s = np.empty(0, np.int64)

    def load(self, inputs: Inputs) -> None:
        start = 0 if self._kept is None else max(len(inputs) - self._kept, 0)
        self._bars = Bars(inputs.timestamp[start:].copy(), inputs.values[:, start:].copy())
        self._sessions = inputs.sessions[start:].copy()

    def append(self, timestamp: int, row: Sequence[float], session: int) -> Sequence[Value]:
        start = self._first_needed(timestamp, session)
        kept = Bars(self._bars.timestamp[start:], self._bars.values[:, start:])
        self._bars = _with(kept, timestamp, row)
        self._sessions = np.append(self._sessions[start:], session)
        return self.newest()

    def _first_needed(self, timestamp: int, session: int) -> int:
        """Return the index of the first bar held that the bar at `timestamp` needs."""
        if self._kept is not None:
            return max(len(self._bars) + 1 - self._kept, 0)
        if at_midnight(timestamp):
            return 0
        return int(np.searchsorted(self._sessions, session - self.indicator.sessions))

    def revise(self, timestamp: int, row: Sequence[float], session: int) -> Sequence[Value]:
        kept = Bars(self._bars.timestamp[:-1], self._bars.values[:, :-1])
        self._bars = _with(kept, timestamp, row)
        self._sessions = np.append(self._sessions[:-1], session)
        return self.newest()

    def newest(self) -> Sequence[Value]:
        outputs = self.indicator.batch(Inputs(self._bars, self._sessions, self._early))
        return [float(output[-1]) for output in outputs]


class _ByMinute:
    """Relative volume: it has an incremental form that one tuple of numbers does not hold."""

    def __init__(self, indicator: Indicator, early: frozenset[int]):
        self.indicator = indicator
        self.whole = indicator.whole
        self._length = int(str(indicator.parameters[0]))
        self._early = early
        self._state = self._made(Inputs(Bars.empty(), np.empty(0, np.int64), early))
        self._newest: Sequence[Value] = (float("nan"),)

    def _made(self, inputs: Inputs) -> EarlierSessions:
        return EarlierSessions(self._length, inputs)

    def load(self, inputs: Inputs) -> None:
        self._state = self._made(inputs.first(len(inputs) - 1))
        row, last = inputs.values[:, -1].tolist(), int(inputs.sessions[-1])
        self.append(int(inputs.timestamp[-1]), row, last)

    def append(self, timestamp: int, row: Sequence[float], session: int) -> Sequence[Value]:
        self._newest = (self._state.append(timestamp, row[VOLUME], session),)
        return self._newest

    def revise(self, timestamp: int, row: Sequence[float], session: int) -> Sequence[Value]:
        self._newest = (self._state.revise(timestamp, row[VOLUME], session),)
        return self._newest

    def newest(self) -> Sequence[Value]:
        return self._newest


def _with(bars: Bars, timestamp: int, row: Sequence[float]) -> Bars:
    column = np.asarray(row, np.float64)[:, None]
    return Bars(np.append(bars.timestamp, timestamp), np.concatenate([bars.values, column], axis=1))


def stepped(indicator: Indicator) -> bool:
    """Return whether the indicator has an incremental form in numbers."""
    return indicator.definition.step is not None


class Live:
    """Newest values of some indicators of one series, bar by bar.

    Values equal those of `compute` over the same bars within 1e-9 relative.

    Parameters
    ----------
    indicators : sequence of Indicator
    early : frozenset of int, optional
        Sessions that close early; only relative volume asks.
    """

    def __init__(self, indicators: Sequence[Indicator], early: frozenset[int] = frozenset()):
        self.indicators = tuple(indicators)
        self._early = early
        self._slots: list[_Stepped | _Recomputed | _ByMinute] = [
            _slot(indicator, early) for indicator in self.indicators
        ]
        steps = [slot for slot in self._slots if isinstance(slot, _Stepped)]
        rows = {row for slot in steps for row in slot.indicator.definition.columns}
        room = [max(slot.indicator.tail, slot.lookback + 1) for slot in steps]
        self.tail = Tail(max(room, default=1), sorted(rows))
        self.bar = LiveBar(self.tail)
        self._ops = FloatOps()
        self._columns = tuple(c for indicator in self.indicators for c in indicator.columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values, in their order."""
        return self._columns

    @property
    def count(self) -> int:
        """Bars seen."""
        return self.tail.count

    def states(self) -> list[tuple[State | None, State]]:
        """Return state before and after the last bar of each indicator with an incremental form."""
        return [(s.before, s.now) for s in self._slots if isinstance(s, _Stepped)]

    def load(self, bars: Bars, sessions: Int64s) -> list[float]:
        """Begin with `bars`, as if each had been appended; return the newest values.

        `history` says how many bars make the values independent of where they begin.
        """
        if not len(bars):
            return [float("nan")] * len(self._columns)
        inputs = Inputs(bars, sessions, self._early)
        self.tail.load(bars, sessions)
        last = bars.values[:, -2:].T.tolist()
        if len(last) > 1:
            self.bar.set(int(bars.timestamp[-2]), last[0], int(sessions[-2]))
        self.bar.advance()
        self.bar.set(int(bars.timestamp[-1]), last[-1], int(sessions[-1]))
        values: list[float] = []
        for slot in self._slots:
            if isinstance(slot, _Stepped):
                found = self._begun(slot, inputs)
            else:
                slot.load(inputs)
                found = slot.newest()
            values.extend(found if slot.whole else [found[i] for i in slot.indicator.selected])
        return values

    def _begun(self, slot: _Stepped, inputs: Inputs) -> Sequence[Value]:
        """Return the newest values of a slot that begins with `inputs`."""
        if len(inputs) <= slot.lookback + 1:
            return self._cold(slot, inputs)
        slot.before = slot.seed(inputs.first(len(inputs) - 1), *slot.arguments)
        slot.now, found = slot.step(slot.before, self.bar, self._ops, *slot.arguments)
        return found

    def _cold(self, slot: _Stepped, inputs: Inputs) -> Sequence[Value]:
        if len(inputs) == slot.lookback + 1:
            slot.now = slot.seed(inputs, *slot.arguments)
        return [float(output[-1]) for output in slot.indicator.batch(inputs)]

    def append(self, timestamp: int, row: Sequence[float] | Floats, session: int) -> list[float]:
        """Take the next bar and return the newest values.

        Parameters
        ----------
        timestamp : int
            The bar's open, microseconds UTC, after that of the last bar.
        row : sequence of 7 floats
            In the order of `types.COLUMNS`.
        session : int
            Index of its session.

        Returns
        -------
        list of float
            In the order of `columns`; NaN before an indicator's look-back.
        """
        self.bar.advance()
        self.tail.count += 1
        return self._taken(timestamp, row, session, revised=False)

    def revise(self, timestamp: int, row: Sequence[float] | Floats, session: int) -> list[float]:
        """Replace the last bar and return the newest values, as if it had come so at once."""
        if not self.tail.count:
            raise ValueError("there is no bar to revise yet")
        return self._taken(timestamp, row, session, revised=True)

    def _taken(
        self, timestamp: int, row: Sequence[float] | Floats, session: int, *, revised: bool
    ) -> list[float]:
        numbers: Sequence[float] = row.tolist() if isinstance(row, np.ndarray) else row
        self.tail.put(timestamp, numbers, session)
        bar, ops, count = self.bar, self._ops, self.tail.count
        bar.set(timestamp, numbers, session)
        values: list[float] = []
        inputs: Inputs | None = None
        for slot in self._slots:
            found: Sequence[Any]
            if not isinstance(slot, _Stepped):
                take = slot.revise if revised else slot.append
                found = take(timestamp, numbers, session)
            elif count > slot.lookback + 1:
                if not revised:
                    slot.before = slot.now
                slot.now, found = slot.step(slot.before, bar, ops, *slot.arguments)
            else:
                inputs = inputs or self.tail.inputs(self._early)
                found = self._cold(slot, inputs)
            values.extend(found if slot.whole else [found[i] for i in slot.indicator.selected])
        return values


def _slot(indicator: Indicator, early: frozenset[int]) -> _Stepped | _Recomputed | _ByMinute:
    if stepped(indicator):
        return _Stepped(indicator)
    if indicator.definition.name == "relative_volume":
        return _ByMinute(indicator, early)
    return _Recomputed(indicator, early)
