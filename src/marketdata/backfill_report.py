"""What a backfill is asked, plans, reports and shows while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from marketdata.backfill_plan import Audit, Chunk, Scope
from marketdata.backfill_price import DONE, NOTHING, Forecast, Price
from marketdata.ranges import Moment
from marketdata.types import SeriesKey, Timeframe

MAX_SYMBOLS: Final = 50
NIGHT_ENDS: Final = "06:00"
"""When a nightly run ends, in the exchange's zone."""

Ended = Literal["complete", "max-symbols", "max-calls", "until", "stopped"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a backfill is asked to fill."""

    symbols: tuple[str, ...] | None = None
    """None: those somebody is subscribed to, by priority; where nobody is, those stored."""
    timeframes: tuple[Timeframe, ...] | None = None
    """None: days and minutes; of subscribed symbols the minutes only where somebody wants bars
    shorter than a day."""
    years: float | None = None
    """Years before now; None and no `start`: what ``MARKETDATA_BACKFILL_YEARS`` says."""
    start: Moment | None = None
    end: Moment | None = None
    feed: str | None = None
    retry_failed: bool = False
    """Do not wait for the next retry of what failed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where one run ends, whatever is left."""

    max_symbols: int = MAX_SYMBOLS
    """Symbols whose intraday bars are filled; 0 is all. Days are filled for all symbols."""
    max_calls: int | None = None
    """Broker requests."""
    until: str | None = None
    """``HH:MM`` in the exchange's zone."""


NIGHTLY: Final = Limits(until=NIGHT_ENDS)


@dataclass(frozen=True, slots=True)
class BackfillPlan:
    """What a run would do, found without asking the broker."""

    scope: Scope
    audit: Audit
    chunks: tuple[Chunk, ...]
    """Of this run, in their order."""
    this_run: Price
    later: Price
    """What the limit of symbols leaves to later runs."""
    calls_a_minute: int
    """What the request budget leaves to background work."""
    forecast: Forecast
    failed_before: frozenset[SeriesKey] = frozenset()
    """Stored series of which something could not be fetched by an earlier run."""

    def summary(self) -> dict[str, str | int | float]:
        """Return the plan's figures as one flat record."""
        finished = self.forecast.finished
        return {
            "symbols": len({k.symbol for k in self.scope.series}),
            "calls": self.this_run.calls,
            "bars": self.this_run.bars,
            "bytes": self.this_run.bytes,
            "minutes": round(self.this_run.minutes, 1),
            "chunks": self.this_run.chunks,
            "calls_later": self.later.calls,
            "bars_later": self.later.bars,
            "nights": self.forecast.nights,
            "finished": finished.isoformat() if finished else "",
            "brought_forward_by": self.forecast.brought_forward_by,
        }


@dataclass(frozen=True, slots=True)
class Failed:
    """A series that could not be filled."""

    key: SeriesKey
    error: str
    retry_us: int
    """Market time before which no run tries again."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What one run stored of one series."""

    key: SeriesKey
    bars: int
    sessions: int
    expected_sessions: int
    """Sessions of the calendar, from the first of these bars on."""
    doubt: str = ""
    """What is not plausible about it; empty where nothing is."""


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """What a run did, and what is left."""

    ended: Ended
    filled: tuple[Filled, ...] = ()
    failed: tuple[Failed, ...] = ()
    """Series that failed, now or before, and wait for their next retry."""
    gaps_left: tuple[SeriesKey, ...] = ()
    """Series that were to be complete after this run and are not, though nothing failed."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    calls: int = 0
    planned_calls: int = 0
    bars: int = 0
    seconds: float = 0.0
    left: Price = NOTHING
    forecast: Forecast = DONE

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped it."""
        return self.ended == "stopped"

    @property
    def complete(self) -> bool:
        """Whether all it set out to do is stored."""
        return not self.failed and not self.gaps_left

    def summary(self) -> dict[str, str | int | float]:
        """Return the run's figures as one flat record."""
        finished = self.forecast.finished
        return {
            "ended": self.ended,
            "series": len(self.filled),
            "bars": self.bars,
            "calls": self.calls,
            "planned_calls": self.planned_calls,
            "seconds": round(self.seconds, 3),
            "bars_a_second": round(self.bars / self.seconds) if self.seconds else 0,
            "failed": len(self.failed),
            "gaps_left": len(self.gaps_left),
            "doubtful": sum(bool(f.doubt) for f in self.filled),
            "rejected": sum(self.rejected.values()),
            "symbols_left": self.left.symbols,
            "calls_left": self.left.calls,
            "bars_left": self.left.bars,
            "finished": finished.isoformat() if finished else "",
        }


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """How far a run has come."""

    now: str
    """What is being fetched, in words."""
    done: float
    """Share of the plan, 0 to 1."""
    calls: int
    bars: int
    seconds: float
    failed: int

    @property
    def bars_a_second(self) -> float:
        return self.bars / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds at the pace so far; None before there is one."""
        return self.seconds * (1 - self.done) / self.done if self.done > 0.01 else None


OnProgress = Callable[[BackfillProgress], None]
