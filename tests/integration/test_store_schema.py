"""The schema: migrations, rights, partitions."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import psycopg
import pytest

from marketdata.clock import to_micros
from marketdata.errors import ConfigurationError, SchemaError, StoreReadOnlyError
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.store.migrations import Migration, Migrator, load_migrations, migration_sql
from marketdata.store.sealing import Sealer
from marketdata.types import DAY, Timeframe
from tests.store_examples import (
    AAPL,
    OBSERVED,
    OPEN,
    assert_same_bars,
    commit_of,
    migrated_store,
    minutes,
    stored,
)


def micros(text: str) -> int:
    return to_micros(datetime.fromisoformat(text))


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_migrations_are_numbered_from_one_without_holes():
    assert [m.number for m in load_migrations()] == list(range(1, len(load_migrations()) + 1))


def test_an_empty_database_is_told_how_to_get_its_schema(database_url: str):
    with PostgresStore(database_url) as store:
        with pytest.raises(SchemaError, match="run: marketdata db init") as caught:
            store.check_schema()
        assert not caught.value.transient
        with pytest.raises(SchemaError, match="run: marketdata db init"):
            store.states([AAPL])


def test_migrating_twice_applies_once_and_keeps_the_epoch(database_url: str):
    with PostgresStore(database_url) as store:
        assert store.migrate() == [m.number for m in load_migrations()]
        epoch = store.epoch
        assert store.migrate() == []
        store.check_schema()
    with PostgresStore(database_url) as store:
        assert store.epoch == epoch


def test_processes_that_migrate_at_once_apply_each_file_once(database_url: str):
    applied: list[list[int]] = []

    def migrate() -> None:
        with PostgresStore(database_url) as store:
            applied.append(store.migrate())

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied, key=len) == [[], [], [], [m.number for m in load_migrations()]]


def test_a_failing_migration_leaves_nothing_of_itself_or_of_those_before(database_url: str):
    with PostgresStore(database_url) as store:
        good, *rest = load_migrations()
        bad = [good, replace(rest[0], statements="CREATE TABLE half (); SELECT 1/0")]
        with pytest.raises(Exception, match="division by zero"):
            Migrator(store.database, bad).migrate()
        assert Migrator(store.database).applied() == {}
        assert rows(database_url, "SELECT FROM pg_namespace WHERE nspname = 'marketdata'") == []


def test_a_migration_may_take_longer_than_other_statements(database_url: str):
    slow = Migration(1, "slow", "SELECT pg_sleep(0.6); SELECT pg_sleep(0.6);")
    table = load_migrations()[0]
    with PostgresStore(database_url, statement_timeout=0.5) as store:
        found = [replace(slow, statements=table.statements + slow.statements)]
        assert Migrator(store.database, found).migrate() == [1]


# Of a session of the released schema, the stage that its bars were observed at: 3 is final.
_ROW = """
INSERT INTO market_data_bars (symbol, timeframe, "timestamp", open, high, low, close, volume,
                              provider, feed, revision)
VALUES ('AAPL', '1min', %s, 1, 1, 1, 1, 1, 'alpaca', 'sip', %s * 10000000000000 + 1)
"""
_COVERED = """
INSERT INTO series (provider, feed, symbol, timeframe, coverage, unsettled, revision, first_bar,
                    last_bar, bar_count)
VALUES ('alpaca', 'sip', 'AAPL', '1min', tstzmultirange(tstzrange(%s, %s)),
        tstzmultirange(tstzrange(%s, %s)), 1, %s, %s, 6)
"""


def test_what_an_older_release_stored_is_final_where_its_bars_are_and_can_be_sealed(
    database_url: str,
):
    stages = {
        "2024-03-06T15:00Z": 3,
        "2024-03-07T15:00Z": 3,
        "2024-03-07T16:00Z": 2,  # read again too early: this day is not final
        "2024-03-08T15:00Z": 3,  # the clocks change two days later
        "2024-03-11T23:00Z": 3,
        "2024-03-12T14:00Z": 1,  # today
    }
    covered = ("2024-03-06T05:00Z", "2024-03-12T14:01Z")
    with PostgresStore(database_url) as store:
        Migrator(store.database, load_migrations()[:5]).migrate()
        with psycopg.connect(database_url, autocommit=True) as plain:
            plain.execute("SET search_path = marketdata; SET TimeZone = 'UTC'")
            plain.execute("SELECT ensure_bar_partitions(ARRAY['2024-03-01'::date])")
            for label, stage in stages.items():
                plain.execute(_ROW, (label, stage))
            ends = (min(stages), max(stages))
            plain.execute(_COVERED, (*covered, covered[1], covered[1], *ends))
        before = micros(covered[0]), micros("2024-03-07T05:00Z")
        after = micros("2024-03-08T05:00Z"), micros("2024-03-12T04:00Z")

        store.migrate()

        state = store.states([AAPL])[AAPL]
        assert state.final == [Span(*before), Span(*after)]
        everything = Span(micros(covered[0]), micros(covered[1]))
        bars = stored(store, everything)
        assert len(bars) == 6
        moved = list(Sealer(store.database).seal(AAPL, micros("2024-03-13T04:00Z")))
        assert sum(each.bars for each in moved) == 3
        assert_same_bars(stored(store, everything), bars)


def test_a_newer_schema_is_refused(database_url: str):
    with PostgresStore(database_url) as store:
        now = load_migrations()
        future = replace(now[-1], number=len(now) + 1, name="future", statements="SELECT 1")
        Migrator(store.database, [*now, future]).migrate()
        for attempt in (store.migrate, store.check_schema):
            with pytest.raises(SchemaError, match="update marketdata"):
                attempt()


def test_a_migration_that_reads_differently_now_is_refused(database_url: str):
    with PostgresStore(database_url) as store:
        first, *rest = load_migrations()
        Migrator(
            store.database, [replace(first, statements=first.statements + "--"), *rest]
        ).migrate()
        for attempt in (store.migrate, store.check_schema):
            with pytest.raises(SchemaError, match="another wording"):
                attempt()


def test_an_administrator_can_run_the_printed_script_instead(database_url: str):
    with PostgresStore(database_url) as store:
        script = store.migration_sql()
        assert script.count("SET LOCAL search_path") == 1
        rows(database_url, script)
        store.check_schema()
        assert store.migrate() == []
        store.commit([commit_of(minutes(0, 5))])
    with pytest.raises(psycopg.errors.DuplicateTable):
        rows(database_url, migration_sql("marketdata"))


def test_two_schemas_of_one_database_are_apart(database_url: str):
    with migrated_store(database_url) as one, PostgresStore(database_url, schema="other") as two:
        two.migrate()
        assert one.epoch != two.epoch
        one.commit([commit_of(minutes(0, 5), seed=1)])
        two.commit([commit_of(minutes(0, 5), seed=2)])
        assert stored(one, minutes(0, 5)).values[0, 0] != stored(two, minutes(0, 5)).values[0, 0]


@pytest.mark.parametrize("name", ["", "Market", 'a"; DROP SCHEMA public', "x" * 64])
def test_a_name_that_cannot_be_a_schema_is_refused(name: str):
    with pytest.raises(ConfigurationError, match="MARKETDATA_SCHEMA"):
        PostgresStore("postgresql://localhost/x", schema=name)


@pytest.fixture
def logins(database_url: str) -> Iterator[dict[str, str]]:
    """URLs of a login that is only a writer and of one that is only a reader."""
    suffix = secrets.token_hex(4)
    with migrated_store(database_url) as owner:
        owner.commit([commit_of(minutes(0, 5))])
    names = {role: f"test_{role}_{suffix}" for role in ("writer", "reader")}
    for role, name in names.items():
        rows(database_url, f"CREATE ROLE {name} LOGIN IN ROLE marketdata_{role}")
    # a role taken on at connect rather than a login: how to log in differs from server to server
    joint = "&" if "?" in database_url else "?"
    yield {r: f"{database_url}{joint}options=-c%20role%3D{name}" for r, name in names.items()}
    for name in names.values():
        rows(database_url, f"DROP ROLE {name}")


def test_writers_need_no_ddl_rights(logins: dict[str, str]):
    with PostgresStore(logins["writer"]) as writer:
        writer.check_schema()
        later = Span(OPEN + 400 * DAY, OPEN + 400 * DAY + 60_000_000)
        commit = commit_of(later)
        writer.commit([commit])
        assert_same_bars(stored(writer, later), commit.bars)
        writer.land(writer.board([AAPL], later, 5.0), None)
        assert writer.take("key", 5) == 0.0
        writer.record("alpaca", {"AAPL": []}, later, OBSERVED)
        assert writer.adopt("alpaca", "sip") == ("alpaca", "sip")
        writer.name_symbol("AAPL", "Apple Inc.")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rows(logins["writer"], "CREATE TABLE marketdata.mine ()")


def test_readers_read_and_cannot_write(logins: dict[str, str]):
    with PostgresStore(logins["reader"]) as reader:
        assert len(stored(reader, minutes(0, 5))) == 5
        assert reader.status().bars == 5
        with pytest.raises(StoreReadOnlyError, match="marketdata_writer"):
            reader.commit([commit_of(minutes(5, 5))])


def test_making_the_schema_without_the_right_to_is_said(database_url: str):
    name = f"test_nobody_{secrets.token_hex(4)}"
    rows(database_url, f"CREATE ROLE {name} LOGIN")
    joint = "&" if "?" in database_url else "?"
    with (
        PostgresStore(f"{database_url}{joint}options=-c%20role%3D{name}") as store,
        pytest.raises(StoreReadOnlyError, match="lacks a right"),
    ):
        store.migrate()
    rows(database_url, f"DROP ROLE {name}")


def test_an_owner_who_cannot_make_roles_still_gets_the_schema(database_url: str):
    name = f"test_owner_{secrets.token_hex(4)}"
    rows(database_url, f"CREATE ROLE {name} LOGIN; CREATE SCHEMA marketdata AUTHORIZATION {name}")
    joint = "&" if "?" in database_url else "?"
    with PostgresStore(f"{database_url}{joint}options=-c%20role%3D{name}") as store:
        assert store.migrate() == [m.number for m in load_migrations()]
        store.commit([commit_of(minutes(0, 5))])
    rows(database_url, f"DROP OWNED BY {name} CASCADE")
    rows(database_url, f"DROP ROLE {name}")


def test_partitions_are_made_while_a_reader_is_open(database_url: str):
    with migrated_store(database_url, lock_timeout=2.0) as store:
        store.commit([commit_of(minutes(0, 5))])
        with psycopg.connect(database_url) as reader:
            reader.execute("SELECT count(*) FROM marketdata.market_data_bars")
            span = Span(OPEN + 90 * DAY, OPEN + 90 * DAY + 60_000_000)
            store.commit([commit_of(span)])
            assert len(stored(store, span)) == 1


def test_a_month_dropped_under_a_running_writer_is_made_again(database_url: str):
    with migrated_store(database_url) as store:
        store.commit([commit_of(minutes(0, 5))])
        rows(
            database_url,
            "ALTER TABLE marketdata.market_data_bars_intraday "
            "DETACH PARTITION marketdata.market_data_bars_2024_01 CONCURRENTLY",
        )
        rows(database_url, "DROP TABLE marketdata.market_data_bars_2024_01")
        store.commit([commit_of(minutes(5, 5))])
        assert len(stored(store, minutes(0, 10))) == 5


def test_every_timeframe_has_its_partition(database_url: str):
    with migrated_store(database_url) as store:
        keys = [AAPL.with_timeframe(t) for t in Timeframe]
        store.commit([commit_of(minutes(0, 1), key) for key in keys])
        found = rows(
            database_url,
            "SELECT timeframe, tableoid::regclass::text FROM marketdata.market_data_bars",
        )
        daily = {t for t, table in found if table.endswith("market_data_bars_daily")}
        assert daily == {"1day", "1week", "1month"}
        assert len(found) == len(Timeframe)


def test_partition_bounds_are_utc_whatever_the_servers_zone(database_url: str):
    database = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    rows(database_url, f"ALTER DATABASE {database} SET TimeZone = 'America/New_York'")
    with migrated_store(database_url) as store:
        edge = Span(1_706_745_600_000_000 - 60_000_000, 1_706_745_600_000_000 + 60_000_000)
        store.commit([commit_of(edge)])
        assert_same_bars(stored(store, edge), commit_of(edge).bars)
    found = rows(database_url, "SELECT tableoid::regclass::text FROM marketdata.market_data_bars")
    assert sorted(t.rsplit("_", 2)[1:] for (t,) in found) == [["2024", "01"], ["2024", "02"]]


def test_tables_say_what_they_hold(database_url: str):
    with migrated_store(database_url):
        silent = rows(
            database_url,
            """SELECT relname FROM pg_class WHERE relnamespace = 'marketdata'::regnamespace
               AND relkind IN ('r', 'p', 'v') AND relname NOT LIKE 'market_data_bars_%'
               AND obj_description(oid, 'pg_class') IS NULL""",
        )
        assert silent == []
