"""Bars and withdrawals as they were observed, and which of them replace what is stored. Pure.

The rules, for each bar of each series:

1. A higher revision with other values replaces a lower one; the same values seen again change
   nothing, so that a session read again costs no writes.
2. Where a span is known to be settled, or final, an observation of a lower stage replaces nothing,
   whatever stage the stored bar itself was observed at. That is why rule 1 need not lift it.
3. A withdrawal is an observation like any other: the bar is gone until a higher revision has it.

What rule 1 gives up: of a provider that says A, then B, then A again, all in one stage, the B counts
if it is committed last. To remember each confirmation would write every bar of a session again; to
refuse whatever is older than the series' last answer would lose corrections of other spans. The next
stage sets it right, and of final values a verification.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marketdata.spans import Span
from marketdata.types import REVISION_STAGE, Bars, Bools, Floats, Int64s, Stage

Int32s = NDArray[np.int32]
_MOST: Final = np.iinfo(np.int64).max
_SECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Observed:
    """Bars of several series in columns, ascending by series, then time, each bar once.

    A withdrawn bar's values are NaN.
    """

    number: Int32s
    """For each bar the number of its series."""
    timestamp: Int64s
    values: Floats
    """Shape (7, n), as in `Bars`."""
    revision: Int64s
    withdrawn: Bools

    def __len__(self) -> int:
        return len(self.timestamp)

    @classmethod
    def empty(cls) -> Observed:
        return cls.of(0, Bars.empty(), np.empty(0, np.int64))

    @classmethod
    def of(cls, number: int, bars: Bars, revision: Int64s) -> Observed:
        """Return bars of one series."""
        count = len(bars)
        return cls(
            np.full(count, number, np.int32),
            bars.timestamp,
            bars.values,
            revision,
            np.zeros(count, np.bool_),
        )

    @classmethod
    def join(cls, parts: Sequence[Observed]) -> Observed:
        """Return all parts as one, in their order; `newest_of_each` sorts them."""
        parts = [part for part in parts if len(part)]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.empty()
        return cls(
            np.concatenate([p.number for p in parts]),
            np.concatenate([p.timestamp for p in parts]),
            np.concatenate([p.values for p in parts], axis=1),
            np.concatenate([p.revision for p in parts]),
            np.concatenate([p.withdrawn for p in parts]),
        )

    def take(self, chosen: Bools | Int64s) -> Observed:
        if chosen.dtype == np.bool_ and chosen.all():
            return self
        return Observed(
            self.number[chosen],
            self.timestamp[chosen],
            self.values[:, chosen],
            self.revision[chosen],
            self.withdrawn[chosen],
        )

    def newest_of_each(self) -> Observed:
        """Return these sorted, of each bar the highest revision, the later one given where equal."""
        order = newest_order(self.number, self.timestamp, self.revision)
        return self if order is None else self.take(order)

    def of_series(self, number: int) -> Observed:
        """Return the part of one series, as views."""
        low, high = np.searchsorted(self.number, (number, number + 1))
        return self.part(int(low), int(high))

    def within(self, span: Span) -> Observed:
        """Return what lies in `span`, as views; of one series only."""
        low, high = np.searchsorted(self.timestamp, span)
        return self.part(int(low), int(high))

    def part(self, low: int, high: int) -> Observed:
        of = slice(low, high)
        return Observed(
            self.number[of],
            self.timestamp[of],
            self.values[:, of],
            self.revision[of],
            self.withdrawn[of],
        )

    def live(self) -> Observed:
        """Return the bars without the withdrawals."""
        return self.take(~self.withdrawn) if self.withdrawn.any() else self

    def bars(self) -> Bars:
        """Return the bars of one series as such."""
        return Bars(self.timestamp, np.ascontiguousarray(self.values))


def newest_order(number: Int32s, timestamp: Int64s, revision: Int64s) -> Int64s | None:
    """Return the order that sorts by (series, timestamp) and keeps the highest revision of each
    bar, the later one given where equal; None if that is the order already."""
    rising = (number[1:] > number[:-1]) | (
        (number[1:] == number[:-1]) & (timestamp[1:] > timestamp[:-1])
    )
    if rising.all():
        return None
    order = np.lexsort((revision, timestamp, number))
    number, timestamp = number[order], timestamp[order]
    last = np.append((number[1:] != number[:-1]) | (timestamp[1:] != timestamp[:-1]), True)
    return np.asarray(order[last], np.int64)


class Decision(NamedTuple):
    """What to do with observed bars, each an array over them."""

    write: Bools
    """To be written: new, replacing, or of a stage that must be noted."""
    changes: Bools
    """Part of `write` after which a read answers differently."""
    had: Bools
    """Whether a bar was stored, and not withdrawn, under this label."""
    known: Bools
    """Whether anything was stored under this label, a withdrawal included."""

    def added(self, withdrawn: Bools) -> Int64s:
        """Return by how much each grows the number of stored bars: 1, 0 or -1."""
        now = np.where(self.write, ~withdrawn, self.had)
        return now.astype(np.int64) - self.had.astype(np.int64)


StageAt = Callable[[Int32s, Int64s], Int64s]
"""For bars, sorted by series' number and timestamp, the stages at which the spans they lie in are
held."""


def decide(new: Observed, stored: Observed, noted: Bools, stage_at: StageAt) -> Decision:
    """Return which of the `new` observations replace or add to what is stored.

    Parameters
    ----------
    new, stored : Observed
        Sorted, each bar once.
    noted : ndarray of bool
        Which of the new ones lie in spans that will be held at their stage: seen again with equal
        values they need not be written to lift the stored bar's own stage.
    stage_at : callable
        What holds already; asked only where an observation below `FINAL` would replace something.
    """
    if not len(stored):
        none = np.zeros(len(new), np.bool_)
        return Decision(~none, ~new.withdrawn, none, none)
    places, known = _find(new, stored)
    was_withdrawn = stored.withdrawn[places] & known
    higher = known & (new.revision > stored.revision[places])
    differs = _differ(new, stored, places, higher)
    stage = new.revision // REVISION_STAGE
    lifts = (
        higher
        & ~differs
        & (new.withdrawn | (~noted & _stage_grows(stage, stored.revision[places])))
    )
    replaces = higher & differs
    doubtful = np.flatnonzero(replaces & (stage < Stage.FINAL))
    if len(doubtful):
        held = stage_at(new.number[doubtful], new.timestamp[doubtful])
        replaces[doubtful] = stage[doubtful] >= held
    had = known & ~was_withdrawn
    changes = replaces | (~known & ~new.withdrawn)
    return Decision(~known | replaces | lifts, changes, had, known)


class Replaced(NamedTuple):
    """Observations with what each of them replaced: two of the same length."""

    new: Observed
    old: Observed


def replaced(new: Observed, stored: Observed, decision: Decision) -> Replaced:
    """Return the observations that replace a stored bar, or a withdrawal, with other values."""
    chosen = decision.changes & decision.known
    if not chosen.any():
        return Replaced(Observed.empty(), Observed.empty())
    replacing = new.take(chosen)
    places, _ = _find(replacing, stored)
    return Replaced(replacing, stored.take(places))


def _stage_grows(stage: Int64s, revision: Int64s) -> Bools:
    return np.asarray(stage > revision // REVISION_STAGE, np.bool_)


def _differ(new: Observed, stored: Observed, places: Int64s, where: Bools) -> Bools:
    """Return where the values, or being withdrawn, differ; False outside `where`."""
    found = np.zeros(len(new), np.bool_)
    at = np.flatnonzero(where)
    if len(at):
        there = places[at]
        one, other = new.values[:, at], stored.values[:, there]
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        found[at] = ~same.all(axis=0) | (new.withdrawn[at] != stored.withdrawn[there])
    return found


def _find(new: Observed, stored: Observed) -> tuple[Int64s, Bools]:
    """Return for each new bar its place among the stored ones, and whether it is there."""
    sought, among = _single_keys(new, stored)
    places = np.searchsorted(among, sought)
    np.minimum(places, len(among) - 1, out=places)
    return places, among[places] == sought


def _single_keys(*parts: Observed) -> list[NDArray[np.generic]]:
    """Return (series, timestamp) of each part as one number that sorts the same way."""
    first = min(int(p.timestamp.min()) for p in parts if len(p))
    last = max(int(p.timestamp.max()) for p in parts if len(p))
    most = max(int(p.number[-1]) for p in parts if len(p)) + 1
    unit = _SECOND
    if any(((p.timestamp - first) % _SECOND).any() for p in parts):
        unit = 1
    width = (last - first) // unit + 1
    if most * width <= _MOST:
        return [(p.number.astype(np.int64) * width + (p.timestamp - first) // unit) for p in parts]
    pairs = np.dtype([("number", np.int64), ("timestamp", np.int64)])  # slow, and next to never
    keys: list[NDArray[np.generic]] = []
    for part in parts:
        key = np.empty(len(part), pairs)
        key["number"], key["timestamp"] = part.number, part.timestamp
        keys.append(key)
    return keys


def apply(corrections: Observed, bars: Observed) -> Observed:
    """Return `bars` with `corrections` in their places, withdrawals included, sorted."""
    if not len(corrections):
        return bars
    if not len(bars):
        return corrections
    places, known = _find(corrections, bars)
    kept = np.ones(len(bars), np.bool_)
    kept[places[known]] = False
    both = Observed.join([bars.take(kept), corrections])
    return both.newest_of_each()
