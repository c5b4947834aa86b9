"""Leases on PostgreSQL's clock: who acts, and for how long nobody else may."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg.conninfo import make_conninfo
from sqlalchemy import text

from marketdata.store.connection import Database

_ACQUIRE: Final = text("""
INSERT INTO leases AS l (name, holder, token, lease_until, details)
VALUES (:name, :holder, :token, clock_timestamp() + :seconds * interval '1 second',
        CAST(:details AS jsonb))
ON CONFLICT (name) DO UPDATE
    SET holder = excluded.holder, token = excluded.token, fence = l.fence + 1,
        acquired_at = excluded.acquired_at, lease_until = excluded.lease_until,
        details = excluded.details
    WHERE l.lease_until <= clock_timestamp() OR l.token = excluded.token
RETURNING fence
""")
HOLDINGS: Final = text("""
SELECT name, holder, fence, acquired_at, lease_until, details, lease_until > clock_timestamp()
FROM leases ORDER BY name
""")
"""Every lease ever taken, as `Holding`."""
# A lease that has run out is not renewed, even where nobody has taken it since: its holder may
# have acted on it no longer, and a new fence says so.
_RENEW: Final = text("""
WITH mine AS (
    SELECT l.name FROM leases AS l
    JOIN unnest(CAST(:names AS text[]), CAST(:fences AS bigint[])) AS k (name, fence)
        USING (name, fence)
    WHERE l.token = :token AND l.lease_until > clock_timestamp()
    ORDER BY l.name FOR UPDATE OF l)
UPDATE leases SET lease_until = clock_timestamp() + :seconds * interval '1 second',
    details = coalesce(CAST(:details AS jsonb), details)
FROM mine WHERE leases.name = mine.name RETURNING leases.name
""")
_RELEASE: Final = text("""
UPDATE leases SET lease_until = clock_timestamp()
WHERE name = :name AND token = :token AND fence = :fence AND lease_until > clock_timestamp()
""")

_TIMEOUT: Final = 3.0
"""Seconds for one connection attempt, one statement or one lock."""
_LINE: Final = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8_000,
}
"""A peer that vanished without a word is noticed within 11 s of silence, and a write that nobody
acknowledges within 8: well inside a lease."""


@dataclass(frozen=True, slots=True)
class Holding:
    """One row of ``leases``; `live` by the server's clock."""

    name: str
    holder: str
    fence: int
    acquired_at: datetime
    lease_until: datetime
    details: Mapping[str, Any]
    live: bool


class PostgresLeases:
    """Leases with a fence, on connections of their own: a busy pool delays no renewal.

    Parameters
    ----------
    url : str
        libpq connection URI.
    schema : str
        Schema that holds the tables.

    Notes
    -----
    Every method may raise `StoreError`, within about 5 seconds of a server that does not answer.
    """

    def __init__(self, url: str, *, schema: str = "marketdata") -> None:
        self._database = Database(
            make_conninfo(url, **_LINE),
            schema=schema,
            pool_size=2,
            connect_timeout=_TIMEOUT,
            pool_timeout=_TIMEOUT,
            statement_timeout=_TIMEOUT,
            lock_timeout=_TIMEOUT,
            application_name="marketdata-lease",
        )

    def acquire(
        self,
        name: str,
        *,
        token: str,
        holder: str,
        seconds: float,
        details: Mapping[str, Any] | None = None,
    ) -> int | None:
        """Take the lease for `seconds`; return its fence, or None where somebody else holds it.

        Who holds it already, by `token`, gets it again under a new fence.
        """
        values = {
            "name": name,
            "token": token,
            "holder": holder,
            "seconds": seconds,
            "details": json.dumps(dict(details or {})),
        }
        row = self._database.run(lambda c: c.execute(_ACQUIRE, values).one_or_none())
        return None if row is None else int(row[0])

    def renew(
        self,
        fences: Mapping[str, int],
        *,
        token: str,
        seconds: float,
        details: Mapping[str, Any] | None = None,
    ) -> set[str]:
        """Extend leases to `seconds` from now; return the names of those that are still held."""
        values = {
            "names": list(fences),
            "fences": list(fences.values()),
            "token": token,
            "seconds": seconds,
            "details": None if details is None else json.dumps(dict(details)),
        }
        rows = self._database.run(lambda c: c.execute(_RENEW, values).all())
        return {name for (name,) in rows}

    def release(self, name: str, *, token: str, fence: int) -> None:
        """Let the next one have it at once. Does nothing where it was lost already."""
        values = {"name": name, "token": token, "fence": fence}
        self._database.run(lambda c: c.execute(_RELEASE, values))

    def holdings(self) -> Sequence[Holding]:
        """Return every lease ever taken, by name."""
        rows = self._database.run(lambda c: c.execute(HOLDINGS).all(), snapshot=True)
        return [Holding(*row) for row in rows]

    def close(self) -> None:
        """Close the connections; a later call would open new ones."""
        self._database.close()
