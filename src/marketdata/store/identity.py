"""Which instrument held which symbol, on PostgreSQL: what providers list, and what is derived.

Identity changes are read from ``corporate_actions``; ``instruments`` and ``instrument_symbols`` are
made from them and from ``assets``, for those who read the database with SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, text

from marketdata.clock import from_micros, to_micros
from marketdata.corporate_actions import IDENTITY_CHANGES, ActionKind, CorporateAction
from marketdata.identity import ALWAYS, Lineage
from marketdata.protocols import Asset, KnownAsset
from marketdata.store.connection import Database
from marketdata.types import DAY

_QUIET: Final = 14 * DAY
"""How long a symbol that is listed as inactive has no bar, before its last one counts as its end."""

_CHANGES: Final = text("""
SELECT symbol, type, ex_date, provider_id, other_symbol, announced_at, fetched_at
FROM corporate_actions
WHERE provider = :provider AND type = ANY (:kinds) AND withdrawn_at IS NULL
ORDER BY ex_date, symbol
""")
_ASSETS: Final = text("""
SELECT symbol, name, exchange, status, observed_at FROM assets
WHERE provider = :provider AND (CAST(:symbols AS text[]) IS NULL OR symbol = ANY (:symbols))
""")
_CHECKED: Final = text("SELECT checked_at FROM asset_checks WHERE provider = :provider")
_RECORD: Final = text("""
INSERT INTO assets AS a (provider, symbol, name, exchange, status, first_observed_at, observed_at)
SELECT :provider, r.symbol, r.name, r.exchange, r.status, :observed, :observed
FROM unnest(CAST(:symbols AS text[]), CAST(:names AS text[]), CAST(:exchanges AS text[]),
            CAST(:statuses AS text[])) AS r (symbol, name, exchange, status)
ORDER BY r.symbol
ON CONFLICT (provider, symbol) DO UPDATE
    SET name = coalesce(excluded.name, a.name), exchange = coalesce(excluded.exchange, a.exchange),
        status = excluded.status, observed_at = excluded.observed_at
    WHERE excluded.observed_at >= a.observed_at
""")
# A whole list that lacks a symbol says that it is not listed any more.
_GONE: Final = text("""
UPDATE assets SET status = 'inactive', observed_at = :observed
WHERE provider = :provider AND observed_at < :observed
  AND NOT (symbol = ANY (CAST(:symbols AS text[])))
""")
_CHECK: Final = text("""
INSERT INTO asset_checks AS c (provider, checked_at) VALUES (:provider, :observed)
ON CONFLICT (provider) DO UPDATE SET checked_at = greatest(c.checked_at, excluded.checked_at)
""")
_NAMES: Final = text("""
INSERT INTO symbols AS s (symbol, name)
SELECT r.symbol, r.name FROM unnest(CAST(:symbols AS text[]), CAST(:names AS text[]))
    AS r (symbol, name) WHERE r.name IS NOT NULL ORDER BY r.symbol
ON CONFLICT (symbol) DO UPDATE SET name = excluded.name, updated_at = clock_timestamp()
    WHERE s.name IS DISTINCT FROM excluded.name
""")
_LAST_DAYS: Final = text("""
SELECT s.symbol, max(s.last_bar) FROM series AS s
JOIN assets AS a USING (provider, symbol)
WHERE s.provider = :provider AND a.status = 'inactive' AND s.last_bar IS NOT NULL
GROUP BY s.symbol
HAVING max(upper(s.coverage)) > max(s.last_bar) + make_interval(secs => :quiet)
""")
_EMPTY: Final = text("""
DELETE FROM instruments AS i WHERE i.provider = :provider
  AND (CAST(:only AS text[]) IS NULL
       OR EXISTS (SELECT FROM instrument_symbols AS s
                  WHERE s.provider = i.provider AND s.instrument = i.instrument
                    AND s.symbol = ANY (:only)))
""")
_INSTRUMENTS: Final = text("""
INSERT INTO instruments (provider, instrument, symbol, name, exchange, status, ended_at, ended_by,
                         rebuilt_at)
SELECT :provider, r.instrument, r.symbol, a.name, a.exchange,
       CASE WHEN r.ended_at <= :now THEN 'ended' ELSE coalesce(a.status, 'unknown') END,
       r.ended_at, r.ended_by, :now
FROM unnest(CAST(:instruments AS text[]), CAST(:newest AS text[]),
            CAST(:ends AS timestamptz[]), CAST(:reasons AS text[]))
        AS r (instrument, symbol, ended_at, ended_by)
LEFT JOIN assets AS a ON a.provider = :provider AND a.symbol = r.symbol
UNION ALL
SELECT :provider, a.symbol, a.symbol, a.name, a.exchange, a.status, NULL, NULL, :now
FROM assets AS a WHERE a.provider = :provider AND NOT a.symbol = ANY (CAST(:changed AS text[]))
  AND (CAST(:only AS text[]) IS NULL OR a.symbol = ANY (:only))
""")
_SYMBOLS: Final = text("""
INSERT INTO instrument_symbols (provider, symbol, valid, instrument)
SELECT :provider, r.symbol, tstzrange(r.start, r.stop), r.instrument
FROM unnest(CAST(:piece_symbols AS text[]), CAST(:starts AS timestamptz[]),
            CAST(:stops AS timestamptz[]), CAST(:owners AS text[]))
        AS r (symbol, start, stop, instrument)
UNION ALL
SELECT :provider, a.symbol, tstzrange(NULL, NULL), a.symbol
FROM assets AS a WHERE a.provider = :provider AND NOT a.symbol = ANY (CAST(:changed AS text[]))
  AND (CAST(:only AS text[]) IS NULL OR a.symbol = ANY (:only))
""")
_LOCK: Final = text(
    "SELECT pg_advisory_xact_lock(hashtext('marketdata.instruments'), hashtext(:provider))"
)


class PostgresIdentity:
    """The identity store on PostgreSQL. Every method may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def identity_changes(self, provider: str) -> list[CorporateAction]:
        """See `IdentityStore.identity_changes`."""
        parameters = {"provider": provider, "kinds": sorted(k.value for k in IDENTITY_CHANGES)}
        rows = self._rows(_CHANGES, parameters)
        return [
            CorporateAction(
                symbol=row.symbol,
                kind=ActionKind(row.type),
                ex_date=to_micros(row.ex_date),
                id=row.provider_id,
                other_symbol=row.other_symbol,
                announced_us=None if row.announced_at is None else to_micros(row.announced_at),
                fetched_us=to_micros(row.fetched_at),
            )
            for row in rows
        ]

    def last_days(self, provider: str) -> dict[str, int]:
        """See `IdentityStore.last_days`."""
        rows = self._rows(_LAST_DAYS, {"provider": provider, "quiet": _QUIET // 1_000_000})
        return {symbol: to_micros(moment) for symbol, moment in rows}

    def assets(self, provider: str, symbols: Sequence[str] | None = None) -> list[KnownAsset]:
        """See `IdentityStore.assets`."""
        names = None if symbols is None else list(symbols)
        rows = self._rows(_ASSETS, {"provider": provider, "symbols": names})
        return [
            KnownAsset(symbol, name, exchange, status, to_micros(observed))
            for symbol, name, exchange, status, observed in rows
        ]

    def assets_checked(self, provider: str) -> int | None:
        """See `IdentityStore.assets_checked`."""
        rows = self._rows(_CHECKED, {"provider": provider})
        return to_micros(rows[0][0]) if rows else None

    def record_assets(
        self, provider: str, assets: Sequence[Asset], observed_us: int, *, complete: bool
    ) -> None:
        """See `IdentityStore.record_assets`."""
        once = {asset.symbol: asset for asset in assets}
        listed = sorted(once.values(), key=lambda asset: asset.symbol)
        parameters = {
            "provider": provider,
            "observed": from_micros(observed_us),
            "symbols": [a.symbol for a in listed],
            "names": [a.name or None for a in listed],
            "exchanges": [a.exchange or None for a in listed],
            "statuses": [a.status for a in listed],
        }

        def work(connection: Connection) -> None:
            connection.execute(_LOCK, parameters)
            if listed:
                connection.execute(_RECORD, parameters)
                connection.execute(_NAMES, parameters)
            if complete:
                connection.execute(_GONE, parameters)
                connection.execute(_CHECK, parameters)

        self._database.run(work)

    def rebuild(
        self,
        provider: str,
        lineages: Iterable[Lineage],
        now_us: int,
        symbols: Sequence[str] | None = None,
    ) -> None:
        """See `IdentityStore.rebuild`."""
        found = list(lineages)
        names = [_name(lineage) for lineage in found]
        pieces = [(p, name) for lin, name in zip(found, names, strict=True) for p in lin.pieces]
        parameters = {
            "provider": provider,
            "now": from_micros(now_us),
            "instruments": names,
            "newest": [lineage.symbol_at(now_us) for lineage in found],
            "ends": [_moment(lineage.end) for lineage in found],
            "reasons": [None if lineage.ended is None else str(lineage.ended) for lineage in found],
            "changed": sorted({piece.symbol for piece, _ in pieces}),
            "only": None if symbols is None else sorted(symbols),
            "piece_symbols": [piece.symbol for piece, _ in pieces],
            "starts": [_moment(piece.span.start) for piece, _ in pieces],
            "stops": [_moment(piece.span.end) for piece, _ in pieces],
            "owners": [name for _, name in pieces],
        }

        def work(connection: Connection) -> None:
            for statement in (_LOCK, _EMPTY, _INSTRUMENTS, _SYMBOLS):
                connection.execute(statement, parameters)

        self._database.run(work)

    def _rows(self, statement: Any, parameters: dict[str, Any]) -> Sequence[Any]:
        return self._database.run(lambda c: c.execute(statement, parameters).all(), snapshot=True)


def _name(lineage: Lineage) -> str:
    first = lineage.pieces[0]
    if first.span.start == ALWAYS.start:
        return first.symbol
    return f"{first.symbol}@{from_micros(first.span.start).date()}"


def _moment(micros: int | None) -> datetime | None:
    return None if micros in (None, ALWAYS.start, ALWAYS.end) else from_micros(micros or 0)
