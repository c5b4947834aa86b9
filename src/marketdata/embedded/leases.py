"""Using the servers of a home: acquire, release, and what an administrator asks."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from marketdata.embedded import home as homes
from marketdata.embedded import supervisor
from marketdata.embedded.home import Home, deadline_after, runtime_bases
from marketdata.embedded.locks import LockFile, is_held
from marketdata.embedded.postgres import Postgres
from marketdata.embedded.processes import works_in
from marketdata.embedded.redis import Redis
from marketdata.embedded.server import Server
from marketdata.embedded.servers import homes_below, made_servers, stop_servers
from marketdata.errors import StoreUnavailableError


@dataclass(frozen=True)
class Servers:
    """Where the servers of a home listen.

    Attributes
    ----------
    database_url : str
        libpq URI over a unix socket (``postgresql://postgres@/marketdata?host=/dir``), which
        SQLAlchemy takes too once its driver is added.
    redis_url : str
        ``unix://`` URL of database 0. It is meaningful only if Redis was asked for.
    """

    database_url: str
    redis_url: str


class Lease:
    """This process's use of a home's servers, until `release`, exit or death.

    As a context manager it releases at the end of the block. Releasing twice does nothing, and
    so does releasing in a forked child what its parent acquired.
    """

    def __init__(self, servers: Servers, member: _Membership) -> None:
        self.servers = servers
        self._member: _Membership | None = member
        self._pid = os.getpid()

    def release(self) -> None:
        """Stop using the servers. If nobody else does, they are stopped; we do not wait for it."""
        member, self._member = self._member, None
        if member is not None and self._pid == os.getpid():
            member.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class _Membership:
    """This process as one user of one home, however many leases it holds."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.guard = threading.RLock()
        self._count = 0
        self._lock: LockFile | None = None

    def join(self) -> None:
        """Register, under the home's lock and our guard."""
        # The file is gone if the home was deleted and made again since.
        if self._lock is None or not self._lock.path.exists():
            self._lock = self.home.register()
        self._count += 1

    def leave(self, *, everything: bool = False) -> None:
        with self.guard:
            self._count = 0 if everything else max(0, self._count - 1)
            if self._count or self._lock is None:
                return
            lock, self._lock = self._lock, None
            # Nothing here may keep a caller from ending: the kernel frees the lock in any case.
            with contextlib.suppress(OSError):
                lock.path.unlink(missing_ok=True)
            lock.release()
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self._ensure_watched()

    def _ensure_watched(self) -> None:
        """Replace a supervisor that was killed, else nobody would stop the servers."""
        orphaned = self.home.users.is_dir() and not is_held(self.home.watch_lock)
        if orphaned and any(is_held(server.lock_path) for server in made_servers(self.home)):
            supervisor.ensure(self.home)


_members: dict[Path, _Membership] = {}
_members_guard = threading.Lock()


def _member_of(home: Home) -> _Membership:
    with _members_guard:
        return _members.setdefault(home.path, _Membership(home))


def _leave_all() -> None:
    for member in list(_members.values()):
        member.leave(everything=True)


def _start_anew_in_child() -> None:
    global _members_guard
    _members.clear()
    _members_guard = threading.Lock()


atexit.register(_leave_all)
os.register_at_fork(after_in_child=_start_anew_in_child)


def acquire(
    home: Path,
    *,
    postgres: bool = True,
    redis: bool = True,
    redis_binary: Path | None = None,
    timeout: float = 60,
    keep: bool = False,
) -> Lease:
    """Use the servers of `home`: start those that do not run, and register this process.

    Idempotent and thread-safe within a process; a forked child has to acquire for itself.
    Processes that start at the same time get the same servers. The servers run until the last
    user has released them or died, whatever killed it.

    Parameters
    ----------
    home : Path
        The directory data, logs and locks live in; made if missing. Any length, any name.
    postgres, redis : bool
        Which servers are wanted.
    redis_binary : Path, optional
        The Redis server program to start, instead of the one on PATH or in the wheel. A Redis
        that runs already is shared, whatever its program.
    timeout : float
        Seconds for everything together, crash recovery of PostgreSQL included.
    keep : bool
        Whether the servers stay when the last user leaves, until `down`.

    Raises
    ------
    MissingDependencyError
        The programs are not installed; the message names the pip line.
    ConfigurationError
        The home belongs to somebody else, or this machine cannot run the servers.
    StoreUnavailableError
        A server did not come up; the message ends with the tail of its log. A retry can help.
    """
    deadline = deadline_after(timeout)
    place = Home(home)
    member = _member_of(place)
    if not member.guard.acquire(timeout=max(0.0, timeout)):
        raise StoreUnavailableError(f"another thread is still starting the servers of {place.path}")
    try:
        place.create()
        with place.locked(deadline):
            place.prepare()
            member.join()
            try:
                servers = _start(place, postgres, redis, redis_binary, deadline)
            except BaseException:
                member.leave()
                _stop_unwatched(place)
                raise
            if keep:
                place.keep_file.touch()
    finally:
        member.guard.release()
    return Lease(servers, member)


def _stop_unwatched(home: Home) -> None:
    """After a failed start: stop what runs if there is neither a supervisor nor a user."""
    if not (is_held(home.watch_lock) or home.kept or home.live_users()):
        stop_servers(home, deadline_after(10))


def _start(
    home: Home, postgres: bool, redis: bool, redis_binary: Path | None, deadline: float
) -> Servers:
    database, cache = Postgres(home), Redis(home, redis_binary)
    if postgres:
        database.place()
    # Before the servers: if we are killed while they start, somebody stops them.
    supervisor.ensure(home)
    if redis:
        cache.ensure(deadline)
    if postgres:
        database.ensure(deadline)
    supervisor.wait_ready(home, deadline)
    return Servers(database.url, cache.url)


def down(home: Path, *, timeout: float = 30) -> list[str]:
    """Stop the servers of `home`, whoever uses them; return the names of what was stopped.

    Their users see lost connections. Nothing is made where there is no such home.
    """
    place, deadline = Home(home), deadline_after(timeout)
    if not place.users.is_dir():
        return []
    with place.locked(deadline):
        place.keep_file.unlink(missing_ok=True)
        supervisor.end(place, deadline)
        stopped = stop_servers(place, deadline)
        place.sweep_users()
    return stopped


def keep(home: Path) -> None:
    """Let the servers of `home` run on when their last user leaves, until `down`."""
    place = Home(home)
    place.create()
    place.keep_file.touch()


def erase(home: Path, *, timeout: float = 30) -> None:
    """Stop the servers of `home` and delete their data, wherever it is, and what we made there.

    Files that are not ours stay, and so does a home that holds any.
    """
    place = Home(home)
    down(place.path, timeout=timeout)
    state = place.state()
    if state is not None and state.postgres_root is not None:
        shutil.rmtree(state.postgres_root, ignore_errors=True)
    for name in ("postgres", "redis", "users", "log"):
        shutil.rmtree(place.path / name, ignore_errors=True)
    for name in ("lock", "watch.lock", "state.json", "keep"):
        (place.path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        place.path.rmdir()


@dataclass(frozen=True)
class ServerStatus:
    """One server of a home: whether it answers, and where its things are."""

    name: str
    running: bool
    pid: int | None
    version: str | None
    directory: Path
    log: Path


@dataclass(frozen=True)
class EmbeddedStatus:
    """What runs in a home, and for whom. `users` are pids of living processes."""

    home: Path
    servers: tuple[ServerStatus, ...]
    users: tuple[int, ...]
    kept: bool
    supervisor: int | None
    sockets: Path | None

    @property
    def running(self) -> bool:
        """Whether any server answers."""
        return any(server.running for server in self.servers)


def status(home: Path) -> EmbeddedStatus:
    """Return what runs in `home` and who uses it. Starts and makes nothing."""
    place = Home(home)
    state = place.state()
    versions = {
        "postgres": state.postgres_version if state else None,
        "redis": state.redis_version if state else None,
    }
    servers = tuple(
        ServerStatus(
            server.name,
            server.running(),
            server.pid(),
            versions[server.name],
            server.directory,
            server.log,
        )
        for server in made_servers(place)
    )
    return EmbeddedStatus(
        place.path,
        servers,
        tuple(place.live_users()),
        place.kept,
        place.supervisor(),
        Path(state.runtime) if state else None,
    )


@dataclass(frozen=True)
class Leftover:
    """Something nobody uses and nobody will remove; `cure` says how to."""

    home: Path
    path: Path
    pids: tuple[int, ...]
    cure: str


def leftovers() -> list[Leftover]:
    """Return this user's embedded servers that run for nobody, and data whose home is gone.

    Servers that are kept, used, or about to be stopped by their supervisor are not listed.
    """
    found = []
    for runtime, place in homes_below(runtime_bases()):
        servers: list[Server] = [s for s in made_servers(place) if is_held(s.lock_path)]
        pids = tuple(pid for server in servers if (pid := server.pid()) is not None)
        if not place.users.is_dir():
            pids = _pids_behind(runtime)
        used = place.kept or place.live_users() or is_held(place.watch_lock)
        if pids and not used:
            cure = f"MARKETDATA_HOME={place.path} marketdata down"
            if not place.users.is_dir():
                cure = f"kill {' '.join(map(str, pids))}"
            found.append(Leftover(place.path, runtime, pids, cure))
    return found + _data_without_home()


def _pids_behind(runtime: Path) -> tuple[int, ...]:
    # The first line of PostgreSQL's socket lock file is the postmaster's pid, the second its
    # data directory: https://www.postgresql.org/docs/18/storage-file-layout.html
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (runtime / "pg" / ".s.PGSQL.5432.lock").read_text().splitlines()
        pid, data = int(lines[0]), Path(lines[1])
        if works_in(pid, data):
            return (pid,)
    return ()


def _data_without_home() -> list[Leftover]:
    if os.geteuid() != 0 or not homes.SHARED_ROOT.is_dir():
        return []
    found = []
    for data in sorted(homes.SHARED_ROOT.glob("home-*")):
        with contextlib.suppress(OSError):
            home = Path((data / "home").read_text())
            state = Home(home).state()
            if state is None or state.postgres_root != str(data):
                found.append(Leftover(home, data, (), f"rm -r {data}"))
    return found
