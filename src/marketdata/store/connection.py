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
from weakref import WeakSet

import psycopg
import sqlalchemy.exc
from psycopg import sql
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import QueuePool

from marketdata.errors import ConfigurationError
from marketdata.store.arrays import register_arrays
from marketdata.store.failures import FOREIGN, Retry, judge, translate
from marketdata.store.wire import register_loaders

Driver = psycopg.Connection[tuple[Any, ...]]

_ANSWER_GRACE: Final = 2.0
"""Seconds beyond the statement timeout after which a silent server counts as gone."""
_SILENCE_REMEMBERED: Final = 1.0
"""Seconds for which a server that did not answer is not asked again by other threads."""
_REFUSED_PAUSE: Final = 0.05
"""Seconds at most before a server that has refused a connection is tried once more: enough for a
proxy or a burst of clients, and still an error at once where it is down."""
_CONFLICT_ATTEMPTS: Final = 8
_CONFLICT_PAUSE: Final = 0.02
_SNAPSHOT: Final = sql.SQL("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;")
_NOTHING: Final = sql.SQL("")
_SCHEMA_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class _BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits for an answer for so long and no longer.

    The server's own statement timeout ends a slow statement, but not the wait for a server that is
    frozen or behind a dead link, where TCP may go on acknowledging.
    """

    answer_timeout: float | None = None
    made = 0.0
    """When, by `time.monotonic`."""
    rested = False
    """Whether it has lain in the pool, where it can have died unnoticed."""

    def wait[RV](self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        try:
            return super().wait(gen, interval, self.answer_timeout if timeout is None else timeout)
        except psycopg.OperationalError as error:
            unanswered = self.pgconn.transaction_status == TransactionStatus.ACTIVE
            if error.sqlstate is None and unanswered and timeout is None:
                self.pgconn.finish()  # whatever comes now would be read as another's answer
            raise


class _StaleConnectionError(Exception):
    """A connection had died in the pool; nothing was asked of it yet."""

    def __init__(self, found: psycopg.Error) -> None:
        super().__init__(found)
        self.found = found


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
        self._answer_timeout = statement_timeout + _ANSWER_GRACE
        self._silent_until = 0.0
        self._lost_at = -math.inf
        self._pool_size = pool_size
        self._pool_timeout = pool_timeout
        settings = sql.SQL(
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
        # Rendered once: every transaction begins with them.
        self._settings = sql.SQL(settings.as_string())
        self._lock = threading.Lock()
        # Threads queue here and not in the pool, which wakes nobody when a connection cannot be
        # made: they would wait out their time behind a server that is down.
        self._slots = threading.BoundedSemaphore(pool_size)
        self._engine: Engine | None = None
        _databases.add(self)

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
        """The connection pool of this process; a forked child makes its own."""
        with self._lock:
            if self._engine is None:
                self._engine = self._make_engine()
            return self._engine

    def after_fork_in_child(self) -> None:
        """Forget what the parent goes on using, before anything in the child can touch it."""
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self._pool_size)
        if self._engine is not None:
            self._engine.dispose(close=False)  # a goodbye would end the parent's sessions
            self._engine = None

    def _make_engine(self) -> Engine:
        # No ping before use: what opens a transaction is one, see `_open`.
        engine = create_engine(
            "postgresql+psycopg://",
            creator=self.connect,
            poolclass=QueuePool,
            pool_size=self._pool_size,
            max_overflow=0,
            pool_use_lifo=True,
            use_native_hstore=False,
        )
        event.listen(engine, "checkin", _note_rest)
        event.listen(engine, "checkout", self._refuse_older)
        return engine

    def _refuse_older(self, raw: Driver, *_: object) -> None:
        """Have the pool replace a connection that is older than the last one lost: what ended that
        one, such as a restart, has probably ended the others."""
        if isinstance(raw, _BoundedConnection) and raw.rested and raw.made <= self._lost_at:
            raise sqlalchemy.exc.DisconnectionError

    def _note_loss(self, raw: Driver) -> None:
        # Whoever finds out late about an earlier loss does not condemn what was made since.
        if isinstance(raw, _BoundedConnection) and raw.made > self._lost_at:
            self._lost_at = time.monotonic()

    def connect(self) -> Driver:
        """Open one connection outside the pool; the caller closes it."""
        if time.monotonic() < self._silent_until:
            # Else fifty threads would find out one after the other, each for its whole timeout.
            raise psycopg.errors.ConnectionTimeout("the server did not answer just now")
        try:
            raw = _BoundedConnection.connect(**self._parameters, prepare_threshold=None)
        except psycopg.errors.ConnectionTimeout:
            self._silent_until = time.monotonic() + _SILENCE_REMEMBERED
            raise
        raw.answer_timeout = self._answer_timeout
        raw.made = time.monotonic()
        register_loaders(raw)
        register_arrays(raw)
        return raw

    def close(self) -> None:
        """Close every pooled connection of this process. The next use opens new ones."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None

    def run[T](
        self,
        work: Callable[[Connection], T],
        *,
        snapshot: bool | str = False,
        patient: bool = True,
        opening: sql.Composable = _NOTHING,
    ) -> T:
        """Run `work` in one transaction and commit it; return what it returns.

        `work` must be idempotent: it runs again after a deadlock or a serialisation failure
        (boundedly, with jitter), and once after the connection was lost or refused, even lost
        during COMMIT, when nobody knows whether the first attempt counted. A connection that had
        died in the pool is replaced and does not count.

        Parameters
        ----------
        work : callable
            Gets the SQLAlchemy connection; `driver` gives psycopg's for COPY.
        snapshot : bool or str
            Read only, every statement seeing the same data; a string joins the snapshot that
            another transaction has exported.
        opening : Composable
            Statements to run first, each after a semicolon: what must be set, or locked, before a
            snapshot is taken.
        patient : bool
            Whether to wait for a free connection; else none free is an error at once.

        Raises
        ------
        StoreError, DataQualityError, ConfigurationError
            Translated from PostgreSQL's errors; nothing was stored, except that after a second
            loss of the connection during COMMIT it may have been.
        """
        conflicts = losses = stale = 0
        while True:
            opened = False
            try:
                with self._transaction(snapshot, patient, opening) as connection:
                    opened = True
                    return work(connection)
            except _StaleConnectionError as error:
                stale += 1
                if stale > self._pool_size:
                    raise translate(error.found, self.address) from error.found
            except FOREIGN as error:
                if (ended := _ended_by(error)) is not None:
                    raise ended from None
                retry = judge(error).retry
                if retry is Retry.CONFLICT and conflicts < _CONFLICT_ATTEMPTS:
                    conflicts += 1
                    time.sleep(random.uniform(0.2, 1) * _CONFLICT_PAUSE * 2**conflicts)
                elif retry is Retry.RECONNECTED and losses == 0:
                    losses += 1
                    if not opened:
                        time.sleep(random.uniform(0.5, 1) * _REFUSED_PAUSE)
                else:
                    raise translate(error, self.address) from error

    @contextmanager
    def _slot(self, patient: bool) -> Iterator[None]:
        slots = self._slots
        if not slots.acquire(timeout=self._pool_timeout if patient else 0):
            raise sqlalchemy.exc.TimeoutError(f"{self._pool_size} connections in use")
        try:
            yield
        finally:
            slots.release()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        engine = self.engine
        pool = engine.pool
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            if engine is not self._engine:
                pool.dispose()  # closed meanwhile: nobody else will close what has just come back

    @contextmanager
    def _transaction(
        self, snapshot: bool | str, patient: bool, further: sql.Composable
    ) -> Iterator[Connection]:
        opening = self._settings + further
        if snapshot:
            opening = _SNAPSHOT + opening
        if isinstance(snapshot, str):
            joining = sql.SQL("SET TRANSACTION SNAPSHOT {};").format(sql.Literal(snapshot))
            opening = _SNAPSHOT + joining + self._settings + further
        with self._slot(patient), self._connected() as connection:
            raw = driver(connection)
            with connection.begin():
                try:
                    # Not SQLAlchemy's options: undone, they make the connection's next
                    # transactions READ WRITE, whatever default_transaction_read_only says.
                    _open(raw, opening)
                    yield connection
                except BaseException:
                    if raw.closed:
                        self._note_loss(raw)
                        # SQLAlchemy has not seen it die: COPY goes past it.
                        connection.invalidate()
                    raise


_databases: WeakSet[Database] = WeakSet()


def _after_fork_in_child() -> None:
    for database in _databases:
        database.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _open(raw: Driver, opening: sql.Composed) -> None:
    try:
        raw.execute(opening)
    except psycopg.Error as error:
        if raw.closed and isinstance(raw, _BoundedConnection) and raw.rested:
            raise _StaleConnectionError(error) from error
        raise


def _note_rest(raw: Driver | None, _: object) -> None:
    if isinstance(raw, _BoundedConnection):
        raw.rested = True


def driver(connection: Connection) -> Driver:
    """Return the psycopg connection below a SQLAlchemy one, in the same transaction."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


@contextmanager
def unhurried(raw: Driver, seconds: float) -> Iterator[None]:
    """Give each statement of this transaction so many seconds instead of the store's own."""
    raw.execute(
        sql.SQL("SET LOCAL statement_timeout = {0}").format(sql.Literal(round(seconds * 1000)))
    )
    if not isinstance(raw, _BoundedConnection):
        yield
        return
    usual, raw.answer_timeout = raw.answer_timeout, seconds + _ANSWER_GRACE
    try:
        yield
    finally:
        raw.answer_timeout = usual


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


def _ended_by(error: BaseException) -> BaseException | None:
    """Return what ended the work, such as Ctrl-C, where giving back its connection then failed."""
    earlier = error.__context__
    while earlier is not None and isinstance(earlier, Exception):
        earlier = earlier.__context__
    return earlier
