"""The embedded PostgreSQL: one cluster per home, on a unix socket only."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from marketdata.embedded.binaries import POSTGRES_MAJOR, PostgresPrograms, find_postgres
from marketdata.embedded.home import Home, data_root, private_directory
from marketdata.embedded.locks import LockFile
from marketdata.embedded.processes import (
    Account,
    run_as,
    server_account,
    spawn_detached,
    start_child,
)
from marketdata.embedded.server import Server
from marketdata.errors import ConfigurationError, StoreUnavailableError

_PORT = 5432
_SUPERUSER = "postgres"
_DATABASE = "marketdata"
_LONGEST_PATH = 900  # PostgreSQL's own limit is 1024 bytes, file names included

# Written into postgresql.conf when the cluster is made; ALTER SYSTEM can change them later.
_SETTINGS = {
    "max_connections": "300",
    "shared_buffers": "128MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # /dev/shm is 64 MB in a container, and logind empties it when a user logs out.
    "dynamic_shared_memory_type": "mmap",
    # No extra worker processes per home.
    "io_method": "sync",
}
if sys.platform == "linux":
    # One call instead of one for each of a thousand files after a crash.
    _SETTINGS["recovery_init_sync_method"] = "syncfs"


class Postgres(Server):
    """PostgreSQL 18 from the wheel's binaries.

    Trust authentication within a socket directory of mode 0700; UTF-8, sorted by code point;
    ``fsync`` stays on. Root's server runs as an unprivileged account.
    """

    name = "postgres"
    title = "PostgreSQL"
    # Fast shutdown, then immediate: https://www.postgresql.org/docs/18/server-shutdown.html
    stop_signals = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 5.0))
    program_names: Sequence[str] = ("postgres", "initdb")

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        state = home.state()
        self._root = Path(state.postgres_root) if state and state.postgres_root else None
        self._sockets = Path(state.runtime if state else "/nonexistent") / "pg"

    @property
    def lock_path(self) -> Path:
        return (self._root or self.home.path / "postgres") / "lock"

    @property
    def directory(self) -> Path:
        return (self._root or self.home.path / "postgres") / "data"

    @property
    def url(self) -> str:
        """The libpq URI of the database ``marketdata`` over the socket directory."""
        return self._url(_DATABASE)

    def _url(self, database: str) -> str:
        # The directory as a parameter, because SQLAlchemy does not decode it as a host.
        return f"postgresql://{_SUPERUSER}@/{database}?host={quote(str(self._sockets))}"

    def recorded_pid(self) -> int | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int((self.directory / "postmaster.pid").read_text().split("\n")[0])
        return None

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError as error:
            said = str(error)
            if f'database "{_DATABASE}" does not exist' in said:
                return self._create_database()
            # A refusal such as "too many clients" is an answer; starting and stopping are not.
            return "FATAL" in said and "the database system" not in said
        return True

    def _create_database(self) -> bool:
        """Create our database in a cluster that has just been made."""
        import psycopg

        try:
            with psycopg.connect(self._url("postgres"), connect_timeout=2, autocommit=True) as db:
                db.execute(f"CREATE DATABASE {_DATABASE}")
        except psycopg.errors.DuplicateDatabase:
            return True
        except psycopg.OperationalError:
            return False
        return True

    def patience(self) -> float | None:
        # A postmaster that starts or recovers has a pid file and, soon, a socket.
        reachable = (self._sockets / f".s.PGSQL.{_PORT}").exists()
        return None if reachable and self.pid() is not None else 1.0

    def launch(self, lock: LockFile, deadline: float) -> None:
        account = server_account()
        programs = find_postgres(account)
        private_directory(self._sockets, account)
        if not (self.directory / "PG_VERSION").exists():
            self._initialise(programs, account, lock, deadline)
        self._check_version()
        self._remove_stale_locks()
        options = {
            "listen_addresses": "",
            "port": str(_PORT),
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
            "cluster_name": "marketdata",
        }
        argv = [programs.postgres, "-D", str(self.directory)]
        for option, value in options.items():
            argv += ["-c", f"{option}={value}"]
        spawn_detached(argv, log=self.log, fds=[lock.fd], account=account)
        self._record(postgres_version=programs.version)

    def place(self) -> None:
        """Decide, once per home, where the data lives and who owns it. Before `ensure`."""
        if self._root is not None and self._root.is_dir():
            return
        account = server_account()
        find_postgres(account)  # nothing is made where it cannot run
        self._root = data_root(self.home, account)
        if len(str(self.directory).encode()) > _LONGEST_PATH:
            raise ConfigurationError(
                f"the path of the home is too long for PostgreSQL: {self.home.path}",
                cure="set MARKETDATA_HOME to a shorter path",
            )
        self._record(
            postgres_root=str(self._root), postgres_account=account.name if account else None
        )

    def _record(self, **changes: str | None) -> None:
        state = self.home.state()
        if state is not None:
            self.home.record(replace(state, **changes))  # type: ignore[arg-type]

    def _initialise(
        self, programs: PostgresPrograms, account: Account | None, lock: LockFile, deadline: float
    ) -> None:
        """Make the cluster aside and move it into place, so that a half-made one is never used."""
        draft = self.directory.with_name("data.new")
        shutil.rmtree(draft, ignore_errors=True)
        private_directory(draft, account)
        argv = [programs.initdb, "-D", str(draft), "-U", _SUPERUSER, "-A", "trust", "-E", "UTF8"]
        argv += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        argv += ["--no-instructions", "--no-sync"]
        for setting, value in _SETTINGS.items():
            argv += ["-c", f"{setting}={value}"]
        try:
            done = run_as(
                account, argv, timeout=max(1.0, deadline - time.monotonic()), fds=[lock.fd]
            )
        except subprocess.TimeoutExpired:
            raise StoreUnavailableError("initdb did not finish in time") from None
        if done.returncode != 0:
            raise StoreUnavailableError(f"initdb failed: {done.stderr.strip()[-2000:]}")
        self.unsynced.touch()
        draft.rename(self.directory)

    @property
    def unsynced(self) -> Path:
        """A file that exists until what initdb wrote is known to be on the disk."""
        return self.directory.with_name("unsynced")

    def start_sync(self) -> subprocess.Popen[bytes]:
        """Write a new cluster's files to disk in a child process.

        Left to the supervisor, because it doubles the time to the first query.
        """
        account = server_account()
        sync = [find_postgres(account).initdb, "--sync-only", "-D", str(self.directory)]
        return start_child(sync, account)

    def _check_version(self) -> None:
        found = (self.directory / "PG_VERSION").read_text().strip()
        if found != str(POSTGRES_MAJOR):
            raise ConfigurationError(
                f"{self.directory} holds data of PostgreSQL {found}, this release runs "
                f"{POSTGRES_MAJOR}",
                cure="dump it with the old release, or set MARKETDATA_HOME to a new directory",
            )

    def _remove_stale_locks(self) -> None:
        """Remove what a killed postmaster left: its pid may belong to somebody else by now.

        We hold the lock every process of ours inherits, so only a server that somebody started
        by hand on this directory can still be alive.
        """
        if self.pid() is not None:
            raise StoreUnavailableError(
                f"a PostgreSQL that marketdata did not start (pid {self.pid()}) uses "
                f"{self.directory}",
                cure="stop it",
            )
        (self.directory / "postmaster.pid").unlink(missing_ok=True)
        socket = self._sockets / f".s.PGSQL.{_PORT}"
        socket.unlink(missing_ok=True)
        socket.with_name(f"{socket.name}.lock").unlink(missing_ok=True)
