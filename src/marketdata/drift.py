"""How stored bars differ from the broker's: counted, sized, reported. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from marketdata.action_steps import Doubt
from marketdata.errors import MarketDataError
from marketdata.spans import Span
from marketdata.types import COLUMNS, Bars, Bools, Floats, SeriesKey

BARS: Final = "bars"
"""In counts by field: any of the columns, or the bar as such; each bar once."""
WITHDRAWN: Final = "withdrawn"
RETURNED: Final = "returned"
"""A bar that had been withdrawn."""
APPEARED: Final = "appeared"
"""A bar where an earlier answer had none."""
FIELDS: Final = (BARS, *COLUMNS, WITHDRAWN, RETURNED, APPEARED)


class DriftCount(NamedTuple):
    """How many observed bars replaced stored ones, of one kind of series, stage and field."""

    provider: str
    feed: str
    timeframe: str
    stage: str
    """From what to what, such as ``closed->revised``."""
    field: str
    """One of `FIELDS`."""
    bars: int
    largest: float
    """The largest relative change; 0.0 where the field has no size."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A bar that the provider has withdrawn."""

    key: SeriesKey
    label: int
    observed_us: int
    """Market time at which an answer first, or last, was without it."""


@dataclass(frozen=True, slots=True)
class TrailLength:
    """How much of a series' trail there is."""

    key: SeriesKey
    entries: int
    bars: int
    """Bars with an entry at least."""
    newest_us: int
    """Market time of the newest observation that changed something."""


def changes_by_field(
    old: Floats, new: Floats, old_absent: Bools, new_absent: Bools, unseen: Bools
) -> dict[str, tuple[int, float]]:
    """Count what differs between bars and what they replaced.

    Parameters
    ----------
    old, new : ndarray, shape (7, n)
    old_absent, new_absent : ndarray of bool
        Where there was, or is, no bar.
    unseen : ndarray of bool
        Of the absent old ones: there never was one.

    Returns
    -------
    dict
        By field the number of bars, and the largest relative change; only fields that changed.
    """
    found = {BARS: (old.shape[1], 0.0)}
    both = ~old_absent & ~new_absent
    for name, before, after in zip(COLUMNS, old[:, both], new[:, both], strict=True):
        differs = (before != after) & ~(np.isnan(before) & np.isnan(after))
        if differs.any():
            found[name] = int(np.count_nonzero(differs)), _largest_share(before, after, differs)
    flags = (
        (WITHDRAWN, new_absent),
        (RETURNED, old_absent & ~unseen),
        (APPEARED, old_absent & unseen),
    )
    for name, flag in flags:
        if flag.any():
            found[name] = int(np.count_nonzero(flag)), 0.0
    return found


def by_stage_and_field(counts: Iterable[DriftCount]) -> list[DriftCount]:
    """Add up the counts of all feeds and timeframes of each provider, in the order of stages and
    of `FIELDS`."""
    found: dict[tuple[str, str, int], DriftCount] = {}
    for each in counts:
        key = each.provider, each.stage, FIELDS.index(each.field)
        known = found.get(key)
        found[key] = each._replace(
            feed="",
            timeframe="",
            bars=each.bars + (0 if known is None else known.bars),
            largest=max(each.largest, 0.0 if known is None else known.largest),
        )
    return [found[key] for key in sorted(found)]


def _largest_share(before: Floats, after: Floats, chosen: Bools) -> float:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares = np.abs(after[chosen] - before[chosen]) / np.abs(before[chosen])
    finite = shares[np.isfinite(shares)]
    return float(finite.max()) if len(finite) else 0.0


@dataclass(frozen=True, slots=True)
class FieldDrift:
    """How one column differs."""

    field: str
    bars: int
    largest_absolute: float
    largest_relative: float
    """Of the stored value; NaN on one side only counts as a bar and has no size."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A stretch of one series that differs."""

    key: SeriesKey
    span: Span
    changed: int
    """Bars with another value."""
    missing_here: int
    """Bars the broker has and the store has not."""
    missing_there: int
    """Bars the store has and the broker has not."""


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A stretch that could not be compared."""

    key: SeriesKey
    span: Span
    error: MarketDataError


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a comparison found."""

    series: int = 0
    stretches: int = 0
    """Sessions (months, for days) of series that were compared."""
    bars: int = 0
    fields: tuple[FieldDrift, ...] = ()
    drifts: tuple[Drift, ...] = ()
    missing_here: int = 0
    missing_there: int = 0
    corrected: int = 0
    """Bars stored anew."""
    withdrawn: int = 0
    """Bars taken out."""
    suspicious: tuple[SeriesKey, ...] = ()
    """Series of which the broker lacks more than is believed: nothing was taken out."""
    failed: tuple[Unchecked, ...] = ()
    counts: tuple[DriftCount, ...] = ()
    """How many observed bars replaced stored ones so far, of all series of the provider and feed."""
    trails: tuple[TrailLength, ...] = ()
    """Of the series asked about: how often bars were replaced, the busiest first."""
    tombstones: tuple[Tombstone, ...] = ()
    """Of the series asked about: the bars that the provider has withdrawn."""
    doubts: tuple[Doubt, ...] = ()
    """Of the symbols compared: corporate actions that prices cannot be adjusted across."""
    stopped: bool = False
    calls: int = 0
    seconds: float = 0.0

    @property
    def drifted(self) -> bool:
        """Whether anything differs."""
        return bool(self.drifts)

    def summary(self) -> dict[str, str | int | float]:
        """Return the figures as one flat record."""
        return {
            "series": self.series,
            "stretches": self.stretches,
            "bars": self.bars,
            "changed": sum(d.changed for d in self.drifts),
            "missing_here": self.missing_here,
            "missing_there": self.missing_there,
            "corrected": self.corrected,
            "withdrawn": self.withdrawn,
            "suspicious": len(self.suspicious),
            "failed": len(self.failed),
            "replaced_so_far": sum(each.entries for each in self.trails),
            "tombstones": len(self.tombstones),
            "doubts": len(self.doubts),
            "calls": self.calls,
            "seconds": round(self.seconds, 3),
        }


class Comparison:
    """Compares series with the broker's answers and adds up how they differ."""

    def __init__(self) -> None:
        self.series: set[SeriesKey] = set()
        self.stretches = 0
        self.bars = 0
        self.drifts: list[Drift] = []
        self._sums = {name: _FieldSum() for name in COLUMNS}

    def add(self, key: SeriesKey, span: Span, ours: Bars, theirs: Bars) -> Bars:
        """Compare all stored bars of `span` with all the broker has; return those of the broker's
        that are not stored as they are. Both ascend and are unique."""
        self.series.add(key)
        self.stretches += 1
        self.bars += len(ours)
        here = np.isin(ours.timestamp, theirs.timestamp, assume_unique=True)
        there = np.isin(theirs.timestamp, ours.timestamp, assume_unique=True)
        old, new = ours.values[:, here], theirs.values[:, there]
        differs = (old != new) & ~(np.isnan(old) & np.isnan(new))
        for row, found in enumerate(self._sums.values()):
            found.add(old[row], new[row], differs[row])
        changed = differs.any(axis=0)
        absent = int(np.count_nonzero(~there)), int(np.count_nonzero(~here))
        drift = Drift(key, span, int(np.count_nonzero(changed)), *absent)
        if drift.changed or drift.missing_here or drift.missing_there:
            self.drifts.append(drift)
        wrong = ~there
        wrong[np.flatnonzero(there)[changed]] = True
        return theirs.take(wrong)

    def fields(self) -> tuple[FieldDrift, ...]:
        """Return the columns that differ anywhere."""
        return tuple(
            FieldDrift(name, found.bars, found.absolute, found.relative)
            for name, found in self._sums.items()
            if found.bars
        )


@dataclass(slots=True)
class _FieldSum:
    bars: int = 0
    absolute: float = 0.0
    relative: float = 0.0

    def add(self, old: Floats, new: Floats, chosen: Bools) -> None:
        count = int(np.count_nonzero(chosen))
        if not count:
            return
        self.bars += count
        sizes = np.abs(new[chosen] - old[chosen])
        if np.isnan(sizes).all():
            return
        self.absolute = max(self.absolute, float(np.nanmax(sizes)))
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = sizes / np.abs(old[chosen])
        finite = shares[np.isfinite(shares)]
        if len(finite):
            self.relative = max(self.relative, float(finite.max()))
