"""A replayed market, the servers of a test, and daemons and commands that work on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from marketdata.clock import parse_clock
from marketdata.config import Settings
from marketdata.sandbox import Sandbox
from marketdata.store import PostgresStore
from marketdata.store.figures import PostgresFigures
from marketdata.types import Timeframe
from marketdata.wiring import Runtime
from tests.command_line import CommandLine, InProcess
from tests.daemons import Daemons

SECRET = "a-secret-nobody-may-see"


class Market:
    """A replayed market, a database and whoever works on it."""

    def __init__(
        self,
        make: Callable[..., Daemons],
        keep: Callable[[Sandbox], Sandbox],
        settings: dict[str, Any],
        clock: str,
        command: Callable[[dict[str, Any]], CommandLine],
    ) -> None:
        # Made first, so that it is ahead of all others' clocks: what is due can be had.
        self.sandbox = keep(Sandbox(clock=parse_clock(clock)))
        self.settings = {
            **settings,
            "broker": "sandbox",
            "alpaca_url": self.sandbox.url,
            "alpaca_trading_url": self.sandbox.url,
            "clock": clock,
        }
        with PostgresStore(settings["database_url"]) as store:
            store.migrate()
        self.daemons = make(**self.settings)
        self.command = command(self.settings)

    def subscribe(self, *symbols: str, timeframe: str = "1min") -> None:
        with closing(Runtime(Settings.load(**self.settings))) as runtime:
            runtime.subscriptions.pin("test", symbols, Timeframe(timeframe))

    def runs(self, *jobs: str) -> list[tuple[str, str | None, str | None]]:
        """Return job, outcome and occasion of the runs of `jobs`, in the order they began."""
        with psycopg.connect(self.settings["database_url"]) as admin:
            return admin.execute(
                "SELECT job, outcome, occasion FROM marketdata.job_runs "
                "WHERE job = ANY (%s) AND outcome IS DISTINCT FROM 'skipped' ORDER BY id",
                (list(jobs),),
            ).fetchall()

    def figures(self) -> Any:
        with PostgresStore(self.settings["database_url"]) as store:
            return PostgresFigures(store.database).look()


@pytest.fixture
def in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., CommandLine]:
    """A maker of command lines that cost no process."""

    def make(**settings: Any) -> CommandLine:
        line = CommandLine(tmp_path, **{name: str(value) for name, value in settings.items()})
        return InProcess(line, monkeypatch, capsys)

    return make


@pytest.fixture
def make_market(
    database_url: str,
    redis_db: str,
    in_process: Callable[..., CommandLine],
    make_daemons: Callable[..., Daemons],  # last: ended before their servers
) -> Iterator[Callable[[str], Market]]:
    sandboxes: list[Sandbox] = []

    def keep(sandbox: Sandbox) -> Sandbox:
        sandboxes.append(sandbox.start())
        return sandbox

    def command(settings: dict[str, Any]) -> CommandLine:
        return in_process(**settings)

    servers = {"database_url": database_url, "redis_url": redis_db, "progress": "off"}
    yield lambda clock: Market(make_daemons, keep, servers, clock, command)
    for each in sandboxes:
        each.stop()


@pytest.fixture
def nowhere() -> dict[str, str]:
    """Settings of servers that are not there."""
    return {
        "database_url": f"postgresql://me:{SECRET}@127.0.0.1:9/x",
        "redis_url": "redis://127.0.0.1:9/0",
        "broker": "none",
        "listen": "127.0.0.1:0",
    }
