"""What every `BrokerVenue` promises; see `algorithms.venues`.

A venue to come adds a fixture of its own to `market`: an object with the members of
`tests.venues.PaperMarket` that are used here.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import pytest

from algorithms.errors import VenueError
from algorithms.orders import Order, OrderState, OrderType, TimeInForce
from algorithms.venues import BrokerVenue
from tests.venues import PaperMarket, bracket, paper_market


@pytest.fixture(params=["alpaca-paper"])
def market(request: pytest.FixtureRequest) -> Iterator[PaperMarket]:
    with paper_market() as made:
        yield made


@pytest.fixture
def venue(market: PaperMarket) -> BrokerVenue:
    return market.venue


# -------------------------------------------------------------------------------------- account


def test_an_account_is_worth_its_cash_and_positions(market: PaperMarket, venue: BrokerVenue):
    before = venue.account()
    assert before.cash == before.equity > 0
    assert before.buying_power >= before.cash
    venue.submit(Order("a-1", "AAPL", 10))
    price = venue.fills_since(0)[0].price
    after = venue.account()
    assert after.cash == pytest.approx(before.cash - 10 * price, abs=0.005)
    assert after.equity == pytest.approx(after.cash + 10 * market.price("AAPL"), abs=0.005)
    assert after.buying_power < before.buying_power


def test_positions_are_signed_and_vanish_when_closed(venue: BrokerVenue):
    assert venue.positions() == {}
    venue.submit(Order("a-1", "AAPL", 10))
    venue.submit(Order("a-2", "KO", -7))
    assert venue.positions() == {"AAPL": 10.0, "KO": -7.0}
    venue.submit(Order("a-3", "KO", 7))
    assert venue.positions() == {"AAPL": 10.0}


# --------------------------------------------------------------------------------------- orders


def test_an_order_is_found_as_it_was_given(market: PaperMarket, venue: BrokerVenue):
    price = market.price("AAPL")
    given = [
        Order("m", "AAPL", 1),
        Order("l", "AAPL", 2, limit=round(price - 3, 2)),
        Order("s", "MSFT", 3, stop=round(market.price("MSFT") + 9, 2)),
        Order(
            "sl",
            "KO",
            4,
            limit=round(market.price("KO") + 5, 2),
            stop=round(market.price("KO") + 4, 2),
            time_in_force=TimeInForce.DAY,
        ),
    ]
    for order in given:
        assert venue.submit(order) == {order.id}
    for order in given:
        there = venue.find(order.id)
        assert there is not None
        assert (there.id, there.symbol, there.quantity) == (order.id, order.symbol, order.quantity)
        assert (there.type, there.limit, there.stop) == (order.type, order.limit, order.stop)
        assert there.time_in_force is order.time_in_force
        assert there.submitted == market.now
    states = {o.id: venue.find(o.id).state for o in given}
    assert states.pop("m") is OrderState.FILLED
    assert set(states.values()) == {OrderState.OPEN}
    assert {o.id for o in venue.open_orders()} == {"l", "s", "sl"}
    assert [o.type for o in given] == list(OrderType)


def test_an_order_nobody_gave_is_not_found(venue: BrokerVenue):
    assert venue.find("nobody") is None


def test_a_filled_order_says_how_many_and_at_what_price(venue: BrokerVenue):
    venue.submit(Order("a", "AAPL", -10))
    there = venue.find("a")
    fill = venue.fills_since(0)[0]
    assert (there.filled, there.filled_price) == (-10.0, fill.price)
    venue.submit(Order("b", "MSFT", 1, limit=1.0))
    assert (venue.find("b").filled, math.isnan(venue.find("b").filled_price)) == (0.0, True)


def test_submitting_again_changes_nothing_whatever_became_of_it(
    market: PaperMarket, venue: BrokerVenue
):
    price = market.price("AAPL")
    filled = Order("filled", "AAPL", 10)
    waiting = Order("waiting", "AAPL", 10, limit=round(price / 2, 2))
    gone = Order("gone", "KO", 10, limit=1.0)
    for order in (filled, waiting, gone):
        venue.submit(order)
    venue.cancel("gone")
    before = [venue.find(o.id) for o in (filled, waiting, gone)]
    for order in (filled, waiting, gone):
        for _ in range(3):
            assert venue.submit(order) == {order.id}
    assert [venue.find(o.id) for o in (filled, waiting, gone)] == before
    assert venue.positions() == {"AAPL": 10.0}
    assert len(venue.fills_since(0)) == 1


def test_twenty_at_once_give_one_order(market: PaperMarket, venue: BrokerVenue):
    problems: list[BaseException] = []

    def give() -> None:
        try:
            venue.submit(Order("same", "AAPL", 10))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=give) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert venue.positions() == {"AAPL": 10.0}


def test_another_order_under_the_same_id_is_an_error(venue: BrokerVenue):
    venue.submit(Order("a", "AAPL", 10))
    for other in (Order("a", "AAPL", 11), Order("a", "MSFT", 10), Order("a", "AAPL", 10, limit=5)):
        with pytest.raises(VenueError, match="another order has the id a") as caught:
            venue.submit(other)
        assert not caught.value.transient
    assert venue.positions() == {"AAPL": 10.0}


def test_a_refusal_is_final_and_leaves_nothing(venue: BrokerVenue):
    for order in (Order("a", "NOSUCH", 1), Order("b", "AAPL", 10_000_000)):
        with pytest.raises(VenueError) as caught:
            venue.submit(order)
        assert (caught.value.transient, caught.value.facts["refused"]) == (False, True)
        assert venue.find(order.id) is None
    assert venue.open_orders() == []


# ----------------------------------------------------------------------------------- cancelling


def test_cancelling(market: PaperMarket, venue: BrokerVenue):
    venue.submit(Order("a", "AAPL", 10, limit=1.0))
    venue.cancel("a")
    assert venue.find("a").state is OrderState.CANCELED
    assert venue.open_orders() == []
    venue.cancel("a")


def test_cancelling_what_has_filled_leaves_it_filled(venue: BrokerVenue):
    venue.submit(Order("a", "AAPL", 10))
    venue.cancel("a")
    assert venue.find("a").state is OrderState.FILLED


def test_cancelling_what_nobody_gave_is_an_error(venue: BrokerVenue):
    with pytest.raises(VenueError, match="no order") as caught:
        venue.cancel("nobody")
    assert not caught.value.transient


def test_an_order_for_the_day_expires_with_its_session(market: PaperMarket, venue: BrokerVenue):
    venue.submit(Order("day", "AAPL", 1, limit=1.0, time_in_force=TimeInForce.DAY))
    venue.submit(Order("gtc", "AAPL", 1, limit=1.0))
    market.at("2024-03-14T15:59:59-04:00")
    assert venue.find("day").state is OrderState.OPEN
    market.at("2024-03-14T16:00:00-04:00")
    assert venue.find("day").state is OrderState.EXPIRED
    assert venue.find("gtc").state is OrderState.OPEN


# ---------------------------------------------------------------------------------------- fills


def test_every_fill_comes_once_and_exactly(market: PaperMarket, venue: BrokerVenue):
    market.desk.most_shares = 30
    venue.submit(Order("a", "AAPL", 100))
    market.pass_time(minutes=10)
    fills = venue.fills_since(0)
    assert [f.quantity for f in fills] == [30.0, 30.0, 30.0, 10.0]
    assert {(f.order_id, f.symbol) for f in fills} == {("a", "AAPL")}
    assert len({f.id for f in fills}) == 4
    assert [f.time for f in fills] == sorted(f.time for f in fills)
    there = venue.find("a")
    assert there.state is OrderState.FILLED
    mean = sum(f.quantity * f.price for f in fills) / 100
    assert there.filled_price == pytest.approx(mean, abs=1e-6)
    assert fills == venue.fills_since(0)
    assert [f.id for f in venue.fills_since(fills[1].time)] == [f.id for f in fills[1:]]
    assert venue.fills_since(fills[-1].time + 1) == []
    assert fills[0].fill.price == fills[0].price


def test_a_part_that_has_filled_shows_on_the_open_order(market: PaperMarket, venue: BrokerVenue):
    market.desk.most_shares = 30
    venue.submit(Order("a", "AAPL", -100))
    there = venue.find("a")
    assert (there.state, there.filled) == (OrderState.OPEN, -30.0)
    venue.cancel("a")
    there = venue.find("a")
    assert (there.state, there.filled) == (OrderState.CANCELED, -30.0)
    assert venue.positions() == {"AAPL": -30.0}


# -------------------------------------------------------------------------- orders tied together


def test_exits_that_the_broker_keeps_stand_without_us(market: PaperMarket, venue: BrokerVenue):
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10)
    exits = bracket(entry, take_profit=round(price * 1.5, 2), stop_loss=round(price - 0.5, 2))
    kept = venue.submit(entry, exits)
    assert kept == {"e", "e.1", "e.2"}
    assert {o.id for o in venue.open_orders()} == {"e.1", "e.2"}
    assert {venue.find(i).state for i in ("e.1", "e.2")} == {OrderState.OPEN}
    market.pass_time(days=60)
    states = {i: venue.find(i).state for i in ("e", "e.1", "e.2")}
    assert states == {
        "e": OrderState.FILLED,
        "e.1": OrderState.FILLED,
        "e.2": OrderState.CANCELED,
    }
    assert [f.order_id for f in venue.fills_since(0)] == ["e", "e.1"]
    assert venue.positions() == {}
    assert venue.open_orders() == []


def test_exits_wait_for_their_entry(market: PaperMarket, venue: BrokerVenue):
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10, limit=round(price * 0.5, 2))
    exits = bracket(entry, take_profit=round(price * 0.6, 2), stop_loss=round(price * 0.4, 2))
    assert venue.submit(entry, exits) == {"e", "e.1", "e.2"}
    assert {o.id: o.state for o in venue.open_orders()} == {
        "e": OrderState.OPEN,
        "e.1": OrderState.HELD,
        "e.2": OrderState.HELD,
    }
    assert [o.parent for o in venue.open_orders()] == [None, "e", "e"]
    venue.cancel("e")
    assert {venue.find(i).state for i in ("e", "e.1", "e.2")} == {OrderState.CANCELED}


def test_one_exit_alone(market: PaperMarket, venue: BrokerVenue):
    price = market.price("AAPL")
    entry = Order("e", "AAPL", -10)
    exits = bracket(entry, stop_loss=round(price + 0.5, 2))
    assert venue.submit(entry, exits) == {"e", "e.1"}
    market.pass_time(days=60)
    assert venue.find("e.1").state is OrderState.FILLED
    assert venue.positions() == {}


def test_submitting_a_bracket_again_names_the_same_orders(market: PaperMarket, venue: BrokerVenue):
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10)
    exits = bracket(entry, take_profit=round(price * 1.5, 2), stop_loss=round(price * 0.7, 2))
    kept = venue.submit(entry, exits)
    assert venue.submit(entry, exits) == kept
    assert market.restarted().submit(entry, exits) == kept
    assert venue.positions() == {"AAPL": 10.0}


def test_after_a_restart_the_exits_are_known_again(market: PaperMarket, venue: BrokerVenue):
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10)
    exits = bracket(entry, take_profit=round(price * 1.5, 2), stop_loss=round(price - 0.5, 2))
    venue.submit(entry, exits)
    again = market.restarted()
    again.remember([entry, *exits])
    assert {o.id for o in again.open_orders()} == {"e.1", "e.2"}
    assert again.find("e.1").stop == exits[0].stop
    market.pass_time(days=60)
    later = market.restarted()
    later.remember([entry, *exits])
    assert [f.order_id for f in later.fills_since(0)] == ["e", "e.1"]
    assert later.find("e.1").state is OrderState.FILLED
    assert later.open_orders() == []


def test_cancelling_an_exit_ends_its_twin(market: PaperMarket, venue: BrokerVenue):
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10)
    exits = bracket(entry, take_profit=round(price * 1.5, 2), stop_loss=round(price * 0.7, 2))
    venue.submit(entry, exits)
    venue.cancel("e.1")
    assert {venue.find(i).state for i in ("e.1", "e.2")} == {OrderState.CANCELED}
    assert venue.open_orders() == []
