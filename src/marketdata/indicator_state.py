"""The live state of many series: what their newest values follow from, and what those rest on. Pure.

Series have numbers, from 0 on, that are used again when a series is dropped. Their state lies in
panels of a fixed size, so that ten thousand series take a step in a handful of array operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from marketdata.calendars import TradingCalendar
from marketdata.indicators import Indicator, Panel, compute
from marketdata.types import MINUTE, Bars, Floats, Int64s, SeriesKey

PANEL: Final = 2048
"""Series in one panel."""
NEVER: Final = -1
"""The revision of a series without state."""
_RESTS_ON: Final = (
    "revision", "actions_us", "action_version", "valid_until", "last", "previous",
)  # fmt: skip
RECENT: Final = 512
"""Newest minutes whose bars are remembered: most that come again, as those of a session after its
close, are the same."""
_ODD: Final = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5,
     0x94D049BB133111EB, 0xBF58476D1CE4E5B9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD],
    np.uint64,
)  # fmt: skip


@lru_cache(maxsize=4)
def early_sessions(calendar: TradingCalendar) -> frozenset[int]:
    """Return the sessions that close early, as `TradingCalendar.session_index` counts them."""
    return frozenset(np.flatnonzero(calendar.early).tolist())


def computed(indicators: Sequence[Indicator], bars: Bars, calendar: TradingCalendar) -> Floats:
    """Return the values of `indicators` at every bar, shape (columns, bars)."""
    sessions = calendar.session_index(bars.timestamp)
    return compute(indicators, bars, sessions, early=early_sessions(calendar))


class LiveSeries:
    """State of some indicators for the series that are kept up to date.

    Attributes
    ----------
    columns : tuple of str
        Names of the values.
    revision, actions_us, action_version, valid_until : ndarray of int64, shape (capacity,)
        By a series' number: what its values rest on, see `indicator_values.Tail`. The revision is
        `NEVER` for one without state.
    last, previous : ndarray of int64, shape (capacity,)
        Open of its newest bar, and of the one before.
    """

    def __init__(self, indicators: Sequence[Indicator], early: frozenset[int]) -> None:
        self._indicators = tuple(indicators)
        self._early = early
        self.columns = tuple(c for each in self._indicators for c in each.columns)
        self._panels: list[Panel] = []
        self._numbers: dict[SeriesKey, int] = {}
        self._free: list[int] = []
        self.revision = np.empty(0, np.int64)
        self.actions_us = np.empty(0, np.int64)
        self.action_version = np.empty(0, np.int64)
        self.valid_until = np.empty(0, np.int64)
        self.last = np.empty(0, np.int64)
        self.previous = np.empty(0, np.int64)
        self._recent: np.ndarray[Any, np.dtype[np.uint64]] = np.zeros((0, RECENT), np.uint64)

    def __len__(self) -> int:
        return len(self._numbers)

    def keys(self) -> set[SeriesKey]:
        """Return the series with a number."""
        return set(self._numbers)

    def number(self, key: SeriesKey) -> int:
        """Return the number of a series, giving it one where it has none."""
        number = self._numbers.get(key)
        if number is None:
            if not self._free:
                self._grow()
            number = self._numbers[key] = self._free.pop()
            self.revision[number] = NEVER
        return number

    def known(self, key: SeriesKey) -> bool:
        """Whether the series has state."""
        number = self._numbers.get(key)
        return number is not None and self.revision[number] != NEVER

    def forget(self, keys: Iterable[SeriesKey]) -> None:
        """Take state and number from these series."""
        for key in keys:
            number = self._numbers.pop(key, None)
            if number is not None:
                self.revision[number] = NEVER
                self._free.append(number)

    def _grow(self) -> None:
        held = len(self._panels) * PANEL
        self._panels.append(Panel(self._indicators, PANEL, early=self._early))
        self._free.extend(range(held + PANEL - 1, held - 1, -1))
        for name in _RESTS_ON:
            setattr(self, name, np.append(getattr(self, name), np.full(PANEL, NEVER, np.int64)))
        self._recent = np.concatenate([self._recent, np.zeros((PANEL, RECENT), np.uint64)])

    def load(self, number: int, bars: Bars, sessions: Int64s) -> None:
        """Begin a series anew with its history; see `Panel.load`. The caller sets what it rests on."""
        self._panels[number // PANEL].load(number % PANEL, bars, sessions)
        newest = bars.last(RECENT)
        self._recent[number] = 0
        marks = _marks(newest.timestamp, newest.values)
        self._recent[number, newest.timestamp // MINUTE % RECENT] = marks

    def step(
        self, numbers: Int64s, timestamps: Int64s, rows: Floats, sessions: Int64s, *, revised: bool
    ) -> Floats:
        """Give each of some series, none twice, its next bar, or its newest one again.

        Parameters
        ----------
        numbers, timestamps, sessions : ndarray of int64, shape (m,)
        rows : ndarray of float64, shape (7, m)

        Returns
        -------
        ndarray of float64, shape (m, columns)
        """
        values = np.empty((len(numbers), len(self.columns)))
        self._recent[numbers, timestamps // MINUTE % RECENT] = _marks(timestamps, rows)
        home = numbers // PANEL
        for at in np.unique(home).tolist():
            here = np.flatnonzero(home == at)
            panel = self._panels[at]
            take = panel.revise if revised else panel.append
            values[here] = take(
                numbers[here] % PANEL, timestamps[here], rows[:, here], sessions[here]
            ).T
        if not revised:
            self.previous[numbers] = self.last[numbers]
            self.last[numbers] = timestamps
        return values

    def values(self, numbers: Int64s) -> Floats:
        """Return the newest values of some series, shape (m, columns)."""
        found = np.empty((len(numbers), len(self.columns)))
        home = numbers // PANEL
        for at in np.unique(home).tolist():
            here = np.flatnonzero(home == at)
            found[here] = self._panels[at].values[:, numbers[here] % PANEL].T
        return found

    def unseen(self, number: int, bars: Bars) -> Bars:
        """Return `bars` without the first ones, as far as they are what came before."""
        held = self._recent[number, bars.timestamp // MINUTE % RECENT]
        other = np.flatnonzero(held != _marks(bars.timestamp, bars.values))
        same = int(other[0]) if len(other) else len(bars)
        return Bars(bars.timestamp[same:], bars.values[:, same:]) if same else bars


def _marks(timestamps: Int64s, rows: Floats) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return a 64-bit number for each bar: bars of one number are taken to be the same."""
    parts = np.empty((len(_ODD), len(timestamps)), np.uint64)
    parts[0] = timestamps.view(np.uint64)
    parts[1:] = rows.view(np.uint64) if rows.flags.c_contiguous else rows.copy().view(np.uint64)
    mixed = np.zeros(len(timestamps), np.uint64)
    for part, odd in zip(parts, _ODD, strict=True):
        mixed = (mixed ^ part) * odd
        mixed ^= mixed >> np.uint64(29)
    return mixed
