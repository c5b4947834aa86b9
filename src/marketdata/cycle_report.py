"""What one cycle of the aggregator did, while it does it and afterwards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from marketdata.keeping import FetchTrace
from marketdata.planning import Fetch
from marketdata.types import SeriesKey, Timeframe


@dataclass(frozen=True, slots=True)
class Failure:
    """One request of a cycle that failed; the next cycle asks again."""

    symbols: tuple[str, ...]
    timeframe: Timeframe
    error: str
    """Name of the error's class."""
    message: str
    transient: bool

    @classmethod
    def of(cls, fetch: Fetch, error: Exception) -> Failure:
        message = getattr(error, "message", str(error))
        transient = bool(getattr(error, "transient", True))
        symbols = tuple(key.symbol for key in fetch.keys)
        return cls(symbols, fetch.base, type(error).__name__, message, transient)


@dataclass(frozen=True, slots=True)
class CycleReport:
    """What one cycle did."""

    now_us: int
    """Market time at its start, microseconds UTC."""
    series: int
    """Stored series wanted."""
    due: int
    """Series of which anything had to be read."""
    fetches: int
    calls: int
    """Pages asked of the broker."""
    bars: int
    """Bars stored, those read again included."""
    changed: int
    """Series with new or changed bars."""
    indicators: int
    """Series whose indicators were brought up to date."""
    blocks_grown: int
    blocks_rebuilt: int
    blocks_lost: int
    """Series without a block in the cache at the end of the cycle; their next read makes it."""
    withdrawn: int
    """Stored bars that the provider no longer has."""
    suspicious: int
    """Series of which so many bars were missing that they were kept."""
    postponed: int
    """Fetches left to the next cycle for lack of time."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    """Symbols that the broker refuses or does not know."""
    failed: tuple[Failure, ...] = ()
    stopped: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage; ``total`` is the whole cycle, the others overlap."""

    def summary(self) -> dict[str, str | int | float]:
        """Return the report as flat numbers and words."""
        numbers: dict[str, str | int | float] = {name: getattr(self, name) for name in _COUNTS}
        numbers["stopped"] = self.stopped
        numbers["rejected"] = sum(self.rejected.values())
        numbers["unknown"] = len(self.unknown)
        numbers["failed"] = sum(len(f.symbols) for f in self.failed)
        if self.failed:
            numbers["error"] = f"{self.failed[0].error}: {self.failed[0].message}"[:200]
        if self.unknown:
            numbers["unknown_symbols"] = " ".join(self.unknown[:20])
        numbers |= {f"seconds_{stage}": round(s, 3) for stage, s in self.seconds.items()}
        return numbers


_COUNTS: Final = (
    "series", "due", "fetches", "calls", "bars", "changed", "indicators", "blocks_grown",
    "blocks_rebuilt", "blocks_lost", "withdrawn", "suspicious", "postponed",
)  # fmt: skip


@dataclass(slots=True)
class CycleTally:
    """The report while it is being made."""

    began: float = field(default_factory=monotonic)
    fetches: int = 0
    calls: int = 0
    bars: int = 0
    indicators: int = 0
    grown: int = 0
    rebuilt: int = 0
    withdrawn: int = 0
    suspicious: int = 0
    postponed: int = 0
    due: set[SeriesKey] = field(default_factory=set)
    changed: set[SeriesKey] = field(default_factory=set)
    lost: dict[SeriesKey, None] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    failed: list[Failure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time spent inside under `name`."""
        began = monotonic()
        try:
            yield
        finally:
            self.seconds[name] += monotonic() - began

    def fetched(self, trace: FetchTrace) -> None:
        """Add what one fetch did."""
        self.fetches += 1
        self.calls += trace.pages
        self.bars += trace.bars
        self.withdrawn += trace.withdrawn
        self.suspicious += trace.suspicious
        self.rejected.update(trace.rejected)

    def report(
        self, now_us: int, series: int, unknown: tuple[str, ...], *, stopped: bool
    ) -> CycleReport:
        """Return the report of a cycle that has ended."""
        self.seconds["total"] = monotonic() - self.began
        return CycleReport(
            now_us=now_us,
            series=series,
            due=len(self.due),
            fetches=self.fetches,
            calls=self.calls,
            bars=self.bars,
            changed=len(self.changed),
            indicators=self.indicators,
            blocks_grown=self.grown,
            blocks_rebuilt=self.rebuilt,
            blocks_lost=len(self.lost),
            withdrawn=self.withdrawn,
            suspicious=self.suspicious,
            postponed=self.postponed,
            rejected=dict(self.rejected),
            unknown=unknown,
            failed=tuple(self.failed),
            stopped=stopped,
            seconds=dict(self.seconds),
        )
