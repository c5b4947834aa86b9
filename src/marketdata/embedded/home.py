"""What a home looks like on disk, and who uses it.

::

    HOME/
      lock          held around every start and stop
      watch.lock    held by the supervisor, contains its pid
      state.json    who made this home, where its sockets and data are
      keep          present: the servers stay when the last user leaves
      users/        one file per user process, locked for as long as the process uses the servers
      log/          postgres.log, redis.log, watch.log
      postgres/     lock, data/ (root: elsewhere, see `data_root`)
      redis/        lock, pid

Sockets live in a short directory of their own, because a socket's path holds about 100 bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from marketdata.embedded.locks import LockFile, is_held
from marketdata.embedded.processes import Account, run_as
from marketdata.errors import ConfigurationError, StoreUnavailableError

_LOG_LIMIT = 5_000_000
_SOCKET_ROOM = 60
_FORMAT = 1


@dataclass(frozen=True)
class State:
    """What is decided once per home and shared by all its users."""

    path: str
    uid: int
    runtime: str
    postgres_root: str | None = None
    postgres_account: str | None = None
    postgres_version: str | None = None
    redis_binary: str | None = None
    redis_version: str | None = None
    format: int = _FORMAT


class Home:
    """One home directory: its files, its lock and its users. Creates nothing until `prepare`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path).expanduser().resolve()
        self.users = self.path / "users"
        self.keep_file = self.path / "keep"
        self.watch_lock = self.path / "watch.lock"
        self._state_file = self.path / "state.json"

    def log(self, name: str) -> Path:
        """Return the log file of ``postgres``, ``redis`` or ``watch``."""
        return self.path / "log" / f"{name}.log"

    def create(self) -> None:
        """Make the directory and those below it; an existing directory keeps its mode."""
        try:
            # Root's servers run as somebody else, who has to pass through.
            self.path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
            for name in ("users", "log", "redis"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"cannot make the home directory {self.path}: {error.strerror}",
                cure="set MARKETDATA_HOME to a directory of yours; run: marketdata doctor",
            ) from error

    @contextlib.contextmanager
    def locked(self, deadline: float) -> Iterator[None]:
        """Hold the lock around a start or a stop; raise if it is not free by `deadline`."""
        lock = LockFile(self.path / "lock")
        try:
            if not lock.acquire(deadline):
                raise StoreUnavailableError(
                    f"another process is starting or stopping the servers of {self.path}"
                )
        except PermissionError as error:
            raise ConfigurationError(
                f"the home {self.path} belongs to another user",
                cure="run as that user, or set MARKETDATA_HOME to a directory of yours",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def state(self) -> State | None:
        """Return the recorded state, or None for a home never started; damage counts as none."""
        try:
            state = State(**json.loads(self._state_file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return state if state.format == _FORMAT else None

    def record(self, state: State) -> None:
        """Replace the recorded state in one step. Call it under the lock."""
        draft = self._state_file.with_suffix(".new")
        draft.write_text(json.dumps(asdict(state), indent=1))
        draft.replace(self._state_file)

    def prepare(self) -> State:
        """Return the state with a trusted runtime directory, deciding what is not decided yet.

        Call it under the lock. A runtime directory that a cleaner of ``/tmp`` took away is made
        again; a home that was copied or moved gets one of its own.
        """
        state = self.state()
        if state is not None and state.uid != os.geteuid():
            raise ConfigurationError(
                f"the home {self.path} was made by uid {state.uid}, this process has "
                f"uid {os.geteuid()}",
                cure="run as that user, or set MARKETDATA_HOME to a directory of yours",
            )
        if state is None or state.path != str(self.path):
            state = self._moved(state)
        elif not _make_trusted(Path(state.runtime), os.geteuid(), _base_mode()):
            state = replace(state, runtime=str(_new_runtime()))
        (Path(state.runtime) / "home").write_text(str(self.path))
        self.record(state)
        return state

    def _moved(self, old: State | None) -> State:
        """Return the state of a new home, or of one that was copied or moved from elsewhere."""
        state = State(str(self.path), os.geteuid(), str(_new_runtime()))
        if old is None or old.postgres_root is None:
            return state
        root = Path(old.postgres_root)
        if root.is_relative_to(old.path) or Path(old.path).exists() or not root.is_dir():
            return state
        # Root's data stays where it is when its home moves; a copy gets data of its own.
        (root / "home").write_text(str(self.path))
        return replace(state, postgres_root=str(root))

    @property
    def kept(self) -> bool:
        """Whether the servers stay when the last user leaves."""
        return self.keep_file.exists()

    def register(self) -> LockFile:
        """Make this process a user; it stays one until the lock is released or it dies.

        Call it under the home's lock.
        """
        lock = LockFile(self.users / f"{os.getpid()}.{secrets.token_hex(4)}")
        lock.try_acquire()
        return lock

    def live_users(self) -> list[int]:
        """Return the pids of the living users, ascending."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(int(file.name.partition(".")[0]) for file in self._user_files(live=True))
        return []

    def sweep_users(self) -> None:
        """Remove what killed users left behind. Call it under the lock."""
        for file in self._user_files(live=False):
            file.unlink(missing_ok=True)

    def _user_files(self, *, live: bool) -> list[Path]:
        files = [file for file in self.users.iterdir() if file.name.partition(".")[0].isdigit()]
        return [file for file in files if is_held(file) == live]

    def supervisor(self) -> int | None:
        """Return the pid of the living supervisor, or None."""
        if not is_held(self.watch_lock):
            return None
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(self.watch_lock.read_text())
        return None


def rotate(log: Path) -> None:
    """Put a log above 5 MB aside, one generation deep; before the start of its writer."""
    if size_of(log) > _LOG_LIMIT:
        log.replace(log.with_suffix(".log.1"))


def tail(log: Path, *, since: int = 0, lines: int = 12) -> str:
    """Return the last lines of a log, of what was written after byte `since` only."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - 8192))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def size_of(log: Path) -> int:
    """Return the size of a log in bytes, 0 if there is none."""
    return log.stat().st_size if log.exists() else 0


def private_directory(path: Path, account: Account | None) -> Path:
    """Make a directory of mode 0700 owned by `account` below one of ours; return it.

    Raises
    ------
    ConfigurationError
        Something else is there already.
    """
    owner = os.geteuid() if account is None else account.uid
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        if account is not None:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
    if not _is_directory_of(path, owner, 0o077):
        raise ConfigurationError(f"{path} is not a private directory of uid {owner}")
    return path


def data_root(home: Home, account: Account | None) -> Path:
    """Return the directory PostgreSQL's data shall live in, made if it is missing.

    That is ``HOME/postgres``, unless we are root and the account PostgreSQL runs as cannot get
    there: then a directory under ``/var/lib/marketdata`` made for this home. No mode of an
    existing directory is changed.
    """
    inside = home.path / "postgres"
    if account is None or _can_enter(home.path, account):
        inside.mkdir(mode=0o711 if account else 0o700, exist_ok=True)
        return inside
    root = shared_root() / f"home-{secrets.token_hex(6)}"
    root.mkdir(mode=0o711)
    (root / "home").write_text(str(home.path))
    return root


def shared_root() -> Path:
    """Return the directory root's servers share, owned by root and open to be passed through.

    Raises
    ------
    ConfigurationError
        It cannot be made, or somebody else owns or may write it.
    """
    root = SHARED_ROOT
    try:
        with contextlib.suppress(FileExistsError):
            root.mkdir()
            root.chmod(0o755)
    except OSError as error:
        raise ConfigurationError(
            f"cannot make {root}: {error.strerror}", cure="set MARKETDATA_DATABASE_URL"
        ) from error
    if not _is_directory_of(root, 0, 0o022):
        raise ConfigurationError(f"{root} must belong to root and be writable by nobody else")
    return root


SHARED_ROOT = Path("/var/lib" if Path("/var/lib").is_dir() else "/var/db") / "marketdata"


def runtime_bases() -> list[Path]:
    """Return where socket directories are made, in order of preference."""
    # /tmp outlives a login session, which $XDG_RUNTIME_DIR does not.
    bases = [Path("/tmp") / f"marketdata-{os.geteuid()}"]  # noqa: S108  owner and mode are verified
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and runtime.startswith("/") and "," not in runtime:
        bases.append(Path(runtime) / "marketdata")
    return bases


def _new_runtime() -> Path:
    uid, mode = os.geteuid(), _base_mode()
    for base in runtime_bases():
        runtime = base / secrets.token_hex(6)
        short = len(os.fsencode(runtime)) < _SOCKET_ROOM
        if short and _make_trusted(base, uid, mode) and _make_trusted(runtime, uid, mode):
            return runtime
    runtime = Path(tempfile.mkdtemp(prefix="marketdata-", dir="/tmp"))
    runtime.chmod(mode)
    return runtime


def _base_mode() -> int:
    # The sockets' own directories are 0700; above them root's servers have to pass through.
    return 0o711 if os.geteuid() == 0 else 0o700


def _make_trusted(path: Path, uid: int, mode: int) -> bool:
    """Make a directory unless it exists; False if what exists is not ours alone."""
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        return _is_directory_of(path, uid, 0o777 & ~mode)
    except OSError:
        return False
    path.chmod(mode)
    return True


def _is_directory_of(path: Path, uid: int, forbidden: int) -> bool:
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & forbidden


def _can_enter(directory: Path, account: Account) -> bool:
    # Asked of the kernel: mode bits alone know nothing of ACLs, mounts and security modules.
    probe = run_as(account, ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)], timeout=10)
    return probe.returncode == 0


def deadline_after(seconds: float) -> float:
    """Return the monotonic instant `seconds` from now."""
    return time.monotonic() + seconds
