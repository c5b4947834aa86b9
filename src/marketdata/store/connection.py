"""Connections to PostgreSQL: pooled, bounded in time, safe across forks, healed after a restart."""

from __future__ import annotations

import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import QueuePool

from marketdata.errors import ConfigurationError
from marketdata.store.failures import FOREIGN, Retry, judge, translate
from marketdata.store.wire import register_loaders

Driver = psycopg.Connection[tuple[Any, ...]]

_CONFLICT_ATTEMPTS: Final = 8
_CONFLICT_PAUSE: Final = 0.02
_SCHEMA_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class Database:
    """One PostgreSQL database and schema, seen by one process.

    Every transaction states its own settings (``SET LOCAL``) and no statement is prepared on the
    server, so that proxies which pool transactions may stand in between.

    Parameters
    ----------
    url : str
        libpq connection URI, as ``psql`` takes it.
    schema : str
        Schema that holds the tables; lower case.
    pool_size : int
        Most connections of this process.
    connect_timeout, pool_timeout, statement_timeout, lock_timeout : float
        Seconds: for one connection attempt; for a free connection of the pool; for one statement;
        for one lock.
    application_name : str
        How the connections are called in ``pg_stat_activity``.

    Raises
    ------
    ConfigurationError
        Unreadable URL or schema name; a retry does not help.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str,
        pool_size: int,
        connect_timeout: float,
        pool_timeout: float,
        statement_timeout: float,
        lock_timeout: float,
        application_name: str,
    ) -> None:
        if not _SCHEMA_NAME.fullmatch(schema):
            raise ConfigurationError(
                f"{schema!r} cannot be the name of our schema",
                cure="set MARKETDATA_SCHEMA to lower-case letters, digits and underscores",
            )
        self.schema = schema
        self._parameters = _connection_parameters(url, connect_timeout, application_name)
        self._pool_size = pool_size
        self._pool_timeout = pool_timeout
        self._settings = sql.SQL(
            "SET LOCAL TimeZone = 'UTC'; SET LOCAL search_path = {}, pg_temp;"
            "SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {};"
            "SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL jit = off;"
            "SET LOCAL client_min_messages = warning"
        ).format(
            sql.Identifier(schema),
            sql.Literal(round(statement_timeout * 1000)),
            sql.Literal(round(lock_timeout * 1000)),
            sql.Literal(round(statement_timeout * 1000)),
        )
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._pid = 0

    @property
    def address(self) -> str:
        """Where the database is, without user or secrets: ``host:port/database``."""
        known = self._parameters
        host = known.get("host") or known.get("hostaddr") or "local socket"
        port = f":{known['port']}" if known.get("port") else ""
        return f"{host}{port}/{known.get('dbname') or known.get('user') or ''}"

    def __repr__(self) -> str:
        return f"Database({self.address}, schema={self.schema!r})"

    @property
    def engine(self) -> Engine:
        """The connection pool of this process; a child process makes its own."""
        if self._engine is None or self._pid != os.getpid():
            # Not under a lock that a fork may have copied while another thread held it.
            if self._pid != os.getpid():
                self._lock = threading.Lock()
            with self._lock:
                if self._engine is not None and self._pid != os.getpid():
                    # The parent still speaks on these sockets: forget them without a goodbye.
                    self._engine.dispose(close=False)
                    self._engine = None
                if self._engine is None:
                    self._engine = self._make_engine()
                    self._pid = os.getpid()
        return self._engine

    def _make_engine(self) -> Engine:
        return create_engine(
            "postgresql+psycopg://",
            creator=self.connect,
            poolclass=QueuePool,
            pool_size=self._pool_size,
            max_overflow=0,
            pool_timeout=self._pool_timeout,
            pool_pre_ping=True,
            pool_use_lifo=True,
            use_native_hstore=False,
        )

    def connect(self) -> Driver:
        """Open one connection outside the pool; the caller closes it."""
        driver = psycopg.connect(**self._parameters, prepare_threshold=None)
        register_loaders(driver)
        return driver

    def close(self) -> None:
        """Close every pooled connection of this process. The next use opens new ones."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose(close=self._pid == os.getpid())
                self._engine = None

    def run[T](self, work: Callable[[Connection], T], *, snapshot: bool = False) -> T:
        """Run `work` in one transaction and commit it; return what it returns.

        `work` must be idempotent: it runs again after a deadlock or a serialisation failure
        (boundedly, with jitter), and once after the connection was lost, even during COMMIT,
        when nobody knows whether the first attempt counted.

        Parameters
        ----------
        work : callable
            Gets the SQLAlchemy connection; `driver` gives psycopg's for COPY.
        snapshot : bool
            Read only, every statement seeing the same data.

        Raises
        ------
        StoreError, DataQualityError, ConfigurationError
            Translated from PostgreSQL's errors; nothing was stored, except that after a second
            loss of the connection during COMMIT it may have been.
        """
        conflicts = losses = 0
        while True:
            opened = False
            try:
                with self._transaction(snapshot) as connection:
                    opened = True
                    return work(connection)
            except FOREIGN as error:
                retry = judge(error).retry
                if retry is Retry.CONFLICT and conflicts < _CONFLICT_ATTEMPTS:
                    conflicts += 1
                    time.sleep(random.uniform(0.2, 1) * _CONFLICT_PAUSE * 2**conflicts)
                elif retry is Retry.RECONNECTED and opened and losses == 0:
                    losses += 1
                else:
                    raise translate(error, self.address) from error

    @contextmanager
    def _transaction(self, snapshot: bool) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            if snapshot:
                connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
            raw = driver(connection)
            with connection.begin():
                try:
                    raw.execute(self._settings)
                    yield connection
                except BaseException:
                    if raw.closed:
                        # SQLAlchemy has not seen it die: COPY goes past it.
                        connection.invalidate()
                    raise


def driver(connection: Connection) -> Driver:
    """Return the psycopg connection below a SQLAlchemy one, in the same transaction."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


def _connection_parameters(
    url: str, connect_timeout: float, application_name: str
) -> dict[str, Any]:
    if re.match(r"postgres(ql)?\+", url):
        raise ConfigurationError(
            "the database URL names a driver", cure="write postgresql://user@host/database"
        )
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        # The parser's message may quote the password.
        raise ConfigurationError(
            "the database URL cannot be read",
            cure="MARKETDATA_DATABASE_URL looks like postgresql://user:password@host:5432/database, "
            "with special characters percent-encoded; run: marketdata doctor",
        ) from None
    return {
        "connect_timeout": max(1, math.ceil(connect_timeout)),
        "application_name": application_name,
        "keepalives": 1,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        **{name: value for name, value in given.items() if value is not None},
    }
