"""Starting processes that outlive us, and finding the ones that belong to a directory."""

from __future__ import annotations

import contextlib
import importlib
import os
import pwd
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marketdata.errors import ConfigurationError, MissingDependencyError

# sh puts the program into the background and ends, so that nobody is left with a zombie child;
# the program's output goes where sh's standard error goes.
_DETACH = '"$@" </dev/null >&2 & echo $!'


@dataclass(frozen=True)
class Account:
    """The system user a server runs as when we are root."""

    name: str
    uid: int
    gid: int


def server_account() -> Account | None:
    """Return who PostgreSQL shall run as, or None for "as we are".

    PostgreSQL refuses to run as root; root therefore uses ``postgres`` where there is such a
    user, else ``nobody``.

    Raises
    ------
    ConfigurationError
        We are root and neither exists, or we have no passwd entry, which ``initdb`` needs.
    """
    if os.geteuid() != 0:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise ConfigurationError(
                f"uid {os.geteuid()} has no entry in the user database, which PostgreSQL needs",
                cure="give the user an entry (useradd), or set MARKETDATA_DATABASE_URL",
            ) from None
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return Account(name, entry.pw_uid, entry.pw_gid)
    raise ConfigurationError(
        "PostgreSQL does not run as root, and there is neither a user 'postgres' nor 'nobody'",
        cure="run as another user, or set MARKETDATA_DATABASE_URL",
    )


def run_as(
    account: Account | None, argv: Sequence[str], *, timeout: float, fds: Iterable[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end as `account`, in a session of its own; output is text.

    The program runs in ``/`` with a minimal environment, and keeps the descriptors `fds`.
    """
    return subprocess.run(  # noqa: S603  our own command lines
        argv,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
        cwd="/",
        env=server_environment(),
        pass_fds=tuple(fds),
        start_new_session=True,
    )


def start_child(argv: Sequence[str], account: Account | None) -> subprocess.Popen[bytes]:
    """Start a silent child process as `account`, for the caller to wait for."""
    return subprocess.Popen(  # noqa: S603
        argv,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=server_environment(),
    )


def spawn_detached(
    argv: Sequence[str],
    *,
    log: Path,
    fds: Iterable[int] = (),
    account: Account | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
) -> int:
    """Start a program that belongs to nobody's terminal or process tree; return its pid.

    Ctrl-C in our terminal does not reach it, and it is never our zombie. Its output is appended
    to `log`.
    """
    log_fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        done = subprocess.run(  # noqa: S603
            ["/bin/sh", "-c", _DETACH, "sh", *argv],
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            check=True,
            cwd=cwd,
            env=server_environment() if env is None else dict(env),
            pass_fds=tuple(fds),
            start_new_session=True,
            umask=0o077,
        )
    finally:
        os.close(log_fd)
    return int(done.stdout)


def server_environment() -> dict[str, str]:
    """Return an environment in which no PG* or locale setting of the user changes a server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def working_in(directory: Path, names: Iterable[str]) -> list[int]:
    """Return the pids of living processes called one of `names` that work below `directory`.

    PostgreSQL's processes and Redis change into their data directory, which identifies them
    better than a pid file does: a zombie has no working directory, a reused pid another one.
    """
    psutil = _psutil()
    wanted, root = tuple(names), str(directory)
    found = []
    for process in psutil.process_iter(["pid", "name", "cwd"]):
        cwd, name = process.info["cwd"] or "", process.info["name"] or ""
        inside = cwd == root or cwd.startswith(root + os.sep)
        if inside and name.startswith(wanted):
            found.append(int(process.info["pid"]))
    return found


def works_in(pid: int, directory: Path) -> bool:
    """Return whether `pid` is a living process whose working directory is `directory`."""
    psutil = _psutil()
    try:
        return bool(psutil.Process(pid).cwd() == str(directory))
    except psutil.Error:
        return False


def send(pids: Iterable[int], kind: signal.Signals) -> None:
    """Signal processes, those that have gone already excepted."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, kind)


def _psutil() -> Any:
    try:
        return importlib.import_module("psutil")
    except ImportError as error:
        raise MissingDependencyError(
            "psutil, which finds the processes of the embedded servers, is not installed",
            cure="pip install 'marketdata[embedded]'",
        ) from error
