"""Migrations: numbered SQL files that only go forward, applied under one lock.

The files lie in ``database/init`` of the project; in an installed package, in ``store/sql``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psycopg import sql

from marketdata.errors import SchemaError
from marketdata.store.connection import Database, Driver, driver, unhurried
from marketdata.store.failures import INIT_CURE

_LONGEST: Final = 3600.0
"""Seconds one migration may take: some look at every bar."""
_PACKAGED: Final = Path(__file__).with_name("sql")
_IN_PROJECT: Final = Path(__file__).resolve().parents[3] / "database" / "init"
_FILE_NAME: Final = re.compile(r"(\d{3})_(\w+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    statements: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.statements.encode()).hexdigest()


def load_migrations(folder: Path | None = None) -> list[Migration]:
    """Return the migrations of `folder` (by default: this release's), ascending from 1."""
    if folder is None:
        folder = _PACKAGED if _PACKAGED.is_dir() else _IN_PROJECT
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match:
            found.append(Migration(int(match[1]), match[2], path.read_text(encoding="utf-8")))
    if not found or [m.number for m in found] != list(range(1, len(found) + 1)):
        raise SchemaError(
            "this installation has no complete set of migrations", cure="install marketdata again"
        )
    return found


def migration_sql(schema: str, migrations: Sequence[Migration] | None = None) -> str:
    """Return one script that makes `schema` from nothing, for an administrator to run with psql."""
    migrations = load_migrations() if migrations is None else migrations
    parts = [
        "-- marketdata: the whole schema, for psql. Run once, on a database without it.",
        "BEGIN;",
        f"CREATE SCHEMA IF NOT EXISTS {schema};",
        f"SET LOCAL search_path = {schema}, pg_temp;",
        "SET LOCAL TimeZone = 'UTC';",
    ]
    for migration in migrations:
        parts.append(f"\n-- {migration.number:03}_{migration.name}\n{migration.statements}")
        parts.append(
            "INSERT INTO schema_migrations (number, name, checksum) VALUES "  # noqa: S608
            f"({migration.number}, '{migration.name}', '{migration.checksum}');"
        )
    return "\n".join([*parts, "COMMIT;", ""])


class Migrator:
    """Brings the schema of a database to what this release needs."""

    def __init__(self, database: Database, migrations: Sequence[Migration] | None = None) -> None:
        self._database = database
        self._migrations = list(load_migrations() if migrations is None else migrations)

    def migrate(self) -> list[int]:
        """Apply what is missing, all in one transaction under one lock; return the numbers applied.

        Raises
        ------
        SchemaError
            The schema is newer than this release, or an applied migration reads differently now;
            nothing was changed, and a retry does not help.
        StoreReadOnlyError
            The user may not create tables here; ``marketdata db init --sql`` prints what an
            administrator can run.
        """
        return self._database.run(lambda c: self._apply(driver(c)))

    def check(self) -> None:
        """Raise `SchemaError` unless the schema is exactly what this release needs."""
        missing = self._missing(self.applied())
        if missing:
            state = "is missing" if len(missing) == len(self._migrations) else "is out of date"
            raise SchemaError(
                f"schema {self._database.schema!r} of {self._database.address} {state}",
                cure=INIT_CURE,
            )

    def prepare(self) -> None:
        """Make the schema where there is none yet, else `check` it: an existing schema is brought
        up to date by ``db init`` alone, since older processes may be working on it.

        Raises
        ------
        SchemaError
            Out of date, newer or changed; a retry does not help.
        StoreReadOnlyError
            There is none and the user may not make one.
        """
        if self.applied():
            self.check()
        else:
            self.migrate()

    def applied(self) -> dict[int, str]:
        """Return number and checksum of the migrations applied; empty without the schema."""
        return self._database.run(lambda c: self._applied(driver(c)))

    def _apply(self, raw: Driver) -> list[int]:
        schema = self._database.schema
        raw.execute(
            "SELECT pg_advisory_xact_lock(hashtext('marketdata.schema'), hashtext(%s))", (schema,)
        )
        # Asked first: CREATE SCHEMA IF NOT EXISTS needs the right to create it even where it exists.
        if not raw.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,)).rowcount:
            raw.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        missing = self._missing(self._applied(raw))
        with unhurried(raw, _LONGEST):
            for migration in missing:
                raw.execute(migration.statements.encode())
                raw.execute(
                    "INSERT INTO schema_migrations (number, name, checksum) VALUES (%s, %s, %s)",
                    (migration.number, migration.name, migration.checksum),
                )
        return [migration.number for migration in missing]

    def _applied(self, raw: Driver) -> dict[int, str]:
        table = f"{self._database.schema}.schema_migrations"
        if raw.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
            return {}
        return dict(raw.execute("SELECT number, checksum FROM schema_migrations").fetchall())

    def _missing(self, applied: dict[int, str]) -> list[Migration]:
        newest = max(applied, default=0)
        if newest > len(self._migrations):
            raise SchemaError(
                f"schema {self._database.schema!r} of {self._database.address} has migration "
                f"{newest}; this release knows {len(self._migrations)}",
                cure="update marketdata: pip install -U marketdata",
            )
        for migration in self._migrations:
            if applied.get(migration.number, migration.checksum) != migration.checksum:
                raise SchemaError(
                    f"migration {migration.number:03}_{migration.name} was applied to "
                    f"{self._database.address} in another wording",
                    cure="use the release that made the schema, or export the data and "
                    "initialise a new schema",
                )
        return [m for m in self._migrations if m.number not in applied]
