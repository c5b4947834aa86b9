"""What every `RateBudget` promises: never more than the limit in 60 seconds, over all processes."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import text

from marketdata.protocols import Priority, RateBudget
from marketdata.store import PostgresStore
from marketdata.store.budget import uses
from tests.store_examples import migrated_store


@pytest.fixture(params=["postgres"])
def budget(request: pytest.FixtureRequest, database_url: str) -> Iterator[PostgresStore]:
    with migrated_store(database_url) as made:
        yield made


def shift(budget: PostgresStore, seconds: int) -> None:
    """Make everything granted so far `seconds` older (newer, where negative)."""
    # the ring turns with it: slot s % 61 belongs to second s
    turn = text("""
        UPDATE rate_budgets SET newest = newest - :by,
            granted = ARRAY(
                SELECT granted[((slot + :by) % 61 + 61) % 61 + 1]
                FROM generate_series(0, 60) AS slot),
            by_priority = ARRAY(
                SELECT by_priority[((slot + :by) % 61 + 61) % 61 + 1 + 61 * kind]
                FROM generate_series(0, 3) AS kind, generate_series(0, 60) AS slot
                ORDER BY kind, slot),
            wanted_until = ARRAY(
                SELECT w - :by * interval '1 second'
                FROM unnest(wanted_until) WITH ORDINALITY AS u (w, n) ORDER BY n),
            live_peak_since = live_peak_since - :by * interval '1 second',
            paced_until = paced_until - :by * interval '1 second'
    """)
    budget.database.run(lambda c: c.execute(turn, {"by": seconds}))


def execute(budget: PostgresStore, statement: str) -> None:
    budget.database.run(lambda c: c.execute(text(statement)))


def taken(budget: RateBudget, limit: int, tries: int, **how: Priority) -> int:
    """Return how many of `tries` requests are granted."""
    return sum(budget.take("key", limit, **how) == 0.0 for _ in range(tries))


def test_the_limit_is_granted_and_no_more(budget: RateBudget):
    assert [budget.take("key", 5) for _ in range(5)] == [0.0] * 5
    wait = budget.take("key", 5)
    assert 59 < wait <= 61
    assert budget.take("key", 6) == 0.0


def test_budgets_of_credentials_are_apart(budget: RateBudget):
    assert budget.take("one", 1) == 0.0
    assert budget.take("one", 1) > 0
    assert budget.take("two", 1) == 0.0


def test_grants_count_for_a_whole_minute_and_then_no_longer(budget: PostgresStore):
    for _ in range(3):
        assert budget.take("key", 3) == 0.0
    shift(budget, 58)
    assert 0 < budget.take("key", 3) <= 3
    shift(budget, 4)
    assert budget.take("key", 3) == 0.0


def test_the_wait_is_until_enough_of_the_window_has_passed(budget: PostgresStore):
    budget.take("key", 3)
    shift(budget, 30)
    budget.take("key", 3)
    budget.take("key", 3)
    assert 29 <= budget.take("key", 3) <= 32
    # a lower limit has to wait for the later grants too
    assert 59 <= budget.take("key", 1) <= 61


def test_a_limit_of_nothing_grants_nothing(budget: RateBudget):
    assert budget.take("key", 0) > 0


def test_background_work_leaves_a_twentieth_two_at_least_and_half_at_most(
    budget: PostgresStore, database_url: str
):
    for limit, left in ((200, 10), (60, 3), (40, 2), (8, 2), (3, 1), (2, 1)):
        execute(budget, "DELETE FROM rate_budgets; SELECT setval('rate_budgets_made', 1, false)")
        with PostgresStore(database_url) as fresh:
            spend(fresh, limit - left, limit)
            assert fresh.take("key", limit, Priority.BACKFILL) > 0
            assert taken(fresh, limit, left + 1) == left


def test_a_limit_of_one_is_for_everybody(budget: RateBudget):
    assert budget.take("key", 1, Priority.VERIFY) == 0.0
    assert budget.take("key", 1, Priority.LIVE) > 0


def test_who_waits_holds_back_those_below_and_nobody_else(budget: PostgresStore):
    assert taken(budget, 4, 4) == 4
    assert budget.take("key", 4, Priority.READ) > 59
    shift(budget, 61)
    assert budget.take("key", 4, Priority.LIVE) == 0.0
    assert budget.take("key", 4, Priority.READ) == 0.0
    assert budget.take("key", 40, Priority.BACKFILL) > 0, "a read may come back for another second"
    shift(budget, 2)
    assert budget.take("key", 40, Priority.BACKFILL) == 0.0


def test_a_live_cycle_that_waits_goes_before_every_read(budget: PostgresStore):
    assert taken(budget, 4, 4) == 4
    assert budget.take("key", 4, Priority.LIVE) > 59
    shift(budget, 61)
    assert budget.take("key", 4, Priority.READ) > 0
    assert taken(budget, 4, 5, priority=Priority.LIVE) == 4


def test_the_limit_that_the_broker_states_holds_for_who_does_not_know_it(
    budget: PostgresStore, database_url: str
):
    budget.told("key", 300, 299)
    assert taken(budget, 300, 250) == 250
    with PostgresStore(database_url) as newcomer:
        assert newcomer.take("key", 200) == 0.0
    budget.told("key", 20, 0)
    assert budget.take("key", 20) > 0, "a plan may become smaller"


def test_a_clock_set_back_neither_forgets_nor_waits_for_ever(budget: PostgresStore):
    for _ in range(3):
        budget.take("key", 3)
    shift(budget, -3600)
    assert 55 < budget.take("key", 3) <= 61


def test_a_pause_holds_everybody_and_the_longest_counts(budget: RateBudget):
    budget.take("key", 100)
    budget.pause("key", 30)
    budget.pause("key", 10)
    assert 29 < budget.take("key", 100) <= 30
    assert budget.take("other", 100) == 0.0


def test_the_credential_itself_is_not_stored(budget: PostgresStore):
    budget.take("PKSECRET", 5)
    rows = text("SELECT credential FROM rate_budgets")
    assert "PKSECRET" not in str(budget.database.run(lambda c: c.execute(rows).all()))


# ------------------------------------------------------------------------------ the row is lost


def spend(budget: RateBudget, requests: int, limit: int = 200) -> None:
    for _ in range(requests):
        assert budget.take("key", limit) == 0.0


def test_a_new_database_begins_with_the_whole_budget(budget: RateBudget):
    assert taken(budget, 30, 31) == 30


@pytest.mark.exact("a lost reply is counted as sent, rightly")
def test_a_deleted_row_is_made_good_from_what_every_process_remembers(
    budget: PostgresStore, database_url: str
):
    with PostgresStore(database_url) as other, PostgresStore(database_url) as third:
        spend(budget, 60)
        spend(other, 70)
        spend(third, 70)
        execute(budget, "DELETE FROM rate_budgets")
        # Of what others did nobody knows yet: they may have sent all the rest.
        assert taken(budget, 200, 200) == 0
        assert 0 < budget.take("key", 200) <= 2, "it comes free evenly"
        # The others add theirs when they come.
        assert taken(other, 200, 200) == 0
        assert taken(third, 200, 200) == 0
        shift(budget, 61)
        assert taken(other, 200, 201) == 200, "a minute later all is as ever"


def test_a_lost_row_is_no_full_budget_for_a_process_that_knows_nothing(
    budget: PostgresStore, database_url: str
):
    spend(budget, 190)
    execute(budget, "DELETE FROM rate_budgets")
    with PostgresStore(database_url) as newcomer:
        assert taken(newcomer, 200, 200) == 50
        wait = newcomer.take("key", 200)
        assert 0 < wait <= 2, "the rest comes free evenly"
        shift(budget, 20)
        assert 48 <= taken(newcomer, 200, 200) <= 53


def test_a_small_budget_begins_with_ten_requests(budget: PostgresStore, database_url: str):
    spend(budget, 5, limit=12)
    execute(budget, "TRUNCATE rate_budgets")
    with PostgresStore(database_url) as newcomer:
        assert taken(newcomer, 12, 20) == 10


def test_a_database_restored_without_its_budget_is_not_new(budget: PostgresStore):
    execute(
        budget,
        """
        INSERT INTO series (provider, feed, symbol, timeframe)
        VALUES ('alpaca', 'sip', 'AAPL', '1day')
    """,
    )
    assert taken(budget, 200, 200) == 50


def test_what_the_broker_has_counted_tells_what_others_sent(budget: PostgresStore):
    spend(budget, 30)
    budget.told("key", 200, 80)
    execute(budget, "DELETE FROM rate_budgets")
    assert taken(budget, 200, 200) == 80


def test_an_old_copy_of_the_row_is_noticed(budget: PostgresStore, database_url: str):
    """As after a failover, or a restored backup."""
    with PostgresStore(database_url) as other:
        spend(budget, 3)
        spend(other, 3)
        execute(budget, "CREATE TABLE copy AS SELECT * FROM rate_budgets")
        spend(budget, 60)
        spend(other, 70)
        execute(budget, "DELETE FROM rate_budgets")
        execute(budget, "INSERT INTO rate_budgets SELECT * FROM copy")
        assert budget.take("key", 200) == 0.0
        assert other.take("key", 200) == 0.0
        # The six of before are counted twice, which does no harm.
        assert taken(budget, 200, 200) == 200 - 6 - 136 - 2


def test_a_pause_of_a_budget_that_is_lost_does_not_refill_it(
    budget: PostgresStore, database_url: str
):
    spend(budget, 5)
    execute(budget, "DELETE FROM rate_budgets")
    with PostgresStore(database_url) as other:
        other.take("other", 1)
        other.pause("key", 0.0)
    assert taken(budget, 200, 200) < 200


def test_a_forked_child_does_not_declare_what_its_parent_sent(budget: PostgresStore):
    spend(budget, 20)
    assert budget._budget._memories
    budget._budget.after_fork()
    assert not budget._budget._memories
    spend(budget, 1)
    (memory,) = budget._budget._memories.values()
    assert sum(memory.sent()) == 1


def test_processes_of_the_release_before_are_served_by_the_same_rules(budget: PostgresStore):
    def old(reserve: int) -> float:
        call = text("SELECT take_request('old', 40, :reserve)")
        return float(
            budget.database.run(lambda c: c.execute(call, {"reserve": reserve})).scalar_one()
        )

    def many(reserve: int) -> int:
        return sum(old(reserve) == 0.0 for _ in range(60))

    assert many(10) == 5, "an eighth at once"
    assert many(0) == 35


# ------------------------------------------------------------------------------- many processes


def _grants(url: str, attempts: int, priority: Priority, granted) -> None:
    with PostgresStore(url) as store:
        granted.put(sum(store.take("shared", 50, priority) == 0.0 for _ in range(attempts)))


@pytest.mark.exact("a request whose answer is lost is paid for twice")
def test_invariant_21_processes_and_threads_of_every_priority_share_one_window(
    budget: PostgresStore, database_url: str
):
    context = multiprocessing.get_context("spawn")
    granted = context.SimpleQueue()
    kinds = (Priority.LIVE, Priority.READ, Priority.BACKFILL)
    processes = [
        context.Process(target=_grants, args=(database_url, 40, kind, granted)) for kind in kinds
    ]
    for process in processes:
        process.start()
    ours: list[float] = []

    def work() -> None:
        ours.extend(budget.take("shared", 50, kind) for kind in Priority for _ in range(8))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    theirs = sum(granted.get() for _ in processes)
    while budget.take("shared", 50, Priority.LIVE) == 0.0:
        ours.append(0.0)
    assert ours.count(0.0) + theirs == 50
    (use,) = budget.database.run(uses)
    assert (use.used, sum(use.by_priority.values())) == (50, 50)


def test_how_a_budget_stands(budget: PostgresStore):
    kinds = (Priority.LIVE, Priority.LIVE, Priority.READ, Priority.BACKFILL)
    assert [budget.take("key", 40, kind) for kind in kinds] == [0.0] * 4
    budget.told("key", 30, 26)
    assert taken(budget, 30, 16) == 16
    assert budget.take("key", 40, Priority.BACKFILL) == 0.0
    budget.pause("key", 10)
    assert budget.take("key", 30, Priority.READ) > 9
    (use,) = budget.database.run(uses)
    assert (use.limit, use.stated, use.used) == (30, True, 21)
    assert use.by_priority == {
        Priority.LIVE: 2, Priority.READ: 17, Priority.BACKFILL: 2, Priority.VERIFY: 0,
    }  # fmt: skip
    assert use.waiting == (Priority.READ,)
    assert use.reserve[Priority.BACKFILL] == 2 + 2
    assert 9 < use.paused <= 10
    assert use.left(Priority.LIVE) == 0
    running = replace(use, paused=0.0, waiting=())
    assert [running.left(kind) for kind in Priority] == [9, 9, 5, 5]
