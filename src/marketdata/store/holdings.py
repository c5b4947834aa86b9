"""What the database is and holds: the reads behind ``status``, ``doctor`` and ``gaps``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text

from marketdata.store.connection import Database
from marketdata.store.wire import key_of
from marketdata.types import SeriesKey

_ADOPT: Final = text("""
UPDATE store_info SET provider = :provider, feed = :feed WHERE provider IS NULL
""")
_INFO: Final = text("SELECT epoch, provider, feed FROM store_info")
_NAME: Final = text("""
INSERT INTO symbols AS s (symbol, name) VALUES (:symbol, :name)
ON CONFLICT (symbol) DO UPDATE SET name = excluded.name, updated_at = clock_timestamp()
    WHERE s.name IS DISTINCT FROM excluded.name
""")
_KNOWN: Final = text("SELECT DISTINCT symbol FROM series ORDER BY symbol")
_SERIES: Final = text("""
SELECT provider, feed, symbol, timeframe FROM series
WHERE CAST(:symbols AS text[]) IS NULL OR symbol = ANY (:symbols)
ORDER BY symbol, timeframe, provider, feed
""")
_METADATA: Final = text("""
SELECT symbol, name, earliest_data_date, latest_data_date, total_bars_stored, last_fetched_at
FROM symbol_metadata WHERE CAST(:symbols AS text[]) IS NULL OR symbol = ANY (:symbols)
ORDER BY symbol
""")
_HOLDINGS: Final = text("""
SELECT provider, feed, symbol, timeframe, rows_from, rows_to, row_count, sealed_from, sealed_to,
       sealed_count, corrections_pending, first_bar, last_bar, bar_count, covered_from, covered_to,
       covered_ranges, unsettled_ranges, unsettled_from, revision, last_fetched_at
FROM market_data_holdings WHERE CAST(:symbols AS text[]) IS NULL OR symbol = ANY (:symbols)
ORDER BY symbol, timeframe, provider, feed
""")
_STATUS: Final = text("""
SELECT current_setting('server_version') AS server_version,
       current_setting('server_version_num')::integer AS server_version_number,
       pg_database_size(current_database()) AS database_bytes,
       (SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint
        FROM pg_partition_tree('market_data_bars'::regclass))
       + pg_total_relation_size('bar_chunks') + pg_total_relation_size('bar_corrections')
           AS bar_bytes,
       (SELECT count(*) FROM pg_partition_tree('market_data_bars'::regclass) WHERE isleaf)
           AS partitions,
       count(*) AS series, count(DISTINCT symbol) AS symbols,
       coalesce(sum(bar_count), 0)::bigint AS bars, max(last_fetched_at) AS last_fetched_at,
       pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean AS read_only
FROM series
""")


@dataclass(frozen=True, slots=True)
class SymbolMetadata:
    """One row of the view ``symbol_metadata``; dates are aware, in UTC."""

    symbol: str
    name: str | None
    earliest_data_date: datetime | None
    latest_data_date: datetime | None
    total_bars_stored: int
    last_fetched_at: datetime | None


@dataclass(frozen=True, slots=True)
class Holding:
    """One row of the view ``market_data_holdings``: what is stored of one series."""

    key: SeriesKey
    rows_from: datetime | None
    rows_to: datetime | None
    row_count: int
    sealed_from: datetime | None
    sealed_to: datetime | None
    """The midnight after the last sealed day."""
    sealed_count: int
    corrections_pending: int
    first_bar: datetime | None
    last_bar: datetime | None
    bar_count: int
    """Rows and sealed bars together."""
    covered_from: datetime | None
    covered_to: datetime | None
    covered_ranges: int
    unsettled_ranges: int
    unsettled_from: datetime | None
    revision: int
    last_fetched_at: datetime | None


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Counts and sizes of the whole store."""

    server_version: str
    server_version_number: int
    database_bytes: int
    bar_bytes: int
    """Rows, chunks and corrections, with their indexes."""
    partitions: int
    series: int
    symbols: int
    bars: int
    last_fetched_at: datetime | None
    read_only: bool


class Holdings:
    """Reads of metadata. Cheap: they come from ``series``, never from counting bars."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def epoch(self) -> int:
        """Return the number drawn when the schema was made."""
        return int(self._one(_INFO)[0])

    def recorded(self) -> tuple[str, str] | None:
        """Return the provider and feed the database holds, or None where none is recorded yet."""
        _, provider, feed = self._one(_INFO)
        return None if provider is None else (provider, feed)

    def adopt(self, provider: str, feed: str) -> tuple[str, str]:
        """Record provider and feed if none are; return what the database holds now."""
        known = self.recorded()
        if known is None:
            parameters = {"provider": provider, "feed": feed}
            self._database.run(lambda c: c.execute(_ADOPT, parameters))
            known = self.recorded()
        assert known is not None
        return known

    def name_symbol(self, symbol: str, name: str) -> None:
        """Remember what a symbol is called."""
        self._database.run(lambda c: c.execute(_NAME, {"symbol": symbol, "name": name}))

    def known_symbols(self) -> list[str]:
        """Return every symbol that has a series, sorted."""
        rows = self._database.run(lambda c: c.execute(_KNOWN).all(), snapshot=True)
        return [symbol for (symbol,) in rows]

    def series(self, symbols: Sequence[str] | None = None) -> list[SeriesKey]:
        """Return the series stored, of `symbols` or of all."""
        return [key_of(row) for row in self._of(_SERIES, symbols)]

    def metadata(self, symbols: Sequence[str] | None = None) -> list[SymbolMetadata]:
        """Return the rows of ``symbol_metadata``, of `symbols` or of all."""
        return [SymbolMetadata(*row) for row in self._of(_METADATA, symbols)]

    def holdings(self, symbols: Sequence[str] | None = None) -> list[Holding]:
        """Return the rows of ``market_data_holdings``, of `symbols` or of all."""
        return [Holding(key_of(row[:4]), *row[4:]) for row in self._of(_HOLDINGS, symbols)]

    def status(self) -> StoreStatus:
        """Return counts, sizes and the server's version."""
        return StoreStatus(*self._one(_STATUS))

    def _one(self, statement: Any) -> Sequence[Any]:
        return self._database.run(lambda c: c.execute(statement).one(), snapshot=True)

    def _of(self, statement: Any, symbols: Sequence[str] | None) -> Sequence[Any]:
        parameters = {"symbols": None if symbols is None else list(symbols)}
        return self._database.run(lambda c: c.execute(statement, parameters).all(), snapshot=True)
