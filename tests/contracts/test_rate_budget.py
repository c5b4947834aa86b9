"""What every `RateBudget` promises: never more than the limit in 60 seconds, over all processes."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from marketdata.protocols import RateBudget
from marketdata.store import PostgresStore
from tests.store_examples import migrated_store


@pytest.fixture(params=["postgres"])
def budget(request: pytest.FixtureRequest) -> Iterator[PostgresStore]:
    with migrated_store(request.getfixturevalue("database_url")) as made:
        yield made


def shift(budget: PostgresStore, seconds: int) -> None:
    """Make everything granted so far `seconds` older (newer, where negative)."""
    # the ring turns with it: slot s % 61 belongs to second s
    turn = text("""
        UPDATE rate_budgets SET newest = newest - :by, granted = ARRAY(
            SELECT granted[((slot + :by) % 61 + 61) % 61 + 1] FROM generate_series(0, 60) AS slot)
    """)
    budget.database.run(lambda c: c.execute(turn, {"by": seconds}))


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


def test_a_reserve_is_left_for_others(budget: PostgresStore):
    assert [budget.take("key", 5, reserve=2) for _ in range(3)] == [0.0] * 3
    assert 59 < budget.take("key", 5, reserve=2) <= 61
    assert [budget.take("key", 5) for _ in range(2)] == [0.0] * 2
    assert budget.take("key", 5) > 0
    shift(budget, 30)
    assert 29 <= budget.take("key", 5, reserve=4) <= 32
    shift(budget, 32)
    assert budget.take("key", 5, reserve=4) == 0.0
    assert budget.take("key", 5, reserve=4) > 0


def test_a_reserve_of_all_there_is_grants_nothing(budget: RateBudget):
    assert budget.take("key", 5, reserve=5) > 0
    assert budget.take("key", 5, reserve=9) > 0
    assert budget.take("key", 5) == 0.0


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


def _grants(url: str, attempts: int, granted) -> None:
    with PostgresStore(url) as store:
        granted.put(sum(store.take("shared", 50) == 0.0 for _ in range(attempts)))


def test_invariant_21_processes_and_threads_share_one_window(
    budget: PostgresStore, database_url: str
):
    context = multiprocessing.get_context("spawn")
    granted = context.SimpleQueue()
    processes = [
        context.Process(target=_grants, args=(database_url, 40, granted)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    ours: list[float] = []
    threads = [
        threading.Thread(target=lambda: ours.extend(budget.take("shared", 50) for _ in range(10)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    theirs = sum(granted.get() for _ in processes)
    assert ours.count(0.0) + theirs == 50
