"""Raw prices from Yahoo's: every split since is taken out again.

Yahoo applies each split to the whole history on its ex-date, so that a bar must be multiplied by
all splits after it, those after the window asked included.

What comes out is not bit-exact, and cannot be: Yahoo keeps prices as 32-bit floats (129.04 arrives
as 129.0399932861328) and volumes as whole numbers on today's basis. Therefore un-split prices are
rounded to four decimals (six below one dollar), finer than any US quote and coarser than that
noise up to about 800 dollars, and volumes to whole shares; behind a 1:10 reverse split a volume
has lost its last digit. Bars that no split follows are left bit for bit as they came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from marketdata.adjust import split_factors, unsplit_bars
from marketdata.brokers.yahoo_chart import unreadable
from marketdata.clock import Deadline, from_micros
from marketdata.types import CLOSE, DAY, OPEN, VOLUME, Bars, Floats, Split

_MEMORY: Final = 600.0
"""Seconds a symbol's splits are remembered, within one exchange day."""
_NOTABLE: Final = 1.5
_ADJACENT: Final = 7 * DAY


def to_raw(bars: Bars, splits: Sequence[Split]) -> Bars:
    """Return Yahoo's bars on the basis on which they were traded.

    Parameters
    ----------
    bars : Bars
        Ascending, as Yahoo gave them.
    splits : sequence of Split
        Every split after the first bar, up to today.

    Raises
    ------
    DataUnavailableError
        The bars jump at a split as if it had not been applied; a retry on another day may help.
    """
    _check_applied(bars, splits)
    raw = unsplit_bars(bars, splits)
    if raw is bars:
        return bars
    moved = split_factors(splits, bars.timestamp)[0] != 1.0
    prices = raw.values[OPEN : CLOSE + 1]
    prices[:, moved] = _rounded(prices[:, moved])
    raw.values[VOLUME, moved] = np.rint(raw.values[VOLUME, moved])
    return raw


def _rounded(prices: Floats) -> Floats:
    return np.where(prices >= 1.0, np.round(prices, 4), np.round(prices, 6))


def _check_applied(bars: Bars, splits: Sequence[Split]) -> None:
    """Refuse bars whose price drops at a split by about its ratio: Yahoo has named the split but
    not applied it yet, which happens on the ex-date."""
    for split in splits:
        after = int(np.searchsorted(bars.timestamp, split.ex_date))
        if not 0 < after < len(bars) or 1 / _NOTABLE < split.ratio < _NOTABLE:
            continue
        if bars.timestamp[after] - bars.timestamp[after - 1] > _ADJACENT:
            continue
        step = bars.values[CLOSE, after - 1] / bars.values[OPEN, after]
        if step > 0 and abs(np.log(step) / np.log(split.ratio) - 1) < 0.2:
            day = from_micros(split.ex_date + DAY // 2).date()
            raise unreadable(
                f"Yahoo names a {split.new:g}:{split.old:g} split on {day}, but its prices are "
                "not adjusted for it"
            )


class SplitBook:
    """Remembers each symbol's splits for a short while.

    Parameters
    ----------
    ask : callable
        ``ask(symbol, start, deadline)`` returns the splits with an ex-date from `start` to today.
    today : callable
        Today's exchange midnight: a new day forgets everything.
    """

    def __init__(
        self,
        ask: Callable[[str, int, Deadline], Sequence[Split]],
        today: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._today = today
        self._monotonic = monotonic
        self._known: dict[str, tuple[int, int, float, tuple[Split, ...]]] = {}

    def since(self, symbol: str, start: int, deadline: Deadline) -> tuple[Split, ...]:
        """Return the splits with an ex-date from `start` (microseconds UTC) to today."""
        known = self._known.get(symbol)
        if known is not None:
            first, today, until, splits = known
            if first <= start and today == self._today() and self._monotonic() < until:
                return tuple(s for s in splits if s.ex_date >= start)
        return self.learn(symbol, start, self._ask(symbol, start, deadline))

    def learn(self, symbol: str, start: int, splits: Sequence[Split]) -> tuple[Split, ...]:
        """Remember that these are all splits from `start` to today, and return them."""
        found = tuple(s for s in splits if s.ex_date >= start)
        self._known[symbol] = (start, self._today(), self._monotonic() + _MEMORY, found)
        return found

    def forget(self, symbol: str) -> None:
        self._known.pop(symbol, None)
