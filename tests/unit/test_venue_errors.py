"""The seam where errors of the network, of alpaca-py and of its answers end."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests import exceptions
from urllib3.exceptions import ReadTimeoutError

from algorithms.errors import VenueError
from algorithms.orders import Order, OrderState, OrderType, TimeInForce
from algorithms.venues import alpaca_wire as wire
from algorithms.venues.alpaca_groups import tied_fields
from algorithms.venues.alpaca_http import error_of_status, retry_after, translate
from tests.venues import bracket

EVERY = sorted(
    (
        kind
        for kind in vars(exceptions).values()
        if isinstance(kind, type) and issubclass(kind, exceptions.RequestException)
    ),
    key=lambda kind: kind.__name__,
)
LASTING = {
    "RequestException", "HTTPError", "TooManyRedirects", "MissingSchema", "InvalidSchema",
    "InvalidURL", "InvalidProxyURL", "InvalidHeader", "StreamConsumedError", "UnrewindableBodyError",
    "URLRequired",
}  # fmt: skip


def made(kind: type[exceptions.RequestException]) -> exceptions.RequestException:
    if kind is exceptions.JSONDecodeError:
        return kind("no JSON", "s3cret", 0)
    return kind("s3cret")


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_of_requests_has_ours(kind: type[exceptions.RequestException]):
    ours = translate(made(kind))
    assert type(ours) is VenueError
    assert ours.transient == (kind.__name__ not in LASTING)
    assert ours.facts["cause"] == kind.__name__
    assert ours.cure
    assert "s3cret" not in str(ours) + repr(ours.to_record())
    assert ours.__cause__ is None
    assert str(pickle.loads(pickle.dumps(ours))) == str(ours)


def test_the_table_of_lasting_errors_names_real_ones():
    assert {kind.__name__ for kind in EVERY} >= LASTING


def test_a_timeout_in_the_middle_of_a_body_is_transient():
    inner = ReadTimeoutError(None, "/v2", "Read timed out.")  # type: ignore[arg-type]
    ours = translate(exceptions.ConnectionError(inner))
    assert (ours.transient, "did not end" in ours.message) == (True, True)


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_has_an_error(status: int):
    ours = error_of_status(status, "words", 40010001, None)
    assert ours.facts["status"] == status
    assert ours.cure
    assert ours.transient == (status < 300 or status >= 500 or status in (408, 425, 429))
    refused = 400 <= status < 500 and status not in (401, 408, 425, 429)
    assert ours.facts.get("refused", False) == refused


def test_how_long_to_wait():
    date = {"Date": "Thu, 14 Mar 2024 19:00:30 GMT"}
    assert retry_after({}) is None
    assert retry_after({"Retry-After": "7"}) == 7.0
    assert retry_after({**date, "X-RateLimit-Reset": "1710442837"}) == 7.0
    assert retry_after({**date, "X-RateLimit-Reset": "1710442837", "Retry-After": "9"}) == 9.0
    assert retry_after({**date, "X-RateLimit-Reset": "1"}) == 0.0
    for bad in ("soon", "nan", "inf", ""):
        assert retry_after({"Retry-After": bad}) is None
        assert retry_after({**date, "X-RateLimit-Reset": bad}) is None


# ---------------------------------------------------------------------------------- reading

ORDER = {
    "id": "904837e3-3b76-47ec-b432-046db621571b",
    "client_order_id": "mine",
    "submitted_at": "2021-03-16T18:38:01.937734123Z",
    "symbol": "AAPL",
    "qty": "5",
    "filled_qty": "0",
    "filled_avg_price": None,
    "type": "market",
    "side": "buy",
    "time_in_force": "day",
    "limit_price": None,
    "stop_price": None,
    "status": "accepted",
}


def test_an_order_is_read():
    order = wire.order_of(ORDER, ident="mine")
    assert (order.quantity, order.filled, order.type) == (5.0, 0.0, OrderType.MARKET)
    assert order.submitted == 1615919881937734
    assert math.isnan(order.filled_price)
    assert order.time_in_force is TimeInForce.DAY


def test_an_order_of_a_sum_of_money_has_no_number_of_shares_until_it_fills():
    notional = {**ORDER, "qty": None, "notional": "5"}
    assert math.isnan(wire.order_of(notional, ident="a").quantity)
    done = {**notional, "status": "filled", "filled_qty": "0.057436865", "filled_avg_price": "87"}
    assert wire.order_of(done, ident="a").quantity == 0.057436865


@pytest.mark.filterwarnings("ignore:websockets.legacy")
def test_every_status_of_alpaca_has_a_state():
    from alpaca.trading.enums import OrderStatus

    assert {s.value for s in OrderStatus} <= set(wire.STATES)
    for status, state in wire.STATES.items():
        assert wire.state_of({**ORDER, "status": status}) is state
    assert wire.state_of({**ORDER, "status": "a_new_one"}) is OrderState.OPEN
    done = {**ORDER, "status": "calculated", "filled_qty": "5"}
    assert wire.state_of(done) is OrderState.FILLED


@pytest.mark.parametrize(
    "bad", ["nan", "inf", "-inf", "1e999", "", "1,5", "0x1", " 1", True, None, []]
)
def test_what_is_no_number_is_not_guessed(bad: object):
    with pytest.raises(VenueError) as caught:
        wire.number_of({"cash": bad}, "cash")
    assert caught.value.transient


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=9, min_value=-(10**9), max_value=10**9
    )
)
def test_numbers_are_read_to_the_nearest_float(value):
    assert wire.number_of({"x": format(value, "f")}, "x") == float(value)


def test_accounts_and_positions_are_read():
    account = {"cash": "122086.5", "equity": "123346.11", "buying_power": "245432.61"}
    assert wire.account_of(account).equity == 123346.11
    rows = [
        {"symbol": "AAPL", "qty": "5", "side": "long"},
        {"symbol": "KO", "qty": "-3.5", "side": "short"},
        {"symbol": "GE", "qty": "2", "side": "short"},
        {"symbol": "T", "qty": "0", "side": "long"},
    ]
    assert wire.positions_of(rows) == {"AAPL": 5.0, "KO": -3.5, "GE": -2.0}
    wrong: list[Any] = [None, {}, [5], [{"symbol": "X", "qty": "1", "side": "flat"}]]
    for bad in wrong:
        with pytest.raises(VenueError):
            wire.positions_of(bad)


def test_a_fill_is_read_as_the_documents_show_it():
    activity = {
        "activity_type": "FILL",
        "cum_qty": "1",
        "id": "20190524113406977::8efc7b9a-8b2b-4000-9955-d36e7db0df74",
        "leaves_qty": "0",
        "price": "1.63",
        "qty": "1",
        "side": "buy",
        "symbol": "LPCN",
        "transaction_time": "2019-05-24T15:34:06.977Z",
        "order_id": "904837e3-3b76-47ec-b432-046db621571b",
        "type": "fill",
    }
    fill = wire.fill_of(activity, "mine")
    assert (fill.time, fill.quantity, fill.price) == (1558712046977000, 1.0, 1.63)
    assert wire.fill_of({**activity, "side": "sell_short"}, "mine").quantity == -1.0
    for name in ("id", "price", "qty", "side", "symbol", "transaction_time"):
        with pytest.raises(VenueError):
            wire.fill_of({**activity, name: None}, "mine")


# ---------------------------------------------------------------------------------- writing


@given(st.floats(0.0002, 1e6), st.booleans())
def test_limits_are_never_worse_than_asked(price: float, buys: bool):
    put = wire.limit_on_grid(price, buys=buys)
    step = 0.01 if price >= 1 else 0.0001
    assert abs(put - price) <= step * 1.000001
    assert put <= price * (1 + 1e-7) if buys else put >= price * (1 - 1e-7)
    assert wire.limit_on_grid(put, buys=buys) == put


def test_what_floats_add_to_a_price_is_no_part_of_it():
    assert wire.limit_on_grid(0.1 + 0.2, buys=False) == 0.3
    assert wire.limit_on_grid(100.09999999999999, buys=True) == 100.1
    assert wire.limit_on_grid(1.1 * 3, buys=False) == 3.3
    assert wire.stop_on_grid(60.006) == 60.01


def test_which_orders_go_together():
    entry = Order("e", "AAPL", 10)
    loss, profit = bracket(entry, take_profit=12.0, stop_loss=8.0)
    both = tied_fields(entry, [loss, profit])
    assert both == {
        "order_class": "bracket",
        "time_in_force": "gtc",
        "take_profit": {"limit_price": 12.0},
        "stop_loss": {"stop_price": 8.0},
    }
    assert tied_fields(entry, [profit])["order_class"] == "oto"
    assert tied_fields(profit, [loss])["order_class"] == "oco"
    assert tied_fields(entry, []) == {}
    assert tied_fields(loss, [profit]) == {}
    assert tied_fields(entry, [profit, profit]) == {}
    for name, value in (("quantity", -9), ("time_in_force", TimeInForce.DAY)):
        other = bracket(entry, stop_loss=8.0)[0]
        setattr(other, name, value)
        assert tied_fields(entry, [other, profit]) == {}
    assert tied_fields(Order("e", "AAPL", 10, filled=5.0), [loss, profit]) == {}
