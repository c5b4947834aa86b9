"""What a strategy sees of one series: lines of numbers that end at now.

A `Cursor` says how many bars of a series have closed; a `Line` reads one column up to there and
refuses what lies beyond. Both are on the path of every bar: reading one number costs 0.1
microseconds, because a memoryview of a float64 array gives Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

from algorithms.errors import LookAheadError
from algorithms.orders import Order

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NEVER: Final = 2**63 - 1
"""A close that never comes: what stands after the last bar of a series."""


class Cursor:
    """How far one strategy has come in one series.

    Attributes
    ----------
    at : int
        Bars closed so far: the newest has the index ``at - 1``.
    next : int
        When the next bar closes, microseconds UTC.
    closes : memoryview of int64
        When each bar closes; `NEVER` after the last.
    waiting : list of Order
        Open orders of the symbol, to be looked at with each bar.
    """

    __slots__ = ("at", "closes", "next", "symbol", "waiting")

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.at = 0
        self.next = NEVER
        self.closes: Any = ()
        self.waiting: list[Order] = []

    def bind(self, closes: Int64s) -> None:
        """Read this array of closes from now on, from where the cursor stands."""
        self.closes = memoryview(closes)
        self.next = self.closes[self.at]

    def move(self, at: int) -> None:
        """Stand before the bar of this index."""
        self.at = at
        self.next = self.closes[at]


class Line:
    """One column of a series, up to its newest closed bar.

    ``line[-1]`` is the newest value, ``line[-2]`` the one before: a float, NaN before the series
    begins and where an indicator's look-back is not filled. ``line[-20:]`` and ``line.values(20)``
    are read-only float64 arrays, oldest first. An index from 0 on is refused: it would not say how
    long ago it was.
    """

    __slots__ = ("_array", "_cursor", "_source", "_values")

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._source: Floats | None = None
        self._array: Floats = np.empty(0)
        self._values: Sequence[float] = ()

    def bind(self, array: Floats) -> None:
        """Read this column from now on: float64, contiguous, at least as long as has closed."""
        if array is self._source:
            return
        self._source = array
        # An array made of a read-only buffer cannot be made writeable by who is given it.
        values: Any = memoryview(array).toreadonly()
        self._values = values
        self._array = np.asarray(values)

    @overload
    def __getitem__(self, index: int) -> float: ...

    @overload
    def __getitem__(self, index: slice) -> Floats: ...

    def __getitem__(self, index: int | slice) -> Any:
        try:
            if index < 0:  # type: ignore[operator]
                at = self._cursor.at + index  # type: ignore[operator]
                return self._values[at] if at >= 0 else math.nan
        except TypeError:
            if isinstance(index, slice):
                return self.values()[index]
            raise
        raise LookAheadError(
            f"index {index} of a line", cure="line[-1] is the newest value, line[-2] the one before"
        )

    def values(self, count: int | None = None) -> Floats:
        """Return the newest `count` values, oldest first; fewer where there are fewer. Read-only."""
        at = self._cursor.at
        first = 0 if count is None else max(0, at - count)
        return self._array[first:at]

    def __len__(self) -> int:
        return self._cursor.at

    def __iter__(self) -> Iterator[float]:
        return iter(self.values().tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Floats:
        found = self.values()
        return np.array(found, dtype=dtype) if copy or dtype is not None else found

    def __float__(self) -> float:
        return float(self[-1])

    def __repr__(self) -> str:
        return f"<line of {len(self)}, newest {self[-1]:.6g}>"


def crossed_above(one: Line, other: Line | float) -> bool:
    """Return whether `one` is above `other` now and was not at the bar before."""
    at = one._cursor.at - 1
    if at < 1:
        return False
    values = one._values
    if isinstance(other, Line):
        if other._cursor is not one._cursor:
            return one[-1] > other[-1] and one[-2] <= other[-2]
        others = other._values
        return values[at] > others[at] and values[at - 1] <= others[at - 1]
    return values[at] > other and values[at - 1] <= other


def crossed_below(one: Line, other: Line | float) -> bool:
    """Return whether `one` is below `other` now and was not at the bar before."""
    at = one._cursor.at - 1
    if at < 1:
        return False
    values = one._values
    if isinstance(other, Line):
        if other._cursor is not one._cursor:
            return one[-1] < other[-1] and one[-2] >= other[-2]
        others = other._values
        return values[at] < others[at] and values[at - 1] >= others[at - 1]
    return values[at] < other and values[at - 1] >= other
