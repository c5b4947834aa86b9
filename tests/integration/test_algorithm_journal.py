"""The journal of the algorithms on a real PostgreSQL: claims, fences, cycles, repetitions."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest

import marketdata as md
from algorithms.errors import JournalError
from algorithms.live.journal import Journal
from algorithms.live.lease import RunnerLease
from algorithms.live.records import (
    Claim,
    Delivery,
    Desired,
    Entry,
    Life,
    Registration,
    SessionEquity,
)
from algorithms.orders import Fill, Order, OrderState
from marketdata.store import PostgresStore

NOON = 1_710_432_000_000_000
MINUTE = 60_000_000


@pytest.fixture
def make_journal(database_url: str) -> Iterator[Callable[[], Journal]]:
    with PostgresStore(database_url) as store:
        store.migrate()
    made: list[Journal] = []

    def make() -> Journal:
        made.append(Journal(database_url))
        return made[-1]

    yield make
    for journal in made:
        journal.close()


@pytest.fixture
def journal(make_journal: Callable[[], Journal]) -> Journal:
    return make_journal()


def registration(name: str = "cross", **more: Any) -> Registration:
    return Registration(
        **{
            "name": name,
            "source": "cross.py:Cross",
            "symbols": ("AAPL",),
            "timeframe": "1min",
            **more,
        }
    )


def claimed(journal: Journal, name: str = "cross", **lease: Any) -> tuple[RunnerLease, Claim]:
    journal.register(registration(name))
    runner = journal.begin("me@here/1", **lease)
    (claim,) = runner.claim([name])
    return runner, claim


def entry(claim: Claim, **more: Any) -> Entry:
    record = claim.record
    return Entry(record.id, record.epoch, record.run, first_fill=record.fills + 1, **more)


def rows(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options="-c search_path=marketdata") as admin:
        return admin.execute(statement, values).fetchall()


def run_out(url: str, runner: RunnerLease) -> None:
    """Have a runner's lease end, as one that was paused for too long finds it."""
    with psycopg.connect(url, options="-c search_path=marketdata") as admin:
        admin.execute(
            "UPDATE algorithm_runners SET lease_until = clock_timestamp() - interval '1 second' "
            "WHERE id = %s",
            (runner.id,),
        )


# ------------------------------------------------------------------------------------- registry


def test_what_is_registered_is_wanted_and_runs_nowhere(journal: Journal):
    made = journal.register(registration(params={"fast": 10}, options={"limits": {"orders": 3}}))
    assert journal.records() == [made]
    assert (made.desired, made.life, made.runner) == (Desired.RUNNING, Life.STOPPED, None)
    assert made.registration == registration(params={"fast": 10}, options={"limits": {"orders": 3}})


def test_registering_again_goes_on_with_the_same_run_and_fresh_begins_another(journal: Journal):
    runner, claim = claimed(journal)
    runner.commit([entry(claim, cursor=NOON, snapshot="{}")])
    runner.end()
    again = journal.register(registration(params={"fast": 3}))
    assert (again.run, again.cursor, again.registration.params) == (1, NOON, {"fast": 3})
    anew = journal.register(registration(), fresh=True)
    assert (anew.run, anew.cursor, anew.fills) == (2, None, 0)
    (taken,) = journal.begin("me").claim(["cross"])
    assert taken.snapshot is None


def test_another_timeframe_or_venue_is_another_algorithm(journal: Journal):
    runner, claim = claimed(journal)
    runner.commit([entry(claim, cursor=NOON)])
    runner.end()
    with pytest.raises(JournalError, match="1min bars at paper so far, not 1day"):
        journal.register(registration(timeframe="1day"))


def test_what_runs_is_not_replaced_nor_forgotten(journal: Journal):
    runner, _ = claimed(journal)
    with pytest.raises(JournalError, match="cross runs already, by me@here/1"):
        journal.register(registration(), fresh=True)
    with pytest.raises(JournalError, match="stop it first"):
        journal.forget("cross")
    runner.end()
    journal.forget("cross")
    assert journal.records() == []


def test_an_unknown_name_is_told_the_nearest_known(journal: Journal):
    journal.register(registration())
    with pytest.raises(JournalError, match=r"no algorithm 'crss'.*there are cross"):
        journal.want("crss", Desired.STOPPED)


# ------------------------------------------------------------------------------ claims and fences


def test_an_algorithm_is_claimed_once_while_its_runner_lives(journal: Journal, database_url: str):
    runner, claim = claimed(journal)
    other = journal.begin("you@there/2")
    assert other.claim(["cross"]) == []
    assert other.claim() == []
    run_out(database_url, runner)
    (taken,) = other.claim()
    assert taken.record.epoch == claim.record.epoch + 1
    assert taken.record.runner == "you@there/2"


def test_two_runners_race_and_one_wins_each(make_journal: Callable[[], Journal]):
    home = make_journal()
    for number in range(20):
        home.register(registration(f"a{number:02}"))
    taken: dict[int, list[str]] = {}
    start = threading.Barrier(4)

    def race(which: int) -> None:
        runner = make_journal().begin(f"runner {which}")
        start.wait()
        taken[which] = [claim.record.name for claim in runner.claim()]

    threads = [threading.Thread(target=race, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for names in taken.values() for name in names) == [
        f"a{number:02}" for number in range(20)
    ]


def test_stopped_ones_are_claimed_by_name_only(journal: Journal):
    journal.register(registration())
    journal.want("cross", Desired.STOPPED, reason="lunch")
    runner = journal.begin("me")
    assert runner.claim() == []
    (claim,) = runner.claim(["cross"])
    assert claim.record.reason == "lunch"


def test_a_stale_process_writes_nothing(journal: Journal, database_url: str):
    runner, claim = claimed(journal)
    run_out(database_url, runner)
    assert not runner.renew()
    (taken,) = journal.begin("you").claim()
    order = Order("1", "AAPL", 10)
    assert runner.commit([entry(claim, cursor=NOON, orders=[order])]) == {claim.record.id}
    assert not runner.delivered(claim.record.id, claim.record.epoch, 1, {"1": (Delivery.SENT, "")})
    assert journal.orders("cross") == []
    assert journal.records()[0].cursor is None
    assert taken.record.cursor is None


def test_what_was_taken_by_force_is_refused_and_the_rest_stored(
    journal: Journal, database_url: str
):
    for name in ("one", "two"):
        journal.register(registration(name))
    runner = journal.begin("me")
    one, two = runner.claim()
    rows(
        database_url,
        "UPDATE algorithm_states SET epoch = epoch + 1 WHERE algorithm_id = %s RETURNING 1",
        one.record.id,
    )
    lost = runner.commit([entry(one, cursor=NOON), entry(two, cursor=NOON)])
    assert lost == {one.record.id}
    assert [record.cursor for record in journal.records()] == [None, NOON]


def test_a_lease_is_renewed_and_ended(journal: Journal):
    runner, _ = claimed(journal)
    assert runner.renew(NOON, {"cycles": 3})
    runner.end()
    assert not runner.renew()
    with pytest.raises(JournalError, match="lease has run out"):
        runner.claim()
    assert journal.records()[0].runner is None


# ----------------------------------------------------------------------------------------- cycles


def test_a_cycle_is_stored_whole_and_comes_back(journal: Journal, database_url: str):
    runner, claim = claimed(journal)
    order = Order("cross-1", "AAPL", 10, limit=99.5, created=NOON, tag="in")
    runner.commit(
        [
            entry(
                claim,
                cursor=NOON,
                snapshot='{"cash": 1e5, "nan": NaN}',
                orders=[order],
                positions={},
                cash=100_000.0,
                equity=100_000.0,
            )
        ]
    )
    order.state, order.filled, order.filled_price = OrderState.FILLED, 10.0, 99.25
    fill = Fill(NOON + MINUTE, "cross-1", "AAPL", 10.0, 99.25, 0.5, "in")
    entry_two = entry(
        claim,
        cursor=NOON + MINUTE,
        orders=[order],
        fills=[fill],
        positions={"AAPL": (10.0, math.nan), "MSFT": (0.0, 3.0)},
        sessions=[SessionEquity(date(2024, 3, 14), 99_007.0, 100_001.0)],
        cash=99_007.0,
        equity=100_001.0,
        failures=1,
        error="Traceback ...",
    )
    for _ in range(2):  # whose answer was lost is sent again
        assert runner.commit([entry_two]) == set()
    (record,) = journal.records()
    assert (record.cursor, record.fills, record.equity) == (NOON + MINUTE, 1, 100_001.0)
    assert (record.failures, record.error) == (1, "Traceback ...")
    (stored,) = journal.orders("cross")
    assert stored[:5] == ("cross-1", "AAPL", 10.0, 99.5, None)
    assert stored[11:14] == ("filled", 10.0, 99.25)
    when = datetime.fromtimestamp((NOON + MINUTE) / 1e6, UTC)
    assert journal.fills("cross") == [(1, "cross-1", "AAPL", when, 10.0, 99.25, 0.5, "in")]
    assert journal.positions("cross") == {"AAPL": 10.0}
    assert journal.orders("cross", open_only=True) == []
    assert rows(database_url, "SELECT session, equity FROM algorithm_equity") == [
        (date(2024, 3, 14), 100_001.0)
    ]
    runner.end()
    (taken,) = journal.begin("me").claim()
    assert taken.snapshot == '{"cash": 1e5, "nan": NaN}'
    assert taken.record.fills == 1


def test_a_fill_out_of_turn_stores_nothing(journal: Journal):
    runner, claim = claimed(journal)
    fill = Fill(NOON, "1", "AAPL", 1.0, 10.0)
    runner.commit([entry(claim, cursor=NOON, fills=[fill])])
    doubled = entry(claim, cursor=NOON + MINUTE, fills=[fill])
    doubled.first_fill = 3
    with pytest.raises(JournalError, match="has 1 fills stored, and its next is number 3"):
        runner.commit([doubled])
    assert journal.records()[0].cursor == NOON


def test_an_intent_is_there_before_it_is_sent_and_its_outcome_after(journal: Journal):
    runner, claim = claimed(journal)
    order = Order("cross-1", "AAPL", 10, created=NOON)
    runner.commit(
        [entry(claim, cursor=NOON, orders=[order], delivery={"cross-1": Delivery.INTENT})]
    )
    assert journal.orders("cross")[0][-1] == "intent"
    record = claim.record
    assert runner.delivered(record.id, record.epoch, record.run, {"cross-1": (Delivery.SENT, "")})
    # The engine's later view of the order does not make it unsent.
    order.filled = 5.0
    runner.commit(
        [entry(claim, cursor=NOON + 1, orders=[order], delivery={"cross-1": Delivery.INTENT})]
    )
    assert journal.orders("cross")[0][-1] == "sent"


def test_a_thousand_algorithms_are_one_transaction(journal: Journal, database_url: str):
    with psycopg.connect(database_url, options="-c search_path=marketdata") as admin:
        admin.execute(
            "INSERT INTO algorithms (name, source, symbols, timeframe, cash) SELECT 'a' || n, 'x:X', "
            "'{AAPL}', '1min', 1 FROM generate_series(1, 1000) AS n"
        )
        admin.execute("INSERT INTO algorithm_states (algorithm_id) SELECT id FROM algorithms")
    runner = journal.begin("me")
    claims = runner.claim()
    assert len(claims) == 1000
    snapshot = '{"state": "' + "x" * 2000 + '"}'
    runner.commit(
        entry(
            claim,
            cursor=NOON,
            snapshot=snapshot,
            orders=[Order("1", "AAPL", 1.0, created=NOON)],
            fills=[Fill(NOON, "1", "AAPL", 1.0, 10.0)],
            positions={"AAPL": (1.0, 10.0)},
            cash=1.0,
            equity=1.0,
        )
        for claim in claims
    )
    # Each row names the transaction that wrote it.
    assert rows(
        database_url,
        "SELECT count(DISTINCT w) FROM (SELECT xmin::text AS w FROM algorithm_fills UNION ALL "
        "SELECT xmin::text FROM algorithm_snapshots UNION ALL "
        "SELECT xmin::text FROM algorithm_states) AS written",
    ) == [(1,)]
    assert rows(
        database_url,
        "SELECT (SELECT count(*) FROM algorithm_fills), (SELECT count(*) FROM algorithm_snapshots), "
        "(SELECT count(*) FROM algorithm_states WHERE cursor IS NOT NULL)",
    ) == [(1000, 1000, 1000)]


# --------------------------------------------------------------------------------------- outages


def test_a_connection_that_died_is_replaced_and_a_missing_server_is_transient(
    journal: Journal, database_url: str
):
    runner, claim = claimed(journal)
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'marketdata algorithms' AND datname = current_database()"
        )
    assert runner.commit([entry(claim, cursor=NOON)]) == set()
    nowhere = Journal("postgresql://127.0.0.1:9/x")
    with pytest.raises(md.StoreUnavailableError) as caught:
        nowhere.records()
    assert caught.value.transient


def test_missing_tables_name_the_command_that_makes_them(database_url: str):
    journal = Journal(database_url)
    with pytest.raises(md.SchemaError, match="marketdata db init"):
        journal.records()
    journal.close()


def test_the_kill_switch_holds_until_it_is_released(journal: Journal):
    assert not journal.switch().active
    journal.kill_all(flatten=True, reason="news")
    assert journal.switch().active
    assert (journal.switch().flatten, journal.switch().reason) == (True, "news")
    journal.release_all()
    assert not journal.switch().active
