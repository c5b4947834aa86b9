"""The sandbox's trading desk, without HTTP: prices of fills, and what is refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from marketdata.sandbox.answers import ApiError
from marketdata.sandbox.trading import matching
from marketdata.sandbox.trading.book import PaperOrder, PaperPosition, cents, fill_id, number
from marketdata.sandbox.trading.tickets import read_ticket
from tests.venues import micros


def order(side: str = "buy", limit: str | None = None, stop: str | None = None) -> PaperOrder:
    kinds = {(0, 0): "market", (1, 0): "limit", (0, 1): "stop", (1, 1): "stop_limit"}
    return PaperOrder(
        id="o",
        client_order_id="c",
        symbol="AAPL",
        side=side,  # type: ignore[arg-type]
        type=kinds[limit is not None, stop is not None],  # type: ignore[arg-type]
        time_in_force="gtc",
        created=0,
        expires=1,
        qty=Decimal(10),
        limit_price=None if limit is None else Decimal(limit),
        stop_price=None if stop is None else Decimal(stop),
    )


AT_A_PRICE = [
    # side, limit, stop, price, filled at
    ("buy", None, None, "100", "100"),
    ("sell", None, None, "100", "100"),
    ("buy", "101", None, "100", "100"),
    ("buy", "100", None, "100", "100"),
    ("buy", "99.99", None, "100", None),
    ("sell", "99", None, "100", "100"),
    ("sell", "100.01", None, "100", None),
    ("buy", None, "99", "100", "100"),
    ("buy", None, "100.01", "100", None),
    ("sell", None, "101", "100", "100"),
    ("sell", None, "99.99", "100", None),
    ("sell", None, "101", "1", "1"),
    # a buy stop has a lid, 2.5 % above its stop, 4 % below 50 dollars
    ("buy", None, "100", "102.5", "102.5"),
    ("buy", None, "100", "102.51", None),
    ("buy", None, "40", "41.6", "41.6"),
    ("buy", None, "40", "41.61", None),
    ("buy", "105", "99", "100", "100"),
    ("buy", "99.5", "99", "100", None),
    ("buy", "105", "101", "100", None),
    ("sell", "95", "101", "100", "100"),
    ("sell", "100.5", "101", "100", None),
]


@pytest.mark.parametrize(("side", "limit", "stop", "price", "filled"), AT_A_PRICE)
def test_at_a_price(side: str, limit: str | None, stop: str | None, price: str, filled: str | None):
    found = matching.at_price(order(side, limit, stop), Decimal(price))
    assert found == (None if filled is None else Decimal(filled))


INSIDE = [
    # side, limit, stop, high, low, filled at, triggered
    ("buy", None, None, "102", "98", None, False),
    ("buy", "98", None, "102", "98", "98", False),
    ("buy", "97.99", None, "102", "98", None, False),
    ("sell", "102", None, "102", "98", "102", False),
    ("sell", "102.01", None, "102", "98", None, False),
    ("buy", None, "102", "102", "98", "102", True),
    ("buy", None, "102.01", "102", "98", None, False),
    ("sell", None, "98", "102", "98", "98", True),
    ("sell", None, "97.99", "102", "98", None, False),
    ("buy", "103", "101", "102", "98", "101", True),
    ("buy", "100", "101", "102", "98", None, True),
    ("sell", "97", "99", "102", "98", "99", True),
    ("sell", "100", "99", "102", "98", None, True),
]


@pytest.mark.parametrize(("side", "limit", "stop", "high", "low", "filled", "hit"), INSIDE)
def test_inside_a_minute(
    side: str,
    limit: str | None,
    stop: str | None,
    high: str,
    low: str,
    filled: str | None,
    hit: bool,
):
    given = order(side, limit, stop)
    found = matching.inside(given, Decimal(high), Decimal(low))
    assert found == (None if filled is None else Decimal(filled))
    assert given.triggered is hit


def test_a_stop_limit_that_was_triggered_is_a_limit():
    given = order("buy", "100", "101")
    assert matching.inside(given, Decimal(102), Decimal(98)) is None
    assert matching.at_price(given, Decimal("100.5")) is None
    assert matching.inside(given, Decimal("100.4"), Decimal("99.9")) == Decimal(100)


def test_a_position_keeps_its_entry_price_when_it_shrinks():
    position = PaperPosition("AAPL")
    for shares, price, held, entry in (
        (10, 100, 10, 100),
        (10, 110, 20, 105),
        (-5, 200, 15, 105),
        (-25, 90, -10, 90),
        (-10, 80, -20, 85),
        (20, 50, 0, 85),
    ):
        position.add(Decimal(shares), Decimal(price))
        assert position.qty == held
        assert position.entry == entry


def test_numbers_are_written_as_alpaca_writes_them():
    texts = {"1.50": "1.5", "100": "100", "0": "0", "-0": "0", "1E+2": "100", "1E-9": "0.000000001"}
    assert {text: number(Decimal(text)) for text in texts} == texts
    assert number(None) is None
    assert cents(Decimal("1.005")) == "1.01"


def test_an_activitys_id_begins_with_new_yorks_time():
    """As a recorded one does: 15:10:18.097 UTC in October."""
    assert fill_id(micros("2026-10-08T15:10:18.097+00:00"), "x").startswith("20261008111018097::")


# ------------------------------------------------------------------------------------ refusals

GOOD = {"symbol": "AAPL", "qty": "1", "side": "buy", "type": "market", "time_in_force": "day"}
LIMIT = {**GOOD, "type": "limit", "limit_price": "10"}
EXITS = {"take_profit": {"limit_price": "12"}, "stop_loss": {"stop_price": "8"}}
REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"qty": None}, 40010001, "qty or notional is required"),
    ({"notional": "5"}, 40010001, "only one of qty or notional is accepted"),
    ({"qty": "0"}, 40010001, "qty must be > 0"),
    ({"qty": "-1"}, 40010001, "qty must be > 0"),
    ({"qty": "many"}, 40010001, "invalid qty"),
    ({"qty": "NaN"}, 40010001, "invalid qty"),
    ({"side": "hold"}, 40010001, "invalid side"),
    ({"type": "iceberg"}, 40010001, "invalid order type"),
    ({"time_in_force": "ever"}, 40010001, "invalid time_in_force"),
    ({"type": "limit"}, 40010001, "limit orders require a limit price"),
    ({"type": "stop"}, 40010001, "stop orders require a stop price"),
    ({"limit_price": "5"}, 40010001, "market orders require no stop or limit price"),
    ({"client_order_id": "x" * 129}, 40010001, "client_order_id must be no more than 128 char"),
    ({"qty": "0.5", "time_in_force": "gtc"}, 42210000, "fractional orders must be DAY orders"),
    ({"qty": "0.5", "order_class": "bracket", **EXITS}, 42210000, "must be simple orders"),
    ({"qty": "0.0000000001"}, 42210000, "qty increment"),
    ({"extended_hours": True}, 42210000, "extended hours order must be DAY or GTC limit orders"),
    (
        {"type": "limit", "limit_price": "290.123"},
        42210000,
        "invalid limit_price 290.123. sub-penny",
    ),
    ({"type": "stop", "stop_price": "290.123"}, 42210000, "invalid stop_price 290.123. sub-penny"),
    ({"type": "limit", "limit_price": "0.12345"}, 42210000, "sub-penny"),
    ({"order_class": "bracket"}, 42210000, "bracket orders require take_profit.limit_price"),
    ({"order_class": "oto"}, 42210000, "oto orders require take_profit or stop_loss"),
    ({"order_class": "oto", **EXITS}, 42210000, "oto orders require only one of"),
    (
        {"type": "stop", "stop_price": "9", "order_class": "oco", **EXITS},
        42210000,
        "oco orders must be limit orders",
    ),
    ({"order_class": "pair"}, 40010001, "invalid order_class"),
    (
        {
            "order_class": "bracket",
            "take_profit": {"limit_price": 7},
            "stop_loss": {"stop_price": 8},
        },
        42210000,
        "take_profit.limit_price must be > stop_loss.stop_price",
    ),
]


@pytest.mark.parametrize(("changes", "code", "words"), REFUSED)
def test_what_cannot_be_meant_is_refused_in_alpacas_words(
    changes: dict[str, Any], code: int, words: str
):
    with pytest.raises(ApiError) as caught:
        read_ticket({**GOOD, **changes})
    assert (caught.value.status, caught.value.code) == (422, code)
    assert words in caught.value.message


def test_what_can_be_meant_is_read():
    assert read_ticket(GOOD).qty == 1
    assert read_ticket({**GOOD, "qty": None, "notional": 5.5}).notional == Decimal("5.5")
    assert read_ticket({**LIMIT, "limit_price": 0.1234}).limit_price == Decimal("0.1234")
    assert read_ticket({**LIMIT, "extended_hours": True}).extended_hours
    oco = {**GOOD, "type": "limit", "side": "sell", "order_class": "oco", **EXITS}
    assert read_ticket(oco).limit_price == 12
