"""Other processes that use a home's servers, to be ended in any way."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

SOURCE = Path(__file__).resolve().parents[1] / "src"

_USER = """
import json, sys, types
from pathlib import Path
package = types.ModuleType("marketdata")  # pandas is not needed here
package.__path__ = [sys.argv[1] + "/marketdata"]
sys.modules["marketdata"] = package
from marketdata import embedded
lease = embedded.acquire(Path(sys.argv[2]), **json.loads(sys.argv[3]))
status = embedded.status(Path(sys.argv[2]))
print(json.dumps({
    "database_url": lease.servers.database_url,
    "redis_url": lease.servers.redis_url,
    "pids": {server.name: server.pid for server in status.servers},
    "directories": {server.name: str(server.directory) for server in status.servers},
    "supervisor": status.supervisor,
}), flush=True)
"""
STAY = "sys.stdin.read()\n"


class UserProcess:
    """A process that acquires `home` and stays until told to end; a context manager."""

    def __init__(
        self,
        home: Path,
        *,
        then: str = STAY,
        account: str | None = None,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _USER + then, str(SOURCE), str(home), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            user=account,
            group=None if account is None else group_of(account),
            extra_groups=None if account is None else [],
            cwd="/",
            env={**os.environ, **(env or {})},
        )

    def servers(self) -> dict[str, Any]:
        """Wait until it has its servers; return what it sees."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the user process ended with {self.process.wait()}"
        found: dict[str, Any] = json.loads(line)
        return found

    def kill(self) -> None:
        """End it with SIGKILL and reap it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def leave(self) -> int:
        """Let it end by itself; return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def group_of(account: str) -> int:
    """Return the primary group of an account."""
    return pwd.getpwnam(account).pw_gid


def processes_of(*homes: Path) -> list[str]:
    """Return the living processes that belong to these homes, described."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
            continue
        command, cwd = " ".join(process.info["cmdline"] or []), process.info["cwd"] or ""
        if any(cwd.startswith(f"{home}/") or str(home) in command for home in homes):
            found.append(f"{process.pid} {command[:120]}")
    return found


def until(condition: Callable[[], object], seconds: float = 15.0) -> bool:
    """Look until `condition` holds; False if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def nothing_runs(*homes: Path) -> bool:
    """Wait for the end of every process of these homes; False if some stay."""
    return until(lambda: not processes_of(*homes))
