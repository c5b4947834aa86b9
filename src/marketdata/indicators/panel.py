"""Indicators of many live series at once: state in arrays, one step for all that got a bar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marketdata.indicators.definitions import Indicator, Value
from marketdata.indicators.inputs import ArrayOps, time_of_day
from marketdata.indicators.live import Live, stepped
from marketdata.types import CLOSE, HIGH, LOW, Bars, Bools, Floats, Int64s

_BEFORE = (HIGH, LOW, CLOSE)


class _Tails:
    """The last values of some columns for every series, each written twice, as in `live.Tail`."""

    def __init__(self, needs: dict[int, int], count: int):
        self.needs = needs
        self._capacity = max(needs.values(), default=1)
        self._data = {row: np.zeros((count, 2 * self._capacity)) for row in needs}
        self.seen = np.zeros(count, np.int64)

    def adopt(self, series: int, live: Live) -> None:
        """Take over the bars that `live` holds."""
        self.seen[series] = live.count
        inputs = live.tail.inputs(frozenset())
        kept = min(self._capacity, len(inputs))
        places = np.arange(live.count - kept, live.count) % self._capacity
        for row, data in self._data.items():
            for start in (0, self._capacity):
                data[series, places + start] = inputs.values[row, len(inputs) - kept :]

    def put(self, index: Int64s, rows: Floats) -> None:
        """Write the bar at the position of the last one counted."""
        at = (self.seen[index] - 1) % self._capacity
        for row, data in self._data.items():
            data[index, at] = data[index, at + self._capacity] = rows[row]

    def gathered(self, index: Int64s) -> dict[int, Floats]:
        """Return the last values that any step needs, shape (series, longest), the newest last."""
        ends = (self.seen[index] - 1) % self._capacity + self._capacity + 1
        found = {}
        for row, data in self._data.items():
            longest = self.needs[row]
            if len(ends) and (ends == ends[0]).all():
                end = int(ends[0])
                everyone = len(index) == len(data) and bool((np.diff(index) == 1).all())
                found[row] = (data if everyone else data[index])[:, end - longest : end]
            else:
                starts = index * (2 * self._capacity) + ends - longest
                found[row] = data.ravel()[starts[:, None] + np.arange(longest)]
        return found


class _PanelBar:
    """`Now` of many series."""

    def __init__(self, rows: Floats, before: Floats, fresh: Bools, intraday: Bools):
        self.open, self.high, self.low, self.close, self.volume = rows[:5]
        self.high_before, self.low_before, self.close_before = before
        self.fresh_session = fresh
        self.fresh = fresh & intraday
        self.gathered: dict[int, Floats] = {}

    def tail(self, column: int, count: int) -> Floats:
        return self.gathered[column][:, -count:]


class _Stepped:
    def __init__(self, indicator: Indicator, rows: slice):
        definition = indicator.definition
        assert definition.step is not None
        self.step = definition.step
        self.indicator = indicator
        self.rows = rows
        self.now = np.empty((0, 0))
        self.before = np.empty((0, 0))

    def hold(self, size: int, count: int) -> None:
        if self.now.shape != (size, count):
            self.now, self.before = np.zeros((size, count)), np.zeros((size, count))


class Panel:
    """Newest values of some indicators for many series, updated together.

    Values equal those of `compute` over each series' bars within 1e-9 relative.

    Parameters
    ----------
    indicators : sequence of Indicator
    count : int
        Number of series; they are spoken of by index, 0 to count - 1.
    early : frozenset of int, optional
        Sessions that close early; only relative volume asks.

    Attributes
    ----------
    columns : tuple of str
        Names of the values.
    values : ndarray of float64, shape (columns, count)
        Newest values of every series; NaN where there are none.
    """

    def __init__(
        self, indicators: Sequence[Indicator], count: int, *, early: frozenset[int] = frozenset()
    ):
        self.indicators = tuple(indicators)
        self.columns = tuple(c for indicator in self.indicators for c in indicator.columns)
        self.values = np.full((len(self.columns), count), np.nan)
        self._early = early
        self._count = count
        self._stepped: list[_Stepped] = []
        self._others: list[tuple[Indicator, slice]] = []
        self._place()
        self._tails = _Tails(_needs([slot.indicator for slot in self._stepped]), count)
        self._warm = np.zeros(count, np.bool_)
        self._warm_at = max([s.indicator.lookback for s in self._stepped], default=0) + 2
        self._cold: dict[int, Live] = {}
        self._aside: dict[int, Live] = {}
        self._last = np.zeros((2, len(_BEFORE), count))
        self._sessions = np.full((2, count), -1, np.int64)

    def _place(self) -> None:
        row = 0
        for indicator in self.indicators:
            rows = slice(row, row + len(indicator.columns))
            row = rows.stop
            if stepped(indicator):
                self._stepped.append(_Stepped(indicator, rows))
            else:
                self._others.append((indicator, rows))

    # ------------------------------------------------------------------------------- beginning

    def load(self, series: int, bars: Bars, sessions: Int64s) -> None:
        """Begin a series, or begin it anew, with its history.

        `history` says how many bars make the values independent of where they begin.

        Parameters
        ----------
        series : int
        bars : Bars
            Ascending; may be empty.
        sessions : ndarray of int64, shape (n,)
        """
        self._warm[series] = False
        self._cold.pop(series, None)
        live = Live([slot.indicator for slot in self._stepped], self._early)
        self._note(series, live.load(bars, sessions))
        self._keep(series, live)
        if self._others:
            aside = Live([indicator for indicator, _ in self._others], self._early)
            self._note_aside(series, aside.load(bars, sessions))
            self._aside[series] = aside

    def _note(self, series: int, values: Sequence[float]) -> None:
        at = 0
        for slot in self._stepped:
            size = slot.rows.stop - slot.rows.start
            self.values[slot.rows, series] = values[at : at + size]
            at += size

    def _note_aside(self, series: int, values: Sequence[float]) -> None:
        at = 0
        for _, rows in self._others:
            size = rows.stop - rows.start
            self.values[rows, series] = values[at : at + size]
            at += size

    def _keep(self, series: int, live: Live) -> None:
        """Hold the series in arrays once every indicator has begun, by itself until then."""
        if live.count < self._warm_at:
            self._cold[series] = live
            return
        self._cold.pop(series, None)
        for slot, (before, now) in zip(self._stepped, live.states(), strict=True):
            slot.hold(len(now), self._count)
            slot.now[:, series] = now
            slot.before[:, series] = before
        bar = live.bar
        self._last[1, :, series] = bar.high, bar.low, bar.close
        self._last[0, :, series] = bar.high_before, bar.low_before, bar.close_before
        self._sessions[:, series] = bar.session_before, bar.session
        self._tails.adopt(series, live)
        self._warm[series] = True

    # ---------------------------------------------------------------------------------- bars

    def append(self, index: Int64s, timestamps: Int64s, rows: Floats, sessions: Int64s) -> Floats:
        """Take the next bar of some series and return their newest values.

        Parameters
        ----------
        index : ndarray of int64, shape (m,)
            The series, none twice.
        timestamps : ndarray of int64, shape (m,)
            The bars' opens, microseconds UTC, each after its series' last.
        rows : ndarray of float64, shape (7, m)
            The bars, rows in the order of `types.COLUMNS`.
        sessions : ndarray of int64, shape (m,)
            The session of each.

        Returns
        -------
        ndarray of float64, shape (columns, m)
            NaN before an indicator's look-back.
        """
        return self._taken(index, timestamps, rows, sessions, revised=False)

    def revise(self, index: Int64s, timestamps: Int64s, rows: Floats, sessions: Int64s) -> Floats:
        """Replace the last bar of some series; parameters and result as in `append`.

        Raises
        ------
        ValueError
            A series has no bar yet.
        """
        return self._taken(index, timestamps, rows, sessions, revised=True)

    def _taken(
        self, index: Int64s, timestamps: Int64s, rows: Floats, sessions: Int64s, *, revised: bool
    ) -> Floats:
        warm = self._warm[index]
        if warm.all():
            self._step(index, timestamps, rows, sessions, revised=revised)
        else:
            for at in np.flatnonzero(~warm).tolist():
                self._cold_one(at, index, timestamps, rows, sessions, revised=revised)
            held = np.flatnonzero(warm)
            if len(held):
                self._step(
                    index[held], timestamps[held], rows[:, held], sessions[held], revised=revised
                )
        if self._others:
            for at in range(len(index)):
                self._aside_one(at, index, timestamps, rows, sessions, revised=revised)
        return self.values[:, index]

    def _cold_one(
        self,
        at: int,
        index: Int64s,
        timestamps: Int64s,
        rows: Floats,
        sessions: Int64s,
        *,
        revised: bool,
    ) -> None:
        series = int(index[at])
        live = self._cold.get(series)
        if live is None:
            live = Live([slot.indicator for slot in self._stepped], self._early)
        take = live.revise if revised else live.append
        self._note(series, take(int(timestamps[at]), rows[:, at], int(sessions[at])))
        self._keep(series, live)

    def _aside_one(
        self,
        at: int,
        index: Int64s,
        timestamps: Int64s,
        rows: Floats,
        sessions: Int64s,
        *,
        revised: bool,
    ) -> None:
        series = int(index[at])
        live = self._aside.get(series)
        if live is None:
            live = Live([indicator for indicator, _ in self._others], self._early)
            self._aside[series] = live
        take = live.revise if revised else live.append
        self._note_aside(series, take(int(timestamps[at]), rows[:, at], int(sessions[at])))

    def _step(
        self, index: Int64s, timestamps: Int64s, rows: Floats, sessions: Int64s, *, revised: bool
    ) -> None:
        if not revised:
            self._tails.seen[index] += 1
            self._last[0][:, index] = self._last[1][:, index]
            self._sessions[0, index] = self._sessions[1, index]
        self._last[1][:, index] = rows[list(_BEFORE)]
        self._sessions[1, index] = sessions
        self._tails.put(index, rows)
        fresh = sessions != self._sessions[0, index]
        bar = _PanelBar(rows, self._last[0][:, index], fresh, time_of_day(timestamps) != 0)
        bar.gathered = self._tails.gathered(index)
        ops = ArrayOps()
        for slot in self._stepped:
            state = slot.before[:, index] if revised else slot.now[:, index]
            if not revised:
                slot.before[:, index] = state
            after, values = slot.step(tuple(state), bar, ops, *slot.indicator.parameters)
            for row, value in enumerate(after):
                slot.now[row, index] = value
            self._write(slot, index, values)

    def _write(self, slot: _Stepped, index: Int64s, values: Sequence[Value]) -> None:
        for row, output in enumerate(slot.indicator.selected):
            self.values[slot.rows.start + row, index] = values[output]


def _needs(indicators: Sequence[Indicator]) -> dict[int, int]:
    """Return for each column that steps look back on, how far."""
    needs: dict[int, int] = {}
    for indicator in indicators:
        if indicator.tail > 1:
            for row in indicator.definition.columns:
                needs[row] = max(needs.get(row, 1), indicator.tail)
    return needs
