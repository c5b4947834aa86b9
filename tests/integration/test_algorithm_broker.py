"""Algorithms live at a broker: Alpaca's paper trading as the sandbox speaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from algorithms.live.journal import Journal
from algorithms.live.records import Desired, Life
from algorithms.orders import OrderState
from algorithms.venues.alpaca_paper import AlpacaPaper
from tests.live_algorithms import Running, registration
from tests.stack import Stack, make_stack, stack
from tests.venues import KEY, SECRET

__all__ = ["make_stack", "stack"]

SYMBOLS = ("AAPL", "MSFT")


@pytest.fixture
def journal(stack: Stack) -> Iterator[Journal]:
    database = stack.client.database()
    made = Journal(database.url, database.schema)
    yield made
    made.close()


@pytest.fixture
def venue(stack: Stack) -> Iterator[AlpacaPaper]:
    made = AlpacaPaper(KEY, SECRET, url=stack.sandbox.url, timeout=5.0)
    yield made
    made.close()


@pytest.fixture
def start(stack: Stack, journal: Journal, venue: AlpacaPaper) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def begin(**more: Any) -> Running:
        options = {"venues": {"alpaca": venue}, "poll_every": 0.1, **more}
        made.append(Running(stack, journal, **options))
        return made[-1]

    yield begin
    for running in made:
        running.runner.stop()
        running._thread.join(20)


def agrees(journal: Journal, venue: AlpacaPaper, name: str = "zigzag") -> bool:
    """Whether the broker has just the positions and open orders that are stored here."""
    if venue.positions() != journal.positions(name):
        return False
    there = {o.id: o.state for o in venue.open_orders()}
    here = {o[0]: o[11] for o in journal.orders(name, open_only=True)}
    return {k for k, v in there.items() if v is OrderState.OPEN} == {
        k for k, v in here.items() if v == "open"
    }


def test_orders_go_to_the_broker_and_its_fills_come_back(
    stack: Stack, journal: Journal, venue: AlpacaPaper, start: Callable[..., Running]
):
    journal.register(registration(symbols=SYMBOLS, venue="alpaca"))
    running = start()
    running.started()
    for _ in range(12):
        running.minutes(1)
        running.until(lambda: agrees(journal, venue), "the broker and the journal to agree")
    running.stop()
    fills = journal.fills("zigzag")
    there = venue.fills_since(0)
    assert [(f[1], f[4], f[5]) for f in fills] == [(f.order_id, f.quantity, f.price) for f in there]
    assert len(fills) > 8
    assert len({f.id for f in there}) == len(there)
    stored = {o[0]: o for o in journal.orders("zigzag")}
    for order_id, order in stored.items():
        known = venue.find(order_id)
        if known is not None:
            assert known.filled == pytest.approx(order[12]), order_id
    assert {o[-1] for o in stored.values() if o[11] == "filled"} <= {"sent", "done"}


def test_an_algorithm_for_a_venue_that_is_not_there_is_given_up(
    stack: Stack, journal: Journal, start: Callable[..., Running]
):
    journal.register(registration(venue="elsewhere"))
    running = start()
    running.until(lambda: journal.records()[0].life is Life.ERROR)
    assert "there are paper, alpaca" in str(journal.records()[0].error)


def test_kill_and_flatten_reach_the_broker(
    stack: Stack, journal: Journal, venue: AlpacaPaper, start: Callable[..., Running]
):
    journal.register(registration(symbols=SYMBOLS, venue="alpaca"))
    running = start()
    running.started()
    running.minutes(2)
    running.until(lambda: bool(venue.positions()) and agrees(journal, venue))
    journal.want("zigzag", Desired.KILLED, flatten=True)
    running.until(lambda: venue.positions() == {} and venue.open_orders() == [], "to be flat")
    running.until(lambda: journal.positions("zigzag") == {})


# ------------------------------------------------------------------ what stands when it has ended


def resting(journal: Journal, running: Running, venue: AlpacaPaper) -> None:
    """Let an algorithm `Rests` come to hold AAPL, its exit and an entry waiting at the broker."""
    running.started()
    running.minutes(1)
    running.until(lambda: journal.positions("rests") == {"AAPL": 5.0}, "the position")
    running.until(lambda: standing(venue) == {("AAPL", -5.0), ("MSFT", 3.0)}, "both orders")


def standing(venue: AlpacaPaper) -> set[tuple[str, float]]:
    return {(o.symbol, o.quantity) for o in venue.open_orders()}


def states(journal: Journal) -> dict[tuple[str, float], str]:
    return {(o[1], o[2]): o[11] for o in journal.orders("rests")}


def rests(**params: Any) -> Any:
    return registration("rests", "Rests", SYMBOLS, venue="alpaca", params=params)


def test_the_entries_of_one_that_is_stopped_are_taken_back_and_its_exits_stay(
    stack: Stack, journal: Journal, venue: AlpacaPaper, start: Callable[..., Running]
):
    journal.register(rests())
    running = start()
    resting(journal, running, venue)
    journal.want("rests", Desired.STOPPED, reason="lunch")
    running.until(lambda: journal.records()[0].runner is None, "it to be let go")
    assert standing(venue) == {("AAPL", -5.0)}
    assert states(journal)["MSFT", 3.0] == "canceled"
    assert states(journal)["AAPL", -5.0] == "open"
    assert [o[15] for o in journal.orders("rests") if o[1] == "MSFT"] == ["lunch"]
    running.until(lambda: running.runner.hosted == {})
    journal.want("rests", Desired.RUNNING)
    running.started()
    running.minutes(2)
    assert standing(venue) == {("AAPL", -5.0)}
    assert journal.records()[0].life is Life.RUNNING


def test_the_entries_of_one_that_is_given_up_are_taken_back_and_it_can_be_made_flat(
    stack: Stack, journal: Journal, venue: AlpacaPaper, start: Callable[..., Running]
):
    journal.register(rests(bars=1))
    running = start()
    resting(journal, running, venue)
    stack.clock.advance(minutes=1)
    running.until(lambda: journal.records()[0].life is Life.ERROR, "it to be given up")
    running.until(lambda: standing(venue) == {("AAPL", -5.0)}, "the entry to be taken back")
    running.until(lambda: states(journal)["MSFT", 3.0] == "canceled")
    journal.want("rests", Desired.KILLED, flatten=True)
    running.until(lambda: venue.positions() == {} and standing(venue) == set(), "to be flat")
    running.until(lambda: journal.positions("rests") == {}, "the journal to know")
    assert journal.records()[0].life is Life.ERROR
    assert "broken" in str(journal.records()[0].error)


def test_the_entries_of_one_that_is_killed_are_taken_back_and_its_exits_stay(
    stack: Stack, journal: Journal, venue: AlpacaPaper, start: Callable[..., Running]
):
    journal.register(rests())
    running = start()
    resting(journal, running, venue)
    journal.kill_all(reason="enough")
    running.until(lambda: standing(venue) == {("AAPL", -5.0)}, "the entry to be taken back")
    assert journal.positions("rests") == {"AAPL": 5.0}


def test_a_runner_that_ends_leaves_orders_and_the_next_takes_back_what_was_stopped_meanwhile(
    stack: Stack, journal: Journal, venue: AlpacaPaper, start: Callable[..., Running]
):
    journal.register(rests())
    running = start()
    resting(journal, running, venue)
    running.stop()
    assert standing(venue) == {("AAPL", -5.0), ("MSFT", 3.0)}
    journal.want("rests", Desired.STOPPED)
    again = start()
    again.until(lambda: standing(venue) == {("AAPL", -5.0)}, "the entry to be taken back")
    again.until(lambda: journal.records()[0].runner is None, "it to be let go")
    assert states(journal)["MSFT", 3.0] == "canceled"


def test_a_broker_that_is_away_takes_entries_back_when_it_is_there_again(
    stack: Stack, journal: Journal, venue: AlpacaPaper, start: Callable[..., Running]
):
    journal.register(rests())
    running = start()
    resting(journal, running, venue)
    stack.sandbox.faults.add("status", match="/v2/orders", times=None, status=503)
    journal.want("rests", Desired.STOPPED)
    running.until(lambda: states(journal)["MSFT", 3.0] == "canceled", "it to be decided")
    assert journal.records()[0].runner is not None, "it is not let go before"
    stack.sandbox.faults.clear()
    running.until(lambda: journal.records()[0].runner is None, "it to be let go")
    assert standing(venue) == {("AAPL", -5.0)}
