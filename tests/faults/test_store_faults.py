"""Faults of the durable tier: crashes, lost connections, colliding writers, refused writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import psycopg
import pytest
from sqlalchemy import Connection

from marketdata.errors import DataQualityError, StoreReadOnlyError, StoreUnavailableError
from marketdata.protocols import Commit, ReadRequest, SeriesState
from marketdata.store import PostgresStore
from marketdata.types import CLOSE, HIGH, LOW, MINUTE, OPEN, VOLUME, SeriesKey
from tests.store_examples import (
    AAPL,
    MSFT,
    OBSERVED,
    assert_same_bars,
    commit_of,
    migrated_store,
    minutes,
    some_bars,
    stored,
)

WRITER = """
import sys
from marketdata.store import PostgresStore
from tests.store_examples import commit_of, minutes

def pause(_):
    print("rows and coverage are written, COMMIT is not sent", flush=True)
    sys.stdin.read()

with PostgresStore(sys.argv[1]) as store:
    store.commit([commit_of(minutes(0, 500))], pause)
"""


@pytest.fixture
def store(database_url: str):
    with migrated_store(database_url) as made:
        yield made


def terminate_all(url: str) -> int:
    """End every server session of the library on this database; return how many there were."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'marketdata-test'"
        ).fetchone()[0]


def test_fault_15_invariant_05_a_writer_killed_before_commit_leaves_nothing(
    store: PostgresStore, database_url: str
):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, database_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    with writer:
        assert writer.stdout is not None
        assert b"COMMIT is not sent" in writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    assert store.states([AAPL]) == {AAPL: SeriesState()}
    assert len(stored(store, minutes(0, 500))) == 0
    # and its locks are gone with it
    assert store.commit([commit_of(minutes(0, 500))]) == {AAPL: 1}
    assert len(stored(store, minutes(0, 500))) == 500


def test_fault_16_sessions_ended_between_calls_are_not_noticed(
    store: PostgresStore, database_url: str
):
    store.commit([commit_of(minutes(0, 10))])
    for _ in range(5):
        assert terminate_all(database_url) > 0
        assert len(stored(store, minutes(0, 10))) == 10


def test_fault_16_a_session_ended_inside_a_commit_is_made_up_for(
    store: PostgresStore, database_url: str
):
    calls: list[int] = []

    def cut_once(_: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            terminate_all(database_url)

    assert store.commit([commit_of(minutes(0, 10))], cut_once) == {AAPL: 1}
    assert len(calls) == 2
    assert len(stored(store, minutes(0, 10))) == 10
    assert store.metadata(["AAPL"])[0].total_bars_stored == 10


def test_fault_16_sessions_that_died_at_rest_use_up_no_attempt(
    store: PostgresStore, database_url: str
):
    database = store.database
    met = threading.Barrier(4)

    def meet(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT 1")
        met.wait(10)

    def side_by_side() -> list[BaseException]:
        failures: list[BaseException] = []

        def one() -> None:
            try:
                database.run(meet)
            except BaseException as error:
                failures.append(error)
                met.abort()

        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failures

    assert side_by_side() == []
    assert terminate_all(database_url) >= 4
    # Whoever finds one dead takes another, before anything was asked of it.
    assert side_by_side() == []

    assert terminate_all(database_url) >= 4
    cut: list[int] = []

    def cut_once(connection: Connection) -> int:
        if not cut:
            cut.append(1)
            terminate_all(database_url)
        return connection.exec_driver_sql("SELECT 7").scalar_one()

    # One that died at rest, and then one lost at work: that one alone counts.
    assert database.run(cut_once) == 7


def test_fault_16_a_session_ended_every_time_is_one_typed_error(
    store: PostgresStore, database_url: str
):
    def cut(_: object) -> None:
        terminate_all(database_url)

    with pytest.raises(StoreUnavailableError) as caught:
        store.commit([commit_of(minutes(0, 10))], cut)
    assert caught.value.transient
    assert store.states([AAPL]) == {AAPL: SeriesState()}
    store.commit([commit_of(minutes(0, 10))])


def test_fault_16_under_load_every_answer_is_right_or_one_typed_error(
    store: PostgresStore, database_url: str
):
    span = minutes(0, 2000)
    store.commit([commit_of(span)])
    expected = some_bars(span)
    stop = threading.Event()
    surprises: list[BaseException] = []
    answers: list[int] = []

    def read() -> None:
        while not stop.is_set():
            try:
                assert_same_bars(stored(store, span), expected)
                answers.append(1)
            except StoreUnavailableError:
                answers.append(0)
            except BaseException as error:
                surprises.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(20):
        terminate_all(database_url)
    stop.set()
    for reader in readers:
        reader.join()
    assert surprises == []
    assert sum(answers) > 0
    assert_same_bars(stored(store, span), expected)


def test_fault_17_writers_in_opposite_order_end_as_if_one_after_the_other(
    store: PostgresStore, database_url: str
):
    rounds = 500
    keys = [AAPL._replace(symbol=f"S{i}") for i in range(4)]
    failures: list[BaseException] = []

    def write(order: list[SeriesKey], parity: int) -> None:
        try:
            with PostgresStore(database_url, application_name="marketdata-test") as own:
                for i in range(rounds):
                    observed = OBSERVED + (2 * i + parity) * MINUTE
                    own.commit(
                        [
                            commit_of(minutes(i, 3), key, seed=2 * i + parity, observed_us=observed)
                            for key in order
                        ]
                    )
        except BaseException as error:
            failures.append(error)

    writers = [
        threading.Thread(target=write, args=(keys, 0)),
        threading.Thread(target=write, args=(keys[::-1], 1)),
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
    # each minute was last observed by the latest round that covered it, writer 1 after writer 0
    whole = minutes(0, rounds + 2)
    expected = some_bars(whole)
    for i in range(rounds):
        expected.values[:, i : i + 3] = some_bars(minutes(i, 3), 2 * i + 1).values
    for key, state in store.states(keys).items():
        assert state.coverage == [whole]
        assert_same_bars(stored(store, whole, key), expected)
        assert store.metadata([key.symbol])[0].total_bars_stored == rounds + 2


def test_fault_17_a_deadlock_with_a_stranger_is_retried(store: PostgresStore, database_url: str):
    store.commit([commit_of(minutes(0, 1)), commit_of(minutes(0, 1), MSFT)])
    grab = "SELECT FROM marketdata.series WHERE symbol = %s FOR UPDATE"
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with (
        psycopg.connect(database_url) as stranger,
        psycopg.connect(database_url, autocommit=True) as watch,
    ):
        stranger.execute("SET deadlock_timeout = '10s'")  # so that ours is the one that gives way
        stranger.execute(grab, ("MSFT",))
        done: list[dict[SeriesKey, int]] = []
        ours = threading.Thread(
            target=lambda: done.append(
                store.commit([commit_of(minutes(1, 1)), commit_of(minutes(1, 1), MSFT)])
            )
        )
        ours.start()
        while watch.execute(waiting).fetchone() != (1,):
            pass
        stranger.execute(grab, ("AAPL",))
        stranger.rollback()
        ours.join()
    assert done == [{AAPL: 2, MSFT: 2}]


def make_read_only(url: str) -> None:
    database = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")


def fill_the_disk(url: str) -> None:
    """From the tenth bar on every row is refused as on a full disk."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            """CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                   IF NEW."timestamp" >= '2024-01-02 14:40+00' THEN
                       RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100';
                   END IF; RETURN NEW; END $$"""
        )
        connection.execute(
            "CREATE TRIGGER full_disk BEFORE INSERT ON marketdata.market_data_bars_2024_01 "
            "FOR EACH ROW EXECUTE FUNCTION full_disk()"
        )


@pytest.mark.parametrize("fault", [make_read_only, fill_the_disk])
def test_fault_18_a_refused_write_is_typed_and_stores_nothing(
    store: PostgresStore, database_url: str, fault: Callable[[str], None]
):
    store.commit([commit_of(minutes(0, 5))])
    state = store.states([AAPL, MSFT])
    fault(database_url)
    terminate_all(database_url)
    # a read first: what it set for itself must not lift the server's own default
    assert len(stored(store, minutes(0, 100))) == 5
    with pytest.raises(StoreReadOnlyError) as caught:
        store.commit([commit_of(minutes(0, 20), MSFT), commit_of(minutes(5, 20))])
    assert not caught.value.transient
    assert store.states([AAPL, MSFT]) == state
    assert len(stored(store, minutes(0, 100))) == 5
    assert len(stored(store, minutes(0, 100), MSFT)) == 0


def test_fault_18_writing_resumes_without_loss(store: PostgresStore, database_url: str):
    store.commit([commit_of(minutes(0, 5))])
    fill_the_disk(database_url)
    commit = commit_of(minutes(5, 20))
    with pytest.raises(StoreReadOnlyError):
        store.commit([commit])
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP FUNCTION full_disk CASCADE")
    store.commit([commit])
    assert len(stored(store, minutes(0, 25))) == 25


@pytest.mark.parametrize(
    ("column", "value"),
    [(c, v) for c in (OPEN, HIGH, LOW, CLOSE) for v in (np.nan, np.inf, -np.inf, 0.0, -1.0)]
    + [(VOLUME, v) for v in (np.nan, np.inf, -1.0)]
    + [(HIGH, 1e-9), (5, np.inf), (5, -1.0), (6, np.inf), (6, -1.0)],
)
def test_invariant_25_a_bad_value_never_reaches_the_table_nor_do_its_neighbours(
    bad_value_store: PostgresStore, column: int, value: float
):
    good, bad = commit_of(minutes(0, 10), MSFT), commit_of(minutes(0, 10))
    bad.bars.values[column, 7] = value
    with pytest.raises(DataQualityError) as caught:
        bad_value_store.commit([good, bad])
    assert not caught.value.transient
    assert bad_value_store.states([AAPL, MSFT]) == {AAPL: SeriesState(), MSFT: SeriesState()}
    assert len(stored(bad_value_store, minutes(0, 10), MSFT)) == 0


@pytest.fixture(scope="module")
def bad_value_store(postgres_url: str):
    """One database for all the values that must leave it empty."""
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS test_bad_values WITH (FORCE)")
        server.execute("CREATE DATABASE test_bad_values")
        url = psycopg.conninfo.make_conninfo(postgres_url, dbname="test_bad_values")
        with migrated_store(url) as made:
            yield made
        server.execute("DROP DATABASE test_bad_values WITH (FORCE)")


def test_an_open_outside_the_range_is_kept(store: PostgresStore):
    commit = commit_of(minutes(0, 3))
    commit.bars.values[OPEN, 1] = commit.bars.values[HIGH, 1] + 1
    store.commit([commit])
    assert_same_bars(stored(store, minutes(0, 3)), commit.bars)


def test_a_reader_sees_a_commit_whole_or_not_at_all(store: PostgresStore):
    """State and bars come from one snapshot, however many commits run beside the read."""
    stop = threading.Event()

    def write() -> None:
        i = 0
        while not stop.is_set():
            span = minutes(i * 5, 5)
            store.commit([Commit(AAPL, some_bars(span), span, OBSERVED)])
            i += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            state, bars = store.read([ReadRequest(AAPL, minutes(0, 100_000))])[AAPL]
            covered = sum(s.end - s.start for s in state.coverage)
            assert covered == len(bars) * MINUTE
    finally:
        stop.set()
        writer.join()
