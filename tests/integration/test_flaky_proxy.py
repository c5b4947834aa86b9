"""The proxy of `marketdata.testing`: what it does to connections, on real servers."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
import redis
import requests

from marketdata.sandbox import Sandbox
from marketdata.testing import COMMIT, FlakyProxy, Rates, Seeded
from tests.redis_process import RedisProcess


@pytest.fixture
def proxy(database_url: str) -> Iterator[FlakyProxy]:
    with psycopg.connect(database_url) as direct:
        direct.execute("CREATE TABLE kept (number int PRIMARY KEY)")
    with FlakyProxy(database_url) as made:
        yield made


def numbers(database_url: str) -> list[int]:
    with psycopg.connect(database_url) as direct:
        return [row[0] for row in direct.execute("SELECT number FROM kept ORDER BY 1")]


def test_it_carries_postgresql_redis_and_http(proxy: FlakyProxy, redis_db: str) -> None:
    with psycopg.connect(proxy.url) as connection:
        long = "x" * 3_000_000  # more than any buffer on the way
        assert connection.execute("SELECT %s", [long]).fetchone() == (long,)
    with FlakyProxy(redis_db) as way, redis.Redis.from_url(way.url) as client:
        client.set("a", b"1" * 1_000_000)
        assert client.get("a") == b"1" * 1_000_000
    with Sandbox() as sandbox, FlakyProxy(sandbox.url) as way:
        assert requests.get(f"{way.url}/v2/stocks/bars", timeout=5).status_code < 500


def test_it_carries_a_unix_socket() -> None:
    with RedisProcess() as server, FlakyProxy(server.url) as way:
        assert way.url.startswith("redis://127.0.0.1:")
        with redis.Redis.from_url(way.url) as client:
            assert client.ping()


def test_a_lost_reply_is_of_a_request_that_was_carried_out(
    proxy: FlakyProxy, database_url: str
) -> None:
    lost = proxy.script.add("lose_reply", match=COMMIT)
    with closing(psycopg.connect(proxy.url)) as connection:
        connection.execute("INSERT INTO kept VALUES (1)")
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
    assert lost.fired == 1
    assert numbers(database_url) == [1]


def test_a_cut_request_never_arrives(proxy: FlakyProxy, database_url: str) -> None:
    proxy.script.add("cut", match=COMMIT, nth=2)
    with closing(psycopg.connect(proxy.url)) as connection:
        connection.execute("INSERT INTO kept VALUES (1)")
        connection.commit()
        connection.execute("INSERT INTO kept VALUES (2)")
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
    assert numbers(database_url) == [1]


def test_an_answer_is_cut_after_so_many_bytes() -> None:
    with Sandbox() as sandbox, FlakyProxy(sandbox.url) as way:
        way.script.add("cut_after", match=b"/v2/stocks/bars", size=40)
        with socket.create_connection(("127.0.0.1", way.port)) as client:
            client.sendall(b"GET /v2/stocks/bars HTTP/1.1\r\nHost: here\r\n\r\n")
            got = b""
            try:
                while data := client.recv(4096):
                    got += data
            except ConnectionResetError:
                pass
        assert len(got) == 40


def test_delays_are_of_the_request_or_of_its_answer(proxy: FlakyProxy) -> None:
    with psycopg.connect(proxy.url, autocommit=True) as connection:
        proxy.script.add("delay", match=b"SELECT 1", seconds=0.1)
        proxy.script.add("slow", match=b"SELECT 2", seconds=0.1)
        for statement in ("SELECT 1", "SELECT 2"):
            started = time.monotonic()
            connection.execute(statement)
            assert 0.1 <= time.monotonic() - started < 2


def test_what_is_swallowed_is_never_answered(redis_db: str) -> None:
    with (
        FlakyProxy(redis_db) as way,
        redis.Redis.from_url(way.url, socket_timeout=0.2, retry=None) as client,
    ):
        client.ping()
        way.script.add("swallow", match=b"GET")
        with pytest.raises(redis.TimeoutError):
            client.get("a")
        client.set("a", 1)  # on a new connection
        assert client.get("a") == b"1"


def test_an_idle_connection_is_hung_up(redis_db: str) -> None:
    with FlakyProxy(redis_db) as way, socket.create_connection(("127.0.0.1", way.port)) as client:
        way.script.add("hang_up", seconds=0.05)
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b"+PONG\r\n"
        client.settimeout(5)
        assert client.recv(100) == b""


def test_connections_are_refused_one_by_one_or_all(proxy: FlakyProxy) -> None:
    proxy.script.add("refuse", nth=2)
    psycopg.connect(proxy.url).close()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.url)
    psycopg.connect(proxy.url).close()
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.url)
    proxy.accept()
    psycopg.connect(proxy.url).close()
    assert proxy.connections == 5


def test_frozen_it_carries_nothing_and_thawed_all_of_it(proxy: FlakyProxy) -> None:
    answered = threading.Event()
    with psycopg.connect(proxy.url) as connection:
        proxy.freeze()

        def ask() -> None:
            connection.execute("SELECT 1")
            answered.set()

        asking = threading.Thread(target=ask)
        asking.start()
        assert not answered.wait(0.2)
        proxy.thaw()
        assert answered.wait(5)
        asking.join()


def test_all_connections_can_be_cut(proxy: FlakyProxy) -> None:
    with closing(psycopg.connect(proxy.url)) as one, closing(psycopg.connect(proxy.url)) as two:
        assert proxy.cut() == 2
        for each in (one, two):
            with pytest.raises(psycopg.OperationalError):
                each.execute("SELECT 1")


def test_strangers_connections_are_left_alone(database_url: str) -> None:
    plan = Seeded("any", Rates(cut=1.0), quiet=0, calm=0)
    with FlakyProxy(database_url, plan, only=b"application_name\0ours") as way:
        psycopg.connect(way.url, application_name="theirs").close()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(way.url, application_name="ours")
        assert plan.met["cut"] == 1


def test_connections_that_begin_otherwise_are_left_alone(redis_db: str) -> None:
    plan = Seeded("any", Rates(cut=1.0), quiet=0, calm=0)
    with FlakyProxy(redis_db, plan, only=b"SETINFO", spare=b"HELLO") as way:
        with redis.Redis.from_url(way.url, retry=None, protocol=3) as ours:
            assert ours.ping()
        with (
            redis.Redis.from_url(way.url, retry=None, protocol=2) as theirs,
            pytest.raises(redis.ConnectionError),
        ):
            theirs.ping()


def test_a_seed_meets_the_same_requests_again(redis_db: str) -> None:
    def met(seed: str) -> list[bool]:
        plan = Seeded(seed, Rates(cut=0.2), quiet=0, calm=0)
        with FlakyProxy(redis_db, plan) as way:
            found = []
            for _ in range(40):
                with socket.create_connection(("127.0.0.1", way.port)) as client:
                    client.sendall(b"PING\r\n")
                    try:
                        found.append(client.recv(100) != b"+PONG\r\n")
                    except ConnectionResetError:
                        found.append(True)
        return found

    assert met("one") == met("one")
    assert met("one") != met("two")
    assert any(met("one"))
    assert not all(met("one"))


def test_after_a_trouble_there_is_peace_for_a_while(redis_db: str) -> None:
    plan = Seeded("any", Rates(cut=1.0), quiet=60, calm=0)
    with FlakyProxy(redis_db, plan) as way:
        with (
            redis.Redis.from_url(way.url, retry=None, protocol=2) as client,
            pytest.raises(redis.ConnectionError),
        ):
            client.ping()
        with redis.Redis.from_url(way.url, retry=None, protocol=2) as client:
            assert client.ping()


def test_a_forked_child_does_not_keep_a_connection_alive(proxy: FlakyProxy) -> None:
    with closing(psycopg.connect(proxy.url)) as connection:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(reading, 1)
            os._exit(0)
        try:
            proxy.cut()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        finally:
            os.write(writing, b"!")
            os.waitpid(child, 0)
            os.close(reading)
            os.close(writing)
