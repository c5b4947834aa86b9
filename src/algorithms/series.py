"""One series as the engine holds it: raw bars, when each closed, and what scales them as of a day.

Raw prices fill orders. What a strategy sees is scaled for the corporate actions whose ex-date has
come by then, and for no later one: at each ex-date the past is scaled anew (an *epoch*), so that
the newest price is always the one that trades, in a back-test as it was live on that day.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from algorithms.lines import NEVER, Floats, Int64s

OPEN, HIGH, LOW, CLOSE, VOLUME = range(5)
COLUMNS: Final = ("open", "high", "low", "close", "volume")


class AdjustmentStep(NamedTuple):
    """What bars before an ex-date are multiplied by; as `md.adjustment_steps` gives them."""

    time: int
    price_factor: float
    volume_factor: float


class ShareAction(NamedTuple):
    """What an ex-date does to a position.

    Attributes
    ----------
    time : int
        The exchange's midnight of the ex-date, microseconds UTC.
    kind : str
        As in `md.get_actions`.
    ratio : float
        New shares for each old one; 1 where the count stays.
    cash : float
        Paid for each share held before the ex-date.
    """

    time: int
    kind: str
    ratio: float = 1.0
    cash: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class BarArrays:
    """The bars of one series as an author's own indicator is given them: read-only arrays.

    Attributes
    ----------
    timestamp : ndarray of int64, shape (n,)
        Bar opens, microseconds UTC, ascending.
    open, high, low, close, volume : ndarray of float64, shape (n,)
    """

    timestamp: Int64s
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __len__(self) -> int:
        return len(self.timestamp)


class Series:
    """The bars of one symbol and timeframe.

    Attributes
    ----------
    size : int
        Bars held.
    labels, closes : ndarray of int64, shape (capacity,)
        Bar opens, and when each bar can be known; `NEVER` from `size` on.
    raw : ndarray of float64, shape (5, capacity)
        open, high, low, close, volume as traded.
    steps : tuple of AdjustmentStep
        Ascending.
    actions : tuple of ShareAction
        Ascending.
    """

    def __init__(
        self,
        symbol: str,
        timeframe: str,
        labels: Int64s,
        closes: Int64s,
        raw: Floats,
        steps: Sequence[AdjustmentStep] = (),
        actions: Sequence[ShareAction] = (),
    ) -> None:
        self.symbol = symbol
        self.timeframe = timeframe
        self.size = len(labels)
        self.labels = labels
        self.closes = np.append(closes, NEVER)
        self.raw = raw
        self.steps = tuple(sorted(steps))
        self.actions = tuple(sorted(actions, key=_by_time))
        self._scaled: tuple[int, Floats] = (0, raw)
        self._seen: dict[int, Int64s] = {}

    # ------------------------------------------------------------------------------ as of a day

    def epoch(self, now: int) -> int:
        """Return how many steps had come by an instant."""
        return sum(step.time < now for step in self.steps)

    def columns(self, epoch: int) -> Floats:
        """Return the five columns scaled by the first `epoch` steps; shared, not to be written."""
        if epoch == 0:
            return self.raw
        held, scaled = self._scaled
        if held != epoch or scaled.shape != self.raw.shape:
            scaled = self.raw.copy()
            scaled[:, : self.size] = self._scale(
                self.raw[:, : self.size], self.closes[: self.size], epoch
            )
            self._scaled = (epoch, scaled)
        return scaled

    def arrays(self, epoch: int, first: int, end: int) -> BarArrays:
        """Return the bars of these indices as an author's function sees them."""
        found = [column.view() for column in self.columns(epoch)[:, first:end]]
        labels = self.labels[first:end].view()
        for array in (labels, *found):
            array.flags.writeable = False
        return BarArrays(labels, *found)

    def seen_at(self, delay: int) -> Int64s:
        """Return when each bar can be seen that comes `delay` after its close."""
        if not delay:
            return self.closes
        if delay not in self._seen:
            self._seen[delay] = np.where(self.closes == NEVER, NEVER, self.closes + delay)
        return self._seen[delay]

    def opens_from(self, instant: int) -> int:
        """Return the label of the first bar from an instant on; `NEVER` where there is none."""
        at = int(self.labels[: self.size].searchsorted(instant))
        return int(self.labels[at]) if at < self.size else NEVER

    def closed_before(self, instant: int) -> int:
        """Return when the last bar that opened before an instant closed; `-NEVER` where none did."""
        at = int(self.labels[: self.size].searchsorted(instant))
        return int(self.closes[at - 1]) if at else -NEVER

    def split_between(self, after: int, until: int) -> float:
        """Return the shares one share became by splits with an ex-date in ``(after, until]``."""
        ratio = 1.0
        for action in self.actions:
            if after < action.time <= until:
                ratio *= action.ratio
        return ratio

    def set_actions(self, steps: Sequence[AdjustmentStep], actions: Sequence[ShareAction]) -> bool:
        """Say anew what happened to the shares; return whether prices are scaled otherwise."""
        other = self.steps != tuple(sorted(steps))
        self.steps, self.actions = tuple(sorted(steps)), tuple(sorted(actions, key=_by_time))
        if other:
            self._scaled = (0, self.raw)
        return other

    def _scale(self, raw: Floats, closes: Int64s, epoch: int) -> Floats:
        """Return the columns of bars, scaled. A bar's close is on the basis of its own moment."""
        scaled = raw.copy()
        end = len(closes)
        price = volume = 1.0
        # From the newest step back: each span between two ex-dates has one factor.
        for step in reversed(self.steps[:epoch]):
            start = int(np.searchsorted(closes, step.time))
            if (price, volume) != (1.0, 1.0):
                scaled[:VOLUME, start:end] *= price
                scaled[VOLUME, start:end] *= volume
            end = start
            price *= step.price_factor
            volume *= step.volume_factor
        scaled[:VOLUME, :end] *= price
        scaled[VOLUME, :end] *= volume
        return scaled

    # ------------------------------------------------------------------------------------ live

    def append(self, labels: Int64s, closes: Int64s, raw: Floats) -> int:
        """Add bars later than all held; return how many were. Earlier and repeated ones are left
        out: what a strategy has acted on does not change."""
        if self.size:
            fresh = labels > self.labels[self.size - 1]
            labels, closes, raw = labels[fresh], closes[fresh], raw[:, fresh]
        count = len(labels)
        if not count:
            return 0
        self._make_room(self.size + count)
        place = slice(self.size, self.size + count)
        self.labels[place] = labels
        self.raw[:, place] = raw
        held, scaled = self._scaled
        if held:
            scaled[:, place] = self._scale(raw, closes, held)
        # Last: a strategy that reads beside us sees a bar once all of it is there.
        for delay, seen in self._seen.items():
            seen[place] = closes + delay
        self.closes[place] = closes
        self.size += count
        return count

    def _make_room(self, needed: int) -> None:
        capacity = self.raw.shape[1]
        if needed <= capacity:
            return
        capacity = max(needed, capacity + capacity // 2, 1024)
        self.labels = _grown(self.labels, capacity, 0)
        self.closes = _grown(self.closes, capacity + 1, NEVER)
        self._seen.clear()
        self.raw = _grown_columns(self.raw, capacity)
        held, scaled = self._scaled
        self._scaled = (held, _grown_columns(scaled, capacity) if held else self.raw)


def fingerprint_of(series: Iterable[Series]) -> str:
    """Return what tells these bars, factors and actions from any others: a BLAKE2 digest.

    Equal for equal data, wherever they were read.
    """
    digest = hashlib.blake2b(digest_size=12)
    for one in series:
        digest.update(f"{one.symbol} {one.timeframe} {one.steps} {one.actions}".encode())
        digest.update(np.ascontiguousarray(one.labels[: one.size]))
        digest.update(np.ascontiguousarray(one.raw[:, : one.size]))
    return digest.hexdigest()


def _by_time(action: ShareAction) -> int:
    return action.time


def _grown(array: Int64s, capacity: int, filler: int) -> Int64s:
    grown = np.full(capacity, filler, np.int64)
    grown[: len(array)] = array
    return grown


def _grown_columns(columns: Floats, capacity: int) -> Floats:
    grown = np.full((len(columns), capacity), np.nan)
    grown[:, : columns.shape[1]] = columns
    return grown
