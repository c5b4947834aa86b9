"""Rows out of a PostgreSQL that is not ours: any query, streamed as CSV by the server itself."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from marketdata.errors import ConfigurationError, RequestError
from marketdata.store.failures import translate

_CONNECT_SECONDS: Final = 10
_REFUSED: Final = ("42", "22", "0A", "25")
"""SQLSTATE classes of a query that cannot be run as written."""


@contextmanager
def copied_csv(url: str, query: str) -> Iterator[IO[bytes]]:
    """Yield the rows of `query` as CSV with a line of names; floats in full, times in UTC.

    The transaction is read-only, and memory stays bounded by what the reader leaves unread.

    Parameters
    ----------
    url : str
        libpq connection URI of the database to read from.
    query : str
        One SELECT (or VALUES, TABLE, WITH).

    Raises
    ------
    ConfigurationError
        Unreadable URL, or the server refuses user or password.
    RequestError
        The query cannot be run as written.
    StoreUnavailableError
        The server cannot be reached or went away; a retry can help.
    """
    where, parameters = _address(url)
    statement = sql.SQL("COPY ({}) TO STDOUT WITH (FORMAT csv, HEADER true)").format(
        sql.SQL(query.strip().rstrip(";"))
    )
    try:
        with psycopg.connect(parameters) as connection:
            connection.execute(
                "SET TRANSACTION READ ONLY; SET LOCAL TimeZone = 'UTC';"
                "SET LOCAL DateStyle = 'ISO'; SET LOCAL extra_float_digits = 1"
            )
            with connection.cursor() as cursor, cursor.copy(statement) as copy:
                yield io.BufferedReader(_Rows(copy), 1 << 20)
                _drain(copy)
    except psycopg.Error as error:
        if str(error.sqlstate or "")[:2] in _REFUSED:
            said = str(error).strip().splitlines()[0]
            raise RequestError(f"the query cannot be run: {said}", cure="correct it") from error
        raise translate(error, where) from error


def _drain(copy: psycopg.Copy) -> None:
    while copy.read():
        pass


def _address(url: str) -> tuple[str, str]:
    """Return where this is, without secrets, and the parameters to connect with."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error as error:
        raise ConfigurationError(
            "the database URL to read from cannot be understood",
            cure="write postgresql://user:password@host:5432/database",
        ) from error
    where = (
        f"{given.get('host', 'local socket')}:{given.get('port', 5432)}/{given.get('dbname', '')}"
    )
    ours: dict[str, str | int] = {
        "connect_timeout": _CONNECT_SECONDS,
        "application_name": "marketdata import",
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "tcp_user_timeout": 60_000,
    }
    missing = {name: value for name, value in ours.items() if name not in given}
    return where, make_conninfo(url, **missing)


class _Rows(io.RawIOBase):
    """What the server sends, as a stream."""

    def __init__(self, copy: psycopg.Copy) -> None:
        self._copy = copy
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(self._copy.read())
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
