"""What every `FlightLog` promises: at most one live lease per series, outcomes for who waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from marketdata.errors import BrokerTimeoutError, RateLimitError
from marketdata.protocols import FlightLog, FlightOutcome
from marketdata.store import PostgresStore
from tests.store_examples import AAPL, MSFT, migrated_store, minutes, overtaken

SPAN = minutes(0, 10)
LONG = 60.0
OVER = -1.0
"""A lease that has run out the moment it is given."""


@pytest.fixture(params=["postgres"])
def log(request: pytest.FixtureRequest) -> Iterator[PostgresStore]:
    with migrated_store(request.getfixturevalue("database_url")) as made:
        yield made


def test_the_first_leads_and_the_second_waits_for_it(log: FlightLog):
    first = log.board([AAPL, MSFT], SPAN, LONG)
    assert first.led == [AAPL, MSFT]
    assert first.others == {}
    second = log.board([AAPL], SPAN, LONG)
    assert second.led == []
    assert second.others == {AAPL: first.id}
    assert log.outcome(second.others) == {}


def test_one_call_may_lead_some_and_wait_for_others(log: FlightLog):
    first = log.board([MSFT], SPAN, LONG)
    mixed = log.board([AAPL, MSFT, AAPL], SPAN, LONG)
    assert mixed.led == [AAPL]
    assert mixed.others == {MSFT: first.id}


def test_a_landing_is_seen_by_who_waits_and_frees_the_series(log: FlightLog):
    first = log.board([AAPL], SPAN, LONG)
    log.land(first, None)
    log.land(first, RateLimitError("too late to matter"))
    assert log.outcome({AAPL: first.id}) == {AAPL: FlightOutcome(span=SPAN)}
    assert log.board([AAPL], SPAN, LONG).led == [AAPL]


def test_an_error_reaches_who_waits_whole(log: FlightLog):
    first = log.board([AAPL], SPAN, LONG)
    log.land(first, BrokerTimeoutError("no answer", asked="AAPL 1min", status=504))
    outcome = log.outcome({AAPL: first.id})[AAPL]
    assert isinstance(outcome.error, BrokerTimeoutError)
    assert str(outcome.error) == str(BrokerTimeoutError("no answer", asked="AAPL 1min"))
    assert outcome.error.transient
    assert outcome.error.facts == {"status": 504}
    assert outcome.span == SPAN


def test_an_error_is_not_remembered_for_later_callers(log: FlightLog):
    log.land(log.board([AAPL], SPAN, LONG), BrokerTimeoutError("no answer"))
    assert log.board([AAPL], SPAN, LONG).led == [AAPL]


def test_a_lease_that_ran_out_is_taken_over_and_its_flight_is_lost(log: FlightLog):
    stale = log.board([AAPL], SPAN, OVER)
    assert log.outcome({AAPL: stale.id}) == {AAPL: FlightOutcome(lost=True)}
    fresh = log.board([AAPL], SPAN, LONG)
    assert fresh.led == [AAPL]
    assert log.outcome({AAPL: stale.id}) == {AAPL: FlightOutcome(lost=True)}
    log.land(stale, None)
    assert log.outcome({AAPL: fresh.id}) == {}
    assert not log.renew(stale, LONG)


def test_a_lease_is_renewed_until_it_is_taken_over(log: FlightLog):
    ticket = log.board([AAPL, MSFT], SPAN, OVER)
    assert log.renew(ticket, LONG)
    assert log.board([AAPL], SPAN, LONG).led == []
    assert log.renew(ticket, OVER)
    log.board([MSFT], SPAN, LONG)
    assert not log.renew(ticket, LONG)


def test_a_flight_lands_also_while_it_is_being_renewed(log: PostgresStore, database_url: str):
    flight = log.board([AAPL, MSFT], SPAN, LONG)
    renewal = "UPDATE flights SET lease_until = lease_until + interval '1 minute'"
    assert overtaken(database_url, renewal, lambda: log.renew(flight, LONG))
    overtaken(database_url, renewal, lambda: log.land(flight, None))
    assert set(log.outcome({AAPL: flight.id, MSFT: flight.id})) == {AAPL, MSFT}
    assert log.board([AAPL], SPAN, LONG).led == [AAPL]


def test_an_unknown_flight_is_lost(log: FlightLog):
    assert log.outcome({AAPL: "never-was"}) == {AAPL: FlightOutcome(lost=True)}
    assert log.outcome({}) == {}


def test_old_outcomes_are_cleared_away(log: PostgresStore):
    from sqlalchemy import text

    old = log.board([AAPL], SPAN, LONG)
    log.land(old, None)
    age = text("UPDATE flights SET finished_at = finished_at - interval '2 minutes'")
    log.database.run(lambda c: c.execute(age))
    log.land(log.board([MSFT], SPAN, LONG), None)
    left = log.database.run(lambda c: c.execute(text("SELECT symbol FROM flights")).scalars().all())
    assert left == ["MSFT"]


def test_of_many_boarding_at_once_exactly_one_leads_each_series(log: FlightLog):
    keys = [AAPL._replace(symbol=f"S{i}") for i in range(20)]
    leaders: list[list[str]] = []
    start = threading.Barrier(8)

    def board(n: int) -> None:
        start.wait()
        order = keys if n % 2 else keys[::-1]
        leaders.append([k.symbol for k in log.board(order, SPAN, LONG).led])

    threads = [threading.Thread(target=board, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leaders) == 8
    assert sorted(s for led in leaders for s in led) == sorted(k.symbol for k in keys)
