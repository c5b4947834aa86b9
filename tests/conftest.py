"""Real servers for the tests.

``MARKETDATA_TEST_DATABASE_URL`` and ``MARKETDATA_TEST_REDIS_URL`` name servers that are running
already; without them one embedded home serves the whole session from the wheels' binaries.
``MARKETDATA_TEST_FLAKY=SEED`` puts a proxy that makes trouble before each, see `tests.flaky`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import hypothesis
import psycopg
import pytest
import redis

from marketdata import embedded
from marketdata.embedded.binaries import wheel_redis
from tests.flaky import SEED, TOTALS, Flaky, describe, flaky

__all__ = ["flaky"]

_MEMORY = Path("/dev/shm")


# The same examples each time, however slow the machine is: what a change is refused for is the
# change. New ones are looked for with --hypothesis-profile=default.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs deaf to Ctrl-C, and so would be every process of ours.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "exact(why): runs without the faults of MARKETDATA_TEST_FLAKY"
    )


def pytest_report_header() -> str | None:
    return f"behind flaky proxies: MARKETDATA_TEST_FLAKY={SEED}" if SEED else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if SEED:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(TOTALS.items()))
        terminalreporter.write_line(f"flaky proxies, seed {SEED}: {told or 'nothing'}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and (told := describe(item)) is not None:
        report.sections.append(("flaky proxies", told))
    return report


def make_home_directory() -> Path:
    """Make a directory that other accounts may pass through but not list.

    In memory where there is plenty of it: making and deleting clusters of 40 MB on a busy disk
    takes most of the tests' time.
    """
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 4 << 30
    base = _MEMORY if roomy else Path("/tmp")
    directory = Path(tempfile.mkdtemp(prefix="marketdata-test-", dir=base))
    directory.chmod(0o711)
    return directory


def _sweep_memory() -> None:
    """Delete what killed test runs left in memory a day ago or longer."""
    for left in _MEMORY.glob("marketdata-test-*"):
        found = left.lstat()
        if found.st_uid == os.geteuid() and time.time() - found.st_mtime > 86_400:
            shutil.rmtree(left, ignore_errors=True)


@pytest.fixture(scope="session")
def _embedded_home() -> Iterator[Path]:
    _sweep_memory()
    parent = make_home_directory()
    yield parent / "home"
    embedded.erase(parent / "home")
    shutil.rmtree(parent)


@pytest.fixture(scope="session")
def postgres_url(_embedded_home: Path) -> str:
    """The libpq URI of a server on which databases can be made."""
    configured = os.environ.get("MARKETDATA_TEST_DATABASE_URL")
    if configured:
        return configured
    url = embedded.acquire(_embedded_home, redis=False).servers.database_url
    with psycopg.connect(url, autocommit=True) as connection:
        # This cluster is thrown away: making and dropping databases need not reach the disk.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    return url


@pytest.fixture
def database_url(postgres_url: str, flaky: Flaky) -> Iterator[str]:
    """The libpq URI of an empty database of the test's own, dropped afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY wal_log")
        yield flaky.postgresql(urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}")))
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def redis_url(_embedded_home: Path) -> str:
    """The URL of a database of a Redis server that belongs to the tests."""
    configured = os.environ.get("MARKETDATA_TEST_REDIS_URL")
    if configured:
        return configured
    lease = embedded.acquire(_embedded_home, postgres=False, redis_binary=wheel_redis())
    return lease.servers.redis_url


@pytest.fixture
def redis_db(redis_url: str, flaky: Flaky) -> Iterator[str]:
    """The URL of an empty Redis database, emptied again afterwards."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield flaky.redis(redis_url)
        client.flushdb()


@pytest.fixture
def new_home() -> Iterator[Callable[..., Path]]:
    """A maker of paths for embedded homes; their servers and data are gone afterwards."""
    made: list[tuple[Path, Path]] = []

    def make(name: str = "home") -> Path:
        parent = make_home_directory()
        made.append((parent, parent / name))
        return parent / name

    yield make
    for parent, home in made:
        embedded.erase(home)
        shutil.rmtree(parent)


@pytest.fixture(scope="session")
def _stopped_home() -> Iterator[Path]:
    parent = make_home_directory()
    embedded.acquire(parent / "home", redis=False)
    embedded.down(parent / "home")
    yield parent / "home"
    embedded.erase(parent / "home")
    shutil.rmtree(parent)


@pytest.fixture
def used_home(new_home: Callable[..., Path], _stopped_home: Path) -> Callable[[], Path]:
    """A maker of homes whose cluster exists already, which saves the second it takes to make."""

    def make() -> Path:
        home = new_home()
        subprocess.run(["cp", "-Rp", _stopped_home, home], check=True)
        return home

    return make
