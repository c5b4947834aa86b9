"""Totals over all processes: what ``md.stats()`` counts in each, added up in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import text

from marketdata.store.connection import Database

_ADD: Final = text("""
INSERT INTO counters AS c (name, value)
SELECT k.name, k.value
FROM unnest(CAST(:names AS text[]), CAST(:numbers AS bigint[])) AS k (name, value) ORDER BY 1
ON CONFLICT (name) DO UPDATE
    SET value = c.value + excluded.value, updated_at = excluded.updated_at
""")
TOTALS: Final = text("SELECT name, value FROM counters")


class PostgresCounters:
    """Counters that only grow. Every method may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, numbers: Mapping[str, int]) -> None:
        """Add `numbers` to the totals, all or none; after a connection lost during COMMIT they may
        count twice."""
        values = {"names": list(numbers), "numbers": list(numbers.values())}
        self._database.run(lambda c: c.execute(_ADD, values), patient=False)

    def totals(self) -> dict[str, int]:
        """Return every total by name."""
        rows = self._database.run(lambda c: c.execute(TOTALS).all(), snapshot=True)
        return {name: int(value) for name, value in rows}
