"""The sandbox's trading API as the installed alpaca-py sees it, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
import requests

from marketdata.clock import from_micros
from marketdata.spans import Span
from tests.venues import EVENING, KEY, SECRET, PaperMarket, paper_market

pytestmark = pytest.mark.filterwarnings("ignore:websockets.legacy")


@pytest.fixture
def market() -> Iterator[PaperMarket]:
    with paper_market() as made:
        yield made


@pytest.fixture
def client(market: PaperMarket) -> Any:
    from alpaca.trading.client import TradingClient

    return TradingClient(KEY, SECRET, paper=True, url_override=market.sandbox.url)


def order(kind: str = "Market", **fields: Any) -> Any:
    from alpaca.trading import requests as asked

    given = {"symbol": "AAPL", "qty": 10, "side": "buy", "time_in_force": "day", **fields}
    return getattr(asked, f"{kind}OrderRequest")(**given)


def filtered(**fields: Any) -> Any:
    from alpaca.trading.requests import GetOrdersRequest

    return GetOrdersRequest(**fields)


def refused(call: Any) -> tuple[int, dict[str, Any]]:
    from alpaca.common.exceptions import APIError

    with pytest.raises(APIError) as caught:
        call()
    return caught.value.status_code, caught.value.response.json()


def said(status: int, code: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"code": code, "message": message}


# -------------------------------------------------------------------------------- the models


def test_account_and_positions_read_as_models(market: PaperMarket, client: Any):
    before = client.get_account()
    assert (before.cash, before.buying_power, before.multiplier) == ("100000", "200000", "2")
    assert before.account_number.startswith("PA")
    client.submit_order(order())
    (position,) = client.get_all_positions()
    assert (position.qty, position.side.value, position.qty_available) == ("10", "long", "10")
    assert client.get_open_position("AAPL") == position
    ask = market.price("AAPL") + 0.01
    assert float(position.avg_entry_price) == pytest.approx(ask)
    after = client.get_account()
    assert float(after.equity) == pytest.approx(100_000 - 0.1)
    # Buying power: twice the equity less half of what is held, as Alpaca's example has it.
    half = float(after.long_market_value) / 2
    assert float(after.buying_power) == pytest.approx(2 * (float(after.equity) - half), abs=0.01)


def test_a_new_order_is_pending_and_then_filled(client: Any):
    given = client.submit_order(order(client_order_id="mine"))
    assert (given.status.value, given.filled_qty, given.client_order_id) == (
        "pending_new",
        "0",
        "mine",
    )
    filled = client.get_order_by_id(given.id)
    assert (filled.status.value, filled.filled_qty) == ("filled", "10")
    assert client.get_order_by_client_id("mine").id == given.id
    assert filled.expires_at.isoformat() == "2024-03-14T20:00:00+00:00"


def test_refusals_have_alpacas_status_code_and_words(market: PaperMarket, client: Any):
    price = market.price("AAPL")
    client.submit_order(order(client_order_id="once"))
    again = refused(lambda: client.submit_order(order(client_order_id="once")))
    assert again == said(422, 40010001, "client_order_id must be unique")
    status, body = refused(lambda: client.submit_order(order(qty=1e6)))
    assert (status, body["code"], body["message"]) == (403, 40310000, "insufficient buying power")
    assert float(body["cost_basis"]) > float(body["buying_power"])
    nope = refused(lambda: client.submit_order(order(symbol="NOPE")))
    assert nope == said(422, 42210000, 'asset "NOPE" not found')
    status, body = refused(lambda: client.submit_order(order(side="sell", qty=11)))
    assert (status, body["code"], body["available"], body["existing_qty"]) == (
        403,
        40310000,
        "10",
        "10",
    )
    assert body["message"] == "insufficient qty available for order (requested: 11, available: 10)"
    stop = client.submit_order(order("Stop", side="sell", stop_price=round(price / 2, 2)))
    status, body = refused(lambda: client.submit_order(order()))
    assert (status, body["code"], body["existing_order_id"]) == (403, 40310000, str(stop.id))
    assert body["reject_reason"] == "opposite side market/stop order exists"
    unknown = "00000000-0000-0000-0000-000000000000"
    found = refused(lambda: client.get_order_by_id(unknown))
    assert found == said(404, 40410000, f"order not found for {unknown}")
    assert refused(lambda: client.get_order_by_client_id("nobody"))[0] == 404
    nonsense = refused(lambda: client.get("/orders/nonsense"))
    assert nonsense == said(422, 40010001, "order_id is missing")
    assert (
        refused(lambda: client.get_open_position("KO"))[1]["message"] == "position does not exist"
    )
    filled = client.get_order_by_client_id("once")
    late = refused(lambda: client.cancel_order_by_id(filled.id))
    assert late == said(422, 42210000, 'order is already in "filled" state')
    strange = refused(lambda: client.get("/account/activities/FFFFF"))
    assert strange == said(422, 40010001, "invalid activity type: FFFFF")
    short = refused(lambda: client.submit_order(order(symbol="KO", side="sell", qty=0.5)))
    assert short[1]["message"] == "fractional orders cannot be sold short"


def test_opposite_orders_without_a_position_are_refused(client: Any):
    client.submit_order(order("Limit", limit_price=1))
    status, body = refused(lambda: client.submit_order(order(side="sell")))
    assert (status, body["message"]) == (
        403,
        "cannot open a short sell while a long buy order is open",
    )


def test_open_orders_bind_buying_power_until_they_end(client: Any):
    first = client.submit_order(order("Limit", qty=1000, limit_price=50))
    assert client.get_account().buying_power == "150000"
    client.cancel_order_by_id(first.id)
    assert client.get_account().buying_power == "200000"


def test_a_sum_of_money(client: Any):
    given = client.submit_order(order(qty=None, notional=500))
    filled = client.get_order_by_id(given.id)
    assert (filled.qty, filled.notional, filled.status.value) == (None, "500", "filled")
    spent = float(filled.filled_qty) * float(filled.filled_avg_price)
    assert 499.9999 < spent <= 500


def test_shorting_and_covering(client: Any):
    client.submit_order(order(side="sell"))
    (position,) = client.get_all_positions()
    assert (position.qty, position.side.value) == ("-10", "short")
    account = client.get_account()
    assert float(account.cash) > 100_000
    assert float(account.short_market_value) < 0
    assert refused(lambda: client.submit_order(order(qty=11)))[0] == 403
    client.close_position("AAPL")
    assert client.get_all_positions() == []


# ----------------------------------------------------------------------------- time goes by


def test_orders_given_at_night_are_accepted_and_trade_at_the_open():
    with paper_market(EVENING) as market:
        from alpaca.trading.client import TradingClient

        client = TradingClient(KEY, SECRET, url_override=market.sandbox.url)
        assert client.submit_order(order()).status.value == "accepted"
        assert client.submit_order(order("Limit", symbol="KO", limit_price=1)).status
        market.at("2024-03-15T09:30:30-04:00")
        assert [p.symbol for p in client.get_all_positions()] == ["AAPL"]
        (waiting,) = client.get_orders()
        assert (waiting.symbol, waiting.status.value) == ("KO", "new")
        market.at("2024-03-15T16:00:00-04:00")
        assert client.get_orders() == []
        (ended,) = client.get_orders(filtered(status="closed", symbols=["KO"]))
        assert ended.status.value == "expired"


def test_only_orders_for_extended_hours_trade_in_them(market: PaperMarket, client: Any):
    market.at("2024-03-14T17:00:30-04:00")
    price = market.price("AAPL")
    limit = {"limit_price": round(price + 1, 2)}
    client.submit_order(order("Limit", qty=1, **limit))
    client.submit_order(order("Limit", qty=2, extended_hours=True, **limit))
    assert client.get_open_position("AAPL").qty == "2"


def test_an_order_larger_than_what_trades_fills_in_parts(market: PaperMarket, client: Any):
    market.desk.most_shares = 4
    given = client.submit_order(order())
    assert client.get_order_by_id(given.id).status.value == "partially_filled"
    market.pass_time(minutes=5)
    rows = client.get("/account/activities/FILL", {"direction": "asc"})
    assert [(r["qty"], r["cum_qty"], r["leaves_qty"], r["type"]) for r in rows] == [
        ("4", "4", "6", "partial_fill"),
        ("4", "8", "2", "partial_fill"),
        ("2", "10", "0", "fill"),
    ]


def test_a_split_multiplies_shares_and_cancels_old_prices():
    with paper_market("2024-06-07T15:00:30-04:00") as market:
        from alpaca.trading.client import TradingClient

        client = TradingClient(KEY, SECRET, url_override=market.sandbox.url)
        client.submit_order(order(symbol="NVDA"))
        stop = order("Stop", symbol="NVDA", side="sell", stop_price=1, time_in_force="gtc")
        client.submit_order(stop)
        before = client.get_open_position("NVDA")
        market.at("2024-06-10T10:00:00-04:00")
        after = client.get_open_position("NVDA")
        assert (before.qty, after.qty) == ("10", "100")
        assert float(after.avg_entry_price) == pytest.approx(float(before.avg_entry_price) / 10)
        assert client.get_orders() == []
        assert market.desk.contradictions() == []


# -------------------------------------------------------------------------------- brackets


def test_a_bracket_shows_its_legs_as_alpaca_does(market: PaperMarket, client: Any):
    price = market.price("AAPL")
    exits: dict[str, Any] = {
        "order_class": "bracket",
        "take_profit": {"limit_price": round(price * 1.5, 2)},
        "stop_loss": {"stop_price": round(price * 0.5, 2)},
    }
    given = client.submit_order(order("Limit", limit_price=round(price * 0.9, 2), **exits))
    assert [(leg.type.value, leg.status.value) for leg in given.legs] == [
        ("limit", "held"),
        ("stop", "held"),
    ]
    assert [o.id for o in client.get_orders()] == [given.id]
    assert len(client.get_orders(filtered(status="all"))) == 3
    (nested,) = client.get_orders(filtered(status="open", nested=True))
    assert len(nested.legs) == 2
    client.cancel_order_by_id(given.id)
    assert {o.status.value for o in client.get_orders(filtered(status="all"))} == {"canceled"}

    filled = client.submit_order(order(**exits))
    roles = {leg.type.value: leg.status.value for leg in client.get_orders()}
    assert roles == {"limit": "new"}, "the stop-loss is held, and not in the list"
    assert client.get_orders(filtered(nested=True)) == []
    whole = client.get(f"/orders/{filled.id}", {"nested": "true"})
    assert [(leg["status"], leg["group_role"]) for leg in whole["legs"]] == [
        ("new", "take_profit"),
        ("held", "stop_loss"),
    ]
    assert {leg["group_id"] for leg in whole["legs"]} == {whole["group_id"]}
    status, body = refused(lambda: client.submit_order(order(symbol="AAPL", **exits)))
    assert (status, body["message"]) == (422, "bracket orders must be entry orders")


def test_exits_must_lie_to_either_side_of_the_market(market: PaperMarket, client: Any):
    price = market.price("AAPL")
    exits: dict[str, Any] = {
        "take_profit": {"limit_price": round(price + 2, 2)},
        "order_class": "bracket",
    }
    above: dict[str, Any] = {"stop_loss": {"stop_price": round(price + 1, 2)}}
    status, body = refused(lambda: client.submit_order(order(**exits, **above)))
    assert status == 422
    assert body["message"] == "stop_loss.stop_price must be <= base_price - 0.01"
    assert float(body["base_price"]) == price
    low: dict[str, Any] = {
        "take_profit": {"limit_price": round(price - 1, 2)},
        "order_class": "bracket",
    }
    below: dict[str, Any] = {"stop_loss": {"stop_price": round(price - 2, 2)}}
    message = refused(lambda: client.submit_order(order(**low, **below)))[1]["message"]
    assert message == "take_profit.limit_price must be >= base_price + 0.01"


def test_where_both_exits_could_have_filled_it_was_the_loss(market: PaperMarket, client: Any):
    """The first minute to come that trades at both prices: nobody knows which came first."""
    tape, now = market.desk.tape, market.now
    minutes = list(tape.minutes("AAPL", Span(now - 60_000_000, now + 3_000_000_000)))
    _, wide = next(
        (a, b)
        for a, b in pairwise(minutes)
        if a.label >= now - 30_000_000
        and b.label == a.label + 60_000_000
        and b.low < min(a.close, b.open) - Decimal("0.02")
        and b.high > max(a.close, b.open) + Decimal("0.02")
    )
    market.clock.set(from_micros(wide.label))
    exits: dict[str, Any] = {
        "order_class": "bracket",
        "take_profit": {"limit_price": float(wide.high)},
        "stop_loss": {"stop_price": float(wide.low)},
    }
    client.submit_order(order(**exits))
    market.clock.set(from_micros(wide.label + 120_000_000))
    done = {o.type.value: o.status.value for o in client.get_orders(filtered(status="closed"))}
    assert done == {"market": "filled", "stop": "filled", "limit": "canceled"}
    assert market.desk.contradictions() == []


def test_replacing_an_order_puts_another_in_its_place(market: PaperMarket, client: Any):
    from alpaca.trading.requests import ReplaceOrderRequest

    old = client.submit_order(order("Limit", limit_price=10))
    new = client.replace_order_by_id(old.id, ReplaceOrderRequest(limit_price=11, qty=5))
    assert (new.replaces, new.limit_price, new.qty, new.status.value) == (old.id, "11", "5", "new")
    gone = client.get_order_by_id(old.id)
    assert (gone.status.value, gone.replaced_by) == ("replaced", new.id)
    again = refused(lambda: client.replace_order_by_id(old.id, ReplaceOrderRequest(limit_price=9)))
    assert again[0] == 422


# ----------------------------------------------------------------------------------- lists


def test_lists_are_filtered_and_paged(market: PaperMarket, client: Any):
    ids = []
    for n in range(6):
        symbol = "AAPL" if n % 2 else "KO"
        ids.append(client.submit_order(order("Limit", symbol=symbol, limit_price=1 + n / 100)).id)
        market.pass_time(seconds=1)
    assert [o.id for o in client.get_orders()] == ids[::-1]
    assert [o.id for o in client.get_orders(filtered(direction="asc", limit=2))] == ids[:2]
    assert [o.id for o in client.get_orders(filtered(symbols=["KO"], direction="asc"))] == ids[::2]
    third = client.get_order_by_id(ids[2]).submitted_at
    found = client.get_orders(filtered(after=third, direction="asc"))
    assert [o.id for o in found] == ids[3:]
    assert [o.id for o in client.get_orders(filtered(until=third, direction="asc"))] == ids[:2]
    rest = client.get("/orders", {"after_order_id": str(ids[3]), "direction": "asc"})
    assert [row["id"] for row in rest] == [str(i) for i in ids[4:]]
    cancelled = client.cancel_orders()
    assert {row.status for row in cancelled} == {200}
    assert client.get_orders() == []


def test_positions_are_closed_in_part_and_all_at_once(client: Any):
    from alpaca.trading.requests import ClosePositionRequest

    client.submit_order(order())
    client.submit_order(order(symbol="KO"))
    client.close_position("AAPL", ClosePositionRequest(percentage="30"))
    assert client.get_open_position("AAPL").qty == "7"
    client.close_position("AAPL", ClosePositionRequest(qty="2"))
    assert client.get_open_position("AAPL").qty == "5"
    client.submit_order(order("Stop", symbol="KO", side="sell", stop_price=1))
    rows = {row.symbol: row.status for row in client.close_all_positions()}
    assert rows == {"AAPL": 200, "KO": 403}
    client.close_all_positions(cancel_orders=True)
    assert client.get_all_positions() == []


def test_every_key_has_an_account_of_its_own(market: PaperMarket, client: Any):
    from alpaca.trading.client import TradingClient

    other = TradingClient("PK-OTHER", SECRET, url_override=market.sandbox.url)
    client.submit_order(order(client_order_id="same"))
    other.submit_order(order(client_order_id="same", qty=3))
    assert (client.get_open_position("AAPL").qty, other.get_open_position("AAPL").qty) == (
        "10",
        "3",
    )
    assert market.sandbox.trading.desk("PK-OTHER").counts["orders"] == 1


def test_faults_and_counts_cover_the_trading_paths(market: PaperMarket, client: Any):
    market.sandbox.faults.add("status", match="POST /v2/orders", status=503)
    assert client.get_orders() == []
    assert refused(lambda: client.submit_order(order()))[0] == 503
    assert market.desk.counts["orders"] == 0
    assert market.asked("POST", "/v2/orders") == 1
    assert market.asked("GET", "/v2/orders") == 1


def test_an_account_is_looked_at_and_set_from_another_process(market: PaperMarket, client: Any):
    address = f"{market.sandbox.url}/_sandbox/trading?key={KEY}"
    told = requests.post(address, json={"most_shares": "4", "ids_checked_last": True}, timeout=5)
    assert told.json()["most_shares"] == "4"
    client.submit_order(order())
    market.pass_time(minutes=1)
    seen = requests.get(address, timeout=5).json()
    assert seen["counts"] == {"orders": 1, "fills": 2}
    assert (seen["positions"], seen["contradictions"]) == ({"AAPL": "8"}, [])
    assert seen["ids_checked_last"] is True
    assert requests.post(address, json={"most_shares": "few"}, timeout=5).status_code == 400
    assert requests.post(address, data="[]", timeout=5).status_code == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\xfe"])
def test_a_body_that_is_no_order_is_refused(market: PaperMarket, body: bytes):
    headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
    answer = requests.post(market.sandbox.url + "/v2/orders", data=body, headers=headers, timeout=5)
    assert answer.status_code == 400
    assert "message" in answer.json()
