"""Long reads over two connections: the same answer as over one, whatever becomes of the second."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy.pool import QueuePool

from marketdata.errors import StoreUnavailableError
from marketdata.protocols import Commit, ReadRequest
from marketdata.spans import Span
from marketdata.store import PostgresStore, reading
from marketdata.types import DAY, MINUTE, Bars
from tests.store_examples import (
    AAPL,
    MSFT,
    OBSERVED,
    OPEN,
    assert_same_bars,
    migrated_store,
    some_bars,
    stored,
)

SPAN = Span(OPEN, OPEN + 500 * DAY)  # 720,000 steps
COPY_BLOCKS = reading._copy_blocks
Copying = Callable[..., Iterator[tuple[Any, ...]]]


@pytest.fixture
def bars() -> Bars:
    return some_bars(SPAN, step=97 * MINUTE)


@pytest.fixture
def store(
    database_url: str, bars: Bars, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PostgresStore]:
    monkeypatch.setattr(reading, "_CONNECTIONS", 2)  # on machines of one core too
    monkeypatch.setattr(reading, "_CHUNKS", 4)
    with migrated_store(database_url) as made:
        made.commit([Commit(AAPL, bars, SPAN, OBSERVED)])
        yield made


def connections(store: PostgresStore) -> int:
    """How many connections the pool has opened and still has."""
    pool = store.database.engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedin() + pool.checkedout()


def copying(
    monkeypatch: pytest.MonkeyPatch, *, reader: Copying = COPY_BLOCKS, helper: Copying = COPY_BLOCKS
) -> None:
    """Let the thread that reads and the one that helps it copy blocks in their own ways."""
    own = threading.current_thread()

    def copy(*arguments: Any) -> Iterator[tuple[Any, ...]]:
        chosen = reader if threading.current_thread() is own else helper
        return chosen(*arguments)

    monkeypatch.setattr(reading, "_copy_blocks", copy)


def cut(url: str, raw: psycopg.Connection[Any]) -> None:
    """End the session of `raw`, and let it notice."""
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (raw.info.backend_pid,))
    raw.execute("SELECT")


def test_a_long_read_takes_two_connections_and_answers_as_one_does(
    store: PostgresStore, bars: Bars, database_url: str, monkeypatch: pytest.MonkeyPatch
):
    helping = threading.Event()

    def wait(*arguments: Any) -> Iterator[tuple[Any, ...]]:
        assert helping.wait(30)
        yield from COPY_BLOCKS(*arguments)

    def help_out(*arguments: Any) -> Iterator[tuple[Any, ...]]:
        helping.set()
        yield from COPY_BLOCKS(*arguments)

    copying(monkeypatch, reader=wait, helper=help_out)
    assert connections(store) == 1
    assert_same_bars(stored(store, SPAN), bars)
    assert connections(store) == 2
    copying(monkeypatch)
    with PostgresStore(database_url, pool_size=1) as alone:
        assert_same_bars(stored(alone, SPAN), bars)


def test_several_series_are_shared_too(store: PostgresStore, bars: Bars):
    other = Bars(bars.timestamp, bars.values + 1)
    store.commit([Commit(MSFT, other, SPAN, OBSERVED)])
    part = Span(SPAN.start + 100 * DAY, SPAN.end)
    found = store.read([ReadRequest(MSFT, SPAN), ReadRequest(AAPL, part)])
    assert_same_bars(found[MSFT][1], other)
    assert_same_bars(found[AAPL][1], bars.within(part))


def test_both_connections_see_one_moment(
    store: PostgresStore, bars: Bars, database_url: str, monkeypatch: pytest.MonkeyPatch
):
    changed = threading.Event()

    def change_first(*arguments: Any) -> Iterator[tuple[Any, ...]]:
        if not changed.is_set():
            with PostgresStore(database_url) as writer:
                newer = Bars(bars.timestamp, bars.values + 1)
                writer.commit([Commit(AAPL, newer, SPAN, OBSERVED + DAY)])
            changed.set()
        return COPY_BLOCKS(*arguments)

    def wait(*arguments: Any) -> Iterator[tuple[Any, ...]]:
        assert changed.wait(30)
        return COPY_BLOCKS(*arguments)

    copying(monkeypatch, reader=change_first, helper=wait)
    state, found = store.read([ReadRequest(AAPL, SPAN)])[AAPL]
    assert state.revision == 1
    assert_same_bars(found, bars)
    assert_same_bars(stored(store, SPAN), Bars(bars.timestamp, bars.values + 1))


@pytest.mark.parametrize("trouble", ["lost", "bug"])
def test_a_helper_that_fails_midway_leaves_its_part_to_the_reader(
    store: PostgresStore,
    bars: Bars,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
):
    failures: list[str] = []
    failed = threading.Event()

    def fail(raw: Any, *arguments: Any) -> Iterator[tuple[Any, ...]]:
        rows = list(COPY_BLOCKS(raw, *arguments))
        yield rows[0]
        failures.append(trouble)
        if trouble == "bug" or len(failures) == 2:  # a connection lost once is opened again
            failed.set()
        if trouble == "bug":
            raise RuntimeError("a bug")
        cut(database_url, raw)

    def wait(*arguments: Any) -> Iterator[tuple[Any, ...]]:
        assert failed.wait(30)
        yield from COPY_BLOCKS(*arguments)

    copying(monkeypatch, reader=wait, helper=fail)
    assert_same_bars(stored(store, SPAN), bars)
    assert len(failures) == (1 if trouble == "bug" else 2)
    copying(monkeypatch)
    assert_same_bars(stored(store, SPAN), bars)


@pytest.mark.exact("it ends the connection itself, and one retry is all there is")
def test_a_reader_that_loses_its_connection_reads_again(
    store: PostgresStore, bars: Bars, database_url: str, monkeypatch: pytest.MonkeyPatch
):
    cuts: list[int] = []

    def cut_once(raw: Any, *arguments: Any) -> Iterator[tuple[Any, ...]]:
        if not cuts:
            cuts.append(1)
            cut(database_url, raw)
        yield from COPY_BLOCKS(raw, *arguments)

    copying(monkeypatch, reader=cut_once)
    assert_same_bars(stored(store, SPAN), bars)
    assert cuts == [1]


def test_a_reader_that_fails_raises_and_its_helper_stops(
    store: PostgresStore, database_url: str, monkeypatch: pytest.MonkeyPatch
):
    abandoned = threading.Semaphore(0)
    taken: list[int] = []
    abandon = reading._Pile.abandon

    def say(pile: Any) -> None:
        abandon(pile)
        abandoned.release()

    def fail(raw: Any, *arguments: Any) -> Iterator[tuple[Any, ...]]:
        cut(database_url, raw)
        yield from ()

    def wait(*arguments: Any) -> Iterator[tuple[Any, ...]]:
        taken.append(1)
        assert abandoned.acquire(timeout=5)
        yield from COPY_BLOCKS(*arguments)

    monkeypatch.setattr(reading._Pile, "abandon", say)
    copying(monkeypatch, reader=fail, helper=wait)
    with pytest.raises(StoreUnavailableError):
        stored(store, SPAN)
    assert not [t for t in threading.enumerate() if "_help" in t.name]
    assert len(taken) <= 3, "of two attempts: what it held when the reader failed"


def test_a_server_that_exports_no_snapshots_is_read_with_one_connection(
    store: PostgresStore, bars: Bars, database_url: str
):
    role = f"test_no_exports_{secrets.token_hex(4)}"
    with psycopg.connect(database_url, autocommit=True) as server:
        server.execute(f"CREATE ROLE {role} IN ROLE marketdata_reader")
        server.execute("REVOKE EXECUTE ON FUNCTION pg_export_snapshot() FROM PUBLIC")
        url = psycopg.conninfo.make_conninfo(database_url, options=f"-c role={role}")
        try:
            with PostgresStore(url) as refused:
                for _ in range(2):
                    assert_same_bars(stored(refused, SPAN), bars)
                    assert connections(refused) == 1
        finally:
            server.execute(f"DROP ROLE {role}")


def test_a_namesake_of_the_snapshot_on_another_server_is_not_read(
    store: PostgresStore, bars: Bars, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []

    def note(*arguments: Any) -> Iterator[tuple[Any, ...]]:
        asked.append(1)
        return COPY_BLOCKS(*arguments)

    monkeypatch.setattr(reading, "_SEEN", "SELECT 'elsewhere'")
    copying(monkeypatch, helper=note)
    for _ in range(3):
        assert_same_bars(stored(store, SPAN), bars)
    assert connections(store) == 2
    assert asked == []


def test_many_readers_share_a_small_pool(database_url: str, store: PostgresStore, bars: Bars):
    failures: list[BaseException] = []

    def read(small: PostgresStore) -> None:
        try:
            for _ in range(3):
                assert_same_bars(stored(small, SPAN), bars)
        except BaseException as error:
            failures.append(error)

    with PostgresStore(database_url, pool_size=3) as small:
        threads = [threading.Thread(target=read, args=(small,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
