"""Judging the differences between what we believe and what a broker says. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from algorithms.orders import Order, OrderState, OrderType, TimeInForce
from algorithms.venues import BrokerFill, BrokerOrder
from algorithms.venues.reconciling import Reconciliation, Remedy, VenueReading, reconcile


def there(order: Order, **changes: Any) -> BrokerOrder:
    same = BrokerOrder(
        id=order.id,
        broker_id="b-" + order.id,
        symbol=order.symbol,
        quantity=order.quantity,
        type=OrderType.LIMIT,
        limit=order.limit,
        stop=order.stop,
        time_in_force=TimeInForce.GTC,
        state=order.state,
        filled=order.filled,
        filled_price=math.nan,
        submitted=0,
    )
    return replace(same, **changes)


def judged(
    order: Order | None,
    at_broker: BrokerOrder | None,
    held: dict[str, float] | None = None,
    here: dict[str, float] | None = None,
    fills: tuple[BrokerFill, ...] = (),
    **options: Any,
) -> Reconciliation:
    orders = {} if at_broker is None else {at_broker.id: at_broker}
    reading = VenueReading(orders, held or {}, fills)
    return reconcile([] if order is None else [order], here or {}, reading, **options)


def remedies(found: Reconciliation) -> list[tuple[str, str]]:
    return [(d.remedy.value, d.subject) for d in found.differences]


OPEN = Order("o", "AAPL", 10, limit=5.0)


def test_what_agrees_agrees():
    found = judged(OPEN, there(OPEN), {"AAPL": 3.0}, {"AAPL": 3.0})
    assert found.agrees
    assert str(found) == "nothing differs"


def test_an_order_that_never_arrived_is_given_again():
    assert remedies(judged(OPEN, None)) == [("resubmit", "o")]


@pytest.mark.parametrize("state", [s for s in OrderState if s is not OrderState.OPEN])
def test_an_order_that_need_not_be_there_is_no_difference(state: OrderState):
    assert judged(replace_order(state=state), None).agrees


def test_an_order_with_fills_that_nobody_there_knows_is_reported():
    assert remedies(judged(replace_order(filled=3.0), None)) == [("report", "o")]


def test_missed_fills_are_booked_and_explain_the_position():
    fills = tuple(BrokerFill(n, "o", "AAPL", 2.0, 5.0, 0.0, "", f"f-{n}") for n in range(3))
    found = judged(
        replace_order(filled=2.0),
        there(OPEN, filled=6.0),
        {"AAPL": 6.0},
        {"AAPL": 2.0},
        fills,
        booked={"f-0"},
    )
    assert remedies(found) == [("book", "o")]
    assert [f.id for f in found.differences[0].fills] == ["f-1", "f-2"]
    assert found.differences[0].quantity == 4.0


def test_an_order_that_filled_away_from_us_is_only_booked():
    done = there(OPEN, filled=10.0, state=OrderState.FILLED)
    assert remedies(judged(OPEN, done, {"AAPL": 10.0})) == [("book", "o")]


def test_a_part_filled_then_cancelled_is_booked_and_marked():
    part = there(OPEN, filled=4.0, state=OrderState.CANCELED)
    assert remedies(judged(OPEN, part, {"AAPL": 4.0})) == [("book", "o"), ("mark", "o")]


def test_fewer_fills_there_than_here_are_reported():
    found = judged(replace_order(filled=5.0), there(OPEN, filled=3.0), {"AAPL": 5.0}, {"AAPL": 5.0})
    assert remedies(found) == [("report", "o")]


@pytest.mark.parametrize("state", [OrderState.CANCELED, OrderState.EXPIRED, OrderState.REJECTED])
def test_an_order_that_ended_there_is_marked(state: OrderState):
    assert remedies(judged(OPEN, there(OPEN, state=state))) == [("mark", "o")]


@pytest.mark.parametrize("state", [OrderState.CANCELED, OrderState.EXPIRED, OrderState.REJECTED])
def test_an_order_that_ended_here_is_cancelled_there(state: OrderState):
    assert remedies(judged(replace_order(state=state), there(OPEN))) == [("cancel", "o")]


def test_an_exit_that_came_to_life_there_is_marked():
    assert remedies(judged(replace_order(state=OrderState.HELD), there(OPEN))) == [("mark", "o")]


def test_other_shares_are_reported():
    assert remedies(judged(OPEN, there(OPEN, quantity=20.0))) == [("report", "o")]


def test_strangers_orders_are_reported_and_ours_adopted():
    assert remedies(judged(None, there(OPEN))) == [("report", "o")]
    assert remedies(judged(None, there(OPEN), ours=lambda i: i == "o")) == [("adopt", "o")]
    assert judged(None, there(OPEN, state=OrderState.FILLED)).agrees


def test_positions_that_nothing_explains_are_reported():
    found = judged(None, None, {"AAPL": 5.0, "KO": -2.0}, {"AAPL": 7.0, "GE": 1.0})
    assert remedies(found) == [("report", "AAPL"), ("report", "GE"), ("report", "KO")]
    assert [d.quantity for d in found.differences] == [-2.0, -1.0, -2.0]


def test_remedies_come_in_the_order_in_which_to_act():
    assert list(Remedy) == [
        Remedy.BOOK, Remedy.MARK, Remedy.CANCEL, Remedy.ADOPT, Remedy.RESUBMIT, Remedy.REPORT,
    ]  # fmt: skip


def replace_order(**changes: Any) -> Order:
    return replace(OPEN, **changes)
