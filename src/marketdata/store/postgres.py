"""The store on PostgreSQL: one object behind four ports."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Self

from marketdata.bar_history import Trail
from marketdata.corporate_actions import ActionKind, CorporateAction
from marketdata.errors import MarketDataError
from marketdata.protocols import (
    ActionChange,
    BeforeCommit,
    Commit,
    FlightOutcome,
    FlightTicket,
    Priority,
    ReadPlan,
    ReadRequest,
    SeriesState,
)
from marketdata.spans import Span
from marketdata.store.actions import PostgresActions
from marketdata.store.budget import PostgresBudget
from marketdata.store.connection import Database
from marketdata.store.flights import PostgresFlights
from marketdata.store.holdings import Holding, Holdings, StoreStatus, SymbolMetadata
from marketdata.store.migrations import Migrator, migration_sql
from marketdata.store.reading import BarReader
from marketdata.store.trail import PostgresTrail
from marketdata.store.writing import BarWriter
from marketdata.types import Bars, SeriesKey


class PostgresStore:
    """Bars, flights, request budgets and corporate actions in one PostgreSQL schema (14 or newer).

    Thread-safe; a forked child opens its own connections. Implements `BarStore`, `FlightLog`,
    `RateBudget` and `ActionStore` of `marketdata.protocols`, each by a class of its own.

    Parameters
    ----------
    database_url : str
        libpq connection URI, ``postgresql://user@host:5432/database``.
    schema : str
        Schema that holds the tables.
    pool_size : int
        Most connections of this process.
    connect_timeout, pool_timeout, statement_timeout, lock_timeout : float
        Seconds: for one connection attempt; for a free connection; for one statement; for a lock.
    application_name : str
        Name in ``pg_stat_activity``.
    trail : collection of str, optional
        Symbols of which this process keeps replaced values; None for all.

    Raises
    ------
    ConfigurationError
        Unreadable URL or schema name. Nothing connects before the first call.
    """

    def __init__(
        self,
        database_url: str,
        *,
        schema: str = "marketdata",
        pool_size: int = 8,
        connect_timeout: float = 3.0,
        pool_timeout: float = 30.0,
        statement_timeout: float = 60.0,
        lock_timeout: float = 30.0,
        application_name: str = "marketdata",
        trail: Collection[str] | None = None,
    ) -> None:
        self.database = Database(
            database_url,
            schema=schema,
            pool_size=pool_size,
            connect_timeout=connect_timeout,
            pool_timeout=pool_timeout,
            statement_timeout=statement_timeout,
            lock_timeout=lock_timeout,
            application_name=application_name,
        )
        self._reader = BarReader(self.database)
        self._writer = BarWriter(self.database, trail)
        self.past = PostgresTrail(self.database)
        """The trail, drift counters and tombstones."""
        self._flights = PostgresFlights(self.database)
        self._budget = PostgresBudget(self.database)
        self._actions = PostgresActions(self.database)
        self._holdings = Holdings(self.database)
        self._epoch: int | None = None

    def __repr__(self) -> str:
        return f"PostgresStore({self.database.address}, schema={self.database.schema!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close this process' connections; a later call would open new ones."""
        self.database.close()

    # -------------------------------------------------------------------------- schema

    def migrate(self) -> list[int]:
        """Bring the schema up to this release; see `Migrator.migrate`."""
        return Migrator(self.database).migrate()

    def migration_sql(self) -> str:
        """Return the whole schema as one psql script."""
        return migration_sql(self.database.schema)

    def check_schema(self) -> None:
        """Raise `SchemaError` unless the schema is exactly what this release needs."""
        Migrator(self.database).check()

    def prepare_schema(self) -> None:
        """Make the schema where there is none yet, else check it; see `Migrator.prepare`."""
        Migrator(self.database).prepare()

    # ---------------------------------------------------------------------------- bars

    @property
    def epoch(self) -> int:
        """A number drawn when the schema was made: blocks of another store never match."""
        if self._epoch is None:
            self._epoch = self._holdings.epoch()
        return self._epoch

    def states(self, keys: Sequence[SeriesKey]) -> dict[SeriesKey, SeriesState]:
        """See `BarStore.states`."""
        return self._reader.states(keys)

    def read(self, requests: Sequence[ReadRequest]) -> dict[SeriesKey, tuple[SeriesState, Bars]]:
        """See `BarStore.read`."""
        return self._reader.read(requests)

    def read_planned(
        self, keys: Sequence[SeriesKey], plan: ReadPlan
    ) -> tuple[dict[SeriesKey, SeriesState], dict[SeriesKey, Bars]]:
        """See `BarStore.read_planned`."""
        return self._reader.read_planned(keys, plan)

    def commit(
        self, commits: Sequence[Commit], before_commit: BeforeCommit | None = None
    ) -> dict[SeriesKey, int]:
        """See `BarStore.commit` and `BarWriter.commit`."""
        return self._writer.commit(commits, before_commit)

    def trail(
        self, requests: Sequence[ReadRequest], after_us: int | None = None
    ) -> dict[SeriesKey, Trail]:
        """See `BarStore.trail`."""
        return self.past.read(requests, after_us)

    # ------------------------------------------------------------------------- flights

    def board(self, keys: Sequence[SeriesKey], span: Span, lease: float) -> FlightTicket:
        """See `FlightLog.board`."""
        return self._flights.board(keys, span, lease)

    def renew(self, ticket: FlightTicket, lease: float) -> bool:
        """See `FlightLog.renew`."""
        return self._flights.renew(ticket, lease)

    def land(self, ticket: FlightTicket, error: MarketDataError | None) -> None:
        """See `FlightLog.land`."""
        self._flights.land(ticket, error)

    def outcome(self, flights: Mapping[SeriesKey, str]) -> dict[SeriesKey, FlightOutcome]:
        """See `FlightLog.outcome`."""
        return self._flights.outcome(flights)

    # -------------------------------------------------------------------------- budget

    def take(
        self, credential: str, limit_per_minute: int, priority: Priority = Priority.READ
    ) -> float:
        """See `RateBudget.take`."""
        return self._budget.take(credential, limit_per_minute, priority)

    def told(self, credential: str, limit_per_minute: int, left: int | None) -> None:
        """See `RateBudget.told`."""
        self._budget.told(credential, limit_per_minute, left)

    def pause(self, credential: str, seconds: float) -> None:
        """See `RateBudget.pause`."""
        self._budget.pause(credential, seconds)

    # ------------------------------------------------------------------------- actions

    def actions(
        self, provider: str, symbols: Sequence[str], kinds: Collection[ActionKind] | None = None
    ) -> dict[str, list[CorporateAction]]:
        """See `ActionStore.actions`."""
        return self._actions.actions(provider, symbols, kinds)

    def history(
        self, provider: str, symbols: Sequence[str], known_us: int
    ) -> dict[str, list[CorporateAction]]:
        """See `ActionStore.history`."""
        return self._actions.history(provider, symbols, known_us)

    def checked(self, provider: str, symbols: Sequence[str]) -> dict[str, tuple[Span, int]]:
        """See `ActionStore.checked`."""
        return self._actions.checked(provider, symbols)

    def checks(self, provider: str) -> dict[str, tuple[Span, int]]:
        """Return, for every symbol whose actions were ever asked for, the ex-date span asked, and
        the market time at which the whole of it was asked last."""
        return self._actions.checks(provider)

    def record(
        self,
        provider: str,
        actions: Mapping[str, Sequence[CorporateAction]],
        asked: Span,
        observed_us: int,
        before_commit: Callable[[list[ActionChange]], None] | None = None,
    ) -> list[ActionChange]:
        """See `ActionStore.record`; `before_commit` is called with what changes, if anything does,
        in the transaction that changes it."""
        return self._actions.record(provider, actions, asked, observed_us, before_commit)

    # ------------------------------------------------------------------------ holdings

    def adopt(self, provider: str, feed: str) -> tuple[str, str]:
        """Record provider and feed if none are; return what the database holds now."""
        return self._holdings.adopt(provider, feed)

    def recorded(self) -> tuple[str, str] | None:
        """Return the provider and feed the database holds, or None where none is recorded yet."""
        return self._holdings.recorded()

    def name_symbol(self, symbol: str, name: str) -> None:
        """Remember what a symbol is called."""
        self._holdings.name_symbol(symbol, name)

    def known_symbols(self) -> list[str]:
        """Return every symbol that has a series, sorted."""
        return self._holdings.known_symbols()

    def series(self, symbols: Sequence[str] | None = None) -> list[SeriesKey]:
        """Return the series stored, of `symbols` or of all."""
        return self._holdings.series(symbols)

    def metadata(self, symbols: Sequence[str] | None = None) -> list[SymbolMetadata]:
        """Return the rows of ``symbol_metadata``, of `symbols` or of all."""
        return self._holdings.metadata(symbols)

    def holdings(self, symbols: Sequence[str] | None = None) -> list[Holding]:
        """Return the rows of ``market_data_holdings``, of `symbols` or of all."""
        return self._holdings.holdings(symbols)

    def status(self) -> StoreStatus:
        """Return counts, sizes and the server's version."""
        return self._holdings.status()
