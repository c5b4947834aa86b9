"""What the supervisor does: wait for the last user, then stop the servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from marketdata.embedded.home import Home, deadline_after
from marketdata.embedded.locks import LockFile, is_held
from marketdata.embedded.postgres import Postgres
from marketdata.embedded.processes import send, works_in
from marketdata.embedded.server import Server
from marketdata.embedded.servers import made_servers, stop_servers
from marketdata.errors import MarketDataError

POLL_SECONDS = 0.25
_TOUCH_SECONDS = 3600.0
_RESTARTS = 5
_SYNC_AFTER = 5.0
_ERROR_SECONDS = 5.0  # between attempts that fail, so that the log stays small


def main(path: Path, lock_fd: int) -> None:
    """Watch over the servers of a home until its last user has left; then stop them and return.

    `lock_fd` is the inherited descriptor that holds the home's ``watch.lock``.
    """
    lock = LockFile(path / "watch.lock")
    lock.adopt(lock_fd)
    lock.write(str(os.getpid()))
    watch = Watch(Home(path), lock)
    while not watch.step():
        time.sleep(POLL_SECONDS)


class Watch:
    """The supervisor's view of one home, advanced one step at a time."""

    def __init__(self, home: Home, lock: LockFile) -> None:
        self._home = home
        self._lock = lock
        self._restarts = 0
        self._touched = time.monotonic()
        self._runtime: Path | None = None
        self._working: dict[int, Path] = {}
        self._began = time.monotonic()
        self._sync: subprocess.Popen[bytes] | None = None

    def step(self) -> bool:
        """Look once; return True when the servers are stopped and the watch is over."""
        try:
            if self._home_is_gone():
                self._end_sync()
                self._end_servers_without_home()
                return True
            self._note_servers()
            if self._needed():
                self._restart_dead()
                self._touch_sockets()
                self._sync_new_cluster()
                return False
            return self._stop_unless_needed()
        except (MarketDataError, OSError):
            traceback.print_exc(file=sys.stderr)
            time.sleep(_ERROR_SECONDS)
            return False

    def _home_is_gone(self) -> bool:
        """Whether the home was deleted under us, and perhaps made again."""
        try:
            same = os.path.samestat(os.fstat(self._lock.fd), self._lock.path.stat())
        except FileNotFoundError:
            return True
        return not same or not self._home.users.is_dir()

    def _note_servers(self) -> None:
        """Remember what belongs to us for the day the home's files are gone."""
        state = self._home.state()
        self._runtime = Path(state.runtime) if state is not None else self._runtime
        for server in made_servers(self._home):
            pid = server.recorded_pid()
            if pid is not None:
                self._working[pid] = server.directory

    def _end_servers_without_home(self) -> None:
        patience = deadline_after(5)
        while pids := [pid for pid, where in self._working.items() if works_in(pid, where)]:
            # PostgreSQL ends at once on SIGQUIT, Redis on SIGTERM.
            late = time.monotonic() > patience
            for kind in (signal.SIGKILL,) if late else (signal.SIGQUIT, signal.SIGTERM):
                send(pids, kind)
            time.sleep(0.05)
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)

    def _needed(self) -> bool:
        return self._home.kept or bool(self._home.live_users())

    def _stop_unless_needed(self) -> bool:
        with self._home.locked(deadline_after(5)):
            # Whoever registered while we waited for the lock is served by the running servers.
            if self._needed():
                return False
            self._end_sync()
            stop_servers(self._home, deadline_after(90))
            self._home.sweep_users()
            # Before the home's lock is free: the next user shall start a supervisor of its own.
            self._lock.release()
            return True

    def _restart_dead(self) -> None:
        """Start a server again that died under its users, a few times in the watch's life."""
        dead = [server for server in made_servers(self._home) if self._is_dead(server)]
        if not dead or self._restarts >= _RESTARTS:
            return
        # Busy: somebody is starting it already.
        lock = LockFile(self._home.path / "lock")
        if not lock.try_acquire():
            return
        try:
            for server in dead:
                if self._is_dead(server) and not self._home_is_gone():
                    self._restarts += 1
                    server.ensure(deadline_after(60))
        finally:
            lock.release()

    def _is_dead(self, server: Server) -> bool:
        # Without its lock file, or with a process left, the home is being deleted under it.
        if not server.lock_path.exists() or is_held(server.lock_path):
            return False
        ours = [pid for pid, where in self._working.items() if where == server.directory]
        return not any(works_in(pid, server.directory) for pid in ours)

    def _sync_new_cluster(self) -> None:
        """Bring a cluster that initdb has just written to the disk, besides the users' work."""
        cluster = Postgres(self._home)
        if self._sync is not None:
            if self._sync.poll() == 0:
                cluster.unsynced.unlink(missing_ok=True)
            if self._sync.poll() is not None:
                self._sync = None
        elif time.monotonic() - self._began > _SYNC_AFTER and cluster.unsynced.exists():
            self._began = time.monotonic()
            self._sync = cluster.start_sync()

    def _end_sync(self) -> None:
        if self._sync is not None:
            self._sync.kill()
            self._sync.wait()

    def _touch_sockets(self) -> None:
        """Keep the sockets' directories young, so that cleaners of ``/tmp`` pass them over."""
        state = self._home.state()
        if state is None or time.monotonic() - self._touched < _TOUCH_SECONDS:
            return
        self._touched = time.monotonic()
        for path in (Path(state.runtime), *Path(state.runtime).rglob("*")):
            with contextlib.suppress(OSError):
                os.utime(path, follow_symlinks=False)
