"""One request budget per credential, shared by every process on the same store."""

from __future__ import annotations

import hashlib
from typing import Final

from sqlalchemy import Connection, text

from marketdata.store.connection import Database

# Losing a second of grants in a server crash is cheaper than a disk flush for every request.
_QUICK: Final = text("SET LOCAL synchronous_commit = off")
_TAKE: Final = text("SELECT take_request(:credential, :per_minute, :reserve)")
_PAUSE: Final = text("""
INSERT INTO rate_budgets AS b (credential, paused_until)
VALUES (:credential, clock_timestamp() + :seconds * interval '1 second')
ON CONFLICT (credential) DO UPDATE
    SET paused_until = greatest(b.paused_until, excluded.paused_until)
""")


class PostgresBudget:
    """A sliding window of 60 seconds: no such window ever grants more than the limit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, credential: str, limit_per_minute: int, reserve: int = 0) -> float:
        """Take one request from the budget; return 0.0, or the seconds to wait (nothing taken).

        Granted only while more than `reserve` requests of the window are left. `credential` is
        stored as a digest only.
        """
        parameters = {
            "credential": _digest(credential),
            "per_minute": limit_per_minute,
            "reserve": reserve,
        }

        def work(connection: Connection) -> float:
            connection.execute(_QUICK)
            return float(connection.execute(_TAKE, parameters).scalar_one())

        return self._database.run(work)

    def pause(self, credential: str, seconds: float) -> None:
        """Grant nothing for `seconds` from now, on PostgreSQL's clock; a longer pause stays."""
        parameters = {"credential": _digest(credential), "seconds": seconds}
        self._database.run(lambda c: c.execute(_PAUSE, parameters))


def _digest(credential: str) -> str:
    return hashlib.sha256(f"marketdata:{credential}".encode()).hexdigest()[:32]
