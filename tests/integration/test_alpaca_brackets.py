"""Brackets at Alpaca: whole where it takes them, in parts where it does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from algorithms.errors import VenueError
from algorithms.orders import Order, OrderState, TimeInForce
from algorithms.venues.alpaca_paper import AlpacaPaper
from algorithms.venues.reconciling import read_venue, reconcile
from tests.venues import PaperMarket, bracket, paper_market


@pytest.fixture
def market() -> Iterator[PaperMarket]:
    with paper_market() as made:
        yield made


def refusal(venue: AlpacaPaper, order: Order, *children: Order) -> VenueError:
    with pytest.raises(VenueError) as caught:
        venue.submit(order, children)
    return caught.value


def test_exits_that_are_not_kept_are_given_later_as_one(market: PaperMarket):
    """The entry adds to a position: Alpaca takes no bracket for it."""
    venue = market.venue
    price = market.price("AAPL")
    venue.submit(Order("first", "AAPL", 5))
    entry = Order("e", "AAPL", 10)
    stop_loss, take_profit = bracket(
        entry, take_profit=round(price * 1.5, 2), stop_loss=round(price - 0.5, 2)
    )
    assert venue.submit(entry, [stop_loss, take_profit]) == {"e"}
    assert venue.find("e.1") is None
    assert venue.submit(take_profit, [stop_loss]) == {"e.1", "e.2"}
    assert venue.submit(take_profit, [stop_loss]) == {"e.1", "e.2"}
    assert {o.id: o.state for o in venue.open_orders()} == {
        "e.1": OrderState.OPEN,
        "e.2": OrderState.OPEN,
    }
    market.pass_time(days=60)
    again = market.restarted()
    again.remember([entry, stop_loss, take_profit])
    assert again.find("e.1").state is OrderState.FILLED
    assert again.find("e.2").state is OrderState.CANCELED
    assert [f.order_id for f in again.fills_since(0)] == ["first", "e", "e.1"]
    assert again.positions() == {"AAPL": 5.0}


def test_brackets_that_are_over_are_asked_about_no_more(market: PaperMarket):
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10)
    exits = bracket(entry, take_profit=round(price * 1.5, 2), stop_loss=round(price - 0.5, 2))
    market.venue.submit(entry, exits)
    market.pass_time(days=60)
    assert market.venue.open_orders() == []
    before = len(market.sandbox.requests)
    assert market.venue.open_orders() == []
    assert len(market.sandbox.requests) == before + 1


def test_waiting_orders_cost_few_requests(market: PaperMarket):
    """Two brackets, one kept by Alpaca and one not, and a plain order: each round reads six lists."""
    price = market.price("AAPL")
    kept = Order("k", "AAPL", 10, limit=round(price * 0.5, 2))
    alone = Order("n", "KO", 10, limit=1.0, time_in_force=TimeInForce.DAY)
    orders = [kept, *bracket(kept, take_profit=round(price * 0.6, 2), stop_loss=1.0)]
    assert len(market.venue.submit(kept, orders[1:])) == 3
    exits = bracket(alone, take_profit=2.0, stop_loss=0.5)
    assert len(market.venue.submit(alone, exits)) == 1
    orders += [alone, *exits, Order("p", "MSFT", 1, limit=1.0)]
    market.venue.submit(orders[-1])
    for venue in (market.venue, market.restarted()):
        assert reconcile(orders, {}, read_venue(venue, orders, 0)).agrees
        before = len(market.sandbox.requests)
        assert reconcile(orders, {}, read_venue(venue, orders, 0)).agrees
        assert len(market.sandbox.requests) - before <= 6


def test_a_bracket_off_the_market_price_gives_the_entry_alone(market: PaperMarket):
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10)
    exits = bracket(entry, take_profit=round(price - 5, 2), stop_loss=round(price - 9, 2))
    assert market.venue.submit(entry, exits) == {"e"}
    assert market.venue.positions() == {"AAPL": 10.0}


@pytest.mark.parametrize("quantity", [10.5, 10])
def test_what_alpaca_does_not_tie_is_not_sent_tied(market: PaperMarket, quantity: float):
    """Parts of shares, and an entry for the day whose exits are to stay."""
    price = market.price("AAPL")
    entry = Order("e", "AAPL", quantity, time_in_force=TimeInForce.DAY)
    if quantity == 10:
        entry.limit = round(price + 1, 2)
    exits = bracket(entry, take_profit=round(price + 5, 2), stop_loss=round(price - 5, 2))
    assert market.venue.submit(entry, exits) == {"e"}
    assert market.asked("POST", "/v2/orders") == 1


def test_two_exits_are_given_together_or_not_at_all(market: PaperMarket):
    """A take-profit alone would bind the shares that the stop-loss needs."""
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10.5)
    stop_loss, take_profit = bracket(
        entry, take_profit=round(price + 5, 2), stop_loss=round(price - 5, 2)
    )
    market.venue.submit(entry)
    error = refusal(market.venue, take_profit, stop_loss)
    assert not error.transient
    assert "stop-loss alone" in str(error)
    assert market.venue.find("e.2") is None


def test_exits_before_their_position_may_be_tried_again(market: PaperMarket):
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10)
    stop_loss, take_profit = bracket(
        entry, take_profit=round(price + 5, 2), stop_loss=round(price - 5, 2)
    )
    error = refusal(market.venue, take_profit, stop_loss)
    assert error.transient
    assert market.venue.positions() == {}
    market.venue.submit(entry)
    assert market.venue.submit(take_profit, [stop_loss]) == {"e.1", "e.2"}


def test_an_exit_that_was_replaced_is_followed(market: PaperMarket):
    """Alpaca replaces orders on its own: for a split, or when half an exit has filled."""
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10)
    exits = bracket(entry, take_profit=round(price * 1.5, 2), stop_loss=round(price - 9, 2))
    market.venue.submit(entry, exits)
    leg = market.desk.by_client_id["e"].legs[1]
    body = {"stop_price": round(price - 0.5, 2)}
    market.venue._requests.call(lambda c: c.patch(f"/orders/{leg.id}", body))
    assert market.venue.find("e.1").stop == body["stop_price"]
    market.pass_time(days=60)
    assert market.venue.find("e.1").state is OrderState.FILLED
    assert [f.order_id for f in market.venue.fills_since(0)] == ["e", "e.1"]


def test_an_order_that_was_replaced_is_followed(market: PaperMarket):
    """The order in its place has another id, another client order id, and is ours all the same."""
    market.venue.submit(Order("a", "AAPL", 10, limit=1.0))
    body = {"limit_price": round(market.price("AAPL") + 1, 2)}
    old = market.desk.by_client_id["a"].id
    market.venue._requests.call(lambda client: client.patch(f"/orders/{old}", body))
    there = market.venue.find("a")
    assert (there.state, there.filled, there.limit) == (
        OrderState.FILLED,
        10.0,
        body["limit_price"],
    )
    assert [f.order_id for f in market.venue.fills_since(0)] == ["a"]
    market.venue.cancel("a")


def test_a_stop_loss_may_come_first(market: PaperMarket):
    price = market.price("AAPL")
    market.venue.submit(Order("first", "AAPL", 5))
    entry = Order("e", "AAPL", 10)
    loss, profit = bracket(entry, take_profit=round(price + 5, 2), stop_loss=round(price - 5, 2))
    assert market.venue.submit(entry, [loss, profit]) == {"e"}
    for _ in range(2):
        assert market.venue.submit(loss, [profit]) == {"e.1", "e.2"}
    assert {o.id for o in market.venue.open_orders()} == {"e.1", "e.2"}
    assert market.desk.held_for_orders("AAPL") == 10


def test_where_two_exits_are_not_taken_the_stop_loss_stands(market: PaperMarket):
    """Parts of shares; and a stop price that the market has passed meanwhile."""
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10.5)
    exits = bracket(entry, take_profit=round(price + 5, 2), stop_loss=round(price - 5, 2))
    for exit_order in exits:
        exit_order.time_in_force = TimeInForce.DAY
    market.venue.submit(entry)
    for _ in range(2):
        assert market.venue.submit(exits[0], [exits[1]]) == {"e.1"}
    assert market.venue.find("e.1").state is OrderState.OPEN
    assert refusal(market.venue, exits[1], exits[0]).facts["refused"]

    late = Order("l", "KO", 10)
    above = market.price("KO") + 3
    exits = bracket(late, take_profit=round(above + 5, 2), stop_loss=round(above, 2))
    market.venue.submit(late)
    assert market.venue.submit(exits[0], [exits[1]]) == {"l.1"}
    assert market.venue.find("l.1").state is OrderState.FILLED
    assert market.venue.positions() == {"AAPL": 10.5}
