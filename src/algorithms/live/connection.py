"""One bounded connection to the store's database, made anew when it was lost.

psycopg's errors become marketdata's here and nowhere else.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

import marketdata as md

Cursor = psycopg.Cursor[tuple[Any, ...]]

_CONNECT_SECONDS: Final = 5
_STATEMENT_SECONDS: Final = 30.0
_LOCK_SECONDS: Final = 10.0
_ANSWER_GRACE: Final = 2.0
"""Seconds beyond the statement timeout after which a silent server counts as gone."""
_CONFLICTS: Final = ("40001", "40P01")
_CONFLICT_ATTEMPTS: Final = 5
_MISSING: Final = ("3F000", "42P01", "42703")


class _BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits for an answer for so long and no longer."""

    def wait[RV](self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        longest = _STATEMENT_SECONDS + _ANSWER_GRACE if timeout is None else timeout
        try:
            return super().wait(gen, interval, longest)
        except psycopg.OperationalError as error:
            if error.sqlstate is None and (
                self.pgconn.transaction_status == TransactionStatus.ACTIVE
            ):
                self.pgconn.finish()  # whatever comes now would be read as another's answer
            raise


def translated(error: psycopg.Error) -> md.MarketDataError:
    """Return what an error of the driver means to a caller.

    Lost connections, conflicts, time-outs and a server that is full or starting up are transient:
    the same call can be repeated. A missing table names the command that makes it.
    """
    state = error.sqlstate or ""
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    if state in _MISSING:
        return md.SchemaError(
            f"the tables of the algorithms are missing: {told}", cure="run: marketdata db init"
        )
    if state == "42501":
        return md.StoreReadOnlyError(
            f"this PostgreSQL user lacks a right: {told}",
            cure="grant it the role marketdata_writer",
        )
    if state in ("25006", "53100"):
        return md.StoreReadOnlyError(
            f"PostgreSQL takes no writes: {told}",
            cure="check its disk, and whether it is a standby",
        )
    gone = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    if gone or state in _CONFLICTS or state[:2] in ("53", "57", "08") or state == "55P03":
        return md.StoreUnavailableError(f"PostgreSQL did not do it: {told}")
    return md.StoreError(f"PostgreSQL refused a statement: {told}", cure="report this as a bug")


class Link:
    """Runs transactions on one connection, one at a time. Thread-safe; a forked child gets its own.

    Parameters
    ----------
    url : str
        libpq connection URI.
    schema : str
        Where the tables are.
    """

    def __init__(self, url: str, schema: str = "marketdata") -> None:
        given = conninfo_to_dict(url)
        bounds: dict[str, Any] = {
            "connect_timeout": _CONNECT_SECONDS,
            "application_name": "marketdata algorithms",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        }
        self._conninfo = make_conninfo(**{**bounds, **given})
        self._settings = sql.SQL(
            "SET LOCAL search_path = {}, pg_temp; SET LOCAL TimeZone = 'UTC'; "
            "SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {};"
        ).format(
            sql.Identifier(schema),
            sql.Literal(round(_STATEMENT_SECONDS * 1000)),
            sql.Literal(round(_LOCK_SECONDS * 1000)),
        )
        self._lock = threading.RLock()
        self._connection: _BoundedConnection | None = None
        self._pid = os.getpid()

    def run[T](self, work: Callable[[Cursor], T], *, repeatable: bool = True) -> T:
        """Return what `work` returns, its statements committed as one transaction.

        A conflict is tried again, and so is a connection that turned out to be dead before
        anything was done on it.

        Parameters
        ----------
        work : callable
            Called with a cursor; may be called again.
        repeatable : bool
            Whether a connection lost on the way may be followed by another try: the outcome of the
            first is unknown then.

        Raises
        ------
        StoreUnavailableError
            A retry helps; where `repeatable` is False it may have been done already.
        StoreError, StoreReadOnlyError, SchemaError
            A retry does not help.
        """
        attempt = 0
        while True:
            attempt += 1
            began = False
            try:
                with self._transaction() as cursor:
                    began = True
                    return work(cursor)
            except psycopg.Error as error:
                conflict = error.sqlstate in _CONFLICTS and attempt < _CONFLICT_ATTEMPTS
                lost = self._lost() and attempt == 1 and (repeatable or not began)
                if not (conflict or lost):
                    raise translated(error) from error
                if conflict:
                    time.sleep(random.uniform(0.01, 0.05) * attempt)

    @contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        with self._lock:
            connection = self._connected()
            try:
                with connection.transaction(), connection.cursor() as cursor:
                    cursor.execute(self._settings)
                    yield cursor
            except psycopg.Error:
                if connection.closed or connection.broken:
                    self._drop()
                raise

    def _connected(self) -> _BoundedConnection:
        if self._pid != os.getpid():
            self._connection, self._pid = None, os.getpid()  # the parent's: not ours to close
        if self._connection is None:
            self._connection = _BoundedConnection.connect(
                self._conninfo, autocommit=True, prepare_threshold=None
            )
        return self._connection

    def _lost(self) -> bool:
        return self._connection is None

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        with self._lock:
            self._drop()
