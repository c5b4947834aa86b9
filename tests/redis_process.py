"""A Redis of a test's own, to be stopped, frozen, filled up and started again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import redis

from marketdata.embedded.binaries import find_redis, wheel_redis


class RedisProcess:
    """One redis-server on a Unix socket in a directory of its own; a context manager."""

    def __init__(self, *options: str) -> None:
        self._directory = tempfile.mkdtemp(prefix="md-redis-")
        self._socket = Path(self._directory, "redis.sock")
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}?db=0"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._process = subprocess.Popen(
            [
                str(wheel_redis() or find_redis().path),
                *("--port", "0", "--unixsocket", str(self._socket), "--save", ""),
                *("--dir", self._directory, *self._options),
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    assert self._process.poll() is None, "redis-server ended at once"
                    assert time.monotonic() < deadline, "redis-server does not answer"
                    time.sleep(0.01)

    def client(self) -> redis.Redis:
        """Return a plain client, for looking and for mischief."""
        return redis.Redis.from_url(self.url)

    def freeze(self) -> None:
        """Stop the process where it is: connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill the server; `start` brings up an empty one at the same place."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._socket.unlink(missing_ok=True)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def __enter__(self) -> RedisProcess:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
