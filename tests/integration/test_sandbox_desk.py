"""The sandbox's trading desk on its market, asked directly: parts, and minutes under way."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from marketdata.clock import from_micros
from marketdata.sandbox.trading.accepting import accept
from marketdata.sandbox.trading.book import PaperOrder
from marketdata.spans import Span
from marketdata.types import MINUTE, SECOND
from tests.venues import PaperMarket, paper_market


@pytest.fixture
def market() -> Iterator[PaperMarket]:
    with paper_market() as made:
        yield made


def given(market: PaperMarket, **fields: Any) -> PaperOrder:
    body = {"symbol": "AAPL", "qty": "10", "side": "buy", "type": "market", "time_in_force": "gtc"}
    order = accept(market.desk, {**body, **fields})
    market.desk.trade_now(order)
    return order


def bracketed(market: PaperMarket) -> PaperOrder:
    price = market.price("AAPL")
    return given(
        market,
        order_class="bracket",
        take_profit={"limit_price": round(price * 1.5, 2)},
        stop_loss={"stop_price": round(price * 0.5, 2)},
    )


@pytest.mark.parametrize("which", [0, 1])
def test_an_exit_that_fills_in_part_leaves_the_other_for_the_rest(market: PaperMarket, which: int):
    desk = market.desk
    entry = bracketed(market)
    one, other = entry.legs[which], entry.legs[1 - which]
    desk.most_shares = 4
    desk.fill(one, Decimal(100), market.now)
    assert (one.status, one.left) == ("partially_filled", Decimal(6))
    assert (other.is_open, other.left) == (True, Decimal(6))
    desk.fill(other, Decimal(100), market.now)
    desk.fill(other, Decimal(100), market.now)
    assert (other.status, one.status) == ("filled", "canceled")
    assert desk.positions == {}
    assert desk.contradictions() == []


def test_an_entry_that_fills_in_part_has_no_exits_yet(market: PaperMarket):
    market.desk.most_shares = 4
    entry = bracketed(market)
    assert (entry.status, [leg.works for leg in entry.legs]) == ("partially_filled", [False, False])
    market.desk.cancel(entry)
    assert {leg.status for leg in entry.legs} == {"canceled"}
    assert market.desk.positions["AAPL"].qty == 4


def test_what_a_minute_did_before_an_order_came_does_not_fill_it(market: PaperMarket):
    """Given in the middle of a minute, at the low of it, which nobody can have known."""
    tape, now = market.desk.tape, market.now
    minutes = list(tape.minutes("AAPL", Span(now, now + 50 * MINUTE)))
    deep, after = next(
        (b, c)
        for (a, b), (_, c) in pairwise(pairwise(minutes))
        if b.label - a.label == c.label - b.label == MINUTE
        and b.low < min(a.close, b.open, c.low) - Decimal("0.01")
    )
    market.clock.set(from_micros(deep.label + 30 * SECOND))
    market.desk.catch_up()
    late = given(market, type="limit", limit_price=str(deep.low))
    for moment in (deep.label + MINUTE, after.label + MINUTE):
        market.clock.set(from_micros(moment))
        market.desk.catch_up()
        assert late.status == "new"


def test_what_a_minute_did_after_an_order_came_fills_it(market: PaperMarket):
    tape, now = market.desk.tape, market.now
    before, deep = next(
        (a, b)
        for a, b in pairwise(tape.minutes("AAPL", Span(now, now + 50 * MINUTE)))
        if b.label - a.label == MINUTE and b.low < min(a.close, b.open) - Decimal("0.01")
    )
    assert before.label < deep.label
    market.clock.set(from_micros(deep.label))
    market.desk.catch_up()
    early = given(market, type="limit", limit_price=str(deep.low))
    assert early.status == "new"
    market.clock.set(from_micros(deep.label + MINUTE))
    market.desk.catch_up()
    assert (early.status, early.paid / 10) == ("filled", deep.low)
    assert market.desk.fills[-1].time == market.now


def test_a_clock_set_back_makes_nothing_happen_twice(market: PaperMarket):
    given(market)
    resting = given(market, symbol="KO", type="limit", limit_price="1")
    market.pass_time(days=3)
    market.desk.catch_up()
    before = (resting.status, len(market.desk.fills), market.desk.cash)
    market.pass_time(days=-3)
    market.desk.catch_up()
    market.pass_time(days=3)
    market.desk.catch_up()
    assert (resting.status, len(market.desk.fills), market.desk.cash) == before


def test_orders_until_cancelled_end_after_ninety_days(market: PaperMarket):
    resting = given(market, symbol="KO", type="limit", limit_price="1")
    market.at("2024-06-12T16:14:59-04:00")
    market.desk.catch_up()
    assert resting.status == "new"
    market.at("2024-06-12T16:15:00-04:00")
    market.desk.catch_up()
    assert resting.status == "canceled"
