"""Variance, skewness and kurtosis of windows, each from its own bars alone.

pandas carries the sums of one window on to the next, and with them their rounding: near a price
that hardly moves, two windows that end at the same bar then differ by far more than 1e-9.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from marketdata.types import Floats

_AT_ONCE: Final = 1 << 20
"""How many numbers of windows are held at once."""


class Column(pd.Series):
    """A series whose windows' moments depend on nothing before the window."""

    @property
    def _constructor(self) -> type[Column]:
        return Column

    def rolling(  # type: ignore[override]
        self, window: Any, min_periods: Any = None, **given: Any
    ) -> Any:
        """Return pandas' windows, with exact moments where every window is full."""
        rolling = super().rolling(window, min_periods=min_periods, **given)
        if not isinstance(window, int) or given or min_periods not in (None, window):
            return rolling
        return Windows(self, window, rolling)


class Windows:
    """Windows of `size` values of a series; what is not here is pandas' own."""

    def __init__(self, series: pd.Series, size: int, rolling: Any) -> None:
        self._series = series
        self._size = size
        self._rolling = rolling

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rolling, name)

    def var(self, ddof: int = 1) -> pd.Series:
        """Return the variance, divided by the size less `ddof`."""
        divisor = self._size - ddof
        if divisor <= 0:
            return self._whole(np.full(self._count, np.nan))
        return self._whole(self._sums(2)[0] / divisor)

    def std(self, ddof: int = 1) -> pd.Series:
        """Return the root of `var`."""
        return self.var(ddof) ** 0.5

    def skew(self) -> pd.Series:
        """Return the sample skewness, without bias; 0 of equal values. Needs 3."""
        n = self._size
        if n < 3:
            return self._whole(np.full(self._count, np.nan))
        second, third = self._sums(2, 3)
        ratio = _ratio(third, second**1.5, 0.0)
        return self._whole(n * np.sqrt(n - 1) / (n - 2) * ratio)

    def kurt(self) -> pd.Series:
        """Return the sample excess kurtosis, without bias; -3 of equal values. Needs 4."""
        n = self._size
        if n < 4:
            return self._whole(np.full(self._count, np.nan))
        second, fourth = self._sums(2, 4)
        below = (n - 2) * (n - 3)
        ratio = _ratio(fourth, second**2, np.nan)
        found = n * (n + 1) * (n - 1) / below * ratio - 3 * (n - 1) ** 2 / below
        return self._whole(np.where(second == 0, -3.0, found))

    @property
    def _count(self) -> int:
        return max(len(self._series) - self._size + 1, 0)

    def _whole(self, found: Floats) -> pd.Series:
        missing = np.full(len(self._series) - len(found), np.nan)
        return Column(np.concatenate([missing, found]), index=self._series.index)

    def _sums(self, *powers: int) -> list[Floats]:
        """Return for each window the sums of powers of the distances from its mean."""
        found: list[Floats] = [np.empty(self._count) for _ in powers]
        for begin, windows in self._blocks():
            distances = windows - windows.mean(axis=1, keepdims=True)
            # A mean of equal values can differ from them in the last digit.
            distances[windows.max(axis=1) == windows.min(axis=1)] = 0.0
            for sums, power in zip(found, powers, strict=True):
                sums[begin : begin + len(windows)] = (distances**power).sum(axis=1)
        return found

    def _blocks(self) -> Iterator[tuple[int, Floats]]:
        if not self._count:
            return
        windows = sliding_window_view(self._series.to_numpy(np.float64), self._size)
        rows = max(_AT_ONCE // self._size, 1)
        for begin in range(0, self._count, rows):
            yield begin, windows[begin : begin + rows]


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    out = np.full(len(above), otherwise)
    np.divide(above, below, out=out, where=below != 0)
    return out
