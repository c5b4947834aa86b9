"""The command line as its users have it: a process of its own, two streams and an exit code."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from marketdata.cli import main
from marketdata.store import PostgresStore

NOW = "2024-03-13T15:00:30-04:00"
"""A Wednesday in session."""
_SOURCE = Path(__file__).resolve().parents[1] / "src"


@dataclass(frozen=True)
class Finished:
    """What one command left."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Every line of stdout as JSON; fails where one is anything else."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        return self.objects[-1]


class CommandLine:
    """Runs ``marketdata`` with nothing of this process's settings.

    Parameters
    ----------
    directory : Path
        Where it runs: no ``.env`` of anybody else is there.
    **settings
        ``MARKETDATA_`` variables by their lower-case names.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MARKETDATA_", "APCA_", "ALPACA_", "COLUMNS", "NO_COLOR"))
        }
        ours = {f"MARKETDATA_{name.upper()}": value for name, value in settings.items()}
        self.environment = {**kept, "PYTHONPATH": str(_SOURCE), **ours}

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start a command; the caller waits for it. `variables` are added to its environment."""
        return subprocess.Popen(
            [sys.executable, "-m", "marketdata", *arguments],
            cwd=self.directory,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, **variables: str) -> Finished:
        """Run a command to its end."""
        process = self.start(*arguments, **variables)
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        return Finished(process.returncode, out, err)


class InProcess(CommandLine):
    """The same without the second that a process costs; for what does not concern processes."""

    def __init__(
        self, like: CommandLine, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self.directory = like.directory
        self.environment = like.environment
        self._patch = patch
        self._capture = capture

    def __call__(self, *arguments: str, **variables: str) -> Finished:
        """Run a command in this process, under its environment and no other."""
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        environment = {**self.environment, **variables}
        with self._patch.context() as patch:
            for name in set(os.environ) - set(environment):
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.chdir(self.directory)
            self._capture.readouterr()
            code = main(list(arguments))
        root.handlers[:] = handlers
        root.setLevel(level)
        return Finished(code, *self._capture.readouterr())


def on_servers(directory: Path, database_url: str, redis_url: str, **settings: str) -> CommandLine:
    """Return a command line on servers of a test's own, with a home of its own."""
    settings = {"home": str(directory / "home"), **settings}
    return CommandLine(directory, database_url=database_url, redis_url=redis_url, **settings)


@pytest.fixture
def empty(
    tmp_path: Path,
    database_url: str,
    redis_db: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> InProcess:
    """A command line on the sandbox at `NOW`, and an empty database without a schema."""
    line = on_servers(tmp_path, database_url, redis_db, broker="sandbox", clock=NOW)
    return InProcess(line, monkeypatch, capsys)


@pytest.fixture
def marketdata(empty: InProcess, database_url: str) -> InProcess:
    """A command line on the sandbox at `NOW`, and a database that is ready."""
    with PostgresStore(database_url) as store:
        store.migrate()
    return empty
