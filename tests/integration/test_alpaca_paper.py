"""Alpaca's paper venue over HTTP: what is special to it beyond the contract of venues."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

import marketdata as md
from algorithms.errors import OrderError, RealMoneyError, VenueError
from algorithms.orders import Order, OrderState
from algorithms.venues.alpaca_paper import AlpacaPaper
from algorithms.venues.reconciling import Remedy, read_venue, reconcile
from tests.venues import EVENING, KEY, SECRET, PaperMarket, bracket, paper_market


@pytest.fixture
def market() -> Iterator[PaperMarket]:
    with paper_market() as made:
        yield made


def refusal(venue: AlpacaPaper, order: Order, *children: Order) -> VenueError:
    with pytest.raises(VenueError) as caught:
        venue.submit(order, children)
    return caught.value


# ------------------------------------------------------------------------------- real money


@contextmanager
def listening(status: int, headers: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything alike; yields its URL and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int):
    with (
        listening(200, {}) as (elsewhere, asked_there),
        listening(status, {"Location": elsewhere + "/v2/orders"}) as (here, asked),
    ):
        venue = AlpacaPaper(KEY, SECRET, url=here, timeout=5)
        for call in (lambda: venue.submit(Order("a", "AAPL", 1)), venue.account):
            with pytest.raises(VenueError, match="redirects are refused") as caught:
                call()
            assert not caught.value.transient
        venue.close()
        assert len(asked) >= 2
        assert asked_there == []


def test_a_live_address_or_key_is_refused_before_anything_is_sent(market: PaperMarket):
    with pytest.raises(RealMoneyError):
        AlpacaPaper(KEY, SECRET, url="https://api.alpaca.markets")
    with pytest.raises(RealMoneyError) as caught:
        AlpacaPaper("AK0123456789", SECRET, url=market.sandbox.url)
    assert "AK0123456789" not in str(caught.value)
    assert market.sandbox.requests.count() == 0


def test_keys_are_in_no_error_and_no_repr(market: PaperMarket):
    market.sandbox.faults.add("status", status=500, body=f'{{"message":"bad {SECRET} {KEY}"}}')
    with pytest.raises(VenueError) as caught:
        market.venue.account()
    shown = str(caught.value) + repr(caught.value.to_record()) + repr(market.venue)
    assert SECRET not in shown
    assert KEY not in shown
    context: BaseException | None = caught.value
    while context is not None:
        assert not hasattr(context, "request")
        context = context.__cause__ or context.__context__


def test_wrong_keys_say_so(market: PaperMarket):
    market.sandbox.guard.api_keys = frozenset({"PK-ANOTHER"})
    with pytest.raises(VenueError, match="401") as caught:
        market.venue.account()
    assert not caught.value.transient
    assert "APCA_API_KEY_ID" in str(caught.value)


def test_settings_name_the_venue(market: PaperMarket):
    keys = {"alpaca_key_id": "PK-0123456789", "alpaca_secret_key": "s3cret"}
    here = md.Settings.load(alpaca_trading_url=market.sandbox.url, **keys)
    venue = AlpacaPaper.configured(here, timeout=5.0)
    venue.submit(Order("a", "AAPL", 1))
    assert venue.positions() == {"AAPL": 1.0}
    assert list(market.sandbox.trading._desks) == ["sandbox"], "real keys are not sent to it"
    assert (
        AlpacaPaper.configured(md.Settings.load(**keys)).url == "https://paper-api.alpaca.markets"
    )
    live = md.Settings.load(alpaca_trading_url="https://api.alpaca.markets", **keys)
    with pytest.raises(RealMoneyError):
        AlpacaPaper.configured(live)
    with pytest.raises(RealMoneyError):
        AlpacaPaper.configured(md.Settings.load(**{**keys, "alpaca_key_id": "AK-0123456789"}))


def test_without_keys_settings_name_no_venue(monkeypatch: pytest.MonkeyPatch):
    for name in ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY", "ALPACA_API_KEY", "ALPACA_API_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(md.ConfigurationError, match="keys of a paper account"):
        AlpacaPaper.configured(md.Settings.load())


# ------------------------------------------------------------------------------------ orders


def test_prices_are_put_on_the_grid_and_never_worse(market: PaperMarket):
    venue = market.venue
    venue.submit(Order("buy", "AAPL", 1, limit=50.019))
    assert venue.find("buy").limit == 50.01
    venue.cancel("buy")
    venue.submit(Order("own", "AAPL", 2))
    venue.submit(Order("sell", "AAPL", -1, limit=150.011))
    venue.submit(Order("stop", "AAPL", -1, stop=60.004999))
    assert venue.find("sell").limit == 150.02
    assert venue.find("stop").stop == 60.0
    assert venue.submit(Order("sell", "AAPL", -1, limit=150.011)) == {"sell"}


def test_a_fractional_market_order_is_one_for_the_day(market: PaperMarket):
    market.venue.submit(Order("a", "AAPL", 0.125))
    assert market.venue.positions() == {"AAPL": 0.125}
    assert market.desk.by_client_id["a"].time_in_force == "day"
    assert market.venue.submit(Order("a", "AAPL", 0.125)) == {"a"}
    error = refusal(market.venue, Order("b", "AAPL", 0.5, limit=20.0))
    assert "fractional orders must be DAY orders" in error.message


def test_an_id_too_long_is_not_sent(market: PaperMarket):
    with pytest.raises(OrderError, match="129 characters"):
        market.venue.submit(Order("x" * 129, "AAPL", 1))
    market.venue.submit(Order("x" * 128, "AAPL", 1))
    assert market.asked("POST", "/v2/orders") == 1


def test_alpacas_refusals_come_through_in_its_words(market: PaperMarket):
    venue = market.venue
    price = market.price("AAPL")
    assert 'asset "NOSUCH" not found' in refusal(venue, Order("a", "NOSUCH", 1)).message
    error = refusal(venue, Order("b", "AAPL", 1e6))
    assert "insufficient buying power" in error.message
    assert error.facts["code"] == 40310000
    venue.submit(Order("own", "AAPL", 10))
    venue.submit(Order("stop", "AAPL", -10, stop=round(price / 2, 2)))
    error = refusal(venue, Order("c", "AAPL", -10))
    assert "insufficient qty available" in error.message
    error = refusal(venue, Order("d", "AAPL", 10))
    assert "opposite side market/stop order exists" in error.message
    error = refusal(venue, Order("e", "AAPL", -20))
    assert "requested: 20, available: 0" in error.message


def test_orders_given_at_night_wait_for_the_open():
    with paper_market(EVENING) as market:
        market.venue.submit(Order("a", "AAPL", 10))
        assert market.venue.find("a").reason == "accepted"
        assert market.venue.fills_since(0) == []
        market.at("2024-03-15T09:29:59-04:00")
        assert market.venue.positions() == {}
        market.at("2024-03-15T09:30:00-04:00")
        (fill,) = market.venue.fills_since(0)
        assert fill.time == market.now
        opening = market.price("AAPL")
        assert fill.price == opening


def test_the_list_of_orders_is_read_to_its_end(market: PaperMarket):
    for n in range(7):
        market.venue.submit(Order(f"a-{n}", "AAPL", 1, limit=1.0 + n / 100))
    module = "algorithms.venues.alpaca_reading"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{module}._PAGE", 3)
        assert [o.id for o in market.venue.open_orders()] == [f"a-{n}" for n in range(7)]


def test_fills_are_read_over_pages_short_and_full(market: PaperMarket):
    for n in range(25):
        market.venue.submit(Order(f"a-{n}", "AAPL", 1))
        market.pass_time(seconds=1)
    whole = market.venue.fills_since(0)
    assert [f.order_id for f in whole] == [f"a-{n}" for n in range(25)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("algorithms.venues.alpaca_reading._ACTIVITY_PAGE", 4)
        assert market.venue.fills_since(0) == whole
    short = market.sandbox.faults.add("short_page", match="activities", times=None, limit=2)
    assert market.venue.fills_since(0) == whole
    assert short.fired > 12


def test_fills_of_others_keep_their_own_id(market: PaperMarket):
    ticket = {"symbol": "AAPL", "qty": 3, "side": "buy", "type": "market", "time_in_force": "day"}
    market.venue._requests.call(lambda client: client.post("/orders", ticket))
    (fill,) = market.venue.fills_since(0)
    assert fill.order_id == next(iter(market.desk.orders.values())).client_order_id


# ------------------------------------------------------------------------------ reconciliation


def test_what_happened_while_we_were_away_is_found(market: PaperMarket):
    venue = market.venue
    price = market.price("AAPL")
    entry = Order("x-e", "AAPL", 10)
    stop_loss, take_profit = bracket(
        entry, take_profit=round(price * 1.5, 2), stop_loss=round(price - 0.5, 2)
    )
    venue.submit(entry, [stop_loss, take_profit])
    entry.filled, entry.state = 10.0, OrderState.FILLED
    stop_loss.state = take_profit.state = OrderState.OPEN
    lost = Order("x-lost", "KO", 5, limit=1.0)
    given = Order("x-given", "KO", 6, limit=1.0)
    stray = Order("y-stray", "KO", 7, limit=1.0)
    venue.submit(given)
    venue.submit(stray)
    venue.cancel("x-given")
    booked = {f.id for f in venue.fills_since(0)}
    market.pass_time(days=60)

    orders = [entry, stop_loss, take_profit, lost, given]
    reading = read_venue(market.restarted(), orders, 0)
    found = reconcile(orders, {"AAPL": 10.0}, reading, booked=booked)
    assert [(d.remedy, d.subject) for d in found.differences] == [
        (Remedy.BOOK, "x-e.1"),
        (Remedy.MARK, "x-e.2"),
        (Remedy.MARK, "x-given"),
        (Remedy.RESUBMIT, "x-lost"),
        (Remedy.REPORT, "y-stray"),
    ]
    (book,) = found.of(Remedy.BOOK)
    assert [f.quantity for f in book.fills] == [-10.0]
    mine = reconcile(orders, {"AAPL": 10.0}, reading, booked=booked, ours=lambda i: i[0] == "y")
    assert [d.subject for d in mine.of(Remedy.ADOPT)] == ["y-stray"]
    assert not mine.of(Remedy.REPORT)
    assert "book: x-e.1: -10 shares have filled there, 0 are booked here" in str(found)


def test_a_market_that_moves_while_it_is_read_is_read_again(market: PaperMarket):
    market.desk.most_shares = 1
    market.venue.submit(Order("a", "AAPL", 500))
    reading = read_venue(market.venue, [Order("a", "AAPL", 500)], 0)
    assert reading.steady

    class Restless:
        def __getattr__(self, name: str) -> Any:
            market.pass_time(minutes=1)
            return getattr(market.venue, name)

    assert not read_venue(Restless(), [Order("a", "AAPL", 500)], 0).steady
