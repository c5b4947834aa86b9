"""Single flight between threads: who leads, who waits, what they are told."""

from __future__ import annotations

import threading

import pytest

from marketdata.clock import Deadline
from marketdata.errors import (
    BrokerUnavailableError,
    MarketDataError,
    StoreError,
    StoreUnavailableError,
)
from marketdata.fetching import land
from marketdata.flights import LocalFlights
from marketdata.protocols import FlightTicket
from marketdata.spans import Span
from marketdata.types import SeriesKey, Timeframe

A, B, C = (SeriesKey("p", "f", s, Timeframe.MIN_1) for s in "ABC")
SPAN, OTHER = Span(0, 10), Span(20, 30)


@pytest.fixture
def flights() -> LocalFlights[SeriesKey]:
    return LocalFlights[SeriesKey]()


def test_the_first_leads_the_next_wait_for_it(flights: LocalFlights[SeriesKey]) -> None:
    led, others = flights.board([A, B], SPAN)
    assert list(led) == [A, B]
    assert others == {}
    mine, theirs = flights.board([B, C], OTHER)
    assert list(mine) == [C]
    assert theirs == {B: led[B]}
    assert theirs[B].span == SPAN, "the outcome concerns the leader's span"


def test_a_landed_flight_is_free_again_and_tells_its_outcome(
    flights: LocalFlights[SeriesKey],
) -> None:
    led, _ = flights.board([A], SPAN)
    _, waiting = flights.board([A], SPAN)
    error = BrokerUnavailableError("down")
    flights.land(led, error)
    outcome = flights.wait(waiting[A], Deadline(1))
    assert outcome is not None
    assert outcome.error is error
    assert outcome.span == SPAN
    again, others = flights.board([A], SPAN)
    assert (list(again), others) == ([A], {})


def test_landing_twice_changes_nothing(flights: LocalFlights[SeriesKey]) -> None:
    led, _ = flights.board([A], SPAN)
    flights.land(led)
    next_one, _ = flights.board([A], SPAN)
    flights.land(led, BrokerUnavailableError("too late"))
    assert led[A].outcome().error is None
    _, others = flights.board([A], SPAN)
    assert others == next_one, "the next flight is still in the air"


def test_part_of_a_flight_may_land_before_the_rest(flights: LocalFlights[SeriesKey]) -> None:
    led, _ = flights.board([A, B], SPAN)
    flights.land({A: led[A]})
    mine, others = flights.board([A, B], SPAN)
    assert (list(mine), list(others)) == ([A], [B])


def test_waiting_ends_with_the_deadline(flights: LocalFlights[SeriesKey]) -> None:
    flights.board([A], SPAN)
    _, others = flights.board([A], SPAN)
    assert flights.wait(others[A], Deadline(0.01)) is None


def test_without_a_deadline_one_waits_for_the_landing(flights: LocalFlights[SeriesKey]) -> None:
    led, _ = flights.board([A], SPAN)
    _, others = flights.board([A], SPAN)
    waiter = threading.Thread(target=lambda: flights.wait(others[A], Deadline(None)))
    waiter.start()
    flights.land(led)
    waiter.join(10)
    assert not waiter.is_alive()


def test_many_threads_have_one_leader_a_key(flights: LocalFlights[SeriesKey]) -> None:
    leaders: list[SeriesKey] = []
    barrier = threading.Barrier(50)

    def one() -> None:
        barrier.wait()
        led, _ = flights.board([A, B], SPAN)
        leaders.extend(led)

    threads = [threading.Thread(target=one) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(leaders) == [A, B]


class Landings:
    """A flight log that refuses the first landings."""

    def __init__(self, *failures: MarketDataError) -> None:
        self.failures = list(failures)
        self.landed: list[str] = []

    def land(self, ticket: FlightTicket, error: MarketDataError | None) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.landed.append(ticket.id)


TICKET = FlightTicket(id="one", led=[], others={})


def test_a_landing_that_met_a_lost_connection_is_made_again():
    log = Landings(StoreUnavailableError("lost"), StoreUnavailableError("lost again"))
    land(log, TICKET)  # type: ignore[arg-type]
    assert log.landed == ["one"]


@pytest.mark.parametrize(
    ("failure", "tries"), [(StoreError("refused"), 1), (StoreUnavailableError("away"), 4)]
)
def test_a_landing_that_cannot_be_made_is_left_to_its_lease(failure: StoreError, tries: int):
    log = Landings(*[failure] * 9)
    land(log, TICKET)  # type: ignore[arg-type]
    assert log.landed == []
    assert 9 - len(log.failures) == tries
