"""Processes killed between any two writes of a commit, a sealing, an unsealing or a cut: what is stored
is what it was before the transaction or after it, and whoever goes on ends where it would have.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator

import psycopg
import pytest

from marketdata.spans import Span
from marketdata.store import PostgresStore
from tests.sealed_examples import midnight
from tests.sealing_steps import FIRST_KEPT, SPAN, STEPS, expected, live
from tests.store_examples import AAPL, MSFT, assert_same_bars, migrated_store, stored

# One process imports everything, and those to be killed are forked from it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.sealing_steps"])


def run(url: str, first: int = 0, kill_at: int = 0) -> tuple[int, list[int]]:
    """Live in a process of its own; return its exit code, and what it told."""
    hearing, telling = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=live, args=(url, first, kill_at, telling))
    process.start()
    telling.close()
    told = []
    try:
        while True:
            told.append(hearing.recv())
    except EOFError:
        process.join(30)
    finally:
        hearing.close()
        process.kill()
    assert process.exitcode is not None
    return process.exitcode, told


@pytest.fixture
def store(database_url: str) -> Iterator[PostgresStore]:
    with migrated_store(database_url) as made:
        yield made


def check(store: PostgresStore, url: str, steps: int) -> None:
    """Assert that what is stored is what so many steps leave."""
    for key in (AAPL, MSFT):
        bars = expected(steps, key)
        assert_same_bars(stored(store, SPAN, key), bars)
        for holding in store.holdings([key.symbol]):
            assert holding.bar_count == len(bars)
            with psycopg.connect(url) as plain:
                rows = plain.execute(
                    "SELECT count(*) FROM marketdata.market_data_bars WHERE symbol = %s",
                    (key.symbol,),
                ).fetchone()
            assert rows == (holding.row_count,)


def is_state_after(store: PostgresStore, url: str, steps: int) -> bool:
    try:
        check(store, url, steps)
    except AssertionError:
        return False
    return True


def check_final(store: PostgresStore, url: str) -> None:
    check(store, url, len(STEPS))
    states = store.states([AAPL, MSFT])
    assert states[AAPL].coverage == [Span(midnight(FIRST_KEPT), SPAN.end)]
    assert states[MSFT].coverage == [SPAN]
    for key, first in ((AAPL, FIRST_KEPT), (MSFT, "2024-01-02")):
        assert states[key].sealed == [Span(midnight(first), midnight("2024-02-09"))]
    assert [h.corrections_pending for h in store.holdings()] == [0, 0]


def test_killed_after_every_single_write_nothing_is_lost_or_half_done(
    store: PostgresStore, database_url: str
):
    """One life, in which each process dies one write later than the one before it, until its step
    is done."""
    steps, kill_at, deaths = 0, 1, 0
    while True:
        code, told = run(database_url, steps, kill_at)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        kill_at = 1 if told else kill_at + 1
        steps += len(told)
        # the step it died in has counted or not: nothing in between
        assert is_state_after(store, database_url, steps) or is_state_after(
            store, database_url, steps + 1
        ), f"killed in step {steps + 1}"
    assert deaths > 3 * len(STEPS)
    check_final(store, database_url)


def test_a_life_without_deaths_ends_the_same(store: PostgresStore, database_url: str):
    code, told = run(database_url)
    assert code == 0
    assert told[:-1] == list(range(1, len(STEPS) + 1))
    check_final(store, database_url)
