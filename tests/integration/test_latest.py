"""The newest trade, quote or bar: one request for all who wait, and its error for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

import marketdata as md
from marketdata import latest
from marketdata.latest import LatestReader, Quote
from marketdata.sandbox.faults import Fault
from tests.stack import Stack, runtime

TRADES = "/v2/stocks/trades/latest"


def together(count: int, ask: Callable[[], object]) -> list[object]:
    """Return what each of `count` threads got, an error included."""
    barrier = threading.Barrier(count)
    found: list[object] = []

    def one() -> None:
        barrier.wait()
        try:
            found.append(ask())
        except md.MarketDataError as error:
            found.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == count
    return found


def test_50_callers_make_one_request(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest, "MEMORY", 60.0)  # no thread comes too late to be one of the 50
    found = together(50, lambda: stack.client.get_latest_trade("AAPL"))
    assert {type(f) for f in found} == {md.Trade}
    assert stack.calls(TRADES) == 1


def test_50_callers_get_the_one_error(stack: Stack) -> None:
    stack.client.get_latest_trade("MSFT")  # everything runs
    stack.forget_calls()
    stack.sandbox.faults.add(Fault("status", match=TRADES, status=500, times=None))
    found = together(50, lambda: stack.client.get_latest_trade("AAPL"))
    assert {type(f) for f in found} == {md.BrokerUnavailableError}
    assert len({id(f) for f in found}) == 50, "each thread raises an error of its own"
    assert stack.calls(TRADES) <= 6, "one caller's attempts, not fifty callers'"


def test_who_waits_too_long_is_told_so_and_gets_no_empty_answer(stack: Stack) -> None:
    stack.client.get_latest_trade("MSFT")  # everything runs
    stack.forget_calls()
    held = stack.sandbox.faults.add(Fault("hold", match=TRADES))
    first = threading.Thread(target=lambda: stack.client.get_latest_trade("AAPL"))
    first.start()
    assert held.wait_fired()
    for symbols in ("AAPL", ["AAPL", "MSFT"]):
        with pytest.raises(md.BrokerTimeoutError, match="longer timeout") as caught:
            stack.client.get_latest_trade(symbols, timeout=0.2)
        assert caught.value.transient
    held.release()
    first.join(30)
    assert stack.client.get_latest_trade("AAPL").price > 0


def test_an_impatient_leader_does_not_fail_the_others(stack: Stack) -> None:
    stack.client.get_latest_trade("MSFT")
    held = stack.sandbox.faults.add(Fault("hold", match=TRADES))
    errors: list[md.MarketDataError] = []

    def hurry() -> None:
        try:
            stack.client.get_latest_trade("AAPL", timeout=0.5)
        except md.MarketDataError as error:
            errors.append(error)

    first = threading.Thread(target=hurry)
    first.start()
    assert held.wait_fired()
    assert stack.client.get_latest_trade("AAPL", timeout=20).price > 0
    first.join(30)
    held.release()
    assert [type(e) for e in errors] == [md.BrokerTimeoutError]


def test_a_failed_request_is_not_remembered(stack: Stack) -> None:
    stack.sandbox.faults.add(Fault("status", match=TRADES, status=401, times=1))
    with pytest.raises(md.AuthenticationError):
        stack.client.get_latest_trade("AAPL")
    assert stack.client.get_latest_trade("AAPL").price > 0


def test_what_the_broker_does_not_know_is_absent(stack: Stack) -> None:
    frame = stack.client.get_latest_trade(["AAPL", "NOSUCH"])
    assert list(frame.index) == ["AAPL", "NOSUCH"]
    assert list(frame["price"].isna()) == [False, True]
    with pytest.raises(md.DataUnavailableError, match="no latest trade of NOSUCH"):
        stack.client.get_latest_trade("NOSUCH")


@pytest.mark.filterwarnings("ignore::marketdata.DelayedDataWarning")
def test_the_feed_that_the_cure_names_is_accepted(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(market={"entitled_sip": False})
    with pytest.raises(md.DataUnavailableError, match="delayed_sip"):
        stack.client.get_latest_trade("AAPL")
    assert stack.client.get_latest_trade("AAPL", feed="delayed_sip").price > 0
    with pytest.raises(md.RequestError, match="use one of: sip, iex"):
        stack.client.get_bars("AAPL", "1min", limit=1, feed="delayed_sip")
    with pytest.raises(md.RequestError, match="delayed_sip"):
        stack.client.get_latest_trade("AAPL", feed="nasdaq")


def test_a_quote_has_a_midpoint(stack: Stack) -> None:
    quote = stack.client.get_latest_quote("AAPL")
    assert isinstance(quote, Quote)
    assert quote.bid_price <= quote.midpoint <= quote.ask_price


def test_the_memory_is_bounded(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatestReader, "most_remembered", 1)
    for symbol in ("AAPL", "MSFT", "SPY"):
        stack.client.get_latest_trade(symbol)
    assert len(runtime(stack.client).latest._known) <= 2
