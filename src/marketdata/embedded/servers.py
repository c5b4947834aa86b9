"""The servers of a home taken together."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from marketdata.embedded.home import Home
from marketdata.embedded.locks import is_held
from marketdata.embedded.postgres import Postgres
from marketdata.embedded.redis import Redis
from marketdata.embedded.server import Server


def made_servers(home: Home) -> list[Server]:
    """Return the servers that were started in this home before, running or not."""
    state = home.state()
    made: list[Server] = []
    if state is not None and state.redis_binary is not None:
        made.append(Redis(home, Path(state.redis_binary)))
    if state is not None and state.postgres_root is not None:
        made.append(Postgres(home))
    return made


def stop_servers(home: Home, deadline: float) -> list[str]:
    """Stop what runs and remove its sockets; return the names of what was stopped.

    Call it under the home's lock.
    """
    servers = made_servers(home)
    stopped = [server.name for server in servers if server.stop(deadline)]
    state = home.state()
    if state is not None and not any(is_held(server.lock_path) for server in servers):
        shutil.rmtree(state.runtime, ignore_errors=True)
    return stopped


def homes_below(bases: list[Path]) -> Iterator[tuple[Path, Home]]:
    """Yield every socket directory below `bases` with the home that made it."""
    for base in bases:
        with contextlib.suppress(OSError):
            for runtime in sorted(base.iterdir()):
                with contextlib.suppress(OSError):
                    yield runtime, Home(Path((runtime / "home").read_text()))
