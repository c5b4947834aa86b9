"""What became of the rows of an import."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from marketdata.clock import from_micros

EXAMPLES: Final = 3
"""Rejected rows shown of each reason."""


@dataclass(slots=True)
class Kept:
    """What was kept of one symbol."""

    bars: int = 0
    first: int = 0
    last: int = 0


@dataclass(slots=True)
class ImportReport:
    """What became of the rows."""

    rows: int = 0
    kept: int = 0
    stored: int = 0
    """Bars handed to the store, those that it had already included."""
    flagged: int = 0
    """Kept although open or close lies outside the range from low to high."""
    cleared: int = 0
    """Values of vwap or trade count that were no such thing, now NaN."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason: those of `quality.gate`, ``symbol`` and ``malformed``."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first rejected rows of each reason."""
    symbols: dict[str, Kept] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Symbols that were left out, with the reason."""
    covered: int = 0
    """Series whose stated coverage was recorded."""
    unsplit: int = 0
    """Bars whose prices were multiplied back."""

    @property
    def complete(self) -> bool:
        return not self.rejected and not self.failed

    def summary(self) -> dict[str, str | int | float]:
        spans = [k for k in self.symbols.values() if k.bars]
        return {
            "rows": self.rows,
            "kept": self.kept,
            "stored": self.stored,
            "rejected": self.rejected.total(),
            **{f"rejected_{reason}": n for reason, n in sorted(self.rejected.items())},
            "flagged": self.flagged,
            "cleared": self.cleared,
            "symbols": len(spans),
            "symbols_failed": len(self.failed),
            "series_covered": self.covered,
            "first": from_micros(min(k.first for k in spans)).isoformat() if spans else "",
            "last": from_micros(max(k.last for k in spans)).isoformat() if spans else "",
        }

    def reject(self, reason: str, count: int) -> None:
        if count:
            self.rejected[reason] += count

    def show(self, reason: str, text: str) -> None:
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append(text)
