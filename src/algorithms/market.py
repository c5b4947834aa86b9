"""The market of one run: all its series, their indicators, and its sessions; shared by strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from algorithms.errors import AlgorithmError
from algorithms.hours import Hours, close_times, reaching
from algorithms.lines import NEVER, Int64s
from algorithms.series import AdjustmentStep, Series, ShareAction
from algorithms.studies import StudyBook

_AHEAD: Final = 35 * 86_400_000_000
"""How far sessions must be known beyond the newest bar: a month's bar closes with its last one."""

SeriesName = tuple[str, str]
"""Symbol and timeframe."""


@dataclass(frozen=True)
class Origin:
    """Where the bars of a run come from; part of its result."""

    fingerprint: str = ""
    simulated: bool = False
    provider: str = ""
    warnings: tuple[str, ...] = ()
    given: bool = False
    """Bars were given as a frame: what there is before them is not known."""


class MarketData:
    """Bars of a number of series, their corporate actions and indicators.

    Made by `algorithms.loading.load` from marketdata's tiers, or by `market_of` from frames.

    Attributes
    ----------
    series : dict of (symbol, timeframe) to Series
    hours : Hours
    session : str
    studies : StudyBook
    origin : Origin
    """

    def __init__(
        self,
        series: Mapping[SeriesName, Series],
        hours: Hours,
        session: str = "regular",
        origin: Origin | None = None,
    ) -> None:
        self.series = dict(series)
        self.hours = hours
        self.session = session
        self.origin = origin or Origin()
        self.studies = StudyBook(hours, whole=self.origin.given)
        self._ends = hours.ends(session)

    # ------------------------------------------------------------------------------- reading

    def of(self, symbol: str, timeframe: str) -> Series:
        """Return one series.

        Raises
        ------
        AlgorithmError
            It is not here.
        """
        found = self.series.get((symbol, timeframe))
        if found is None:
            raise AlgorithmError(
                f"no bars of {symbol} {timeframe} were given",
                cure="name it in symbols and timeframes of the algorithm",
            )
        return found

    def moments(self, symbols: Sequence[str], timeframe: str, after: int, until: int) -> Int64s:
        """Return when bars of any of these symbols close, in ``(after, until]``, ascending."""
        parts = []
        for symbol in symbols:
            series = self.of(symbol, timeframe)
            closes = series.closes[: series.size]
            low, high = np.searchsorted(closes, (after, until), side="right")
            parts.append(closes[low:high])
        return _union(parts)

    def day_end(self, now: int) -> int:
        """Return when an order for the day that is given now ends: with the session that trades,
        or the next one where none does; `NEVER` beyond the table of sessions."""
        at = int(np.searchsorted(self._ends, now, side="right"))
        return int(self._ends[at]) if at < len(self._ends) else NEVER

    def session_at(self, now: int) -> int:
        """Return the number of the session that a moment belongs to."""
        return int(np.searchsorted(self.hours.midnight, now, side="right")) - 1

    # --------------------------------------------------------------------------------- live

    def extend(self, bars: Mapping[SeriesName, tuple[Int64s, Any]]) -> int:
        """Add closed bars (labels, and columns of shape (5, n)); return how many were new."""
        count = 0
        for (symbol, timeframe), (labels, columns) in bars.items():
            if len(labels) and labels[-1] > self.hours.midnight[-1] - _AHEAD:
                self._reach(int(labels[-1]))
            closes = close_times(labels, timeframe, self.hours, self.session)
            count += self.of(symbol, timeframe).append(labels, closes, columns)
        return count

    def set_actions(
        self, symbol: str, steps: Sequence[AdjustmentStep], actions: Sequence[ShareAction]
    ) -> None:
        """Say anew what happened to a symbol's shares; indicators follow."""
        for (named, _), series in self.series.items():
            if named == symbol and series.set_actions(steps, actions):
                self.studies.forget(symbol)

    def _reach(self, instant: int) -> None:
        self.hours = self.studies.hours = reaching(self.hours, instant)
        self._ends = self.hours.ends(self.session)

    def until(self, instant: int) -> MarketData:
        """Return the market as it would be had nothing after `instant` happened."""
        kept = {}
        for name, series in self.series.items():
            size = int(np.searchsorted(series.closes[: series.size], instant, side="right"))
            kept[name] = Series(
                series.symbol,
                series.timeframe,
                series.labels[:size].copy(),
                series.closes[:size].copy(),
                np.ascontiguousarray(series.raw[:, :size]),
                [step for step in series.steps if step.time <= instant],
                [action for action in series.actions if action.time <= instant],
            )
        return MarketData(kept, self.hours, self.session, self.origin)

    @property
    def bars(self) -> int:
        return sum(series.size for series in self.series.values())

    # ------------------------------------------------------------------------------- pickling

    def __getstate__(self) -> dict[str, Any]:
        # Indicators are computed again where they are wanted.
        return {
            "series": self.series, "hours": self.hours, "session": self.session,
            "origin": self.origin,
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _union(parts: Sequence[Int64s]) -> Int64s:
    if len(parts) == 1:
        return parts[0]
    found: Int64s = np.empty(0, np.int64)
    # Pairwise: series of one timeframe have nearly the same closes, so the union stays small.
    for part in parts:
        if len(part) == len(found) and np.array_equal(part, found):
            continue
        found = np.asarray(np.union1d(found, part), np.int64)
    return found
