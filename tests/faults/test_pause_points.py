"""Processes killed and threads held at every named point of `marketdata.pausing`."""

from __future__ import annotations

import ast
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from marketdata import pausing
from marketdata.aggregator import Aggregator
from marketdata.indicator_updates import IndicatorUpdater
from marketdata.leadership import ProcessLeases
from marketdata.pausing import POINTS, pause_point
from marketdata.protocols import ReadRequest
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.store.leases import PostgresLeases
from marketdata.store.sealing import Sealer
from marketdata.testing import Pause, Process, acting_at, raising_at
from marketdata.types import CLOSE
from tests.cycles import assert_same_bars, of_market
from tests.killed_reader import forget_the_dead, killed_at
from tests.sealed_examples import final_commit, midnight, session_bars, sessions
from tests.stack import Stack, runtime, same, span, tiers
from tests.stack_callers import until
from tests.store_examples import AAPL, migrated_store, stored

SOURCE = Path(pausing.__file__).parent
FORTNIGHT: dict[str, Any] = {
    "symbols": ["AAPL", "MSFT"], "timeframe": "1min", "session": "extended",
    "start": "2024-03-01", "end": "2024-03-14",
}  # fmt: skip
"""Two pages of Alpaca's."""


# --------------------------------------------------------------------------------- the machinery


def calls_of_pause_point() -> Counter[str]:
    """Return how often the code passes each point, by the name of its constant."""
    found: Counter[str] = Counter()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "pause_point"
            ):
                (name,) = node.args
                assert isinstance(name, ast.Name), f"{file.name}: name the point by its constant"
                found[name.id] += 1
    return found


def test_every_point_is_passed_somewhere_in_the_code() -> None:
    constants = {n: v for n, v in vars(pausing).items() if isinstance(v, str) and v in POINTS}
    assert set(constants.values()) == set(POINTS)
    assert set(calls_of_pause_point()) == set(constants)


def test_a_point_costs_next_to_nothing() -> None:
    def seconds(passes: int = 20_000) -> float:
        started = time.perf_counter()
        for _ in range(passes):
            pause_point(pausing.COMMITTED)
        return (time.perf_counter() - started) / passes

    assert min(seconds() for _ in range(5)) < 1e-6


def test_a_thread_is_held_until_it_is_released() -> None:
    with Pause(pausing.COMMITTED, nth=2) as pause:
        pause_point(pausing.COMMITTED)
        held = threading.Thread(target=pause_point, args=(pausing.COMMITTED,))
        held.start()
        assert pause.wait_reached()
        pause_point(pausing.COMMITTED)  # the third goes on
        assert held.is_alive()
        pause.release()
        held.join(10)
        assert not held.is_alive()
        assert pause.passed == 3
    pause_point(pausing.COMMITTED)
    assert pause.passed == 3


def test_a_point_can_raise_once() -> None:
    with raising_at(pausing.COMMITTED, OSError("here")):
        with pytest.raises(OSError, match="here"):
            pause_point(pausing.COMMITTED)
        pause_point(pausing.COMMITTED)


def test_a_point_is_armed_once_and_must_exist() -> None:
    with Pause(pausing.COMMITTED), pytest.raises(ValueError, match="armed already"):
        pausing.arm(pausing.COMMITTED, pausing.fail)
    with pytest.raises(ValueError, match="no pause point 'nowhere'"):
        pausing.arm("nowhere", pausing.fail)
    with pytest.raises(ValueError, match="POINT=kill"):
        pausing.arm_from("store.committed=explode")


PASSES = (
    "from marketdata import pausing\n"
    "for number in range(3):\n"
    "    pausing.pause_point(pausing.COMMITTED)\n"
    "    print(number, flush=True)\n"
)


def test_a_child_is_killed_stopped_or_failed_by_its_environment() -> None:
    with Process(["-c", PASSES], pause=(pausing.COMMITTED, "kill", 3)) as killed:
        assert killed.wait_killed()
    with Process(["-c", PASSES], pause=(pausing.COMMITTED, "stop", 2)) as stopped:
        assert stopped.wait_stopped()
        stopped.go_on()
        assert stopped.finish() == (0, "0\n1\n2\n", "")
    with Process(["-c", PASSES], pause=(pausing.COMMITTED, "raise")) as failed:
        code, told, words = failed.finish()
        assert (code, told) == (1, "")
        assert "a test made this pause point fail" in words
    with Process(["-c", PASSES]) as untouched:
        assert untouched.finish()[:2] == (0, "0\n1\n2\n")


# ---------------------------------------------------------------------------- all are passed


def an_ordinary_day(stack: Stack) -> None:
    """Read, keep fresh, seal, adjust and lead: whatever passes a pause point."""
    running = runtime(stack.client)
    stack.client.get_bars("AAPL", "1min", start="2024-03-11", adjustment="split")
    aggregator = Aggregator(
        running,
        threading.Event(),
        wanted=lambda: [("AAPL", "1min")],
        indicators=IndicatorUpdater(running),
    )
    stack.clock.advance(minutes=1)
    assert not aggregator.cycle().failed
    store = running.store
    sealer = Sealer(store.database)
    before = span("2024-03-14T00:00-04:00", "2024-03-15T00:00-04:00").start
    stack.set_time("2024-03-15T15:00:30-04:00")
    stack.client.get_bars("AAPL", "1min", start="2024-03-11")  # read again: final now
    for key in sealer.candidates(before):
        assert sum(moved.bars for moved in sealer.seal(key, before))
    leases = ProcessLeases(
        PostgresLeases(stack.settings["database_url"]), seconds=5.0, renew_every=0.05
    )
    try:
        leases.lead()
        until(leases.is_leader)
        renewed = threading.Event()
        pausing.disarm(pausing.LEADER_RENEWING)
        with acting_at(pausing.LEADER_RENEWING, renewed.set, None):
            assert renewed.wait(10)
    finally:
        leases.close()


def test_an_ordinary_day_passes_every_point(stack: Stack) -> None:
    passed: Counter[str] = Counter()
    with ExitStack() as armed:
        for name in POINTS:
            armed.enter_context(acting_at(name, partial(passed.update, [name]), None))
        an_ordinary_day(stack)
    assert set(passed) >= set(POINTS) - {pausing.LEADER_RENEWING}


# ------------------------------------------------------------------------------ killed there


def assert_coverage_is_true(stack: Stack, store: PostgresStore) -> int:
    """Assert that in all that is covered the market's bars are stored, and no others; return how
    many these are."""
    bars = 0
    keys = store.series()
    states = store.states(keys)
    source = stack.sandbox.source
    for key in keys:
        rows = [h.bar_count for h in store.holdings([key.symbol])]
        held = 0
        for covered in states[key].coverage:
            found = store.read([ReadRequest(key, covered)])[key][1]
            assert_same_bars(found, of_market(source, key.symbol, covered))
            held += len(found)
        assert rows == [held], "no bar lies outside coverage"
        bars += held
    return bars


BEFORE_COMMIT = (
    pausing.FLIGHT_CLAIMED,
    pausing.BUDGET_TAKEN,
    pausing.BARS_WRITTEN,
    pausing.COVERAGE_WRITTEN,
    pausing.FLOOR_RAISED,
)
AFTER_COMMIT = (
    pausing.COMMITTED,
    pausing.PAGE_KEPT,
    pausing.BEFORE_LANDING,
    pausing.LANDED,
    pausing.STORE_READ,
)


@pytest.mark.parametrize("point", [*BEFORE_COMMIT, *AFTER_COMMIT])
def test_fault_14_and_15_invariant_05_killed_at_any_point_of_a_read(
    stack: Stack, point: str
) -> None:
    killed_at(stack, point, FORTNIGHT)
    forget_the_dead(stack)
    store = runtime(stack.client).store
    kept = assert_coverage_is_true(stack, store)
    assert (kept > 0) == (point in AFTER_COMMIT)
    stack.forget_calls()
    found = stack.client.get_bars(**FORTNIGHT)
    pages = {pausing.COMMITTED: 1, pausing.PAGE_KEPT: 1}
    assert stack.calls() == pages.get(point, 2 if point in BEFORE_COMMIT else 0)
    for symbol in FORTNIGHT["symbols"]:
        asked = span("2024-03-01T00:00-05:00", "2024-03-14T00:00-04:00")
        expected = of_market(stack.sandbox.source, symbol, asked)
        assert found.loc[symbol, "close"].tolist() == expected.values[CLOSE].tolist()
    assert assert_coverage_is_true(stack, store) > kept or kept == len(found)


HOT: dict[str, Any] = {"symbols": "AAPL", "timeframe": "1min", "limit": 500}


@pytest.mark.parametrize("point", [pausing.FLOOR_RAISED, pausing.COMMITTED, pausing.STORE_READ])
def test_fault_14_killed_while_redis_was_warm(stack: Stack, point: str) -> None:
    """Redis serves the old answer until the next bar is due, and then the new one at once."""
    old = stack.client.get_bars(**HOT)
    until(lambda: tiers(stack.client.get_bars(**HOT)) == "redis:1")
    before = stack.client.coverage("AAPL", "1min")
    stack.set_time("2024-03-14T15:05:30-04:00")
    stack.forget_calls()
    killed_at(stack, point, HOT)
    assert stack.calls() == 1
    committed = point != pausing.FLOOR_RAISED
    assert (stack.client.coverage("AAPL", "1min") != before) == committed
    forget_the_dead(stack)
    found = stack.client.get_bars(**HOT)
    assert len(found) == len(old)
    assert found.index[-1] == old.index[-1] + pd.Timedelta(minutes=5), "the next read is right"
    assert stack.calls() == (1 if committed else 2)
    assert tiers(stack.client.get_bars(**HOT)) == "redis:1"


# ----------------------------------------------------------------------------- failing there


@pytest.mark.parametrize(
    "point", [pausing.BARS_WRITTEN, pausing.COVERAGE_WRITTEN, pausing.FLOOR_RAISED]
)
def test_an_error_inside_a_commit_stores_nothing_and_frees_the_series(
    stack: Stack, point: str
) -> None:
    store = runtime(stack.client).store
    with raising_at(point, RuntimeError("here")), pytest.raises(RuntimeError, match="here"):
        stack.client.get_bars(**HOT)
    assert assert_coverage_is_true(stack, store) == 0
    assert len(stack.client.get_bars(**HOT)) == 500, "nobody waits for a lease"


def test_a_reader_held_while_claiming_makes_the_others_wait_and_no_second_walk(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack()
    answers: list[Any] = []

    def ask(client: Any) -> None:
        answers.append(client.get_bars(**HOT))

    with stack.connect() as other, Pause(pausing.FLIGHT_CLAIMED) as pause:
        threads = [threading.Thread(target=ask, args=(c,)) for c in (stack.client, other)]
        for thread in threads:
            thread.start()
        assert pause.wait_reached()
        assert stack.calls() == 0
        pause.release()
        for thread in threads:
            thread.join(30)
    assert [len(answer) for answer in answers] == [500, 500]
    assert stack.calls() == 1


@pytest.mark.parametrize("point", [pausing.ACTIONS_ANNOUNCED, pausing.ACTIONS_RECORDED])
def test_killed_while_actions_are_recorded_the_next_adjusted_read_is_right(
    stack: Stack, point: str
) -> None:
    year: dict[str, Any] = {
        "symbols": "AAPL",
        "timeframe": "1day",
        "start": "2023-03-01",
        "end": "2024-03-14",
    }
    killed_at(stack, point, {**year, "adjustment": "all"})
    forget_the_dead(stack)
    found = stack.client.get_bars(**year, adjustment="all")
    raw = stack.client.get_bars(**year, adjustment="raw")
    with PostgresStore(stack.settings["database_url"], schema="control") as store:
        store.migrate()
    with stack.connect(database_schema="control") as control:
        same(control.get_bars(**year, adjustment="all"), found)
        same(control.get_bars(**year, adjustment="raw"), raw)
    assert not raw["close"].equals(found["close"]), "there were actions to apply"


@pytest.mark.parametrize(
    "point",
    [
        pausing.SEAL_READ,
        pausing.SEAL_CHUNKS_WRITTEN,
        pausing.SEAL_ROWS_DELETED,
        pausing.SEAL_STEP_DONE,
    ],
)
def test_a_sealing_that_fails_between_two_steps_moves_all_or_nothing(
    database_url: str, point: str
) -> None:
    asked = sessions("2024-01-02", "2024-02-08")
    with migrated_store(database_url) as store:
        store.commit([final_commit(asked)])
        sealer, before = Sealer(store.database), midnight("2024-02-05")
        with raising_at(point, RuntimeError("here")), pytest.raises(RuntimeError, match="here"):
            list(sealer.seal(AAPL, before))
        assert_same_bars(stored(store, asked), session_bars(asked))
        (holding,) = store.holdings()
        left = len(session_bars(asked)) - holding.row_count
        assert (left > 0) == (point == pausing.SEAL_STEP_DONE)
        list(sealer.seal(AAPL, before))
        assert_same_bars(stored(store, asked), session_bars(asked))
        (holding,) = store.holdings()
        assert holding.row_count == len(session_bars(asked).within(Span(before, asked.end)))


LEADS = """
import sys, time
from marketdata.leadership import ProcessLeases
from marketdata.store.leases import PostgresLeases
leases = ProcessLeases(PostgresLeases(sys.argv[1]), seconds=2.0, renew_every=0.1, poll_every=30.0)
leases.lead()
was = False
while sys.stdin.readable():
    now = leases.is_leader()
    if now != was:
        print("leads" if now else "does not", flush=True)
        was = now
    if not now and leases.gained:
        break
    time.sleep(0.005)
"""


@pytest.mark.exact("leases run out on real time")
def test_fault_21_a_leader_frozen_while_it_renews_does_not_take_its_lease_back(
    database_url: str,
) -> None:
    with PostgresStore(database_url) as store:
        store.migrate()
    book = PostgresLeases(database_url)
    with Process(["-c", LEADS, database_url], pause=(pausing.LEADER_RENEWING, "stop", 3)) as frozen:
        assert frozen.wait_stopped()
        (held,) = book.holdings()
        until(lambda: book.acquire("daemon", token="other", holder="other", seconds=60))
        frozen.go_on()
        code, told, _ = frozen.finish()
    assert (code, told) == (0, "leads\ndoes not\n")
    (now,) = book.holdings()
    book.close()
    assert (now.holder, now.fence) == ("other", held.fence + 1)
