"""What observed bars were before they became what they are. Pure.

A bar is **forming** until its interval is over, and is never stored then. It is stored as
**closed**; **revised** once it was asked for again after the provider's own early corrections; and
**final** when the correction period of its session is over. An answer without the bar is an
observation as well. Every observation with other values than the one before makes an entry of the
trail; the present values are with the bars themselves.

What was known at a moment follows from bars and trail: of each bar the newest revision observed by
then, where the first observation counts as known when the bar closed. So a history that was
backfilled later counts as known, and `Arrivals` says which bars that concerns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marketdata.spans import Span
from marketdata.types import (
    COLUMNS,
    DAY,
    HOUR,
    MINUTE,
    REVISION_STAGE,
    Bars,
    Bools,
    Floats,
    Int64s,
    Stage,
    Timeframe,
)

STATES: Final = {Stage.CLOSED: "closed", Stage.REVISED: "revised", Stage.FINAL: "final"}
"""How settled a stored bar is, in words."""
VERIFIED: Final = "verified"
"""What a final bar is that was found to differ and replaced."""
_PUNCTUAL: Final = 5 * MINUTE
"""A bar observed this soon after its close was observed when it closed."""
_LENGTHS: Final = {Timeframe.WEEK_1: 7 * DAY, Timeframe.MONTH_1: 31 * DAY}


def state_of(stage: int, before: int | None = None) -> str:
    """Return the state that an observation of `stage` leaves a bar in, which was of stage
    `before`."""
    if before == stage == Stage.FINAL:
        return VERIFIED
    return STATES[Stage(stage)]


def observed_us(revision: Int64s) -> Int64s:
    """Return when revisions were observed, microseconds; 0 where that is not known."""
    return revision % REVISION_STAGE * 1000


def punctual_until(timeframe: Timeframe) -> int:
    """Return for how long after its label a bar's first observation counts as punctual, where the
    provider gives bars as they close."""
    if timeframe.intraday:
        return timeframe.step + _PUNCTUAL
    return _LENGTHS.get(timeframe, DAY) + 12 * HOUR


@dataclass(frozen=True, slots=True)
class TrailEntries:
    """Entries of one series' trail in columns, ascending by label, then new revision.

    Each says that at `new_revision` something replaced what was there at `old_revision`.
    """

    timestamp: Int64s
    new_revision: Int64s
    old_revision: Int64s
    old_stage: Int64s
    """How settled the replaced bar was held to be; see `types.Stage`."""
    old_values: Floats
    """Shape (7, n), as in `Bars`; NaN where there was no bar."""
    new_values: Floats
    old_absent: Bools
    new_absent: Bools

    def __len__(self) -> int:
        return len(self.timestamp)

    @classmethod
    def empty(cls) -> TrailEntries:
        none, values = np.empty(0, np.int64), np.empty((len(COLUMNS), 0))
        flags = np.empty(0, np.bool_)
        return cls(none, none, none, none, values, values, flags, flags)

    def take(self, chosen: Bools | Int64s) -> TrailEntries:
        return TrailEntries(
            self.timestamp[chosen],
            self.new_revision[chosen],
            self.old_revision[chosen],
            self.old_stage[chosen],
            self.old_values[:, chosen],
            self.new_values[:, chosen],
            self.old_absent[chosen],
            self.new_absent[chosen],
        )


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Stretches of bars that were first observed long after their close, in columns."""

    first: Int64s
    """Label of the first bar."""
    last: Int64s
    observed: Int64s
    """Market time of the observation, microseconds."""

    @classmethod
    def empty(cls) -> Arrivals:
        none = np.empty(0, np.int64)
        return cls(none, none, none)

    def later(self, moment_us: int, labels: Span) -> Arrivals:
        """Return those observed after a moment that reach into `labels`."""
        chosen = (self.observed > moment_us) & (self.first < labels.end)
        chosen &= self.last >= labels.start
        return Arrivals(self.first[chosen], self.last[chosen], self.observed[chosen])

    def count(self, timestamp: Int64s) -> int:
        """Return how many of these labels, ascending, lie in any of the stretches."""
        if not len(self.first):
            return 0
        low = np.searchsorted(timestamp, self.first)
        high = np.searchsorted(timestamp, self.last, side="right")
        steps = np.zeros(len(timestamp) + 1, np.int64)
        np.add.at(steps, low, 1)
        np.add.at(steps, high, -1)
        return int(np.count_nonzero(np.cumsum(steps[:-1]) > 0))


@dataclass(frozen=True, slots=True)
class Trail:
    """What is known of one series' past, or of a span of it."""

    entries: TrailEntries = field(default_factory=TrailEntries.empty)
    arrivals: Arrivals = field(default_factory=Arrivals.empty)
    untrailed_until: int | None = None
    """Market time up to which values may have been replaced without an entry; None: never."""

    def complete_since(self, moment_us: int) -> bool:
        """Whether everything replaced after a moment has an entry."""
        return self.untrailed_until is None or self.untrailed_until <= moment_us


@dataclass(frozen=True, slots=True)
class Resting:
    """What an answer as of a moment rests on besides observations made by then."""

    late: int = 0
    """Stored bars that were first observed only after it."""
    untrailed: bool = False
    """Whether the newest revision had to be taken: the trail does not reach back so far."""
    arrivals: str = "0"
    """A word for when the late ones came; ``0`` without any."""
    closed_until: int = 0
    """The label before which bars had closed."""

    @classmethod
    def joined(cls, parts: Iterable[Resting | None]) -> Resting | None:
        """Return what an answer made of several parts rests on; None where no part says so."""
        known = [part for part in parts if part is not None]
        if len(known) < 2:
            return known[0] if known else None
        words = [part.arrivals for part in known]
        return cls(
            sum(part.late for part in known),
            any(part.untrailed for part in known),
            _word("|".join(words)) if any(word != "0" for word in words) else "0",
            max(part.closed_until for part in known),
        )


def as_of(bars: Bars, entries: TrailEntries, moment_us: int) -> Bars:
    """Return bars as they were known at a moment.

    Parameters
    ----------
    bars : Bars
        All that is stored now of a span.
    entries : TrailEntries
        At least all entries of those labels in the span that have one observed after the moment.

    Returns
    -------
    Bars
        Of each label the newest revision observed by then; where none was, what was observed
        first. Bars of their own memory, or `bars` itself where nothing differs.
    """
    if not len(entries):
        return bars
    first = np.flatnonzero(np.diff(entries.timestamp, prepend=entries.timestamp[0] - 1))
    last = np.append(first[1:], len(entries)) - 1
    known = np.where(observed_us(entries.new_revision) <= moment_us, np.arange(len(entries)), -1)
    newest = np.maximum.reduceat(known, first)
    differs = newest < last
    if not differs.any():
        return bars
    newest, first = newest[differs], first[differs]
    seen = newest >= 0
    chosen = np.where(seen, newest, first)
    absent = np.where(seen, entries.new_absent[chosen], entries.old_absent[chosen])
    values = np.where(seen, entries.new_values[:, chosen], entries.old_values[:, chosen])
    return _with(bars, entries.timestamp[chosen], values, absent)


def _with(bars: Bars, labels: Int64s, values: Floats, absent: Bools) -> Bars:
    """Return `bars` with other values under some labels, ascending, or without a bar there."""
    places = np.searchsorted(bars.timestamp, labels)
    there = np.zeros(len(labels), np.bool_)
    inside = places < len(bars)
    there[inside] = bars.timestamp[places[inside]] == labels[inside]
    timestamp, found = bars.timestamp.copy(), bars.values.copy()
    replaced = there & ~absent
    found[:, places[replaced]] = values[:, replaced]
    added, removed = ~there & ~absent, places[there & absent]
    if added.any():
        timestamp = np.insert(timestamp, places[added], labels[added])
        found = np.insert(found, places[added], values[:, added], axis=1)
        removed = removed + np.searchsorted(labels[added], bars.timestamp[removed])
    if len(removed):
        timestamp, found = np.delete(timestamp, removed), np.delete(found, removed, axis=1)
    return Bars(timestamp, np.ascontiguousarray(found))


def resting(
    trail: Trail, labels: Span, timestamp: Int64s, moment_us: int, closed_until: int
) -> Resting:
    """Return what the stored bars labelled `timestamp`, all those of `labels`, rest on."""
    late = trail.arrivals.later(moment_us, labels)
    word = "0"
    if len(late.first):
        columns: list[NDArray[np.int64]] = [
            np.maximum(late.first, labels.start),
            np.minimum(late.last, labels.end),
            late.observed,
        ]
        order = np.lexsort(columns)
        word = _word(b"".join(column[order].astype("<i8").tobytes() for column in columns))
    complete = trail.complete_since(moment_us)
    return Resting(late.count(timestamp), not complete, word, closed_until)


def _word(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return hashlib.blake2b(data, digest_size=4).hexdigest()
