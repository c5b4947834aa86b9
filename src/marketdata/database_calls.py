"""``database``: where the bars are kept, for programs that keep tables of their own beside them."""

from __future__ import annotations

from dataclasses import dataclass

from marketdata.config import masked_url
from marketdata.connected import Connected


@dataclass(frozen=True, slots=True)
class Database:
    """The PostgreSQL database of a client. Its `repr` hides the password, its `url` does not."""

    url: str
    """libpq URI (``postgresql://user:password@host:5432/name``), as psycopg and ``psql`` take it;
    that of the embedded server leads to its socket. It holds the password: never log it."""
    schema: str
    """The schema of the library's own tables."""

    def __repr__(self) -> str:
        return f"Database(url={masked_url(self.url)!r}, schema={self.schema!r})"


class DatabaseCalls(Connected):
    """The call about the store itself."""

    def database(self) -> Database:
        """Return the PostgreSQL database that this client uses; it is started, and its schema
        made, if need be.

        For programs that keep tables of their own beside the bars, on connections of their own.
        The library's tables are its own: read them through its calls, and write none of them. An
        embedded server stays up at least until this client is closed or its process ends.

        Returns
        -------
        Database
            `url`, which holds the password, and `schema`. Printed, it hides the password.

        Raises
        ------
        StoreError
            PostgreSQL cannot be reached, or its schema is not up to date; a retry helps where the
            error is transient.
        ConfigurationError
            A setting is wrong, or an embedded server cannot be started.
        """
        runtime = self._runtime
        return Database(runtime.database_url, runtime.settings.database_schema)
