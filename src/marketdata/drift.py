"""How stored bars differ from the broker's: counted, sized, reported. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marketdata.errors import MarketDataError
from marketdata.spans import Span
from marketdata.types import COLUMNS, Bars, Bools, Floats, SeriesKey


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
