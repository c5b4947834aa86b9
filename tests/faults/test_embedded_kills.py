"""The embedded servers when users, servers and supervisors are killed or files taken away."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from marketdata import embedded
from marketdata.embedded.home import Home
from marketdata.embedded.locks import is_held
from marketdata.errors import ConfigurationError, StoreUnavailableError
from tests.embedded_users import UserProcess, nothing_runs, processes_of, until

NewHome = Callable[..., Path]


def _pid(home: Path, name: str) -> int:
    pid = next(server.pid for server in embedded.status(home).servers if server.name == name)
    assert pid is not None
    return pid


def _kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: not psutil.pid_exists(pid) or _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _add(url: str, number: int) -> list[int]:
    """Commit a number; return all that are there."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS numbers (n int)")
        connection.execute("INSERT INTO numbers VALUES (%s)", [number])
        return [n for (n,) in connection.execute("SELECT n FROM numbers ORDER BY n")]


def test_servers_end_after_their_only_user_was_killed(used_home: NewHome) -> None:
    home = used_home()
    with UserProcess(home) as user:
        seen = user.servers()
        _add(seen["database_url"], 1)
        user.kill()
        assert nothing_runs(home)
    with embedded.acquire(home) as lease:
        assert _add(lease.servers.database_url, 2) == [1, 2]
        assert embedded.status(home).users == (os.getpid(),)


def test_a_user_that_was_killed_takes_nothing_from_the_others(new_home: NewHome) -> None:
    home = new_home()
    with (
        UserProcess(home, postgres=False) as user,
        embedded.acquire(home, postgres=False) as lease,
        redis.Redis.from_url(lease.servers.redis_url) as client,
    ):
        seen = user.servers()
        client.set("kept", 1)
        user.kill()
        assert until(lambda: embedded.status(home).users == (os.getpid(),))
        assert client.get("kept") == b"1"
        assert _pid(home, "redis") == seen["pids"]["redis"]
    assert nothing_runs(home)


def test_a_user_killed_while_its_servers_start_leaves_nothing(new_home: NewHome) -> None:
    home = new_home()
    with UserProcess(home) as user:
        assert until((home / "postgres" / "data.new").exists)
        user.kill()
    assert nothing_runs(home)
    with embedded.acquire(home) as lease:
        assert _add(lease.servers.database_url, 1) == [1]


def test_a_killed_postmaster_is_started_again_for_its_users(used_home: NewHome) -> None:
    home = used_home()
    with embedded.acquire(home, redis=False) as lease:
        assert _add(lease.servers.database_url, 1) == [1]
        killed = _pid(home, "postgres")
        _kill(killed)
        assert until(lambda: embedded.status(home).running)
        assert _pid(home, "postgres") != killed
        assert _add(lease.servers.database_url, 2) == [1, 2]
    assert nothing_runs(home)


def test_the_next_start_recovers_from_a_killed_postmaster_with_a_stuck_backend(
    used_home: NewHome,
) -> None:
    home = used_home()
    with UserProcess(home) as user:
        seen = user.servers()
        _add(seen["database_url"], 1)
        stuck = psycopg.connect(seen["database_url"])
        backend = stuck.info.backend_pid
        # No supervisor to help, and a backend that does not notice its postmaster's death.
        _kill(seen["supervisor"])
        os.kill(backend, signal.SIGSTOP)
        _kill(seen["pids"]["postgres"])
        user.kill()
        assert (home / "postgres" / "data" / "postmaster.pid").exists()
        assert is_held(home / "postgres" / "lock")
        with embedded.acquire(home) as lease:
            assert until(lambda: not psutil.pid_exists(backend) or _is_zombie(backend))
            assert _add(lease.servers.database_url, 2) == [1, 2]
        stuck.close()
    assert nothing_runs(home)


def test_a_pid_file_that_names_a_living_stranger_does_no_harm(new_home: NewHome) -> None:
    home = new_home()
    with embedded.acquire(home) as lease:
        _add(lease.servers.database_url, 1)
    assert nothing_runs(home)
    data = home / "postgres" / "data"
    with UserProcess(new_home(), postgres=False) as stranger:
        stranger.servers()
        (data / "postmaster.pid").write_text(f"{stranger.process.pid}\n{data}\n")
        (home / "redis" / "pid").write_text(f"{stranger.process.pid}\n")
        with embedded.acquire(home) as lease:
            assert _add(lease.servers.database_url, 2) == [1, 2]
        assert nothing_runs(home)
        assert stranger.process.poll() is None


def test_servers_end_although_their_supervisor_was_killed_first(new_home: NewHome) -> None:
    home = new_home()
    with embedded.acquire(home, postgres=False):
        _kill(embedded.status(home).supervisor)
    assert nothing_runs(home)


def test_leftovers_are_found_and_down_ends_them(used_home: NewHome) -> None:
    home = used_home()
    with UserProcess(home) as user:
        seen = user.servers()
        _kill(seen["supervisor"])
        user.kill()
    left = [found for found in embedded.leftovers() if found.home == home]
    assert [set(found.pids) for found in left] == [set(seen["pids"].values())]
    assert str(home) in left[0].cure
    assert sorted(embedded.down(home)) == ["postgres", "redis"]
    assert [found for found in embedded.leftovers() if found.home == home] == []
    assert processes_of(home) == []


def test_a_redis_that_hangs_is_replaced_by_one_redis(new_home: NewHome) -> None:
    home = new_home()
    with embedded.acquire(home, postgres=False) as lease:
        hanging = _pid(home, "redis")
        os.kill(hanging, signal.SIGSTOP)
        with embedded.acquire(home, postgres=False) as again:
            assert again.servers == lease.servers
            with redis.Redis.from_url(again.servers.redis_url) as client:
                assert client.info()["process_id"] != hanging
        assert len([line for line in processes_of(home) if "redis-server" in line]) == 1
    assert nothing_runs(home)


def test_a_redis_killed_is_started_again_for_its_users(new_home: NewHome) -> None:
    home = new_home()
    with embedded.acquire(home, postgres=False):
        _kill(_pid(home, "redis"))
        assert until(lambda: embedded.status(home).running)
    assert nothing_runs(home)


def test_sockets_that_a_cleaner_removed_are_made_again(used_home: NewHome) -> None:
    home = used_home()
    with embedded.acquire(home) as lease:
        _add(lease.servers.database_url, 1)
        sockets = embedded.status(home).sockets
        assert sockets is not None
        shutil.rmtree(sockets)
        with embedded.acquire(home) as again:
            assert _add(again.servers.database_url, 2) == [1, 2]
            with redis.Redis.from_url(again.servers.redis_url) as client:
                assert client.ping()
        assert len([line for line in processes_of(home) if "redis-server" in line]) == 1
    assert nothing_runs(home)


def test_servers_of_a_deleted_home_end_and_the_home_can_be_made_again(used_home: NewHome) -> None:
    home = used_home()
    with UserProcess(home) as user:
        old = user.servers()
        # Once is not always enough: the servers are still writing.
        while home.exists():
            shutil.rmtree(home, ignore_errors=True)
        with embedded.acquire(home) as lease:
            assert _add(lease.servers.database_url, 1) == [1]
            new = {_pid(home, "postgres"), _pid(home, "redis")}
            gone = {*old["pids"].values(), old["supervisor"]}
            assert until(lambda: all(_is_zombie(pid) for pid in gone))
            assert not new & gone
            assert _add(lease.servers.database_url, 2) == [1, 2]
    assert nothing_runs(home)


def test_a_half_made_cluster_is_made_anew(new_home: NewHome) -> None:
    home = new_home()
    draft = home / "postgres" / "data.new"
    draft.mkdir(parents=True)
    home.chmod(0o711)
    (home / "postgres").chmod(0o711)
    (draft / "PG_VERSION").write_text("18")
    with embedded.acquire(home, redis=False) as lease:
        assert _add(lease.servers.database_url, 1) == [1]
    assert nothing_runs(home)


def test_a_server_that_cannot_start_says_why(used_home: NewHome) -> None:
    home = used_home()
    with embedded.acquire(home, redis=False) as lease:
        _add(lease.servers.database_url, 0)
    assert nothing_runs(home)
    settings = home / "postgres" / "data" / "postgresql.conf"
    good = settings.read_text()
    settings.write_text(f"{good}\nno_such_setting = 1\n")
    with pytest.raises(StoreUnavailableError, match="no_such_setting") as caught:
        embedded.acquire(home, redis=False)
    assert caught.value.transient
    assert nothing_runs(home)
    settings.write_text(good)
    (home / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigurationError, match="data of PostgreSQL 17"):
        embedded.acquire(home, redis=False)
    assert nothing_runs(home)
    (home / "postgres" / "data" / "PG_VERSION").write_text("18\n")
    with embedded.acquire(home, redis=False) as lease:
        assert _add(lease.servers.database_url, 1) == [0, 1]


def test_too_many_clients_is_not_a_dead_server(used_home: NewHome) -> None:
    home = used_home()
    with (
        embedded.acquire(home, redis=False) as lease,
        psycopg.connect(lease.servers.database_url, autocommit=True) as connection,
    ):
        connection.execute("ALTER SYSTEM SET max_connections = 6")
        connection.execute("ALTER SYSTEM SET superuser_reserved_connections = 0")
    assert nothing_runs(home)
    with embedded.acquire(home, redis=False) as lease:
        taken = [psycopg.connect(lease.servers.database_url) for _ in range(6)]
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            psycopg.connect(lease.servers.database_url)
        before = _pid(home, "postgres")
        with embedded.acquire(home, redis=False, timeout=10):
            assert _pid(home, "postgres") == before
        for connection in taken:
            connection.close()


def test_a_supervisor_that_cannot_run_is_reported_and_leaves_no_servers(
    used_home: NewHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = used_home()
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ConfigurationError, match=r"supervisor.*/nonexistent/python"):
        embedded.acquire(home)
    assert nothing_runs(home)
    assert embedded.status(home).users == ()
    monkeypatch.undo()
    with embedded.acquire(home) as lease:
        assert _add(lease.servers.database_url, 1) == [1]


def test_damaged_state_is_made_anew(new_home: NewHome) -> None:
    home = new_home()
    embedded.acquire(home, postgres=False).release()
    assert nothing_runs(home)
    for damage in ("", "[]", '{"format": 1}', '{"format": 1, "unknown": 2}'):
        (home / "state.json").write_text(damage)
        assert Home(home).state() is None
    with (
        embedded.acquire(home, postgres=False) as lease,
        redis.Redis.from_url(lease.servers.redis_url) as client,
    ):
        assert client.ping()


if sys.platform == "linux":

    def test_an_unreaped_postmaster_is_not_a_running_one(used_home: NewHome) -> None:
        home = used_home()
        # A process that inherits orphans, as the first process of a container does, and reaps none.
        adopt = """
import ctypes
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
embedded.down(Path(sys.argv[2]))
with embedded.acquire(Path(sys.argv[2])):
    pids = {s.name: s.pid for s in embedded.status(Path(sys.argv[2])).servers}
    print(json.dumps(pids), flush=True)
    sys.stdin.read()
"""
        with UserProcess(home, then=adopt) as user:
            url = user.servers()["database_url"]
            _add(url, 1)
            pids = user.servers()
            for pid in (embedded.status(home).supervisor, pids["postgres"], pids["redis"]):
                _kill(pid)
                assert pid is not None
                assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            with embedded.acquire(home) as lease:
                assert _add(lease.servers.database_url, 2) == [1, 2]
                assert _pid(home, "postgres") != pids["postgres"]
        assert nothing_runs(home)
