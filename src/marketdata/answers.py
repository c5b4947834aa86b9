"""What a read returns, and who can be asked for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from marketdata.bar_history import Resting
from marketdata.clock import Deadline
from marketdata.errors import MarketDataError
from marketdata.fetching import Progress
from marketdata.keeping import FetchTrace
from marketdata.queries import BarsQuery
from marketdata.types import Bars


@dataclass(slots=True)
class SeriesAnswer:
    """Closed bars of one symbol, with where they came from."""

    bars: Bars
    tier: str
    """``redis``, ``postgres`` or ``broker``: the lowest tier that had to be asked."""
    revision: int
    fetched_us: int | None = None
    """Market time at which the broker last answered for this series, where that is known."""
    truncated: bool = False
    lineage: str = ""
    """Of a renamed instrument its symbols, ``FB<2022-06-09<META``."""
    pieces: tuple[tuple[str, int], ...] = ()
    """Of a renamed instrument the symbols that were read, with their revisions, ascending."""
    resting: Resting | None = None
    """Of a read as of an earlier moment: what it rests on besides what was observed by then."""
    late_actions: int = 0
    """Of a read as of an earlier moment: how many of the actions applied were observed later."""


@dataclass(slots=True)
class Answer:
    """What one read found."""

    series: dict[str, SeriesAnswer] = field(default_factory=dict)
    trace: FetchTrace = field(default_factory=FetchTrace)
    unknown: list[str] = field(default_factory=list)
    failed: dict[str, MarketDataError] = field(default_factory=dict)
    """Of a tolerant read: why the broker cannot supply these symbols. One that is among `series`
    too has fewer bars than asked for, because the broker reaches no further back."""
    served_by: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Provider and feed of the symbols that another broker than the query's own has answered."""


class Tolerance(Protocol):
    """What to do about a broker that may fail, where there is another one to ask."""

    def before_fetch(
        self, symbols: Sequence[str]
    ) -> tuple[Deadline, Mapping[str, MarketDataError]]:
        """Return until when the broker may be asked for what these symbols lack, and those that
        it is not to be asked for at all, with the reason."""
        ...


class ReadsBars(Protocol):
    """What answers a query: the reader of series, or the one of instruments before it."""

    def read(
        self,
        query: BarsQuery,
        deadline: Deadline,
        progress: Progress | None = None,
        *,
        tolerance: Tolerance | None = None,
    ) -> Answer:
        """See `reader.Reader.read`."""
        ...
