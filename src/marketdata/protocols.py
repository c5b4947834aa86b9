"""Every port of the library, each with its post-conditions.

The reader and the planner see these and nothing of Redis, PostgreSQL, Alpaca or Yahoo. One
contract suite per port runs against every implementation (``tests/contracts``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from marketdata.clock import Deadline
from marketdata.errors import MarketDataError
from marketdata.spans import Span
from marketdata.types import Bars, Int64s, SeriesKey, Split, Timeframe

# --------------------------------------------------------------------------------------- cache


@dataclass(frozen=True, slots=True)
class CachedBlock:
    """The newest bars of one series and the span for which they are complete."""

    covered: Span
    revision: int
    """The store's revision of the base series at which these bars were read."""
    bars: Bars
    base: Timeframe | None = None
    """Timeframe of the stored series the bars were derived from; None is the block's own."""
    fetched_us: int | None = None
    """Market time at which the provider last answered for the stored series."""


@dataclass(frozen=True, slots=True)
class BlockGrowth:
    """What one commit adds to the block of a stored series."""

    previous: int
    """The revision of the series before the commit: only a block of just this one may grow."""
    revision: int
    covered: Span
    """The span the commit covers; with what the block covers it makes one span."""
    bars: Bars
    """New bars and changed ones; the bars of the block that are not among them are as they were."""
    fetched_us: int | None = None


class BarCache(Protocol):
    """Short-lived copies of the newest bars. No method raises for a cache that is down or damaged."""

    def get(
        self, keys: Sequence[SeriesKey], base: Timeframe | None = None
    ) -> dict[SeriesKey, CachedBlock]:
        """Return the valid blocks derived from the stored series of timeframe `base` (None: of
        the key's own timeframe).

        Whatever is absent, damaged, old, of another store, or below the revision floor of its
        base series is left out (and removed where it is damaged), and so is a block whose floor
        the cache has lost. The arrays are read-only.
        """
        ...

    def put(self, blocks: Mapping[SeriesKey, CachedBlock], ttl: Mapping[SeriesKey, float]) -> int:
        """Store blocks for about `ttl` seconds each, a day at most; return how many. A block never replaces one of
        a higher revision, nor goes below the floor of its base series; it raises that floor to
        its own revision."""
        ...

    def grow(
        self, growths: Mapping[SeriesKey, BlockGrowth], ttl: Mapping[SeriesKey, float]
    ) -> dict[SeriesKey, int]:
        """Add to the blocks of stored series what commits have added to these, without writing
        them anew; they then live for about `ttl` seconds from now.

        Return for each series the bytes that have been added to its block since it was put; 0
        where nothing was added, because there is no block of just the revision before, or its
        floor is lost or higher: what is there stays, and a `put` makes it good.
        """
        ...

    def raise_floor(self, revisions: Mapping[SeriesKey, int]) -> None:
        """Make every block read or derived from these stored series at a lower revision a miss,
        before the store commits. Where the cache cannot be reached this is logged and made good
        when it comes back; what other processes serve meanwhile is bounded by the blocks' ttl."""
        ...


# --------------------------------------------------------------------------------------- store


@dataclass(frozen=True, slots=True)
class SeriesState:
    """What the store knows about a series."""

    coverage: list[Span] = field(default_factory=list)
    """Normal list: the spans for which the provider has answered completely."""
    revision: int = 0
    """Grows by one with every commit that changed bars or coverage; 0 for a series never written."""
    unsettled: list[Span] = field(default_factory=list)
    """Normal list, part of `coverage`: bars that were only observed before the provider's own early
    corrections."""
    first_bar: int | None = None
    last_bar: int | None = None
    fetched_us: int | None = None
    """Market time at which the provider last answered for this series."""
    final: list[Span] = field(default_factory=list)
    """Normal list, part of `coverage`: observed when the provider's correction period was over."""
    sealed: list[Span] = field(default_factory=list)
    """Normal list: whole sessions whose bars are stored as sealed chunks."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Bars of one series and the span they answer completely, to be stored together."""

    key: SeriesKey
    bars: Bars
    covered: Span
    observed_us: int
    """Market time at which the provider was asked; stage and revision derive from it."""
    settled_until: int | None = None
    """Bars before this instant were observed after the provider's own early corrections; None
    settles nothing."""
    final_until: int | None = None
    """Bars before this instant belong to sessions whose correction period is over."""
    withdrawn: Int64s | None = None
    """Labels inside `covered` of stored bars that the provider no longer has."""
    sealed: bool = False
    """Whether the bars may go straight to sealed chunks: whole sessions, final, intraday."""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    key: SeriesKey
    span: Span


class BeforeCommit(Protocol):
    def __call__(self, revisions: Mapping[SeriesKey, int], /) -> None: ...


class BarStore(Protocol):
    """The durable tier. Every method may raise `StoreError`."""

    @property
    def epoch(self) -> int:
        """A number drawn when the schema was made: blocks of another store never match."""
        ...

    def states(self, keys: Sequence[SeriesKey]) -> dict[SeriesKey, SeriesState]:
        """Return the state of every key; a series never written has the empty state."""
        ...

    def read(self, requests: Sequence[ReadRequest]) -> dict[SeriesKey, tuple[SeriesState, Bars]]:
        """Return state and bars of each request from one snapshot.

        Bars are ascending, unique, labelled within the request's span, and own their memory.
        """
        ...

    def commit(
        self, commits: Sequence[Commit], before_commit: BeforeCommit | None = None
    ) -> dict[SeriesKey, int]:
        """Store bars and coverage of all `commits` in one transaction; return new revisions.

        A stored bar is replaced only by a higher revision with other values; one inside `covered`
        that the new answer lacks stays. Coverage is merged in SQL, so that concurrent writers lose
        nothing. What is covered for the first time is unsettled from `settled_until` on, until a
        commit that covers it settles it; what is settled stays so; the same holds for `final_until`
        and ``final``. Bars named in `withdrawn` are no longer read, unless a later observation has
        them again. `before_commit` is called with the new revisions after the writes and before
        COMMIT. On any error nothing is stored.
        """
        ...


@dataclass(frozen=True, slots=True)
class FlightTicket:
    """A claim on fetching some series: those we lead, and those somebody else already fetches."""

    id: str
    led: list[SeriesKey]
    others: dict[SeriesKey, str]
    """Series in flight elsewhere, each with the id of the flight to wait for."""


@dataclass(frozen=True, slots=True)
class FlightOutcome:
    """What became of a flight: ``error`` is None where it landed."""

    error: MarketDataError | None = None
    span: Span | None = None
    """The span the flight was asked for: its error concerns this span only."""
    lost: bool = False
    """The flight's lease ran out, or its record is gone: nobody knows; start anew."""


class FlightLog(Protocol):
    """Cross-process single flight: at most one live lease per series, times by the store's clock."""

    def board(self, keys: Sequence[SeriesKey], span: Span, lease: float) -> FlightTicket:
        """Claim each key that is not in flight (or whose lease ran out), in one statement."""
        ...

    def renew(self, ticket: FlightTicket, lease: float) -> bool:
        """Extend the lease; False where it was lost to somebody else."""
        ...

    def land(self, ticket: FlightTicket, error: MarketDataError | None) -> None:
        """End the flight and leave its outcome for those who wait. Idempotent."""
        ...

    def outcome(self, flights: Mapping[SeriesKey, str]) -> dict[SeriesKey, FlightOutcome]:
        """Return the outcomes of those flights that have ended."""
        ...


class RateBudget(Protocol):
    """One request budget per credential, shared by every process on the same store."""

    def take(self, credential: str, limit_per_minute: int, reserve: int = 0) -> float:
        """Take one request from the budget, if more than `reserve` of the last minute's are left:
        background work gives way to live traffic with a reserve.

        Returns
        -------
        float
            0.0 if granted; otherwise the seconds to wait before asking again (nothing taken).
        """
        ...

    def pause(self, credential: str, seconds: float) -> None:
        """Grant nothing for `seconds`: the broker said when it will answer again."""
        ...


ActionKind = Literal["split", "dividend"]


class ActionStore(Protocol):
    """Corporate actions, kept with the time they were fetched. Every method may raise `StoreError`."""

    def splits(self, provider: str, symbols: Sequence[str]) -> dict[str, list[Split]]:
        """Return the known splits of each symbol, ascending by ex-date."""
        ...

    def checked(
        self, provider: str, symbols: Sequence[str], kind: ActionKind = "split"
    ) -> dict[str, tuple[Span, int]]:
        """Return, for symbols ever asked about actions of this kind, the ex-date span asked and the
        market time of asking."""
        ...

    def record(
        self,
        provider: str,
        splits: Mapping[str, Sequence[Split]],
        asked: Span,
        observed_us: int,
        kind: ActionKind = "split",
    ) -> None:
        """Store what the broker answered for every symbol of `splits` over `asked`: new splits
        are added, changed ones corrected, in one transaction with the span asked.

        A dividend is not a `Split`: of that kind only the asking can be recorded so far.
        """
        ...


# -------------------------------------------------------------------------------------- broker


@dataclass(frozen=True, slots=True)
class BaseTimeframe:
    """One way to obtain a timeframe: fetch `base` (and derive), for bars up to `max_age` old."""

    base: Timeframe
    max_age: int | None
    """Microseconds before now; None reaches back for ever."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a broker can give, so that planning needs no special cases."""

    bases: Mapping[Timeframe, tuple[BaseTimeframe, ...]]
    """For each timeframe the ways to obtain it, best first."""
    max_span: Mapping[Timeframe, int | None]
    """Longest span of one request by base timeframe, microseconds; None is unlimited."""
    settle_delay: int
    """Microseconds after an intraday bar's end before it may be taken as closed."""
    daily_settle_delay: int
    """Microseconds after the session's close before its daily bar may be taken as closed."""
    feeds: tuple[str, ...]
    batch_symbols: int
    """Most symbols in one request."""
    page_rows: int
    """Bars in one full page, for estimating calls."""
    latest_feeds: tuple[str, ...]
    """Feeds of the latest trades, quotes and snapshots; empty where there are none."""
    earliest: int
    """No bar is older than this (microseconds UTC)."""


@dataclass(frozen=True, slots=True)
class BarsRequest:
    """One walk: bars of one base timeframe for several symbols over one span."""

    symbols: tuple[str, ...]
    timeframe: Timeframe
    span: Span
    feed: str


@dataclass(frozen=True, slots=True)
class BarsPage:
    """One finished page of a walk.

    `proven` is what this page adds to what is known completely: whole symbols before the page's
    last one, and that one up to and including its last bar; the final page proves the rest.
    """

    bars: Mapping[str, Bars]
    """As the broker gave them, mapped to our symbols and basis (raw prices); not yet gated. Each
    lies in the span this page proves of its symbol: bars beyond that come with a later page."""
    proven: Mapping[str, Span]
    refused: Mapping[str, str] = field(default_factory=dict)
    """Symbols the broker refuses to parse, with its words; nothing is proven of them."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Rows left out before the gates, by reason: ``wrong_symbol``, ``unreadable``,
    ``out_of_window``, ``out_of_order`` (before what an earlier page proved)."""


@dataclass(frozen=True, slots=True)
class SymbolVerdict:
    """What the assets endpoint says: known True or False, or None where it gave no verdict."""

    known: bool | None
    name: str | None = None


class Broker(Protocol):
    """A source of bars. Raises `BrokerError`, `DataUnavailableError`; never returns an error as no data.

    Every method keeps to its deadline, retries transient errors only, and spends the shared
    rate budget for each request it sends.
    """

    @property
    def provider(self) -> str: ...

    @property
    def default_feed(self) -> str: ...

    def capabilities(self, feed: str) -> Capabilities:
        """Return what can be had now; a refusal of recent data, once learnt, changes it."""
        ...

    def pages(self, request: BarsRequest, deadline: Deadline) -> Iterator[BarsPage]:
        """Walk the pages of one request; stopping early is allowed at any page."""
        ...

    def splits(
        self, symbols: Sequence[str], span: Span, deadline: Deadline
    ) -> dict[str, list[Split]]:
        """Return the splits with an ex-date in `span` for every symbol asked."""
        ...

    def verdict(self, symbol: str, deadline: Deadline) -> SymbolVerdict:
        """Ask whether `symbol` exists. Only a definite answer is a verdict."""
        ...

    def symbols(self, deadline: Deadline) -> list[str]:
        """Return every symbol that `verdict` would call known, inactive ones included; empty
        where there is no such list."""
        ...

    def latest(
        self, kind: str, symbols: Sequence[str], feed: str, deadline: Deadline
    ) -> dict[str, Mapping[str, Any]]:
        """Return the newest ``bar``, ``trade``, ``quote`` or ``snapshot`` by symbol, as plain
        mappings; a symbol without one is absent.

        Raises
        ------
        DataUnavailableError
            The broker has no such data; a retry does not help.
        """
        ...

    def health(self) -> Mapping[str, str | int | None]:
        """Return the breaker's state, requests sent and the request allowance, as last seen;
        asks nothing. A broker that sends no requests has none of these.

        Keys: ``breaker``, ``requests_sent`` (of this process), ``requests_per_minute``
        (what this broker object may send: its reserve is taken off), ``requests_left`` (of this
        minute, by the broker's own count).
        """
        ...

    def close(self) -> None:
        """Close the connections; the next request opens new ones. Idempotent, never raises."""
        ...
