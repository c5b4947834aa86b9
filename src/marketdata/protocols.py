"""Every port of the library, each with its post-conditions.

The reader and the planner see these and nothing of Redis, PostgreSQL, Alpaca or Yahoo. One
contract suite per port runs against every implementation (``tests/contracts``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, Literal, Protocol

from marketdata.bar_history import Trail
from marketdata.clock import Deadline
from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.errors import MarketDataError
from marketdata.identity import Lineage
from marketdata.spans import Span
from marketdata.types import DAY, Bars, Int64s, SeriesKey, Timeframe

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
    delay: int = 0
    """Microseconds after its end before which the provider gives no bar: one that is observed soon
    after them counts as observed when it closed."""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    key: SeriesKey
    span: Span


class BeforeCommit(Protocol):
    def __call__(self, revisions: Mapping[SeriesKey, int], /) -> None: ...


type ReadPlan = Callable[[Mapping[SeriesKey, SeriesState]], Sequence[ReadRequest]]
"""Decides by the states of series what is read of them; one request a series."""


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

    def read_planned(
        self, keys: Sequence[SeriesKey], plan: ReadPlan
    ) -> tuple[dict[SeriesKey, SeriesState], dict[SeriesKey, Bars]]:
        """Return the state of every key and, from the same snapshot, the bars that `plan` asks for
        when it is told the states.

        `plan` asks for series among `keys`. It is called inside a transaction, again where that has
        to be repeated, and not at all without keys: it must be quick, change nothing, and ask no
        store. What it raises comes through.
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
        COMMIT. On any error nothing is stored. What is replaced goes to the trail, in the same
        transaction.
        """
        ...

    def trail(
        self, requests: Sequence[ReadRequest], after_us: int | None = None
    ) -> dict[SeriesKey, Trail]:
        """Return what is known of the past of each request's bars; one request per series.

        With `after_us`, only what may matter to what was known then: all entries of the bars that
        have one observed after that moment, and what arrived after it.
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


class Priority(IntEnum):
    """Whom the request budget serves first."""

    LIVE = 0
    """A cycle of the aggregator: its bars are due now."""
    READ = 1
    """Somebody waits for the answer."""
    BACKFILL = 2
    """History that nobody waits for."""
    VERIFY = 3

    @property
    def background(self) -> bool:
        """Whether nobody waits for it."""
        return self >= Priority.BACKFILL


class RateBudget(Protocol):
    """One request budget per credential, shared by every process on the same store.

    All kinds of callers together are never granted more than the limit in any 60 seconds. Lower
    ones use what is idle and give way at once: they are refused while somebody above waits, and
    leave what those above are about to need. Nobody waits for budget that somebody below him takes
    after he has asked.
    """

    def take(
        self, credential: str, limit_per_minute: int, priority: Priority = Priority.READ
    ) -> float:
        """Take one request from the budget.

        Returns
        -------
        float
            0.0 if granted; otherwise the seconds to wait before asking again (nothing taken). For
            so long those below are held back.
        """
        ...

    def told(self, credential: str, limit_per_minute: int, left: int | None) -> None:
        """Note the limit that the broker states, and what it says is left of it; asks nobody. The
        stated limit holds for every process, and what the broker counted helps to make good a
        budget that was lost."""
        ...

    def pause(self, credential: str, seconds: float) -> None:
        """Grant nothing for `seconds`: the broker said when it will answer again."""
        ...


RECENT: Final = 100 * DAY
"""How far back a question about corporate actions must reach to count as a check of them all: most
that come late or are corrected are younger."""


@dataclass(frozen=True, slots=True)
class ActionChange:
    """What recording an answer changed about one action."""

    symbol: str
    kind: ActionKind
    ex_date: int
    change: Literal["new", "corrected", "withdrawn"]


class ActionStore(Protocol):
    """Corporate actions, kept with the time they were fetched. Every method may raise `StoreError`."""

    def actions(
        self, provider: str, symbols: Sequence[str], kinds: Collection[ActionKind] | None = None
    ) -> dict[str, list[CorporateAction]]:
        """Return the known actions of each symbol, ascending by ex-date: the newest knowledge,
        withdrawn ones out, with `fetched_us` set. A name change is under both of its names. With
        `kinds`, only those.
        """
        ...

    def history(
        self, provider: str, symbols: Sequence[str], known_us: int
    ) -> dict[str, list[CorporateAction]]:
        """Return the actions of each symbol as they were stored at the market time `known_us`.

        The first knowledge of an action counts as always known: what was stored later than that
        moment is corrected back to its first version, not left out. Only what an answer did not
        have though its ex-date had passed is known from when it was first told, not before. What
        had been withdrawn by then is out.
        """
        ...

    def checked(self, provider: str, symbols: Sequence[str]) -> dict[str, tuple[Span, int]]:
        """Return, for symbols ever asked about, the ex-date span asked and the market time of
        asking: one check for all kinds.

        A question about a part of the span counts where that part holds the `RECENT` time before
        it was asked and what was to come.
        """
        ...

    def record(
        self,
        provider: str,
        actions: Mapping[str, Sequence[CorporateAction]],
        asked: Span,
        observed_us: int,
    ) -> list[ActionChange]:
        """Store what the broker answered for every symbol of `actions` over `asked`, in one
        transaction with the span asked; return what that changed.

        New actions are added, changed ones corrected, those the answer lacks withdrawn: of a name
        change only where both of its names were asked about. An action is the same one while it
        keeps the provider's id, or without one its ex-date, kind, other symbol and whether it is
        special. An answer older than what is stored changes nothing.
        """
        ...


@dataclass(frozen=True, slots=True)
class KnownAsset:
    """An asset as it was last listed."""

    symbol: str
    name: str | None
    exchange: str | None
    status: str
    observed_us: int
    """Market time at which the provider was asked."""


class IdentityStore(Protocol):
    """What decides which instrument a symbol means. Every method may raise `StoreError`."""

    def identity_changes(self, provider: str) -> list[CorporateAction]:
        """Return every name change, merger and delisting that is known, ascending by ex-date;
        withdrawn ones are out."""
        ...

    def last_days(self, provider: str) -> dict[str, int]:
        """Return the newest stored bar of each symbol that the provider lists as inactive and that
        has had none for two weeks of coverage."""
        ...

    def assets(self, provider: str, symbols: Sequence[str] | None = None) -> list[KnownAsset]:
        """Return what the provider listed, for some symbols or for all."""
        ...

    def assets_checked(self, provider: str) -> int | None:
        """Return the market time at which the provider last gave its whole list."""
        ...

    def record_assets(
        self, provider: str, assets: Sequence[Asset], observed_us: int, *, complete: bool
    ) -> None:
        """Store what a provider lists, and the names of the symbols; after a `complete` list, what
        it lacks is inactive. One transaction; an answer older than what is stored changes nothing."""
        ...

    def rebuild(
        self,
        provider: str,
        lineages: Iterable[Lineage],
        now_us: int,
        symbols: Sequence[str] | None = None,
    ) -> None:
        """Make the tables of instruments anew: those of `lineages`, and one for every asset that is
        in none of them. With `symbols`, only those instruments that ever held one of these; then
        `lineages` are just those. One transaction; idempotent."""
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
    clock_ahead: int = 0
    """Microseconds by which our clock was just found to run ahead of the broker's; both delays
    have them added."""


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
class Asset:
    """What a provider lists under a symbol."""

    symbol: str
    name: str | None = None
    exchange: str | None = None
    status: Literal["active", "inactive"] = "active"
    """Whether it trades under this symbol now."""


@dataclass(frozen=True, slots=True)
class SymbolVerdict:
    """What the assets endpoint says: known True or False, or None where it gave no verdict."""

    known: bool | None
    name: str | None = None
    asset: Asset | None = None
    """What is listed under the symbol, where the endpoint says that much."""


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

    def actions(
        self, symbols: Sequence[str], span: Span, deadline: Deadline
    ) -> dict[str, list[CorporateAction]]:
        """Return the corporate actions of every kind with an ex-date in `span`, ascending, for
        every symbol asked; empty where there are none.

        A name change is returned under its old and its new name alike.

        Raises
        ------
        BrokerResponseError
            An action cannot be read. ``facts["unreadable"]`` lists its symbols: the others can be
            asked without them. A retry does not help.
        """
        ...

    def verdict(self, symbol: str, deadline: Deadline) -> SymbolVerdict:
        """Ask whether `symbol` exists. Only a definite answer is a verdict."""
        ...

    def symbols(self, deadline: Deadline) -> list[str]:
        """Return every symbol that `verdict` would call known, inactive ones included; empty
        where there is no such list."""
        ...

    def assets(self, deadline: Deadline) -> list[Asset]:
        """Return all that is listed, inactive ones included; empty where there is no such list."""
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
        (what this broker object may send: what it leaves to its betters is taken off), ``requests_left`` (of this
        minute, by the broker's own count).
        """
        ...

    def close(self) -> None:
        """Close the connections; the next request opens new ones. Idempotent, never raises."""
        ...
