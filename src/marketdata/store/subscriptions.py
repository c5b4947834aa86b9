"""Subscriptions in PostgreSQL: rows with leases on the server's clock, always written in bulk."""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, TextClause, text

from marketdata.store.connection import Database
from marketdata.types import Timeframe

PINNED: Final = ""
"""The holder of leases that never run out."""

_LIVE: Final = "(s.ended_at IS NULL AND (s.pinned OR s.lease_until > clock_timestamp()))"
_END: Final = "clock_timestamp() + CAST(:lease AS float8) * interval '1 second'"
"""NULL, which is pinned, for a lease of NULL seconds."""
_THESE: Final = """(CAST(:symbols AS text[]) IS NULL OR s.symbol = ANY (CAST(:symbols AS text[])))
    AND (CAST(:timeframe AS text) IS NULL OR s.timeframe = :timeframe)"""
# By key and not by ctid: of a row that a renewal has just written anew, the new version is locked,
# and a statement's snapshot finds no new version by its place.
_SAME: Final = """(s.owner, s.holder, s.timeframe, s.symbol)
    = (these.owner, these.holder, these.timeframe, these.symbol)"""

# Always in the order of the key, so that no two writers wait for each other.
_PUT: Final = text(f"""
INSERT INTO symbol_subscriptions AS s (owner, holder, symbol, timeframe, priority, lease_until)
SELECT :owner, :holder, symbol, :timeframe, :priority, {_END}
FROM unnest(CAST(:symbols AS text[])) AS symbol ORDER BY symbol
ON CONFLICT (owner, holder, timeframe, symbol) DO UPDATE
    SET priority = excluded.priority, lease_until = excluded.lease_until, ended_at = NULL,
        made_at = CASE WHEN {_LIVE} THEN s.made_at ELSE excluded.made_at END,
        renewed_at = excluded.renewed_at
""")
_RENEW: Final = text(f"""
INSERT INTO symbol_subscriptions AS s (owner, holder, symbol, timeframe, priority, lease_until)
SELECT k.owner, k.holder, k.symbol, k.timeframe, k.priority, {_END}
FROM unnest(CAST(:owner AS text[]), CAST(:holder AS text[]), CAST(:symbol AS text[]),
            CAST(:timeframe AS text[]), CAST(:priority AS smallint[]))
    AS k (owner, holder, symbol, timeframe, priority)
ORDER BY 1, 2, 4, 3
ON CONFLICT (owner, holder, timeframe, symbol) DO UPDATE
    SET lease_until = excluded.lease_until, renewed_at = excluded.renewed_at
    WHERE s.ended_at IS NULL
RETURNING owner, holder, symbol, timeframe
""")
_UNPIN: Final = text(f"""
WITH these AS (
    SELECT s.owner, s.holder, s.timeframe, s.symbol FROM symbol_subscriptions AS s
    WHERE s.owner = :owner AND s.holder = '' AND {_THESE}
    ORDER BY s.timeframe, s.symbol FOR UPDATE)
DELETE FROM symbol_subscriptions AS s USING these WHERE {_SAME}
RETURNING s.symbol, s.timeframe, true
""")
# A mark, and not the row's absence: its client lives, and is about to renew it.
_END_LEASES: Final = text(f"""
WITH these AS (
    SELECT s.owner, s.holder, s.timeframe, s.symbol, {_LIVE} AS live
    FROM symbol_subscriptions AS s
    WHERE s.owner = :owner AND s.ended_at IS NULL AND {_THESE}
    ORDER BY s.holder, s.timeframe, s.symbol FOR UPDATE)
UPDATE symbol_subscriptions AS s SET ended_at = clock_timestamp()
FROM these WHERE {_SAME}
RETURNING s.symbol, s.timeframe, these.live
""")
_RELEASE: Final = text(f"""
WITH these AS (
    SELECT owner, holder, timeframe, symbol FROM symbol_subscriptions
    WHERE owner = ANY (CAST(:owners AS text[])) AND holder = ANY (CAST(:holders AS text[]))
    ORDER BY owner, holder, timeframe, symbol FOR UPDATE)
DELETE FROM symbol_subscriptions AS s USING these WHERE {_SAME}
""")
_OF_OWNER: Final = text(f"""
SELECT DISTINCT s.symbol FROM symbol_subscriptions AS s
WHERE s.owner = :owner AND s.timeframe = :timeframe AND {_LIVE}
""")
# One change of an owner's pinned set at a time: rows hold back nobody who adds others.
_ONE_AT_A_TIME: Final = text(
    "SELECT pg_advisory_xact_lock(hashtextextended('marketdata subscriptions ' || :owner, 0))"
)
_WANTED: Final = text(f"""
WITH wanted AS (
    SELECT s.symbol, s.timeframe, max(s.priority) AS priority,
           CASE WHEN NOT bool_or(s.pinned) THEN max(s.lease_until) END AS until
    FROM symbol_subscriptions AS s WHERE {_LIVE} GROUP BY s.symbol, s.timeframe)
SELECT timeframe, array_agg(symbol ORDER BY symbol), array_agg(priority ORDER BY symbol),
       extract(epoch FROM min(until) - clock_timestamp())::float8
FROM wanted GROUP BY timeframe
""")
_EXPIRE: Final = text("""
WITH gone AS (
    DELETE FROM symbol_subscriptions WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM symbol_subscriptions
        WHERE CASE WHEN ended_at IS NULL THEN lease_until <= clock_timestamp()
                   ELSE ended_at <= clock_timestamp() - :kept * interval '1 second' END
        FOR UPDATE SKIP LOCKED))
    RETURNING owner, ended_at)
SELECT owner, count(*) FROM gone WHERE ended_at IS NULL GROUP BY owner ORDER BY owner
""")
_HELD: Final = text(f"""
SELECT s.owner, s.timeframe, s.symbol, max(s.priority), bool_or(s.pinned), min(s.made_at),
       CASE WHEN NOT bool_or(s.pinned)
            THEN extract(epoch FROM max(s.lease_until) - clock_timestamp())::float8 END
FROM symbol_subscriptions AS s
WHERE {_LIVE} AND (CAST(:owner AS text) IS NULL OR s.owner = :owner)
GROUP BY s.owner, s.timeframe, s.symbol ORDER BY s.owner, s.timeframe, s.symbol
""")
_ENDED_KEPT: Final = 86_400
"""Seconds for which a lease ended by another client stays on record."""


class Subscribed(NamedTuple):
    """One symbol that somebody wants kept fresh."""

    symbol: str
    timeframe: Timeframe
    priority: int
    """The highest of all who want it; what is higher is fetched first."""


class Held(NamedTuple):
    """A symbol of one owner, over all clients that hold it."""

    owner: str
    timeframe: str
    symbol: str
    priority: int
    pinned: bool
    made_at: Any
    seconds_left: float | None
    """Until the lease runs out; None for a pinned one."""


class Lease(NamedTuple):
    """One lease as its holder knows it."""

    owner: str
    holder: str
    symbol: str
    timeframe: str


@dataclass(frozen=True, slots=True)
class Change:
    """What pinning symbols changes in an owner's set, sorted."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    """Those of these whose priority changes are kept as well."""


class PostgresSubscriptions:
    """Every method is one transaction and may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(
        self,
        owner: str,
        holder: str,
        timeframe: str,
        symbols: Sequence[str],
        priority: int,
        lease: float | None,
    ) -> None:
        """Make or renew the leases of `holder`, for `lease` seconds; None pins them. Idempotent."""
        values = _put_values(owner, holder, timeframe, symbols, priority, lease)
        self._run(_PUT, values)

    def renew(self, leases: dict[Lease, int], lease: float) -> set[Lease]:
        """Extend leases (with their priority), also those that ran out meanwhile; return those that
        live, which leaves out what another client of the owner has ended."""
        columns = list(zip(*leases, strict=True)) if leases else [()] * 4
        values: dict[str, Any] = dict(zip(Lease._fields, map(list, columns), strict=True))
        values |= {"priority": list(leases.values()), "lease": lease}
        rows = self._database.run(lambda c: c.execute(_RENEW, values).all())
        return {Lease(*row) for row in rows}

    def release(self, owners: Collection[str], holders: Collection[str]) -> None:
        """Delete all leases of these holders."""
        self._run(_RELEASE, {"owners": list(owners), "holders": list(holders)})

    def remove(
        self, owner: str, symbols: Sequence[str] | None, timeframe: str | None
    ) -> set[tuple[str, str]]:
        """End every lease of `owner` on `symbols` (None: all) and `timeframe` (None: all), whoever
        holds it; return the (symbol, timeframe) pairs that were live."""
        values = {
            "owner": owner,
            "symbols": None if symbols is None else list(symbols),
            "timeframe": timeframe,
        }
        return self._database.run(lambda c: _remove(c, values))

    def pin(
        self,
        owner: str,
        timeframe: str,
        symbols: Sequence[str],
        priority: int,
        *,
        replace: bool,
        dry_run: bool,
    ) -> Change:
        """Pin `symbols` for `owner`, and with `replace` end all its other leases of this timeframe;
        return the difference. With `dry_run` nothing is changed."""

        def work(connection: Connection) -> Change:
            connection.execute(_ONE_AT_A_TIME, {"owner": owner})
            found = connection.execute(_OF_OWNER, {"owner": owner, "timeframe": timeframe})
            before = {symbol for (symbol,) in found}
            after = set(symbols)
            removed = sorted(before - after) if replace else []
            if removed and not dry_run:
                _remove(connection, {"owner": owner, "symbols": removed, "timeframe": timeframe})
            if not dry_run:
                new = _put_values(owner, PINNED, timeframe, sorted(after), priority, None)
                connection.execute(_PUT, new)
            return Change(
                tuple(sorted(after - before)), tuple(removed), tuple(sorted(after & before))
            )

        return self._database.run(work)

    def wanted(self) -> tuple[list[Subscribed], float | None]:
        """Return what has a live lease of any owner, and the seconds until the first of these ends
        (None: none ever does)."""
        rows = self._database.run(lambda c: c.execute(_WANTED).all())
        found: list[Subscribed] = []
        for name, symbols, priorities, _ in rows:
            timeframe = Timeframe(name)
            found += [
                Subscribed(symbol, timeframe, priority)
                for symbol, priority in zip(symbols, priorities, strict=True)
            ]
        return found, min((left for *_, left in rows if left is not None), default=None)

    def expire(self) -> dict[str, int]:
        """Delete leases that ran out; return how many of each owner."""
        values = {"kept": _ENDED_KEPT}
        rows = self._database.run(lambda c: c.execute(_EXPIRE, values).all())
        return {row[0]: row[1] for row in rows}

    def held(self, owner: str | None = None) -> list[Held]:
        """Return every live lease, of one owner or of all, by owner, timeframe and symbol."""
        rows = self._database.run(lambda c: c.execute(_HELD, {"owner": owner}).all())
        return [Held(*row) for row in rows]

    def _run(self, statement: TextClause, values: dict[str, Any]) -> None:
        self._database.run(lambda c: c.execute(statement, values) and None)


def _remove(connection: Connection, values: dict[str, Any]) -> set[tuple[str, str]]:
    rows = [*connection.execute(_UNPIN, values), *connection.execute(_END_LEASES, values)]
    return {(symbol, timeframe) for symbol, timeframe, live in rows if live}


def _put_values(
    owner: str,
    holder: str,
    timeframe: str,
    symbols: Sequence[str],
    priority: int,
    lease: float | None,
) -> dict[str, Any]:
    return {
        "owner": owner,
        "holder": holder,
        "timeframe": timeframe,
        "symbols": list(symbols),
        "priority": priority,
        "lease": lease,
    }
