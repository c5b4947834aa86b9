"""Orders and answers that get lost between us and a broker: none is lost for good, none doubled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from algorithms.errors import VenueError
from algorithms.orders import Order, OrderState
from algorithms.venues.alpaca_paper import AlpacaPaper
from tests.venues import PaperMarket, bracket, paper_market

POST = "POST /v2/orders?"
LOSSES: list[dict[str, Any]] = [
    {"kind": "lost"},
    {"kind": "cut"},
    {"kind": "json"},
    {"kind": "gzip"},
    {"kind": "failed", "status": 500},
    {"kind": "failed", "status": 504},
    {"kind": "late"},
    {"kind": "slow", "seconds": 0.2},
    {"kind": "drip", "seconds": 0.1},
    {"kind": "stall"},
    {"kind": "reset"},
    {"kind": "html"},
    {"kind": "status", "status": 502},
]
"""Ways to lose an answer: with most of them the order was placed, with the last four it was not,
and with a slow one it arrives after we have given up."""


@pytest.fixture
def market() -> Iterator[PaperMarket]:
    with paper_market() as made:
        made.venue.account()  # loads the SDK
        yield made


@pytest.fixture
def impatient(market: PaperMarket) -> Iterator[AlpacaPaper]:
    """A venue that gives up soon; whether it was too soon is no question of these tests."""
    venue = market.restarted(timeout=0.1)
    yield venue
    venue.close()


def settle(venue: AlpacaPaper, order: Order, *children: Order) -> frozenset[str]:
    """Give an order until its outcome is known, as whoever runs algorithms does."""
    for _ in range(6):
        try:
            return venue.submit(order, children)
        except VenueError as error:
            if not error.transient:
                raise
    raise AssertionError("it was never settled")


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss['kind']}{loss.get('status', '')}")
def test_an_answer_lost_twenty_times_never_doubles_an_order(
    market: PaperMarket, impatient: AlpacaPaper, loss: dict[str, Any]
):
    for n in range(20):
        fault = market.sandbox.faults.add(loss["kind"], match=POST, **_settings(loss))
        order = Order(f"o-{n}", "AAPL", 1)
        with pytest.raises(VenueError) as caught:
            impatient.submit(order)
        assert caught.value.transient
        assert fault.wait_fired()
        fault.release()
        assert settle(market.venue, order) == {order.id}
        assert market.venue.find(order.id).state is OrderState.FILLED
    assert market.venue.positions() == {"AAPL": 20.0}
    assert len(market.venue.fills_since(0)) == 20
    assert market.desk.counts["orders"] == 20
    assert market.desk.contradictions() == []


def _settings(loss: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in loss.items() if k != "kind"}


@pytest.mark.parametrize("kind", ["lost", "failed", "cut"])
def test_a_bracket_whose_answer_is_lost_keeps_its_exits(market: PaperMarket, kind: Any):
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10)
    exits = bracket(entry, take_profit=round(price * 1.5, 2), stop_loss=round(price * 0.7, 2))
    market.sandbox.faults.add(kind, match=POST)
    with pytest.raises(VenueError):
        market.venue.submit(entry, exits)
    assert settle(market.restarted(), entry, *exits) == {"e", "e.1", "e.2"}
    assert market.venue.positions() == {"AAPL": 10.0}
    assert {o.id for o in market.venue.open_orders()} == {"e.1", "e.2"}


@pytest.mark.parametrize("kind", ["lost", "status"])
def test_two_exits_whose_answer_is_lost_are_given_again(market: PaperMarket, kind: Any):
    price = market.price("AAPL")
    entry = Order("e", "AAPL", 10)
    loss, profit = bracket(entry, take_profit=round(price + 5, 2), stop_loss=round(price - 5, 2))
    market.venue.submit(entry)
    market.sandbox.faults.add(kind, match=POST)
    with pytest.raises(VenueError) as caught:
        market.venue.submit(profit, [loss])
    assert caught.value.transient
    assert settle(market.venue, profit, loss) == {"e.1", "e.2"}
    assert {o.id for o in market.venue.open_orders()} == {"e.1", "e.2"}


def test_a_repeated_order_is_known_though_it_is_refused_for_another_reason(market: PaperMarket):
    """The first one spent the money: the broker may say that before it looks at the id."""
    market.desk.ids_checked_last = True
    shares = float(int(190_000 / market.price("AAPL")))
    market.sandbox.faults.add("lost", match=POST)
    order = Order("all-in", "AAPL", shares)
    with pytest.raises(VenueError) as caught:
        market.venue.submit(order)
    assert caught.value.transient
    assert market.venue.submit(order) == {"all-in"}
    assert market.desk.counts["duplicates"] == 0
    assert market.venue.positions() == {"AAPL": shares}


def test_a_request_that_arrives_late_is_settled_by_giving_the_order_again(
    market: PaperMarket, impatient: AlpacaPaper
):
    fault = market.sandbox.faults.add("hold", match=POST)
    order = Order("a", "AAPL", 10)
    with pytest.raises(VenueError) as caught:
        impatient.submit(order)
    assert fault.wait_fired()
    assert caught.value.transient
    assert market.venue.find("a") is None  # it is under way
    assert market.venue.submit(order) == {"a"}
    fault.release()
    deadline = time.monotonic() + 10
    while market.desk.counts["duplicates"] == 0 and time.monotonic() < deadline:
        market.venue.account()
    assert market.desk.counts["duplicates"] == 1
    assert market.venue.positions() == {"AAPL": 10.0}


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
def test_reads_say_that_they_may_be_tried_again(market: PaperMarket, status: int):
    market.venue.submit(Order("a", "AAPL", 1, limit=1.0))
    calls = (
        market.venue.account,
        market.venue.positions,
        market.venue.open_orders,
        lambda: market.venue.find("a"),
        lambda: market.venue.fills_since(0),
        lambda: market.venue.cancel("a"),
    )
    for call in calls:
        market.sandbox.faults.add("status", status=status)
        with pytest.raises(VenueError) as caught:
            call()
        assert caught.value.transient
        assert caught.value.facts["status"] == status
    assert market.venue.find("a").state is OrderState.OPEN


def test_no_request_outlives_its_time(market: PaperMarket, impatient: AlpacaPaper):
    for kind, settings in (("stall", {}), ("drip", {"seconds": 0.05}), ("slow", {"seconds": 3.0})):
        market.sandbox.faults.add(kind, match="/v2/account", **settings)  # type: ignore[arg-type]
        began = time.monotonic()
        with pytest.raises(VenueError) as caught:
            impatient.account()
        assert time.monotonic() - began < 2
        assert caught.value.transient


def test_an_order_is_not_called_unknown_because_a_look_up_failed(market: PaperMarket):
    """A 404 of a proxy's making has no place between a refusal and its look-up."""
    order = Order("a", "AAPL", 10)
    market.venue.submit(order)
    market.sandbox.faults.add("status", match="by_client_order_id", status=503)
    with pytest.raises(VenueError) as caught:
        market.venue.submit(order)
    assert caught.value.transient
    assert market.venue.submit(order) == {"a"}


def test_an_id_that_is_taken_by_what_cannot_be_seen_is_not_a_refusal(market: PaperMarket):
    """One server has the order, another does not show it yet."""
    order = Order("a", "AAPL", 10)
    market.venue.submit(order)
    absent = '{"code":40410000,"message":"order not found for a"}'
    market.sandbox.faults.add("status", match="by_client_order_id", status=404, body=absent)
    with pytest.raises(VenueError) as caught:
        market.venue.submit(order)
    assert caught.value.transient
    assert market.venue.submit(order) == {"a"}


def test_a_cancel_whose_answer_is_lost_is_cancelled_again(market: PaperMarket):
    market.venue.submit(Order("a", "AAPL", 10, limit=1.0))
    market.sandbox.faults.add("lost", match="DELETE /v2/orders/")
    with pytest.raises(VenueError) as caught:
        market.venue.cancel("a")
    assert caught.value.transient
    market.venue.cancel("a")
    assert market.venue.find("a").state is OrderState.CANCELED


# --------------------------------------------------------------------------------- rate limits


def test_told_to_wait_nobody_asks_before(market: PaperMarket):
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(seconds)

    venue = market.restarted(timeout=8.0, sleep=sleep)
    market.sandbox.faults.add("rate_limit", match=POST, seconds=0.4)
    assert venue.submit(Order("a", "AAPL", 1)) == {"a"}
    assert waits
    refused, given = [r for r in market.sandbox.requests if r.method == "POST"]
    assert (refused.status, given.status) == (429, 200)
    assert given.time - refused.time >= 0.4
    assert market.desk.counts["orders"] == 1


def test_a_wait_beyond_the_time_allowed_is_an_error_at_once(market: PaperMarket):
    market.sandbox.faults.add("rate_limit", match="/v2/", seconds=30)
    began = time.monotonic()
    with pytest.raises(VenueError) as caught:
        market.venue.account()
    assert time.monotonic() - began < 2
    assert caught.value.transient
    assert 25 < float(caught.value.facts["retry_after"]) <= 32  # type: ignore[arg-type]
    asked = len(market.sandbox.requests)
    with pytest.raises(VenueError):
        market.venue.positions()
    assert len(market.sandbox.requests) == asked
