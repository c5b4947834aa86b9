"""The embedded Redis: one per home, on a unix socket only, a cache and nothing more."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from marketdata.embedded.binaries import REDIS_NAMES, find_redis
from marketdata.embedded.home import Home, private_directory
from marketdata.embedded.locks import LockFile
from marketdata.embedded.processes import spawn_detached
from marketdata.embedded.server import Server

_ANSWER_SECONDS = 1.0


class Redis(Server):
    """Redis 6.2 or newer, or Valkey: 256 MB, ``allkeys-lru``, nothing on disk."""

    name = "redis"
    title = "Redis"
    stop_signals = ((signal.SIGTERM, 3.0),)

    def __init__(self, home: Home, binary: Path | None = None) -> None:
        super().__init__(home)
        state = home.state()
        recorded = Path(state.redis_binary) if state and state.redis_binary else None
        self._wanted = binary
        self._recorded = recorded
        self._sockets = Path(state.runtime if state else "/nonexistent") / "redis"

    @property
    def lock_path(self) -> Path:
        return self.directory / "lock"

    @property
    def directory(self) -> Path:
        return self.home.path / "redis"

    @property
    def program_names(self) -> Sequence[str]:
        return (*REDIS_NAMES, *([self._recorded.name] if self._recorded else []))

    @property
    def socket(self) -> Path:
        """The unix socket it listens on."""
        return self._sockets / "redis.sock"

    @property
    def url(self) -> str:
        """The ``unix://`` URL of database 0."""
        return f"unix://{quote(str(self.socket))}?db=0"

    def recorded_pid(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self.directory / "pid").read_text())
        return None

    def answers(self) -> bool:
        # PING as an inline command: https://redis.io/docs/latest/develop/reference/protocol-spec
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_ANSWER_SECONDS)
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def patience(self) -> float | None:
        # It has nothing to load and nothing to lose: silence means that it hangs.
        return 3.0 if self.socket.exists() else 0.5

    def end_lost(self, deadline: float) -> None:
        self.kill()

    def launch(self, lock: LockFile, deadline: float) -> None:
        program = find_redis(self._wanted)
        private_directory(self._sockets, None)
        self.socket.unlink(missing_ok=True)
        (self.directory / "pid").unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "maxmemory": "256mb",
            "maxmemory-policy": "allkeys-lru",
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "dir": str(self.directory),
            # Relative to `dir`: the Redis of a deleted home must not remove its successor's.
            "pidfile": "pid",
            # The kernel bug it would refuse to start for concerns saving to disk only.
            "ignore-warnings": "ARM64-COW-BUG",
        }
        argv = [str(program.path)]
        for option, value in options.items():
            argv += [f"--{option}", value]
        spawn_detached(argv, log=self.log, fds=[lock.fd])
        state = self.home.state()
        if state is not None:
            self.home.record(
                replace(state, redis_binary=str(program.path), redis_version=program.version)
            )
        self._recorded = program.path
