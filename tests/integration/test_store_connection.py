"""Connections: bounded in time, safe across forks, healed, and silent about secrets."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from contextlib import suppress

import psycopg
import pytest
from psycopg.sql import Composed
from sqlalchemy import Connection, text

from marketdata.errors import ConfigurationError, MarketDataError, StoreError, StoreUnavailableError
from marketdata.store import PostgresStore
from marketdata.store import connection as connections
from marketdata.store.connection import Database, Driver, driver
from marketdata.store.failures import BY_SQLSTATE, FOREIGN, judge, translate
from marketdata.testing import FlakyProxy
from tests.store_examples import AAPL, commit_of, migrated_store, minutes, stored


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("postgresql+psycopg://localhost/db", "postgresql://user@host/database"),
        ("postgresql://me:p%ZZword@localhost/db", "percent-encoded"),
        ("not a url", "MARKETDATA_DATABASE_URL"),
    ],
)
def test_an_unreadable_url_is_a_configuration_error_without_its_secrets(url: str, cure: str):
    with pytest.raises(ConfigurationError) as caught:
        PostgresStore(url)
    assert cure in str(caught.value)
    assert "word" not in str(caught.value).replace("password", "")
    assert caught.value.__cause__ is None


def test_no_secret_is_in_a_repr_or_an_error():
    store = PostgresStore("postgresql://me:hunter2@127.0.0.1:1/db")
    with pytest.raises(StoreUnavailableError) as caught:
        store.states([AAPL])
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "hunter2" not in f"{chain!r} {chain}"
        chain = chain.__cause__
    assert "hunter2" not in f"{store!r} {store.database!r}"
    assert "127.0.0.1:1/db" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).transient


def test_a_server_that_refuses_is_reported_at_once():
    started = time.monotonic()
    with (
        PostgresStore("postgresql://127.0.0.1:1/db") as store,
        pytest.raises(StoreUnavailableError),
    ):
        store.states([AAPL])
    assert time.monotonic() - started < 1


def test_a_server_that_never_answers_is_reported_within_the_connect_timeout():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        started = time.monotonic()
        with (
            PostgresStore(f"postgresql://127.0.0.1:{port}/db", connect_timeout=2.0) as store,
            pytest.raises(StoreUnavailableError) as caught,
        ):
            store.states([AAPL])
        assert time.monotonic() - started < 4
    assert caught.value.transient


def test_threads_do_not_each_find_out_that_a_server_is_silent():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql://127.0.0.1:{mute.getsockname()[1]}/db"
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                store.states([AAPL])
            except StoreUnavailableError as error:
                failures.append(error)

        started = time.monotonic()
        with PostgresStore(url, connect_timeout=2.0, pool_size=2) as store:
            threads = [threading.Thread(target=ask) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(failures) == 20
        assert time.monotonic() - started < 6  # one after the other: 20


def test_a_server_that_falls_silent_is_given_up_and_found_again(database_url: str):
    with migrated_store(database_url) as direct:
        direct.commit([commit_of(minutes(0, 3))])
    with (
        FlakyProxy(database_url) as proxy,
        PostgresStore(proxy.url, statement_timeout=0.5, connect_timeout=2.0) as store,
    ):
        assert len(stored(store, minutes(0, 3))) == 3
        proxy.freeze()
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError) as caught:
            stored(store, minutes(0, 3))
        assert caught.value.transient
        assert time.monotonic() - started < 8
        proxy.thaw()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with suppress(StoreUnavailableError):
                assert len(stored(store, minutes(0, 3))) == 3
                break
        else:
            pytest.fail("not found again")


def test_after_one_loss_older_connections_are_replaced_unasked(
    database_url: str, monkeypatch: pytest.MonkeyPatch
):
    opened: list[Driver] = []

    def counted(raw: Driver, opening: Composed) -> None:
        opened.append(raw)
        really_open(raw, opening)

    really_open = connections._open
    monkeypatch.setattr(connections, "_open", counted)

    def nested(database: Database, more: int) -> None:
        database.run(lambda _: nested(database, more - 1) if more else None)

    with FlakyProxy(database_url) as proxy, PostgresStore(proxy.url) as store:
        nested(store.database, 3)
        assert proxy.cut() == len(opened) == 4
        opened.clear()
        nested(store.database, 3)
    # Behind a firewall that forgets connections each of the others would be waited for in turn.
    assert len(opened) == 1 + 4
    assert proxy.connections == 8


def test_who_finds_out_late_about_a_loss_does_not_condemn_what_was_made_since(database_url: str):
    cut: list[int] = []

    def inside(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))
        if not cut:
            cut.append(proxy.cut())
            connection.execute(text("SELECT 2"))  # found out at once, made up for

    def outside(connection: Connection) -> None:
        connection.execute(text("SELECT 3"))
        store.database.run(inside)
        connection.execute(text("SELECT 4"))  # found out now

    with FlakyProxy(database_url) as proxy, PostgresStore(proxy.url) as store:
        store.database.run(outside)
        # two that were cut, the one that made up for it, and one beside that
        assert (cut, proxy.connections) == ([2], 4)


def test_a_statement_that_takes_too_long_is_cut(database_url: str):
    with migrated_store(database_url, statement_timeout=0.8) as store:
        with pytest.raises(StoreUnavailableError, match="time limit"):
            store.database.run(lambda c: c.execute(text("SELECT pg_sleep(5)")))
        assert store.states([AAPL])[AAPL].revision == 0


def test_a_lock_held_by_somebody_else_is_not_waited_for_for_ever(database_url: str):
    with migrated_store(database_url, lock_timeout=0.2) as store:
        store.commit([commit_of(minutes(0, 3))])
        with psycopg.connect(database_url) as other:
            other.execute("SELECT FROM marketdata.series FOR UPDATE")
            with pytest.raises(StoreUnavailableError, match="time limit"):
                store.commit([commit_of(minutes(3, 3))])
        store.commit([commit_of(minutes(3, 3))])


def test_a_pool_that_stays_busy_is_said(database_url: str):
    with migrated_store(database_url, pool_size=1, pool_timeout=0.1) as store:

        def hold(_: object) -> None:
            with pytest.raises(StoreUnavailableError, match="busy"):
                store.states([AAPL])

        store.commit([commit_of(minutes(0, 3))], hold)


@pytest.mark.exact("it takes a connection past the retry")
def test_settings_do_not_leak_out_of_a_transaction(database_url: str):
    with migrated_store(database_url, pool_size=1) as store:
        store.commit([commit_of(minutes(0, 3))])
        stored(store, minutes(0, 3))
        with store.database.engine.connect() as connection:
            names = ("search_path", "statement_timeout", "enable_seqscan", "transaction_read_only")
            found = [connection.execute(text(f"SHOW {n}")).scalar() for n in names]
        assert found == ['"$user", public', "0", "on", "off"]


def test_a_forked_child_uses_connections_of_its_own(database_url: str):
    with migrated_store(database_url) as store:
        store.commit([commit_of(minutes(0, 3))])
        child = os.fork()
        if child == 0:
            try:
                ok = len(stored(store, minutes(0, 3))) == 3
                store.commit([commit_of(minutes(3, 3))])
                store.close()
                os._exit(0 if ok else 2)
            except BaseException:
                os._exit(1)
        for _ in range(20):
            assert len(stored(store, minutes(0, 3))) == 3
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(stored(store, minutes(0, 6))) == 6


def test_threads_share_the_pool(database_url: str):
    with migrated_store(database_url, pool_size=4) as store:
        failures: list[BaseException] = []

        def work(n: int) -> None:
            try:
                key = AAPL._replace(symbol=f"S{n}")
                store.commit([commit_of(minutes(0, 50), key, seed=n)])
                assert len(stored(store, minutes(0, 50), key)) == 50
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def test_what_is_in_use_while_a_store_is_closed_is_closed_after_use(database_url: str):
    with PostgresStore(database_url) as store:
        kept = []

        def closing_meanwhile(connection: Connection) -> None:
            kept.append(driver(connection))
            store.close()
            assert not kept[0].closed

        store.database.run(closing_meanwhile)
        assert kept[0].closed


def test_a_closed_store_opens_again(database_url: str):
    with migrated_store(database_url) as store:
        store.close()
        assert store.states([AAPL])[AAPL].revision == 0


def sqlstates() -> list[type[psycopg.Error]]:
    found = [getattr(psycopg.errors, name) for name in dir(psycopg.errors)]
    errors = [e for e in found if isinstance(e, type) and issubclass(e, psycopg.Error)]
    return [e for e in errors if e.sqlstate]


@pytest.mark.parametrize("error", sqlstates(), ids=lambda e: e.__name__)
def test_every_error_of_postgresql_has_its_row_in_the_table(error: type[psycopg.Error]):
    assert error.sqlstate is not None
    assert error.sqlstate in BY_SQLSTATE or error.sqlstate[:2] in BY_SQLSTATE
    ours = translate(error("it happened"), "here")
    assert isinstance(ours, MarketDataError)
    assert "it happened" in str(ours)
    assert ours.facts["sqlstate"] == error.sqlstate


@pytest.mark.parametrize(
    "error",
    [psycopg.Error, *psycopg.Error.__subclasses__(), *psycopg.DatabaseError.__subclasses__()],
)
def test_every_error_of_the_driver_without_a_code_is_translated(error: type[psycopg.Error]):
    assert issubclass(error, FOREIGN)
    assert issubclass(judge(error("x")).error, MarketDataError)


@pytest.mark.parametrize(
    ("state", "ours", "transient"),
    [
        ("57P01", StoreUnavailableError, True),
        ("53300", StoreUnavailableError, True),
        ("40P01", StoreUnavailableError, True),
        ("XX001", StoreError, False),
        ("28P01", ConfigurationError, False),
    ],
)
def test_the_table_says_whether_a_retry_helps(state, ours, transient):
    error = translate(psycopg.errors.lookup(state)("x"), "here")
    assert type(error) is ours
    assert error.transient is transient
