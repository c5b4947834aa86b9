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

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np

from marketdata.adjust import split_factors, unsplit_bars
from marketdata.brokers.yahoo_chart import Payment, unreadable
from marketdata.clock import Deadline, from_micros
from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.types import CLOSE, DAY, OPEN, VOLUME, Bars, Floats, Split

_MEMORY: Final = 600.0
"""Seconds a symbol's splits are remembered, within one exchange day."""
_NOTABLE: Final = 1.5
_ADJACENT: Final = 7 * DAY


@dataclass(frozen=True, slots=True)
class SplitList:
    """A symbol's splits, and why prices before them cannot be brought back to raw, if so."""

    splits: tuple[Split, ...]
    doubt: str | None = None


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
    doubt = doubt_applied(bars, splits)
    if doubt:
        raise unreadable(doubt)
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


def doubt_applied(bars: Bars, splits: Sequence[Split], today: int | None = None) -> str | None:
    """Return why a split may not have been applied to `bars` yet, or None.

    Yahoo names a split before it adjusts the history, at times by days. Then the price changes at
    the ex-date by about the ratio. Ratios below 3:2 cannot be told from an ordinary move.

    Parameters
    ----------
    bars : Bars
        Around the ex-dates, a running day included.
    today : int, optional
        Exchange midnight: a split of that day is in doubt until the day has a bar.
    """
    for split in splits:
        if 1 / _NOTABLE < split.ratio < _NOTABLE:
            continue
        after = int(np.searchsorted(bars.timestamp, split.ex_date))
        named = f"a {split.new:g}:{split.old:g} split on {_day(split)}"
        if after == len(bars) and today is not None and split.ex_date >= today:
            return f"Yahoo names {named}; whether its prices are adjusted shows after the open"
        if not 0 < after < len(bars):
            continue
        if bars.timestamp[after] - bars.timestamp[after - 1] > _ADJACENT:
            continue
        step = bars.values[CLOSE, after - 1] / bars.values[OPEN, after]
        if step > 0 and abs(np.log(step) / np.log(split.ratio) - 1) < 0.2:
            return f"Yahoo names {named}, but its prices are not adjusted for it"
    return None


def _day(split: Split) -> date:
    return from_micros(split.ex_date + DAY // 2).date()


def actions_of(
    symbol: str, splits: Sequence[Split], payments: Sequence[Payment]
) -> list[CorporateAction]:
    """Return splits and payments as corporate actions, ascending.

    Yahoo states a payment on today's share basis; it is multiplied by the splits after its
    ex-date, and is then on the basis of the session before it, on which it was declared. A split
    of the same day is not among them.
    """
    found = [
        CorporateAction(symbol, ActionKind.SPLIT, s.ex_date, new=s.new, old=s.old) for s in splits
    ]
    for paid in payments:
        later = math.prod(s.ratio for s in splits if s.ex_date > paid.ex_date)
        cash = paid.amount * later
        found.append(
            CorporateAction(
                symbol, ActionKind.CASH_DIVIDEND, paid.ex_date, cash=cash, special=paid.gain
            )
        )
    return sorted(found, key=lambda a: (a.ex_date, a.kind, a.special))


class SplitBook:
    """Remembers each symbol's splits for a short while; never a doubtful list.

    Parameters
    ----------
    ask : callable
        ``ask(symbol, start, deadline)`` returns the splits with an ex-date from `start` to today.
    today : callable
        Today's exchange midnight: a new day forgets everything.
    """

    def __init__(
        self,
        ask: Callable[[str, int, Deadline], SplitList],
        today: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._today = today
        self._monotonic = monotonic
        self._known: dict[str, tuple[int, int, float, tuple[Split, ...]]] = {}

    def since(self, symbol: str, start: int, deadline: Deadline) -> SplitList:
        """Return the splits with an ex-date from `start` (microseconds UTC) to today."""
        known = self._known.get(symbol)
        if known is not None:
            first, today, until, splits = known
            if first <= start and today == self._today() and self._monotonic() < until:
                return SplitList(tuple(s for s in splits if s.ex_date >= start))
        answer = self._ask(symbol, start, deadline)
        if answer.doubt:
            return answer
        return SplitList(self.learn(symbol, start, answer.splits))

    def learn(self, symbol: str, start: int, splits: Sequence[Split]) -> tuple[Split, ...]:
        """Remember that these are all splits from `start` to today, and return them."""
        found = tuple(s for s in splits if s.ex_date >= start)
        self._known[symbol] = (start, self._today(), self._monotonic() + _MEMORY, found)
        return found

    def forget(self, symbol: str) -> None:
        self._known.pop(symbol, None)
